"""Speed of one training step of pixel value prediction, beside the same step of an earlier revision.

    python -m experiments.benchmarks.pvp_step_speed --out experiments/results/pvp_step_speed.json

A step is the forward pass, the loss with Gaussian targets and attention supervision, backward, the clipping of
gradients and AdamW, without data loading. The earlier revision runs in a process of its own on the same weights, images
and questions, in turns with the working tree. Losses and norms of gradients of both stand in the result, in float32 and
in the timed precision. The learning rate is 0, so that every step is the same. Seconds of the processor stand beside
those of the clock, which other processes lengthen.
"""

import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.command import require_at_least, run
from common.errors import UserError
from experiments.benchmarks.harness import BenchmarkArgs, Row, benchmark_main, comparison, interleaved
from pretrain.pvp_config import PvpData
from pretrain.pvp_objective import ImageSampler, PvpBatch, PvpObjective, PvpSampler
from pretrain.pvp_questions import PixelPromptFormat
from vlm.device import device_name
from vlm.precision import in_bfloat16
from vlm.training.fit import TrainingModule
from vlm.training.mixture import Mixture, MixtureBatch

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SIDE = 216  # of the images: the whole square of the CLIP presets
WARM_UP = 2  # untimed steps of each side

# of revisions before the modules of `pretrain` and `vlm` took today's names
OLD_REVISION_WORKER = """
import json, sys, time
import torch
sys.path.insert(0, ".")
from pretrain.pixel_values import PixelValues
from pretrain.questions import PixelLanguage
from vlm.presets import build

setup = torch.load(sys.argv[1], weights_only=True)
torch.set_num_threads(setup["threads"])
vlm = build(setup["preset"])
vlm.model.load_state_dict(setup["weights"])
vlm.model.train()
options = setup["label_std"], "sdpa", setup["attention_supervision_weight"]
lessons = {bf16: PixelValues(vlm, bf16, PixelLanguage.of(vlm), *options) for bf16 in (False, True)}
optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

def step(bf16):
    loss = lessons[bf16](**setup["batch"])["loss"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), norm.item()

for line in sys.stdin:
    started, cpu_started = time.perf_counter(), time.process_time()
    loss, norm = step(line.strip() == "bf16")
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
    print(json.dumps({"loss": loss, "norm": norm, **spent}), flush=True)
"""


@dataclass(kw_only=True)
class Args(BenchmarkArgs):
    """Time a training step of the working tree and of an earlier revision."""

    preset: str = "nano-clip"
    """The size of untrained weights, with a CLIP tower and three layers or more."""
    baseline_revision: str = "5252c63"
    """The earlier revision, of this repository and before the modules took today's names."""
    images: int = 8
    """Images of a step."""
    questions: tuple[int, ...] = (16, 48)
    """Questions about each image, of each row."""
    label_std: float = 6.0
    """Standard deviation of the Gaussian targets."""
    attention_supervision_weight: float = 1.0
    """Weight of the attention supervision loss."""
    bf16: bool | None = None
    """Time in bfloat16, on both sides; None: where the processor has it natively."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "images")
        if self.checkpoint or not self.questions or min(self.questions) < 1:
            raise UserError("expected --questions of at least 1 and no --checkpoint: the weights are untrained")


class Step:
    """The step of the working tree."""

    def __init__(self, args: Args, questions: int):
        self.args, self.vlm = args, args.load_model()
        data = PvpData(
            grid="32", size=(SIDE, SIDE), synthetic=1.0, images=args.images, questions=questions,
            label_std=args.label_std, attention_supervision_weight=args.attention_supervision_weight,
        )  # fmt: skip
        prompts = PixelPromptFormat.from_model(self.vlm)
        sampler = PvpSampler(ImageSampler([], data), prompts, data, steps=1)
        self.batch: PvpBatch = sampler(0, np.random.default_rng(0))
        objective = PvpObjective(self.vlm, sampler, prompts, args.label_std, args.attention_supervision_weight)
        mixture = Mixture({"pvp": objective})
        self.modules = {bf16: TrainingModule(mixture, bf16) for bf16 in (False, True)}
        self.vlm.model.train()
        self.optimizer = torch.optim.AdamW(self.vlm.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def __call__(self, bf16: bool) -> dict[str, float]:
        """Take a step; return its loss, the norm of its gradients and its seconds."""
        started, cpu_started = time.perf_counter(), time.process_time()
        loss = self.modules[bf16](MixtureBatch((0,), (self.batch,)))["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.vlm.model.parameters(), 1.0)
        self.optimizer.step()
        spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        return {"loss": loss.item(), "norm": norm.item(), **spent}

    def setup(self) -> dict[str, object]:
        """Return what an earlier revision needs for the same step."""
        batch: dict[str, Tensor] = {
            "frames": self.batch.frames,
            "read": self.batch.input_ids,
            "said": self.batch.labels,
            "places": self.batch.coordinates,
        }
        names = ("preset", "label_std", "attention_supervision_weight", "threads")
        options = {name: getattr(self.args, name) for name in names}
        return {**options, "weights": self.vlm.model.state_dict(), "batch": batch}


class BaselineStep:
    """The step of an earlier revision, in a process of its own: a line with the precision starts it."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self.process = process

    def __call__(self, bf16: bool) -> dict[str, float]:
        """Take a step; return its loss, the norm of its gradients and its seconds."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("bf16\n" if bf16 else "float32\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise UserError(f"the baseline's process ended with code {self.process.wait()}: is its revision too new?")
        return json.loads(line)


def extract_revision(revision: str, directory: Path) -> None:
    """Write the files of a revision of this repository; `UserError` if it is not there, as in a shallow clone."""
    archive = subprocess.run(["git", "archive", "--format=tar", revision], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        raise UserError(
            f"expected --baseline-revision of this repository, got {revision!r}: fetch it (git fetch --unshallow)"
        )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")


@contextmanager
def baseline_step(revision: str, setup: dict[str, object]) -> Iterator[BaselineStep]:
    """Start the process of an earlier revision; it ends with the context."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        extract_revision(revision, directory)
        torch.save(setup, directory / "setup.pt")
        command = [sys.executable, "-c", OLD_REVISION_WORKER, "setup.pt"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, cwd=directory, text=True, **pipes) as process:  # type: ignore[call-overload]
            try:
                yield BaselineStep(process)
            finally:
                process.kill()


def step_row(args: Args, questions: int) -> Row:
    """Return the row of one number of questions."""
    step, bf16 = Step(args, questions), in_bfloat16(CPU, args.bf16)
    with baseline_step(args.baseline_revision, step.setup()) as baseline:
        exact, exact_baseline = step(False), baseline(False)
        timed, timed_baseline = step(bf16), baseline(bf16)
        interleaved({"candidate": lambda _: step(bf16), "baseline": lambda _: baseline(bf16)}, WARM_UP)
        taken = [(step(bf16), baseline(bf16)) for _ in range(args.rounds)]
    asked = args.images * questions
    seconds = np.array([[side["seconds"] for side in pair] for pair in taken])  # [rounds, 2]
    cpu_seconds = np.array([[side["cpu_seconds"] for side in pair] for pair in taken])
    rates, cpu_rates = asked / np.median(seconds, axis=0), asked / np.median(cpu_seconds, axis=0)
    quartiles = np.quantile(seconds[:, 1] / seconds[:, 0], (0.25, 0.75))
    return comparison(
        f"pvp step, {args.images} images x {questions} questions",
        float(rates[0]),
        float(rates[1]),
        f"the step of revision {args.baseline_revision}",
        "questions per second, forward, backward and optimizer, median over rounds",
        ratio_quartiles=quartiles.round(3).tolist(),
        per_cpu_second={"candidate": round(float(cpu_rates[0]), 2), "baseline": round(float(cpu_rates[1]), 2)},
        cpu_ratio=round(float(cpu_rates[0] / cpu_rates[1]), 3),
        precision="bf16" if bf16 else "f32",
        loss={"candidate": exact["loss"], "baseline": exact_baseline["loss"]},
        gradient_norm={"candidate": exact["norm"], "baseline": exact_baseline["norm"]},
        loss_in_precision={"candidate": timed["loss"], "baseline": timed_baseline["loss"]},
        gradient_norm_in_precision={"candidate": timed["norm"], "baseline": timed_baseline["norm"]},
        images=args.images,
        questions=questions,
        n=args.rounds,
    )


def measure(args: Args) -> list[Row]:
    """Return a row for each number of questions."""
    details = {"model": args.model_name(), "device": device_name(CPU)}
    return [step_row(args, questions) | details for questions in args.questions]


main = benchmark_main(Args, measure, [0], __doc__)

if __name__ == "__main__":
    sys.exit(run(main))
