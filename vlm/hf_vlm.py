"""Pretrained vision-language models of transformers, with their own processors.

    vlm = checkpoint.load(Path("llava-hf/llava-1.5-7b-hf"))                  by its id on the hub
    vlm = checkpoint.load(Path("models/llava"))                             or as a directory of transformers' own files

The processor resizes, normalizes and tiles images as in the model's training, and writes an image's placeholder and
marker tokens in a prompt. These models were trained on single images, so they get the current frame only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from common.errors import UserError
from vlm.image_input import ImageConfig, ImageInputs
from vlm.model import Frames, PixelVLM

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class PretrainedVLM(PixelVLM):
    """A pretrained model with its processor."""

    kind, auto_class = "pretrained-vlm", AutoModelForImageTextToText

    def __init__(self, model: PreTrainedModel, processor: Any, image_config: ImageConfig | None = None):
        super().__init__(model, processor.tokenizer, image_config or ImageConfig())
        self.processor = processor
        if getattr(processor.image_processor, "do_image_splitting", False):
            processor.image_processor.do_image_splitting = False  # tiles of a small frame would be enlargements
        self._image_token = getattr(processor, "image_token", None) or "<image>"

    @property
    def bos_ids(self) -> list[int]:
        """The token id that begins every text of this model, if any."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

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

    def image_ids(self, images: Any) -> list[int]:
        """Return the token ids of one of the images of `preprocess` in a prompt."""
        return images.image_ids.tolist()

    def save_tokenizer(self, directory: Path) -> None:
        """Write the processor, its tokenizer included."""
        self.processor.save_pretrained(directory)

    def generate_inputs(self, ids: Int[Tensor, "B L"], images: Any) -> dict[str, Tensor]:
        """Return the inputs of transformers' `generate` for a prompt about each image."""
        inputs = {**images, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if uses_mrope(self.model):  # without these types, the class silently falls back to one-dimensional positions
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return inputs


def uses_mrope(model: PreTrainedModel) -> bool:
    """Whether positions count time, rows and columns separately (M-RoPE; Wang et al. 2024, "Qwen2-VL")."""
    return hasattr(getattr(model, "get_base_model", lambda: model)().base_model, "get_rope_index")


def looks_like_id(name: str) -> bool:
    """Whether a name may be the id of a model on the hub: an owner and a model."""
    parts: Sequence[str] = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~", "runs/", "vlm/"))
