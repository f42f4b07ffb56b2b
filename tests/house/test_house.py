"""The house keeps its own rules: imports point down, names are its own, every command teaches."""

import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agents", "envs", "vlm", "pretrain", "experiments", "common")


def commands():
    """Every module with a `main`."""
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    return sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for file in files
        if 'if __name__ == "__main__"' in file.read_text()
    )


def test_imports_point_down():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_of_the_readme_are_there():
    assert {"agents.play", "agents.score", "agents.record", "agents.clone", "agents.experts.train_sb3"} <= set(
        commands()
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_that_teaches_by_example(command):
    done = subprocess.run([sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m {command}" in done.stdout
    assert "--out" in done.stdout


def test_no_other_distribution_claims_our_names():
    owners = importlib.metadata.packages_distributions()
    for room in ROOMS:
        assert set(owners.get(room, [])) <= {"pvplay"}, room


def test_every_module_and_every_test_says_what_it_is():
    files = [file for room in (*ROOMS, "tests") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 40
    for file in files:
        assert file.read_text().startswith('"""'), file


def test_all_modules_import():
    names = [m.name for room in ROOMS for m in pkgutil.walk_packages([str(ROOT / room)], f"{room}.")]
    assert len(names) > 30
    assert [importlib.import_module(name).__name__ for name in names] == names
