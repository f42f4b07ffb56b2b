"""Feature maps of a vision encoder at several strides, the input of a mask head."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UserError
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM

MAX_STRIDE = 8  # pixels: a patch embedding of a larger stride is applied again in smaller steps
NUM_CONV_BLOCKS = 2  # 3 x 3 convolutions of a mask head on the finest map, which read as many cells beyond the image


def encoder_maps(
    vlm: PixelVLM, features: ImageFeatures, valid_size: tuple[int, int] | None = None
) -> list[Float[Tensor, "B _ _ _"]]:
    """Return the encoder's maps of images, from the finest to the coarsest.

    Of a hierarchical encoder, the last map of each size; of a plain vision transformer, its dense patch embedding
    (`dense_patch_embedding`), the hidden states of the middle layer and those of the last.

    `valid_size`: rows and columns of images that do not fill the encoder's input; the finest map is cropped to the
    cells that their masks depend on. `UserError` if the features have no hidden states.
    """
    if not features.hidden_states:
        raise UserError("expected features with the encoder's hidden states: encode_images(..., True)")
    pixels = features.inputs["pixel_values"]
    maps = [state if state.ndim == 4 else _to_map(state) for state in features.hidden_states]
    sizes = [tuple(state.shape[2:]) for state in maps]
    if len(set(sizes)) == 1:
        maps = [maps[len(maps) // 2], maps[-1]]
    else:
        maps = [state for index, state in enumerate(maps) if sizes[index] not in sizes[index + 1 :]]
    first = next(module for module in vlm.encoder.modules() if isinstance(module, nn.Conv2d))
    if first.kernel_size == first.stride and first.stride[0] > MAX_STRIDE:
        return [dense_patch_embedding(first, pixels, valid_size), *maps]
    if valid_size:
        strides = (side // cells for side, cells in zip(pixels.shape[2:], maps[0].shape[2:], strict=True))
        rows, columns = (_num_valid_cells(n, stride) for n, stride in zip(valid_size, strides, strict=True))
        maps[0] = maps[0][:, :, :rows, :columns]
    return maps


def dense_patch_embedding(
    embedding: nn.Conv2d, pixels: Float[Tensor, "B P H W"], valid_size: tuple[int, int] | None = None
) -> Float[Tensor, "B C h w"]:
    """Return a patch embedding's map at the largest stride up to `MAX_STRIDE` that divides the patch size.

    Each cell is the embedding of the patch around it, on zero padding; `valid_size` crops as in `encoder_maps`.
    """
    patch = int(embedding.stride[0])
    stride = max(n for n in range(1, MAX_STRIDE + 1) if patch % n == 0)
    left, right = (patch - stride) // 2, (patch - stride + 1) // 2
    padded = functional.pad(pixels.to(embedding.weight.dtype), (left, right, left, right))
    if valid_size:
        rows, columns = (patch + stride * (_num_valid_cells(n, stride) - 1) for n in valid_size)
        padded = padded[:, :, :rows, :columns]
    return functional.conv2d(padded, embedding.weight, embedding.bias, stride=stride)


def _num_valid_cells(num_pixels: int, stride: int) -> int:
    return -(-num_pixels // stride) + NUM_CONV_BLOCKS


def _to_map(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D h w"]:
    """Return the patch tokens of square images as a map, without a class token."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens[:, tokens.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))
