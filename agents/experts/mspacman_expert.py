"""Action values for Ms. Pac-Man from shortest paths: fast, and consistent between similar states.

The value of a direction is

    sum of discount_near^k * gain  +  max of discount_far^k * gain  -  step_cost * distance to the nearest gain
    -  ghost_penalty * proximity of ghosts  -  dead_end_penalty  -  reversal_penalty

over the nodes that the player reaches, k steps away, before any ghost does. Walls and dots come from the frame; the
positions of player and ghosts and the player's heading come from the console's memory, but two frames show them too.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from agents.experts.maze import UNREACHABLE, Maze, Node, Walls, find_dots, find_walls, nearest_node
from agents.experts.search import ActionValues
from envs.atari import Emulator, Ram

DIRECTIONS = ("up", "right", "down", "left")  # by the byte at HEADING
HEADING, PLAYER = 56, (10, 16)  # addresses of the heading and of x and y, found by comparing memory and frames
GHOSTS = ((1, 6, 12), (2, 7, 13), (3, 8, 14), (4, 9, 15))  # addresses of state (bit 7: edible), x and y
MAX_DISTANCE = 40  # steps; also the distance where nothing can be reached
GHOST_HOUSE = {(6, column) for column in range(7, 11)}


@dataclass(frozen=True)
class Scene:
    """The maze, its dots (True: an energizer), the player's pixel (x, y) and heading, and the ghosts."""

    maze: Maze
    dots: dict[Node, bool]
    player: tuple[int, int]
    dangerous_ghosts: tuple[Node, ...]
    edible_ghosts: tuple[Node, ...]
    heading: str = ""


@dataclass
class MsPacmanExpert:
    """Values of Ms. Pac-Man's four directions, in points; see `agents.experts.search.Search`."""

    action_names: tuple[str, ...]
    discount_near: float = 0.88
    discount_far: float = 0.97
    ghost_penalty: float = 60.0  # per step that a ghost is nearer than `ghost_radius`
    ghost_radius: int = 6
    dead_end_penalty: float = 300.0  # of a direction with fewer than `min_reachable` nodes
    min_reachable: int = 6
    reversal_penalty: float = 40.0  # a learner policy sees the heading, and often little else to choose by
    step_cost: float = 10.0  # discounts alone leave differences too small to learn from
    dot_value: float = 10.0
    energizer_value: float = 60.0
    ghost_value: float = 250.0
    _mazes: dict[bytes, Maze] = field(default_factory=dict)

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """Return the value of each open direction, -inf for every other action."""
        values = np.full(len(self.action_names), -np.inf, dtype=np.float32)
        found = self.direction_values(self.observe(emulator.frame(), emulator.ram))
        for name, value in (found or dict.fromkeys(DIRECTIONS, 0.0)).items():  # between two lives there is no player
            values[self.action_names.index(name)] = value
        return values

    def observe(self, frame: UInt8[np.ndarray, "210 160 3"], ram: Ram) -> Scene:
        """Return the scene of a frame and the console's memory."""
        walls = find_walls(frame)
        maze = self._maze(walls)
        dangerous: list[Node] = []
        edible: list[Node] = []
        for state, x, y in GHOSTS:
            node = nearest_node(*_pixel(ram, x, y))
            if node in maze.edges and node not in GHOST_HOUSE:
                (edible if ram[state] & 0x80 else dangerous).append(node)
        heading = DIRECTIONS[ram[HEADING] % 4]
        return Scene(maze, find_dots(walls, maze), _pixel(ram, *PLAYER), tuple(dangerous), tuple(edible), heading)

    def direction_values(self, scene: Scene) -> dict[str, float]:
        """Return the value of each open direction."""
        here, exits = scene.maze.exits(*scene.player)
        ghost_distances = [scene.maze.distances([node]) for node in scene.dangerous_ghosts]
        values = {name: self._value(scene, here, first, ghost_distances) for name, first in exits.items()}
        if scene.heading and (back := DIRECTIONS[DIRECTIONS.index(scene.heading) - 2]) in values:
            values[back] -= self.reversal_penalty
        return values

    def _maze(self, walls: Walls) -> Maze:
        """Return the maze, cached by the pixel rows without dots."""
        key = np.packbits(walls[5::12]).tobytes()
        if key not in self._mazes:
            if len(self._mazes) > 64:
                self._mazes.clear()
            self._mazes[key] = Maze.from_walls(walls)
        return self._mazes[key]

    def _value(self, scene: Scene, here: Node | None, first: Node, ghost_distances: list[dict[Node, int]]) -> float:
        gains = {node: self.energizer_value if energizer else self.dot_value for node, energizer in scene.dots.items()}
        for node in scene.edible_ghosts:
            gains[node] = gains.get(node, 0.0) + self.ghost_value
        reached = _reachable(scene.maze, here, first, ghost_distances)
        found = [(gains[node], steps) for node, steps in reached.items() if node in gains]
        near = sum(gain * self.discount_near**steps for gain, steps in found)
        far = max((gain * self.discount_far**steps for gain, steps in found), default=0.0)
        distance = min((steps for _, steps in found), default=MAX_DISTANCE)
        proximity = sum(max(0, self.ghost_radius - ghost.get(first, UNREACHABLE)) for ghost in ghost_distances)
        value = near + far - self.step_cost * min(distance, MAX_DISTANCE) - self.ghost_penalty * proximity
        return value - self.dead_end_penalty * (len(reached) < self.min_reachable)


def _reachable(
    maze: Maze, here: Node | None, first: Node, ghost_distances: Iterable[dict[Node, int]]
) -> dict[Node, int]:
    """Return the nodes beyond `first` that the player reaches before any ghost, and the steps to each."""

    def ghost_distance(node: Node) -> int:
        return min((distances.get(node, UNREACHABLE) for distances in ghost_distances), default=UNREACHABLE)

    if ghost_distance(first) <= 1:
        return {}
    reached, queue = {first: 1}, deque([first])
    while queue:
        node = queue.popleft()
        for neighbor in maze.edges[node].values():
            if neighbor != here and neighbor not in reached and ghost_distance(neighbor) > reached[node] + 1:
                reached[neighbor] = reached[node] + 1
                queue.append(neighbor)
    return reached


def _pixel(ram: Ram, x: int, y: int) -> tuple[int, int]:
    """Return the center (x, y) of an object on the frame from the addresses of its coordinates."""
    return int(ram[x]) - 8, int(ram[y]) + 5
