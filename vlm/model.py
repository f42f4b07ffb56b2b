"""`PixelVLM`: a vision-language model of transformers, its tokenizer and its image preprocessing.

Encoder, connector and decoder are reached by role through transformers' accessors, so that no other module depends on
how a class names its parts.
"""

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from common.errors import UserError
from vlm.fused_clip import fused_clip_tokens, supports_fused_clip
from vlm.image_features import ImageFeatures, stack_image_tokens
from vlm.image_input import ImageConfig, ImageInputs, preprocess_frames
from vlm.layers import replace_layers
from vlm.patch_expansion import NAME as EXPANSION
from vlm.patch_expansion import PatchExpansion
from vlm.prompts import IMAGE, action_prompt
from vlm.tokenizer import token_ids

Frames = np.ndarray | Tensor  # uint8[B, T, H, W, 3], which `preprocess` checks


class PixelModel(ABC):
    """A model of transformers, its tokenizer and its image preprocessing."""

    kind: str  # its name in checkpoints
    auto_class: Any  # the class of transformers that loads it

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, image_config: ImageConfig):
        self.model, self.tokenizer, self.image_config = model, tokenizer, image_config
        self.processor: Any = tokenizer  # what transformers saves beside the weights
        replace_layers(model)

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The vision encoder."""

    @property
    def frame_processor(self) -> Callable[[Tensor], ImageInputs] | None:
        """What data workers do of `preprocess`, on the CPU and without the model; None: nothing."""
        return None

    @property
    def history(self) -> int:
        """The number of frames in the input."""
        return self.image_config.history

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    def set_attn_implementation(self, kind: str) -> None:
        """Compute attention by `kind`, eager or sdpa; parts without sdpa support stay eager."""
        config = self.model.config
        parts = {id(part): name for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
        eager_only = {
            parts[id(module.config)]
            for module in self.model.modules()
            if isinstance(module, PreTrainedModel) and id(module.config) in parts and not module._supports_sdpa
        }
        kinds = dict.fromkeys(parts.values(), kind) | dict.fromkeys(eager_only, "eager")
        self.model.set_attn_implementation({"": kind, **kinds})

    def preprocess(self, frames: Frames) -> Float[Tensor, "B C rows columns"]:
        """Return the encoder's input for frames, without resizing or rounding.

        Of frames in the order of time, the current one comes first, then its difference to each earlier one, so that
        moving objects stand out. Colors are in [0, 1), differences in (-1, 1) times `frame_diff_scale`, coordinates in
        (-2, 2): black and unchanged pixels are 0. n / 256 for an integer n from -255 to 255 is exact in bfloat16, and
        so are its products with a power of 2. Zeros pad the bottom and right, so that games of 210 and 214 lines share
        one shape. The type is autocast's where autocast is on. `UserError` for frames of another type or shape.
        """
        frames = torch.as_tensor(frames, device=self.device)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != self.history:
            raise UserError(
                f"expected frames uint8[B, {self.history}, H, W, 3], got {frames.dtype}{list(frames.shape)}"
            )
        device = self.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.model.dtype
        return preprocess_frames(frames, self.image_config, dtype)

    def token_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the rows and columns of image tokens of an encoder input of so many pixels."""
        config: Any = self.encoder.config
        stages = getattr(config, "strides", None)  # of a hierarchical transformer
        stride = math.prod(stages) if stages else getattr(config, "patch_size", self.image_config.stride)
        height, width = (stride, stride) if isinstance(stride, int) else stride  # InternVL gives a pair
        return -(-rows // height), -(-columns // width)


class PixelVLM(PixelModel):
    """A vision-language model with its encoder, connector and decoder by role.

    traceable: whether a trace from the frames on depends on them, since `preprocess` computes with tensors alone.
    """

    kind, auto_class = "pvplay-vlm", AutoModelForImageTextToText
    traceable = True
    max_new_tokens = 8  # of an answer, unless more are asked for
    unquantized: Callable[[], "PixelVLM"] | None = None  # loads a quantized model's start whole; None: is not quantized

    @property
    def encoder(self) -> nn.Module:
        """The vision encoder."""
        return self.model.get_encoder(modality="image")

    @property
    def decoder(self) -> nn.Module:
        """The causal language model, without its head."""
        return self.model.get_decoder()

    @property
    def connector(self) -> nn.Module:
        """What lies between encoder and decoder: what is neither of them nor the head, else the encoder's merger.

        Several modules come as a list.
        """
        known = {id(self.encoder), id(self.decoder), id(self.model.get_output_embeddings())}
        others = [child for child in self.model.model.children() if id(child) not in known]
        if not others:  # in Qwen-VL and its like the encoder merges patches into tokens itself
            others = [child for name, child in self.encoder.named_children() if "merger" in name]
        if not others:
            raise UserError(f"expected a connector in {type(self.model).__name__}, found none")
        return others[0] if len(others) == 1 else nn.ModuleList(others)

    @property
    def token_width(self) -> int:
        """The width of the decoder's embeddings."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def patch_expansion(self) -> PatchExpansion | None:
        """The layer that expands image tokens into cells, if the model has one (`vlm.patch_expansion`)."""
        return getattr(self.model, EXPANSION, None)

    def cell_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the rows and columns of cells (`encode_cells`) of an encoder input of so many pixels."""
        tokens, factor = self.token_grid(rows, columns), self.patch_expansion.factor if self.patch_expansion else 1
        return tokens[0] * factor, tokens[1] * factor

    @property
    def bos_ids(self) -> list[int]:
        """The token id that begins every text, if any; presets have none."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    @property
    def end_ids(self) -> list[int]:
        """The token ids that end an answer."""
        return [self.tokenizer.eos_token_id]

    def prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the image of a prompt; `UserError` if it has no place for one."""
        before, image, after = prompt.partition(IMAGE)
        if not image:
            raise UserError(f"expected a prompt with {IMAGE} in it, got {prompt!r}")
        return [*self.bos_ids, *token_ids(self.tokenizer, before)], [*token_ids(self.tokenizer, after)]

    def action_prompt(self, title: str, action_names: Sequence[str]) -> str:
        """Return the prompt for an action, in the form that the model is used to."""
        return action_prompt(title, action_names)

    def image_ids(self, images: Any) -> list[int]:
        """Return the token ids of one of the images of `preprocess` in a prompt: placeholders, and markers if any."""
        if isinstance(images, ImageInputs):
            return images.image_ids.tolist()
        return [self.model.config.image_token_id] * math.prod(self.token_grid(*images.shape[2:]))

    def forward_inputs(self, ids: Int[Tensor, "B L"], images: Any, answer_length: int = 0) -> dict[str, Tensor]:
        """Return the inputs of the class's own forward pass, or of `generate`, for a prompt about each image.

        The last `answer_length` tokens are the answer: some classes attend in both directions within prompts.
        """
        inputs = {**_image_inputs(images), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        arguments = inspect.signature(base_model(self.model).forward).parameters
        is_image = (ids == self.model.config.image_token_id).int()
        for name in ("mm_token_type_ids", "token_type_ids"):  # without them, classes silently fall back
            if name in arguments:
                inputs[name] = is_image
        if types_prompts(images):
            inputs["token_type_ids"] = torch.zeros_like(ids)
            inputs["token_type_ids"][:, ids.shape[1] - answer_length :] = 1
        return inputs

    def encode_images(
        self, images: Float[Tensor, "B C H W"] | Mapping[str, Tensor], output_hidden_states: bool = False
    ) -> ImageFeatures:
        """Return the features of images of one size, from `preprocess`, by one pass through encoder and connector.

        Raises:
            UserError: the class has no image tokens, or the images have different numbers of them.
        """
        if not hasattr(self.model, "get_image_features"):
            raise UserError(f"{type(self.model).__name__} does not read images as tokens")
        inputs = _image_inputs(images)
        if not output_hidden_states and isinstance(images, Tensor) and supports_fused_clip(self.model):
            return ImageFeatures(fused_clip_tokens(self.model, images), inputs)
        options = {"output_hidden_states": True} if output_hidden_states else {}
        output = self.model.get_image_features(**inputs, **options)
        batch = getattr(images, "num_images", len(output.pooler_output))
        tokens = stack_image_tokens(output.pooler_output, batch)
        deep = output.deepstack_features if adds_deep_tokens(self.model) else ()
        deep_tokens = tuple(stack_image_tokens(layer, batch) for layer in deep)
        hidden_states = tuple(output.hidden_states) if output_hidden_states else ()
        return ImageFeatures(tokens, inputs, hidden_states, deep_tokens, getattr(images, "image_ids", None))

    def encode_cells(self, images: Float[Tensor, "B C H W"] | Mapping[str, Tensor]) -> ImageFeatures:
        """Return the features of images with a token for each cell; without patch expansion, those of `encode_images`.

        What asks for single pixels reads these, what asks about a whole image the tokens of `encode_images`.
        """
        return self.expand(self.encode_images(images, output_hidden_states=self.expands_maps))

    def expand(self, features: ImageFeatures) -> ImageFeatures:
        """Return the features of `encode_images` with a token for each cell; unchanged without patch expansion.

        They need the encoder's hidden states where `expands_maps`.
        """
        if self.patch_expansion is None:
            return features
        grid = self.token_grid(*features.inputs["pixel_values"].shape[2:])
        cells = self.patch_expansion(features.tokens, *grid, features.hidden_states)
        return dataclasses.replace(features, tokens=cells)

    @property
    def expands_maps(self) -> bool:
        """Whether the patch expansion reads the encoder's maps as well as its tokens."""
        return self.patch_expansion is not None and self.patch_expansion.skip is not None

    def embed(self, tokens: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """Return the decoder's embeddings of token ids."""
        return self.model.get_input_embeddings()(tokens)


def _image_inputs(images: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"pixel_values": images} if isinstance(images, Tensor) else images


def types_prompts(images: Any) -> bool:
    """Return whether token types tell prompts, of type 0, from answers, of type 1, as in PaliGemma; else images."""
    return isinstance(images, ImageInputs) and images.types_prompts


def base_model(model: PreTrainedModel) -> Any:
    """Return a model without peft's wrapper."""
    return getattr(model, "get_base_model", lambda: model)()


def adds_deep_tokens(model: PreTrainedModel) -> bool:
    """Whether the decoder adds features of the image to its first layers too, in the way known here (Qwen3-VL)."""
    return base_model(model).config.model_type == "qwen3_vl"


def uses_mrope(model: PreTrainedModel) -> bool:
    """Whether positions count time, rows and columns separately (M-RoPE; Wang et al. 2024, "Qwen2-VL")."""
    return hasattr(base_model(model).base_model, "get_rope_index")
