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
    seeds = [episode for seed in (0, 1, 999, 1000, 1999) for episode in episode_seeds(seed, 10_000)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", [-1, 2000])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(UserError, match="expected a seed from 0 to 1999"):
        episode_seeds(seed, 1)
