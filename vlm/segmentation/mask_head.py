"""Mask head: masks for expressions from the encoder's feature maps and the decoder's hidden states.

    <image> [segmentation] the red ghost :          the hidden states of these words become a dynamic kernel

A feature pyramid adds the encoder's maps up on the finest one (Lin et al. 2017, "FPN"), and a sub-pixel convolution
makes features of every pixel from each cell (Shi et al. 2016, "ESPCN"). The expression's states become one dynamic
kernel, whose products with the pixel features are the mask's logits (Tian et al. 2020, "CondInst"). The head reads no
pixels of its own.

Position comes from a sum of sinusoids over rows and over columns, whose coefficients the expression gives. Without them
a head must learn positions from masks, and takes several times as long (`docs/log/`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.files import atomic_file, write_text_atomically
from common.json_file import checked
from vlm.checkpoint_files import CheckpointError, read_object, require_finite
from vlm.decoding.packing import Lengths, Suffixes, forward_packed, pad_token_lists
from vlm.decoding.prefix import SharedIds
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import MASK_PREFIX, mask_question
from vlm.segmentation.encoder_maps import NUM_CONV_BLOCKS, encoder_maps
from vlm.tokenizer import padding_id, token_ids

WEIGHTS_FILE, CONFIG_FILE = "mask_head.safetensors", "mask_head.json"
HIDDEN_CHANNELS = 96
Size = Annotated[int, Field(ge=1, le=2**14)]
FOREGROUND_BIAS_INIT = -3.0  # initial logit of every pixel: most belong to no target
OLD_NAMES = {  # of configuration fields and modules in files of version 0.1
    "widths": "channels",
    "state": "decoder_dim",
    "width": "hidden_channels",
    "fine": "pixel_features",
    "waves": "num_frequencies",
    "sides": "lateral_convs",
    "mix": "conv",
    "near": "conv_blocks",
    "look": "conv",
    "unfold": "subpixel_conv",
    "word": "expression_mlp",
    "query": "controller",
}


@dataclass(frozen=True)
class MaskHeadConfig:
    """Sizes of a mask head."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # checks the file of a checkpoint

    channels: Annotated[tuple[Size, ...], Field(min_length=1)]  # of the encoder's maps, the finest first
    strides: tuple[Size, ...]  # of the encoder's maps, in pixels
    decoder_dim: Size  # width of the decoder's hidden states
    hidden_channels: Size = HIDDEN_CHANNELS  # of the pyramid's maps
    pixel_features: Size = 32  # features of a pixel, and length of a dynamic kernel
    num_frequencies: Size = 6  # sines, and cosines, of 1, 2, ... half periods over the rows; the same over the columns

    @classmethod
    def of(cls, vlm: PixelVLM, hidden_channels: int = HIDDEN_CHANNELS) -> "MaskHeadConfig":
        """Return the sizes for a model; `UserError` if its class reads images through its own processor."""
        pixels: Any = vlm.preprocess(torch.zeros(1, vlm.history, 210, 160, 3, dtype=torch.uint8))
        if not isinstance(pixels, Tensor):
            reason = "reads images through its own processor, whose maps a mask head cannot place"
            raise UserError(f"{type(vlm.model).__name__} {reason}; use points in text (--mask points)")
        with torch.no_grad():
            maps = encoder_maps(vlm, vlm.encode_images(pixels, output_hidden_states=True))
        channels, strides = tuple(m.shape[1] for m in maps), tuple(pixels.shape[2] // m.shape[2] for m in maps)
        return cls(channels, strides, vlm.model.get_input_embeddings().embedding_dim, hidden_channels)

    def fits(self, other: "MaskHeadConfig") -> bool:
        """Return whether both are for models of the same sizes."""
        return (self.channels, self.strides, self.decoder_dim) == (other.channels, other.strides, other.decoder_dim)


class LateralConv(nn.Module):
    """Normalization and 1 x 1 convolution of one of the encoder's maps (FPN's lateral connection)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(in_channels), nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """Return the map in the pyramid's channels."""
        return self.conv(self.norm(x.movedim(1, -1)).movedim(-1, 1))


class ResidualConv(nn.Module):
    """Pre-activation 3 x 3 convolution with a skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Return the map plus its convolution."""
        return x + self.conv(functional.gelu(x))


class MaskHead(nn.Module):
    """Mask logits for each of K expressions about each of B images."""

    def __init__(self, config: MaskHeadConfig):
        super().__init__()
        self.config, width = config, config.hidden_channels
        self.lateral_convs = nn.ModuleList(LateralConv(channels, width) for channels in config.channels)
        depths = [NUM_CONV_BLOCKS, *(1 for _ in config.channels[1:])]
        self.conv_blocks = nn.ModuleList(nn.Sequential(*(ResidualConv(width) for _ in range(n))) for n in depths)
        self.subpixel_conv = nn.Conv2d(width, config.pixel_features * config.strides[0] ** 2, 1)
        self.expression_mlp = nn.Sequential(
            nn.LayerNorm(config.decoder_dim), nn.Linear(config.decoder_dim, 4 * width), nn.GELU()
        )
        self.controller = nn.Linear(4 * width, config.pixel_features + 4 * config.num_frequencies + 1)
        nn.init.constant_(self.controller.bias[-1:], FOREGROUND_BIAS_INIT)

    @classmethod
    def of(cls, vlm: PixelVLM, hidden_channels: int = HIDDEN_CHANNELS) -> "MaskHead":
        """Return a new head for a model; `UserError` if its class reads images through its own processor."""
        return cls(MaskHeadConfig.of(vlm, hidden_channels))

    def forward(
        self,
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        states: Float[Tensor, "B K L D"],
        weights: Float[Tensor, "B K L"],
    ) -> Float[Tensor, "B K H W"]:
        """Return float32 logits of the pixels that the finest of `encoder_maps` covers.

        `states` and `weights` are those of `expression_states`.
        """
        pooled = torch.einsum("bkld,bkl->bkd", self.expression_mlp(states), weights.to(states.dtype))
        num_sinusoids = 2 * self.config.num_frequencies
        kernels, row_coefficients, column_coefficients, scalar_bias = self.controller(pooled).split(
            [self.config.pixel_features, num_sinusoids, num_sinusoids, 1], dim=-1
        )  # [B, K, ...]
        logits = self._apply_kernels(self._fuse(maps), kernels).float()
        row_bias = self._position_bias(row_coefficients, maps[-1].shape[2], logits.shape[2])
        column_bias = self._position_bias(column_coefficients, maps[-1].shape[3], logits.shape[3])
        return logits + row_bias[..., :, None] + column_bias[..., None, :] + scalar_bias.float()[..., None]

    def _fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the pyramid's finest map [B, D, h, w]: from the coarsest on, each is added to the next finer one."""
        strides = self.config.strides
        fused: Tensor | None = None
        for level in reversed(range(len(maps))):
            lateral = self.lateral_convs[level](maps[level])
            if fused is not None:
                factor = strides[level + 1] // strides[level]
                size = [max(n, coarse * factor) for n, coarse in zip(lateral.shape[2:], fused.shape[2:], strict=True)]
                fused = functional.interpolate(fused, size=size, mode="nearest")
                lateral = lateral + fused[:, :, : lateral.shape[2], : lateral.shape[3]]
            fused = self.conv_blocks[level](lateral)
        assert fused is not None
        return fused

    def _apply_kernels(self, fused: Tensor, kernels: Tensor) -> Tensor:
        """Return the products [B, K, H, W] of kernels [B, K, F] with every pixel's features.

        The pixel features are never computed: kernel and sub-pixel convolution are both linear, and become one.
        """
        conv, upscale = self.subpixel_conv, self.config.strides[0]
        assert conv.bias is not None
        weight = conv.weight.view(-1, upscale**2, conv.in_channels)  # [F, S, D]
        bias = conv.bias.view(-1, upscale**2)  # [F, S]
        kernels = kernels / self.config.pixel_features**0.5
        merged = torch.einsum("bkf,fsd->bksd", kernels, weight.to(kernels.dtype)).flatten(1, 2)  # [B, K * S, D]
        offsets = (kernels @ bias.to(kernels.dtype)).flatten(1)  # [B, K * S]
        products = merged @ functional.gelu(fused).flatten(2) + offsets[..., None]
        return functional.pixel_shuffle(products.unflatten(-1, fused.shape[2:]), upscale)

    def _position_bias(self, coefficients: Tensor, cells: int, num_pixels: int) -> Tensor:
        """Return [B, K, num_pixels]: a sum of sinusoids along an image side of `cells` of the coarsest map.

        They are 1, 2, ... half periods over the side, sines first, then cosines.
        """
        length = max(cells * self.config.strides[-1], num_pixels)
        positions = torch.arange(length, device=coefficients.device) * (torch.pi / length)
        angles = torch.arange(1, self.config.num_frequencies + 1, device=positions.device)[:, None] * positions
        return coefficients.float() @ torch.cat([angles.sin(), angles.cos()])[:, :num_pixels]

    def save(self, directory: Path) -> None:
        """Write the head beside its model; plain transformers ignores its files."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_file(Path(directory) / WEIGHTS_FILE) as temporary:
            save_file(tensors, temporary)
        write_text_atomically(Path(directory) / CONFIG_FILE, json.dumps(asdict(self.config), indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "MaskHead":
        """Return the head of a checkpoint; `CheckpointError` if its files are missing or of an unknown version."""
        weights_file, config_file = Path(directory) / WEIGHTS_FILE, Path(directory) / CONFIG_FILE
        if not weights_file.is_file() or not config_file.is_file():
            files = f"{WEIGHTS_FILE} and {CONFIG_FILE}"
            raise CheckpointError(f"expected a checkpoint with a mask head, {files}, got {directory}")
        fields = {OLD_NAMES.get(name, name): value for name, value in read_object(Path(directory), CONFIG_FILE).items()}
        try:
            with torch.device("meta"):  # sizes that do not fit the weights take no memory
                head = cls(checked(fields, MaskHeadConfig, config_file))
            tensors = {
                ".".join(OLD_NAMES.get(module, module) for module in name.split(".")): tensor.float()
                for name, tensor in load_file(weights_file).items()
            }
            head.load_state_dict(tensors, assign=True)
        except (UserError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{weights_file} is no mask head of this version: {reason}") from error
        require_finite(head.state_dict().items(), weights_file)
        return head.eval()


def expression_tokens(
    tokenizer: PreTrainedTokenizerFast, expressions: Sequence[Sequence[str]]
) -> tuple[SharedIds, Suffixes, Lengths]:
    """Return the tokens of K expressions about each of B images: shared prefix, padded questions, and their lengths."""
    questions = [[token_ids(tokenizer, mask_question(words)) for words in of_image] for of_image in expressions]
    return torch.tensor(token_ids(tokenizer, MASK_PREFIX)), *pad_token_lists(questions, padding_id(tokenizer))


def expression_states(
    vlm: PixelVLM, features: ImageFeatures, shared: SharedIds, questions: Suffixes, lengths: Lengths
) -> tuple[Float[Tensor, "B K L D"], Float[Tensor, "B K L"]]:
    """Return the decoder's hidden states over `expression_tokens`, and their pooling weights, 0 at padding.

    Half of the weight is spread evenly over the tokens; the last token, which attends to all, gets the other half.
    """
    device = features.tokens.device
    states = forward_packed(vlm, features, shared.to(device), questions.to(device))
    position, lengths = torch.arange(states.shape[2], device=device), lengths.to(device)[..., None]
    return states, ((position < lengths) / lengths + (position == lengths - 1)) / 2
