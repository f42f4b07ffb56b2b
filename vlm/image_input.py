"""How frames become the encoder's input; training and play share this code."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from common.errors import UserError


@dataclass(frozen=True)
class ImageConfig:
    """How frames become the encoder's input; part of every checkpoint.

    Coordinates are channels of each pixel's row and column (CoordConv, Liu et al. 2018); a convolution alone infers its
    position only from the borders.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # checks the file of a checkpoint

    history: Annotated[int, Field(ge=1, le=64)] = 1  # frames, the current one included
    # side of the square that frames are padded to, for an encoder of one input size
    square_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    # of the encoder, in pixels; without a square, rows and columns are padded to multiples of it
    stride: Annotated[int, Field(ge=1, le=1024)] = 32
    # factor on the differences between frames
    frame_diff_scale: Annotated[float, Field(ge=-1e3, le=1e3, allow_inf_nan=False)] = 1.0
    coordinate_channels: bool = False

    @property
    def channels(self) -> int:
        """The number of channels of the encoder's input."""
        return 3 * self.history + 2 * self.coordinate_channels

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns to resize frames to: their own, or what fits the square where they do not."""
        longest = max(height, width)
        if self.square_size is None or longest <= self.square_size:
            return height, width
        scale = self.square_size / longest
        return max(1, int(height * scale)), max(1, int(width * scale))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the encoder's input for frames of a size."""
        if self.square_size is None:
            return -(-height // self.stride) * self.stride, -(-width // self.stride) * self.stride
        if max(height, width) > self.square_size:
            raise UserError(f"expected frames of at most {self.square_size} rows and columns, got {height} x {width}")
        return self.square_size, self.square_size


class ImageInputs(dict[str, Tensor]):
    """The image inputs of a pretrained model's class by name, for `num_images` images of one size.

    image_ids: the token ids of one image in a prompt: its placeholders, and the markers around and between them. Where
        a model sees several frames, they are one image here. types_prompts: see `vlm.model.types_prompts`.
    """

    image_ids: Int[Tensor, " P"]
    num_images: int
    types_prompts: bool = False

    def to(self, device: torch.device, **options: Any) -> "ImageInputs":
        """Return the inputs with all of their tensors on a device."""
        moved = ImageInputs({name: tensor.to(device, **options) for name, tensor in self.items()})
        moved.image_ids, moved.num_images = self.image_ids.to(device, **options), self.num_images
        moved.types_prompts = self.types_prompts
        return moved


def preprocess_frames(
    frames: UInt8[Tensor, "B T H W 3"], config: ImageConfig, dtype: torch.dtype
) -> Float[Tensor, "B C rows columns"]:
    """Return the encoder's input; see `PixelModel.preprocess`."""
    rows, columns = config.padded_size(*map(int, frames.shape[2:4]))  # ints in a trace too
    *earlier, current = (frames[:, index].to(dtype) * (1 / 256) for index in range(config.history))
    planes = [current, *((current - frame) * config.frame_diff_scale for frame in earlier)]  # [B, H, W, C_i]
    if config.coordinate_channels:
        planes.append(_coordinates(rows, columns, frames.device).to(dtype).expand(len(frames), -1, -1, -1))
    # channels last in memory, the layout of frames and the faster one for convolutions
    return _pad_and_concat(planes, rows, columns).permute(0, 3, 1, 2)


def resize_image(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image resized by box filter if a side shrinks, else by nearest pixel; unchanged if `size` is None."""
    if size is None or image.shape[:2] == size:
        return image
    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    resampling = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resampling))


def _coordinates(rows: int, columns: int, device: torch.device) -> Float[Tensor, "rows columns 2"]:
    """Return each pixel's row and column, scaled to (-2, 2)."""
    axes = [torch.arange(n, device=device).add(0.5).div(n / 4).sub(2) for n in (rows, columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _pad_and_concat(planes: list[Tensor], rows: int, columns: int) -> Float[Tensor, "B rows columns C"]:
    """Return planes [B, H, W, C_i] concatenated along channels, zero-padded at the bottom and right."""
    if torch.jit.is_tracing():  # a trace cannot record writes into slices, and fuses concatenation well
        padding = [(0, 0, 0, columns - plane.shape[2], 0, rows - plane.shape[1]) for plane in planes]
        return torch.cat([functional.pad(plane, by) for plane, by in zip(planes, padding, strict=True)], dim=-1)
    channels = [plane.shape[-1] for plane in planes]
    output = planes[0].new_zeros(len(planes[0]), rows, columns, sum(channels))
    for plane, part in zip(planes, output.split(channels, dim=-1), strict=True):
        part[:, : plane.shape[1], : plane.shape[2]] = plane
    return output
