"""The fused operations have the values and the gradients of the chains that they replace."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

from vlm.fused_ops import attend, rms_normalize, split_heads, swiglu

DOUBLE = {"dtype": torch.float64, "requires_grad": True}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_rows_are_divided_by_their_root_mean_square():
    states = torch.randn(5, 8, **DOUBLE)
    assert torch.allclose(rms_normalize(states, 1e-6, torch.float64), functional.rms_norm(states, (8,), eps=1e-6))
    assert gradcheck(lambda x: rms_normalize(x, 0.1, torch.float64), states)
    assert rms_normalize(states, 1e-6, torch.bfloat16).dtype == torch.bfloat16


def test_the_gate_is_activated_and_multiplied():
    gate_up = torch.randn(5, 12, **DOUBLE)
    assert torch.allclose(swiglu(gate_up), functional.silu(gate_up[:, :6]) * gate_up[:, 6:])
    assert gradcheck(swiglu, gate_up)


def test_queries_and_keys_are_rotated_and_values_are_not():
    angles = torch.randn(4, 3, dtype=torch.float64).repeat(1, 2)
    projected = torch.randn(2, 3, 4, 3, 2, 6, **DOUBLE)  # [B, C, T, parts, heads, width]
    rotated = split_heads(projected, angles.cos(), angles.sin())
    by_head = projected.permute(3, 0, 4, 1, 2, 5)
    half = torch.cat([-by_head[..., 3:], by_head[..., :3]], dim=-1)
    for index in range(2):
        assert torch.allclose(rotated[index], by_head[index] * angles.cos() + half[index] * angles.sin())
    assert torch.equal(rotated[2], by_head[2])
    assert gradcheck(lambda x: split_heads(x, angles.cos(), angles.sin()), projected)


@pytest.mark.parametrize("with_own", [True, False])
def test_attention_is_one_softmax_over_common_and_own_keys(with_own):
    groups, rows, tokens, common, width = 2, 3, 4, 5, 6
    query = torch.randn(groups, rows * tokens, width, **DOUBLE)
    key, value = (torch.randn(groups, common, width, **DOUBLE) for _ in range(2))
    own = [torch.randn(groups * rows, tokens, width, **DOUBLE) for _ in range(2)] if with_own else []
    mask = torch.full((tokens, tokens) if with_own else (rows * tokens, common), -1e9, dtype=torch.float64).triu(1)
    reads = torch.randint(common, (groups, rows * tokens, 2))
    expected, read = [], []
    for group in range(groups):
        for row in range(rows):
            part = slice(row * tokens, (row + 1) * tokens)
            keys, values = key[group], value[group]
            scores = query[group, part] @ keys.T
            if with_own:
                own_scores = query[group, part] @ own[0][group * rows + row].T + mask
                scores, values = torch.cat([scores, own_scores], -1), torch.cat([values, own[1][group * rows + row]])
            else:
                scores = scores + mask[part]
            weights = scores.softmax(-1)
            expected.append(weights @ values)
            read.append(weights.gather(-1, reads[group, part]))
    found, found_read = attend(query, key, value, *(own or (None, None)), mask, reads)
    assert torch.allclose(found, torch.cat(expected).view(found.shape))
    assert torch.allclose(found_read, torch.cat(read).view(found_read.shape))
    arguments = (query, key, value, *own)
    assert gradcheck(lambda *a: attend(*a[:3], *(a[3:] or (None, None)), mask, reads), arguments)


def test_padding_gets_no_attention_in_bfloat16():
    ones = torch.ones(1, 3, 4, dtype=torch.bfloat16)
    output, read = attend(ones, ones, ones, reads=torch.zeros(1, 3, 1, dtype=torch.long))
    assert torch.equal(output, ones)
    assert torch.allclose(read.float(), torch.tensor(1 / 3), atol=1e-2)
