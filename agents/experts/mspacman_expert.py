"""Values of Ms. Pac-Man's moves from shortest paths: a teacher that is fast, steady and sees what a player sees.

`agents.experts.search` looks ahead on a cloned emulator; its values are estimates from a few random walks, so that two searches
of one state often disagree, and they know what the ghosts are going to do. Here a move is worth what lies behind it:

    sum of near^k * gain  +  max of far^k * gain  -  the way to a meal  -  fear of the ghosts  -  a dead end's price

over the nodes that the player reaches, k steps away, before any ghost does; turning back has a price of its own. The
walls and dots are read off the frame, where the player and the ghosts are and which way she goes off the console's
memory, which is less than two frames show.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from agents.experts.maze import FAR, Maze, Node, find_dots, find_walls, nearest_node
from envs.atari import Emulator

HEADING, WAYS = 56, ("up", "right", "down", "left")  # the address of the way that the player goes, and its values
PLAYER = (10, 16)  # addresses of x and y; the addresses of this game were found by comparing memory and frames
GHOSTS = ((1, 6, 12), (2, 7, 13), (3, 8, 14), (4, 9, 15))  # state (bit 7: may be eaten), x and y
LONG = 40  # steps; a way that leads to nothing to eat is taken to be as long
PEN = {(6, column) for column in range(7, 11)}


@dataclass(frozen=True)
class Scene:
    """What counts for a move: the maze, its dots, where the player is, and the ghosts to fear and to hunt."""

    maze: Maze
    dots: dict[Node, bool]
    player: tuple[int, int]  # x, y in pixels
    feared: tuple[Node, ...]
    hunted: tuple[Node, ...]
    heading: str = ""


@dataclass
class MsPacmanExpert:
    """Values of the four moves of Ms. Pac-Man, in points; see the head of this file.

    near, far: discounts a step; fear: the price of every step that a ghost is nearer than `reach`; trapped: the price
    of a way with fewer than `roomy` nodes left; turning: the price of turning back, since a pupil sees which way the
    player goes, and what two ways of a corridor differ by only if it has learnt to count; hunger: the price of every
    step to what is nearest to eat, since by discounts alone two ways to the last dots differ by a point or two, and a
    pupil is taught differences; dot, large_dot, ghost: what eating one is taken to be worth.
    """

    action_names: tuple[str, ...]
    near: float = 0.88
    far: float = 0.97
    fear: float = 60.0
    reach: int = 6
    trapped: float = 300.0
    roomy: int = 6
    turning: float = 40.0
    hunger: float = 10.0
    dot: float = 10.0
    large_dot: float = 60.0
    ghost: float = 250.0
    _mazes: dict[bytes, Maze] = field(default_factory=dict)

    def values(self, emulator: Emulator, rng: np.random.Generator) -> np.ndarray:
        """Return float32[A]: the value of each open way, -inf for every other action; see `agents.experts.search.Search`."""
        values = np.full(len(self.action_names), -np.inf, dtype=np.float32)
        for name, value in self.value_ways(self.look(emulator.frame(), emulator.ram)).items():
            values[self.action_names.index(name)] = value
        if not np.isfinite(values).any():  # between two lives there is no player: any move is as good
            values[[self.action_names.index(name) for name in ("up", "right", "left", "down")]] = 0
        return values

    def look(self, frame: np.ndarray, ram: np.ndarray) -> Scene:
        """Read a scene off a frame uint8[210, 160, 3] and the memory uint8[128]."""
        walls = find_walls(frame)
        maze = self._maze(walls)
        feared: list[Node] = []
        hunted: list[Node] = []
        for state, x, y in GHOSTS:
            node = nearest_node(*_pixel(ram, x, y))
            if node in maze.edges and node not in PEN:
                (hunted if ram[state] & 0x80 else feared).append(node)
        heading = WAYS[ram[HEADING] % 4]
        return Scene(maze, find_dots(walls, maze), _pixel(ram, *PLAYER), tuple(feared), tuple(hunted), heading)

    def value_ways(self, scene: Scene) -> dict[str, float]:
        """Return the value of each way that is open to the player."""
        here, ways = scene.maze.ways(*scene.player)
        dangers = [scene.maze.distances([node]) for node in scene.feared]
        values = {name: self._value(scene, here, first, dangers) for name, first in ways.items()}
        if scene.heading and (back := WAYS[WAYS.index(scene.heading) - 2]) in values:
            values[back] -= self.turning
        return values

    def _maze(self, walls: np.ndarray) -> Maze:
        """Read a maze once; dots are on none of the lines that tell one maze from another."""
        key = np.packbits(walls[5::12]).tobytes()
        if key not in self._mazes:
            if len(self._mazes) > 64:
                self._mazes.clear()
            self._mazes[key] = Maze.read(walls)
        return self._mazes[key]

    def _value(self, scene: Scene, here: Node | None, first: Node, dangers: list[dict[Node, int]]) -> float:
        gains = {node: self.large_dot if large else self.dot for node, large in scene.dots.items()}
        for node in scene.hunted:
            gains[node] = gains.get(node, 0.0) + self.ghost
        reached = _reach(scene.maze, here, first, dangers)
        found = [(gains[node], steps) for node, steps in reached.items() if node in gains]
        near = sum(gain * self.near**steps for gain, steps in found)
        far = max((gain * self.far**steps for gain, steps in found), default=0.0)
        way = min((steps for _, steps in found), default=LONG)
        fear = sum(max(0, self.reach - ghost.get(first, FAR)) for ghost in dangers)
        return near + far - self.hunger * min(way, LONG) - self.fear * fear - self.trapped * (len(reached) < self.roomy)


def _reach(maze: Maze, here: Node | None, first: Node, dangers: Iterable[dict[Node, int]]) -> dict[Node, int]:
    """Return the nodes behind `first` that the player reaches before any ghost, with the steps that it takes."""
    ghost = lambda node: min((distance.get(node, FAR) for distance in dangers), default=FAR)  # noqa: E731
    if ghost(first) <= 1:
        return {}
    reached, queue = {first: 1}, deque([first])
    while queue:
        node = queue.popleft()
        for onward in maze.edges[node].values():
            if onward != here and onward not in reached and ghost(onward) > reached[node] + 1:
                reached[onward] = reached[node] + 1
                queue.append(onward)
    return reached


def _pixel(ram: np.ndarray, x: int, y: int) -> tuple[int, int]:
    """Return the centre of an object on the frame, (x, y), from its coordinates in memory."""
    return int(ram[x]) - 8, int(ram[y]) + 5
