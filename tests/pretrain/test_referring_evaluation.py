"""Evaluation of a model, of a file of predictions, and by two processes gives the same metrics."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UserError
from common.images import ImageError
from pretrain.referring import evaluation
from pretrain.referring.evaluation import Args, evaluate, main
from pretrain.referring.referring_config import CONFIGS
from pretrain.referring.samples import ReferringSample
from pretrain.referring.train import train_referring
from vlm.segmentation.referring_segmenter import ReferringSegmenter


@pytest.fixture(scope="module")
def data(record_frames, tmp_path_factory):
    """Four games of six frames, each with up to four squares."""
    rng, games = np.random.default_rng(0), np.zeros((4, 6, 210, 160, 3), np.uint8)
    for frame in games.reshape(-1, 210, 160, 3):
        for cell in rng.permutation(9)[: rng.integers(1, 5)]:
            row, column = 30 + 60 * (cell // 3), 20 + 50 * (cell % 3)
            frame[row : row + 12, column : column + 12] = rng.choice([(200, 72, 72), (66, 158, 130)])
    return record_frames(tmp_path_factory.mktemp("data") / "Pong", "Pong", games)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A model with a mask head, hardly trained."""
    config = CONFIGS["default"].replace(
        out=tmp_path_factory.mktemp("runs") / "refer", data=(data,), preset="tiny", steps=2, images=2,
        hidden_channels=8, trainer=("warmup_steps=1", "dataloader_num_workers=0"),
    )  # fmt: skip
    return train_referring(config)


@pytest.fixture
def refer(write_refcoco):
    """RefCOCO in REFER's layout: one image, one object, two expressions of the split testA."""
    return write_refcoco("testA", (40, 60), 5, 5, 25, 25)


def metrics(row):
    return {
        k: v for k, v in row.items() if k in ("ciou", "giou", "miou", "p50", "p90", "n", "missing", "n_acc", "t_acc")
    }


def test_games_are_scored_and_a_file_of_predictions_gives_the_same_metrics(data, trained, tmp_path, capsys):
    words = ["--data", str(data), "--checkpoint", str(trained), "--count", "12", "--out", str(tmp_path / "a")]
    assert main([*words, "--num-images", "2", "--no-target-fraction", "0.3"]) == 0
    row = json.loads((tmp_path / "a" / "metrics.json").read_text())["rows"][0]
    assert row["n"] == 12
    assert row["missing"] == 0
    assert 0 <= row["ciou_low"] <= row["ciou"] <= row["ciou_high"] <= 1
    assert 0 <= row["n_acc"] <= 1
    assert len(list((tmp_path / "a").glob("*.png"))) == 2
    again = evaluate(
        Args(
            (data,), tmp_path / "b", predictions=tmp_path / "a" / "predictions.jsonl", count=12, no_target_fraction=0.3
        )
    )
    assert metrics(again) == metrics(row)
    lines = (tmp_path / "a" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines[:9]))
    fewer = evaluate(
        Args((data,), tmp_path / "c", predictions=tmp_path / "fewer.jsonl", count=12, no_target_fraction=0.3)
    )
    assert (fewer["n"], fewer["missing"]) == (12, 3)


def test_refcoco_is_scored_at_the_images_own_size(refer, trained, tmp_path, monkeypatch):
    def perfect(self, stack, words):
        assert stack.shape == (1, 40, 60, 3)
        found = np.zeros((1, 40, 60), np.float32)
        found[0, 5:25, 5:25] = 0.9
        return found

    args = Args((refer,), tmp_path / "out", dataset="refcoco", split="testA", checkpoint=trained)
    untrained = evaluate(args)
    assert (untrained["n"], untrained["dataset"], untrained["compat"]) == (2, "refcoco", "plain")
    monkeypatch.setattr(ReferringSegmenter, "predict", perfect)
    assert metrics(evaluate(args)) == {
        "ciou": 1,
        "giou": 1,
        "miou": 1,
        "p50": 1,
        "p90": 1,
        "n": 2,
        "missing": 0,
        "t_acc": 1,
    }


class Items:
    """A test set of grey frames about which some expressions are odd."""

    name = "items"

    def __init__(self, expressions):
        self.expressions = expressions

    def __len__(self):
        return len(self.expressions)

    def __getitem__(self, index):
        words = self.expressions[index]
        if words == "cut":
            raise ImageError("cut.jpg is not a PNG or JPEG picture, or is damaged: image file is truncated")
        frames, masks = np.full((1, 40, 60, 3), 60, np.uint8), np.zeros((1, 40, 60), bool)
        return ReferringSample(frames, (words,), masks, "a.jpg", (index,), (index,))


@pytest.fixture
def items(monkeypatch):
    def use(*expressions):
        monkeypatch.setattr(evaluation, "load_test_set", lambda *_: Items(expressions))

    return use


def answered(out):
    return [json.loads(line)["sent_id"] for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_a_damaged_picture_a_long_expression_and_reserved_words_lose_no_other_answer(items, trained, tmp_path, capsys):
    items("the ball", "cut", "word " * 99, "the <image> of <image>", "</s> é/..", "the end")
    row = evaluate(Args((tmp_path,), tmp_path / "out", checkpoint=trained))
    assert (row["n"], row["failed"]) == (5, 1)
    assert answered(tmp_path / "out") == [0, 2, 3, 4, 5]
    assert "left out: expression 1 of items: cut.jpg is not a PNG" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 5
    again = Args((tmp_path,), tmp_path / "b", predictions=tmp_path / "out" / "predictions.jsonl")
    assert metrics(evaluate(again)) == metrics(row)
    items("cut", "cut")
    with pytest.raises(UserError, match=r"none of the 2 expressions of items can be answered; the first: cut\.jpg"):
        evaluate(Args((tmp_path,), tmp_path / "c", checkpoint=trained))


@pytest.mark.parametrize("damage", [False, True])
def test_a_killed_evaluation_keeps_its_answers_and_resumes(items, trained, tmp_path, monkeypatch, damage):
    items("the ball", "the gun", "cut", "the duck")
    predict, asked = ReferringSegmenter.predict, []

    def killed_at_the_third(self, frames, words):
        asked.append(words[0])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return predict(self, frames, words)

    monkeypatch.setattr(ReferringSegmenter, "predict", killed_at_the_third)
    args = Args((tmp_path,), tmp_path / "out", checkpoint=trained, num_images=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(args)
    (kept,) = (tmp_path / "out").glob("answers-*.jsonl")
    if damage:
        kept.write_text(kept.read_text() + '{"index": 3, "predic')
    row = evaluate(args)
    assert asked == ["the ball", "the gun", "the duck", "the duck"]
    assert answered(tmp_path / "out") == [0, 1, 3]
    assert not kept.exists()
    unbroken = evaluate(Args((tmp_path,), tmp_path / "unbroken", checkpoint=trained, num_images=0))
    assert metrics(unbroken) == metrics(row)
    one, other = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("out", "unbroken"))
    assert one == other


def test_a_second_evaluation_does_not_write_over_the_answers_of_another(items, trained, tmp_path):
    items("the ball")
    evaluate(Args((tmp_path,), tmp_path / "out", checkpoint=trained))
    with pytest.raises(UserError, match="holds a run with another split; choose another --out"):
        evaluate(Args((tmp_path,), tmp_path / "out", checkpoint=trained, split="val"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("mine")
    with pytest.raises(UserError, match=r"metrics\.json exists and is not of this command"):
        evaluate(Args((tmp_path,), tmp_path / "mine", checkpoint=trained))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",  # each on a free port: other tests launch processes at the same time
    [
        "torch.distributed.run --standalone --nproc-per-node 2",
        "accelerate.commands.launch --main_process_port 0 --multi_gpu --num_processes 2",
    ],
)
def test_two_processes_give_the_same_metrics_as_one(data, trained, tmp_path, launcher):
    words = ["--data", str(data), "--checkpoint", str(trained), "--count", "7", "--num-images", "0"]
    alone = evaluate(Args((data,), tmp_path / "one", checkpoint=trained, count=7, num_images=0))
    command = [sys.executable, "-m", *launcher.split(), "-m", "pretrain.referring.evaluation", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "two")], check=True, env=env, capture_output=True)
    both = json.loads((tmp_path / "two" / "metrics.json").read_text())["rows"][0]
    assert metrics(both) == metrics(alone)
    assert (alone["num_processes"], both["num_processes"]) == (1, 2)
    one, two = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two"))
    assert one == two


def test_contradictory_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected either --checkpoint or --predictions"):
        Args((tmp_path,))
    with pytest.raises(UserError, match="expected --compat plain or lisa, got 'gres'"):
        Args((tmp_path,), checkpoint=tmp_path, compat="gres")
    with pytest.raises(UserError, match=r"one folder of REFER's layout for refcoco, got 2"):
        Args((tmp_path, tmp_path), checkpoint=tmp_path, dataset="refcoco")
