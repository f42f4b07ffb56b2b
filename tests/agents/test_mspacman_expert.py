"""Mazes are read off real frames, and the best direction leads to dots and away from ghosts."""

from dataclasses import replace

import numpy as np
import pytest

from agents.experts.maze import COLUMNS, ROWS, Maze, find_dots, find_walls, nearest_node
from agents.experts.mspacman_expert import MAX_DISTANCE, MsPacmanExpert, Scene
from envs.atari import EmulatorEnvs
from envs.games import find_game

PACMAN = find_game("MsPacman")
NAMES = ("noop", "up", "right", "left", "down")


def corridor(length=8):
    """Return one row of nodes, connected to the left and right."""
    left = lambda c: {"left": (0, c - 1)} if c else {}  # noqa: E731
    right = lambda c: {"right": (0, c + 1)} if c + 1 < length else {}  # noqa: E731
    return Maze({(0, c): {**left(c), **right(c)} for c in range(length)})


def scene(dots=(), dangerous=(), edible=(), column=4):
    player = (COLUMNS[column], ROWS[0])
    return Scene(corridor(), dict.fromkeys(dots, False), player, tuple(dangerous), tuple(edible))


@pytest.fixture(scope="module")
def first_frame():
    with EmulatorEnvs(PACMAN, 1) as envs:
        frame = envs.reset([1])[0]
        for _ in range(75):
            frame = envs.step(np.array([0])).frames[0]
        return frame, envs.emulators[0].ram


def test_the_first_maze_is_symmetric_connected_and_full_of_dots(first_frame):
    walls = find_walls(first_frame[0])
    maze = Maze.from_walls(walls)
    mirror = {"left": "right", "right": "left", "up": "up", "down": "down"}
    last = len(COLUMNS) - 1
    for (row, column), neighbors in maze.edges.items():
        assert set(maze.edges[row, last - column]) == {mirror[direction] for direction in neighbors}
    reachable = maze.distances([(0, 0)])
    dots = find_dots(walls, maze)
    assert set(dots) <= set(reachable)
    assert len(dots) > 130


def test_every_edge_has_its_reverse():
    back = {"left": "right", "right": "left", "up": "down", "down": "up"}
    with EmulatorEnvs(PACMAN, 1) as envs:
        maze = Maze.from_walls(find_walls(envs.reset([1])[0]))
    for node, neighbors in maze.edges.items():
        assert all(maze.edges[other][back[direction]] == node for direction, other in neighbors.items())


def test_the_player_is_on_the_frame_where_memory_has_her(first_frame):
    frame, ram = first_frame
    observed = MsPacmanExpert(NAMES).observe(frame, ram)
    x, y = observed.player
    sprite = (frame[y - 7 : y + 8, x - 7 : x + 8] == (210, 164, 74)).all(axis=2)
    assert sprite.sum() > 12
    assert observed.edible_ghosts == ()


def test_between_two_nodes_the_exits_are_onward_and_back():
    maze = corridor()
    node, exits = maze.exits(COLUMNS[3], ROWS[0])
    assert node == (0, 3)
    assert exits == {"left": (0, 2), "right": (0, 4)}
    assert maze.exits(COLUMNS[3] + 4, ROWS[0]) == (None, {"left": (0, 3), "right": (0, 4)})


def test_the_best_direction_leads_to_dots_and_edible_ghosts():
    expert = MsPacmanExpert(NAMES, min_reachable=1)
    values = expert.direction_values(scene(dots=[(0, 7)]))
    assert values["right"] > values["left"] == -expert.step_cost * MAX_DISTANCE
    values = expert.direction_values(scene(dots=[(0, 7)], edible=[(0, 1)]))
    assert values["left"] > values["right"]


def test_every_step_to_the_nearest_gain_has_a_cost():
    expert = MsPacmanExpert(NAMES, min_reachable=1)
    values = expert.direction_values(scene(dots=[(0, 0), (0, 7)], column=2))  # two steps to the left, five to the right
    assert values["left"] - values["right"] > 3 * expert.step_cost
    values = expert.direction_values(scene(dots=[(0, 0), (0, 7)], column=5))
    assert values["right"] - values["left"] > 3 * expert.step_cost


def test_dangerous_ghosts_block_gains_and_have_a_penalty():
    expert = MsPacmanExpert(NAMES, min_reachable=1)
    values = expert.direction_values(scene(dots=[(0, 7), (0, 0)], dangerous=[(0, 7)], column=1))
    assert values["left"] > 0 > values["right"]
    assert expert.direction_values(scene(dots=[(0, 5)], dangerous=[(0, 5)]))["right"] < -expert.ghost_penalty


def test_reversing_has_a_penalty_and_continuing_has_none():
    expert = MsPacmanExpert(NAMES, min_reachable=1, reversal_penalty=25.0)
    between = scene(dots=[(0, 7)], column=3)
    free = expert.direction_values(between)
    onward, back = (expert.direction_values(replace(between, heading=heading)) for heading in ("right", "left"))
    assert onward == {**free, "left": free["left"] - 25}
    assert back == {**free, "right": free["right"] - 25}
    assert expert.direction_values(replace(between, heading="up")) == free


def test_the_heading_is_the_direction_of_the_players_movement():
    moves = {"up": (0, -1), "right": (1, 0), "down": (0, 1), "left": (-1, 0)}
    rng, expert, correct, last = np.random.default_rng(0), MsPacmanExpert(NAMES), [], None
    with EmulatorEnvs(PACMAN, 1) as envs:
        frame = envs.reset([3])[0]
        for action in rng.integers(1, 5, size=(50, 1)).repeat(6, axis=0):
            frame = envs.step(action).frames[0]
            observed = expert.observe(frame, envs.emulators[0].ram)
            if last is not None:
                step = np.subtract(observed.player, last)
                if np.count_nonzero(step) == 1 and abs(step).max() < 12:  # straight on, no corner and no tunnel
                    correct.append(tuple(np.sign(step)) == moves[observed.heading])
            last = observed.player
    assert len(correct) > 50
    assert np.mean(correct) > 0.95


def test_the_nearest_node_of_a_pixel():
    assert nearest_node(11, 7) == (0, 0)
    assert nearest_node(150, 164) == (13, 17)
