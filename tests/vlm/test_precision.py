"""bfloat16 is used where it is native, unless requested otherwise."""

import pytest
import torch

from vlm.precision import autocast, in_bfloat16, native_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
    ],
)
def test_a_processors_capabilities_decide(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert native_bfloat16(CPU) is native
    assert in_bfloat16(CPU, None) is native
    assert in_bfloat16(CPU, True) is True
    assert in_bfloat16(CPU, False) is False


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_follows(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    ones = torch.ones(2, 2)
    with autocast(CPU, None):
        assert (ones @ ones).dtype is dtype
