"""Several processes train as one does, share a model by FSDP2, resume, play afterwards, and end together."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from agents import clone
from common.command import run
from common.errors import UserError
from common.processes import ended_peer
from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments.model_classes.tiny_checkpoints import write
from pretrain import pvp
from pretrain.pvp_config import CONFIGS
from vlm import checkpoint

NAMES = ("noop", "fire", "right", "left", "right fire", "left fire")
TRAINER = """save_steps=2 save_total_limit=9 warmup_steps=0 dataloader_num_workers=0 report_to=none bf16=false
logging_steps=1"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny LLaVA, and with games of 16 frames at most."""
    folder, rng = tmp_path_factory.mktemp("several"), np.random.default_rng(1)
    write("llava", folder / "llava")
    short = dataclasses.replace(MACHADO2018, max_episode_frames=16)
    frames, rewards = rng.integers(0, 256, (8, 214, 160, 3), dtype=np.uint8), np.ones(8, np.float32)
    episode = Episode(frames, rng.integers(len(NAMES), size=8), rewards, None, terminated=True, truncated=False, seed=1)
    EpisodeWriter(folder / "data", DatasetInfo("Carnival", NAMES, short, "test", None, "abc", {})).append(episode)
    return folder


def words(place, out, *more, trainer=TRAINER, steps=8):
    """The arguments of a short training."""
    given = ["--init", place / "llava", "--data", place / "data", "--batch-size", 2, "--optimizer", "adamw"]
    given += ["--steps", steps, "--eval-episodes", 1, "--out", out, *more, "--trainer", *trainer.split()]
    return [str(word) for word in given]


def launch(*arguments):
    """Start two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "-m", "agents.clone", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def losses(out):
    """The loss of every step."""
    state = json.loads((out / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def alone(place):
    """A training by one process, of two batches a step."""
    accumulated = words(place, place / "one", "--eval-every", 0, trainer=f"{TRAINER} gradient_accumulation_steps=2")
    assert run(lambda: clone.main(accumulated)) == 0
    return place / "one"


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--fsdp",)], ids=["copies", "fsdp"])
def test_two_processes_have_the_losses_of_one_and_play_when_they_are_done(place, alone, more):
    out = place / ("two" + "".join(more))
    process = launch(*words(place, out, "--eval-every", 2, *more))
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text
    assert losses(out) == pytest.approx(losses(alone), abs=1e-4)
    one, two = (load_file(folder / "last" / "model.safetensors") for folder in (alone, out))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    assert text.rindex("'train_runtime'") < text.index("step 2, temperature 0: Carnival"), "play is outside of training"
    evaluations = json.loads((out / "evaluations.json").read_text())
    assert [past["step"] for past in evaluations] == [2, 4]
    assert not list((out / "candidates").iterdir())
    _, report = AutoModelForImageTextToText.from_pretrained(out / "best", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    own, alones = (checkpoint.read_training(folder / "last")["parameter_updates"] for folder in (out, alone))
    assert {role: row["changed"] for role, row in own.items()} == {role: row["changed"] for role, row in alones.items()}
    if more:
        assert not (out / "checkpoints" / "checkpoint-2" / "model.safetensors").exists()
        _resumes_to_the_same_weights(place, out, two)


def _resumes_to_the_same_weights(place, out, expected):
    """Repeat a training by FSDP2 from its first checkpoint, as after a kill."""
    for name in ("checkpoints/checkpoint-4", "last"):
        (out / name).rename(out / Path(name).name.replace("checkpoint", "moved"))
    process = launch(*words(place, out, "--eval-every", 2, "--fsdp"))
    text, _ = process.communicate(timeout=500)
    assert process.returncode == 0, text
    resumed = load_file(out / "last" / "model.safetensors")
    assert max(float((expected[name] - resumed[name]).abs().max()) for name in expected) < 1e-6


@pytest.mark.slow
def test_a_killed_process_ends_the_launch_with_an_error_that_says_so(place):
    out = place / "killed"
    process = launch(*words(place, out, "--eval-every", 0, steps=20000))
    deadline = time.monotonic() + 300
    while not list((out / "checkpoints").glob("checkpoint-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    children = psutil.Process(process.pid).children()
    (victim,) = [child.pid for child in children if child.environ().get("RANK") == "1"]
    os.kill(victim, signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert re.search(rf"Signal 9 \(SIGKILL\) received by PID {victim}", text)
    assert not (out / "last").exists()


def test_an_error_of_a_process_that_lost_another_is_one_line(monkeypatch, capsys):
    gone = RuntimeError("[../third_party/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1234\\nmore")
    assert ended_peer(gone) is None, "alone it is a defect"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    def fail():
        raise gone

    assert run(fail) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: process 1 of 2 lost another one, which says why above or was killed: ")
    assert ended_peer(ValueError("a defect")) is None


COMMAND = """
import sys
import torch
from common.command import run
torch.distributed.init_process_group("gloo")
HELD = torch.distributed.group.WORLD
def main():
    torch.distributed.barrier()  # else one may end before the other has joined
    for _ in range(30):
        HELD.allreduce([torch.ones(200_000)])
    print("done")
    return 0
sys.exit(run(main))
"""


@pytest.mark.slow
def test_a_command_ends_while_threads_of_its_group_hold_tensors(tmp_path):
    """Python's own end lets them abort the process, in five of six launches of this command."""
    (tmp_path / "command.py").write_text(COMMAND)
    for _ in range(2):
        launched = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "command.py"],
            capture_output=True, text=True, cwd=tmp_path, timeout=100,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert launched.returncode == 0, launched.stderr
        assert launched.stdout.count("done") == 2, launched.stdout


def test_one_process_shares_with_none(tmp_path):
    config = CONFIGS["default"].replace(out=tmp_path / "run", preset="tiny", synthetic=1, fsdp=True)
    with pytest.raises(UserError, match="--fsdp: expected several processes, among which a model is shared, got one"):
        pvp.train_pvp(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"caption_weight": 0.5}, "the same objective in every process, got pvp, captions in turn"),
        ({"dense_loss_weight": 1.0}, "a model without auxiliary modules, got dense_head"),
        ({"val_data": ("synthetic",)}, "expected no --val-data"),
    ],
)
def test_what_one_process_would_compute_alone_is_refused_under_fsdp(place, tmp_path, fields, message, monkeypatch):
    monkeypatch.setattr("vlm.training.fit.world_size", lambda: 2)
    config = CONFIGS["default"].replace(
        out=tmp_path / "run", preset="tiny", data=(str(place / "data"),), size=(64, 64), grid="8", images=2,
        questions=2, fsdp=True, **fields,
    )  # fmt: skip
    with pytest.raises(UserError, match=f"--fsdp: .*{message}"):
        pvp.train_pvp(config)
