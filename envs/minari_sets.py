"""Import Minari datasets of Atari games into dataset directories, and export dataset directories to Minari.

    python -m envs.minari_sets --import-id atari/centipede/expert-v0 --out data/centipede
    python -m envs.minari_sets --export-id pvplay/carnival/planner-v0 --out data/carnival

Minari reads `MINARI_DATASETS_PATH`, by default `~/.minari/datasets`, and downloads what is missing there.
The two formats differ:

- Minari's frames are the last of an agent step; ours are the maximum of its last two (see `envs.atari`).
- The published datasets hold lossy JPEG frames, as `info.json` records. An export is lossless, 100 kB per frame.
- Minari keeps the frame after the last action: an import drops it, an export repeats the one before.
- A published episode has no emulator seed; its index takes that place. An exported dataset is imported unchanged,
  with seeds and action values.
"""

import difflib
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
from gymnasium.envs.registration import EnvSpec
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage.datasets_root_dir import get_dataset_path

from common.command import command, run
from common.errors import UserError
from common.files import temporary_path
from common.json_file import checked
from common.outputs import require_output_directory
from envs.episodes import INFO, DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.games import Game, MultiPlayerGameError, UnknownGameError, action_names, find_game, screen_size
from envs.protocol import PROTOCOLS, Protocol

METADATA_KEY = "pvplay"  # of our `DatasetInfo` in the metadata of an export
NO_FRAME_LIMIT = 2**31 - 1  # frames, a year of play; with 0, AtariVectorEnv ends an episode at once
PASSIVE_WRAPPERS = (  # they change neither frames nor actions nor rewards; a time limit is part of the protocol
    *("DataCollector", "Monitor", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "RecordVideo"),
    "TimeLimit",
)
DESCRIPTION = (
    "Complete episodes. A frame is the pixel-wise maximum of the last two emulator frames of an agent step; "
    "the frame after the last action is unknown and repeats the one before."
)


class MinariError(UserError):
    """A Minari dataset that is missing, damaged, or not of unmodified Atari games."""


def import_minari(dataset_id: str, path: Path) -> int:
    """Add the missing episodes of a Minari dataset of unmodified Atari games to a directory; return their number."""
    _namespace(dataset_id)
    data = _load(dataset_id)
    with _damage_as_minari_error(dataset_id):
        info = _read_info(data)
        seeds = {int(index): int(index) for index in data.episode_indices}
        if METADATA_KEY in data.storage.metadata:
            episodes = data.storage.get_episode_metadata(list(seeds))
            seeds = {index: int(episode["seed"]) for index, episode in zip(seeds, episodes, strict=True)}
    writer = EpisodeWriter(path, info)
    stored = writer.seeds()
    missing = {index: seed for index, seed in seeds.items() if seed not in stored}
    for index, seed in missing.items():
        with _damage_as_minari_error(f"{dataset_id}, episode {index}"):
            episode = _read_episode(data, index, seed, len(info.action_names))
        writer.append(episode)
    return len(missing)


def export_minari(path: Path, dataset_id: str) -> int:
    """Export a dataset directory to the local Minari dataset `dataset_id`, atomically; return the number of episodes.

    `minari.load_dataset(dataset_id)` reads it, and its `recover_environment()` makes the game under the dataset's
    protocol, except for no-op starts.
    """
    namespace = _namespace(dataset_id)
    final = get_dataset_path(dataset_id)
    if final.exists():
        raise MinariError(f"a Minari dataset {dataset_id} exists at {final}; choose another name or version")
    data = EpisodeDataset(path)
    temporary = temporary_path(get_dataset_path(dataset_id.replace("/", "-")))
    try:
        temporary.mkdir()
        _write(data, temporary / "data", dataset_id)
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(data.seeds)


@contextmanager
def _damage_as_minari_error(name: str) -> Iterator[None]:
    """Turn Minari's errors while it reads a dataset into a `MinariError` that names the dataset."""
    try:
        yield
    except (MinariError, UnknownGameError, MultiPlayerGameError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MinariError(f"Minari dataset {name} is damaged: {reason}") from error


def _namespace(dataset_id: str) -> str | None:
    """Return the namespace of a Minari id; refuse an invalid id."""
    try:
        return parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:  # TypeError: an id without a version
        raise MinariError(
            f"expected a Minari id with a version, such as atari/mspacman/expert-v0; got {dataset_id!r}"
        ) from error


def _load(dataset_id: str) -> minari.MinariDataset:
    """Return a local or downloaded dataset."""
    if not (get_dataset_path(dataset_id) / "data").exists():
        try:
            minari.download_dataset(dataset_id)
        except Exception as error:  # Minari, the hub's client or its transport may raise any
            near = difflib.get_close_matches(dataset_id, minari.list_local_datasets(), n=3, cutoff=0.4)
            hint = f"; nearest local ones: {', '.join(near)}" if near else ""
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise MinariError(f"no local Minari dataset {dataset_id}, and no download: {reason}{hint}") from error
    with _damage_as_minari_error(dataset_id):
        return minari.load_dataset(dataset_id)


def _read_info(data: minari.MinariDataset) -> DatasetInfo:
    """Return the properties shared by all episodes; refuse a dataset of anything but unmodified Atari games."""
    metadata = data.storage.metadata
    game, protocol = _read_spec(data)
    names = action_names(game, protocol.full_action_space)
    _check_spaces(data, game, len(names))
    if METADATA_KEY in metadata:
        info = checked(metadata[METADATA_KEY], DatasetInfo, f"the metadata of {data.id}")
        if (info.game, info.action_names) != (game.name, names):
            raise MinariError(f"the metadata of {data.id} names {info.game}, but its environment is {game.name}")
        return info
    frames = "JPEG, not exact" if metadata.get("jpeg_encoding", True) else "exact"
    return DatasetInfo(
        game=game.name,
        action_names=names,
        protocol=protocol,
        agent=f"{metadata.get('algorithm_name', 'unknown agent')} of {data.id}",
        labels=None,
        commit=str(metadata.get("code_permalink", "unknown")),
        versions={"minari": data.minari_version, "frames": frames},
    )


def _read_spec(data: minari.MinariDataset) -> tuple[Game, Protocol]:
    """Return game and protocol of the environment in which a dataset was recorded."""
    spec = data.env_spec
    if spec is None:
        raise MinariError(f"Minari dataset {data.id} does not name its environment")
    if not str(spec.entry_point).endswith(":AtariEnv"):
        raise MinariError(f"expected a Minari dataset of an Atari game, got {data.id} of {spec.id}")
    wrappers = [wrapper.name for wrapper in spec.additional_wrappers or () if wrapper.name not in PASSIVE_WRAPPERS]
    if wrappers:
        raise MinariError(f"expected the unwrapped game, but {data.id} was recorded through {', '.join(wrappers)}")
    variants = [name for name in ("mode", "difficulty") if spec.kwargs.get(name)]
    if variants:
        raise MinariError(f"expected the default game, but {data.id} sets its {' and '.join(variants)}")
    return find_game(spec.kwargs.get("game", spec.id)), _read_protocol(data.id, spec)


def _read_protocol(dataset_id: str, spec: EnvSpec) -> Protocol:
    """Return the protocol of an Atari environment, which has no no-op starts in gymnasium."""
    skip = spec.kwargs.get("frameskip", 4)
    if not isinstance(skip, int):
        raise MinariError(f"expected a fixed frame skip, but {dataset_id} skips {skip} frames")
    steps = [spec.max_episode_steps, *_time_limits(spec)]
    limits = [spec.kwargs.get("max_num_frames_per_episode") or 0, *(skip * (limit or 0) for limit in steps)]
    protocol = Protocol(
        name="minari",
        repeat_action_probability=float(spec.kwargs.get("repeat_action_probability", 0.25)),
        frame_skip=skip,
        noop_max=0,
        full_action_space=bool(spec.kwargs.get("full_action_space", False)),
        max_episode_frames=min([limit for limit in limits if limit], default=NO_FRAME_LIMIT),
    )
    return next((known for known in PROTOCOLS.values() if known == replace(protocol, name=known.name)), protocol)


def _time_limits(spec: EnvSpec) -> list[int]:
    """Return the steps of the time limits among an environment's wrappers."""
    limits = [wrapper.kwargs for wrapper in spec.additional_wrappers or () if wrapper.name == "TimeLimit"]
    return [int(kwargs["max_episode_steps"]) for kwargs in limits if kwargs]


def _check_spaces(data: minari.MinariDataset, game: Game, actions: int) -> None:
    """Refuse observations other than the game's native screen in color, and actions other than its own."""
    frames, shape = data.observation_space, (*screen_size(game), 3)
    if getattr(frames, "shape", None) != shape or frames.dtype != np.uint8:
        raise MinariError(f"expected frames uint8{list(shape)} of {game.name}; {data.id} holds {frames}")
    if data.action_space != gymnasium.spaces.Discrete(actions):
        raise MinariError(f"expected the {actions} actions of {game.name}; {data.id} holds {data.action_space}")


def _read_episode(data: minari.MinariDataset, index: int, seed: int, num_actions: int) -> Episode:
    """Return one episode; one that is not terminated is truncated at its last step."""
    (stored,) = data.iterate_episodes([index])
    actions = np.asarray(stored.actions, dtype=np.int64).reshape(-1)
    if actions.size and not 0 <= actions.min() <= actions.max() < num_actions:
        raise ValueError(f"expected actions from 0 to {num_actions - 1}, got {actions.min()} to {actions.max()}")
    values = (stored.infos or {}).get("action_values")
    terminated = bool(actions.size and np.asarray(stored.terminations).reshape(-1)[-1])
    return Episode(
        frames=stored.observations[: len(actions)],
        actions=actions,
        rewards=np.asarray(stored.rewards, dtype=np.float32).reshape(-1),
        action_values=None if values is None else np.asarray(values, dtype=np.float32)[: len(actions)],
        terminated=terminated,
        truncated=not terminated,
        seed=seed,
    )


def _write(data: EpisodeDataset, directory: Path, dataset_id: str) -> None:
    """Write a dataset episode by episode, so that memory holds the frames of one."""
    info, frames = data.info, gymnasium.spaces.Box(0, 255, data.frame(0).shape, np.uint8)
    actions = gymnasium.spaces.Discrete(len(info.action_names))
    storage = MinariStorage.new(directory, frames, actions, _make_spec(info), "hdf5", jpeg_encoding=False)
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "algorithm_name": info.agent,
            "description": DESCRIPTION,
            "requirements": ["ale-py>=0.12.1", "gymnasium>=1.1"],
            METADATA_KEY: info.to_dict(),
        }
    )
    starts = np.flatnonzero(data.starts == np.arange(len(data)))
    for seed, start, stop in zip(data.seeds, starts, [*starts[1:], len(data)], strict=True):
        storage.update_episodes([_make_buffer(data, seed, int(start), int(stop))])


def _make_spec(info: DatasetInfo) -> EnvSpec:
    """Return gymnasium's specification of a game under a protocol."""
    spec = deepcopy(gymnasium.spec(f"ALE/{info.game}-v5"))
    spec.kwargs.update(
        obs_type="rgb",
        repeat_action_probability=info.protocol.repeat_action_probability,
        frameskip=info.protocol.frame_skip,
        full_action_space=info.protocol.full_action_space,
        max_num_frames_per_episode=info.protocol.max_episode_frames,
    )
    return spec


def _make_buffer(data: EpisodeDataset, seed: int, start: int, stop: int) -> EpisodeBuffer:
    """Return one episode as Minari stores it, with one more frame and info than actions."""
    values = np.pad(data.action_values[start:stop], ((0, 1), (0, 0)), constant_values=np.nan)
    return EpisodeBuffer(
        seed=seed,
        observations=np.stack([data.frame(row) for row in (*range(start, stop), stop - 1)]),
        actions=data.actions[start:stop],
        rewards=data.rewards[start:stop],
        terminations=data.terminated[start:stop],
        truncations=data.truncated[start:stop],
        infos=None if np.isnan(values).all() else {"action_values": values},
    )


@dataclass
class Args:
    """Import a Minari dataset into a dataset directory, or export one."""

    out: Path
    """The dataset directory: written by an import, read by an export."""
    import_id: str | None = None
    """The Minari id to import, such as atari/centipede/expert-v0."""
    export_id: str | None = None
    """The Minari id to export to, such as pvplay/carnival/planner-v0."""

    def __post_init__(self) -> None:
        if (self.import_id is None) == (self.export_id is None):
            raise UserError("expected one of --import-id and --export-id")


def convert(args: Args) -> str:
    """Import or export; return what was done."""
    if args.import_id:
        require_output_directory(args.out, INFO)
        return f"imported {import_minari(args.import_id, args.out)} episodes into {args.out}"
    return f"exported {export_minari(args.out, str(args.export_id))} episodes to {args.export_id}"


main = command(Args, convert, __doc__, "{}", output=lambda args: args.out if args.import_id else None)

if __name__ == "__main__":
    sys.exit(run(main))
