"""Pretrained vision-language models of transformers, with their own processors.

    vlm = checkpoint.load(Path("llava-hf/llava-1.5-7b-hf"))                  by its id on the hub
    vlm = checkpoint.load(Path("models/llava"))                             or as a directory of transformers' own files

The processor resizes, normalizes and tiles images as in the model's training, and writes an image's placeholder and
marker tokens in a prompt. These models were trained on single images, so they get the current frame only.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from PIL import Image
from transformers import PreTrainedModel

from common.errors import UserError
from vlm.image_input import ImageConfig, ImageInputs
from vlm.model import Frames, PixelVLM

HUB_SECONDS = 10  # that the hub may take to answer
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class PretrainedVLM(PixelVLM):
    """A pretrained model with its processor."""

    kind = "pretrained-vlm"

    def __init__(self, model: PreTrainedModel, processor: Any):
        super().__init__(model, processor.tokenizer, ImageConfig())
        self.processor = processor
        if getattr(processor.image_processor, "do_image_splitting", False):
            processor.image_processor.do_image_splitting = False  # tiles of a small frame would be enlargements
        self._image_token = getattr(processor, "image_token", None) or "<image>"

    def preprocess(self, frames: Frames) -> Any:
        """Return the `ImageInputs` of frames uint8[B, 1, H, W, 3]."""
        frames = torch.as_tensor(frames).cpu()
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != 1:
            raise UserError(f"expected frames uint8[B, 1, H, W, 3], got {frames.dtype}{list(frames.shape)}")
        images = [Image.fromarray(frame) for frame in frames[:, 0].numpy()]
        texts = [self._image_token] * len(images)
        processed = self.processor(text=texts, images=images, return_tensors="pt", add_special_tokens=False)
        inputs = ImageInputs({name: t.to(self.device) for name, t in processed.items() if name not in TEXT_INPUTS})
        inputs.image_ids, inputs.num_images = processed["input_ids"][0].to(self.device), len(images)
        return inputs


def looks_like_id(name: str) -> bool:
    """Whether a name may be the id of a model on the hub: an owner, which is no directory here, and a model."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not (name.startswith((".", "~", "runs/")) or Path(parts[0]).is_dir())


def require_known_id(name: str) -> None:
    """Refuse an id whose model is not stored here and that the hub, asked once, does not know."""
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception as error:  # of the hub's client or its transport, which have no class in common
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        expected = "expected a checkpoint directory or the id of a model on the hub"
        raise UserError(f"{expected}, got {name}: there is no such directory, and the hub says: {reason}") from error
