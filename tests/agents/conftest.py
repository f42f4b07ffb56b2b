"""A tiny checkpoint, made once."""

import pytest

from vlm import checkpoint
from vlm.presets import build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    checkpoint.save(build("tiny", seed=7), path, {"games": ["Carnival"], "play": {"temperature": 0.0}})
    return path
