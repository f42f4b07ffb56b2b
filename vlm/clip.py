"""A small CLIP (Radford et al. 2021) over whole native frames: transformers' own `CLIPModel`, trained from scratch.

Its vision tower has the architecture of a preset with a `square_size`, whose LLaVA can be initialized from it
(`load_vision_tower`). It saves as `vlm.checkpoint` saves a VLM, and loads with plain `CLIPModel.from_pretrained(DIR)`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from common.errors import UserError
from vlm import checkpoint
from vlm.model import Frames, PixelModel, PixelVLM
from vlm.presets import find_preset, vision_config

MAX_TEXT_LENGTH = 64  # tokens, the end token included
PROJECTION_DIM = 128
TEXT_CONFIG = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Int[Tensor, "B L"]:
    """Return the token ids of texts, truncated to `MAX_TEXT_LENGTH`, with an end token each and padding."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    rows = [[*row[: MAX_TEXT_LENGTH - 1], tokenizer.eos_token_id] for row in encoded]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


class PixelClip(PixelModel):
    """A CLIP, its tokenizer and its image preprocessing."""

    kind, auto_class = "pvplay-clip", CLIPModel

    @property
    def encoder(self) -> torch.nn.Module:
        """The vision tower."""
        return self.model.vision_model

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "B L"]:
        """Return the token ids of texts; see `tokenize`."""
        return tokenize(self.tokenizer, texts)

    def image_vectors(self, frames: Frames) -> Float[Tensor, "B S"]:
        """Return the unit vectors of frames in the space shared with texts."""
        projected = self.model.get_image_features(pixel_values=self.preprocess(frames)).pooler_output
        return functional.normalize(projected.float(), dim=-1)

    def text_vectors(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B S"]:
        """Return the unit vectors of `tokenize`'s token ids in the space shared with images."""
        mask = (tokens != self.tokenizer.pad_token_id).long()
        projected = self.model.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
        return functional.normalize(projected.float(), dim=-1)


def build_clip(preset_name: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PixelClip:
    """Return a CLIP with a preset's encoder as vision tower and random weights from `seed`, in float32 on the CPU."""
    preset = find_preset(preset_name)
    if preset.image_config.square_size is None:
        raise UserError(f"expected a preset with a CLIP tower (nano-clip, tiny-clip), got {preset_name!r}")
    special_ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    text_sizes = {**TEXT_CONFIG, "max_position_embeddings": MAX_TEXT_LENGTH, "vocab_size": len(tokenizer)}
    config = CLIPConfig(
        text_config={**text_sizes, **special_ids, "hidden_act": "gelu"},
        vision_config=vision_config(preset).to_dict(),
        projection_dim=PROJECTION_DIM,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    return PixelClip(model.eval(), tokenizer, preset.image_config)


def load_clip(directory: Path) -> PixelClip:
    """Return the CLIP of a checkpoint, in float32 on the CPU."""
    return checkpoint.load_as(PixelClip, directory)


def load_vision_tower(vlm: PixelVLM, clip: PixelClip) -> None:
    """Copy the weights of a CLIP's vision tower into a VLM's encoder; `UserError` if their shapes differ."""
    shapes, expected = (
        {name: tensor.shape for name, tensor in model.encoder.state_dict().items()} for model in (vlm, clip)
    )
    if shapes != expected or vlm.image_config != clip.image_config:
        own, tower = (
            f"{type(model.encoder).__name__} of {sum(p.numel() for p in model.encoder.parameters()):,} parameters"
            for model in (vlm, clip)
        )
        raise UserError(f"expected an encoder like the CLIP's tower, {tower}, got {own}")
    vlm.encoder.load_state_dict(clip.encoder.state_dict())
