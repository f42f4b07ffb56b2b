"""LoRA (Hu et al. 2021) on the decoder alone, through peft, beside a fully trained encoder.

Vision towers and decoders name their layers alike, so that `target_modules=["q_proj", "v_proj"]` would adapt both. Here
the layers are those of `PixelVLM.decoder`, by their full names. A checkpoint holds the plain model and the adapters, in
a file of their own; `merge` folds them into the weights at the end.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from vlm import checkpoint
from vlm.hf_vlm import PretrainedVLM
from vlm.model import PixelModel, PixelVLM

ADAPTERS = "adapters.safetensors"


def add_lora(vlm: PixelModel, rank: int) -> None:
    """Add an adapter to every linear layer of the decoder, in place; a new one changes no output."""
    if not isinstance(vlm, PixelVLM):
        raise UserError(f"LoRA needs a model with a decoder, got {vlm.kind}")
    inside = {id(module) for module in vlm.decoder.modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in vlm.model.named_modules() if id(module) in inside]
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


def merge(vlm: PixelModel) -> None:
    """Fold the adapters into the decoder's weights, in place; the outputs stay the same."""
    for parent, name, layer in _adapted_layers(vlm.model):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())


def save(vlm: PixelModel, directory: Path, metadata: dict[str, Any]) -> None:
    """Write a checkpoint for `restore`: the plain model, and the adapters if there are any."""
    with _without_adapters(vlm):
        checkpoint.save(vlm, directory, metadata)
    if found := adapters(vlm):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}, directory / ADAPTERS)


def restore(vlm: PixelModel, directory: Path) -> None:
    """Load the weights of a checkpoint of `save` into a model with the same adapters."""
    with _without_adapters(vlm):
        is_pretrained = isinstance(vlm, PretrainedVLM)
        stored = checkpoint.load_pretrained(directory) if is_pretrained else checkpoint.load_as(type(vlm), directory)
        vlm.model.load_state_dict(stored.model.state_dict())
    expected, file = set(adapters(vlm)), Path(directory) / ADAPTERS
    found = load_file(file) if file.is_file() else {}
    if expected != set(found):
        raise checkpoint.CheckpointError(f"{directory} holds {len(found)} adapter tensors, expected {len(expected)}")
    vlm.model.load_state_dict(found, strict=False)
