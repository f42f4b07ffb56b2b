"""DAgger (Ross et al. 2011): the policy plays, an expert labels the states it visits, and it learns from all data.

    python -m agents.dagger --init runs/clone/last --data data/carnival --games Carnival --out runs/dagger
    python -m agents.dagger --config policy --init runs/clone/last --data data/carnival data/mspacman --out runs/dagger

Each iteration records whole games of the current policy, asks the expert for the value of every action at every few
steps (soft labels, `agents.bc_dataset`), and trains on the demonstrations and on all recordings so far. Iteration K
is stored in `iteration-K`: recordings, training and `last.json`. The same command resumes a run, to the same weights.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from agents import record
from agents.clone import clone
from agents.clone_config import CloneTraining
from agents.dagger_config import CONFIGS, SECTIONS, DaggerConfig, DaggerOptions
from agents.expert_self_agreement import expert_self_agreement
from agents.model_limits import NO_LIMITS, ModelLimits
from common.command import command, run
from common.errors import UserError
from common.files import write_text_atomically
from common.results import new_result, read_result, write_result
from envs.episodes import EpisodeDataset
from envs.games import find_game
from envs.protocol import MACHADO2018
from vlm import checkpoint
from vlm.training.config import parse_config
from vlm.training.fit import require_same_run

RATES = ("learning_rate", "connector_learning_rate", "encoder_learning_rate", "auxiliary_learning_rate")


def games_of(games: Sequence[str], init: Path) -> list[str]:
    """Return the names of the games to improve in: those asked for, or all that a checkpoint was trained on."""
    trained = checkpoint.read_training(init).get("games") or ()
    if not games and not trained:
        raise UserError(f"{init} was trained on no game; name one with --game")
    return [find_game(game).name for game in games or trained]


def run_dagger(config: DaggerConfig) -> Path:
    """Run all iterations from a checkpoint; return the last one's."""
    if config.model.init is None:
        raise UserError("--init is missing: the checkpoint to improve")
    options, out, current = config.dagger, config.run.out, config.model.init
    require_same_run(config, ignore=("iterations",))
    games, data = games_of(options.games, current), list(config.data.data)
    limits = ModelLimits(config.model.image_tokens, config.model.history)  # as in training
    noise = {game: expert_self_agreement(out, game, options.expert_of(game)) for game in games}
    rows: list[dict[str, Any]] = [{"label_noise_of": game, **found} for game, found in noise.items()]
    with SummaryWriter(str(out)) as writer:
        for number in range(options.iterations):
            place = out / f"iteration-{number}"
            recordings = {game: collect_iteration(options, game, current, place, number, limits) for game in games}
            for game, recording in recordings.items():
                row = {"iteration": number, "game": game, "checkpoint": checkpoint.content_hash(current)}
                row |= rollout_metrics(EpisodeDataset(recording))
                rows.append(row | {"expert_self_agreement": noise[game]["agreement"]})
                log_metrics(rows[-1], writer)
            file = out / "dagger.json"  # a resumed run keeps what it tells of the beginning
            result = read_result(file) if file.exists() else new_result("dagger", MACHADO2018.to_dict(), [])
            write_result(file, result | {"rows": rows})
            data += [recording for recording in recordings.values() for _ in range(options.recording_weight)]
            current = train_iteration(config, data, current, place, number)
    return current


def collect_iteration(
    options: DaggerOptions, game: str, policy: Path, place: Path, number: int, limits: ModelLimits = NO_LIMITS
) -> Path:
    """Record an iteration's games of the policy with the expert's labels, or what is missing; return the dataset."""
    args = record.Args(
        game=game,
        out=place / f"recorded-{game}",
        agent=f"vlm:{policy}",
        expert=options.expert_of(game),
        label_every=options.label_every,
        episodes=options.episodes,
        seed=options.rollout_seed + number,
        temperature=options.rollout_temperature,
        engine=options.rollout_engine,
        num_envs=options.rollout_num_envs,
        limits=limits,
    )
    return record.record(args)


def train_iteration(config: DaggerConfig, data: Sequence[Path], init: Path, place: Path, number: int) -> Path:
    """Train an iteration on all data so far, or resume it; return its checkpoint."""
    finished = place / "last.json"
    if finished.exists():
        return Path(json.loads(finished.read_text())["checkpoint"])
    decay, rates = config.dagger.lr_decay**number, vars(config.optimizer)
    decayed = {name: rates[name] * decay for name in RATES if rates[name]}
    settings = CloneTraining(**{name: getattr(config, name) for name in SECTIONS})
    found = clone(settings.replace(data=tuple(data), out=place / "trained", init=init, **decayed))
    write_text_atomically(finished, json.dumps({"checkpoint": str(found)}) + "\n")
    return found


def rollout_metrics(data: EpisodeDataset) -> dict[str, Any]:
    """Return a recording's scores, its number of labels, and how often the policy did what the expert would have."""
    labelled = ~np.isnan(data.action_values).all(axis=1)
    values = data.action_values[labelled]
    best = np.where(np.isfinite(values), values, -np.inf).argmax(axis=1)
    return {
        "expert": data.info.labels,
        "scores": data.scores,
        "labels": int(labelled.sum()),
        "action_accuracy": float((data.actions[labelled] == best).mean()),
    }


def log_metrics(row: dict[str, Any], writer: SummaryWriter) -> None:
    """Print an iteration's metrics and write them to TensorBoard."""
    game, iteration, accuracy, mean = row["game"], row["iteration"], row["action_accuracy"], np.mean(row["scores"])
    writer.add_scalar(f"{game}/score", mean, iteration)
    writer.add_scalar(f"{game}/action_accuracy", accuracy, iteration)
    print(
        f"iteration {iteration}, {game}: {mean:,.0f} in {len(row['scores'])} games, {row['labels']} labels, "
        f"{accuracy:.0%} as the {row['expert']} (which agrees with itself in {row['expert_self_agreement']:.0%})"
    )


main = command(partial(parse_config, CONFIGS, description=__doc__), run_dagger, __doc__, "the policy is in {}")

if __name__ == "__main__":
    sys.exit(run(main))
