"""Ms. Pac-Man's mazes as graphs, read off a frame.

All four mazes stand on one lattice of 14 rows, 12 pixels apart, and 18 columns, 8 pixels apart in each half. A node is
a place where no wall is; nodes are joined where the corridor between them is open. Dots lie on nodes, in the walls'
colour.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Node = tuple[int, int]  # row, column

ROWS = tuple(range(8, 176, 12))  # pixels
COLUMNS = (*range(10, 82, 8), *range(86, 158, 8))
FAR = 1000  # nodes; what cannot be reached is this far away


def find_walls(frame: np.ndarray) -> np.ndarray:
    """Return bool[171, W]: what has the colour of the maze's border, walls and dots, in a frame uint8[H, W, 3]."""
    return (frame[:171] == frame[1, 80]).all(axis=2)


@dataclass(frozen=True)
class Maze:
    """A graph: for every node the directions that are open, as words, and the nodes they lead to."""

    edges: dict[Node, dict[str, Node]]

    @classmethod
    def read(cls, walls: np.ndarray) -> "Maze":
        """Read the corridors off `find_walls`; the tunnels at the sides join their ends."""
        free = {(r, c) for r in range(len(ROWS)) for c in range(len(COLUMNS)) if _is_free(walls, ROWS[r], COLUMNS[c])}
        edges: dict[Node, dict[str, Node]] = {node: {} for node in free}
        for row, column in sorted(free):
            right, below = (row, column + 1), (row + 1, column)
            if right in free and _is_open_across(walls, ROWS[row], COLUMNS[column], COLUMNS[column + 1]):
                _join(edges, (row, column), "right", right, "left")
            if below in free and _is_open_down(walls, ROWS[row], ROWS[row + 1], COLUMNS[column]):
                _join(edges, (row, column), "down", below, "up")
        last = len(COLUMNS) - 1
        for row, y in enumerate(ROWS):
            if {(row, 0), (row, last)} <= free and _is_open_across(walls, y, 0, COLUMNS[0]):
                _join(edges, (row, last), "right", (row, 0), "left")
        return cls(edges)

    def distances(self, sources: Iterable[Node]) -> dict[Node, int]:
        """Return how many steps every node is from the nearest source, where one can be reached."""
        found = dict.fromkeys(sources, 0)
        queue = deque(found)
        while queue:
            node = queue.popleft()
            for onward in self.edges.get(node, {}).values():
                if onward not in found:
                    found[onward] = found[node] + 1
                    queue.append(onward)
        return found

    def ways(self, x: int, y: int) -> tuple[Node | None, dict[str, Node]]:
        """Return the node that lies at pixel (x, y), or None between two, and the nodes next on each open way."""
        node = nearest_node(x, y)
        aside, below = x - COLUMNS[node[1]], y - ROWS[node[0]]
        open_ways = self.edges.get(node, {})
        if abs(aside) <= 3 and abs(below) <= 4:
            return (node if open_ways else None), open_ways
        if abs(aside) > 3:
            back, onward = ("left", "right") if aside > 0 else ("right", "left")
        else:
            back, onward = ("up", "down") if below > 0 else ("down", "up")
        if node not in self.edges:
            return None, {}
        return None, {back: node} | ({onward: open_ways[onward]} if onward in open_ways else {})


def nearest_node(x: int, y: int) -> Node:
    """Return the node nearest to a pixel, free or not."""
    return int(np.abs(np.subtract(ROWS, y)).argmin()), int(np.abs(np.subtract(COLUMNS, x)).argmin())


def find_dots(walls: np.ndarray, maze: Maze) -> dict[Node, bool]:
    """Return the nodes at which a dot lies, and whether it is one of the large ones."""
    found = {}
    for row, column in maze.edges:
        y, x = ROWS[row], COLUMNS[column]
        if walls[y : y + 2, x - 2 : x + 2].any():
            found[row, column] = bool(walls[y - 4 : y, x - 2 : x + 2].mean() > 0.5)
    return found


def _is_free(walls: np.ndarray, y: int, x: int) -> bool:
    return not (walls[y + 4, x - 3 : x + 3].any() or walls[y - 3, x - 3] or walls[y - 3, x + 2])


def _is_open_across(walls: np.ndarray, y: int, left: int, right: int) -> bool:
    return not (walls[y - 3, left:right].any() or walls[y + 4, left:right].any())


def _is_open_down(walls: np.ndarray, top: int, bottom: int, x: int) -> bool:
    return not (walls[top:bottom, x - 3].any() or walls[top:bottom, x + 2].any())


def _join(edges: dict[Node, dict[str, Node]], one: Node, there: str, other: Node, back: str) -> None:
    edges[one][there] = other
    edges[other][back] = one
