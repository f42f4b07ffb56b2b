"""Every Python command in a block of the documents runs in the order shown, with tiny settings appended."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm import checkpoint
from vlm.presets import build

ROOT = Path(__file__).resolve().parents[2]
BLOCK_COMMAND = re.compile(r"^(?: {4})?python -m ([\w.]+) (.*)$", re.MULTILINE)
TRAINER = "--trainer save_steps=1 report_to=none dataloader_num_workers=0"
TINY = {
    "agents.record": "--episodes 3 --max-frames 120",
    "agents.play": "--max-frames 60",
    "agents.ask": "--frames 1",
    "agents.clone": f"--steps 1 --batch-size 4 {TRAINER}",
    "agents.dagger": f"--episodes 1 --label-every 100 --steps 1 --batch-size 4 {TRAINER}",
    "agents.ppo": "--num-iterations 1 --num-envs 2 --num-steps 4 --minibatch-size 4",
    "agents.export": "--temperatures 0 --episodes 1",
    "agents.experts.train_sb3": "--steps 256 --num-envs 2 --buffer-size 100 --eval-every 256 --eval-episodes 1",
    "pretrain.pvp": f"--preset tiny --steps 1 --images 1 --questions 2 {TRAINER}",
    "pretrain.referring": f"--steps 1 --images 1 --expressions 1 --val-episodes 1 {TRAINER}",
    "pretrain.referring.evaluation": "--count 1 --num-images 1",
    "pretrain.referring.show": "",
    "pretrain.reconstruct": "",
}
NO_DATA = "--preset tiny --demo-episodes 1 --demo-max-frames 40"


def block_commands(page):
    """Return (module, arguments) of the commands in a page's blocks, recordings first."""
    shown = BLOCK_COMMAND.findall((ROOT / page).read_text().replace("\\\n", " "))
    found = [(module, shlex.split(arguments)) for module, arguments in shown]
    return sorted(found, key=lambda command: command[0] != "agents.record")


def run(module, arguments):
    """Run a command with tiny settings after its own; its exit code must be 0."""
    is_package = importlib.util.find_spec(module).submodule_search_locations
    entry = importlib.import_module(f"{module}.__main__" if is_package else module)
    without_data = module == "agents.clone" and "--data" not in arguments
    arguments = [*arguments, *TINY[module].split(), *(NO_DATA.split() if without_data else ())]
    assert entry.main(arguments) == 0, (module, *arguments)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty directory where the released weights are found as in the repository."""
    (tmp_path / "vlm").symlink_to(ROOT / "vlm")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/experts.md", "docs/model.md"])
def test_the_commands_of_a_page_run_one_after_the_other(page, workplace):
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save("frame.png")
    commands = block_commands(page)
    assert len(commands) > 1
    for module, arguments in commands:
        run(module, arguments)


@pytest.mark.slow
def test_the_commands_about_segmentation_run_on_recorded_games_and_on_refcoco(workplace, write_refcoco):
    checkpoint.save(build("tiny", seed=0), workplace / "runs" / "pvp" / "last", {})
    (workplace / "data").mkdir()
    write_refcoco("train testA", (40, 60), 5, 5, 25, 25).rename(workplace / "data" / "refer")
    run("agents.record", ["--game", "MsPacman", "--agent", "random", "--out", "data/random-MsPacman"])
    commands = block_commands("docs/segmentation.md")
    assert {"agents.record", "agents.play", "pretrain.referring.evaluation"} <= {module for module, _ in commands}
    for module, arguments in commands:
        run(module, arguments)
