"""A checkpoint directory: one call saves or loads it, and plain transformers loads it too.

    config.json, model.safetensors    transformers' own; `AutoModelForImageTextToText.from_pretrained(DIR)`
    tokenizer.json, ...               transformers' own; `AutoTokenizer.from_pretrained(DIR)`
    pvplay.json                       metadata: the kind of model and its `ImageConfig`
    training.json                     provenance: arguments, seeds, commit, games, metrics
    auxiliary.safetensors             modules that only training needs (`vlm.training.fit`), if any

A checkpoint is written into a temporary directory and renamed when complete.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from common.errors import UserError
from common.files import atomic_directory
from common.processes import is_main_process
from vlm.device import best_device
from vlm.hf_vlm import PretrainedVLM, looks_like_id
from vlm.image_input import ImageConfig
from vlm.model import PixelModel, PixelVLM
from vlm.patch_expansion import NAME as EXPANSION
from vlm.patch_expansion import expansion_of

METADATA, TRAINING, WEIGHTS = "pvplay.json", "training.json", "model.safetensors"
OLD_NAMES = {  # keys and kinds in checkpoints of version 0.1
    "canvas": "square_size",
    "motion": "frame_diff_scale",
    "places": "coordinate_channels",
    "foreign-vlm": "pretrained-vlm",
    "points": "point_grid",
    "points_shift": "logit_bias",
    "moved": "parameter_updates",
}
LOAD_ERRORS = (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError)

Model = TypeVar("Model", bound=PixelModel)


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another kind; the message names the file."""


def save(
    vlm: PixelModel,
    directory: Path,
    training: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    export: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint atomically, replacing an existing one; only the main process writes.

    `training` is the content of `training.json`. The weights are stored in `dtype`, by default the model's own; `load`
    returns float32 in either case. `export` writes more files into the directory, before it appears.
    """
    if not is_main_process():
        return
    weights = vlm.model.state_dict()
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    metadata = {"kind": vlm.kind, **dataclasses.asdict(vlm.image_config)}
    with atomic_directory(directory) as temporary:
        vlm.model.save_pretrained(temporary, state_dict=weights)
        vlm.processor.save_pretrained(temporary)
        (temporary / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
        (temporary / TRAINING).write_text(json.dumps(training or {}, indent=1) + "\n")
        if export:
            export(temporary)


def load(directory: Path, device: torch.device | None = None) -> PixelVLM:
    """Return a model in float32 and evaluation mode, on a device, by default a GPU if there is one.

    `directory` is a checkpoint, a directory of transformers' own files, or the id of a model on the hub.

    Raises:
        CheckpointError: it is missing, damaged or of another kind.
    """
    directory = Path(directory)
    if (directory / METADATA).is_file():
        is_pretrained = _kind(_read_json(directory, METADATA)) == PretrainedVLM.kind
    else:
        is_pretrained = _is_transformers_model(directory)
    vlm = _load_pretrained(str(directory)) if is_pretrained else load_as(PixelVLM, directory)
    vlm.model.to(device or best_device())
    return vlm


def _is_transformers_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() or (not directory.exists() and looks_like_id(str(directory)))


def _load_pretrained(name: str) -> PretrainedVLM:
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(name)
    except LOAD_ERRORS as error:
        reason = _first_line(error)
        raise CheckpointError(f"expected a vision-language model of transformers at {name}: {reason}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(f"expected a processor of images and text at {name}, got {type(processor).__name__}")
    return PretrainedVLM(model.eval(), processor)


def load_as(model_class: type[Model], directory: Path) -> Model:
    """Return the model of a checkpoint of a given class, in float32 on the CPU; raises as `load` does."""
    directory = Path(directory)
    metadata = _read_json(directory, METADATA)
    if (kind := _kind(metadata)) != model_class.kind:
        raise CheckpointError(f"{directory / METADATA}: expected a checkpoint of kind {model_class.kind}, got {kind}")
    if not (directory / WEIGHTS).is_file():
        raise CheckpointError(f"{directory} is incomplete: {WEIGHTS} is missing")
    try:
        with _without_warnings():  # of a patch expansion, which is loaded here; other mismatches are errors
            model, report = model_class.auto_class.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{directory / WEIGHTS} or a file beside it is damaged: {_first_line(error)}") from error
    unexpected = _load_expansion(model, directory / WEIGHTS, report["unexpected_keys"])
    if mismatched := sorted(report["missing_keys"]) + sorted(unexpected):
        raise CheckpointError(f"{directory / WEIGHTS} does not fit its config.json: {', '.join(mismatched[:3])}")
    known = {field.name for field in dataclasses.fields(ImageConfig)}
    if unknown := sorted(set(metadata) - known - {"kind"}):
        raise CheckpointError(f"{directory / METADATA}: expected {', '.join(sorted(known))}, got {', '.join(unknown)}")
    image_config = ImageConfig(**{name: value for name, value in metadata.items() if name in known})
    return model_class(model.eval(), tokenizer, image_config)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Let transformers log errors alone within the context."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _load_expansion(model: PreTrainedModel, file: Path, unexpected: Collection[str]) -> set[str]:
    """Add the patch expansion whose weights are among the unexpected ones, if any; return the others' names."""
    names = {name for name in unexpected if name.startswith(f"{EXPANSION}.")}
    if names:
        with safe_open(file, "pt") as weights:
            found = {name.removeprefix(f"{EXPANSION}."): weights.get_tensor(name).float() for name in names}
        model.add_module(EXPANSION, expansion_of(found))
    return set(unexpected) - names


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    return {str(OLD_NAMES.get(key, key)): value for key, value in content.items()}


def read_training(directory: Path) -> dict[str, Any]:
    """Return the `training.json` of a checkpoint; empty for a pretrained model without one."""
    directory = Path(directory)
    if not (directory / TRAINING).is_file() and _is_transformers_model(directory):
        return {}
    return _read_json(directory, TRAINING)


def training_resolution(directory: Path) -> tuple[int, int] | None:
    """Return the rows and columns of a checkpoint's training images, if its `training.json` has them."""
    size = read_training(directory).get("arguments", {}).get("size")
    return (int(size[0]), int(size[1])) if size else None


def content_hash(directory: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a checkpoint's weights: its name in results."""
    files = sorted(Path(directory).glob("model*.safetensors"))  # large models are sharded
    if not files:
        raise CheckpointError(f"expected a checkpoint directory with {WEIGHTS} in it, got {directory}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
