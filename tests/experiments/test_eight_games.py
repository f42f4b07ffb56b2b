"""The recipe of eight games, rehearsed from nothing in tiny: demonstrations, cloning, DAgger, scores."""

import json
from dataclasses import replace

import pytest

from agents.bc_objective import BehaviorCloningObjective
from agents.demonstrations import DemonstrationsConfig
from common.interruption import interruptible
from envs import protocol
from envs.protocol import MACHADO2018
from experiments import run
from experiments.run import Experiment, main
from experiments.studies.eight_games import EIGHT_GAMES, GAMES, EightGamesConfig, jobs, prepare
from vlm import checkpoint
from vlm.presets import build

LAST_CLONING_STEP = 2


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A study of seconds: three games of 20 steps, whose experts are fast."""
    monkeypatch.setitem(protocol.PROTOCOLS, "machado2018", replace(MACHADO2018, max_episode_frames=80))
    monkeypatch.setattr("agents.expert_self_agreement.NUM_STATES", 2)
    monkeypatch.setattr("agents.expert_self_agreement.STATE_INTERVAL", 4)
    checkpoint.save(build("tiny", seed=7), tmp_path / "tiny", {"games": ["Carnival"], "play": {"temperature": 0.0}})
    games = ("Pong", "MsPacman", "Breakout")
    demonstrations = DemonstrationsConfig(games, demo_episodes=1, demo_dir=tmp_path / "data")
    short = {"batch_size": 6, "trainer": ("dataloader_num_workers=0", "warmup_steps=1", "save_steps=1")}
    return EightGamesConfig(
        (demonstrations,),
        EIGHT_GAMES.cloning.replace(init=tmp_path / "tiny", steps=LAST_CLONING_STEP, **short),
        EIGHT_GAMES.dagger.replace(games=games, iterations=2, episodes=1, steps=2, rollout_engine="torch", **short),
        replace(EIGHT_GAMES.scores, games=games, episodes=2, engine="torch"),
    )


@pytest.mark.slow
def test_one_command_goes_from_demonstrations_to_scores_and_resumes_after_a_kill(
    config, tmp_path, monkeypatch, kill_at_step
):
    small = Experiment(lambda: prepare(config), lambda seeds, work: jobs(seeds, work, config))
    monkeypatch.setitem(run.EXPERIMENTS, "eight-games", small)
    work, file = tmp_path / "work", tmp_path / "r.json"
    words = ["eight-games", "--seeds", "3", "--processes", "1", "--out", str(file), "--work", str(work)]
    steps = kill_at_step(BehaviorCloningObjective, LAST_CLONING_STEP + 4)  # in DAgger's second iteration
    with pytest.raises(KeyboardInterrupt), interruptible():
        main(words)
    assert not file.exists()
    assert main(words) == 0
    assert len(steps) == LAST_CLONING_STEP + 4 + 1
    rows = json.loads(file.read_text())["rows"]
    policy = work / "dagger-3" / "iteration-1" / "trained" / "last"
    assert {(row["agent"], row["game"]) for row in rows} == {
        (agent, game) for agent in (f"vlm:{policy}", "random") for game in ("Pong", "MsPacman", "Breakout")
    }
    assert all(row["training_seed"] == 3 and row["seed"] == 1000 and len(row["scores"]) == 2 for row in rows)
    labels = {data["agent"].partition(" ")[0] for data in checkpoint.read_training(policy)["datasets"]}
    assert len(labels) > 1, "the policy learns from demonstrations and from its own games"
    assert checkpoint.read_training(policy)["started_from"]["arguments"]["seed"] == 3


def test_every_game_has_demonstrations_and_is_scored():
    recorded = [game for group in EIGHT_GAMES.demonstrations for game in group.games]
    assert (
        sorted(recorded) == sorted(GAMES) == sorted(EIGHT_GAMES.scores.games) == sorted(EIGHT_GAMES.dagger.dagger.games)
    )
