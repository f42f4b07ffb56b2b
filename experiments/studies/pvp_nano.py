"""Findings 1 and 2 of Gou et al. 2024 at nano size: what does a frozen encoder cost in pixel precision?

    python -m experiments.run pvp-nano

{frozen, adapted} encoder x three seeds. All conditions see the same images and the same questions
in the same order for the same number of steps, and start from the same semantic encoder, that of the small
captioner that ships (`pretrain.captions`).

They train on augmented frames and synthetic images, and are evaluated on held-out games, photographs (of scikit-image)
and other synthetic images, where only reading helps; and on held-out episodes of the training games. The regime
`in-distribution`, plain frames of the training games, is not among them: memorized backgrounds answer there.

Rows: `baseline` rows, which do not read pixels; `sample` rows along each training; every pixel of the grid at its end;
two probes of the encoder before and after training, `pretrain.semantic_probe` and `pretrain.patch_probe`; and how well
the captioner finds captions through its own encoder, one of random weights and the adapted ones.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback

from agents import record
from common.errors import UserError
from common.files import write_text_atomically
from envs.episodes import EpisodeDataset
from experiments.image_grid import image_grid
from experiments.studies.demonstrators import record_missing
from experiments.studies.eval_sets import EvalSet, evaluate, evaluate_baselines, frame_set, photographs, still_set
from experiments.studies.jobs import Job
from pretrain.caption_retrieval import measure_caption_retrieval, with_encoder
from pretrain.data.images import EpisodeFrames, SyntheticImages
from pretrain.data.splits import split_rows
from pretrain.linear_probe import mean_token_features
from pretrain.patch_probe import measure_patch_probe
from pretrain.pvp import train_pvp
from pretrain.pvp_config import CONFIGS, PvpConfig
from pretrain.pvp_model import start_model
from pretrain.pvp_questions import downsample_grid
from pretrain.reconstruct import comparison_grid, patch_size
from pretrain.reconstruction_metrics import mean_color
from pretrain.semantic_probe import LabeledFrames, downsampled_pixels, measure_probes, sample_frames
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.training.fit import trainer_options

ENCODERS = ("adapted", "frozen")
IMAGES_DRAWN = 2  # of each set, in the picture
SEMANTIC_PROBE, PATCH_PROBE, RETRIEVAL = "semantic probe", "patch probe", "caption retrieval"  # sets of their rows
FRAME_SIZE = (210, 160)  # rows and columns that a captioner sees
PROBE_SIDE = 216  # of the squares that frames are padded to for the semantic probe
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class DataRegime:
    """The training data of both encoders; fields are those of `pretrain.pvp`."""

    name: str
    augmentation: float
    synthetic: float
    curriculum_fraction: float
    steps: int = 1200
    images: int = 8
    questions: int = 32
    seconds_per_step: float = 0.5


IN_DISTRIBUTION = DataRegime("in-distribution", augmentation=0, synthetic=0, curriculum_fraction=0)
OUT_OF_DISTRIBUTION = DataRegime("out-of-distribution", augmentation=1, synthetic=0.5, curriculum_fraction=0)


@dataclass(frozen=True)
class ExperimentConfig:
    """All settings of the experiment. training: of every condition, where its regime does not say otherwise."""

    training: PvpConfig = CONFIGS["pvp-nano"]
    games: tuple[str, ...] = (
        "Alien", "Amidar", "Assault", "Atlantis", "BankHeist", "BeamRider", "Boxing", "Breakout", "Centipede",
        "ChopperCommand", "DemonAttack", "Enduro", "Freeway", "Frogger", "Galaxian", "Hero", "Kangaroo", "Phoenix",
        "Pong", "Riverraid", "SpaceInvaders", "Tennis",
    )  # fmt: skip
    held_out_games: tuple[str, ...] = ("Carnival", "MsPacman", "Seaquest", "Qbert", "Frostbite", "Asteroids")
    episodes: int = 12  # of random play, recorded of each game
    max_frames: int = 1600  # emulator frames of an episode
    data_dir: Path = Path("data")
    photographs: Path | None = Path("data/photographs/train")  # of `pretrain.data.photographs`, none of which is shown
    regimes: tuple[DataRegime, ...] = (OUT_OF_DISTRIBUTION,)
    num_evals: int = 4  # along a training, and checkpoints
    eval_images: int = 16  # of each set, at the end
    curve_images: int = 12  # of each set, along the training
    curve_pixels: int = 48  # of each of them
    probe_train_frames: int = 40  # of each game
    probe_test_frames: int = 20
    num_captions: int = 256  # among which a frame's own is looked for


NANO = ExperimentConfig()
SEEDS = (0, 1, 2)


def prepare(config: ExperimentConfig = NANO) -> None:
    """Record the frames of every game that are missing."""
    for game in (*config.games, *config.held_out_games):
        frame_dataset(config, game)


def jobs(seeds: Sequence[int] | None, work: Path, config: ExperimentConfig = NANO) -> list[Job]:
    """Return the jobs: baselines of each regime, probes of the start, each condition with each seed."""
    found = [
        Job({"regime": regime.name, "condition": "baselines"}, 60, partial(measure_baselines, config, regime))
        for regime in config.regimes
    ]
    if start := config.training.model.init:
        key: dict[str, Any] = {"regime": "both", "condition": "start", "start": checkpoint.content_hash(start)}
        found.append(Job(key, 120, partial(measure_start, config)))
    for seed, regime, encoder in product(seeds or SEEDS, config.regimes, ENCODERS):
        key = {"regime": regime.name, "encoder": encoder, "seed": seed}
        seconds = regime.steps * regime.seconds_per_step + 150
        found.append(Job(key, seconds, partial(measure_condition, config, regime, encoder, seed, work)))
    if config.training.model.init:
        found.append(Job({"retrieval": "start"}, 600, partial(measure_start_retrieval, config)))
        for seed, regime in product(seeds or SEEDS, config.regimes):  # after the trainings
            key = {"retrieval": "adapted", "regime": regime.name, "seed": seed}
            found.append(Job(key, 300, partial(measure_adapted_retrieval, config, regime, seed, work)))
    return found


def frame_dataset(config: ExperimentConfig, game: str) -> Path:
    """Return the dataset of a game's frames; record what is missing."""
    out = config.data_dir / f"random-{game}"
    return record_missing(
        record.Args(game=game, out=out, agent="random", episodes=config.episodes, max_frames=config.max_frames)
    )


def training_config(config: ExperimentConfig, regime: DataRegime, encoder: str, seed: int, out: Path) -> PvpConfig:
    """Return the training of one condition."""
    names = ("augmentation", "synthetic", "curriculum_fraction", "steps", "images", "questions")
    data = tuple(str(frame_dataset(config, game)) for game in config.games)
    data += (str(config.photographs),) if config.photographs and regime.augmentation else ()
    training = config.training.replace(out=out, data=data, seed=seed, **{name: getattr(regime, name) for name in names})
    if encoder == "frozen":
        training = training.replace(encoder_learning_rate=0.0)
    warmup = min(int(trainer_options(training.run.trainer)["warmup_steps"]), regime.steps // 4)
    return training.with_trainer_options(warmup_steps=warmup, save_steps=max(1, regime.steps // config.num_evals))


def training_frames(config: ExperimentConfig, split: str) -> list[EpisodeFrames]:
    """Return the frames of each training game that are trained on ("train") or held out ("val")."""
    return [EpisodeFrames(frame_dataset(config, g), split, config.training.data.val_episodes) for g in config.games]


def load_eval_sets(config: ExperimentConfig, regime: DataRegime, count: int) -> list[EvalSet]:
    """Return the sets that a regime is evaluated on, `count` images each."""
    size = config.training.data.size
    if not regime.augmentation:
        return [frame_set("held-out episodes", training_frames(config, "val"), count, size)]
    unseen = [EpisodeFrames(frame_dataset(config, game)) for game in config.held_out_games]
    synthetic = SyntheticImages(10_000, *size)
    return [
        frame_set("held-out games", unseen, count, size),
        still_set("photographs", photographs(count, size)),
        still_set("synthetic", [synthetic.image(index) for index in range(count)]),
        frame_set("held-out episodes", training_frames(config, "val"), count, size),
    ]


def measure_baselines(config: ExperimentConfig, regime: DataRegime) -> Rows:
    """Return a row for every baseline on every set of a regime."""
    split, rng = training_frames(config, "train"), np.random.default_rng(0)
    training_mean = mean_color(source.image(int(rng.integers(len(source)))) for source in split for _ in range(4))
    patch = patch_size(start_model(training_config(config, regime, "frozen", 0, Path("unused"))))
    return [
        {"set": eval_set.name, "baseline": name, **metrics}
        for eval_set in load_eval_sets(config, regime, config.eval_images)
        for name, metrics in evaluate_baselines(eval_set, config.training.data.grid, patch, training_mean).items()
    ]


class EvalCurveCallback(TrainerCallback):
    """Evaluates a model along its training and keeps the rows in a file, so that a resumed run continues them."""

    def __init__(self, vlm: PixelVLM, every: int, file: Path, evaluate: Callable[[PixelVLM], Rows]):
        self.vlm, self.every, self.file, self.evaluate = vlm, every, file, evaluate

    def rows(self) -> Rows:
        """Return the rows so far."""
        return json.loads(self.file.read_text()) if self.file.exists() else []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate once at every multiple of `every`."""
        step, rows = state.global_step, self.rows()
        if step % self.every or any(row["step"] == step for row in rows):
            return
        model = self.vlm.model.eval()
        rows += [{"step": step, **row} for row in self.evaluate(self.vlm)]
        model.train()
        write_text_atomically(self.file, json.dumps(rows, indent=1))


def probe_frames(config: ExperimentConfig) -> tuple[LabeledFrames, LabeledFrames]:
    """Return the frames that probes are fitted on, and those of held-out episodes that they are tested on."""
    data = [EpisodeDataset(frame_dataset(config, game)) for game in config.games]
    rows = ([split_rows(one, split, config.training.data.val_episodes) for one in data] for split in ("train", "val"))
    counts = config.probe_train_frames, config.probe_test_frames
    train, test = (
        sample_frames(data, own, count, PROBE_SIDE, seed)
        for seed, (own, count) in enumerate(zip(rows, counts, strict=True))
    )
    return train, test


def measure_start(config: ExperimentConfig) -> Rows:
    """Return the probes of the semantic encoder before training, of a random encoder and of plain pixels."""
    place, frames = config.training.model.init, probe_frames(config)
    assert place
    start = checkpoint.load(place)
    models = {"captioner": start, "random": build(config.training.model.preset, 0)}
    features = {name: mean_token_features(model) for name, model in models.items()} | {"pixels": downsampled_pixels}
    rows = [{"set": SEMANTIC_PROBE, "encoder": name, **measure_probes(f, *frames)} for name, f in features.items()]
    rows += [{"set": PATCH_PROBE, "encoder": name, **measure_patch_probe(model)} for name, model in models.items()]
    return [{"checkpoint": checkpoint.content_hash(place), **row} for row in rows]


def measure_start_retrieval(config: ExperimentConfig) -> Rows:
    """Return how well the captioner finds captions, through its own encoder and through one of random weights."""
    random = build(config.training.model.preset, 0)
    return [
        {"set": RETRIEVAL, "tower": "captioner", **measure_retrieval(config)},
        {"set": RETRIEVAL, "tower": "random", **measure_retrieval(config, random)},
    ]


def measure_adapted_retrieval(config: ExperimentConfig, regime: DataRegime, seed: int, work: Path) -> Rows:
    """Return how well the captioner finds captions through the encoder that a training adapted."""
    last = run_dir(work, regime, "adapted", seed) / "last"
    if not last.exists():
        raise UserError(f"expected the adapted model in {last}, got none; train it first by the same command")
    hashed = checkpoint.content_hash(last)
    return [
        {"set": RETRIEVAL, "tower": "adapted", "checkpoint": hashed, **measure_retrieval(config, checkpoint.load(last))}
    ]


def measure_retrieval(config: ExperimentConfig, model: PixelVLM | None = None) -> dict[str, float]:
    """Return `measure_caption_retrieval` of held-out frames by the captioner, through the encoder of another model."""
    assert config.training.model.init
    captioner, test = checkpoint.load(config.training.model.init), probe_frames(config)[1]
    rows = np.random.default_rng(0).permutation(len(test.games))[: config.num_captions]
    frames = test.frames[rows, : FRAME_SIZE[0], : FRAME_SIZE[1]]
    captioner = with_encoder(captioner, model.encoder) if model else captioner
    return measure_caption_retrieval(captioner, frames, test.titled[rows])


def measure_condition(config: ExperimentConfig, regime: DataRegime, encoder: str, seed: int, work: Path) -> Rows:
    """Train one condition, or resume it; return its rows along the training and at its end."""
    out, grid, start = run_dir(work, regime, encoder, seed), config.training.data.grid, config.training.model.init
    out.mkdir(parents=True, exist_ok=True)
    args = training_config(config, regime, encoder, seed, out)
    vlm, curve_sets = start_model(args), load_eval_sets(config, regime, config.curve_images)

    def evaluate_sample(model: PixelVLM) -> Rows:
        return [{"set": one.name, **evaluate(model, one, grid, config.curve_pixels)} for one in curve_sets]

    curve = EvalCurveCallback(vlm, max(1, regime.steps // config.num_evals), out / "curve.json", evaluate_sample)
    last = train_pvp(args, [curve], vlm)
    trained, end = checkpoint.load(last), {"step": regime.steps, "checkpoint": checkpoint.content_hash(last)}
    rows: Rows = [{**row, "sample": True} for row in curve.rows()]
    for one in load_eval_sets(config, regime, config.eval_images):
        metrics = evaluate(trained, one, grid, save=out / one.name)
        rows.append({**end, "set": one.name, "sample": False, **metrics})
    if start:
        probes = measure_probes(mean_token_features(trained), *probe_frames(config))
        rows.append({**end, "set": SEMANTIC_PROBE, **probes})
    rows.append({**end, "set": PATCH_PROBE, **measure_patch_probe(trained)})
    return [{"start": start and checkpoint.content_hash(start), **row} for row in rows]


def run_dir(work: Path, regime: DataRegime, encoder: str, seed: int) -> Path:
    """Return the directory of one condition."""
    return work / f"{regime.name}-{encoder}-{seed}"


def draw(seeds: Sequence[int] | None, work: Path, config: ExperimentConfig = NANO) -> Image.Image | None:
    """Return the first images of every set with the predictions of both encoders, of the first seed in `work`."""
    rows = []
    for regime in config.regimes:
        eval_sets = load_eval_sets(config, regime, config.eval_images)
        for seed in seeds or SEEDS:
            runs = {f"{encoder}, seed {seed}": run_dir(work, regime, encoder, seed) for encoder in ENCODERS[::-1]}
            if all((run / f"{eval_sets[-1].name}-0.npy").exists() for run in runs.values()):
                rows += [
                    [_compare(config, one, number, runs) for number in range(min(IMAGES_DRAWN, len(one.images)))]
                    for one in eval_sets
                ]
                break
    return image_grid(rows)


def _compare(config: ExperimentConfig, eval_set: EvalSet, number: int, runs: dict[str, Path]) -> Image.Image:
    image, grid = eval_set.images[number], config.training.data.grid
    predicted = {name: np.load(run / f"{eval_set.name}-{number}.npy") for name, run in runs.items()}
    return comparison_grid({"original": image, f"grid {grid}": downsample_grid(image, grid), **predicted})
