"""Operations of a transformer layer, each forward and backward in few passes over memory, for training on a CPU.

On a CPU a small model's step is spent in copies, casts and element-wise operations rather than in products
(`docs/log/`). Each function gives what the chain of operations in transformers gives, to rounding; none knows a model.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

VECTOR = 32  # rows of scores are padded to a multiple of it: softmax takes half the time


def trains_on_cpu(model: Any) -> bool:
    """Return whether a model of transformers is in training mode, on a CPU and with gradients."""
    return model.training and torch.is_grad_enabled() and model.device.type == "cpu"


def rms_normalize(states: Float[Tensor, "N D"], eps: float, dtype: torch.dtype) -> Float[Tensor, "N D"]:
    """Return each row divided by its root mean square, in another type; the norm's weight is the caller's."""
    return _RmsNormalize.apply(states, eps, dtype)


class _RmsNormalize(Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = norm.square_().div_(states.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(states, scale)
        return (states * scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        states, scale = ctx.saved_tensors
        grad = grad.to(states.dtype, copy=True)
        along = torch.linalg.vecdot(grad, states)[:, None].mul_(scale.pow(3)).div_(states.shape[-1])
        return grad.mul_(scale).addcmul_(states, along, value=-1), None, None


def swiglu(gate_up: Float[Tensor, "N 2F"]) -> Float[Tensor, "N F"]:
    """Return silu(gate) * up of the two halves."""
    return _Swiglu.apply(gate_up)


class _Swiglu(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated = functional.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(grad, activated, out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        return result


def split_heads(
    projected: Float[Tensor, "B C T parts heads width"], cos: Float[Tensor, "T width"], sin: Float[Tensor, "T width"]
) -> tuple[Float[Tensor, "B heads C T width"], ...]:
    """Return the parts by head; all but the last, the values, are rotated to their positions."""
    return _SplitHeads.apply(projected, cos, sin)


class _SplitHeads(Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        by_head = projected.permute(3, 0, 4, 1, 2, 5)
        result = projected.new_empty(by_head.shape)
        _rotate(by_head[:-1], cos, sin, result[:-1])
        result[-1].copy_(by_head[-1])
        return result.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        batch, heads, rows, tokens, width = grads[0].shape
        result = grads[0].new_empty(batch, rows, tokens, len(grads), heads, width)
        by_head = result.permute(3, 0, 4, 1, 2, 5)
        for part, grad in zip(by_head[:-1], grads[:-1], strict=True):
            _rotate(grad, cos, -sin, part)
        by_head[-1].copy_(grads[-1])
        return result, None, None


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Write the rotated states [..., T, width] into `out`."""
    half = states.shape[-1] // 2
    torch.mul(states, cos, out=out)
    out[..., :half].addcmul_(states[..., half:], sin[:, :half], value=-1)
    out[..., half:].addcmul_(states[..., :half], sin[:, half:])


def attend(
    query: Float[Tensor, "G N width"],
    key: Float[Tensor, "G P width"],
    value: Float[Tensor, "G P width"],
    own_key: Float[Tensor, "GC T width"] | None = None,
    own_value: Float[Tensor, "GC T width"] | None = None,
    mask: Float[Tensor, "_ _"] | None = None,
    reads: Int[Tensor, "G N M"] | None = None,
) -> tuple[Float[Tensor, "G N width"], Float[Tensor, "G N M"] | None]:
    """Return the attention of scaled queries, and the weights at `reads` of each query's keys.

    The N queries of a group are C rows of N / C; each row also attends to T keys of its own, which count from P.
    `mask` is additive, over a row's own keys where there are any.
    """
    return _Attend.apply(query, key, value, own_key, own_value, mask, reads)


class _Attend(Function):
    """Scores of all keys lie in one tensor; own keys and padding are zeros in the product with the common ones."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        own_key: Tensor | None,
        own_value: Tensor | None,
        mask: Tensor | None,
        reads: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        common, ctx.common = key.shape[1], key.shape[1]
        count = common + (0 if own_key is None else own_key.shape[1])
        padding = -count % VECTOR + count - common
        key, value = (functional.pad(part, (0, 0, 0, padding)) for part in (key, value))
        scores = query @ key.mT
        if own_key is not None:
            own_scores = _rows(query, own_key) @ own_key.mT
            _own(scores, common, own_key).copy_(own_scores if mask is None else own_scores.add_(mask))
        elif mask is not None:
            scores[..., :common].add_(mask)
        scores[..., count:] = -math.inf
        weights = torch.softmax(scores, dim=-1)
        output = weights @ value
        if own_key is not None and own_value is not None:
            _rows(output, own_key).baddbmm_(_own(weights, common, own_key), own_value)
        ctx.save_for_backward(query, key, value, own_key, own_value, weights, reads)
        return output, None if reads is None else weights.gather(-1, reads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, of_reads: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, own_key, own_value, weights, reads = ctx.saved_tensors
        grad, common = grad.contiguous(), ctx.common
        of_weights = grad @ value.mT
        if own_key is not None:
            _own(of_weights, common, own_key).copy_(_rows(grad, own_key) @ own_value.mT)
        if reads is not None:
            of_weights.scatter_add_(-1, reads, of_reads)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query = of_scores @ key
        of_key, of_value = ((part.mT @ rows)[:, :common] for part, rows in ((of_scores, query), (weights, grad)))
        if own_key is None:
            return of_query, of_key, of_value, None, None, None, None
        own_scores, own_weights = (_own(part, common, own_key) for part in (of_scores, weights))
        _rows(of_query, own_key).baddbmm_(own_scores, own_key)
        of_own_key, of_own_value = own_scores.mT @ _rows(query, own_key), own_weights.mT @ _rows(grad, own_key)
        return of_query, of_key, of_value, of_own_key, of_own_value, None, None


def _own(scores: Tensor, common: int, own_key: Tensor) -> Tensor:
    """Return the view [G * C, N / C, T] of scores [G, N, ...] on each row's own keys."""
    own = scores[..., common : common + own_key.shape[1]]
    return own.unflatten(1, (len(own_key) // len(scores), -1)).flatten(0, 1)


def _rows(states: Tensor, own_key: Tensor) -> Tensor:
    """Return states [G, N, width] as rows [G * C, N / C, width]."""
    return states.view(len(own_key), -1, states.shape[-1])
