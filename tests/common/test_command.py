"""How a command ends, and its check of counts."""

from types import SimpleNamespace

import pytest

from common.command import require_at_least
from common.errors import UserError


def test_a_count_below_the_minimum_is_refused_by_its_flag():
    args = SimpleNamespace(num_envs=0, episodes=1, max_frames=None)
    require_at_least(args, 1, "episodes", "max_frames")
    with pytest.raises(UserError, match="--num-envs must be at least 1, got 0"):
        require_at_least(args, 1, "episodes", "num_envs")
