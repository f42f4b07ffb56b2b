"""Speed and memory of recorded data, beside plain Minari and beside all frames as Python bytes, in the same run.

    python -m experiments.benchmarks.dataset_speed --out experiments/results/dataset_speed.json
    python -m experiments.benchmarks.dataset_speed --out out.json --rows 1000000

Candidate: `envs.episodes.EpisodeDataset`, whose rows were checked once and are mapped into memory. Baselines: the same
Parquet files read to one Python bytes object a frame, which is what `EpisodeDataset` did before (its checks included);
and a Minari dataset in HDF5, with Minari's default, lossy JPEG frames. All hold the same episodes of random play, one
short game repeated; they lie in the temporary directory (`TMPDIR`). Each round opens every reader in a new process:

- open: seconds of the opening; the row of the candidate also holds those of the first one, which fills the cache.
- resident memory: what the opening adds. Pages that are mapped count once they were read; `after_reads` has them too.
- random frames: single frames of random episodes and steps. Minari reads a whole episode for each.
- frames of whole episodes, in order.
- append: one episode more, as uint8 frames, and the dataset opened again.
"""

import mmap
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import gymnasium
import h5py
import minari
import numpy as np
import psutil
from jaxtyping import UInt8
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from agents.random_agent import RandomAgent
from agents.rollout import play_games
from common.command import require_at_least, run
from common.images import decode_rgb
from envs.atari import AtariEnvs
from envs.episode_file import read_episode_file
from envs.episodes import DatasetInfo, Episode, EpisodeDataset, EpisodeWriter, encode_png, episode_files, read_info
from envs.games import action_names, find_game
from envs.protocol import MACHADO2018
from experiments.benchmarks.harness import Row, TimingArgs, benchmark_main, comparison, rounded

SEED = 600
EPISODE_STEPS = 1000
WHOLE_EPISODES = 2  # read in order
EPISODES_TO_SEEK = 4  # of Minari, which reads a whole one for a frame
OURS, MINARI, CACHE = "ours", "minari", "cache"  # folders
Frames = UInt8[np.ndarray, "steps height width 3"]


@dataclass(kw_only=True)
class Args(TimingArgs):
    """Time opening, reading and appending of recorded data. It needs 9 kB of disk a row."""

    game: str = "MsPacman"
    """The game of the frames."""
    rows: int = 100_000
    """Rows of each dataset, in episodes of 1,000."""
    reads: int = 2000
    """Random frames to read in each round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2 * EPISODE_STEPS, "rows")
        require_at_least(self, 10, "reads")


class Reader(ABC):
    """An open dataset in a folder of the benchmark."""

    @abstractmethod
    def __init__(self, folder: Path): ...

    def seeks(self, reads: int) -> int:
        """Return how many random frames to read where `reads` are asked for."""
        return reads

    @abstractmethod
    def frame(self, episode: int, step: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return one frame."""

    @abstractmethod
    def episode(self, episode: int) -> Frames:
        """Return the frames of an episode."""

    @staticmethod
    @abstractmethod
    def append(folder: Path, episode: Episode) -> Callable[[], object]:
        """Add an episode; return a function that removes it again."""


class MappedReader(Reader):
    """The candidate."""

    def __init__(self, folder: Path):
        self.data = EpisodeDataset(folder / OURS)

    def frame(self, episode: int, step: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return one frame."""
        return self.data.frame(episode * EPISODE_STEPS + step)

    def episode(self, episode: int) -> Frames:
        """Return the frames of an episode."""
        return np.stack([self.frame(episode, step) for step in range(EPISODE_STEPS)])

    @staticmethod
    def append(folder: Path, episode: Episode) -> Callable[[], object]:
        """Add an episode; return a function that removes it again."""
        return EpisodeWriter(folder / OURS, read_info(folder / OURS)).append(episode).unlink


class BytesReader(MappedReader):
    """All frames as Python bytes and every row as Python values, as `EpisodeDataset` read them before."""

    def __init__(self, folder: Path):
        info, files = read_info(folder / OURS), episode_files(folder / OURS)
        tables = [read_episode_file(file, len(info.action_names), seed) for seed, file in files.items()]
        self.pngs = [png for one in tables for png in one["frame"].combine_chunks().field("bytes").to_pylist()]
        self.columns = [np.concatenate([one[name].to_numpy() for one in tables]) for name in ("action", "reward")]
        unlabelled = [np.nan] * len(info.action_names)
        values = [row or unlabelled for one in tables for row in one["action_values"].to_pylist()]
        self.action_values = np.array(values, np.float32)

    def frame(self, episode: int, step: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return one frame."""
        return decode_rgb(self.pngs[episode * EPISODE_STEPS + step], "frame", ("PNG",), upright=False)


class MinariReader(Reader):
    """Minari's own reader of HDF5."""

    def __init__(self, folder: Path):
        self.data = minari.MinariDataset(folder / MINARI)

    def seeks(self, reads: int) -> int:
        """Return a few: each reads a whole episode."""
        return min(reads, EPISODES_TO_SEEK)

    def frame(self, episode: int, step: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return one frame."""
        return self.data[episode].observations[step]

    def episode(self, episode: int) -> Frames:
        """Return the frames of an episode."""
        return self.data[episode].observations

    @staticmethod
    def append(folder: Path, episode: Episode) -> Callable[[], object]:
        """Add an episode; it stays."""
        minari.MinariDataset(folder / MINARI).storage.update_episodes([minari_episode(episode)])
        return lambda: None


READERS: dict[str, type[Reader]] = {"candidate": MappedReader, "bytes": BytesReader, "minari": MinariReader}
BASELINES = {"bytes": "all frames as Python bytes", "minari": "Minari in HDF5, JPEG frames"}


def record_episode(name: str) -> tuple[DatasetInfo, Episode]:
    """Return one episode of random play, cut to `EPISODE_STEPS`."""
    game = find_game(name)
    frames, actions, rewards = [], [], []
    with AtariEnvs(game, 1) as envs:
        for step in play_games(RandomAgent(envs.action_names), envs, range(SEED, SEED + EPISODE_STEPS)):
            frames.append(step.frame)
            actions.append(step.action)
            rewards.append(step.reward)
            if len(frames) == EPISODE_STEPS:
                break
    info = DatasetInfo(game.name, action_names(game), MACHADO2018, "random", None, "", {})
    rows = (np.array(actions), np.array(rewards, np.float32), None)
    return info, Episode(np.stack(frames), *rows, terminated=False, truncated=True, seed=SEED)


def minari_episode(episode: Episode) -> EpisodeBuffer:
    """Return an episode as Minari stores it, with one more frame than actions."""
    last = np.arange(len(episode.actions)) == len(episode.actions) - 1
    return EpisodeBuffer(
        observations=np.concatenate([episode.frames, episode.frames[-1:]]),
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=np.zeros_like(last),
        truncations=last,
    )


def write_datasets(folder: Path, info: DatasetInfo, episode: Episode, count: int) -> None:
    """Write an episode `count` times as a dataset directory and as a Minari dataset."""
    frames = np.asarray(episode.frames)
    writer, pngs = EpisodeWriter(folder / OURS, info), [encode_png(frame) for frame in frames]
    for seed in range(count):
        writer.append(replace(episode, frames=pngs, seed=seed))
    (folder / MINARI).mkdir()
    observations = gymnasium.spaces.Box(np.zeros_like(frames[0]), np.full_like(frames[0], 255), dtype=np.uint8)
    storage = MinariStorage.new(folder / MINARI, observations, gymnasium.spaces.Discrete(18), None, "hdf5")
    storage.update_metadata({"dataset_id": "benchmark/dataset-v0", "minari_version": minari.__version__})
    storage.update_episodes([minari_episode(episode)])
    with h5py.File(folder / MINARI / "main_data.hdf5", "a", track_order=True) as file:
        for index in range(1, count):
            file.copy("episode_0", f"episode_{index}")
            file[f"episode_{index}"].attrs["id"] = index
    storage.update_metadata({"total_steps": count * len(episode.actions), "total_episodes": count})


def measure_reader(name: str, folder: Path, reads: int, episode: Episode) -> dict[str, float]:
    """Return the figures of one reader, in a new process."""
    datasets.config.HF_DATASETS_CACHE = folder / CACHE
    datasets.disable_progress_bars()
    count = len(episode_files(folder / OURS))
    figures = measure_reads(name, folder, reads, count)
    remove, appended = _timed(lambda: READERS[name].append(folder, replace(episode, seed=count)))
    _, reopened = _timed(lambda: READERS[name](folder))
    remove()
    return figures | {"append": appended + reopened}


def measure_reads(name: str, folder: Path, reads: int, count: int) -> dict[str, float]:
    """Return the figures of opening and reading `count` episodes."""
    process, rng = psutil.Process(), np.random.default_rng(SEED)
    before = process.memory_info().rss
    reader, opened = _timed(lambda: READERS[name](folder))
    memory = max(mmap.PAGESIZE, process.memory_info().rss - before)  # few rows may fit into what the process has
    places = [(int(rng.integers(count)), int(rng.integers(EPISODE_STEPS))) for _ in range(reader.seeks(reads))]
    seeking = _timed(lambda: [reader.frame(*place) for place in places])[1]
    reading = _timed(lambda: [reader.episode(number) for number in range(WHOLE_EPISODES)])[1]
    after = process.memory_info().rss - before
    return {
        "open": opened,
        "memory": memory / 2**20,
        "after_reads": after / 2**20,
        "random": len(places) / seeking,
        "whole": WHOLE_EPISODES * EPISODE_STEPS / reading,
    }


def _timed(function: Callable[[], object]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def in_new_process(name: str, folder: Path, reads: int, episode: Episode) -> dict[str, float]:
    """Return the figures of one reader; its memory is that of no other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_reader, name, folder, reads, episode).result()


def measure(args: Args) -> list[Row]:
    """Return a row for every figure beside each baseline."""
    datasets.disable_progress_bars()
    folder = Path(tempfile.mkdtemp(prefix="dataset-speed-"))
    try:
        info, episode = record_episode(args.game)
        write_datasets(folder, info, episode, args.rows // EPISODE_STEPS)
        time.sleep(3)  # what changed just now is not kept
        first = in_new_process("candidate", folder, args.reads, episode)
        rounds = [
            {name: in_new_process(name, folder, args.reads, episode) for name in READERS} for _ in range(args.rounds)
        ]
    finally:
        shutil.rmtree(folder)
    found = {name: {key: float(np.median([one[name][key] for one in rounds])) for key in first} for name in READERS}
    size = {"rows": args.rows // EPISODE_STEPS * EPISODE_STEPS, "game": info.game, "n": args.rounds, "model": "none"}
    return [row for name in BASELINES for row in figure_rows(found, name, first["open"], size)]


def figure_rows(found: dict[str, dict[str, float]], name: str, first_open: float, details: dict) -> list[Row]:
    """Return the rows of the candidate beside one baseline."""
    both = {"candidate": found["candidate"], "baseline": found[name]}
    after_reads = {f"{who}_after_reads": round(one["after_reads"]) for who, one in both.items()}
    units: dict[str, tuple[str, str, dict]] = {
        "open": ("open a dataset", "seconds, median", {"candidate_first_open": rounded(first_open)}),
        "memory": ("resident memory of an open dataset", "MiB, median", after_reads),
        "random": ("random frames", "frames per second, median", {}),
        "whole": ("frames of whole episodes", "frames per second, median", {}),
        "append": ("append an episode of 1,000 steps and open again", "seconds, median", {}),
    }
    return [
        comparison(title, both["candidate"][key], both["baseline"][key], BASELINES[name], unit, **more, **details)
        for key, (title, unit, more) in units.items()
    ]


main = benchmark_main(Args, measure, [SEED], __doc__)

if __name__ == "__main__":
    sys.exit(run(main))
