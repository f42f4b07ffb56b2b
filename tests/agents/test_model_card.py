"""A checkpoint's card tells the scores of its own weights, its training and its licence, and others' texts as text."""

import json

import pytest
from huggingface_hub import ModelCard

from agents import export, model_card
from agents.checkpoint_selection import evaluate_policy
from common.command import run
from common.results import new_result, write_result
from envs.protocol import MACHADO2018
from vlm import checkpoint
from vlm.presets import build

TRAINING = {
    "command": "python -m agents.clone --data data/pong --init runs/first/last --out runs/clone",
    "commit": "abc123",
    "versions": {"torch": "2.13"},
    "games": ["Pong"],
    "datasets": [{"game": "Pong", "agent": "planner", "labels": None, "games": 3, "steps": 900, "mean_score": 20.5}],
    "started_from": {"command": "python -m pretrain.pvp --data data/pong --out runs/first"},
}


def command(module, *arguments):
    return run(lambda: module.main([str(argument) for argument in arguments]))


def save(path, training=TRAINING):
    checkpoint.save(build("tiny", 1), path, training)
    return path


def write_scores(file, content_hash, scores=((3.0, 5.0), (7.0, 9.0)), **row):
    result = new_result("s", MACHADO2018.to_dict(), [1000, 1001])
    settings = {"agent": "vlm:runs/clone", "decode": "scores", "temperature": 0.5, "checkpoint": content_hash}
    rows = [
        {"game": "Pong", "seed": 1000 + seed, "scores": list(found), "invalid": 0.0, **settings, **row}
        for seed, found in enumerate(scores)
    ]
    write_result(file, result | {"rows": rows})
    return file


def test_scores_of_the_same_weights_are_told_with_protocol_and_seeds(tmp_path, capsys):
    place = save(tmp_path / "clone")
    scores = write_scores(tmp_path / "s.json", checkpoint.content_hash(place))
    (tmp_path / "game.MP4").write_bytes(b"video")
    before = checkpoint.content_hash(place)
    arguments = ("--checkpoint", place, "--scores", scores, "--video", tmp_path / "game.MP4", "--license", "mit")
    assert command(model_card, *arguments) == 0
    assert checkpoint.content_hash(place) == before
    card = ModelCard.load(place / "README.md")
    assert (card.data.license, card.data.model_name) == ("mit", "clone")
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("ALE/Pong-v5", "Pong")
    assert (result.metric_type, result.metric_value) == ("mean_reward", 6.0)  # of 3, 5, 7 and 9
    assert result.dataset_args == {"protocol": MACHADO2018.to_dict(), "seeds": [1000, 1001]}
    low, high = result.metric_args["confidence_interval_95"]
    assert low <= 6 <= high
    assert result.metric_args["temperature"] == 0.5
    assert (place / "replay.mp4").read_bytes() == b"video"
    assert "[Replay](replay.mp4)" in card.text
    assert "| Pong | 6.0 | " in card.text
    assert TRAINING["command"] in card.text
    assert TRAINING["started_from"]["command"] in card.text
    assert "| Pong | planner | none | 3 | 900 | 20.5 |" in card.text


def test_scores_of_other_weights_are_refused(tmp_path, capsys):
    place = save(tmp_path / "clone")
    scores = write_scores(tmp_path / "s.json", "0123456789ab")
    assert command(model_card, "--checkpoint", place, "--scores", scores) == 2
    error = capsys.readouterr().err
    expected = f"s.json: expected scores of weights {checkpoint.content_hash(place)}, got those of 0123456789ab\n"
    assert error.endswith(expected)
    assert not (place / "README.md").exists()


def test_settings_that_differ_are_told_apart(tmp_path):
    place = save(tmp_path / "clone")
    name = checkpoint.content_hash(place)
    files = [
        write_scores(tmp_path / "s.json", name),
        write_scores(tmp_path / "t.json", name, ((1.0, 1.0),), temperature=0.0),
    ]
    found = model_card.read_scores(files, name)
    assert [(line.mean, line.settings["temperature"], line.seeds) for line in found] == [
        (6.0, 0.5, (1000, 1001)),
        (1.0, 0.0, (1000,)),
    ]


def test_a_card_needs_neither_scores_nor_a_known_training(tmp_path):
    place = save(tmp_path / "clone", {})
    assert command(model_card, "--checkpoint", place) == 0
    card = ModelCard.load(place / "README.md")
    assert card.data.eval_results is None
    assert card.data.license is None
    assert "Nothing is known of it." in card.text
    assert "Licence: none was named" in card.text


def test_texts_of_others_mark_up_nothing(tmp_path):
    hostile = "x |\n---\nlicense: mit\n<script>alert(1)</script> ![a](http://b) `c`"
    training = {**TRAINING, "command": "echo '```\n# heading'", "games": [hostile]}
    training["datasets"] = [{"game": hostile, "agent": hostile, "mean_score": None}]
    place = save(tmp_path / "clone", training)
    assert command(model_card, "--checkpoint", place, "--title", hostile) == 0
    text = (place / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license is None
    assert card.data.model_name == hostile
    body = text.split("\n---\n\n", 1)[1]
    assert "<script>" not in body
    assert "](http" not in body
    assert len([line for line in body.splitlines() if line.startswith("````")]) == 2  # longer than the one inside
    assert not [line for line in body.splitlines() if line.startswith("# heading") and "````" not in body]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--video", "game.txt"), "expected --video, a file that ends in .mp4, .webm, .gif, got game.txt"),
        (("--video", "missing.mp4"), "expected --video, a file, got missing.mp4, which is none"),
        (
            ("--license", "My Own: x"),
            "expected --license as the hub names one, such as mit or cc0-1.0, got 'My Own: x'",
        ),
        (("--scores", "missing.json"), "missing.json"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path, arguments, message, capsys):
    place = save(tmp_path / "clone")
    capsys.readouterr()
    assert command(model_card, "--checkpoint", place, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("training", [{"command": 3}, {"datasets": [{"steps": "many"}]}, {"versions": ["a"]}])
def test_a_damaged_training_file_is_refused_by_name(tmp_path, training, capsys):
    place = save(tmp_path / "clone")
    (place / "training.json").write_text(json.dumps(training))
    assert command(model_card, "--checkpoint", place) == 2
    assert "training.json is damaged" in capsys.readouterr().err


def test_an_export_has_a_card(tmp_path, monkeypatch, capsys):
    place = save(tmp_path / "clone")

    def play(*arguments, **settings):
        return [20.0]

    monkeypatch.setattr(f"{evaluate_policy.__module__}.evaluate_policy", play)
    arguments = ("--checkpoint", place, "--out", tmp_path / "exported", "--temperatures", 0, "--license", "mit")
    assert command(export, *arguments) == 0
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    assert (card.data.license, card.data.model_name) == ("mit", "exported")
    scores = write_scores(tmp_path / "s.json", checkpoint.content_hash(tmp_path / "exported"))
    assert command(export, *arguments, "--scores", scores) == 0  # made with the weights that are exported again
    assert ModelCard.load(tmp_path / "exported" / "README.md").data.eval_results[0].metric_value == 6.0
    others = write_scores(tmp_path / "t.json", "0123456789ab")
    monkeypatch.setattr(f"{evaluate_policy.__module__}.evaluate_policy", lambda *_, **__: pytest.fail("played"))
    assert command(export, *arguments, "--scores", others) == 2
    assert "got those of 0123456789ab" in capsys.readouterr().err
