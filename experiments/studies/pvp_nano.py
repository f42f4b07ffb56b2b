"""Findings 1 and 2 of Gou et al. 2024 at nano size: what does freezing the encoder cost a model that shall see pixels?

    python -m experiments.run pvp-nano

{frozen, adapted} encoder x three seeds x two regimes that must not be confused, all arms with the same images, the
same questions in the same order and the same number of steps, from the same semantic encoder:

    familiar   frames of the training games as they are; measured on held-out episodes of these games. Half of it can
               be answered by remembering backgrounds.
    open       the same frames made strange, and synthetic images; measured on held-out games, on photographs (of
               scikit-image) and on other synthetic images. Only reading helps.

The semantic encoder is the tower of the small CLIP that the repository ships, trained on the training episodes of the
training games (`pretrain.contrastive`; its `training.json` holds the command). Rows: `floor` rows for what one would
answer without reading; `step` rows of each arm along its training, on a sample; at its last step every place of every
image, with PSNR, SSIM and the errors on small objects; and, as `set` meaning and detail, what the encoder knows of
games and objects before and after (`pretrain.semantic_probe`), and what its tokens tell of their own colour and place
(`pretrain.patch_probe`).
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback

from agents import record
from common.errors import UserError
from common.files import write_text_atomically
from experiments.image_grid import image_grid
from experiments.studies.jobs import Job
from pretrain import pvp, semantic_probe
from pretrain.data.augmentation import crop_or_resize
from pretrain.data.images import EpisodeFrames, SyntheticImages, read_image
from pretrain.metrics import cells_containing, mean_colour, rare_pixels
from pretrain.patch_probe import measure_patch_probe
from pretrain.pvp_prediction import grid_coordinates, predict_pixels
from pretrain.pvp_prompts import PixelPromptFormat, downsample_grid
from pretrain.reconstruct import baselines, comparison_grid, image_metrics, patch_size, prediction_metrics
from vlm import checkpoint
from vlm.clip import load_clip
from vlm.model import PixelVLM
from vlm.pretrained import RELEASED_CLIP

ENCODERS = ("frozen", "adapted")
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
SHOWN = 2  # images of each set on the picture
MEANING, DETAIL = "meaning", "detail"  # the sets of the rows of `pretrain.semantic_probe` and `pretrain.patch_probe`


@dataclass(frozen=True)
class DataRegime:
    """What one regime trains on and how; both its encoders alike. Names are those of `pretrain.pvp`."""

    name: str
    augmentation: float
    synthetic: float
    ramp: float
    steps: int
    images: int
    questions: int
    seconds_a_step: float


FAMILIAR = DataRegime(
    "familiar", augmentation=0, synthetic=0, ramp=0, steps=1000, images=8, questions=16, seconds_a_step=1.0
)
OPEN = DataRegime(
    "open", augmentation=1, synthetic=0.5, ramp=0.5, steps=1000, images=8, questions=16, seconds_a_step=1.0
)


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that the experiment fixes.

    games, strangers: trained on, and held out whole; episodes, frames: recorded of each game by random play, and the
    emulator frames of each episode; hold: episodes of each training game held out; tower: the contrast-trained CLIP,
    None for random weights; start: a whole model to start from instead; images_full, images_curve, places_curve:
    measured at the end and along the way; meaning_fit, meaning_asked, captions: frames a game for the semantic probes,
    and captions to find again.
    """

    games: tuple[str, ...] = (
        "Alien", "Amidar", "Assault", "Atlantis", "BankHeist", "BeamRider", "Boxing", "Breakout", "Centipede",
        "ChopperCommand", "DemonAttack", "Enduro", "Freeway", "Frogger", "Galaxian", "Hero", "Kangaroo", "Phoenix",
        "Pong", "Riverraid", "SpaceInvaders", "Tennis",
    )  # fmt: skip
    strangers: tuple[str, ...] = ("Carnival", "MsPacman", "Seaquest", "Qbert", "Frostbite", "Asteroids")
    episodes: int = 12
    frames: int = 1600
    hold: int = 2
    data: Path = Path("data")
    regimes: tuple[DataRegime, ...] = (OPEN, FAMILIAR)
    tower: Path | None = RELEASED_CLIP
    start: Path | None = None
    preset: str = "nano-clip"
    grid: str = "32"
    size: tuple[int, int] = (210, 160)
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 3e-4
    soft: float = 6.0
    gaze: float = 1.0
    warmup_steps: int = 40
    points: int = 8
    images_full: int = 16
    images_curve: int = 12
    places_curve: int = 48
    meaning_fit: int = 40
    meaning_asked: int = 20
    captions: int = 256
    workers: int = 1


NANO = ExperimentConfig()
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class EvalSet:
    """A set of images that arms are measured on. images: uint8[H, W, 3] each; objects: bool[H, W] each."""

    name: str
    images: list[np.ndarray]
    objects: list[np.ndarray]


def prepare(setting: ExperimentConfig = NANO) -> None:
    """Record the frames of every game, where they are not there yet."""
    for game in (*setting.games, *setting.strangers):
        frame_dataset(setting, game)


def jobs(seeds: Sequence[int] | None, work: Path, setting: ExperimentConfig = NANO) -> list[Job]:
    """Return the jobs of the experiment: floors of each regime, meaning at the start, each arm with each seed."""
    found = [
        Job({"regime": regime.name, "arm": "floors"}, 60, partial(measure_floors, setting, regime))
        for regime in setting.regimes
    ]
    if setting.tower:
        key = {"regime": "both", "arm": "start", "tower": checkpoint.content_hash(setting.tower)}
        found.append(Job(key, 120, partial(measure_start, setting)))
    for seed in seeds or SEEDS:
        for regime in setting.regimes:
            seconds = regime.steps * regime.seconds_a_step + 150
            for encoder in reversed(ENCODERS):  # the one that is to succeed shows first whether it does
                arm = {"regime": regime.name, "encoder": encoder, "seed": seed}
                found.append(Job(arm, seconds, partial(measure_arm, setting, regime, encoder, seed, work)))
    return found


def frame_dataset(setting: ExperimentConfig, game: str) -> Path:
    """Return the dataset of a game's frames, recorded now if it is not there or not whole."""
    place = setting.data / f"random-{game}"
    arguments = record.Args(game=game, out=place, agent="random", episodes=setting.episodes, max_frames=setting.frames)
    if len(list((place / "data").glob("episode-*.parquet"))) < setting.episodes:
        record.record(arguments)
    return place


def training_args(setting: ExperimentConfig, regime: DataRegime, encoder: str, seed: int, out: Path) -> pvp.Args:
    """Return the training of one arm."""
    return pvp.Args(
        out=out,
        data=tuple(str(frame_dataset(setting, game)) for game in setting.games),
        hold_episodes=setting.hold,
        preset=setting.preset,
        init=setting.start,
        tower=setting.tower,
        start_codes=True,
        grid=setting.grid,
        size=setting.size,
        augmentation=regime.augmentation,
        synthetic=regime.synthetic,
        ramp=regime.ramp,
        gaze=setting.gaze,
        steps=regime.steps,
        images=regime.images,
        questions=regime.questions,
        soft=setting.soft,
        learning_rate=setting.learning_rate,
        encoder_learning_rate=0.0 if encoder == "frozen" else setting.encoder_learning_rate,
        warmup_steps=min(setting.warmup_steps, regime.steps // 4),
        save_every=max(1, regime.steps // setting.points),
        seed=seed,
        workers=setting.workers,
    )


def open_probes(setting: ExperimentConfig, regime: DataRegime, count: int) -> list[EvalSet]:
    """Return the sets that a regime is measured on, `count` images each, the same for every arm and seed."""
    if not regime.augmentation:
        sources = [EpisodeFrames(frame_dataset(setting, game), setting.hold, "held out") for game in setting.games]
        return [_draw_frames("held-out episodes", sources, count, setting.size)]
    sources = [EpisodeFrames(frame_dataset(setting, game)) for game in setting.strangers]
    synthetic = SyntheticImages(10_000, *setting.size)
    images = [synthetic.image(index) for index in range(count)]
    return [
        _draw_frames("held-out games", sources, count, setting.size),
        _stills("photographs", photographs(count, setting.size)),
        _stills("synthetic", images),
    ]


def photographs(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Return windows uint8[H, W, 3] of the photographs that come with scikit-image, at places drawn from a seed."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise UserError("expected scikit-image, for its photographs: pip install 'pvplay[experiments]'")
    folder, rng = Path(found.origin).parent / "data", np.random.default_rng(10_000)
    names = [PHOTOGRAPHS[number % len(PHOTOGRAPHS)] for number in range(count)]
    return [crop_or_resize(read_image(folder / name), *size, rng) for name in names]


def _stills(name: str, images: list[np.ndarray]) -> EvalSet:
    return EvalSet(name, images, [rare_pixels(image) for image in images])


def _draw_frames(name: str, sources: list[EpisodeFrames], count: int, size: tuple[int, int]) -> EvalSet:
    rng = np.random.default_rng(10_000)
    images, objects = [], []
    for number in range(count):
        source = sources[number % len(sources)]
        index = int(rng.integers(len(source)))
        images.append(crop_or_resize(source.image(index), *size))
        moved = source.moved(index)[..., None].repeat(3, axis=2).astype(np.uint8) * 255
        objects.append(crop_or_resize(moved, *size)[..., 0] > 0)
    return EvalSet(name, images, objects)


def mean_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each figure over the images that have it; infinite PSNR is left out; `n` is a sum."""
    out: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None and np.isfinite(row[name])]
        out[name] = None if not values else int(sum(values)) if name.startswith("n") else float(np.mean(values))
    return out


def measure_floors(setting: ExperimentConfig, regime: DataRegime) -> list[dict[str, Any]]:
    """Return a row for every floor on every set of a regime."""
    training = [EpisodeFrames(frame_dataset(setting, game), setting.hold, "training") for game in setting.games]
    rng = np.random.default_rng(0)
    colour = mean_colour(source.image(int(rng.integers(len(source)))) for source in training for _ in range(4))
    patch = patch_size(pvp.start_model(training_args(setting, regime, "frozen", 0, Path("unused"))))
    rows = []
    for probe in open_probes(setting, regime, setting.images_full):
        found: dict[str, list[dict[str, Any]]] = {}
        for image, objects in zip(probe.images, probe.objects, strict=True):
            true = downsample_grid(image, setting.grid)
            where = cells_containing(objects, *true.shape[:2])
            for name, guess in baselines(image, true, patch, colour).items():
                found.setdefault(name, []).append(image_metrics(guess, true, where))
        rows += [{"set": probe.name, "floor": name, **mean_figures(own)} for name, own in found.items()]
    return rows


@torch.no_grad()
def measure(
    vlm: PixelVLM, setting: ExperimentConfig, probe: EvalSet, places: int | None, pictures: Path | None
) -> dict[str, Any]:
    """Return the figures of a model on a set: at every place, or at so many drawn ones, the same for every model."""
    language, rows = PixelPromptFormat.of(vlm), []
    for number, (image, objects) in enumerate(zip(probe.images, probe.objects, strict=True)):
        true = downsample_grid(image, setting.grid)
        asked, where = grid_coordinates(*true.shape[:2]), cells_containing(objects, *true.shape[:2])
        if places is not None:
            asked = asked[np.random.default_rng(number).choice(len(asked), min(places, len(asked)), replace=False)]
        reading = predict_pixels(vlm, np.stack([image] * vlm.history), asked, language, chunk=512)
        shape = true.shape if places is None else (1, len(asked), 3)
        seen = true[asked[:, 0], asked[:, 1]].reshape(shape)
        rows.append(prediction_metrics(reading, seen, where[asked[:, 0], asked[:, 1]].reshape(shape[:2])))
        if pictures is not None and places is None:
            np.save(pictures / f"{probe.name}-{number}.npy", reading.answered.reshape(shape).astype(np.uint8))
    return mean_figures(rows)


class EvalCurveCallback(TrainerCallback):
    """Measures a model along its training, on samples; what is measured is kept in a file, for runs that go on."""

    def __init__(self, vlm: PixelVLM, every: int, file: Path, ask: Callable[[PixelVLM], list[dict[str, Any]]]):
        self.vlm, self.every, self.file, self.ask = vlm, every, file, ask

    def rows(self) -> list[dict[str, Any]]:
        """Return what was measured so far."""
        return json.loads(self.file.read_text()) if self.file.exists() else []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after every so many steps, but once at each."""
        step, rows = state.global_step, self.rows()
        if step % self.every or any(row["step"] == step for row in rows):
            return
        model = self.vlm.model.eval()
        rows += [{"step": step, **row} for row in self.ask(self.vlm)]
        model.train()
        write_text_atomically(self.file, json.dumps(rows, indent=1))


def semantic_args(setting: ExperimentConfig) -> semantic_probe.Args:
    """Return how meaning is measured: on held-out episodes of the training games, and on the strangers."""
    assert setting.tower
    return semantic_probe.Args(
        clip=setting.tower,
        data=tuple(frame_dataset(setting, game) for game in setting.games),
        held_out_games=tuple(frame_dataset(setting, game) for game in setting.strangers),
        out=Path("unused"),
        train_frames=setting.meaning_fit,
        test_frames=setting.meaning_asked,
        captions=setting.captions,
        hold_episodes=setting.hold,
    )


def measure_start(setting: ExperimentConfig) -> list[dict[str, Any]]:
    """Return what the semantic encoder knows before it is taught pixels, with a random one and plain pixels beside."""
    args = semantic_args(setting)
    mark, clip = checkpoint.content_hash(args.clip), load_clip(args.clip)
    towers = {"clip": clip, "random": semantic_probe.build_clip_like(clip, args.seed)}
    return [
        *({"set": MEANING, "checkpoint": mark, **row} for row in semantic_probe.measure(args)),
        *({"set": DETAIL, "checkpoint": mark, "encoder": name, **measure_patch_probe(m)} for name, m in towers.items()),
    ]


def measure_arm(
    setting: ExperimentConfig, regime: DataRegime, encoder: str, seed: int, work: Path
) -> list[dict[str, Any]]:
    """Train one arm, or go on with it; return its rows along the way and at its end."""
    out = work / f"{regime.name}-{encoder}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    args = training_args(setting, regime, encoder, seed, out)
    vlm = pvp.start_model(args)
    probes = open_probes(setting, regime, setting.images_curve)

    def sample(model: PixelVLM) -> list[dict[str, Any]]:
        return [{"set": p.name, **measure(model, setting, p, setting.places_curve, None)} for p in probes]

    curve = EvalCurveCallback(vlm, max(1, regime.steps // setting.points), out / "curve.json", sample)
    last = pvp.train_pvp(args, [curve], vlm)
    trained, end = checkpoint.load(last), {"step": regime.steps, "checkpoint": checkpoint.content_hash(last)}
    rows = [{**row, "sample": True} for row in curve.rows()]
    for probe in open_probes(setting, regime, setting.images_full):
        rows.append({**end, "set": probe.name, "sample": False, **measure(trained, setting, probe, None, out)})
    if setting.tower:
        rows.append({**end, "set": MEANING, **semantic_probe.measure_vlm(semantic_args(setting), trained)})
    rows.append({**end, "set": DETAIL, **measure_patch_probe(trained)})
    tower = setting.tower and checkpoint.content_hash(setting.tower)
    return [{"tower": tower, **row} for row in rows]


def draw(seeds: Sequence[int] | None, work: Path, setting: ExperimentConfig = NANO) -> Image.Image | None:
    """Return the first images of every set, each beside its grid and what a seed's frozen and adapted arms answered.

    Of each regime the first seed is shown whose arms lie in `work`, both of them; None if there is none.
    """
    rows = []
    for regime in setting.regimes:
        probes = open_probes(setting, regime, setting.images_full)
        for seed in seeds or SEEDS:
            arms = {f"{encoder}, seed {seed}": work / f"{regime.name}-{encoder}-{seed}" for encoder in ENCODERS}
            if all((place / f"{probes[-1].name}-0.npy").exists() for place in arms.values()):
                rows += [
                    [_beside(setting, probe, number, arms) for number in range(min(SHOWN, len(probe.images)))]
                    for probe in probes
                ]
                break
    return image_grid(rows)


def _beside(setting: ExperimentConfig, probe: EvalSet, number: int, arms: dict[str, Path]) -> Image.Image:
    image = probe.images[number]
    answers = {name: np.load(place / f"{probe.name}-{number}.npy") for name, place in arms.items()}
    return comparison_grid({"original": image, f"grid {setting.grid}": downsample_grid(image, setting.grid), **answers})
