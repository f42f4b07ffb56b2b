"""The models of the benchmark of cloning, in transformers' layout, and how TRL reads images of the presets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    BatchFeature,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ProcessorMixin,
)

from vlm import checkpoint
from vlm.hf_vlm import PretrainedVLM
from vlm.image_input import preprocess_frames
from vlm.letterbox import input_aspect_ratio, pad_to_aspect_ratio
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.prompts import IMAGE, action_question
from vlm.tokenizer import build_tokenizer

LLAVA = "llava"
SIDE, PATCH = 224, 28  # of the images of `LLAVA`: 64 patches
CHAT = """{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %} {% endfor %}\
{% if add_generation_prompt %}assistant :{% endif %}"""


class PresetProcessor(ProcessorMixin):
    """A preset's image input and tokenizer as a processor of transformers; several frames are one image."""

    def __init__(self, tokenizer: Any, vlm: PixelVLM):
        super().__init__(tokenizer)
        self.image_config, self.token_grid = vlm.image_config, vlm.token_grid

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the names of its parts."""
        return ["tokenizer"]

    def __call__(
        self, images: Sequence[Sequence[Image.Image]] | None = None, text: Sequence[str] = (), **options: Any
    ) -> BatchFeature:
        """Return the inputs for a stack of frames and a text each, with a placeholder for every image token."""
        if images is None:
            return BatchFeature(dict(self.tokenizer(list(text), **options)))
        frames = np.stack([np.stack([np.asarray(frame) for frame in stack]) for stack in images])
        pixels = preprocess_frames(torch.from_numpy(frames), self.image_config, torch.float32)
        rows, columns = self.token_grid(*pixels.shape[2:])
        texts = [one.replace(IMAGE, IMAGE * (rows * columns)) for one in text]
        return BatchFeature({**self.tokenizer(texts, **options), "pixel_values": pixels})


def write_model(name: str, directory: Path, title: str, action_names: Sequence[str]) -> None:
    """Write untrained weights of a preset, or of `LLAVA` with the words of a game's question in its vocabulary."""
    if name != LLAVA:
        checkpoint.save(build(name), directory)
        return
    words = action_question(title, action_names).lower().replace(".", " ").replace(":", " ").replace(",", " ")
    tokenizer = build_tokenizer(sorted({*words.split(), "user", "assistant"}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(_llava_config(tokenizer))
    model.save_pretrained(directory)
    _llava_processor(tokenizer).save_pretrained(directory)


def _llava_config(tokenizer: Any) -> LlavaConfig:
    """Return a LLaVA of the size of `nano-clip`."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
    text = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH, **vision},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "initializer_range": 0.06, **text, **ids},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
    )


def _llava_processor(tokenizer: Any) -> LlavaProcessor:
    square = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    options = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(pictures, tokenizer, **options, chat_template=CHAT)


def processor_of(vlm: PixelVLM) -> Any:
    """Return a model's processor of transformers."""
    return vlm.processor if isinstance(vlm, PretrainedVLM) else PresetProcessor(vlm.tokenizer, vlm)


def image_of(vlm: PixelVLM, frame: np.ndarray) -> np.ndarray:
    """Return a frame as the model's processor gets it: padded where that would cut it."""
    ratio = input_aspect_ratio(vlm.processor.image_processor) if isinstance(vlm, PretrainedVLM) else None
    return frame if ratio is None else pad_to_aspect_ratio(frame, ratio)
