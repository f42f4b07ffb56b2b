"""The model that ships finds what words mean in games that it never saw, both by name and by place."""

import numpy as np

from agents.random_agent import RandomAgent
from agents.rollout import play_games
from envs.atari import make_envs
from envs.expressions import draw_expression
from envs.games import find_game
from envs.objects import find_objects
from envs.protocol import MACHADO2018
from vlm.pretrained import RELEASED_SEGMENTER
from vlm.segmentation.referring_segmenter import load_segmenter


def frames_of(game_name, count, apart=15):
    """Frames of random play, uint8[count, H, W, 3], some decisions apart."""
    game, frames = find_game(game_name), []
    with make_envs(game, 1, MACHADO2018) as envs:
        for turn in play_games(RandomAgent(envs.action_names), envs, [77]):
            if turn.step % apart == apart - 1:
                frames.append(turn.frame)
            if len(frames) == count:
                return frames
    raise AssertionError(f"the game ended after {len(frames)} frames")


def test_most_of_what_is_meant_is_found_pixel_by_pixel_and_little_else():
    segmenter, rng, both, either = load_segmenter(RELEASED_SEGMENTER), np.random.default_rng(0), 0, 0
    for game in ("Carnival", "MsPacman"):
        for frame in frames_of(game, 8):
            objects = find_objects(frame, game)
            expression = draw_expression(objects, rng)
            shown = segmenter.find(frame[None], [expression.words])[0] > 0.5
            truth = objects[expression.target].mask
            both, either = both + int((shown & truth).sum()), either + int((shown | truth).sum())
    assert both / either > 0.35
