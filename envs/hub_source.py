"""Datasets of the Hugging Face hub and local clones of them: what a name means, and which files it stands for.

    hf://blanchon/atari_parquet:pong              a dataset of the hub, one split of it
    hf://owner/set@v1.0:expert/train              of a revision, a configuration and its split
    clones/atari_parquet:pong                     a local clone of such a dataset

Only the files of the split are downloaded. Where the card names no files, those of the hub's layout are found, such as
`data/train-00000-of-00001.parquet`. Everything in a dataset is other people's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from datasets.data_files import get_data_patterns, resolve_pattern, sanitize_patterns
from huggingface_hub import DatasetCard, snapshot_download
from huggingface_hub.utils import HFValidationError, validate_repo_id

from common.errors import nearest
from common.text import printable
from envs.episode_file import DatasetError

REMOTE = re.compile(r"hf:/{1,2}(?:datasets/)?(?P<place>[^@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<part>.*))?")
CARD = "README.md"
HEAD = (CARD, "info.json", "meta/*")  # tell which other files are needed
MAX_CARD = 2**22  # bytes
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class HubSource:
    """A dataset of the hub, or a local clone: `place` is the hub's id or the directory."""

    place: str
    is_remote: bool
    revision: str | None = None
    config: str | None = None
    split: str | None = None  # or a configuration, where there is no `config`

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.place}{revision}" if self.is_remote else self.place


@dataclass(frozen=True)
class HubFiles:
    """The Parquet files that a source means: `part` names the configuration and the split, where there are such."""

    folder: Path
    files: list[Path]
    part: tuple[str, ...] = ()


def is_remote(name: str | Path) -> bool:
    """Return whether a name is of a dataset of the hub; a `Path` holds one slash of `hf://`."""
    return str(name).startswith("hf:/")


def parse_source(name: str | Path) -> HubSource:
    """Return what a name means; `DatasetError` for one that the hub cannot have."""
    text = str(name)
    if not is_remote(text):
        place, _, part = (text, "", "") if Path(text).exists() else text.rpartition(":")
        return HubSource(place or text, False, None, *_config_and_split(part))
    match = REMOTE.fullmatch(text)
    try:
        if match is None or match["place"].count("/") != 1:
            raise HFValidationError
        validate_repo_id(match["place"])
    except HFValidationError as error:
        expected = "expected hf://owner/set, with @revision and :split or :config/split where needed"
        raise DatasetError(f"{expected}, got {text.replace('hf:/', 'hf://', 1).replace(':///', '://')}") from error
    return HubSource(match["place"], True, match["revision"], *_config_and_split(match["part"] or ""))


def _config_and_split(part: str) -> tuple[str | None, str | None]:
    config, _, split = part.rpartition("/")
    return config or None, split or None


def fetch_head(source: HubSource) -> Path:
    """Return the directory of a dataset; of a remote one it holds the card and other metadata, downloaded if needed."""
    if source.is_remote:
        return _snapshot(source.place, source.revision, HEAD)
    if not Path(source.place).is_dir():
        raise DatasetError(f"expected a dataset directory or hf://owner/set, got {source}")
    return Path(source.place)


def fetch_files(source: HubSource, folder: Path, patterns: tuple[str, ...]) -> Path:
    """Return the directory of a dataset with the files of `patterns`, of the same commit as `folder`."""
    if not source.is_remote:
        return folder
    return _snapshot(source.place, commit_of(folder) or source.revision, patterns)


def commit_of(folder: Path) -> str | None:
    """Return the commit of a dataset that was downloaded; its directory is named by it."""
    return folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None


@cache  # a run uses one revision of a dataset
def _snapshot(place: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        return Path(snapshot_download(place, repo_type="dataset", revision=revision, allow_patterns=[*HEAD, *patterns]))
    except Exception as error:  # of the network, of the cache, or of the hub
        reason = " ".join(str(error).split()) or type(error).__name__
        at = f"@{revision}" if revision else ""
        raise DatasetError(f"hf://{place}{at} is neither here nor to be had: {reason:.200}") from error


def split_files(source: HubSource) -> HubFiles:
    """Return the files of the split that a source means."""
    folder = fetch_head(source)
    configs = read_configs(folder)
    if source.is_remote:
        wanted = _choose(source, configs)[2] if configs else _likely_patterns(source)
        folder = fetch_files(source, folder, tuple(wanted))
    if not configs:
        try:
            found = get_data_patterns(str(folder))
        except (FileNotFoundError, ValueError) as error:
            raise DatasetError(f"{source}: expected Parquet files, found none") from error
        configs = {"default": {str(split): [str(one) for one in patterns] for split, patterns in found.items()}}
    config, split, patterns = _choose(source, configs)
    files = sorted({file for pattern in patterns for file in _resolve(pattern, folder)})
    if not files:
        raise DatasetError(f"{source}: expected Parquet files of split {split}, found none for {', '.join(patterns)}")
    return HubFiles(folder, files, (config, split))


def read_configs(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the patterns of each configuration's splits, as a dataset's card names them; empty if it does not."""
    found: dict[str, dict[str, list[str]]] = {}
    configs = read_card(folder).get("configs") or []
    try:
        for config in configs:
            if config.get("data_files"):
                prefix = f"{config['data_dir']}/" if config.get("data_dir") else ""
                patterns = sanitize_patterns(config["data_files"])
                found[printable(str(config.get("config_name", "default")))] = {
                    printable(split): [_plain_pattern(f"{prefix}{one}") for one in those]
                    for split, those in patterns.items()
                }
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DatasetError(f"{folder / CARD} is damaged: {str(error).splitlines()[0]:.200}") from error
    return found


def read_card(folder: Path) -> dict[str, Any]:
    """Return the metadata of a dataset's card; empty without one."""
    file = folder / CARD
    if not file.is_file():
        return {}
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_CARD + 1)[:MAX_CARD].decode("utf-8-sig")
        if not text.startswith("---"):
            return {}
        block = text.replace("\r\n", "\n").split("\n---", 1)[0]
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(block)):
            raise ValueError("its metadata uses aliases of YAML")  # they may stand for values without bounds
        return DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise DatasetError(f"{file} is damaged: {' '.join(str(error).split()):.200}") from error


def _plain_pattern(pattern: str) -> str:
    """Refuse a pattern of files that are not the dataset's own."""
    if "://" in pattern or "::" in pattern or pattern.startswith(("/", "~")) or ".." in Path(pattern).parts:
        raise ValueError(f"expected files of the dataset, got {printable(pattern)}")
    return pattern


def _resolve(pattern: str, folder: Path) -> list[Path]:
    try:
        found = [Path(file) for file in resolve_pattern(pattern, str(folder))]
    except FileNotFoundError:
        return []
    return [file for file in found if file.suffix == ".parquet"]


def _likely_patterns(source: HubSource) -> list[str]:
    """Return which files to download of a dataset whose card names none."""
    words = [word for word in (source.config, source.split) if word]
    return [f"*{'*'.join(words)}*.parquet"] if words else ["*.parquet"]


def _choose(source: HubSource, configs: Mapping[str, Mapping[str, list[str]]]) -> tuple[str, str, list[str]]:
    """Return the configuration and the split that a source means, and the patterns of its files."""
    config, split = source.config, source.split
    if config is None:
        usual = _usual(configs, "default")
        if split is not None and (usual is None or split not in configs[usual]) and split in configs:
            config, split = split, None
        else:
            config = usual
    if config is None or config not in configs:
        raise DatasetError(_expected(source, "configuration", config, list(configs)))
    splits = configs[config]
    if split is None:
        split = _usual(splits, "train")
    if split is None or split not in splits:
        raise DatasetError(_expected(source, "split", split, list(splits)))
    return config, split, list(splits[split])


def _usual(choices: Mapping[str, Any], name: str) -> str | None:
    return next(iter(choices)) if len(choices) == 1 else name if name in choices else None


def _expected(source: HubSource, kind: str, name: str | None, choices: list[str]) -> str:
    shown = ", ".join(choices[:SHOWN]) + (f" and {len(choices) - SHOWN} more" if len(choices) > SHOWN else "")
    if name is None:
        return f"{source}: expected a {kind}, as in {source}:{choices[0]}; it has {shown}"
    return f"{source}: expected a {kind}, got {printable(name)}; nearest: {nearest(name, choices)}; it has {shown}"
