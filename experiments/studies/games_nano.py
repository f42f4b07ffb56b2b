"""The paper's claim about games at nano size: what do an unfrozen encoder and pixel value prediction add to play?

    python -m experiments.run games-nano

The five arms of `experiments.studies.conditions`, five training seeds, with all demonstrations and with a tenth of them: PVP should
matter most where they are few. Every arm starts from one model of the preset `micro` that was taught captions and
nothing of pixels or play, the semantic encoder of this experiment; it lies in `vlm/weights/micro`, so that arms on
different machines start from the same. (A vision transformer over patches learns to play nothing in steps that two
cores can afford: `experiments/LOG.md`.) Then come pixel values, or not, and then the same teacher's games are cloned
into one text policy, in the same number of steps, at the same rates. The teacher is `vlm/weights/micro-play`, which
sees no more than its pupils do, so that all of its play can be learnt from what is seen; searches of the emulator know
more, and in as many steps a pupil of theirs plays Ms. Pac-Man as random play does. (It was itself taught pixel values
before play; pupils get its answers, not its weights.) A policy plays 30 whole games of each on published seeds,
`machado2018`. A row holds the raw scores of one policy in one game, and beside them how well it foretells its teacher
in games kept for that: scores of weak policies are noisy, and a loss over a thousand decisions is not.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from filelock import FileLock

from agents import clone, record
from agents.bc_dataset import load_labelled_datasets
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from agents.vlm_agent import VlmAgent
from envs.atari import make_envs
from envs.episodes import INFO
from envs.games import find_game
from envs.protocol import MACHADO2018, Protocol, episode_seeds
from experiments.studies import pvp_nano
from experiments.studies.conditions import CONDITIONS, PVP, pretrain_condition, seconds_to_start
from experiments.studies.jobs import Job
from pretrain import captions
from vlm import checkpoint
from vlm.device import best_device
from vlm.pretrained import RELEASED_CAPTIONER, RELEASED_EXPERT
from vlm.sinusoidal_init import init_number_embeddings

SEEDS = (0, 1, 2, 3, 4)
PUBLISHED = 1000  # the seed of the games of training seed 0; each has the next
CLOSED = 7  # added to a teacher's seed for the games that no arm learns from

GAMES = ("Carnival", "MsPacman")
CAPTIONED = (*pvp_nano.NANO.games, *GAMES)
PIXELS = replace(  # plain frames of the games played and of six others: strange images are learnt too slowly by `micro`
    pvp_nano.NANO,
    games=(*GAMES, "SpaceInvaders", "Pong", "Breakout", "Alien", "Amidar", "DemonAttack"),
    strangers=(),
    preset="micro",
    tower=None,
    start=RELEASED_CAPTIONER,
    regimes=(replace(pvp_nano.FAMILIAR, steps=1000, images=16, questions=16, seconds_a_step=0.8),),
    encoder_learning_rate=1e-3,
    gaze=0,
    warmup_steps=100,
    images_full=8,
)


@dataclass(frozen=True)
class DemonstratorConfig:
    """Who demonstrates a game, how often and with how unsteady a hand; seed: of the games, below 1000.

    A game may have several: a pupil comes to states that a steady teacher never sees, and an unsteady one does. The
    agent `vlm` is `vlm/weights/micro-play`.
    """

    game: str
    agent: str
    episodes: int
    noise: float
    seed: int
    max_frames: int | None = None

    @property
    def name(self) -> str:
        """Who it is, a VLM by its weights: rows of a file are comparable where their teachers are the same."""
        return f"vlm-{checkpoint.content_hash(RELEASED_EXPERT)}" if self.agent == "vlm" else self.agent

    @property
    def spec(self) -> str:
        """The agent's word (`agents.registry`)."""
        return f"vlm:{RELEASED_EXPERT}" if self.agent == "vlm" else self.agent


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that the experiment fixes.

    frames: what is taught before play (`experiments.studies.pvp_nano`), from a model that `start_steps` of captions of the
    games `captioned` have taught; taught: where the training of pixels lies; teachers: of play; shares: of their
    demonstrations; clone_steps: of cloning with each share, fewer with fewer games; game_shares: of a step, more for
    the game that takes longer to learn; kept: games of each teacher that no arm learns from, and decisions of them
    that are foretold; temperature: of play, 1 for what was learnt and no sharper; games: played by each policy of each
    kind; lanes: games in step on a CPU, few, since lanes whose games have ended think on until the last has; engine: of
    play there (`agents.vlm_agent`).
    """

    frames: pvp_nano.ExperimentConfig = PIXELS
    captioned: tuple[str, ...] = CAPTIONED
    start_steps: int = 400
    taught: Path = Path("runs/games-nano")
    teachers: tuple[DemonstratorConfig, ...] = (
        DemonstratorConfig("Carnival", "vlm", 10, 0.05, 10),
        DemonstratorConfig("Carnival", "vlm", 10, 0.4, 12),
        DemonstratorConfig("MsPacman", "vlm", 10, 0.05, 40),
        DemonstratorConfig("MsPacman", "vlm", 10, 0.4, 42),
    )
    shares: tuple[float, ...] = (1.0, 0.1)
    kept: int = 3
    decisions: int = 1024
    clone_steps: tuple[int, ...] = (800, 300)
    warmup_steps: int = 40
    batch_size: int = 32
    game_shares: tuple[str, ...] = ("MsPacman=2",)
    learning_rate: float = 7e-4
    encoder_learning_rate: float = 1.2e-3
    temperature: float = 1.0
    games: int = 30
    lanes: int = 6
    engine: str = "openvino"
    protocol: Protocol = MACHADO2018
    workers: int = 1

    @property
    def games_taught(self) -> list[str]:
        """The games, each once."""
        return list(dict.fromkeys(teacher.game for teacher in self.teachers))


NANO = ExperimentConfig()


def prepare(setting: ExperimentConfig = NANO) -> None:
    """Record frames and demonstrations and teach captions, where that is not done yet."""
    pvp_nano.prepare(setting.frames)
    for teacher in setting.teachers:
        for share in setting.shares:
            demonstrations(setting, teacher, share)
        kept_games(setting, teacher)
    teach_captions(setting)


def teach_captions(setting: ExperimentConfig) -> Path:
    """Return the model that all arms start from, taught now if it is not there; its numbers are put in order."""
    assert setting.frames.start
    if setting.frames.start.exists():
        return setting.frames.start
    taught = captions.train_captions(
        captions.Args(
            data=tuple(str(pvp_nano.frame_dataset(setting.frames, game)) for game in setting.captioned),
            out=setting.taught / "captions",
            hold_episodes=setting.frames.hold,
            preset=setting.frames.preset,
            size=setting.frames.size,
            steps=setting.start_steps,
            warmup_steps=min(100, setting.start_steps),
            save_every=max(1, setting.start_steps // 4),
            workers=setting.workers,
        )
    )
    vlm = checkpoint.load(taught)
    init_number_embeddings(vlm)
    checkpoint.save(vlm, setting.frames.start, checkpoint.read_training(taught), dtype=torch.bfloat16)
    return setting.frames.start


def demonstrations(setting: ExperimentConfig, teacher: DemonstratorConfig, share: float) -> Path:
    """Return a share of a teacher's games, the first ones, recorded now if they are not there or not all there."""
    whole, episodes = _record(setting, teacher, teacher.episodes), max(1, round(teacher.episodes * share))
    return whole if episodes == teacher.episodes else _first_games(whole, episodes)


def _first_games(whole: Path, episodes: int) -> Path:
    """Return the first games of a dataset as one of their own."""
    place = whole.with_name(f"{whole.name}-first-{episodes}")
    with FileLock(whole.with_name(f"{place.name}.lock")):  # several arms ask for the same
        if not place.exists():
            building = whole.with_name(f"{place.name}.building")
            shutil.rmtree(building, ignore_errors=True)
            (building / "data").mkdir(parents=True)
            shutil.copy(whole / INFO, building)
            for file in sorted((whole / "data").glob("episode-*.parquet"))[:episodes]:
                shutil.copy(file, building / "data")
            building.rename(place)
    return place


def kept_games(setting: ExperimentConfig, teacher: DemonstratorConfig) -> Path:
    """Return games of a teacher that no arm learns from, recorded now if they are not there or not all there."""
    return _record(setting, replace(teacher, seed=teacher.seed + CLOSED), setting.kept, "kept-")


def _record(setting: ExperimentConfig, teacher: DemonstratorConfig, episodes: int, front: str = "") -> Path:
    place = setting.frames.data / f"{front}{teacher.name}-{teacher.game}-{episodes}-slips-{teacher.noise:g}"
    if len(list((place / "data").glob("episode-*.parquet"))) < episodes:
        record.record(
            record.Args(
                game=teacher.game,
                out=place,
                agent=teacher.spec,
                engine=setting.engine,
                episodes=episodes,
                seed=teacher.seed,
                noise=teacher.noise,
                max_frames=teacher.max_frames,
            )
        )
    return place


def jobs(seeds: Sequence[int] | None, work: Path, setting: ExperimentConfig = NANO) -> list[Job]:
    """Return the jobs: random play, then every arm with every seed and share of the demonstrations."""
    found = [Job({"arm": "random"}, 60, partial(measure_random, setting))]
    for seed in seeds or SEEDS:
        for share in setting.shares:
            for encoder, pvp in CONDITIONS:
                key = {"encoder": encoder, "pvp": pvp, "share": share, "seed": seed}
                whole = share == setting.shares[0]  # what comes after starts from the same
                start = seconds_to_start(setting.frames, encoder, pvp, seed, setting.taught) if whole else 0
                seconds = start + _steps(setting, share) * 0.8 + 360
                found.append(Job(key, seconds, partial(measure_arm, setting, encoder, pvp, share, seed, work)))
    return found


def _steps(setting: ExperimentConfig, share: float) -> int:
    """Return the steps of cloning with a share of the demonstrations."""
    return setting.clone_steps[setting.shares.index(share)]


def clone_args(setting: ExperimentConfig, encoder: str, share: float, seed: int, start: Path, out: Path) -> clone.Args:
    """Return how an arm is cloned."""
    return clone.Args(
        data=tuple(demonstrations(setting, teacher, share) for teacher in setting.teachers),
        out=out,
        init=start,
        readout=1.0,
        shares=setting.game_shares,
        steps=_steps(setting, share),
        warmup_steps=min(setting.warmup_steps, _steps(setting, share)),
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        encoder_learning_rate=0.0 if encoder == "frozen" else setting.encoder_learning_rate,
        save_every=max(1, _steps(setting, share) // 4),
        select_every=0,
        seed=seed,
        workers=setting.workers,
    )


def measure_arm(
    setting: ExperimentConfig, encoder: str, pvp: str, share: float, seed: int, work: Path
) -> list[dict[str, Any]]:
    """Train one arm, or go on with it, and let it play; return a row for each game."""
    start = pretrain_condition(setting.frames, encoder, pvp, seed, setting.taught)
    out = work / f"clone-{encoder}-{pvp}-{share:g}-{seed}"
    last = clone.clone(clone_args(setting, encoder, share, seed, start, out))
    foretold = heldout_expert_nll(setting, last)
    seen = read_frames(setting, start) if pvp == PVP else {}
    return [
        {
            "game": game,
            "checkpoint": checkpoint.content_hash(last),
            **seen.get(game, {}),
            "teachers": sorted({teacher.name for teacher in setting.teachers if teacher.game == game}),
            **foretold[game],
            "scores": play(setting, game, PUBLISHED + seed, last),
        }
        for game in setting.games_taught
    ]


def read_frames(setting: ExperimentConfig, model: Path) -> dict[str, dict[str, float]]:
    """Return for each game how far off, of 255, a model's answers about frames of held-out episodes of random play are:
    `read`, at all places, and `read_objects`, on small objects that move, which tell reading from remembering. This is
    what PVP has taught, before play is.
    """
    vlm, found = checkpoint.load(model), {}
    for game in setting.games_taught:
        own = replace(setting.frames, games=(game,))
        (probe,) = pvp_nano.open_probes(own, own.regimes[0], own.images_full)
        found[game] = _errors(pvp_nano.measure(vlm, own, probe, None, None), "read")
    return found


def _errors(row: dict[str, Any], name: str) -> dict[str, float]:
    return {name: row["mae"], f"{name}_objects": row["mae_small_objects"]}


def floors_of_reading(setting: ExperimentConfig, game: str) -> dict[str, float]:
    """Return what `read_frames` would be of answers that do not read: the image's mean, and that of each patch."""
    own = replace(setting.frames, games=(game,))
    rows = {row["floor"]: row for row in pvp_nano.measure_floors(own, own.regimes[0])}
    return {**_errors(rows["image mean"], "image_mean"), **_errors(rows["patch mean"], "patch_mean")}


@torch.no_grad()
def heldout_expert_nll(setting: ExperimentConfig, policy: Path) -> dict[str, dict[str, float]]:
    """Return for each game, in games of its teacher that no arm learns from, the cross-entropy of a policy with the
    teacher's soft targets in nats, `loss`, and the share of decisions whose best action it gives most, `agreed`.
    """
    vlm = checkpoint.load(policy)
    places, batch = tuple(kept_games(setting, teacher) for teacher in setting.teachers), setting.batch_size
    args = clone.Args(data=places, out=policy, readout=0.0, steps=setting.decisions // batch, batch_size=batch)
    lessons = load_labelled_datasets(places, args.targets, args.softness, args.hard_share)
    imitation, batches, _ = clone.make_imitation(vlm, lessons, args)
    found = [imitation.eval()(send_to_device(batches[step]["parts"], vlm.device)) for step in range(len(batches))]
    return {
        game: {
            name: float(torch.stack([figures[f"{game}_{name}"] for figures in found]).mean())
            for name in ("loss", "agreed")
        }
        for game in setting.games_taught
    }


def measure_random(setting: ExperimentConfig) -> list[dict[str, Any]]:
    """Return a row of random play for each game, and of what says nothing of pixels."""
    return [
        {"game": game, **floors_of_reading(setting, game), "scores": play(setting, game, PUBLISHED, None)}
        for game in setting.games_taught
    ]


@torch.no_grad()
def play(setting: ExperimentConfig, game_name: str, seed: int, policy: Path | None) -> list[float]:
    """Return the scores of whole games of a policy, or of random play, in the order of their seeds."""
    game, scores = find_game(game_name), [0.0] * setting.games
    gpu = best_device().type == "cuda"  # to which thirty games are as one
    with make_envs(game, setting.games if gpu else min(setting.lanes, setting.games), setting.protocol) as envs:
        engine = "torch" if gpu else setting.engine
        agent = (
            VlmAgent.load(policy, game, envs.action_names, "scores", setting.temperature, engine)
            if policy
            else RandomAgent(envs.action_names)
        )
        for turn in play_games(agent, envs, episode_seeds(seed, setting.games)):
            if turn.ended:
                scores[turn.game_index] = turn.score
    return scores
