"""Precision: bfloat16 where the processor has it, where nothing else is asked."""

import pytest
import torch

from vlm.precision import autocast, in_bfloat16, native_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("able", "native"),
    [
        ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
    ],
)
def test_a_processor_tells(monkeypatch, able, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert native_bfloat16(CPU) is native
    assert in_bfloat16(CPU, None) is native
    assert in_bfloat16(CPU, True) is True
    assert in_bfloat16(CPU, False) is False


@pytest.mark.parametrize(("native", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_follow(monkeypatch, native, kind):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    ones = torch.ones(2, 2)
    with autocast(CPU, None):
        assert (ones @ ones).dtype is kind
