"""Expressions about recorded games: their masks are their targets', and seed and index alone decide them."""

import numpy as np
import pytest

from common.errors import UserError
from envs.expressions import list_expressions
from envs.objects import find_objects
from pretrain.referring.scene_dataset import SceneDataset


def test_the_mask_is_that_of_the_target(two_games):
    data = SceneDataset(two_games, "train", 40, history=2, no_target_fraction=0.25)
    kinds, games = set(), set()
    for sample in (data[index] for index in range(len(data))):
        assert sample.frames.shape == (2, 210, 160, 3)
        games.add(sample.source)
        objects = find_objects(sample.frames[-1], sample.source)
        candidates = {expression.words: expression for expression in list_expressions(objects)}
        match = candidates.get(sample.expressions[0])
        kinds.add(match.kind if match else "no_target")
        target = objects[match.target].mask if match else np.zeros((210, 160), bool)
        assert np.array_equal(sample.masks, target[None])
    assert kinds >= {"name", "extreme", "no_target"}
    assert games == {"Pong", "Breakout"}


def test_items_depend_on_seed_split_and_index_alone(two_games):
    def expressions(**changes):
        data = SceneDataset(two_games, **{"split": "train", "count": 12, "seed": 3, **changes})
        return [data[index].expressions for index in range(12)]

    assert expressions() == expressions()
    assert expressions() != expressions(seed=4)
    assert expressions() != expressions(split="val")


def test_games_without_objects_are_refused_by_name(two_games, monkeypatch):
    monkeypatch.setattr("pretrain.referring.scenes.find_objects", lambda *_: [])
    with pytest.raises(UserError, match="no object can be singled out in 50 of its scenes"):
        SceneDataset(two_games, "all", 1, no_target_fraction=0.0)[0]
    with pytest.raises(UserError, match="expected directories of recorded games, got none"):
        SceneDataset([], "all", 1)
