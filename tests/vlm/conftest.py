"""Tiny models of transformers' own classes with images, and prompts in the form of each class."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from vlm.image_input import ImageConfig
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.prompts import PIXEL_PREFIX
from vlm.tokenizer import build_tokenizer
from vlm.training.objective import Batch, Losses, Objective

IMAGE = 60  # of 64 tokens, 1 to 56 are text
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 58,
    "eos_token_id": 59,
}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@dataclass
class Family:
    """A model with two images: `images` of both; `shared` for prefix sharing, `prefix` for the class's own forward."""

    vlm: PixelVLM
    images: dict[str, torch.Tensor] | torch.Tensor
    single: list[dict[str, torch.Tensor]]
    shared: torch.Tensor
    prefix: list[list[int]]

    def features(self):
        """The features of both images."""
        return self.vlm.encode_images(self.images)

    def inputs(self, image: int, tokens: list[int]) -> dict[str, torch.Tensor]:
        """The inputs of the class's own forward and `generate` for one prompt about one image."""
        ids = torch.tensor([[*self.prefix[image], *tokens]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.single[image]}
        if "image_grid_thw" in inputs:  # without them, M-RoPE positions silently become plain ones
            inputs["mm_token_type_ids"] = (ids == self.vlm.model.config.image_token_id).int()
        return inputs


def family_of(model, images, single, image_tokens):
    before, after = [[2, 3], [5, 3]], [[4, 7, 9], [8, 7, 1]]
    prefix = [[*b, *[IMAGE] * image_tokens, *a] for b, a in zip(before, after, strict=True)]
    vlm = PixelVLM(model.eval(), build_tokenizer(), ImageConfig())
    return Family(vlm, images, single, torch.tensor(prefix), prefix)


def nano():
    vlm = build("nano", seed=1)
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 210, 160, 3), dtype=np.uint8)
    pixels = vlm.preprocess(frames)
    shared = vlm.tokenizer(PIXEL_PREFIX, add_special_tokens=False)["input_ids"]
    prefix = [[vlm.model.config.image_token_id] * 35 + shared] * 2
    return Family(vlm, pixels, [{"pixel_values": pixels[i : i + 1]} for i in range(2)], torch.tensor(shared), prefix)


def llava():
    vision = CLIPVisionConfig(image_size=28, patch_size=7, initializer_range=0.2, **VISION)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE)
    pixels = torch.randn(2, 3, 28, 28)
    single = [{"pixel_values": pixels[i : i + 1]} for i in range(2)]
    return family_of(LlavaForConditionalGeneration(config), {"pixel_values": pixels}, single, 16)


def smolvlm():
    config = SmolVLMConfig(
        vision_config={"image_size": 28, "patch_size": 7, "initializer_range": 0.2, **VISION},
        text_config=TEXT | {"model_type": "llama"},
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=0,
    )
    pixels, mask = torch.randn(2, 2, 3, 28, 28), torch.ones(2, 2, 28, 28, dtype=torch.bool)
    mask[:, 1, :, 14:] = False  # the second tile of each image is half padding
    single = [{"pixel_values": pixels[i : i + 1], "pixel_attention_mask": mask[i : i + 1]} for i in range(2)]
    images = {"pixel_values": pixels, "pixel_attention_mask": mask}
    return family_of(SmolVLMForConditionalGeneration(config), images, single, 8)


def qwen():
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 4,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        text_config=TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        image_token_id=IMAGE,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    grid = torch.tensor([[1, 4, 6], [1, 6, 4]])  # 6 image tokens each, on 2 x 3 and on 3 x 2 places
    pixels = torch.randn(48, 3 * 2 * 4 * 4)
    single = [{"pixel_values": pixels[24 * i : 24 * i + 24], "image_grid_thw": grid[i : i + 1]} for i in range(2)]
    images = {"pixel_values": pixels, "image_grid_thw": grid}
    return family_of(Qwen2_5_VLForConditionalGeneration(config), images, single, 6)


def paligemma():
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7, **VISION},
        text_config=TEXT | {"model_type": "gemma", "head_dim": 8},
        image_token_id=IMAGE,
        projection_dim=32,
    )
    return family_of(PaliGemmaForConditionalGeneration(config), torch.randn(2, 3, 28, 28), [], 16)


def sliding():
    vision = CLIPVisionConfig(image_size=28, patch_size=7, **VISION)
    config = LlavaConfig(
        vision_config=vision, text_config=MistralConfig(**TEXT, sliding_window=8), image_token_id=IMAGE
    )
    return family_of(LlavaForConditionalGeneration(config), torch.randn(2, 3, 28, 28), [], 16)


SHARABLE = {"nano": nano, "llava": llava, "smolvlm": smolvlm, "qwen2.5-vl": qwen}
FAMILIES = SHARABLE | {"paligemma": paligemma, "sliding window": sliding}


@pytest.fixture
def build_family():
    """A function from a class's name to its model and images, the same each time."""

    def make(name):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return FAMILIES[name]()

    return make


@pytest.fixture(params=SHARABLE)
def make_family(request, build_family):
    """A function that builds the model and images of each class that can share a prefix."""
    return partial(build_family, request.param)


@dataclass(frozen=True)
class TokenBatch(Batch):
    """Tokens, and the ones to predict from their embeddings."""

    tokens: torch.Tensor
    targets: torch.Tensor


def draw_tokens(step, rng):
    """Eight tokens and their targets."""
    tokens, targets = rng.integers(0, 50, (2, 8))
    return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(targets))


class TokenObjective(Objective):
    """Predicts tokens from single embeddings, through a layer of its own if asked to: no image and hardly any work."""

    def __init__(self, vlm, own_layer=False):
        super().__init__(vlm, draw_tokens)
        width = vlm.model.get_input_embeddings().embedding_dim
        self.layer = torch.nn.Linear(width, width) if own_layer else None
        self.attention_seen = []

    def modules(self):
        return {"layer": self.layer} if self.layer else {}

    def encode(self, batch):
        return self.vlm.embed(batch.tokens)

    def loss(self, features, batch):
        self.attention_seen.append(self.vlm.decoder.config._attn_implementation)
        hidden = self.layer(features) if self.layer else features
        logits = self.vlm.model.get_output_embeddings()(hidden).float()
        accuracy = (logits.argmax(-1) == batch.targets).float().mean()
        return Losses(torch.nn.functional.cross_entropy(logits, batch.targets), {"accuracy": accuracy})


@pytest.fixture
def token_objective():
    """The class of an objective that takes no time."""
    return TokenObjective
