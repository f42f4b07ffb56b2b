"""Minari sets in and out: other people's Atari games as our datasets, and ours as Minari sets.

    python -m envs.minari_sets --import-id atari/centipede/expert-v0 --out data/centipede
    python -m envs.minari_sets --export-id pvplay/carnival/planner-v0 --out data/carnival

Minari looks in `MINARI_DATASETS_PATH`, by default `~/.minari/datasets`, and downloads what is not there.
The two forms differ:

- Minari's frames are the last of a decision; ours are the maximum of its last two (see `envs.atari`).
- The published sets hold JPEG frames, which are not exact; `info.json` says so. An export is exact, at about
  100 kB a frame.
- Minari keeps the frame after the last action, we do not: an import drops it, an export repeats the last.
- A published game has no emulator seed, so it goes by its number in the set. A set of our own comes back as
  it was, seeds, teacher's values and all.
"""

import difflib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pyarrow.parquet as parquet
import tyro
from gymnasium.envs.registration import EnvSpec
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage.datasets_root_dir import get_dataset_path

from common.errors import UserError
from envs.episodes import DatasetError, DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.games import (
    Game,
    MultiPlayerGameError,
    UnknownGameError,
    action_names,
    find_game,
    screen_size,
)
from envs.protocol import PROTOCOLS, Protocol

OURS = "pvplay"  # the metadata key under which an export keeps what Minari has no field for
UNCAPPED = 2**31 - 1  # frames, a year of play; 0 would not do, AtariVectorEnv ends such a game at once
WATCHERS = ("DataCollector", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo")
DESCRIPTION = (
    "Whole games. A frame is the pixel-wise maximum of the last two emulator frames of a decision; "
    "the frame after the last action is not known and repeats the one before."
)


class MinariError(UserError):
    """A Minari set that is missing, damaged, or no set of plain Atari games."""


def import_minari(dataset_id: str, path: Path) -> int:
    """Store the games of a Minari set as a dataset directory; return how many were added.

    Games that are there already are left alone, so an import that was cut short goes on.

    Raises:
        MinariError: no such set, a damaged one, or not one of plain Atari games in colour at native size.
        DatasetError: `path` holds games of another kind.
    """
    _check_id(dataset_id)
    data = _open(dataset_id)
    with _naming(dataset_id):
        metadata = data.storage.metadata
        numbers = [int(number) for number in data.episode_indices]
        info = _read_info(data, metadata)
        seeds = list(numbers)
        if OURS in metadata:
            seeds = [int(episode["seed"]) for episode in data.storage.get_episode_metadata(numbers)]
    writer = EpisodeWriter(path, info)
    there = writer.seeds()
    missing = [(number, seed) for number, seed in zip(numbers, seeds, strict=True) if seed not in there]
    for number, seed in missing:
        with _naming(f"{dataset_id}, game {number}"):
            episode = _read_episode(data, number, seed, len(info.action_names))
        writer.append(episode)
    return len(missing)


def export_minari(path: Path, dataset_id: str) -> int:
    """Add a dataset directory to the local Minari sets as `dataset_id`; return how many games it holds.

    The set appears whole or not at all. `minari.load_dataset(dataset_id)` reads it, and its
    `recover_environment()` gives the game under the dataset's protocol, no-op starts excepted.

    Raises:
        MinariError: the name is taken, or none that Minari accepts.
        DatasetError: the dataset is missing or damaged.
    """
    namespace = _check_id(dataset_id)
    final = get_dataset_path(dataset_id)
    if final.exists():
        raise MinariError(f"a Minari set {dataset_id} exists at {final}; choose another name or version")
    data = EpisodeDataset(path)
    aside = get_dataset_path(f".{dataset_id.replace('/', '-')}.{os.getpid()}")
    try:
        aside.mkdir()
        _write(data, aside / "data", dataset_id)
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)
        os.rename(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return len(data.seeds)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Tell whatever Minari trips over in a set as that set's damage."""
    try:
        yield
    except (MinariError, UnknownGameError, MultiPlayerGameError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MinariError(f"Minari set {what} is damaged: {reason}") from error


def _check_id(dataset_id: str) -> str | None:
    """Return the namespace of a Minari id, or refuse it."""
    try:
        return parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:  # TypeError: an id without a version
        raise MinariError(
            f"expected a Minari id with a version, such as atari/mspacman/expert-v0; got {dataset_id!r}"
        ) from error


def _open(dataset_id: str) -> minari.MinariDataset:
    """Return a set from the local ones, downloaded if need be."""
    if not (get_dataset_path(dataset_id) / "data").exists():
        try:
            minari.download_dataset(dataset_id)
        except Exception as error:  # which one is up to Minari, the hub's client and the client's transport
            near = difflib.get_close_matches(dataset_id, minari.list_local_datasets(), n=3, cutoff=0.4)
            hint = f"; nearest of those here: {', '.join(near)}" if near else ""
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise MinariError(f"no Minari set {dataset_id} here, and none came: {reason}{hint}") from error
    with _naming(dataset_id):
        return minari.load_dataset(dataset_id)


def _read_info(data: minari.MinariDataset, metadata: dict) -> DatasetInfo:
    """Return what holds for every game of a set; refuse a set of anything but plain Atari games."""
    game, protocol = _read_spec(data)
    names = action_names(game, protocol.full_action_space)
    _check_spaces(data, game, len(names))
    if OURS in metadata:
        info = DatasetInfo.from_dict(metadata[OURS])
        if (info.game, info.action_names) != (game.name, names):
            raise MinariError(f"{data.id} says it holds {info.game}, but its environment is {game.name}")
        return info
    frames = "JPEG, not exact" if metadata.get("jpeg_encoding", True) else "exact"
    return DatasetInfo(
        game=game.name,
        action_names=names,
        protocol=protocol,
        agent=f"{metadata.get('algorithm_name', 'unknown agent')} of {data.id}",
        labels=None,
        commit=metadata.get("code_permalink", "unknown"),
        versions={"minari": data.minari_version, "frames": frames},
    )


def _read_spec(data: minari.MinariDataset) -> tuple[Game, Protocol]:
    """Return game and protocol from the environment a set was played in."""
    spec = data.env_spec
    if spec is None:
        raise MinariError(f"Minari set {data.id} does not say which environment it was played in")
    if not str(spec.entry_point).endswith(":AtariEnv"):
        raise MinariError(f"expected a Minari set of an Atari game, got {data.id} of {spec.id}")
    wrappers = [wrapper.name for wrapper in spec.additional_wrappers or () if wrapper.name not in WATCHERS]
    if wrappers:
        raise MinariError(f"expected the plain game, but {data.id} was played through {', '.join(wrappers)}")
    changed = [name for name in ("mode", "difficulty") if spec.kwargs.get(name)]
    if changed:
        raise MinariError(f"expected the game as it starts, but {data.id} sets its {' and '.join(changed)}")
    return find_game(spec.kwargs.get("game", spec.id)), _read_protocol(data.id, spec)


def _read_protocol(dataset_id: str, spec: EnvSpec) -> Protocol:
    """Return the protocol of an Atari environment; gymnasium knows no no-op starts."""
    skip = spec.kwargs.get("frameskip", 4)
    if not isinstance(skip, int):
        raise MinariError(f"expected a fixed frame skip, but {dataset_id} skips {skip} frames")
    caps = [spec.kwargs.get("max_num_frames_per_episode") or 0, (spec.max_episode_steps or 0) * skip, UNCAPPED]
    protocol = Protocol(
        name="minari",
        repeat_action_probability=float(spec.kwargs.get("repeat_action_probability", 0.25)),
        frame_skip=skip,
        noop_max=0,
        full_action_space=bool(spec.kwargs.get("full_action_space", False)),
        max_episode_frames=min(cap for cap in caps if cap),
    )
    known = (known for known in PROTOCOLS.values() if known == replace(protocol, name=known.name))
    return next(known, protocol)


def _check_spaces(data: minari.MinariDataset, game: Game, actions: int) -> None:
    """Refuse frames that are not the game's own screen in colour, and actions that are not its buttons."""
    frames, buttons = data.observation_space, data.action_space
    shape = (*screen_size(game), 3)
    if getattr(frames, "shape", None) != shape or frames.dtype != np.uint8:
        raise MinariError(f"expected frames uint8{list(shape)} of {game.name}; {data.id} holds {frames}")
    if not isinstance(buttons, gymnasium.spaces.Discrete) or (buttons.n, buttons.start) != (actions, 0):
        raise MinariError(f"expected the {actions} actions of {game.name}; {data.id} holds {buttons}")


def _read_episode(data: minari.MinariDataset, number: int, seed: int, actions: int) -> Episode:
    """Return one game. One that was neither ended nor cut off is cut off where its recording stops."""
    (stored,) = data.iterate_episodes([number])
    taken = np.asarray(stored.actions, dtype=np.int64).reshape(-1)
    if taken.size and not 0 <= taken.min() <= taken.max() < actions:
        raise ValueError(f"expected actions from 0 to {actions - 1}, got {taken.min()} to {taken.max()}")
    length = len(taken)
    values = (stored.infos or {}).get("action_values")
    terminated = bool(length and np.asarray(stored.terminations).reshape(-1)[-1])
    return Episode(
        frames=stored.observations[:length],
        actions=taken,
        rewards=np.asarray(stored.rewards, dtype=np.float32).reshape(-1),
        action_values=None if values is None else np.asarray(values, dtype=np.float32)[:length],
        terminated=terminated,
        truncated=not terminated,
        seed=seed,
    )


def _write(data: EpisodeDataset, directory: Path, dataset_id: str) -> None:
    """Write a set game by game, so that memory holds the frames of one."""
    info = data.info
    frames = gymnasium.spaces.Box(0, 255, data.frame(0).shape, np.uint8)
    buttons = gymnasium.spaces.Discrete(len(info.action_names))
    storage = MinariStorage.new(directory, frames, buttons, _make_spec(info), "hdf5", jpeg_encoding=False)
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "algorithm_name": info.agent,
            "description": DESCRIPTION,
            "requirements": ["ale-py>=0.12.1", "gymnasium>=1.1"],
            OURS: info.to_dict(),
        }
    )
    starts = np.flatnonzero(data.starts == np.arange(len(data)))
    for seed, start, stop in zip(data.seeds, starts, [*starts[1:], len(data)], strict=True):
        storage.update_episodes([_make_buffer(data, seed, int(start), int(stop))])


def _make_spec(info: DatasetInfo) -> EnvSpec:
    """Return gymnasium's name for a game under a protocol."""
    spec = deepcopy(gymnasium.spec(f"ALE/{info.game}-v5"))
    spec.kwargs.update(
        obs_type="rgb",
        repeat_action_probability=info.protocol.repeat_action_probability,
        frameskip=info.protocol.frame_skip,
        full_action_space=info.protocol.full_action_space,
        max_num_frames_per_episode=info.protocol.max_episode_frames,
    )
    return spec


def _read_ends(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one game's flags from its file, terminated and truncated, bool[T] each."""
    file = path / "data" / f"episode-{seed:08d}.parquet"
    try:
        flags = parquet.read_table(file, columns=["terminated", "truncated"])
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    return flags["terminated"].to_numpy(), flags["truncated"].to_numpy()


def _make_buffer(data: EpisodeDataset, seed: int, start: int, stop: int) -> EpisodeBuffer:
    """Return one game as Minari takes it: a frame, and an info, more than actions."""
    rows = range(start, stop)
    terminated, truncated = _read_ends(data.path, seed)
    frames = np.stack([data.frame(row) for row in (*rows, stop - 1)])
    values = data.action_values[start:stop]
    unknown = np.full((1, values.shape[1]), np.nan, dtype=np.float32)
    taught = not np.isnan(values).all()
    return EpisodeBuffer(
        seed=seed,
        observations=frames,
        actions=data.actions[start:stop],
        rewards=data.rewards[start:stop],
        terminations=terminated,
        truncations=truncated,
        infos={"action_values": np.concatenate([values, unknown])} if taught else None,
    )


@dataclass
class Args:
    """Import a Minari set into a dataset directory, or export one."""

    out: Path
    """The dataset directory: made by an import, read by an export."""
    import_id: str | None = None
    """The Minari id to import, such as atari/centipede/expert-v0."""
    export_id: str | None = None
    """The Minari id to export to, such as pvplay/carnival/planner-v0."""

    def __post_init__(self) -> None:
        if (self.import_id is None) == (self.export_id is None):
            raise UserError("expected one of --import-id and --export-id")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    if args.import_id:
        print(f"{import_minari(args.import_id, args.out)} games came into {args.out}")
    else:
        print(f"{export_minari(args.out, str(args.export_id))} games went to {args.export_id}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, OSError) as mistake:
        print(f"error: {mistake}".replace("\n", " "), file=sys.stderr)
        sys.exit(2)
