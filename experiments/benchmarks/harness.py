"""What benchmarks share: interleaved timing, arguments, rows and the command around them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from common.command import command, require_at_least
from common.outputs import require_output_files
from common.results import new_result, write_result
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.presets import build

Row = dict[str, Any]


@dataclass(kw_only=True)
class TimingArgs:
    """Arguments of every benchmark."""

    out: Path
    """The result JSON."""
    rounds: int = 3
    """Timed rounds; candidate and baseline take turns in each."""
    threads: int = 1
    """Threads of torch."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "rounds", "threads")


@dataclass(kw_only=True)
class BenchmarkArgs(TimingArgs):
    """Arguments of every benchmark of a model."""

    checkpoint: Path | None = None
    """The model; by default untrained weights of the preset."""
    preset: str = "nano"
    """The size of untrained weights."""

    def load_model(self) -> PixelVLM:
        """Return the model, in evaluation mode."""
        return checkpoint.load(self.checkpoint) if self.checkpoint else build(self.preset)

    def model_name(self) -> str:
        """Return the model's content hash, or `untrained PRESET`."""
        return checkpoint.content_hash(self.checkpoint) if self.checkpoint else f"untrained {self.preset}"


ArgsType = TypeVar("ArgsType", bound=TimingArgs)
Functions = Mapping[str, Callable[[int], object]]  # each is called with the number of its round


def interleaved(functions: Functions, rounds: int, block: int = 1) -> dict[str, list[float]]:
    """Call every function with the numbers 0 to `rounds` - 1, in turns of `block`; return the seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for first in range(0, rounds, block):
        for name, function in functions.items():
            for number in range(first, min(first + block, rounds)):
                started = time.perf_counter()
                function(number)
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_seconds(functions: Functions, rounds: int) -> dict[str, float]:
    """Return the median seconds of a call of each function, interleaved."""
    return {name: float(np.median(times)) for name, times in interleaved(functions, rounds).items()}


def rounded(figure: float) -> float:
    """Return a figure with two decimals, or below 1 with three digits, so that none is 0."""
    return round(figure, 2) if abs(figure) >= 1 else float(f"{figure:.3g}")


def comparison(benchmark: str, candidate: float, baseline: float, baseline_name: str, unit: str, **details: Any) -> Row:
    """Return a row: a candidate's figure beside its baseline's, and their ratio."""
    return {
        "benchmark": benchmark,
        "candidate": rounded(candidate),
        "baseline": rounded(baseline),
        "baseline_name": baseline_name,
        "ratio": round(candidate / baseline, 3),
        "unit": unit,
        **details,
    }


def benchmark_main(
    args_type: type[ArgsType],
    measure: Callable[[ArgsType], list[Row]],
    seeds: list[int],
    description: str | None,
) -> Callable[..., int]:
    """Return the `main` of a benchmark: it measures on `--threads` threads, writes the result and prints its rows."""

    def run(args: ArgsType) -> Path:
        require_output_files([args.out])
        started = time.monotonic()
        torch.set_num_threads(args.threads)
        rows = [{**row, "threads": args.threads} for row in measure(args)]
        seconds = round(time.monotonic() - started, 1)
        write_result(args.out, new_result(args.out.stem, None, seeds) | {"rows": rows, "seconds": seconds})
        for row in rows:
            print(
                f"{row['benchmark']}: {row['candidate']:g}, {row['baseline_name']}: {row['baseline']:g} "
                f"({row['unit']}); ratio {row['ratio']:g}"
            )
        return args.out

    return command(args_type, run, description, "result: {}")
