"""Model sizes as data, and how a model of each is built.

All presets are transformers' own LLaVA (Liu et al. 2023) around a hierarchical Mix Transformer encoder (Xie et al.
2021, "SegFormer"): overlapping convolutions read every pixel of the native frame at strides 8, 24 and 72. The kernel
of the last stage spans nearly the whole grid of the stage before (9 of 9 x 7), so that each of the 3 x 3 image tokens
is a picture of the whole frame from its own place: with smaller kernels, where things are was learnt far more slowly.
The finer stages remain for a mask head. The decoder is a small Llama. Frames of the past lie on the channels, so that
motion costs no tokens.

Presets with a canvas have the paper's own architecture instead: a CLIP vision transformer (Radford et al. 2021) over
square patches, of whose last layer but one every patch is an image token, as in LLaVA. It can start from a tower that
`pretrain.contrast` has trained (`vlm.clip.adopt_tower`).
"""

import difflib
from dataclasses import dataclass

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SegformerConfig,
)

from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Preset:
    """The dimensions of a model.

    widths, depths, heads: of the encoder's three stages, at strides 8, 24 and 72; text_*: of the decoder;
    spread: standard deviation of the initial weights, about one over the root of the widths, since the library's
    default is made for widths ten times as large; history: how many frames it sees, the present one included;
    canvas, patch: of a CLIP tower, which has one stage: the side of its square and of its patches, in pixels; rope:
    the base of the decoder's rotary positions, the larger the more of a head is free to match content far away.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    spread: float
    history: int = 2
    canvas: int | None = None
    patch: int = 18
    rope: float = 10_000.0


PRESETS = {
    "tiny": Preset((8, 16, 32), (1, 1, 1), (1, 1, 2), 32, 1, 2, 64, 0.1),
    "nano": Preset((64, 128, 256), (1, 1, 1), (1, 2, 4), 256, 2, 4, 704, 0.06),
    "tiny-clip": Preset((32,), (2,), (2,), 32, 3, 2, 64, 0.1, history=1, canvas=216, patch=36, rope=1e6),
    "nano-clip": Preset((192,), (6,), (3,), 256, 3, 4, 704, 0.06, history=1, canvas=216, rope=1e6),
    "small": Preset((128, 256, 512), (2, 2, 4), (1, 2, 8), 512, 6, 8, 1408, 0.04),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name; `VlmError` names the nearest."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise VlmError(f"expected a preset ({', '.join(PRESETS)}), got {name!r}; nearest: {near}")
    return PRESETS[name]


def build(name: str, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> PixelVLM:
    """Return a model of a preset with random weights drawn from `seed`, in float32, on the CPU.

    `tokenizer` is one of `vlm.tokenizer.build_tokenizer`'s with more words, if there is need of them.
    """
    preset, tokenizer = find_preset(name), tokenizer or build_tokenizer()
    config = LlavaConfig(
        vision_config=vision_config(preset),
        text_config=_text_config(preset, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2 if preset.canvas else -1,
        vision_feature_select_strategy="default" if preset.canvas else "full",
        image_seq_length=(preset.canvas // preset.patch) ** 2 if preset.canvas else 576,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    return PixelVLM(model.eval(), tokenizer, history=preset.history, canvas=preset.canvas)


def vision_config(preset: Preset) -> SegformerConfig | CLIPVisionConfig:
    """Return the configuration of a preset's encoder."""
    if preset.canvas:
        return CLIPVisionConfig(
            num_channels=3 * preset.history,
            image_size=preset.canvas,
            patch_size=preset.patch,
            hidden_size=preset.widths[0],
            intermediate_size=4 * preset.widths[0],
            num_hidden_layers=preset.depths[0],
            num_attention_heads=preset.heads[0],
            hidden_act="gelu",
        )
    return SegformerConfig(
        num_channels=3 * preset.history,
        num_encoder_blocks=3,
        hidden_sizes=preset.widths,
        depths=preset.depths,
        num_attention_heads=preset.heads,
        strides=(8, 3, 3),
        patch_sizes=(11, 5, 9),
        sr_ratios=(9, 3, 1),
        mlp_ratios=(2, 2, 2),
        initializer_range=preset.spread,
        drop_path_rate=0.0,
        reshape_last_stage=False,
        hidden_size=preset.widths[-1],  # LLaVA's connector asks for the width of the features
    )


def _text_config(preset: Preset, tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.text_width,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        num_key_value_heads=preset.text_heads,
        intermediate_size=preset.text_mlp,
        initializer_range=preset.spread,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": preset.rope},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
