"""Muon (Jordan et al. 2024) for the weight matrices inside a model, AdamW for everything else, as one optimizer.

Muon orthogonalizes each matrix's momentum, so that a step moves all of its directions alike. Pixel value prediction and
cloning both learn several times faster by it (`docs/log/`). Embeddings, the output head, norms and biases stay with
AdamW, as Muon's authors advise; convolution kernels count as matrices of output channels by inputs.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlm.model import PixelModel

MOMENTUM = 0.95
ADAMW_BETAS = (0.9, 0.99)


def hidden_matrices(vlm: PixelModel, convolutions: bool = True) -> set[int]:
    """Return the `id` of each parameter that Muon trains: linear weights, and convolution kernels if asked for.

    Embeddings, an output head, adapters of LoRA and the patch embedding of a vision transformer are not among them.
    """
    heads = [vlm.model.get_output_embeddings()] if hasattr(vlm.model, "get_output_embeddings") else []
    excluded = {id(p) for head in heads if head is not None for p in head.parameters()}
    found: set[int] = set()
    for name, module in vlm.model.named_modules():
        is_kernel = isinstance(module, nn.Conv2d) and convolutions and module.kernel_size != module.stride
        if "lora_" not in name and (isinstance(module, nn.Linear) or is_kernel) and module.weight.ndim in (2, 4):
            found.add(id(module.weight))
    return found - excluded


def as_matrix(tensor: Tensor) -> Tensor | None:
    """Return a view [out, inputs] that shares a weight's memory; None where its layout allows none."""
    if tensor.ndim == 2:
        return tensor
    for view in (tensor, tensor.permute(0, 2, 3, 1)):  # memory format: contiguous, or channels last
        if view.is_contiguous():
            return view.flatten(1)
    return None


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon over the parameters in `matrices`, by `id`, AdamW over the others; groups are those of the Trainer.

    Args:
        groups: parameter groups with `lr` and `weight_decay` each.
        matrices: which of their parameters Muon trains (`hidden_matrices`).
        lr_scale: Muon's learning rate relative to the group's. With its steps scaled to the root mean square of
            AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), 3 was best here.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], matrices: set[int], lr_scale: float = 3.0):
        split = []
        for group in groups:
            for is_muon in (True, False):
                own = [
                    p for p in group["params"] if (id(p) in matrices and as_matrix(p.detach()) is not None) == is_muon
                ]
                if own:
                    lr = group["lr"] * (lr_scale if is_muon else 1.0)
                    split.append({**group, "params": own, "lr": lr, "muon": is_muon})
        super().__init__(split, {})
        self._matrices: list[list[tuple[Tensor, Any]]] = [
            [(p, as_matrix(p.detach())) for p in group["params"]] for group in self._groups(True)
        ]
        inner = [
            {"params": [view for _, view in pairs], "lr": group["lr"], "weight_decay": group["weight_decay"]}
            for group, pairs in zip(self._groups(True), self._matrices, strict=True)
        ]
        self.muon = torch.optim.Muon(inner, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw") if inner else None
        rest = [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in self._groups(False)]
        self.adamw = torch.optim.AdamW(rest, betas=ADAMW_BETAS, fused=True) if rest else None

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step by both."""
        assert closure is None
        for part, is_muon in ((self.muon, True), (self.adamw, False)):
            if part is None:
                continue
            for inner, group in zip(part.param_groups, self._groups(is_muon), strict=True):
                inner["lr"], inner["weight_decay"] = group["lr"], group["weight_decay"]
        for parameter, view in (pair for pairs in self._matrices for pair in pairs):
            view.grad = None if parameter.grad is None else _matching_view(parameter, parameter.grad)
        for part in (self.muon, self.adamw):
            if part is not None:
                part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both, and the groups."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        parts = {"muon": self.muon, "adamw": self.adamw}
        return {"groups": groups, **{name: part.state_dict() for name, part in parts.items() if part is not None}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for group, saved in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(saved)
        for name, part in (("muon", self.muon), ("adamw", self.adamw)):
            if part is not None:
                part.load_state_dict(state_dict[name])


def _matching_view(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient as a matrix in the column order of its parameter's."""
    if gradient.ndim == 2:
        return gradient
    return (gradient if parameter.is_contiguous() else gradient.permute(0, 2, 3, 1)).flatten(1)
