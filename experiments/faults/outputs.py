"""The files of a run: whether each is whole, and how two runs differ."""

import hashlib
import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from safetensors import safe_open
from transformers.trainer_callback import TrainerState

from vlm.training.resumption import UNFINISHED

TIMES = ("seconds", "date", "steps_per_second")  # values that differ between equal runs
LOGS = "tfevents"


def visible_files(directory: Path) -> dict[str, Path]:
    """Return the files below a directory by their paths in it; those under a hidden name are in the making."""
    files = {file.relative_to(directory): file for file in sorted(directory.rglob("*")) if file.is_file()}
    return {str(name): file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}


def leftovers(directory: Path) -> list[str]:
    """Return what is hidden below a directory and no lock."""
    hidden = [path.relative_to(directory) for path in directory.rglob(".*")]
    return sorted(str(name) for name in hidden)


def torn_files(directory: Path) -> list[str]:
    """Return the files of known formats that cannot be read, and checkpoints without a state."""
    torn = [name for name, file in visible_files(directory).items() if not _is_whole(file)]
    checkpoints = [
        place for place in directory.rglob("checkpoint-*") if place.is_dir() and UNFINISHED not in place.parts
    ]
    stateless = [place for place in checkpoints if not (place / "trainer_state.json").is_file()]
    return torn + [str(place.relative_to(directory)) for place in stateless]


def _is_whole(file: Path) -> bool:
    try:
        if file.name == "trainer_state.json":
            TrainerState.load_from_json(str(file))
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                tensors.keys()
        elif file.suffix == ".parquet":
            parquet.read_table(file)
        elif file.suffix == ".zip":
            return zipfile.ZipFile(file).testzip() is None
        elif file.suffix == ".pkl":
            list(pickletools.genops(file.read_bytes()))
    except Exception:  # every reader has errors of its own
        return False
    return True


def contents(directory: Path, is_exact: bool = True) -> dict[str, Any]:
    """Return the content of every file but logs by its path: JSON without times, a digest of others.

    Of the checkpoints that a training resumes from, the names alone count, and so of all files if not `is_exact`; but a
    JSON file that is a list keeps its length.
    """
    found: dict[str, Any] = {}
    for name, file in visible_files(directory).items():
        if LOGS in name:
            continue
        if (place := _checkpoint_of(name)) is not None:
            found[place] = None
        elif file.suffix == ".json":
            values = _without_times(json.loads(file.read_text()))
            found[name] = values if is_exact else [None] * _entries(values)
        elif not is_exact:
            found[name] = None
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _checkpoint_of(name: str) -> str | None:
    parts = Path(name).parts
    inside = [number for number, part in enumerate(parts) if part.startswith("checkpoint-")]
    return str(Path(*parts[: inside[0] + 1])) if inside else None


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def differences(whole: dict[str, Any], resumed: dict[str, Any]) -> dict[str, list[str]]:
    """Return the paths that a resumed run lost, doubled (files or entries that are too many) or made differently."""
    found: dict[str, list[str]] = {"lost": [], "doubled": [], "different": []}
    for name in sorted({*whole, *resumed}):
        if name not in resumed or _entries(resumed[name]) < _entries(whole.get(name)):
            found["lost"].append(name)
        elif name not in whole or _entries(resumed[name]) > _entries(whole[name]):
            found["doubled"].append(name)
        elif whole[name] != resumed[name]:
            found["different"].append(name)
    return found


def _entries(content: Any) -> int:
    """Return the number of entries of a JSON file that is a list or a result with rows."""
    rows = content.get("rows", ()) if isinstance(content, dict) else content
    return len(rows) if isinstance(rows, list) else 0
