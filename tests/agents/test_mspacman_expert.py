"""A maze is read off real frames as it is drawn, and its paths lead to dots and away from ghosts."""

from dataclasses import replace

import numpy as np
import pytest

from agents.experts.maze import COLUMNS, ROWS, Maze, find_dots, find_walls, nearest_node
from agents.experts.mspacman_expert import LONG, MsPacmanExpert, Scene
from agents.experts.search_agent import SearchAgent, find_search
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import find_game

PACMAN = find_game("MsPacman")
NAMES = ("noop", "up", "right", "left", "down")


def corridor(length=8):
    """One row of nodes, open to the left and right."""
    left = lambda c: {"left": (0, c - 1)} if c else {}  # noqa: E731
    right = lambda c: {"right": (0, c + 1)} if c + 1 < length else {}  # noqa: E731
    return Maze({(0, c): {**left(c), **right(c)} for c in range(length)})


def scene(dots=(), feared=(), hunted=(), column=4):
    place = (COLUMNS[column], ROWS[0])
    return Scene(corridor(), dict.fromkeys(dots, False), place, tuple(feared), tuple(hunted))


@pytest.fixture(scope="module")
def first_frame():
    with EmulatorEnvs(PACMAN, 1) as envs:
        frame = envs.reset([1])[0]
        for _ in range(75):
            frame = envs.step(np.array([0])).frames[0]
        return frame, envs.emulators[0].ram


def test_the_first_maze_is_symmetric_whole_and_full_of_dots(first_frame):
    walls = find_walls(first_frame[0])
    maze = Maze.read(walls)
    mirror = {"left": "right", "right": "left", "up": "up", "down": "down"}
    last = len(COLUMNS) - 1
    for (row, column), ways in maze.edges.items():
        assert set(maze.edges[row, last - column]) == {mirror[way] for way in ways}
    reachable = maze.distances([(0, 0)])
    dots = find_dots(walls, maze)
    assert set(dots) <= set(reachable)
    assert len(dots) > 130


def test_every_way_leads_back():
    back = {"left": "right", "right": "left", "up": "down", "down": "up"}
    with EmulatorEnvs(PACMAN, 1) as envs:
        maze = Maze.read(find_walls(envs.reset([1])[0]))
    assert all(
        maze.edges[onward][back[way]] == node for node, ways in maze.edges.items() for way, onward in ways.items()
    )


def test_the_player_and_the_ghosts_stand_where_memory_says(first_frame):
    frame, ram = first_frame
    looked = MsPacmanExpert(NAMES).look(frame, ram)
    x, y = looked.player
    own = (frame[y - 7 : y + 8, x - 7 : x + 8] == (210, 164, 74)).all(axis=2)
    assert own.sum() > 12
    assert looked.hunted == ()


def test_ways_between_two_nodes_are_onward_and_back():
    maze = corridor()
    node, ways = maze.ways(COLUMNS[3], ROWS[0])
    assert node == (0, 3)
    assert ways == {"left": (0, 2), "right": (0, 4)}
    assert maze.ways(COLUMNS[3] + 4, ROWS[0]) == (None, {"left": (0, 3), "right": (0, 4)})


def test_moves_go_to_dots_and_to_ghosts_that_may_be_eaten():
    search = MsPacmanExpert(NAMES, roomy=1)
    values = search.value_ways(scene(dots=[(0, 7)]))
    assert values["right"] > values["left"] == -search.hunger * LONG
    values = search.value_ways(scene(dots=[(0, 7)], hunted=[(0, 1)]))
    assert values["left"] > values["right"]


def test_every_step_to_the_nearest_meal_has_a_price():
    search = MsPacmanExpert(NAMES, roomy=1)
    values = search.value_ways(scene(dots=[(0, 0), (0, 7)], column=2))  # two steps to the left, five to the right
    assert values["left"] - values["right"] > 3 * search.hunger
    values = search.value_ways(scene(dots=[(0, 0), (0, 7)], column=5))
    assert values["right"] - values["left"] > 3 * search.hunger


def test_moves_shun_ghosts_and_what_lies_behind_them():
    search = MsPacmanExpert(NAMES, roomy=1)
    values = search.value_ways(scene(dots=[(0, 7), (0, 0)], feared=[(0, 7)], column=1))
    assert values["left"] > 0 > values["right"]
    assert search.value_ways(scene(dots=[(0, 5)], feared=[(0, 5)]))["right"] < -search.fear


def test_turning_back_has_a_price_and_going_on_has_none():
    search = MsPacmanExpert(NAMES, roomy=1, turning=25.0)
    between = scene(dots=[(0, 7)], column=3)
    free = search.value_ways(between)
    onward, back = (search.value_ways(replace(between, heading=way)) for way in ("right", "left"))
    assert onward == {**free, "left": free["left"] - 25}
    assert back == {**free, "right": free["right"] - 25}
    assert search.value_ways(replace(between, heading="up")) == free


def test_the_heading_is_the_way_that_the_player_goes():
    moves = {"up": (0, -1), "right": (1, 0), "down": (0, 1), "left": (-1, 0)}
    rng, search, told, last = np.random.default_rng(0), MsPacmanExpert(NAMES), [], None
    with EmulatorEnvs(PACMAN, 1) as envs:
        frame = envs.reset([3])[0]
        for action in rng.integers(1, 5, size=(50, 1)).repeat(6, axis=0):
            frame = envs.step(action).frames[0]
            seen = search.look(frame, envs.emulators[0].ram)
            if last is not None:
                step = np.subtract(seen.player, last)
                if np.count_nonzero(step) == 1 and abs(step).max() < 12:  # straight on, no corner and no tunnel
                    told.append(tuple(np.sign(step)) == moves[seen.heading])
            last = seen.player
    assert len(told) > 50
    assert np.mean(told) > 0.95


def test_it_plays_far_better_than_random():
    with EmulatorEnvs(PACMAN, 1) as envs:
        agent = SearchAgent(envs, find_search("mspacman-expert", envs), "mspacman-expert")
        scores = []
        for turn in play_games(agent, envs, [3]):
            scores.append(turn.score)
            if turn.step >= 600:
                break
        random = max(turn.score for turn in play_games(RandomAgent(envs.action_names), envs, [3]))
    assert max(scores) > 3 * random


def test_another_game_is_refused():
    with (
        EmulatorEnvs(find_game("Pong"), 1) as envs,
        pytest.raises(UserError, match=r"expected Ms\. Pac-Man .*got Pong"),
    ):
        find_search("mspacman-expert", envs)


def test_the_nearest_node_of_a_pixel():
    assert nearest_node(11, 7) == (0, 0)
    assert nearest_node(150, 164) == (13, 17)
