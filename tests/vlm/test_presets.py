"""Every preset builds, in its size range, from its seed alone."""

import pytest
import torch

from common.errors import UserError
from vlm.presets import PRESETS, build


def count(vlm):
    return sum(parameter.numel() for parameter in vlm.model.parameters())


SIZES = {
    "tiny": (1e4, 2e5),
    "micro": (1e6, 2e6),
    "tiny-clip": (1e4, 2e5),
    "nano": (3.9e6, 1e7),
    "nano-fine": (3e6, 6e6),
    "nano-clip": (3.9e6, 1e7),
    "play-clip": (3.9e6, 1e7),
    "small": (2.5e7, 5e7),
    "base-clip": (2e8, 3e8),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_size(name):
    assert set(PRESETS) == set(SIZES)
    least, most = SIZES[name]
    assert least <= count(build(name)) <= most


def test_the_same_seed_builds_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = build("tiny", 1), build("tiny", 1), build("tiny", 2)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.model.parameters(), same.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="got 'nanno'; nearest: nano"):
        build("nanno")
