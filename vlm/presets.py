"""Model sizes as data, and the functions that build a model of each.

Most presets are FastVLM (Vasu et al. 2025) around a ResNet (He et al. 2016). Convolutions read every pixel of the
native frame at strides 2 to 32; the cells of the last map, 7 x 5 of 32 x 32 pixels, are the image tokens of a small
Llama. The frames of a history are stacked along channels, so that motion costs no tokens. Batch norms have fixed
statistics: norms over the channels of each position amplify empty background, and frames are hardly learned
(`docs/log/`).

Presets with a `square_size` have the architecture of the PVP paper: LLaVA (Liu et al. 2023) around a CLIP vision
transformer (Radford et al. 2021) over square patches, each an image token, taken from the last layer but one. They can
start from a tower trained by `pretrain.contrastive` (`vlm.clip.load_vision_tower`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
)

from common.errors import UserError, nearest
from vlm.image_input import ImageConfig
from vlm.model import PixelVLM
from vlm.positional_heads import init_positional_heads
from vlm.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Preset:
    """The dimensions of a model: an encoder, a ResNet or a CLIP tower, and a Llama decoder (`text_*`)."""

    widths: tuple[int, ...]  # of the ResNet's stem and stages, at strides 4, 8, 16, ...; or the one of a CLIP tower
    depths: tuple[int, ...]  # blocks of each stage of the ResNet; or the number of layers of a CLIP tower
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    initializer_range: float  # about 1 / sqrt(width); transformers' default suits ten times the width
    image_config: ImageConfig
    heads: int = 1  # of a CLIP tower
    patch: int = 18  # side of a CLIP tower's patches, in pixels
    rope_theta: float = 10_000.0  # the larger, the more of a decoder head is free to match distant content
    head_width: int = 0  # of each decoder head; 0 divides `text_width` among the heads
    positional_heads: bool = False  # half of the decoder's heads start as fixed offsets (`vlm.positional_heads`)


FRAME_STACK_INPUT = ImageConfig(history=2, frame_diff_scale=8, coordinate_channels=True)
SQUARE_INPUT = ImageConfig(square_size=216)
SQUARE_STACK_INPUT = ImageConfig(square_size=216, history=2, frame_diff_scale=4)
POSITIONAL_HEADS: Any = {"rope_theta": 100, "positional_heads": True}
IMAGE_TOKENS = 35  # 7 x 5, of a frame of up to 224 rows, as of most games, without a square

PRESETS = {
    "tiny": Preset((16, 16, 16, 32), (1, 1, 1), 32, 1, 2, 64, 0.1, FRAME_STACK_INPUT),
    "micro": Preset(
        (8, 32, 64, 128), (1, 1, 1), 128, 3, 16, 512, 0.06, FRAME_STACK_INPUT, head_width=16, **POSITIONAL_HEADS
    ),
    "nano": Preset((16, 48, 96, 192), (1, 1, 1), 256, 3, 16, 1024, 0.06, FRAME_STACK_INPUT, **POSITIONAL_HEADS),
    "nano-fine": Preset((16, 48, 96, 192), (1, 1, 1), 256, 3, 4, 704, 0.06, FRAME_STACK_INPUT, rope_theta=1e6),
    "tiny-clip": Preset((32,), (2,), 32, 3, 2, 64, 0.1, SQUARE_INPUT, heads=2, patch=36, rope_theta=1e6),
    "nano-clip": Preset((192,), (6,), 256, 3, 4, 704, 0.06, SQUARE_INPUT, heads=3, rope_theta=1e6),
    "play-clip": Preset((192,), (6,), 256, 3, 4, 704, 0.06, SQUARE_STACK_INPUT, heads=3, rope_theta=1e6),
    "base-clip": Preset((768,), (12,), 1024, 12, 16, 2816, 0.02, SQUARE_INPUT, heads=12, rope_theta=1e6),
    "small": Preset((64, 128, 256, 512), (2, 2, 4), 512, 6, 8, 1408, 0.04, FRAME_STACK_INPUT),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name; `UserError` names the nearest."""
    if name not in PRESETS:
        raise UserError(f"expected a preset ({', '.join(PRESETS)}), got {name!r}; nearest: {nearest(name, PRESETS)}")
    return PRESETS[name]


def build(name: str, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> PixelVLM:
    """Return a model of a preset with random weights from `seed`, in float32 on the CPU.

    `tokenizer` is one of `vlm.tokenizer.build_tokenizer`, by default without extra words.
    """
    preset, tokenizer = find_preset(name), tokenizer or build_tokenizer()
    parts = {
        "vision_config": vision_config(preset),
        "text_config": _text_config(preset, tokenizer),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "tie_word_embeddings": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build_model(preset, parts)
    vlm = PixelVLM(model.eval(), tokenizer, preset.image_config)
    if preset.positional_heads:
        init_positional_heads(vlm, IMAGE_TOKENS)
    return vlm


def _build_model(preset: Preset, parts: dict[str, Any]) -> PreTrainedModel:
    if not preset.image_config.square_size:
        return FastVlmForConditionalGeneration(FastVlmConfig(**parts))
    config = LlavaConfig(
        **parts,
        image_token_id=parts["image_token_index"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(preset.image_config.square_size // preset.patch) ** 2,
    )
    return LlavaForConditionalGeneration(config)


def vision_config(preset: Preset) -> ResNetConfig | CLIPVisionConfig:
    """Return the encoder's configuration."""
    if preset.image_config.square_size:
        return CLIPVisionConfig(
            num_channels=preset.image_config.channels,
            image_size=preset.image_config.square_size,
            patch_size=preset.patch,
            hidden_size=preset.widths[0],
            intermediate_size=4 * preset.widths[0],
            num_hidden_layers=preset.depths[0],
            num_attention_heads=preset.heads,
            hidden_act="gelu",
        )
    stem, *stages = preset.widths
    return ResNetConfig(
        num_channels=preset.image_config.channels,
        embedding_size=stem,
        hidden_sizes=stages,
        depths=preset.depths,
        layer_type="basic",
        hidden_act="relu",
        downsample_in_first_stage=True,
        hidden_size=stages[-1],  # read by the connector
    )


def _text_config(preset: Preset, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.text_width,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        intermediate_size=preset.text_mlp,
        head_dim=preset.head_width or preset.text_width // preset.text_heads,
        attention_bias=preset.positional_heads,
        initializer_range=preset.initializer_range,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": preset.rope_theta},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
