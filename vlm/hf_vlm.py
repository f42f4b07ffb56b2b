"""Models of others: any vision-language model of transformers, shown frames through its own processor.

    vlm = checkpoint.load(Path("llava-hf/llava-1.5-7b-hf"))                  by its id on the hub
    vlm = checkpoint.load(Path("models/llava"))                             or as a directory of transformers' own files

The processor resizes, normalises and cuts as the model was taught, and writes the tokens that stand for an image in a
prompt, markers around them included. Frames of the past are not shown: these models were taught one picture at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from common.errors import UserError
from vlm.model import ImageConfig, PixelVLM

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class ImageInputs(dict[str, Tensor]):
    """The image inputs of a model's class, by name, of B images of one size.

    ids: int[P], what stands for one of them in a prompt: its placeholders, and the markers around and between them;
    count: B.
    """

    ids: Tensor
    count: int


class PretrainedVLM(PixelVLM):
    """A model of others with its processor."""

    kind, library = "pretrained-vlm", AutoModelForImageTextToText

    def __init__(self, model: PreTrainedModel, processor: Any, image_config: ImageConfig | None = None):
        super().__init__(model, processor.tokenizer, image_config or ImageConfig())
        self.processor = processor
        if getattr(processor.image_processor, "do_image_splitting", False):
            processor.image_processor.do_image_splitting = False  # a frame is small: its tiles would be enlargements
        self._token = getattr(processor, "image_token", None) or "<image>"

    @property
    def bos_ids(self) -> list[int]:
        """The token that begins every text of this model, if any."""
        begin = self.tokenizer.bos_token_id
        return [begin] if begin is not None and self.tokenizer("a")["input_ids"][:1] == [begin] else []

    def preprocess(self, frames: np.ndarray | Tensor) -> Any:
        """Return the image inputs of frames uint8[B, 1, H, W, 3]; see `ImageInputs`."""
        frames = torch.as_tensor(frames).cpu()
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != 1:
            raise UserError(f"expected frames uint8[B, 1, H, W, 3], got {frames.dtype}{list(frames.shape)}")
        pictures = [Image.fromarray(frame) for frame in frames[:, 0].numpy()]
        words = [self._token] * len(pictures)
        read = self.processor(text=words, images=pictures, return_tensors="pt", add_special_tokens=False)
        inputs = ImageInputs({name: t.to(self.device) for name, t in read.items() if name not in TEXT_INPUTS})
        inputs.ids, inputs.count = read["input_ids"][0].to(self.device), len(pictures)
        return inputs

    def image_ids(self, pixels: Any) -> list[int]:
        """Return the tokens that stand for an image in a prompt."""
        return pixels.ids.tolist()

    def save_tokenizer(self, directory: Path) -> None:
        """Write the processor, its tokenizer included."""
        self.processor.save_pretrained(directory)

    def generate_inputs(self, ids: Tensor, pixels: Any) -> dict[str, Tensor]:
        """Return the inputs of the class's own `generate`."""
        inputs = {**pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if uses_mrope(self.model):  # without them, positions silently become plain ones
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return inputs


def uses_mrope(model: PreTrainedModel) -> bool:
    """Whether a class counts time, rows and columns of an image apart (M-RoPE; Wang et al. 2024, "Qwen2-VL")."""
    return hasattr(getattr(model, "get_base_model", lambda: model)().base_model, "get_rope_index")


def looks_like_id(name: str) -> bool:
    """Whether a name may be that of a model on the hub: an owner and a model."""
    parts: Sequence[str] = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~", "runs/", "vlm/"))
