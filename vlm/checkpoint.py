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
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from common.errors import UserError
from common.files import atomic_directory
from common.processes import is_main_process
from vlm.checkpoint_files import (
    METADATA,
    TRAINING,
    WEIGHTS,
    CheckpointError,
    read_image_config,
    read_kind,
    read_training_file,
    require_enough_weights,
    require_finite,
    require_plain_config,
)
from vlm.device import best_device
from vlm.hf_processor import load_processor, missing_package
from vlm.hf_vlm import PretrainedVLM, looks_like_id, require_known_id
from vlm.image_tokens import limit_image_tokens
from vlm.model import PixelModel, PixelVLM
from vlm.patch_expansion import NAME as EXPANSION
from vlm.patch_expansion import expansion_of
from vlm.prompts import IMAGE

Model = TypeVar("Model", bound=PixelModel)
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # of a model on the hub that are downloaded
NOT_HUB_FILES = ["*/*", "consolidated*"]  # the same weights in other forms


def save(
    vlm: PixelModel,
    directory: Path,
    training: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    export: Callable[[Path], None] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint atomically, replacing an existing one; only the main process writes.

    `training` is the content of `training.json`. The weights are stored in `dtype`, by default the model's own.
    `export` writes more files into the directory, before it appears. `weights` are those to store by name, where they
    are not the model's own.
    """
    if not is_main_process():
        return
    weights = vlm.model.state_dict() if weights is None else weights
    if dtype is not None:
        others = {name: tensor.to("cpu", dtype) for name, tensor in weights.items() if tensor.dtype != dtype}
        weights = {**weights, **others}  # a GPU may have no room for another copy
    metadata = {"kind": vlm.kind, **dataclasses.asdict(vlm.image_config)}
    with atomic_directory(directory) as temporary:
        vlm.model.save_pretrained(temporary, state_dict=weights)
        vlm.processor.save_pretrained(temporary)
        (temporary / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
        (temporary / TRAINING).write_text(json.dumps(training or {}, indent=1) + "\n")
        if export:
            export(temporary)


def load(
    directory: Path,
    device: torch.device | None = None,
    image_tokens: int | None = None,
    history: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> PixelVLM:
    """Return a model in a type and in evaluation mode, on a device, by default a GPU if there is one.

    `directory` is a checkpoint, a directory of transformers' own files, or the id of a model on the hub. `image_tokens`
    is the most that one of transformers' models may take for an image (`vlm.image_tokens`), and `history` the number of
    frames it sees, each as an image; by default those of the checkpoint, else one tile of one frame.

    Raises:
        CheckpointError: it is missing, damaged or of another kind.
        UserError: the model's class cannot take so few tokens or so many frames.
    """
    directory = resolve(directory)
    if (directory / METADATA).is_file():
        is_pretrained = read_kind(directory) == PretrainedVLM.kind
    else:
        require_plain_config(directory)
        is_pretrained = (directory / "config.json").is_file()
    vlm = load_pretrained(directory, dtype) if is_pretrained else load_as(PixelVLM, directory, dtype)
    _require_same_tokens(vlm, directory)
    if isinstance(vlm, PretrainedVLM):
        vlm.image_config = dataclasses.replace(vlm.image_config, history=history or vlm.history)
        if image_tokens is not None or not (directory / METADATA).is_file():
            limit_image_tokens(vlm, image_tokens)
    elif image_tokens is not None or history is not None:
        raise UserError(f"--image-tokens and --history are for models of transformers, got {directory}")
    vlm.model.to(device or best_device())
    return vlm


def is_preset(directory: Path) -> bool:
    """Return whether a checkpoint is of a preset, whose image input is its own, and not one of transformers' models."""
    directory = resolve(directory)
    return (directory / METADATA).is_file() and read_kind(directory) != PretrainedVLM.kind


def resolve(name: Path) -> Path:
    """Return the directory of a checkpoint: its own, or that of a model on the hub, downloaded where it is not yet."""
    name = Path(name)
    return name if name.exists() or not looks_like_id(str(name)) else _snapshot(str(name))


@cache  # a run uses one revision of a model
def _snapshot(name: str) -> Path:
    require_known_id(name)
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES))
    except Exception as error:  # of the network, of the cache, or of the hub
        reason = " ".join(str(error).split()) or type(error).__name__
        expected = "expected a directory, or the id of a model on the hub"
        raise CheckpointError(f"{expected}, got {name}, which is neither here nor to be had: {reason:.200}") from error


def load_pretrained(directory: Path, dtype: torch.dtype = torch.float32) -> PretrainedVLM:
    """Return one of transformers' models on the CPU, with its processor; raises as `load` does."""
    name = str(directory)
    require_plain_config(directory)
    damage = f"expected a vision-language model of transformers at {name}"
    model, report = _from_pretrained(AutoModelForImageTextToText, name, damage, dtype)
    with _damage(damage):
        processor = load_processor(directory)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise CheckpointError(f"expected a processor of images and text at {name}, got {type(processor).__name__}")
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{name} lacks {len(missing)} weights of its model: {', '.join(missing[:3])}")
    require_finite(model.state_dict().items(), directory)
    if (directory / METADATA).is_file():
        return PretrainedVLM(model.eval(), processor, read_image_config(directory))
    return PretrainedVLM(model.eval(), processor)


def load_as(model_class: type[Model], directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    """Return the model of a checkpoint of a given class, on the CPU; raises as `load` does."""
    directory = resolve(directory)
    if (kind := read_kind(directory)) != model_class.kind:
        raise CheckpointError(f"{directory / METADATA}: expected a checkpoint of kind {model_class.kind}, got {kind}")
    if not (directory / WEIGHTS).is_file():
        raise CheckpointError(f"{directory} is incomplete: {WEIGHTS} is missing")
    require_plain_config(directory)
    image_config, damage = read_image_config(directory), f"{directory / WEIGHTS} or a file beside it is damaged"
    model, report = _from_pretrained(model_class.auto_class, str(directory), damage, dtype, local_files_only=True)
    with _damage(damage):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        unexpected = _load_expansion(model, directory / WEIGHTS, report["unexpected_keys"])
    if mismatched := sorted(report["missing_keys"]) + sorted(unexpected):
        raise CheckpointError(f"{directory / WEIGHTS} does not fit its config.json: {', '.join(mismatched[:3])}")
    require_finite(itertools.chain(model.named_parameters(), model.named_buffers()), directory / WEIGHTS)
    loaded = model_class(model.eval(), tokenizer, image_config)
    _require_same_input(loaded, directory)
    if isinstance(loaded, PixelVLM):
        _require_same_tokens(loaded, directory)
    with _damage(damage):
        _try_out(loaded)
    return loaded


def _from_pretrained(
    auto_class: Any, name: str, damage: str, dtype: torch.dtype, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model and transformers' report; code and pickles of the checkpoint are never run."""
    with _damage(damage):
        if Path(name).is_dir():
            config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):  # takes no memory
                require_enough_weights(getattr(auto_class, "from_config", auto_class)(config), Path(name))
        model, report = auto_class.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    return model, report


@contextmanager
def _damage(message: str) -> Iterator[None]:
    """Turn the errors of a damaged file, which can be of nearly any type, into a `CheckpointError`; log nothing else.

    What would be logged of a model's weights is checked here, and a patch expansion is loaded here.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{message}: {missing_package(error)}") from error
    except Exception as error:
        raise CheckpointError(f"{message}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    finally:
        logging.set_verbosity(before)


def _require_same_input(model: PixelModel, directory: Path) -> None:
    """Refuse an `ImageConfig` of other channels or of another square than the model's encoder takes."""
    config, encoder = model.image_config, model.encoder.config
    for name, own, expected in (
        ("channels", config.channels, getattr(encoder, "num_channels", config.channels)),
        ("square_size", config.square_size, getattr(encoder, "image_size", config.square_size)),
    ):
        if own != expected:
            reason = f"its images have {name} {own}, its model takes {expected}"
            raise CheckpointError(f"{directory / METADATA} does not fit config.json: {reason}")


@torch.no_grad()
def _try_out(model: PixelModel) -> None:
    """Compute a few black pixels' features, so that sizes that do not fit together are found here."""
    side = min(8, model.image_config.square_size or 8)
    images = model.preprocess(torch.zeros(1, model.history, side, side, 3, dtype=torch.uint8))
    if not isinstance(model, PixelVLM):
        model.model.get_image_features(pixel_values=images)
        return
    tokens = model.encode_cells(images).tokens
    model.decoder(inputs_embeds=tokens[:, :4])
    model.embed(torch.tensor([model.bos_ids], dtype=torch.long))


def _require_same_tokens(vlm: PixelVLM, directory: Path) -> None:
    """Refuse a tokenizer, or an image token, with ids beyond the model's embeddings."""
    count, image = vlm.model.get_input_embeddings().num_embeddings, getattr(vlm.model.config, "image_token_id", None)
    if image is not None and not (isinstance(image, int) and 0 <= image < count):
        raise CheckpointError(f"{directory} is damaged: expected an image token of {count}, got {image!r}")
    if (last := max(vlm.tokenizer.get_vocab().values(), default=-1)) >= count:
        raise CheckpointError(f"{directory} is damaged: expected at most {count} tokens, got the token {last}")
    generation = getattr(vlm.model, "generation_config", None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = getattr(generation, name, None)
        for token in given if isinstance(given, list) else [] if given is None else [given]:
            if type(token) is not int or not -1 <= token < count:  # -1 for none, in some models
                reason = f"expected a {name} of {count}, got {token!r}"
                raise CheckpointError(f"{directory / 'generation_config.json'} is damaged: {reason:.200}")
    if vlm.kind == PixelVLM.kind and vlm.tokenizer.convert_tokens_to_ids(IMAGE) != image:
        raise CheckpointError(f"{directory}: the image token of its tokenizer is not that of config.json, {image}")


def _load_expansion(model: PreTrainedModel, file: Path, unexpected: Collection[str]) -> set[str]:
    """Add the patch expansion whose weights are among the unexpected ones, if any; return the others' names."""
    names = {name for name in unexpected if name.startswith(f"{EXPANSION}.")}
    if names:
        with safe_open(file, "pt") as weights:
            found = {name.removeprefix(f"{EXPANSION}."): weights.get_tensor(name) for name in names}
        model.add_module(EXPANSION, expansion_of(found).to(model.dtype))
    return set(unexpected) - names


def read_training(directory: Path) -> dict[str, Any]:
    """Return the `training.json` of a checkpoint; empty for a pretrained model without one."""
    directory = resolve(directory)
    if not (directory / TRAINING).is_file() and (directory / "config.json").is_file():
        return {}
    return read_training_file(directory)


def training_resolution(directory: Path) -> tuple[int, int] | None:
    """Return the rows and columns of a checkpoint's training images, if its `training.json` has them."""
    size = read_training(directory).get("arguments", {}).get("size")
    return (int(size[0]), int(size[1])) if size else None


def content_hash(directory: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a checkpoint's weights: its name in results."""
    directory = resolve(directory)
    files = sorted(directory.glob("model*.safetensors"))  # large models are sharded
    if not files:
        missing = (
            f" with {WEIGHTS} in it, got {directory}"
            if directory.exists()
            else f", got {directory}, which does not exist"
        )
        raise CheckpointError(f"expected a checkpoint directory{missing}")
    return _hash_files(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache  # the weights of a large model take a minute to read
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as stream:
            while part := stream.read(2**24):
                digest.update(part)
    return digest.hexdigest()[:12]
