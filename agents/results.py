"""Results as data: one JSON form for scores, runs and benchmarks, written whole or not at all.

Top level: `name, command, commit, dirty, date, versions, machine, protocol, seeds, seconds, rows`. Rows are flat.
Scores are raw; intervals are for readers to compute.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from envs.errors import EnvsError
from envs.protocol import Protocol

PACKAGES = ("ale-py", "gymnasium", "torch", "transformers", "stable-baselines3", "sb3-contrib", "numpy")
ROOT = Path(__file__).resolve().parent.parent


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_commit() -> str:
    """Return the checkout's commit, or 'unknown' outside a checkout."""
    return _git("rev-parse", "HEAD") or "unknown"


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that scores depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Return the processor's architecture and the number of its cores."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def new_result(name: str, protocol: Protocol | None, seeds: list[int]) -> dict[str, Any]:
    """Return a result without rows, with all that a reader needs to run it again."""
    return {
        "name": name,
        "command": command_line(),
        "commit": git_commit(),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "machine": machine(),
        "protocol": protocol.to_dict() if protocol else None,
        "seeds": seeds,
        "seconds": 0.0,
        "rows": [],
    }


def command_line() -> str:
    """Return the command as one types it: `python -m room.module ...`."""
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.is_relative_to(ROOT):
        module = ".".join(program.relative_to(ROOT).with_suffix("").parts)
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def write_result(file: Path, result: dict[str, Any]) -> None:
    """Write a result so that a reader finds the old one or the new one, whole."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, file)


def read_result(file: Path) -> dict[str, Any]:
    """Return a result; a file of another kind is refused by name."""
    try:
        result = json.loads(Path(file).read_text())
    except ValueError as error:
        raise EnvsError(f"{file} is damaged: {error}") from error
    if not isinstance(result, dict) or "rows" not in result:
        raise EnvsError(f"{file} is not a result file: it has no rows")
    return result
