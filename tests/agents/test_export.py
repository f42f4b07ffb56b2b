"""Export chooses the temperature that plays best and stores the weights that played."""

import pytest

from agents import checkpoint_selection, export
from common.command import run
from vlm import checkpoint
from vlm.presets import build
from vlm.segmentation.mask_head import MaskHead


def command(*arguments):
    return run(lambda: export.main([str(argument) for argument in arguments]))


def test_the_temperature_that_plays_best_is_exported_with_the_weights_that_played(tmp_path, monkeypatch):
    scored = [("Carnival", 10760.7), ("MsPacman", 1241.0), ("Carnival", 20.0)]  # the last is a learner's own episodes
    datasets = [{"game": game, "mean_score": score} for game, score in scored]
    checkpoint.save(build("tiny", 1), tmp_path / "model", {"games": ["Carnival", "MsPacman"], "datasets": datasets})
    played = []

    def scores(vlm, game, protocol, episodes, temperature, engine):
        played.append(vlm)
        random = {"Carnival": 760.7, "MsPacman": 241.0}[game]
        return [random + {("Carnival", 0.0): 5000.0, ("MsPacman", 0.5): 900.0}.get((game, temperature), 0.0)] * episodes

    monkeypatch.setattr(checkpoint_selection, "evaluate_policy", scores)
    arguments = ("--checkpoint", tmp_path / "model", "--out", tmp_path / "exported", "--temperatures", 0, 0.5)
    assert command(*arguments, "--episodes", 2) == 0
    play = checkpoint.read_training(tmp_path / "exported")["play"]
    assert play["temperature"] == 0.5  # (0 + 0.9) / 2 against (0.5 + 0) / 2
    assert [found["expert_normalized_score"] for found in play["evaluations"]] == pytest.approx([0.25, 0.45])
    exported = checkpoint.load(tmp_path / "exported").model.state_dict()
    assert all((exported[name] == tensor).all() for name, tensor in played[0].model.state_dict().items())


@pytest.mark.parametrize("out", ["runs", "runs/model", "data"])
def test_an_export_replaces_no_directory_but_a_checkpoint_and_never_what_it_reads(tmp_path, out, capsys):
    checkpoint.save(build("tiny", 1), tmp_path / "runs" / "model", {"datasets": [{"game": "Pong", "mean_score": 1.0}]})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    before = sorted(file for file in tmp_path.rglob("*"))
    assert command("--checkpoint", tmp_path / "runs" / "model", "--out", tmp_path / out) == 2
    error = capsys.readouterr().err
    assert "would be written over what is read" in error or "data, which holds notes.txt" in error
    assert sorted(file for file in tmp_path.rglob("*")) == before


def test_a_checkpoint_that_was_not_trained_to_play_is_refused(tmp_path, capsys):
    checkpoint.save(build("tiny", 1), tmp_path / "model", {})
    assert command("--checkpoint", tmp_path / "model", "--out", tmp_path / "exported") == 2
    assert "was not trained to play" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_a_mask_head_is_exported_with_the_policy(tmp_path, monkeypatch):
    vlm = build("tiny", 1)
    head = MaskHead.of(vlm)
    training = {"datasets": [{"game": "Carnival", "mean_score": 1000.0}]}
    checkpoint.save(vlm, tmp_path / "model", training, export=head.save)
    monkeypatch.setattr(checkpoint_selection, "evaluate_policy", lambda *arguments: [1.0])
    assert command("--checkpoint", tmp_path / "model", "--out", tmp_path / "exported", "--temperatures", 0) == 0
    exported = MaskHead.load(tmp_path / "exported").state_dict()
    assert exported
    assert all((exported[name] == tensor).all() for name, tensor in head.state_dict().items())
