"""Layers that replace torch's own inside every model, in place and with the same parameters."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class FixedStatsBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with fixed statistics, in training too: a trainable scale and shift of each channel.

    A training batch comes from one game, so its statistics would fit no other game.
    """

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the input, scaled and shifted."""
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class StridedPointwiseConv2d(nn.Conv2d):
    """A strided 1 x 1 convolution that subsamples its input first: the same products.

    oneDNN's own kernel writes past its memory in float32 on AVX-512 processors (torch 2.13): from 8 channels or fewer
    to 32 or fewer, for some batch sizes and thread counts. The process crashes sooner or later.
    """

    def forward(self, input: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out h w"]:
        """Return the convolution at every n-th row and column."""
        if self.padding != (0, 0):  # in a pretrained model: subsampling would have to start in the padding
            return super().forward(input)
        subsampled = input[:, :, :: self.stride[0], :: self.stride[1]]
        return functional.conv2d(subsampled, self.weight, self.bias, groups=self.groups)


def replace_layers(model: nn.Module) -> None:
    """Change the class of batch norms and of strided 1 x 1 convolutions in a model to this module's, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = FixedStatsBatchNorm2d
        elif type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.stride != (1, 1):
            module.__class__ = StridedPointwiseConv2d
