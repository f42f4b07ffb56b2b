"""One directory that reloads everything in one call, and that plain transformers loads as well.

    config.json, model.safetensors    transformers' own; `AutoModelForImageTextToText.from_pretrained(DIR)`
    tokenizer.json, ...               transformers' own; `AutoTokenizer.from_pretrained(DIR)`
    pvplay.json                       what is metadata: the kind of checkpoint, and its `vlm.model.View` of frames
    training.json                     how it was made: commands, seeds, commit, games, figures

A checkpoint is written aside and moved into place whole.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from common.errors import UserError
from common.files import atomic_directory
from vlm.device import best_device, is_main_process
from vlm.hf_vlm import PretrainedVLM, looks_like_id
from vlm.model import ImageConfig, PixelModel, PixelVLM

METADATA, TRAINING, WEIGHTS = "pvplay.json", "training.json", "model.safetensors"
OLD_NAMES = {  # what checkpoints of version 0.1 call a key or a kind
    "canvas": "square_size",
    "motion": "frame_diff_scale",
    "places": "coordinate_channels",
    "foreign-vlm": "pretrained-vlm",
    "points": "point_grid",
    "points_shift": "logit_bias",
    "moved": "parameter_updates",
}

Model = TypeVar("Model", bound=PixelModel)


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another kind; the message names the file."""


def save(vlm: PixelModel, directory: Path, training: dict[str, Any] | None = None, half: bool = False) -> None:
    """Write a checkpoint; an old one of that name is replaced when the new one is whole.

    With `half` the weights are stored in bfloat16, half the size, and read back into float32. Of several processes of a
    run the first one writes.
    """
    if not is_main_process():
        return
    weights = vlm.model.state_dict()
    if half:
        weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    metadata = {"kind": vlm.kind, **dataclasses.asdict(vlm.image_config)}
    with atomic_directory(directory) as temporary:
        vlm.model.save_pretrained(temporary, state_dict=weights)
        vlm.save_tokenizer(temporary)
        (temporary / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
        (temporary / TRAINING).write_text(json.dumps(training or {}, indent=1) + "\n")


def load(directory: Path, device: torch.device | None = None) -> PixelVLM:
    """Return the model of a checkpoint, in float32, ready to be asked, on a GPU if there is one or on `device`.

    A checkpoint is one of metadata, a directory of transformers' own files, or the id of a model on the hub.
    """
    vlm = _load(Path(directory))
    vlm.model.to(device or best_device())
    return vlm


def _load(directory: Path) -> PixelVLM:
    plain = directory / "config.json"
    if (directory / METADATA).is_file() and _kind(_read_json(directory, METADATA)) != PretrainedVLM.kind:
        return load_as(PixelVLM, directory)
    if plain.is_file() or (not directory.exists() and looks_like_id(str(directory))):
        return load_pretrained(str(directory))
    return load_as(PixelVLM, directory)


def load_pretrained(name: str) -> PretrainedVLM:
    """Return a model of others, by its directory or its id; `CheckpointError` if it is no vision-language model."""
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(name)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"expected a vision-language model of transformers at {name}: {first}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(f"expected a processor of images and text at {name}, got {type(processor).__name__}")
    return PretrainedVLM(model.eval(), processor)


def load_as(form: type[Model], directory: Path) -> Model:
    """Return what a checkpoint of one of our forms holds, in float32 on the CPU."""
    directory = Path(directory)
    metadata = _read_json(directory, METADATA)
    if _kind(metadata) != form.kind:
        raise CheckpointError(
            f"{directory / METADATA}: expected a checkpoint of kind {form.kind}, got {_kind(metadata)}"
        )
    if not (directory / WEIGHTS).is_file():
        raise CheckpointError(f"{directory} is not a whole checkpoint: {WEIGHTS} is missing")
    try:
        model, report = form.library.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{directory / WEIGHTS} or a file beside it is damaged: {first}") from error
    lacking = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if lacking:
        raise CheckpointError(f"{directory / WEIGHTS} does not fit its config.json: {', '.join(lacking[:3])}")
    return form(model.eval(), tokenizer, _image_config(directory, metadata))


def _image_config(directory: Path, metadata: dict[str, Any]) -> ImageConfig:
    known = {field.name for field in dataclasses.fields(ImageConfig)}
    if strange := sorted(set(metadata) - known - {"kind"}):
        raise CheckpointError(f"{directory / METADATA}: expected {', '.join(sorted(known))}, got {', '.join(strange)}")
    return ImageConfig(**{name: value for name, value in metadata.items() if name in known})


def _kind(metadata: dict[str, Any]) -> str | None:
    kind = metadata.get("kind")
    return OLD_NAMES.get(str(kind), kind)


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    file = directory / name
    if not directory.exists():
        raise CheckpointError(f"expected a checkpoint directory, got {directory}, which does not exist")
    if not file.is_file():
        raise CheckpointError(f"expected a checkpoint directory with {name} in it, got {directory}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged: expected an object")
    return {OLD_NAMES.get(key, key): value for key, value in content.items()}


def read_training(directory: Path) -> dict[str, Any]:
    """Return how a checkpoint was made; of a model of others, nothing is known."""
    directory = Path(directory)
    if not (directory / TRAINING).is_file() and (
        looks_like_id(str(directory)) or (directory / "config.json").is_file()
    ):
        return {}
    return _read_json(directory, TRAINING)


def content_hash(directory: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a checkpoint's weights: its name in results."""
    files = sorted(Path(directory).glob("model*.safetensors"))  # large models come in several
    if not files:
        raise CheckpointError(f"expected a checkpoint directory with {WEIGHTS} in it, got {directory}")
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]
