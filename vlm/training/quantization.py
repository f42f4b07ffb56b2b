"""The decoder in four bits, for QLoRA (Dettmers et al. 2023): frozen, beside an encoder that is not quantized.

bitsandbytes stores each weight matrix as NF4, its scales quantized once more, and computes in the type of the weights
that it got. Adapters train beside it (`vlm.training.lora`); a checkpoint has the weights that the training started from
again, the adapters folded in, so that what was rounded to four bits is lost in training alone.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.errors import UserError
from vlm.device import best_device
from vlm.model import PixelVLM

EXTRA = "pip install -e '.[quantize]'"


def require_quantization() -> None:
    """Raise `UserError` where no model can be quantized."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--quantize nf4 needs the package bitsandbytes, which is not installed; {EXTRA} installs it")
    if best_device().type != "cuda":
        raise UserError("--quantize nf4 needs a GPU, found none; without --quantize LoRA trains on a CPU too")


def quantize_decoder(vlm: PixelVLM, start: Callable[[], PixelVLM]) -> None:
    """Quantize the decoder's linear layers once they are moved to a device; `start` loads the same model whole."""
    import bitsandbytes as bnb

    dtype, decoder = vlm.decoder.dtype, vlm.decoder
    linear = [(name, module) for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    for name, layer in linear:
        with torch.device("meta"):
            new = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
            )
        new.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4", module=new)
        new.bias = layer.bias
        decoder.set_submodule(name, new)
    vlm.unquantized = start


def is_quantized(vlm: object) -> bool:
    """Return whether a model's decoder is quantized."""
    return getattr(vlm, "unquantized", None) is not None


def unquantized_weights(vlm: object) -> Mapping[str, Tensor]:
    """Return the weights that a quantized model started from, on the CPU; none of another model."""
    start = getattr(vlm, "unquantized", None)
    return {} if start is None else start().model.state_dict()


@contextmanager
def named_as_quantized(vlm: PixelVLM) -> Iterator[None]:
    """Tell peft within the context that a quantized model is one."""
    if not is_quantized(vlm):
        yield
        return
    vlm.model.is_loaded_in_4bit = True
    try:
        yield
    finally:
        del vlm.model.is_loaded_in_4bit
