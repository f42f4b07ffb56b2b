"""The house keeps its own rules: imports point down, names are its own, every command has help."""

import importlib
import importlib.metadata
import importlib.util
import itertools
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_an_example(command, capsys):
    package = importlib.util.find_spec(command).submodule_search_locations
    module = importlib.import_module(f"{command}.__main__" if package else command)
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert not stopped.value.code
    assert f"python -m {command}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["agents.play", "pretrain.referring"])
def test_a_command_runs_as_a_module(command):
    done = subprocess.run([sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout


def test_training_commands_are_short():
    trainings = ("agents/clone", "agents/dagger", "agents/ppo", "agents/experts/train_sb3", "pretrain/pvp")
    trainings += ("pretrain/captions", "pretrain/contrastive", "pretrain/referring/train")
    for training in trainings:
        assert len((ROOT / f"{training}.py").read_text().splitlines()) < 150, training


def test_no_other_distribution_claims_our_names():
    owners = importlib.metadata.packages_distributions()
    for room in ROOMS:
        assert set(owners.get(room, [])) <= {"pvplay"}, room


def dependencies():
    """The requirements of `pyproject.toml`, those of extras included, but for the project's own extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    return [one for one in map(Requirement, named) if one.name != project["name"]]


@pytest.mark.parametrize("dependency", dependencies(), ids=lambda one: one.name)
def test_every_dependency_has_bounds_and_a_licence(dependency):
    assert {"<", ">="} <= {bound.operator for bound in dependency.specifier}
    assert re.search(rf"\b{re.escape(dependency.name)}\b", (ROOT / "docs" / "licences.md").read_text())


def test_every_module_and_every_test_says_what_it_is():
    files = [file for room in (*ROOMS, "tests") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 40
    for file in files:
        assert file.read_text().startswith('"""'), file


def test_all_modules_import():
    names = [m.name for room in ROOMS for m in pkgutil.walk_packages([str(ROOT / room)], f"{room}.")]
    assert len(names) > 30
    assert [importlib.import_module(name).__name__ for name in names] == names
