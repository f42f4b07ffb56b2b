"""The released policy finds objects by their expressions, in frames that it never saw."""

import numpy as np

from agents.random_agent import RandomAgent
from agents.rollout import play_games
from envs.atari import make_envs
from envs.expressions import draw_expression
from envs.games import find_game
from envs.objects import find_objects
from envs.protocol import MACHADO2018
from vlm.released_checkpoints import RELEASED_POLICY
from vlm.segmentation.referring_segmenter import load_segmenter


def frames_of(game_name, count, interval=15):
    """Frames of random play, uint8[count, H, W, 3], some steps apart."""
    game, frames = find_game(game_name), []
    with make_envs(game, 1, MACHADO2018) as envs:
        for transition in play_games(RandomAgent(envs.action_names), envs, [77]):
            if transition.step % interval == interval - 1:
                frames.append(transition.frame)
            if len(frames) == count:
                return frames
    raise AssertionError(f"the game ended after {len(frames)} frames")


def test_predicted_masks_overlap_their_targets():
    segmenter, rng, intersection, union = load_segmenter(RELEASED_POLICY), np.random.default_rng(0), 0, 0
    for game in ("Carnival", "MsPacman"):
        for frame in frames_of(game, 8):
            objects = find_objects(frame, game)
            expression = draw_expression(objects, rng)
            mask = segmenter.predict(frame[None], [expression.words])[0] > 0.5
            target = objects[expression.target].mask
            intersection, union = intersection + int((mask & target).sum()), union + int((mask | target).sum())
    assert intersection / union > 0.35
