"""Referrals of recorded games are drawn from seed and number alone, and splits share no game."""

import numpy as np
import pytest

from common.errors import UserError
from envs.episodes import EpisodeDataset
from envs.expressions import list_expressions
from envs.objects import find_objects
from pretrain.referring.recorded_games import GameReferringDataset, split_rows_by_game


def test_splits_are_of_whole_games_and_share_none(two_games):
    data = EpisodeDataset(two_games[0])
    parts = {split: split_rows_by_game(data, split, hold=1) for split in ("train", "val", "test")}
    games = {split: set(data.starts[rows].tolist()) for split, rows in parts.items()}
    assert [len(games[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert np.concatenate([parts["train"], parts["val"], parts["test"]]).tolist() == list(range(len(data)))
    assert split_rows_by_game(data, "all", hold=9).tolist() == list(range(len(data)))
    with pytest.raises(UserError, match=r"more than 4 games .* to hold 2 out twice, got 4"):
        split_rows_by_game(data, "test", hold=2)
    with pytest.raises(UserError, match=r"expected a split \(train, val, test, all\), got 'testA'"):
        split_rows_by_game(data, "testA", hold=1)


def test_the_mask_is_that_of_the_object_which_the_words_mean(two_games):
    drawn = GameReferringDataset(two_games, "train", 40, history=2, absent=0.25)
    kinds, games = set(), set()
    for referral in (drawn[index] for index in range(len(drawn))):
        assert referral.stack.shape == (2, 210, 160, 3)
        kinds.add(referral.kind)
        games.add(referral.game)
        objects = find_objects(referral.stack[-1], referral.game)
        meant = {expression.words: expression.target for expression in list_expressions(objects)}
        if referral.kind == "absent":
            assert not referral.mask.any()
            assert referral.words not in meant
        else:
            assert np.array_equal(referral.mask, objects[meant[referral.words]].mask)
    assert kinds >= {"name", "extreme", "absent"}
    assert games == {"Pong", "Breakout"}


def test_items_depend_on_seed_split_and_number_alone(two_games):
    def words(**changes):
        drawn = GameReferringDataset(two_games, **{"split": "train", "count": 12, "seed": 3, **changes})
        return [drawn[index].words for index in range(12)]

    assert words() == words()
    assert words() != words(seed=4)
    assert words() != words(split="val")


def test_games_without_objects_are_refused_by_name(two_games, monkeypatch):
    monkeypatch.setattr("pretrain.referring.recorded_games.find_objects", lambda *_: [])
    with pytest.raises(UserError, match="no object can be singled out in 50 of its frames"):
        GameReferringDataset(two_games, "all", 1, absent=0.0)[0]
    with pytest.raises(UserError, match="expected directories of recorded games, got none"):
        GameReferringDataset([], "all", 1)
