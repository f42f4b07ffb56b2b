"""The paper's claim about games at nano size: what do an unfrozen encoder and pixel value prediction add to play?

    python -m experiments.run games-nano

The five arms of `experiments.arms`, five training seeds, with all demonstrations and with a tenth of them: PVP should
matter most where they are few. Every arm starts from the semantic encoder that the repository ships and clones the same
teachers' games of Carnival and Ms. Pac-Man into one text policy, in the same number of steps, at the same rates; then
it plays 30 whole games of each on published seeds, `machado2018`, greedily. A row holds the raw scores of one policy in
one game. Its encoder sees one frame at a time, as the paper's CLIP does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agents import clone, record
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from agents.vlm_agent import VlmAgent
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018, Protocol, episode_seeds
from experiments import pvp_nano
from experiments.arms import ARMS, seconds_to_start, teach_pixels
from experiments.jobs import Job
from vlm import checkpoint

SEEDS = (0, 1, 2, 3, 4)
PUBLISHED = 1000  # the seed of the games of training seed 0; each has the next


@dataclass(frozen=True)
class Teacher:
    """Who demonstrates a game, how often and with how unsteady a hand; seed: of the games, below 1000."""

    game: str
    agent: str
    episodes: int
    noise: float
    seed: int
    max_frames: int | None = None


@dataclass(frozen=True)
class Setting:
    """Everything that the experiment fixes.

    frames: the encoder and the training of pixels (`experiments.pvp_nano`); taught: where that lies; shares: of the
    demonstrations; games: played by each policy of each kind; lanes: games in step.
    """

    frames: pvp_nano.Setting = pvp_nano.NANO
    taught: Path = Path("runs/pvp-nano")
    teachers: tuple[Teacher, ...] = (
        Teacher("Carnival", "planner", 20, 0.05, 10),
        Teacher("MsPacman", "pathfinder", 40, 0.08, 40, 24_000),
    )
    shares: tuple[float, ...] = (1.0, 0.1)
    clone_steps: int = 800
    batch_size: int = 48
    learning_rate: float = 3e-4
    encoder_learning_rate: float = 3e-4
    games: int = 30
    lanes: int = 30
    protocol: Protocol = MACHADO2018
    workers: int = 1


NANO = Setting()


def prepare(setting: Setting = NANO) -> None:
    """Record frames and demonstrations, where they are not there yet."""
    pvp_nano.prepare(setting.frames)
    for share in setting.shares:
        for teacher in setting.teachers:
            demonstrations(setting, teacher, share)


def demonstrations(setting: Setting, teacher: Teacher, share: float) -> Path:
    """Return a share of a teacher's games, the first ones, recorded now if they are not there or not all there."""
    episodes = max(1, round(teacher.episodes * share))
    place = setting.frames.data / f"{teacher.agent}-{teacher.game}-{episodes}"
    if len(list((place / "data").glob("episode-*.parquet"))) < episodes:
        record.record(
            record.Args(
                game=teacher.game,
                out=place,
                agent=teacher.agent,
                episodes=episodes,
                seed=teacher.seed,
                noise=teacher.noise,
                max_frames=teacher.max_frames,
            )
        )
    return place


def jobs(seeds: Sequence[int] | None, work: Path, setting: Setting = NANO) -> list[Job]:
    """Return the jobs: random play, then every arm with every seed and share of the demonstrations."""
    found = [Job({"arm": "random"}, 60, partial(measure_random, setting))]
    for seed in seeds or SEEDS:
        for share in setting.shares:
            for encoder, pvp in ARMS:
                key = {"encoder": encoder, "pvp": pvp, "share": share, "seed": seed}
                whole = share == setting.shares[0]  # what comes after starts from the same
                start = seconds_to_start(setting.frames, encoder, pvp, seed, setting.taught) if whole else 0
                seconds = start + setting.clone_steps * 0.9 + 240
                found.append(Job(key, seconds, partial(measure_arm, setting, encoder, pvp, share, seed, work)))
    return found


def clone_args(setting: Setting, encoder: str, share: float, seed: int, start: Path, out: Path) -> clone.Args:
    """Return how an arm is cloned."""
    return clone.Args(
        data=tuple(demonstrations(setting, teacher, share) for teacher in setting.teachers),
        out=out,
        init=start,
        readout=1.0,
        steps=setting.clone_steps,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        encoder_learning_rate=0.0 if encoder == "frozen" else setting.encoder_learning_rate,
        save_every=max(1, setting.clone_steps // 4),
        select_every=0,
        seed=seed,
        workers=setting.workers,
    )


def measure_arm(setting: Setting, encoder: str, pvp: str, share: float, seed: int, work: Path) -> list[dict[str, Any]]:
    """Train one arm, or go on with it, and let it play; return a row for each game."""
    start = teach_pixels(setting.frames, encoder, pvp, seed, setting.taught)
    out = work / f"clone-{encoder}-{pvp}-{share:g}-{seed}"
    last = clone.clone(clone_args(setting, encoder, share, seed, start, out))
    rows = []
    for teacher in setting.teachers:
        scores = play(setting, teacher.game, PUBLISHED + seed, last)
        rows.append({"game": teacher.game, "checkpoint": checkpoint.content_hash(last), "scores": scores})
    return rows


def measure_random(setting: Setting) -> list[dict[str, Any]]:
    """Return a row of random play for each game."""
    return [
        {"game": teacher.game, "scores": play(setting, teacher.game, PUBLISHED, None)} for teacher in setting.teachers
    ]


@torch.no_grad()
def play(setting: Setting, game_name: str, seed: int, policy: Path | None) -> list[float]:
    """Return the scores of whole games of a policy, or of random play, in the order of their seeds."""
    game, scores = find_game(game_name), [0.0] * setting.games
    with make_envs(game, min(setting.lanes, setting.games), setting.protocol) as envs:
        agent = (
            VlmAgent.load(policy, game, envs.action_names, "scores", 0.0) if policy else RandomAgent(envs.action_names)
        )
        for turn in play_games(agent, envs, episode_seeds(seed, setting.games)):
            if turn.ended:
                scores[turn.game_index] = turn.score
    return scores
