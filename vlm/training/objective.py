"""An objective: one task of a training, which samples batches and computes their loss.

batch = objective.sampler(step, rng)          in a data worker; knows no model
features = objective.encode(batch)            the image features that the loss reads, passed as an argument
losses = objective.loss(features, batch)      the loss and the metrics that the log shows
"""

import dataclasses
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vlm.image_features import ImageFeatures
from vlm.image_input import ImageInputs
from vlm.model import PixelModel, PixelVLM


@dataclass(frozen=True)
class Batch:
    """Tensors of one step. Fields of subclasses are tensors, nested batches, tuples of batches, or plain values.

    images: of a model whose processor runs in the data workers, what it made of the batch's `frames` (`with_images`).
    """

    images: ImageInputs | None = field(default=None, kw_only=True)

    def to(self, device: torch.device, **options: Any) -> Self:
        """Return the batch with all of its tensors on a device."""

        def move(value: Any) -> Any:
            if isinstance(value, (Tensor, Batch, ImageInputs)):
                return value.to(device, **options)
            return tuple(move(part) for part in value) if isinstance(value, tuple) else value

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})


def with_images(value: Any, process: Callable[[Tensor], ImageInputs]) -> Any:
    """Return a batch in which each batch of frames, itself or one inside it, has the images that a processor makes."""
    if isinstance(value, tuple):
        return tuple(with_images(part, process) for part in value)
    if not isinstance(value, Batch):
        return value
    parts = {f.name: with_images(getattr(value, f.name), process) for f in dataclasses.fields(value)}
    if isinstance(frames := parts.get("frames"), Tensor):
        parts["images"] = process(frames)
    return dataclasses.replace(value, **parts)


@dataclass(frozen=True)
class Losses:
    """A scalar to minimize, and scalars that the log shows by name."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


Model = TypeVar("Model", bound=PixelModel)
AnyBatch = TypeVar("AnyBatch", bound=Batch)
Sampler = Callable[[int, np.random.Generator], AnyBatch]


class Objective(ABC, Generic[Model, AnyBatch]):
    """One task. Its sampler returns the batch of a step from the step's number and a generator, and from nothing else.

    attention: the attention implementation it trains fastest with; stream: numbers that tell its random draws from
    those of other objectives with the same seed.
    """

    attention = "sdpa"
    stream: tuple[int, ...] = ()

    def __init__(self, vlm: Model, sampler: Sampler[AnyBatch]):
        self.vlm, self.sampler = vlm, sampler

    @abstractmethod
    def encode(self, batch: AnyBatch) -> Any:
        """Return the features that the loss reads."""

    @abstractmethod
    def loss(self, features: Any, batch: AnyBatch) -> Losses:
        """Return the loss of a batch and its metrics."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Return modules that train beside the model and are no part of it."""
        return {}

    def rng(self, seed: int, step: int) -> np.random.Generator:
        """Return the generator that step number `step` of a run draws from."""
        return np.random.default_rng([seed, step, *self.stream])


def images_of(vlm: PixelModel, batch: Any) -> Any:
    """Return the images of a batch of frames, as its model reads them: those that a data worker made, if it did."""
    return vlm.preprocess(batch.frames) if batch.images is None else batch.images


def encode_frames(vlm: PixelVLM, frames: Tensor, output_hidden_states: bool = False) -> ImageFeatures:
    """Return the features of frames uint8[B, history, H, W, 3]."""
    return vlm.encode_images(vlm.preprocess(frames), output_hidden_states=output_hidden_states)


@torch.no_grad()
def mean_metrics(objective: Objective, steps: int) -> dict[str, float]:
    """Return the mean of `loss` and of every metric over the batches of steps 0 to `steps` - 1, without training."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for step in range(steps):
        batch = objective.sampler(step, objective.rng(0, step)).to(objective.vlm.device)
        losses = objective.loss(objective.encode(batch), batch)
        for name, value in {"loss": losses.loss, **losses.metrics}.items():
            found[name].append(value)
    return {name: float(torch.stack(values).mean()) for name, values in found.items()}
