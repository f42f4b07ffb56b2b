"""LoRA (Hu et al. 2021) on the decoder alone, through peft, beside a fully trained encoder.

Vision towers and decoders name their layers alike, so that `target_modules=["q_proj", "v_proj"]` would adapt both. Here
the layers are those of `PixelVLM.decoder`, by their full names. What a training resumes from holds the plain model and
the adapters, in a file of their own; of a quantized model (QLoRA), only what trains. Everywhere else a checkpoint is a
plain model, with the adapters folded into its weights.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from common.processes import is_main_process
from vlm import checkpoint
from vlm.hf_vlm import PretrainedVLM
from vlm.model import PixelModel, PixelVLM
from vlm.training.quantization import is_quantized, named_as_quantized, unquantized_weights
from vlm.training.sharding import whole

ADAPTERS = "adapters.safetensors"
TRAINED = "trained.safetensors"  # of a quantized model, whose other weights are those that it started from
BASE = ".base_layer"  # what peft adds to the name of an adapted layer's weights


def add_lora(vlm: PixelModel, rank: int) -> None:
    """Add an adapter to every linear layer of the decoder, in place; a new one changes no output."""
    if not isinstance(vlm, PixelVLM):
        raise UserError(f"LoRA needs a model with a decoder, got {vlm.kind}")
    inside = {id(module) for module in vlm.decoder.modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in vlm.model.named_modules() if id(module) in inside]
    with named_as_quantized(vlm):
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), vlm.model)


def _adapted_layers(model: nn.Module) -> list[tuple[nn.Module, str, LoraLayer]]:
    """Return every adapted layer with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, LoraLayer)
    ]


def adapters(vlm: PixelModel) -> dict[str, Tensor]:
    """Return the adapters' tensors by name; none where there is no LoRA."""
    return {name: tensor for name, tensor in vlm.model.state_dict().items() if "lora_" in name}


@contextlib.contextmanager
def _without_adapters(vlm: PixelModel) -> Iterator[None]:
    """Put the base layers in place of the adapted ones for a while."""
    layers = _adapted_layers(vlm.model)
    try:
        for parent, name, layer in layers:
            setattr(parent, name, layer.get_base_layer())
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


@torch.no_grad()
def plain_weights(vlm: PixelModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the plain model with their names, one whole after the other, the adapters folded in.

    Every process asks for all of them, since each may hold a part.
    """
    layers = {name: layer for name, layer in vlm.model.named_modules() if isinstance(layer, LoraLayer)}
    start = unquantized_weights(vlm)
    for full_name, tensor in vlm.model.state_dict().items():
        name = full_name.replace(f"{BASE}.", ".")
        owner, _, kind = name.rpartition(".")
        if "lora_" in name or f"{BASE}.weight." in full_name:  # the scales of quantized weights
            continue
        if owner in layers and kind == "weight":
            base = start[name] if name in start and is_quantized(vlm) else whole(tensor)
            yield name, _folded(base, layers[owner])
        else:
            yield name, whole(tensor)


def _folded(base: Tensor, layer: Any) -> Tensor:
    """Return the weights of an adapted layer with its adapter folded in, on the CPU: a GPU may have no room."""
    (adapter,) = layer.active_adapters
    down, up = (whole(part[adapter].weight).float() for part in (layer.lora_A, layer.lora_B))
    return (base.cpu().float() + layer.scaling[adapter] * (up @ down).cpu()).to(base.dtype)


def save_plain(
    vlm: PixelModel,
    directory: Path,
    metadata: dict[str, Any],
    dtype: torch.dtype | None = None,
    export: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint of the plain model, as `plain_weights` has it; the adapters may go on training."""
    weights = {name: tensor for name, tensor in plain_weights(vlm) if is_main_process()}
    with _without_adapters(vlm):
        checkpoint.save(vlm, directory, metadata, dtype, export, weights)


def save(vlm: PixelModel, directory: Path, metadata: dict[str, Any]) -> None:
    """Write a checkpoint for `restore`."""
    if is_quantized(vlm):
        directory.mkdir(parents=True, exist_ok=True)
        save_file(_on_cpu(_trained(vlm)), directory / TRAINED)
        return
    with _without_adapters(vlm):
        checkpoint.save(vlm, directory, metadata)
    if found := adapters(vlm):
        save_file(_on_cpu(found), directory / ADAPTERS)


def restore(vlm: PixelModel, directory: Path) -> None:
    """Load the weights of a checkpoint of `save` into a model with the same adapters."""
    if is_quantized(vlm):
        _load(vlm, directory / TRAINED, _trained(vlm))
        return
    with _without_adapters(vlm):
        is_pretrained = isinstance(vlm, PretrainedVLM)
        stored = checkpoint.load_pretrained(directory) if is_pretrained else checkpoint.load_as(type(vlm), directory)
        vlm.model.load_state_dict(stored.model.state_dict())
    _load(vlm, directory / ADAPTERS, adapters(vlm))


def _trained(vlm: PixelModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in vlm.model.named_parameters() if parameter.requires_grad}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load(vlm: PixelModel, file: Path, expected: Mapping[str, Tensor]) -> None:
    found = load_file(file) if file.is_file() else {}
    if set(expected) != set(found):
        raise checkpoint.CheckpointError(f"{file} holds {len(found)} tensors, expected {len(expected)}")
    vlm.model.load_state_dict(found, strict=False)
