"""PPO on text answers beside SB3's PPO, rehearsed from nothing in tiny."""

import json
from dataclasses import replace

import numpy as np
import pytest

from agents.ppo_trainer import PPOTrainer
from agents.registry import default_expert
from common.interruption import interruptible
from envs import protocol
from envs.protocol import MACHADO2018
from experiments import run
from experiments.learning_curves import learning_tables
from experiments.run import Experiment, main
from experiments.sections import make_sections
from experiments.studies import from_rewards
from experiments.studies.from_rewards import FROM_REWARDS, SB3, TEXT, FromRewardsConfig
from vlm import checkpoint
from vlm.presets import build


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A study of seconds: games of 20 steps, two environments, three iterations."""
    short = replace(MACHADO2018, max_episode_frames=80)
    monkeypatch.setitem(protocol.PROTOCOLS, "machado2018", short)
    monkeypatch.setattr("agents.ppo.MACHADO2018", short)
    checkpoint.save(build("tiny", seed=7), tmp_path / "tiny", {"games": ["Carnival"], "play": {"temperature": 0.0}})
    few = {"num_envs": 2, "num_steps": 24, "num_iterations": 3, "num_epochs": 1, "minibatch_size": 24, "save_every": 1}
    return FromRewardsConfig(
        replace(FROM_REWARDS.text, init=tmp_path / "tiny", **few),
        replace(FROM_REWARDS.sb3, num_envs=2, steps=512, eval_every=256, curve_every=128),
        replace(FROM_REWARDS.scores, episodes=2, engine="torch"),
    )


@pytest.mark.slow
def test_one_command_trains_both_resumes_after_a_kill_and_draws_their_curves(
    config, tmp_path, monkeypatch, kill_at_step
):
    study = Experiment(
        from_rewards.prepare,
        lambda seeds, work: from_rewards.jobs(seeds, work, config),
        lambda seeds, work: from_rewards.draw(seeds, work, config),
    )
    monkeypatch.setitem(run.EXPERIMENTS, "from-rewards", study)
    work, file = tmp_path / "work", tmp_path / "from-rewards.json"
    words = ["from-rewards", "--seeds", "3", "--processes", "1", "--out", str(file), "--work", str(work)]
    steps = kill_at_step(PPOTrainer, 2, "train_step")
    with pytest.raises(KeyboardInterrupt), interruptible():
        main(words)
    assert main(words) == 0
    assert len(steps) == 4
    result = json.loads(file.read_text())
    curves = {name: [r for r in result["rows"] if r["learner"] == name and "seconds" in r] for name in (TEXT, SB3)}
    assert [row["frames"] for row in curves[TEXT]] == [192, 384, 576]
    assert [row["frames"] for row in curves[SB3]] == [512, 1024, 1536, 2048]
    for curve in curves.values():
        assert all(row["training_scores"] and row["points_per_step"] >= 0 for row in curve)
        assert (np.diff([0, *(row["seconds"] for row in curve)]) > 0).all()
    scored = {(r["learner"], r.get("temperature")) for r in result["rows"] if "scores" in r}
    assert scored == {(TEXT, 1.0), (SB3, 1.0), ("random", None)}
    assert file.with_suffix(".png").exists()
    (table,) = learning_tables(result["rows"])
    cells = dict(table.rows)
    assert cells[TEXT]["thousand frames"] == "1"
    assert {name for name, of in cells.items() if "score" in of} == {TEXT, SB3, "random"}
    (section,) = (s for s in make_sections({"from-rewards": result}, tmp_path) if s.name == "from-rewards")
    assert section.images == [file.with_suffix(".png")]


def test_both_learners_play_the_same_game_without_an_expert_of_its_own():
    games = {FROM_REWARDS.text.game, FROM_REWARDS.sb3.game, *FROM_REWARDS.scores.games}
    assert len(games) == 1
    assert default_expert(games.pop()) == "planner"
