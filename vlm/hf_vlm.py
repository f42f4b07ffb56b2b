"""Pretrained vision-language models of transformers, with their own processors.

    vlm = checkpoint.load(Path("llava-hf/llava-1.5-7b-hf"))                  by its id on the hub
    vlm = checkpoint.load(Path("models/llava"))                             or as a directory of transformers' own files

The processor resizes, normalizes and tiles images as in the model's training, and writes an image's placeholder and
marker tokens in a prompt. Frames are padded first where it would cut or distort them (`vlm.letterbox`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import PaliGemmaProcessor, PreTrainedModel

from common.errors import UserError
from vlm.image_input import ImageConfig, ImageInputs
from vlm.letterbox import input_aspect_ratio, pad_to_aspect_ratio
from vlm.model import Frames, PixelVLM
from vlm.prompts import IMAGE, action_question
from vlm.tokenizer import token_ids

HUB_SECONDS = 10  # that the hub may take to answer
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")


@dataclass(frozen=True)
class FrameProcessor:
    """Turns frames into a pretrained model's image inputs by its processor; data workers get it without the model."""

    processor: Any
    image_text: str  # what stands for an image in a prompt
    history: int

    def __call__(self, frames: Tensor) -> ImageInputs:
        """Return the inputs of frames uint8[B, history, H, W, 3], on the CPU."""
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != self.history:
            raise UserError(
                f"expected frames uint8[B, {self.history}, H, W, 3], got {frames.dtype}{list(frames.shape)}"
            )
        images = [[self._image(frame) for frame in stack] for stack in frames.numpy()]
        texts = [self.image_text * self.history] * len(images)
        processed = self.processor(text=texts, images=images, return_tensors="pt", add_special_tokens=False)
        inputs = ImageInputs({name: tensor for name, tensor in processed.items() if name not in TEXT_INPUTS})
        inputs.image_ids, inputs.num_images = self._without_end(processed["input_ids"][0]), len(images)
        types = processed.get("token_type_ids")
        inputs.types_prompts = types is not None and not bool(types.any())
        return inputs

    def _without_end(self, ids: Tensor) -> Tensor:
        """Return the ids of images in a prompt without those that end a prompt."""
        if not puts_images_first(self.processor):
            return ids
        begins = (ids == self.processor.tokenizer.bos_token_id).nonzero()
        return ids[: int(begins.max()) + 1]

    def _image(self, frame: np.ndarray) -> Image.Image:
        ratio = input_aspect_ratio(self.processor.image_processor)
        return Image.fromarray(frame if ratio is None else pad_to_aspect_ratio(frame, ratio))


class PretrainedVLM(PixelVLM):
    """A pretrained model with its processor."""

    kind = "pretrained-vlm"
    traceable = False  # processors compute with PIL and numpy
    max_new_tokens = 32  # it may answer in a sentence

    def __init__(self, model: PreTrainedModel, processor: Any, image_config: ImageConfig | None = None):
        super().__init__(model, processor.tokenizer, image_config or ImageConfig())
        if not hasattr(model, "model") or not hasattr(model.model, "get_image_features"):
            reason = "its class hides how images become tokens of the decoder"
            raise UserError(f"{type(model).__name__} is not supported: {reason}; LLaVA, Qwen-VL and their like are")
        self.processor = processor
        self._image_text = _image_text(model.config, processor)

    @property
    def frame_processor(self) -> "FrameProcessor":
        """What `preprocess` computes on the CPU, without the model."""
        return FrameProcessor(self.processor, self._image_text, self.history)

    def preprocess(self, frames: Frames) -> Any:
        """Return the `ImageInputs` of frames uint8[B, history, H, W, 3]; several frames are several images."""
        return self.frame_processor(torch.as_tensor(frames).cpu()).to(self.device)

    @property
    def end_ids(self) -> list[int]:
        """The token ids that end an answer: instruct models end a turn otherwise than a text."""
        ends = self.model.generation_config.eos_token_id
        found = [ends] if isinstance(ends, int) else list(ends or [])
        return sorted({*found, self.tokenizer.eos_token_id} - {None})

    @property
    def chat_template(self) -> str | None:
        """The template that turns a conversation into a prompt, of instruct models."""
        return getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)

    def action_prompt(self, title: str, action_names: Sequence[str]) -> str:
        """Return the prompt for an action: a question in a conversation where the model has a template for one."""
        if self.chat_template is None:
            return super().action_prompt(title, action_names)
        question = action_question(title, action_names)
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        for content in (parts, f"{self._image_text}\n{question}"):  # templates of a decoder alone take plain text
            prompt = self._chat(content)
            if prompt.count(self._image_text) == 1:
                return prompt.replace(self._image_text, IMAGE)
        raise UserError(f"the chat template of {type(self.model).__name__} has no place for an image")

    def _chat(self, content: Any) -> str:
        """Return a conversation of one message up to the model's turn; empty where the template takes no such one."""
        try:
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError):
            return ""

    @property
    def bos_ids(self) -> list[int]:
        """See `PixelVLM`; none where the text begins behind the image, which then has that token among its markers."""
        return [] if puts_images_first(self.processor) else super().bos_ids

    def prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the image of a prompt, with one token that begins the text."""
        if puts_images_first(self.processor) and IMAGE in prompt:
            text = " ".join(part.strip() for part in prompt.split(IMAGE, 1)).strip()
            return [], [*token_ids(self.tokenizer, f"{text}\n")]
        before, after = super().prompt_ids(prompt)
        repeated = self.bos_ids and before[len(self.bos_ids) :][:1] == self.bos_ids  # a chat template writes it too
        return before[1:] if repeated else before, after


def puts_images_first(processor: Any) -> bool:
    """Whether a prompt is the image, the token that begins a text, the text and the end of a line, as PaliGemma's."""
    return isinstance(processor, PaliGemmaProcessor)


def _image_text(config: Any, processor: Any) -> str:
    """Return what stands for an image in a prompt, with the marks around it that the processor does not write."""
    image = getattr(processor, "image_token", None) or IMAGE
    ends = (getattr(config, f"vision_{name}_token_id", None) for name in ("start", "end"))  # of Qwen-VL
    start, end = ("" if one is None else processor.tokenizer.convert_ids_to_tokens(one) for one in ends)
    return f"{start}{image}{end}"


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
