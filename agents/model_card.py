"""The card of a checkpoint for the Hugging Face hub: scores by game, training, licence, how to load it, a replay.

    python -m agents.score --agents vlm:runs/exported --games Carnival --seeds 1000 1001 --out scores.json
    python -m agents.model_card --checkpoint runs/exported --scores scores.json --video carnival.mp4 --license mit

`README.md` is written into the checkpoint, and the video beside it as `replay`. Of the scores, files of `agents.score`,
those that were made with these very weights are told, as `model-index` with protocol and seeds. `hf upload OWNER/NAME
DIR` publishes a checkpoint.
"""

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from pydantic import BaseModel

from agents.score_rows import Row, group_rows
from agents.score_table import mean_interval
from common.command import command, run
from common.errors import UserError
from common.files import atomic_file
from common.json_file import checked
from common.markdown import card_text, code_block, markdown_table, plain, require_licence
from common.results import read_result
from envs.games import find_game
from vlm import checkpoint
from vlm.checkpoint_files import METADATA, TRAINING, read_image_config, stored_sizes

CARD = "README.md"
VIDEOS = (".mp4", ".webm", ".gif")
MAX_STARTS = 20  # trainings before the last that a card tells
USE = "hf download OWNER/NAME --local-dir policy\npython -m agents.play --game {game} --agent vlm:policy"
PYTHON_USE = """from pathlib import Path

from vlm import checkpoint

vlm = checkpoint.load(Path("policy"))"""
SETTINGS = ("decode", "temperature", "engine", "image_tokens", "history", "max_new_tokens", "few_shot")


class _Dataset(BaseModel):
    game: str = ""
    agent: str = ""
    labels: str | None = None
    games: int | None = None
    steps: int | None = None
    mean_score: float | None = None


class _Play(BaseModel):
    temperature: float | None = None
    seed: int | None = None


class _Training(BaseModel):
    """What a card tells of `training.json`."""

    command: str = ""
    commit: str = ""
    versions: dict[str, str] = {}
    games: list[str] | None = None
    datasets: list[_Dataset] = []
    play: _Play = _Play()
    started_from: "_Training | None" = None


@dataclass(frozen=True)
class CardOptions:
    """What goes into the card of a checkpoint."""

    scores: tuple[Path, ...] = ()
    """Results of `agents.score`; the scores made with the checkpoint's weights are told."""
    video: Path | None = None
    """A replay, an mp4, webm or gif of `agents.play`, copied beside the card."""
    license: str | None = None
    """The licence, as the hub names it: mit, apache-2.0. Without it none is named."""
    title: str | None = None
    """The model's name in the card, by default the name of its directory."""

    def __post_init__(self) -> None:
        require_licence(self.license)
        if self.video is not None and self.video.suffix.lower() not in VIDEOS:
            raise UserError(f"expected --video, a file that ends in {', '.join(VIDEOS)}, got {self.video}")

    def require_files(self) -> None:
        """Refuse a video that is not there; scores are refused by their reader."""
        if self.video is not None and not self.video.is_file():
            raise UserError(f"expected --video, a file, got {self.video}, which is none")


@dataclass(frozen=True)
class ScoreLine:
    """The pooled scores of a game under one setting."""

    game: str
    mean: float
    low: float
    high: float
    games: int
    seeds: tuple[int, ...]
    protocol: dict[str, Any]
    settings: dict[str, Any]


def read_scores(files: Sequence[Path], content_hash: str) -> list[ScoreLine]:
    """Return the scores in result files that were made with weights of a hash; `UserError` if a file holds none."""
    found = []
    for file in files:
        result = read_result(file)
        rows = [row for row in result["rows"] if row.get("checkpoint") == content_hash and row.get("scores")]
        if not rows:
            others = ", ".join(sorted({str(row.get("checkpoint")) for row in result["rows"]} - {"None"})) or "none"
            raise UserError(f"{file}: expected scores of weights {content_hash}, got those of {others}")
        if any(isinstance(row.get(name), dict | list) for row in rows for name in SETTINGS):
            raise UserError(f"{file} is damaged: expected numbers and words for {', '.join(SETTINGS)}")
        found += [_score_line(group, result["protocol"] or {}) for group in group_rows(rows, _label).values()]
    return sorted(found, key=lambda line: line.game)


def _label(row: Row) -> str:
    return "this model"


def _score_line(rows: list[Row], protocol: dict[str, Any]) -> ScoreLine:
    mean, low, high = mean_interval([row["scores"] for row in rows])
    return ScoreLine(
        game=find_game(str(rows[0]["game"])).name,
        mean=mean,
        low=low,
        high=high,
        games=int(np.sum([len(row["scores"]) for row in rows])),
        seeds=tuple(sorted(int(row.get("seed") or 0) for row in rows)),
        protocol=protocol,
        settings={name: rows[0][name] for name in SETTINGS if rows[0].get(name) is not None},
    )


def eval_result(line: ScoreLine) -> EvalResult:
    """Return a score as the hub's `model-index` holds it."""
    return EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=f"ALE/{line.game}-v5",
        dataset_name=find_game(line.game).title,
        dataset_args={"protocol": line.protocol, "seeds": list(line.seeds)},
        metric_type="mean_reward",
        metric_name=f"mean score of {line.games} whole games",
        metric_value=round(line.mean, 2),
        metric_args={"confidence_interval_95": [round(line.low, 2), round(line.high, 2)], **line.settings},
    )


def model_card(directory: Path, options: CardOptions, name: str, replay: str | None = None) -> ModelCard:
    """Return the card of a checkpoint; `replay` is the file of its video, beside the card."""
    training = _read_training(directory)
    lines = read_scores(options.scores, checkpoint.content_hash(directory))
    title = options.title or name
    data = ModelCardData(
        license=options.license,
        library_name="transformers",
        pipeline_tag="reinforcement-learning",
        tags=["atari", "arcade-learning-environment", "vision-language-model", "behavior-cloning", "pvplay"],
        model_name=title,
        eval_results=[eval_result(line) for line in lines] or None,
    )
    sections = [
        f"# {plain(title)}",
        "A vision-language model that plays Atari games from their frames and answers with a text action.",
        *([f"[Replay]({replay})"] if replay else []),
        "## Scores",
        markdown_table([_told(line) for line in lines]) if lines else "None are told here.",
        "## Model",
        markdown_table([{"": key, " ": value} for key, value in _facts(directory, training).items()]),
        "## Training",
        *_training_sections(training),
        "## Use",
        code_block(USE.format(game=_playable_game(training))),
        code_block(PYTHON_USE, "python"),
        f"Plain transformers load it too (`AutoModelForImageTextToText`); `{METADATA}` tells how frames are prepared.",
        "Licence: " + (plain(options.license) if options.license else "none was named; ask its owner."),
    ]
    return ModelCard(card_text(data.to_yaml(), sections))


def _told(line: ScoreLine) -> dict[str, Any]:
    return {
        "game": find_game(line.game).title,
        "mean": f"{line.mean:,.1f}",
        "95 % interval": f"{line.low:,.1f} to {line.high:,.1f}",
        "games": line.games,
        "seeds": ", ".join(map(str, line.seeds)),
        "protocol": line.protocol.get("name", "unknown"),
        "settings": ", ".join(f"{name} {value}" for name, value in line.settings.items()),
    }


def _facts(directory: Path, training: _Training) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "weights": f"{checkpoint.content_hash(directory)}, {sum(stored_sizes(directory).values()):,} values",
        "games": ", ".join(training.games or []) or "none",
    }
    if (directory / METADATA).is_file():
        facts["frames of an input"] = read_image_config(directory).history
    if training.play.temperature is not None:
        facts["temperature"] = f"{training.play.temperature:g}"
        if training.play.seed is not None:
            facts["temperature"] += f", chosen by play on seed {training.play.seed}"
    return facts


def _training_sections(training: _Training) -> list[str]:
    if not training.command:
        return ["Nothing is known of it."]
    sections = [code_block(training.command)]
    made = [f"commit {training.commit}"] if training.commit else []
    if told := ", ".join([*made, *(f"{name} {version}" for name, version in training.versions.items())]):
        sections.append(plain(told))
    rows = [
        {
            "game": data.game,
            "played by": data.agent,
            "labels": data.labels or "none",
            "games": "" if data.games is None else data.games,
            "steps": "" if data.steps is None else data.steps,
            "mean score": "unknown" if data.mean_score is None else f"{data.mean_score:,.1f}",
        }
        for data in training.datasets
    ]
    sections += [markdown_table(rows)] if rows else []
    earlier: list[str] = []
    before = training.started_from
    while before is not None and len(earlier) < MAX_STARTS:
        earlier += [before.command] if before.command else []
        before = before.started_from
    return (
        [*sections, "It started from the result of, the latest first", *map(code_block, earlier)]
        if earlier
        else sections
    )


def _playable_game(training: _Training) -> str:
    """Return a game for a command that readers copy: one that there is, whatever the file names."""
    for name in training.games or []:
        with suppress(UserError):
            return find_game(name).name
    return "Carnival"


def _read_training(directory: Path) -> _Training:
    return checked(checkpoint.read_training(directory), _Training, directory / TRAINING)


def write_model_card(directory: Path, options: CardOptions, name: str) -> None:
    """Write a checkpoint's card and its replay beside it."""
    replay = None if options.video is None else f"replay{options.video.suffix.lower()}"
    card = model_card(directory, options, name, replay)
    if options.video is not None and replay is not None:
        with atomic_file(directory / replay) as temporary:
            shutil.copyfile(options.video, temporary)
    with atomic_file(directory / CARD) as temporary:
        card.save(temporary)


@dataclass(frozen=True, kw_only=True)
class Args(CardOptions):
    """Write a checkpoint's card for the Hugging Face hub into it."""

    checkpoint: Path
    """The checkpoint, a directory."""


def write_card(args: Args) -> Path:
    """Write the card; return its file."""
    args.require_files()
    write_model_card(args.checkpoint, args, args.checkpoint.resolve().name)
    return args.checkpoint / CARD


main = command(Args, write_card, __doc__, "the card is in {}", output=lambda args: args.checkpoint)

if __name__ == "__main__":
    sys.exit(run(main))
