"""A small CLIP (Radford et al. 2021) over whole native frames: transformers' own `CLIPModel`, trained from nothing.

Its vision tower is the encoder of a LLaVA preset that has a square_size, so that the LLaVA can start from it
(`load_vision_tower`). It is saved as `vlm.checkpoint` saves a VLM, and loads with plain `CLIPModel.from_pretrained(DIR)`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from common.errors import UserError
from vlm import checkpoint
from vlm.model import PixelModel, PixelVLM
from vlm.presets import find_preset, vision_config

TEXT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
SHARED_WIDTH = 128  # of the space in which images and texts meet
LONGEST = 64  # tokens of a text, its end included


class PixelClip(PixelModel):
    """A CLIP, its tokenizer and how it is shown frames."""

    kind, library = "pvplay-clip", CLIPModel

    @property
    def encoder(self) -> torch.nn.Module:
        """The vision tower."""
        return self.model.vision_model

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return int[B, L], each text closed by its end and padded; what exceeds the model's length is cut."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        rows = [
            [*row[: LONGEST - 1], end] for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])

    def image_vectors(self, frames: np.ndarray | Tensor) -> Tensor:
        """Return unit vectors float32[B, S] of frames uint8[B, history, H, W, 3]."""
        found = self.model.get_image_features(pixel_values=self.preprocess(frames)).pooler_output
        return functional.normalize(found.float(), dim=-1)

    def text_vectors(self, tokens: Tensor) -> Tensor:
        """Return unit vectors float32[B, S] of `tokenize`'s tokens."""
        mask = (tokens != self.tokenizer.pad_token_id).long()
        found = self.model.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
        return functional.normalize(found.float(), dim=-1)


def build_clip(preset: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PixelClip:
    """Return a CLIP with a preset's encoder for its vision tower, random weights from `seed`, in float32 on the CPU."""
    sizes = find_preset(preset)
    if sizes.image_config.square_size is None:
        raise UserError(f"expected a preset with a CLIP tower (nano-clip, tiny-clip), got {preset!r}")
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = dict(TEXT, vocab_size=len(tokenizer), max_position_embeddings=LONGEST, eos_token_id=tokenizer.eos_token_id)
    config = CLIPConfig(
        text_config={**text, **ids, "hidden_act": "gelu"},
        vision_config=vision_config(sizes).to_dict(),
        projection_dim=SHARED_WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    return PixelClip(model.eval(), tokenizer, sizes.image_config)


def load_clip(directory: Path) -> PixelClip:
    """Return the CLIP of a checkpoint, in float32 on the CPU."""
    return checkpoint.load_as(PixelClip, directory)


def load_vision_tower(vlm: PixelVLM, clip: PixelClip) -> None:
    """Let a VLM's encoder start from a CLIP's vision tower: the same weights, tensor for tensor."""
    tower = clip.model.vision_model.state_dict()
    own = {name: tensor.shape for name, tensor in vlm.encoder.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in tower.items()} or vlm.image_config != clip.image_config:
        raise UserError(
            f"expected an encoder like the CLIP's tower, {_describe(clip.model.vision_model)}, "
            f"got {_describe(vlm.encoder)}"
        )
    vlm.encoder.load_state_dict(tower)


def _describe(encoder: torch.nn.Module) -> str:
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return f"{type(encoder).__name__} of {parameters:,} parameters"
