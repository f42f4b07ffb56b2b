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


def rms_normalize(states: Float[Tensor, "N D"], eps: float, dtype: torch.dtype) -> Float[Tensor, "N D"]:
    """Return each row divided by its root mean square, in another type; the weight of the norm is left to the caller."""
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
        weights = _scores(query, key, own_key)
        common, own = _columns(weights, key, own_key)
        if mask is not None:
            (common if own is None else own).add_(mask)
        weights[..., key.shape[1] + (0 if own_key is None else own_key.shape[1]) :] = -math.inf
        weights = torch.softmax(weights, dim=-1)
        common, own = _columns(weights, key, own_key)
        output = common @ value
        if own is not None:
            _rows(output, own_value).baddbmm_(own, own_value)
        ctx.save_for_backward(query, key, value, own_key, own_value, weights, reads)
        return output, None if reads is None else weights.gather(-1, reads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_reads: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, own_key, own_value, weights, reads = ctx.saved_tensors
        grad = grad.contiguous()
        of_scores = _scores(grad, value, own_value)
        of_scores[..., key.shape[1] + (0 if own_key is None else own_key.shape[1]) :] = 0
        if reads is not None:
            of_scores.scatter_add_(-1, reads, grad_reads)
        of_scores = torch.ops.aten._softmax_backward_data(of_scores, weights, -1, weights.dtype)
        (common, own), (weight, own_weight) = (_columns(part, key, own_key) for part in (of_scores, weights))
        of_query, of_key, of_value = common @ key, common.mT @ query, weight.mT @ grad
        if own is None:
            return of_query, of_key, of_value, None, None, None, None
        _rows(of_query, own_key).baddbmm_(own, own_key)
        of_own_key, of_own_value = own.mT @ _rows(query, own_key), own_weight.mT @ _rows(grad, own_key)
        return of_query, of_key, of_value, of_own_key, of_own_value, None, None


def _scores(query: Tensor, key: Tensor, own_key: Tensor | None) -> Tensor:
    """Return the products [G, N, at least P + T] with both kinds of keys; the columns after them are left undefined."""
    own_count = 0 if own_key is None else own_key.shape[1]
    padded = -(-(key.shape[1] + own_count) // VECTOR) * VECTOR
    scores = query.new_empty(*query.shape[:2], padded)
    common, own = _columns(scores, key, own_key)
    torch.bmm(query, key.mT, out=common)
    if own is not None and own_key is not None:
        torch.bmm(_rows(query, own_key), own_key.mT, out=own)
    return scores


def _columns(scores: Tensor, key: Tensor, own_key: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the views [G, N, P] and [G * C, N / C, T] of scores [G, N, ...]."""
    count = key.shape[1]
    if own_key is None:
        return scores[..., :count], None
    own = scores[..., count : count + own_key.shape[1]]
    return scores[..., :count], own.unflatten(1, (len(own_key) // len(scores), -1)).flatten(0, 1)


def _rows(states: Tensor, own_key: Tensor) -> Tensor:
    """Return states [G, N, width] as rows [G * C, N / C, width]."""
    return states.view(len(own_key), -1, states.shape[-1])
