"""A checkpoint reloads everything, loads in plain transformers, and is refused by name when it is incomplete."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.presets import build


@pytest.fixture
def saved(tmp_path):
    vlm = build("tiny", seed=4)
    checkpoint.save(vlm, tmp_path / "model", {"games": ["Carnival"]})
    return vlm, tmp_path / "model"


def test_what_was_saved_is_loaded(saved):
    vlm, path = saved
    loaded = checkpoint.load(path)
    assert loaded.history == vlm.history
    for (name, a), (same, b) in zip(vlm.model.state_dict().items(), loaded.model.state_dict().items(), strict=True):
        assert name == same
        assert torch.equal(a, b)
    assert loaded.tokenizer("up right 255")["input_ids"] == vlm.tokenizer("up right 255")["input_ids"]
    assert checkpoint.read_training(path) == {"games": ["Carnival"]}


def test_plain_transformers_loads_it_too(saved):
    vlm, path = saved
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    frames = np.zeros((1, 2, 210, 160, 3), dtype=np.uint8)
    with torch.no_grad():
        theirs = torch.stack(list(model.get_image_features(pixel_values=vlm.preprocess(frames)).pooler_output))
        ours = vlm.encode_images(vlm.preprocess(frames)).tokens
    assert torch.equal(theirs, ours)
    assert len(tokenizer) == len(vlm.tokenizer)


def test_bfloat16_weights_take_half_the_space_and_stay_near(saved, tmp_path):
    vlm, path = saved
    checkpoint.save(vlm, tmp_path / "half", dtype=torch.bfloat16)
    sizes = [(file / "model.safetensors").stat().st_size for file in (tmp_path / "half", path)]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = checkpoint.load(tmp_path / "half")
    assert loaded.model.dtype == torch.float32
    worst = max((a - b).abs().max() for a, b in zip(vlm.model.parameters(), loaded.model.parameters(), strict=True))
    assert worst < 0.01


def test_saving_again_replaces_the_old_one_completely(saved):
    _, path = saved
    (path / "stale.txt").write_text("old")
    before = checkpoint.content_hash(path)
    checkpoint.save(build("tiny", seed=5), path)
    assert not (path / "stale.txt").exists()
    assert checkpoint.content_hash(path) != before
    assert [file.name for file in path.parent.iterdir()] == ["model"]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere, which does not exist"):
        checkpoint.load(tmp_path / "nowhere")


def test_damaged_weights_are_named(saved):
    _, path = saved
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors or a file beside it is damaged"):
        checkpoint.load(path)


def test_missing_weights_are_named(saved):
    _, path = saved
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        checkpoint.load(path)


def test_a_directory_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected a vision-language model of transformers at"):
        checkpoint.load(tmp_path)
    (tmp_path / "pvplay.json").write_text(json.dumps({"kind": "something-else"}))
    with pytest.raises(CheckpointError, match="expected a checkpoint of kind pvplay-vlm, got something-else"):
        checkpoint.load(tmp_path)
