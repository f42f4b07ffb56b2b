"""Ms. Pac-Man's mazes as graphs, read off a frame.

All four mazes share a grid of 14 rows, 12 pixels apart, and 18 columns, 8 pixels apart in each half. A node is a grid
point without a wall; neighbors are connected where the corridor between them is open. Dots lie on nodes and have the
walls' color.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

Node = tuple[int, int]  # row, column
Walls = Bool[np.ndarray, "171 width"]

ROWS = tuple(range(8, 176, 12))  # pixels
COLUMNS = (*range(10, 82, 8), *range(86, 158, 8))
UNREACHABLE = 1000  # distance to a node without a path


def find_walls(frame: UInt8[np.ndarray, "height width 3"]) -> Walls:
    """Return the pixels in the color of the maze's border: walls and dots."""
    return (frame[:171] == frame[1, 80]).all(axis=2)


@dataclass(frozen=True)
class Maze:
    """A graph: the open directions of each node, as words, and the neighbors they lead to."""

    edges: dict[Node, dict[str, Node]]

    @classmethod
    def from_walls(cls, walls: Walls) -> "Maze":
        """Return the corridors between `find_walls`; the tunnels connect the left and right sides."""
        free = {(r, c) for r in range(len(ROWS)) for c in range(len(COLUMNS)) if _is_free(walls, ROWS[r], COLUMNS[c])}
        edges: dict[Node, dict[str, Node]] = {node: {} for node in free}
        for row, column in sorted(free):
            right, below = (row, column + 1), (row + 1, column)
            if right in free and _is_open_across(walls, ROWS[row], COLUMNS[column], COLUMNS[column + 1]):
                _connect(edges, (row, column), "right", right, "left")
            if below in free and _is_open_down(walls, ROWS[row], ROWS[row + 1], COLUMNS[column]):
                _connect(edges, (row, column), "down", below, "up")
        last = len(COLUMNS) - 1
        for row, y in enumerate(ROWS):
            if {(row, 0), (row, last)} <= free and _is_open_across(walls, y, 0, COLUMNS[0]):
                _connect(edges, (row, last), "right", (row, 0), "left")
        return cls(edges)

    def distances(self, sources: Iterable[Node]) -> dict[Node, int]:
        """Return the steps from the nearest source to every node that can be reached."""
        found = dict.fromkeys(sources, 0)
        queue = deque(found)
        while queue:
            node = queue.popleft()
            for neighbor in self.edges.get(node, {}).values():
                if neighbor not in found:
                    found[neighbor] = found[node] + 1
                    queue.append(neighbor)
        return found

    def exits(self, x: int, y: int) -> tuple[Node | None, dict[str, Node]]:
        """Return the node at pixel (x, y), or None between nodes, and the next node in each open direction."""
        node = nearest_node(x, y)
        dx, dy = x - COLUMNS[node[1]], y - ROWS[node[0]]
        neighbors = self.edges.get(node, {})
        if abs(dx) <= 3 and abs(dy) <= 4:
            return (node if neighbors else None), neighbors
        if node not in self.edges:
            return None, {}
        if abs(dx) > 3:
            back, onward = ("left", "right") if dx > 0 else ("right", "left")
        else:
            back, onward = ("up", "down") if dy > 0 else ("down", "up")
        return None, {back: node} | ({onward: neighbors[onward]} if onward in neighbors else {})


def nearest_node(x: int, y: int) -> Node:
    """Return the grid point nearest to a pixel, with or without a wall."""
    return int(np.abs(np.subtract(ROWS, y)).argmin()), int(np.abs(np.subtract(COLUMNS, x)).argmin())


def find_dots(walls: Walls, maze: Maze) -> dict[Node, bool]:
    """Return the nodes that hold a dot, and whether it is an energizer."""
    found = {}
    for row, column in maze.edges:
        y, x = ROWS[row], COLUMNS[column]
        if walls[y : y + 2, x - 2 : x + 2].any():
            found[row, column] = bool(walls[y - 4 : y, x - 2 : x + 2].mean() > 0.5)
    return found


def _is_free(walls: Walls, y: int, x: int) -> bool:
    return not (walls[y + 4, x - 3 : x + 3].any() or walls[y - 3, x - 3] or walls[y - 3, x + 2])


def _is_open_across(walls: Walls, y: int, left: int, right: int) -> bool:
    return not (walls[y - 3, left:right].any() or walls[y + 4, left:right].any())


def _is_open_down(walls: Walls, top: int, bottom: int, x: int) -> bool:
    return not (walls[top:bottom, x - 3].any() or walls[top:bottom, x + 2].any())


def _connect(edges: dict[Node, dict[str, Node]], one: Node, direction: str, other: Node, opposite: str) -> None:
    edges[one][direction] = other
    edges[other][opposite] = one
