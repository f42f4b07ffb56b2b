"""Behaviour cloning: teach the VLM to answer as its teacher, from one or several games' datasets, into one policy.

    python -m agents.clone --data data/carnival data/mspacman --out runs/clone --steps 4000
    python -m agents.clone --data data/dagger --init runs/clone/best --out runs/again --steps 2000
    python -m agents.clone --games Carnival MsPacman Pong Breakout SpaceInvaders Seaquest Qbert Freeway --out runs/eight

With `--games` the demonstrations are made first, by a planner that searches the emulator or by whom `--teachers` names.
The loss is the cross-entropy of the exact probability of each legal text answer (`vlm.decoding.candidate_scoring`), the same scores that
play uses. Where the dataset holds a teacher's value of every action, the target is soft: near-equal actions share it.
The encoder learns with the rest. A run that was killed goes on from its last checkpoint when the command is repeated.
Checkpoints are chosen by play on seeds kept for that (below 1000): the accuracy on frames says little about play.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from transformers import TrainerCallback

from agents.auxiliary_action_head import FILE as READOUT
from agents.auxiliary_action_head import AuxiliaryActionHead
from agents.bc_dataset import BCBatchDataset, LabelledDataset, load_labelled_datasets
from agents.demonstrations import DemonstrationsConfig, expert_normalized_score
from agents.rollout import play_games
from agents.vlm_agent import VlmAgent
from common.command import run
from common.errors import UserError
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import episode_seeds
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.device import is_main_process
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.prompts import action_prompt
from vlm.training.config import TrainConfig
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups, parameter_update_report, snapshot
from vlm.training.trainer import Objective, train

SELECTION_SEED = 900
EVAL_ENVS = 8  # of a trial's games: lanes whose games have ended think on until the last has


@dataclass(kw_only=True)
class Args(TrainConfig):
    """Clone a teacher's play into one text policy."""

    data: tuple[Path, ...]
    """Dataset directories of `agents.record`, of one game or of several."""
    out: Path
    """Where the run lives: checkpoints, TensorBoard, `best` and `last`."""
    preset: str = "nano"
    """The size of a new model."""
    init: Path | None = None
    """A checkpoint to start from, instead of a new model."""
    steps: int = 4000
    """Optimizer steps."""
    batch_size: int = 64
    """Decisions a step, shared evenly by the games, or by --shares."""
    shares: tuple[str, ...] = ()
    """What games have of a step where that is not the same, as in `--shares MsPacman=3`; the others have 1. For a game
    that takes longer to learn."""
    learning_rate: float = 3e-4
    """Peak learning rate of the decoder, after a linear warm-up and before a cosine to zero."""
    encoder_learning_rate: float = 1e-3
    """Peak learning rate of encoder and connector; 0 freezes the encoder."""
    readout: float | None = None
    """Weight of the loss of a plain net that reads the image tokens beside the decoder, in training only
    (`agents.auxiliary_action_head`); None is 1 for a new model and 0 with --init."""
    readout_first: float = 0.0
    """Share of the steps that begins with the readout alone, at twice the speed, until the encoder knows what to look
    for. For a decoder that cannot play yet: one that can is thrown back by it (`docs/log/`)."""
    targets: str = "soft"
    """soft: shares by the teacher's values; hard: the teacher's best action (or the player's, without a teacher)."""
    softness: float = 0.4
    """Temperature of soft targets, in units of the dataset's mean spread of values."""
    hard_share: float = 0.1
    """Share of a soft target that is its best action alone, so that ties are broken one way."""
    mirror: tuple[str, ...] = ()
    """Games shown mirrored left to right half of the time, with their actions mirrored too: where both sides of the
    screen obey the same rules, as in a symmetric maze, this doubles the data."""
    select_every: int = 1000
    """Steps between trials by play; 0: the last weights are the best."""
    select_games: int = 4
    """Whole games of each kind that a trial plays."""
    select_temperature: float = 0.0
    """The temperature that trials play at; 0 is greedy."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.readout is not None and self.readout < 0:
            raise UserError(f"--readout must be at least 0, got {self.readout}")
        if not 0 <= self.readout_first < 1:
            raise UserError(f"--readout-first must be at least 0 and less than 1, got {self.readout_first}")
        self.game_shares()
        if self.targets not in ("soft", "hard"):
            raise UserError(f"expected --targets soft or hard, got {self.targets!r}")
        if self.select_every and self.select_every % self.save_every:
            raise UserError("--select-every must be a multiple of --save-every")

    def game_shares(self) -> dict[str, float]:
        """Return the share of each game that `shares` names."""
        found = {}
        for given in self.shares:
            name, _, share = given.partition("=")
            if not share.replace(".", "", 1).isdecimal() or float(share) <= 0:
                raise UserError(f"--shares: expected GAME=NUMBER above 0, as in MsPacman=3, got {given!r}")
            found[find_game(name).name] = float(share)
        return found


class BehaviorCloningObjective(Objective):
    """Cloning as a lesson: the cross-entropy of the exact scores of the legal answers.

    With a readout of a weight above 0, its own cross-entropy is added.
    """

    vlm: PixelVLM

    def __init__(
        self,
        vlm: PixelVLM,
        prompts: dict[str, tuple[str, tuple[str, ...]]],
        bf16: bool | None,
        readout: AuxiliaryActionHead | None = None,
        weight: float = 1.0,
    ):
        super().__init__(vlm, bf16)
        self.readout, self.weight = readout, weight
        self.scorers = {game: CandidateScorer(vlm, prompt, names) for game, (prompt, names) in prompts.items()}

    def forward(self, parts: list[dict[str, Any]], alone: bool = False) -> dict[str, Tensor]:
        """Return the mean over games of the weighted cross-entropy, and each game's with its share of agreement.

        `alone` asks the readout and not the decoder.
        """
        figures: dict[str, Tensor] = {}
        for part in parts:
            found = self._part(**part, alone=alone and self.readout is not None)
            figures |= {f"{part['game']}_{name}": value for name, value in found.items()}
        of = lambda name: [value for key, value in figures.items() if key.endswith(name)]  # noqa: E731
        losses = [*of("_loss"), *(self.weight * read for read in of("_read"))]
        return {"loss": torch.stack(losses).sum() / len(parts), **figures}

    def _part(self, frames: Tensor, targets: Tensor, weights: Tensor, game: str, alone: bool) -> dict[str, Tensor]:
        def loss(log_probs: Tensor) -> Tensor:
            return (weights * -(targets * log_probs).sum(1)).sum() / weights.sum()

        figures: dict[str, Tensor] = {}
        with self.autocast():
            features = self.vlm.encode_images(self.vlm.preprocess(frames))
            if not alone:
                log_probs = self.scorers[game].log_probs(features)  # [B, A]
                agreed = (log_probs.argmax(1) == targets.argmax(1)).float().mean()
                figures = {"loss": loss(log_probs), "agreed": agreed}
            if self.readout:
                figures["read"] = loss(self.readout(game, features.tokens))
        return figures

    def save_auxiliary(self, directory: Path) -> None:
        """Write the readout."""
        if self.readout:
            self.readout.save(directory)

    def load_auxiliary(self, directory: Path) -> None:
        """Take the readout of `save_auxiliary`."""
        if self.readout:
            self.readout.restore(directory)


def evaluate_policy(
    vlm: PixelVLM, game_name: str, protocol: Any, games: int, temperature: float = 0.0, engine: str = "torch"
) -> list[float]:
    """Return the scores of whole games on the seeds that choosing checkpoints may use."""
    game = find_game(game_name)
    with make_envs(game, min(games, EVAL_ENVS), protocol) as envs:
        agent = VlmAgent(vlm, game.title, envs.action_names, temperature=temperature, engine=engine)
        turns = play_games(agent, envs, episode_seeds(SELECTION_SEED, games))
        return [turn.score for turn in turns if turn.ended]


class CheckpointSelectionCallback(TrainerCallback):
    """Plays at the checkpoints that `--select-every` names and keeps the best weights in `best`."""

    def __init__(self, args: Args, vlm: PixelVLM, lessons: list[LabelledDataset], training: dict[str, Any]):
        self.args, self.vlm, self.training = args, vlm, training
        self.file = args.out / "selection.json"
        self.trials: list[dict] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.teachers: dict[str, float] = {}
        for lesson in lessons:
            name, best = lesson.data.info.game, float(np.mean(lesson.data.scores))
            self.teachers[name] = max(best, self.teachers.get(name, best))
        self.protocols = {lesson.data.info.game: lesson.data.info.protocol for lesson in lessons}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Play, and keep the weights if no earlier ones played better."""
        step = state.global_step
        if not self.args.select_every or step % self.args.select_every or not state.is_world_process_zero:
            return
        started, threads = time.monotonic(), torch.get_num_threads()
        self.vlm.model.eval()
        scores = {
            game: evaluate_policy(self.vlm, game, protocol, self.args.select_games, self.args.select_temperature)
            for game, protocol in self.protocols.items()
        }
        self.vlm.model.train()
        torch.set_num_threads(threads)
        trial = {"step": step, "of_teacher": expert_normalized_score(scores, self.teachers), "scores": scores}
        better = all(trial["of_teacher"] > past["of_teacher"] for past in self.trials if past["step"] < step)
        self.trials = [past for past in self.trials if past["step"] < step] + [trial]
        self.file.write_text(json.dumps(self.trials, indent=1))
        means = ", ".join(f"{game} {np.mean(found):.0f}" for game, found in scores.items())
        seconds = time.monotonic() - started
        print(f"\nstep {step}: {means} ({trial['of_teacher']:.2f} of the teacher, {seconds:.0f} s)", flush=True)
        if better:
            checkpoint.save(self.vlm, self.args.out / "best", {**self.training, "selected": trial})


def training_record(args: Args, lessons: list[LabelledDataset]) -> dict[str, Any]:
    """Return what a checkpoint tells of its making."""
    datasets = [
        {**lesson.data.info.to_dict(), "games": len(lesson.data.seeds), "decisions": len(lesson.rows),
         "mean_score": float(np.mean(lesson.data.scores))}
        for lesson in lessons
    ]  # fmt: skip
    return {
        **args.record(),
        "games": sorted({lesson.data.info.game for lesson in lessons}),
        "datasets": datasets,
        "started_from": checkpoint.read_training(args.init) if args.init else None,
    }


def check_same_run(args: Args) -> None:
    """Let a run go on only with the arguments that it began with; rounds may be added (`agents.dagger`)."""
    file = args.out / "arguments.json"
    now = {name: value for name, value in args.plain().items() if name != "rounds"}
    if file.exists():
        before = json.loads(file.read_text())
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise UserError(f"{args.out} holds a run with another {', '.join(changed)}; choose another --out")
    if is_main_process():
        args.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(now, indent=1))


def make_readout(vlm: PixelVLM, lessons: list[LabelledDataset], args: Args) -> AuxiliaryActionHead | None:
    """Return the readout that the arguments ask for: that of the run that is gone on from, or one with new weights."""
    if args.readout == 0 or (args.readout is None and args.init):
        return None
    games = {
        lesson.data.info.game: (*lesson.data.frame(0).shape[:2], len(lesson.data.info.action_names))
        for lesson in lessons
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        readout = AuxiliaryActionHead(vlm, games)
    if args.init and (args.init.parent / READOUT).is_file():
        readout.restore(args.init.parent)
    return readout


def make_imitation(
    vlm: PixelVLM, lessons: list[LabelledDataset], args: Args
) -> tuple[BehaviorCloningObjective, BCBatchDataset, list[dict]]:
    """Return cloning as a lesson, its batches and the optimizer's groups, frozen what the arguments freeze."""
    prompts = {
        lesson.data.info.game: (
            action_prompt(find_game(lesson.data.info.game).title, lesson.data.info.action_names),
            lesson.data.info.action_names,
        )
        for lesson in lessons
    }
    plan = ModuleLearningRates(
        encoder=args.encoder_learning_rate or None,
        connector=args.encoder_learning_rate or args.learning_rate,
        decoder=args.learning_rate,
    )
    groups = parameter_groups(vlm, plan, args.weight_decay)
    readout = make_readout(vlm, lessons, args)
    if readout:
        rate = args.encoder_learning_rate or args.learning_rate
        groups.append({"params": list(readout.parameters()), "lr": rate, "weight_decay": args.weight_decay})
    mirrored = {find_game(name).name for name in args.mirror}
    alone = round(args.readout_first * args.steps) if readout else 0
    batches = BCBatchDataset(
        lessons, vlm.history, args.batch_size, args.steps, args.seed, mirrored, alone, args.game_shares()
    )
    return BehaviorCloningObjective(vlm, prompts, args.bf16, readout, args.readout or 1.0), batches, groups


Mix = Callable[
    [PixelVLM, BehaviorCloningObjective, BCBatchDataset], tuple[Objective, Any]
]  # cloning and its batches, among other tasks


def clone(args: Args, mix: Mix | None = None) -> Path:
    """Train; return the directory of the best checkpoint. `mix` may put other tasks beside cloning."""
    lessons = load_labelled_datasets(args.data, args.targets, args.softness, args.hard_share)
    check_same_run(args)
    vlm = checkpoint.load(args.init) if args.init else build(args.preset, args.seed)
    training = training_record(args, lessons)
    imitation, batches, groups = make_imitation(vlm, lessons, args)
    before = snapshot(vlm)
    taught, taught_batches = mix(vlm, imitation, batches) if mix else (imitation, batches)
    train(
        taught,
        groups,
        training,
        taught_batches,
        args.out,
        args,
        callbacks=[CheckpointSelectionCallback(args, vlm, lessons, training)],
    )
    if is_main_process():
        imitation.save_auxiliary(args.out)
    checkpoint.save(vlm, args.out / "last", {**training, "parameter_updates": parameter_update_report(before, vlm)})
    return args.out / ("best" if (args.out / "best").exists() else "last")


@dataclass(kw_only=True)
class Command(DemonstrationsConfig, Args):
    """Clone a teacher's play into one text policy."""

    data: tuple[Path, ...] = ()
    """Dataset directories of `agents.record`, of one game or of several."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_demonstrations()
        if not self.data and not self.games:
            raise UserError("expected --data, recorded games, or --games, whose demonstrations are recorded first")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Command, args=argv, description=__doc__)
    args.data = (*args.data, *args.record_demonstrations())
    print(f"the policy is in {clone(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
