"""Semantic probe: what an encoder knows about the content of game frames, by caption retrieval and linear probes.

    python -m pretrain.semantic_probe --clip runs/contrastive/last --data data/random-* --out semantic-probe.json

It measures on the last episodes of every dataset, which no training saw. Baselines are an encoder with random weights
and the downsampled pixels. `--vlm` adds the encoder of a VLM that was initialized from the CLIP's vision tower.

- Retrieval: how often a frame's caption is the nearest of `--captions` captions (`top1`) or among the nearest five
  (`top5`); `different` counts the distinct captions. Captions name the game, or do not (`untitled_`), so that only the
  objects help; `ood_` is for held-out games, untitled.
- Linear probes (`pretrain.linear_probe`) on the mean image token: the accuracy of the game (`game`), and R^2 of the log
  number of objects (`count`), also with each game's means subtracted (`count_within`), so that the game does not help.
"""

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import nn

from common.command import command, require_at_least, run
from common.outputs import require_output_files
from common.results import new_result, write_result
from envs.episodes import EpisodeDataset
from envs.games import find_game
from envs.hub_sets import open_dataset
from pretrain.contrastive_objective import pad_to_square
from pretrain.data.frame_captions import describe_frame, write_caption
from pretrain.data.splits import split_rows
from pretrain.linear_probe import FeatureFunction, batches, mean_token_features, r_squared, ridge
from vlm import checkpoint
from vlm.clip import PixelClip, load_clip
from vlm.model import PixelVLM

BLOCK_SIZE = 18  # pixels along a side of a block of the downsampled baseline


@dataclass(frozen=True)
class LabeledFrames:
    """Frames of several games with their labels; texts are arrays of str."""

    frames: UInt8[np.ndarray, "N side side 3"]  # padded to a square
    games: Shaped[np.ndarray, " N"]  # titles
    counts: Int[np.ndarray, " N"]  # numbers of objects
    titled: Shaped[np.ndarray, " N"]  # a caption of each frame that names the game
    untitled: Shaped[np.ndarray, " N"]  # a caption of each frame that does not

    def subset(self, rows: np.ndarray) -> "LabeledFrames":
        """Return some of the rows."""
        return LabeledFrames(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class ProbeData:
    """Frames to fit the probes, frames of held-out episodes, and frames of held-out games if there are any."""

    train: LabeledFrames
    test: LabeledFrames
    ood: LabeledFrames | None


def sample_frames(
    datasets: Sequence[EpisodeDataset], rows: Sequence[np.ndarray], per_dataset: int, square_size: int, seed: int
) -> LabeledFrames:
    """Return `per_dataset` random frames among the given rows of each dataset."""
    rng = np.random.default_rng([seed, 0x5E])
    samples: list[tuple] = []
    for data, candidates in zip(datasets, rows, strict=True):
        title = find_game(data.info.game).title
        for row in rng.permutation(candidates)[:per_dataset]:
            frame = data.frame(int(row))
            objects = describe_frame(frame, data.info.game)
            captions = (write_caption(objects, title, rng), write_caption(objects, None, rng))
            samples.append((pad_to_square(frame, square_size), title, len(objects), *captions))
    return LabeledFrames(*(np.array(column) for column in zip(*samples, strict=True)))


def measure_probes(features: FeatureFunction, train: LabeledFrames, test: LabeledFrames) -> dict[str, float]:
    """Return `game`, `count` and `count_within` of linear probes, see the head of this file."""
    games = np.unique(train.games)
    game_train, game_test = (np.searchsorted(games, part.games) for part in (train, test))
    x_train, x_test = features(train.frames), features(test.frames)
    count_train, count_test = np.log1p(train.counts), np.log1p(test.counts)
    game_scores = ridge(x_train, np.eye(len(games))[game_train], x_test)
    count = ridge(x_train, count_train[:, None], x_test)[:, 0]
    x_mean = np.stack([x_train[game_train == game].mean(0) for game in range(len(games))])  # [games, D]
    count_mean = np.array([count_train[game_train == game].mean() for game in range(len(games))])
    residual = (count_train - count_mean[game_train])[:, None]
    count_within = ridge(x_train - x_mean[game_train], residual, x_test - x_mean[game_test])[:, 0]
    return {
        "game": float((game_scores.argmax(1) == game_test).mean()),
        "count": r_squared(count, count_test),
        "count_within": r_squared(count_within, count_test - count_mean[game_test]),
    }


def retrieval_accuracy(
    images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "N D"], captions: Shaped[np.ndarray, " N"]
) -> dict[str, float]:
    """Return `top1`, `top5` and `different` of retrieving captions by frame, from unit vectors; equal ones are one."""
    distinct, first = np.unique(captions, return_index=True)
    target = np.searchsorted(distinct, captions)
    return rank_captions(images @ texts[first].T, target)


def rank_captions(scores: Float[np.ndarray, "N captions"], target: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Return `top1`, `top5` and `different` of the scores of different captions for each frame."""
    rank = (scores > scores[np.arange(len(target)), target][:, None]).sum(1)
    return {"top1": float((rank < 1).mean()), "top5": float((rank < 5).mean()), "different": scores.shape[1]}


@torch.no_grad()
def measure_retrieval(clip: PixelClip, frames: np.ndarray, captions: np.ndarray) -> dict[str, float]:
    """Return `retrieval_accuracy` of frames uint8[N, H, W, 3] and their captions."""
    images = np.concatenate([clip.image_vectors(part[:, None]).numpy() for part in batches(frames)])
    texts = np.concatenate([clip.text_vectors(clip.tokenize(part)).numpy() for part in batches(captions)])
    return retrieval_accuracy(images, texts, captions)


def downsampled_pixels(frames: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N D"]:
    """Return the mean colors of square blocks as features, float32."""
    count, height, width, _ = frames.shape
    blocks = frames.reshape(count, height // BLOCK_SIZE, BLOCK_SIZE, width // BLOCK_SIZE, BLOCK_SIZE, 3).mean((2, 4))
    return blocks.reshape(count, -1).astype(np.float32)


def with_vision_tower(clip: PixelClip, encoder: nn.Module) -> PixelClip:
    """Return a copy of a CLIP with the weights of another encoder in its vision tower."""
    model = copy.deepcopy(clip.model)
    model.vision_model.load_state_dict(encoder.state_dict())
    return PixelClip(model, clip.tokenizer, clip.image_config)


def build_clip_like(clip: PixelClip, seed: int = 0) -> PixelClip:
    """Return a CLIP of the same architecture with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(clip.model)(clip.model.config)
    return PixelClip(model.eval(), clip.tokenizer, clip.image_config)


@dataclass
class Args:
    """Measure what encoders know about the content of frames."""

    clip: Path
    """A CLIP of `pretrain.contrastive`."""
    data: tuple[Path, ...]
    """Datasets it was trained on."""
    out: Path
    """Result file, JSON."""
    held_out_games: tuple[Path, ...] = ()
    """Datasets of games that no training saw."""
    vlm: Path | None = None
    """A checkpoint whose encoder was initialized from the CLIP's vision tower."""
    train_frames: int = 150
    """Frames per dataset to fit the probes."""
    test_frames: int = 50
    """Frames per dataset to test them, from held-out episodes."""
    captions: int = 256
    """Captions to retrieve from."""
    val_episodes: int = 2
    """Held-out episodes per dataset, as in training."""
    seed: int = 0
    """Seed of the frames and captions."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "train_frames", "test_frames", "captions", "val_episodes")


def load_probe_data(args: Args, clip: PixelClip) -> ProbeData:
    """Return the frames and captions that the arguments name, padded to the CLIP's input size."""
    assert clip.image_config.square_size is not None
    size, seed, data = clip.image_config.square_size, args.seed, [open_dataset(path) for path in args.data]
    train, val = ([split_rows(one, split, args.val_episodes) for one in data] for split in ("train", "val"))
    ood = [open_dataset(path) for path in args.held_out_games]
    per_game, ood_rows = -(-args.captions // max(1, len(ood))), [np.arange(len(one)) for one in ood]
    return ProbeData(
        train=sample_frames(data, train, args.train_frames, size, seed),
        test=sample_frames(data, val, args.test_frames, size, seed + 1),
        ood=sample_frames(ood, ood_rows, per_game, size, seed + 2) if ood else None,
    )


def measure(args: Args) -> list[dict]:
    """Return a row of metrics for each encoder: the CLIP's, random weights, the VLM's, downsampled pixels."""
    clip = load_clip(args.clip)
    data = load_probe_data(args, clip)
    rows = [
        {"encoder": name, **measure_clip(model, mean_token_features(model), data, args)}
        for name, model in (("clip", clip), ("random", build_clip_like(clip, args.seed)))
    ]
    if args.vlm:
        rows.append({"encoder": "vlm", **measure_vlm(args, checkpoint.load(args.vlm), data)})
    return [*rows, {"encoder": "pixels", **measure_probes(downsampled_pixels, data.train, data.test)}]


def measure_vlm(args: Args, vlm: PixelVLM, data: ProbeData | None = None) -> dict:
    """Return the metrics of a VLM's encoder, which was initialized from the vision tower of the arguments' CLIP."""
    clip = load_clip(args.clip)
    data = data or load_probe_data(args, clip)
    return measure_clip(with_vision_tower(clip, vlm.encoder), mean_token_features(vlm), data, args)


def measure_clip(clip: PixelClip, features: FeatureFunction, data: ProbeData, args: Args) -> dict:
    """Return the retrieval metrics of a CLIP and the probe metrics of the given features."""

    def sample(frames: LabeledFrames) -> LabeledFrames:
        return frames.subset(np.random.default_rng(args.seed).permutation(len(frames.games))[: args.captions])

    metrics = {**measure_probes(features, data.train, data.test), "n": len(data.test.games)}
    test = sample(data.test)
    retrieval = {"": (test.frames, test.titled), "untitled_": (test.frames, test.untitled)}
    if data.ood:
        ood = sample(data.ood)
        retrieval["ood_"] = (ood.frames, ood.untitled)
    for prefix, (frames, captions) in retrieval.items():
        metrics |= {f"{prefix}{name}": value for name, value in measure_retrieval(clip, frames, captions).items()}
    return metrics


def write_measurements(args: Args) -> str:
    """Measure; write the result file and return a line of text for each row."""
    require_output_files([args.out], [args.clip, *args.data, *args.held_out_games])
    started, rows = time.monotonic(), measure(args)
    result = new_result(args.out.stem, None, [args.seed]) | {"checkpoint": checkpoint.content_hash(args.clip)}
    write_result(args.out, result | {"seconds": round(time.monotonic() - started, 1), "rows": rows})
    texts = [[f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()] for row in rows]
    return "\n".join(map(", ".join, texts))


main = command(Args, write_measurements, __doc__, "{}")


if __name__ == "__main__":
    sys.exit(run(main))
