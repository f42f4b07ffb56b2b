"""Datasets of the Hugging Face hub as recorded data: read them in any command, import them, export recorded data.

    python -m agents.clone --data hf://blanchon/atari_parquet:pong --out runs/pong
    python -m envs.hub_sets --import-from hf://blanchon/atari_parquet:pong --out data/pong
    python -m envs.hub_sets --export-from data/carnival --out hub/carnival --license cc0-1.0

A name is `hf://owner/set`, with `@revision` and `:split` or `:config/split` where needed, or a local clone with the
same endings. Known are the layouts of `envs.column_map`; `--columns frame=image action=key ...` names other columns.
What is read is kept in the cache of `datasets` (`HF_DATASETS_CACHE`) as a dataset directory of `envs.episodes`. The
protocol of other people's data is unknown: machado2018 is taken for it. An export is a dataset directory with a card;
`hf upload OWNER/NAME DIR --repo-type dataset` publishes it.
"""

import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from datasets import config
from filelock import FileLock
from tqdm import tqdm

from common.command import command, run
from common.errors import UserError
from common.files import atomic_directory
from common.markdown import require_licence
from common.outputs import require_output_directory
from common.text import printable
from envs.column_map import COLUMN_MAPS, HubOptions, find_columns
from envs.dataset_card import dataset_card
from envs.episodes import INFO, DatasetError, DatasetInfo, EpisodeDataset, EpisodeWriter
from envs.games import Game, MultiPlayerGameError, UnknownGameError, action_names, find_game
from envs.hub_episodes import Rows, different_values, picture_format, read_hub_episodes, read_schema
from envs.hub_source import (
    CARD,
    HubFiles,
    HubSource,
    commit_of,
    fetch_files,
    fetch_head,
    is_remote,
    parse_source,
    read_card,
    split_files,
)
from envs.lerobot_files import INFO_FILE, named_task, read_layout
from envs.protocol import MACHADO2018

FORMAT = 1  # of what is kept; another one reads a dataset again
LAYOUTS = ("*.parquet", "data/*.parquet", "data/*/*.parquet", "*/*-of-*.parquet")  # of the hub's datasets
DEFAULT_OPTIONS = HubOptions()


@dataclass(frozen=True)
class HubRows:
    """The rows that a source means, and what all of them share."""

    rows: Rows
    info: DatasetInfo
    key: str  # differs where rows, or how they are read, may differ


def is_dataset(location: str | Path) -> bool:
    """Return whether a location is of recorded games: a dataset directory, one of the hub, or a clone of such a one."""
    if is_remote(location):
        return True
    folder = Path(parse_source(location).place)
    named = any((folder / file).is_file() for file in (INFO, INFO_FILE))
    return named or any(itertools.chain.from_iterable(folder.glob(pattern) for pattern in LAYOUTS))


def open_dataset(location: str | Path, options: HubOptions = DEFAULT_OPTIONS) -> EpisodeDataset:
    """Open the recorded games at a location, see `local_dataset`."""
    return EpisodeDataset(local_dataset(location, options))


def local_datasets(locations: Sequence[str | Path], options: HubOptions) -> tuple[Path, ...]:
    """Return the directory of each dataset; `UserError` for options that none of them takes."""
    found = tuple(local_dataset(location, options) for location in locations)
    if options != DEFAULT_OPTIONS and all(Path(one) == there for one, there in zip(locations, found, strict=True)):
        raise UserError("--columns, --data-game and --action-ids are for datasets of the hub, and --data names none")
    return found


def local_dataset(location: str | Path, options: HubOptions = DEFAULT_OPTIONS) -> Path:
    """Return the dataset directory of the recorded games at a location.

    Those of the hub are downloaded, and read into the cache if they are of another layout. A location that is no
    dataset is returned as it is.
    """
    if not is_remote(location) and ((Path(location) / INFO).is_file() or not is_dataset(location)):
        return Path(location)
    source = parse_source(location)
    folder = fetch_head(source)
    if (folder / INFO).is_file():
        return fetch_files(source, folder, ("data/*.parquet",))
    found = find_rows(source, options)
    kept = Path(config.HF_DATASETS_CACHE) / "pvplay" / f"hub-{found.key}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):  # of several processes one reads
        if not (kept / INFO).is_file():
            with atomic_directory(kept) as temporary:
                write_episodes(found, temporary)
    return kept


def find_rows(source: HubSource, options: HubOptions) -> HubRows:
    """Return which rows a source means, which columns they have and of which game they are."""
    given = options.by_role()
    folder = fetch_head(source)
    layout = read_layout(folder, given.get("frame")) if (folder / INFO_FILE).is_file() else None
    if layout is not None:
        folder = fetch_files(source, folder, layout.patterns)
        found = HubFiles(folder, sorted(folder.glob("data/*/*.parquet")))
        if not found.files:
            raise DatasetError(f"{source}: expected Parquet files in data/chunk-000, found none")
        known: dict[str, str] | None = COLUMN_MAPS["lerobot"] | {"frame": layout.frame}
    else:
        found, known = split_files(source), None
    video = layout.frame if layout is not None and layout.is_video else None
    names = [*read_schema(found.files[0]), *([video] if video else ())]
    map_name, columns = find_columns(names, given, source, known)
    game = _find_game(source, found, columns, options.data_game)
    full = options.action_ids == "full"
    rows = Rows(found.files, columns, game, action_names(game, full), video)
    info = _info(source, found, rows, map_name, full)
    states = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found.files]
    described = [FORMAT, str(found.folder.resolve()), found.part, columns, info.to_dict(), states]
    return HubRows(rows, info, hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32])


def _info(source: HubSource, found: HubFiles, rows: Rows, map_name: str, full: bool) -> DatasetInfo:
    commit, part = commit_of(found.folder), "/".join(found.part)
    place = str(replace(source, revision=commit or source.revision))
    kind = picture_format(rows)
    versions = {
        "source": f"{place}:{part}" if part else place,
        "columns": map_name,
        "frames": "exact" if kind == "PNG" else f"not exact ({kind})",
        "protocol": "assumed",
        **({} if "reward" in rows.columns else {"rewards": "unknown"}),
    }
    return DatasetInfo(
        game=rows.game.name,
        action_names=tuple(rows.action_names),
        protocol=replace(MACHADO2018, full_action_space=full),
        agent=printable(f"unknown agent of {source}"),
        labels=None,
        commit=commit or "unknown",
        versions={name: printable(text) for name, text in versions.items()},
    )


def _find_game(source: HubSource, found: HubFiles, columns: dict[str, str], asked: str | None) -> Game:
    """Return the game of a dataset: that which is asked for, or of its column, split, configuration, task or card."""
    if "game" in columns:
        return _game_of_column(source, found, columns["game"], asked)
    if asked is not None:
        return find_game(asked)
    for name in (*reversed(found.part), named_task(found.folder), read_card(found.folder).get("game")):
        if name is not None and (game := _game_or_none(str(name))) is not None:
            return game
    raise DatasetError(f"{source} does not name its game; expected --data-game, as in --data-game Pong")


def _game_of_column(source: HubSource, found: HubFiles, column: str, asked: str | None) -> Game:
    values = set[str]().union(*(different_values(file, column) for file in found.files))
    games = {game.name: game for game in (_game_or_none(value) for value in values) if game is not None}
    held = ", ".join(sorted(games) or sorted(values)[:8])
    if asked is not None:
        if (game := find_game(asked)).name not in games:
            raise DatasetError(f"{source}: expected rows of {game.name}, got those of {held}")
        return game
    if len(games) != 1:
        raise DatasetError(f"{source}: expected --data-game, one of the games of its column {column}: {held}")
    return next(iter(games.values()))


def _game_or_none(name: str) -> Game | None:
    try:
        return find_game(name)
    except (UnknownGameError, MultiPlayerGameError):
        return None


def write_episodes(found: HubRows, out: Path) -> int:
    """Write the episodes that a dataset directory lacks; return their number."""
    writer = EpisodeWriter(out, found.info)
    stored, count = writer.seeds(), 0
    for episode in tqdm(read_hub_episodes(found.rows), f"read {found.rows.game.title}", unit=" episodes", leave=False):
        if episode.seed not in stored:
            writer.append(episode)
            count += 1
    if not writer.seeds():
        raise DatasetError(f"{found.rows.files[0]}: expected rows of {found.rows.game.name}, found none")
    return count


def import_hub(location: str, out: Path, options: HubOptions) -> int:
    """Add the missing episodes of a dataset of the hub to a directory; return their number."""
    source = parse_source(location)
    folder = fetch_head(source)
    if not (folder / INFO).is_file():
        return write_episodes(find_rows(source, options), out)
    data = fetch_files(source, folder, ("data/*.parquet",))
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists; choose another --out")
    opened = EpisodeDataset(data)  # is checked
    _copy(opened, out)
    return len(opened.seeds)


def export_hub(path: Path, out: Path, license_id: str | None = None) -> int:
    """Write a dataset directory and its card as a dataset for the hub; return the number of episodes."""
    data = EpisodeDataset(path)
    with atomic_directory(out) as temporary:
        _copy(data, temporary)
        dataset_card(data, license_id).save(temporary / CARD)
    return len(data.seeds)


def _copy(data: EpisodeDataset, out: Path) -> None:
    (out / "data").mkdir(parents=True, exist_ok=True)
    for file in (data.path / "data").glob("episode-*.parquet"):
        shutil.copyfile(file, out / "data" / file.name)
    shutil.copyfile(data.path / INFO, out / INFO)


@dataclass
class Args:
    """Import a dataset of the Hugging Face hub into a dataset directory, or export one for it."""

    out: Path
    """The directory to write: of recorded games by an import, for the hub by an export."""
    import_from: str | None = None
    """The dataset to import: hf://owner/set, hf://owner/set@revision:split, or a local clone."""
    export_from: Path | None = None
    """The recorded games to export, a directory of `agents.record`."""
    license: str | None = None
    """The licence of an export, as the hub names it: cc0-1.0, cc-by-4.0, mit; without it none is named."""
    hub: Annotated[HubOptions, tyro.conf.arg(name="")] = HubOptions()
    """How a dataset of the hub is read."""

    def __post_init__(self) -> None:
        if (self.import_from is None) == (self.export_from is None):
            raise UserError("expected one of --import-from and --export-from")
        require_licence(self.license)
        if self.import_from and self.license:
            raise UserError("--license is for an export")
        if self.export_from and self.hub != DEFAULT_OPTIONS:
            raise UserError("--columns, --data-game and --action-ids are for an import")


def convert(args: Args) -> str:
    """Import or export; return what was done."""
    if args.import_from:
        require_output_directory(args.out, INFO)
        return f"imported {import_hub(args.import_from, args.out, args.hub)} episodes into {args.out}"
    assert args.export_from is not None
    require_output_directory(args.out, CARD, [args.export_from])
    return f"exported {export_hub(args.export_from, args.out, args.license)} episodes to {args.out}"


main = command(Args, convert, __doc__, "{}")

if __name__ == "__main__":
    sys.exit(run(main))
