"""The small files of a checkpoint directory, which may come from anyone: read, bounded and checked.

`pvplay.json` must be an `ImageConfig`, `training.json` must fit `TrainingMetadata`, transformers' own files must not
ask for code (`require_plain_config`), and weights must be complete and finite.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import UserError
from common.json_file import checked, read_json
from vlm.image_input import ImageConfig

METADATA, TRAINING, WEIGHTS = "pvplay.json", "training.json", "model.safetensors"
ADAPTER = "adapter_config.json"  # of peft: transformers would load the base model that it names
CODE, KERNELS = "auto_map", ("attn_implementation", "_attn_implementation")
MAX_LAYERS = 1000
OLD_NAMES = {  # keys and kinds in checkpoints of version 0.1
    "canvas": "square_size",
    "motion": "frame_diff_scale",
    "places": "coordinate_channels",
    "foreign-vlm": "pretrained-vlm",
    "points": "point_grid",
    "points_shift": "logit_bias",
    "moved": "parameter_updates",
}
Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=2**14)]


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another kind; the message names the file."""


class PlaySettings(BaseModel):
    """How a checkpoint is to be played."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class TrainingArguments(BaseModel):
    """The arguments that readers of a checkpoint use; those of one training lack some."""

    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    grid: Annotated[str, Field(max_length=99)] | Annotated[int, Field(ge=1, le=1024)] | None = None
    order: Literal["row,column", "x,y"] | None = None
    pvp_weight: Finite | None = None
    pvp_config: str | None = None


class TrainingMetadata(BaseModel):
    """What readers use of `training.json`; it holds more."""

    model_config = ConfigDict(extra="allow")

    games: list[str] | None = None
    play: PlaySettings = PlaySettings()
    arguments: TrainingArguments = TrainingArguments()
    point_grid: Annotated[int, Field(ge=1, le=1024)] = 32
    logit_bias: Finite = 0.0
    started_from: "TrainingMetadata | None" = None


def read_object(directory: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint, old keys by their new names."""
    file = directory / name
    if not directory.exists():
        raise CheckpointError(f"expected a checkpoint directory, got {directory}, which does not exist")
    if not file.is_file():
        raise CheckpointError(f"expected a checkpoint directory with {name} in it, got {directory}")
    try:
        content = read_json(file)
    except UserError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged: expected an object")
    return {str(OLD_NAMES.get(key, key)): value for key, value in content.items()}


def read_kind(directory: Path) -> str | None:
    """Return the kind of model of a checkpoint."""
    kind = read_object(directory, METADATA).get("kind")
    return OLD_NAMES.get(str(kind), kind)


def read_image_config(directory: Path) -> ImageConfig:
    """Return how a checkpoint's model is given its images."""
    fields = read_object(directory, METADATA)
    fields.pop("kind", None)
    try:
        return checked(fields, ImageConfig, directory / METADATA)
    except UserError as error:
        raise CheckpointError(str(error)) from error


def read_training_file(directory: Path) -> dict[str, Any]:
    """Return the content of `training.json`."""
    content = read_object(directory, TRAINING)
    try:
        checked(content, TrainingMetadata, directory / TRAINING)
    except UserError as error:
        raise CheckpointError(str(error)) from error
    return content


def stored_sizes(directory: Path) -> dict[str, int]:
    """Return the number of values of each tensor in a directory's weights, from the heads of the files."""
    files = sorted(directory.glob("model*.safetensors"))  # large models are sharded
    if not files:
        raise CheckpointError(f"expected weights in {directory / WEIGHTS}, found none; pickles are not read")
    sizes: dict[str, int] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                sizes |= {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{file} or a file beside it is damaged: {error}") from error
    return sizes


def require_plain_config(directory: Path) -> None:
    """Refuse a directory whose files ask for code of their own, or name another model to be loaded in its place."""
    if (directory / ADAPTER).exists():
        raise CheckpointError(
            f"expected a whole model, got {directory / ADAPTER}, an adapter of peft: "
            "merge it into its base model (merge_and_unload) and save that"
        )
    for file in sorted(directory.glob("*config.json")):
        for key, value in _entries(read_object(directory, file.name)):
            if isinstance(value, int) and value > MAX_LAYERS and ("layers" in key or "depth" in key):
                raise CheckpointError(f"{file} is damaged: expected at most {MAX_LAYERS} {key}, got {value}")
            if key == CODE or (key in KERNELS and "/" in str(value)):
                raise CheckpointError(
                    f"{file} asks to run code of its own ({key}), which is refused; "
                    "if transformers has a class for the model, it loads without that entry"
                )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth; a list's items have the key of the list."""
    for key, one in value.items() if isinstance(value, dict) else ():
        yield from ((key, item) for item in (one if isinstance(one, list) else [one]))
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _entries(one)


def require_enough_weights(model: nn.Module, directory: Path) -> None:
    """Refuse weights that are fewer than those of the model of `config.json`, which would be filled with random ones.

    The model is on the meta device: one of many weights takes no memory before it is refused.
    """
    stored = sum(stored_sizes(directory).values())
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > stored and not getattr(model.config, "quantization_config", None):
        raise CheckpointError(f"{directory} lacks weights of its model: {needed:,} are needed, {stored:,} are stored")


def require_finite(tensors: Iterable[tuple[str, Tensor]], file: Path) -> None:
    """Refuse weights with a NaN or an infinite value, by the name of the tensor."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{file} is damaged: expected finite weights, got NaN or infinity in {name}")
