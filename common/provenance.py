"""Where a number or a model comes from: command, commit, versions, machine. Standard library only."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PACKAGES = (
    *("ale-py", "gymnasium", "torch", "openvino", "transformers"),
    *("stable-baselines3", "sb3-contrib", "numpy"),
)
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


def changed() -> bool:
    """Return whether a tracked file differs from the commit; results, which commands write, do not count."""
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments/results"))


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that scores depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> str:
    """Return the processor's architecture and the number of its cores."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def command_line() -> str:
    """Return the command as one types it: `python -m room.module ...`."""
    program = Path(sys.argv[0])
    words = [program.name]
    if program.suffix == ".py" and program.is_relative_to(ROOT):
        module = ".".join(program.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        words = ["python", "-m", module]
    return shlex.join([*words, *sys.argv[1:]])
