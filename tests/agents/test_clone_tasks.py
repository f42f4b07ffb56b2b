"""Cloning beside pixel value prediction and referring segmentation leaves one model that does all three."""

import pytest
from safetensors.torch import load_file

from agents import clone, record
from common.command import run
from pretrain.referring.evaluation import main as evaluate
from vlm import checkpoint
from vlm.segmentation.mask_head import MaskHead
from vlm.training.fit import AUXILIARY

RUN = ("--preset", "tiny-clip", "--batch-size", 2, "--eval-every", 0, "--steps", 2, "--joint")
SHARES = ("--pvp-weight", 0.3, "--mask-weight", 0.3)
TRAINER = ("--trainer", "warmup_steps=1", "dataloader_num_workers=0", "save_steps=1", "logging_steps=1")


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """Five short games of random play."""
    out = tmp_path_factory.mktemp("data") / "carnival"
    words = ("--game", "Carnival", "--agent", "random", "--episodes", 5, "--max-frames", 160, "--out", out)
    assert run(lambda: record.main([str(word) for word in words])) == 0
    return out


def command(*arguments):
    return run(lambda: clone.main([str(argument) for argument in arguments]))


@pytest.mark.slow
def test_one_training_of_three_tasks_leaves_a_model_that_plays_reads_and_segments(games, tmp_path, capsys):
    first = tmp_path / "first"
    assert command(*RUN, *SHARES, "--data", games, "--out", first, *TRAINER) == 0
    log = capsys.readouterr().out
    assert all(f"{name}/loss" in log for name in ("play", "pvp", "masks"))
    vlm = checkpoint.load(first / "last")
    assert MaskHead.load(first / "last").config.decoder_dim == vlm.model.get_input_embeddings().embedding_dim
    words = ("--data", games, "--checkpoint", first / "last", "--count", 4, "--out", tmp_path / "masks")
    assert run(lambda: evaluate([str(word) for word in words])) == 0
    assert "ciou" in capsys.readouterr().out.lower()

    second = tmp_path / "second"
    frozen = ("--learning-rate", 0, "--encoder-learning-rate", 0, "--connector-learning-rate", 0)
    again = ("--init", first / "last", *frozen)
    assert command(*RUN, *SHARES, "--data", games, "--out", second, *again, *TRAINER) == 0
    name = "mask_head.safetensors"
    before, after = load_file(first / "last" / name), load_file(second / "last" / name)
    assert all((before[key] == after[key]).all() for key in before)
    assert any(name.startswith("mask_head.") for name in load_file(second / AUXILIARY))


def test_shares_must_leave_one_to_play(tmp_path, capsys):
    shares = ("--pvp-weight", 0.6, "--mask-weight", 0.4)
    assert command("--data", tmp_path, *shares, "--out", tmp_path / "run") == 2
    assert "must leave a share to play, got 0.6 and 0.4" in capsys.readouterr().err
