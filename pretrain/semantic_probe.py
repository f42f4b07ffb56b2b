"""How much an encoder knows of what a frame means: captions found again, games and numbers of objects read off.

    python -m pretrain.semantic_probe --clip runs/contrast/last --data data/random-* --out experiments/results/semantics.json
    python -m pretrain.semantic_probe --clip runs/contrast/last --vlm runs/pixels/last --data data/random-* --out after.json

Measured on episodes that no training saw (the last of every dataset), beside two floors: a tower of the same shape with
random weights, and the frame's own pixels, shrunk. With `--vlm` the encoder of a VLM that began as this CLIP's tower is
measured too, so that what pixel value prediction did to its meaning is seen.

- Retrieval: of `--captions` captions, is the frame's own the nearest (`top1`), or among the five nearest (`top5`)?
  Captions equal word for word count as one. Once with the game's title told, once without (`untitled_`), where only
  what is in the frame helps, and for games that no training saw (`strange_`).
- Linear probes, ridge regression on the mean of the image tokens, its penalty chosen within the training rows: the
  share of games told right (`game`), and R^2 of the logarithm of the number of objects (`count`); once more with each
  game's own mean taken off both (`count_within`), so that knowing the game does not help.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from common.command import run
from common.errors import UserError
from common.files import write_text_atomically
from common.provenance import changed, command_line, git_commit, machine, package_versions
from envs.episodes import EpisodeDataset
from envs.games import find_game
from pretrain.contrastive import holdout_rows, pad_to_square
from pretrain.data.frame_captions import describe_frame, write_caption
from vlm import checkpoint
from vlm.clip import PixelClip, load_clip
from vlm.model import PixelModel, PixelVLM

Features = Callable[[np.ndarray], np.ndarray]  # frames uint8[N, H, W, 3] to float[N, D]
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of the ridge, times the number of rows over 1,000
BLOCK = 18  # pixels: the side of the squares that frames are shrunk by for the floor


@dataclass(frozen=True)
class Sample:
    """Frames of several games and what is known of them.

    frames: uint8[N, square_size, square_size, 3]; games: N titles; counts: int[N], numbers of objects; titled, untitled: N
    captions each, which tell the game and do not.
    """

    frames: np.ndarray
    games: tuple[str, ...]
    counts: np.ndarray
    titled: tuple[str, ...]
    untitled: tuple[str, ...]

    def part(self, rows: np.ndarray) -> "Sample":
        """Return some of its rows."""
        games, titled, untitled = (tuple(words[i] for i in rows) for words in (self.games, self.titled, self.untitled))
        return Sample(self.frames[rows], games, self.counts[rows], titled, untitled)


def draw_sample(
    sets: Sequence[EpisodeDataset], rows: Sequence[np.ndarray], each: int, square_size: int, seed: int
) -> Sample:
    """Return `each` frames of every dataset's `rows`, drawn from the seed."""
    rng = np.random.default_rng([seed, 0x5E])
    kept: list[tuple] = []
    for data, allowed in zip(sets, rows, strict=True):
        title = find_game(data.info.game).title
        for row in rng.permutation(allowed)[:each]:
            frame = data.frame(int(row))
            things = describe_frame(frame, data.info.game)
            captions = (write_caption(things, title, rng), write_caption(things, None, rng))
            kept.append((pad_to_square(frame, square_size), title, len(things), *captions))
    frames, games, counts, titled, untitled = zip(*kept, strict=True)
    return Sample(np.stack(frames), games, np.array(counts), titled, untitled)


def measure_probes(features: Features, train: Sample, test: Sample) -> dict[str, float]:
    """Return what linear probes read off: `game`, `count` and `count_within`, see the head of this file."""
    names = sorted(set(train.games))
    game = np.array([names.index(name) for name in train.games])
    truth = np.array([names.index(name) for name in test.games])
    known, asked = features(train.frames), features(test.frames)
    counts, wanted = np.log1p(train.counts), np.log1p(test.counts)
    scores = ridge(known, np.eye(len(names))[game], asked)
    plain = ridge(known, counts[:, None], asked)[:, 0]
    centre = np.stack([known[game == g].mean(0) for g in range(len(names))])  # [G, D]
    usual = np.array([counts[game == g].mean() for g in range(len(names))])
    within = ridge(known - centre[game], (counts - usual[game])[:, None], asked - centre[truth])[:, 0]
    return {
        "game": float((scores.argmax(1) == truth).mean()),
        "count": r_squared(plain, wanted),
        "count_within": r_squared(within, wanted - usual[truth]),
    }


def ridge(known: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return a linear probe's answers [M, K] on `asked` [M, D], fitted to `targets` [N, K] on `known` [N, D].

    The penalty is the one that does best on a fifth of the rows when the others are fitted.
    """
    mean, spread = known.mean(0), known.std(0) + 1e-6 * (known.std() + 1e-12)
    known, asked = ((part - mean) / spread for part in (known.astype(np.float64), asked.astype(np.float64)))
    apart = np.random.default_rng(0).permutation(len(known))
    fit, check = apart[len(known) // 5 :], apart[: len(known) // 5]
    errors = [((_solve(known[fit], targets[fit], p, known[check]) - targets[check]) ** 2).mean() for p in PENALTIES]
    return _solve(known, targets, PENALTIES[int(np.argmin(errors))], asked)


def _solve(known: np.ndarray, targets: np.ndarray, penalty: float, asked: np.ndarray) -> np.ndarray:
    offset = targets.mean(0)
    inner = known.T @ known + penalty * len(known) / 1000 * np.eye(known.shape[1])
    return asked @ np.linalg.solve(inner, known.T @ (targets - offset)) + offset


def r_squared(answers: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the variance of `truth` that `answers` explain; below 0 where they do worse than its mean."""
    return float(1 - ((answers - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def rank_captions(images: np.ndarray, texts: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Return `top1` and `top5`: how often a frame's caption is found among all, equal ones counting as one.

    Args:
        images: [N, S], unit vectors of frames.
        texts: [N, S], unit vectors of their captions.
        captions: the N captions.
    """
    kinds, first = np.unique(captions, return_index=True)
    own = np.searchsorted(kinds, captions)
    scores = images @ texts[first].T  # [N, different captions]
    better = (scores > scores[np.arange(len(own)), own][:, None]).sum(1)
    return {"top1": float((better < 1).mean()), "top5": float((better < 5).mean()), "different": len(kinds)}


@torch.no_grad()
def measure_retrieval(clip: PixelClip, frames: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Return `rank_captions` of frames uint8[N, H, W, 3] and their captions."""
    images = np.concatenate([clip.image_vectors(part[:, None]).numpy() for part in _batches(frames)])
    texts = np.concatenate([clip.text_vectors(clip.tokenize(part)).numpy() for part in _batches(captions)])
    return rank_captions(images, texts, captions)


def _batches(values: Any) -> list:
    return [values[start : start + 64] for start in range(0, len(values), 64)]


def shrunk_pixels(frames: np.ndarray) -> np.ndarray:
    """Return the mean colour of every square of a frame uint8[N, H, W, 3] on a square_size: float32[N, D]."""
    count, height, width, _ = frames.shape
    squares = frames.reshape(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3).mean((2, 4))
    return squares.reshape(count, -1).astype(np.float32)


def read_tokens(model: PixelModel, frames: np.ndarray) -> torch.Tensor:
    """Return a model's image tokens as the decoder would get them, before the connector: float32[N, T, D] on the CPU.

    For a CLIP, that is LLaVA's choice: the patches of the last layer but one. A model with a history sees frames
    uint8[N, H, W, 3] that stand still.
    """
    layer, drop = -2, "default"
    if isinstance(model, PixelVLM):
        layer, drop = model.model.config.vision_feature_layer, model.model.config.vision_feature_select_strategy
    found = []
    for part in _batches(frames):
        pixels = model.preprocess(np.repeat(part[:, None], model.history, axis=1))
        states = model.encoder(pixels, output_hidden_states=True).hidden_states[layer]  # [B, T, D] or [B, D, h, w]
        tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
        found.append((tokens[:, 1:] if drop == "default" else tokens).float().cpu())
    return torch.cat(found)


def token_features(model: PixelModel) -> Features:
    """Return what gives the mean of a model's image tokens, see `read_tokens`."""

    @torch.no_grad()
    def features(frames: np.ndarray) -> np.ndarray:
        parts = [read_tokens(model, part).mean(1) for part in _batches(frames)]
        return torch.cat(parts).numpy()

    return features


def with_tower(clip: PixelClip, encoder: nn.Module) -> PixelClip:
    """Return a CLIP whose vision tower has another encoder's weights, to see whether its captions are still found."""
    other = build_clip_like(clip)
    other.model.load_state_dict(clip.model.state_dict())
    other.model.vision_model.load_state_dict(encoder.state_dict())
    return other


def build_clip_like(clip: PixelClip, seed: int = 0) -> PixelClip:
    """Return a CLIP of the same shape with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(clip.model)(clip.model.config)
    return PixelClip(model.eval(), clip.tokenizer, clip.image_config)


@dataclass
class Args:
    """Measure what encoders know of meaning."""

    clip: Path
    """A CLIP of `pretrain.contrastive`."""
    data: tuple[Path, ...]
    """The datasets it was trained on; their last episodes are measured on."""
    out: Path
    """The JSON that the figures go into."""
    held_out_games: tuple[Path, ...] = ()
    """Datasets of games that no training saw."""
    vlm: Path | None = None
    """A checkpoint whose encoder began as the CLIP's tower."""
    train_frames: int = 150
    """Frames of each dataset that the probes are fitted on."""
    test_frames: int = 50
    """Frames of each dataset's held-out episodes that they are asked about."""
    captions: int = 256
    """Captions among which a frame's own is looked for."""
    hold_episodes: int = 2
    """Held-out episodes of each dataset, as in training."""
    seed: int = 0
    """Seed of the frames and captions."""

    def __post_init__(self) -> None:
        for name in ("train_frames", "test_frames", "captions", "hold_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Samples:
    """What is measured on: frames to fit probes to, frames of held-out episodes, and of games never seen, if any."""

    train: Sample
    test: Sample
    strange: Sample | None


def draw_samples(args: Args, square_size: int) -> Samples:
    """Return the frames and captions that the arguments' seed draws."""
    sets = [EpisodeDataset(path) for path in args.data]
    known, held = zip(*(holdout_rows(data, args.hold_episodes) for data in sets), strict=True)
    train = draw_sample(sets, known, args.train_frames, square_size, args.seed)
    test = draw_sample(sets, held, args.test_frames, square_size, args.seed + 1)
    return Samples(train, test, _strange_sample(args, square_size))


def measure(args: Args) -> list[dict]:
    """Return a row of figures for each encoder: the CLIP's tower, the VLM's, random weights, shrunk pixels."""
    clip = load_clip(args.clip)
    assert clip.square_size is not None
    samples = draw_samples(args, clip.square_size)
    rows = [
        {"encoder": name, **measure_clip(found, token_features(found), samples, args)}
        for name, found in (("clip", clip), ("random", build_clip_like(clip, args.seed)))
    ]
    if args.vlm:
        rows.append({"encoder": "vlm", **measure_vlm(args, checkpoint.load(args.vlm), samples)})
    rows.append({"encoder": "pixels", **measure_probes(shrunk_pixels, samples.train, samples.test)})
    return rows


def measure_vlm(args: Args, vlm: PixelVLM, samples: Samples | None = None) -> dict:
    """Return the figures of a VLM's encoder, which began as the tower of the arguments' CLIP."""
    clip = load_clip(args.clip)
    assert clip.square_size is not None
    samples = samples or draw_samples(args, clip.square_size)
    return measure_clip(with_tower(clip, vlm.encoder), token_features(vlm), samples, args)


def measure_clip(clip: PixelClip, features: Features, samples: Samples, args: Args) -> dict:
    """Return the figures of a CLIP, with probes of given features."""
    probes = measure_probes(features, samples.train, samples.test)
    return {**probes, "n": len(samples.test.games), **_retrieval(clip, samples.test, samples.strange, args)}


def _strange_sample(args: Args, square_size: int) -> Sample | None:
    if not args.held_out_games:
        return None
    sets = [EpisodeDataset(path) for path in args.held_out_games]
    each = -(-args.captions // len(sets))
    return draw_sample(sets, [np.arange(len(data)) for data in sets], each, square_size, args.seed + 2)


def _retrieval(clip: PixelClip, test: Sample, strange: Sample | None, args: Args) -> dict[str, float]:
    """Return the figures of retrieval, each under its own name."""

    def some(sample: Sample) -> Sample:
        return sample.part(np.random.default_rng(args.seed).permutation(len(sample.games))[: args.captions])

    test = some(test)
    asked = {"": (test.frames, test.titled), "untitled_": (test.frames, test.untitled)}
    if strange:
        asked["strange_"] = ((strange := some(strange)).frames, strange.untitled)
    found = {prefix: measure_retrieval(clip, *pair) for prefix, pair in asked.items()}
    return {f"{prefix}{name}": value for prefix, figures in found.items() for name, value in figures.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    started, rows = time.monotonic(), measure(args)
    result = {
        "name": args.out.stem,
        "command": command_line(),
        "commit": git_commit(),
        "dirty": changed(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "machine": machine(),
        "protocol": None,
        "seeds": [args.seed],
        "seconds": round(time.monotonic() - started, 1),
        "checkpoint": checkpoint.content_hash(args.clip),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(args.out, json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
