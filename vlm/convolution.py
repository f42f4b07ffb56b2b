"""Convolutions as matrix products, for training in bfloat16 on a CPU.

On processors with matrix tiles (AMX) a bfloat16 product runs about ten times faster than the library's convolution
runs backward, and the encoder's last stage is one wide convolution. Same parameters, same result up to rounding:
`use_products` changes how a model computes, not what is saved.
"""

from typing import Any

import torch
from torch import Tensor, nn


def windows(image: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return the windows of [B, C, H, W] that a convolution sees, copied: [B * H' * W', kernel * kernel * C]."""
    batch, channels, height, width = image.shape
    padded = image.new_zeros(batch, height + 2 * padding, width + 2 * padding, channels)
    padded[:, padding : padding + height, padding : padding + width] = image.permute(0, 2, 3, 1)
    rows, columns = (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    lines = padded.view(torch.float32) if _can_pair(padded, channels) else padded  # half as many numbers to copy
    step_b, step_h, step_w, _ = lines.stride()
    shape = (batch, rows, columns, kernel, kernel * step_w)  # a line of a window lies in one piece
    seen = lines.as_strided(shape, (step_b, step_h * stride, step_w * stride, step_h, 1)).flatten(0, 2).flatten(1)
    return seen.view(image.dtype)


def _can_pair(padded: Tensor, channels: int) -> bool:
    return padded.element_size() == 2 and channels % 2 == 0


class _Product(torch.autograd.Function):
    """A convolution [B, C, H, W] -> [B, O, H', W'] as one product forward and two backward."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        seen = windows(image, weight.shape[-1], stride, padding)
        matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # [O, kernel * kernel * C], no copy
        made = torch.addmm(bias, seen, matrix.t())
        ctx.save_for_backward(seen, matrix)
        ctx.size, ctx.kernel, ctx.stride, ctx.padding = image.shape, weight.shape[-1], stride, padding
        rows = (image.shape[2] + 2 * padding - ctx.kernel) // stride + 1
        return made.view(len(image), rows, -1, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seen, matrix = ctx.saved_tensors
        kernel, stride, padding = ctx.kernel, ctx.stride, ctx.padding
        batch, channels, height, width = ctx.size
        outer = gradients[0].permute(0, 2, 3, 1)  # [B, H', W', O]
        rows, columns = outer.shape[1:3]
        flat = outer.reshape(batch * rows * columns, -1)
        weight = (flat.t() @ seen).view(-1, kernel, kernel, channels).permute(0, 3, 1, 2)
        inner = None
        if ctx.needs_input_grad[0]:
            parts = (flat @ matrix).view(batch, rows, columns, kernel, kernel, channels)
            padded = parts.new_zeros(batch, height + 2 * padding, width + 2 * padding, channels)
            for y in range(kernel):
                for x in range(kernel):
                    place = padded[:, y : y + stride * rows : stride, x : x + stride * columns : stride]
                    place[:, :rows, :columns] += parts[:, :, :, y, x]
            inner = padded[:, padding : padding + height, padding : padding + width].permute(0, 3, 1, 2)
        return inner, weight, flat.sum(0), None, None


class ProductConv2d(nn.Conv2d):
    """A convolution of square kernels, one group and a bias, computed as a matrix product."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        if torch.is_autocast_enabled(input.device.type):
            kind = torch.get_autocast_dtype(input.device.type)
            input, weight, bias = input.to(kind), weight.to(kind), bias.to(kind)
        return _Product.apply(input, weight, bias, self.stride[0], self.padding[0])


def use_products(model: nn.Module) -> None:
    """Let every convolution of a model that can be computed as a matrix product be so, in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups == 1 and module.bias is not None:
            assert isinstance(module.padding[0], int)
            if len({*module.kernel_size}) == len({*module.stride}) == 1 and module.dilation == (1, 1):
                module.__class__ = ProductConv2d
                # channels last, so that the weights are the product's matrix as they lie
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
