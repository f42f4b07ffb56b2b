"""Protocols and seeds."""

import pytest

from common.errors import UserError
from envs.protocol import MACHADO2018, Protocol, episode_seeds, find_protocol


def test_the_default_protocol_is_that_of_machado_2018():
    assert find_protocol("machado2018") == MACHADO2018
    assert (MACHADO2018.repeat_action_probability, MACHADO2018.frame_skip) == (0.25, 4)
    assert MACHADO2018.max_episode_frames == 108_000


def test_a_protocol_survives_json():
    assert Protocol(**MACHADO2018.to_dict()) == MACHADO2018


def test_an_unknown_protocol_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"machado2018 or mnih2015; got 'machado'"):
        find_protocol("machado")


def test_no_two_episodes_share_an_emulator_seed():
    drawn = (0, 1, 999, 1000, 1999, 2000, 99_999, 100_000, 2**64)
    seeds = [episode for seed in drawn for episode in episode_seeds(seed, 1000 if seed >= 2000 else 10_000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 < seed < 2**31 for seed in seeds)
    assert episode_seeds(2**64, 3)[2] == episode_seeds(2**64, 5)[2]


def test_a_negative_seed_and_too_many_episodes_are_refused():
    with pytest.raises(UserError, match="expected a seed of at least 0, got -1"):
        episode_seeds(-1, 1)
    with pytest.raises(UserError, match="expected at most 10000 episodes a seed, got 10001"):
        episode_seeds(1, 10_001)
