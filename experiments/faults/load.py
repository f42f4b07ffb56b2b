"""Load: memory and open files of many environments in hours of play, and the memory of recordings in parallel.

Game time is the emulator's, 60 frames a second, summed over the environments of the process.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import record
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from agents.video import EMULATOR_FRAMES_PER_SECOND
from common.command import run
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import episode_seeds
from experiments.faults.conditions import memory
from experiments.faults.kills import last_line
from experiments.faults.processes import run_in_child

GAME = "Carnival"
NUM_ENVS = 64
HOURS = 10.0  # of game time
SAMPLES = 200
WARM_UP = 0.2  # of the samples, while pools and caches fill
MAX_GAMES = 10_000  # more than the hours hold
LENGTHS = (480, 960, 1920)  # emulator frames of recorded games
RAW_BYTES = 210 * 160 * 3  # of a frame
Row = dict[str, Any]


def num_descriptors() -> int:
    """Return the number of open files of this process."""
    return len(os.listdir("/proc/self/fd"))


def sample_play(hours: float, num_envs: int, seed: int, samples: int = SAMPLES) -> np.ndarray:
    """Play at random and return (hours of game time, resident bytes, open files) at equal distances."""
    found: list[tuple[float, float, float]] = []
    with make_envs(find_game(GAME), num_envs) as envs:
        agent = RandomAgent(envs.action_names)
        step_hours = envs.protocol.frame_skip / EMULATOR_FRAMES_PER_SECOND / 3600
        for steps, _ in enumerate(play_games(agent, envs, episode_seeds(seed, MAX_GAMES)), start=1):
            if steps * step_hours >= hours * (len(found) + 1) / samples:
                found.append((steps * step_hours, memory("VmRSS"), num_descriptors()))
            if len(found) == samples:
                break
    return np.array(found)


def slopes(samples: np.ndarray) -> tuple[float, float]:
    """Return the growth of memory and open files an hour of game time, by least squares after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP) :]
    memory_slope, files_slope = (np.polyfit(kept[:, 0], kept[:, column], 1)[0] for column in (1, 2))
    return float(memory_slope), float(files_slope)


def measure_play(seed: int, hours: float = HOURS, num_envs: int = NUM_ENVS) -> Row:
    """Return the row of hours of play in one process."""
    started = time.monotonic()
    samples = sample_play(hours, num_envs, seed)
    memory_slope, files_slope = slopes(samples)
    warm = samples[int(len(samples) * WARM_UP)]
    return {
        "fault": "load",
        "name": "random play",
        "game": GAME,
        "num_envs": num_envs,
        "hours": round(float(samples[-1, 0]), 3),
        "hours_of": "the process: the sum over its environments",
        "samples": len(samples),
        "resident_mib_after_warm_up": round(warm[1] / 2**20, 1),
        "resident_mib_at_end": round(samples[-1, 1] / 2**20, 1),
        "resident_mib_an_hour": round(memory_slope / 2**20, 4),
        "files_at_end": int(samples[-1, 2]),
        "files_an_hour": round(files_slope, 6),
        "play_seconds": round(time.monotonic() - started, 1),
    }


def recording_memory(work: Path, num_envs: int, frames: int, seed: int) -> tuple[int, int]:
    """Return the bytes that a recording of one game an environment takes at most, and the bytes of its files."""
    place, told = work / f"record-{num_envs}-{frames}", work / f"record-{num_envs}-{frames}.memory"
    shutil.rmtree(place, ignore_errors=True)
    words = ["--game", GAME, "--agent", "random", "--episodes", str(num_envs), "--num-envs", str(num_envs)]
    words += ["--max-frames", str(frames), "--seed", str(seed), "--out", "out"]

    def main() -> int:
        before = memory("VmRSS")
        code = run(lambda: record.main(words))
        told.write_text(str(memory("VmHWM") - before))
        return code

    if (ended := run_in_child(main, place)).code:
        raise RuntimeError(f"recording with {num_envs} environments: {last_line(ended)}")
    return int(told.read_text()), sum(file.stat().st_size for file in place.rglob("*.parquet"))


def measure_recordings(
    work: Path, seed: int, num_envs: int = NUM_ENVS, lengths: tuple[int, ...] = LENGTHS
) -> Iterator[Row]:
    """Yield a row for one and for many environments: the peaks of memory by the games' length, and their slope.

    Games in flight are held compressed where a decision of an environment takes a few kB, as its PNG does.
    """
    for count in (1, num_envs):
        peaks, stored = zip(*(recording_memory(work, count, frames, seed) for frames in lengths), strict=True)
        decisions = [count * frames // 4 for frames in lengths]
        yield {
            "fault": "load",
            "name": "record",
            "game": GAME,
            "num_envs": count,
            "emulator_frames": list(lengths),
            "peak_mib": [round(peak / 2**20, 1) for peak in peaks],
            "stored_mib": [round(size / 2**20, 2) for size in stored],
            "bytes_a_decision": round(float(np.polyfit(decisions, peaks, 1)[0])),
            "raw_bytes_a_decision": RAW_BYTES,
        }


def measure_load(work: Path, seed: int) -> Iterator[Row]:
    """Yield the rows of recordings and of hours of play."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    yield from measure_recordings(work, seed)
    yield measure_play(seed)
