"""Which parameters a training changed, told by checksums: a copy of the weights would take their memory once more."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.processes import is_main_process
from vlm.model import PixelModel
from vlm.training.learning_rates import role_parameters
from vlm.training.lora import BASE, plain_weights

SAMPLED = 4096  # values kept of a tensor, evenly spread
PART = 2**24  # values hashed at a time


@dataclass(frozen=True)
class TensorDigest:
    """A tensor's checksum, by which any change shows, and some of its values, by which its size does."""

    checksum: str
    sample: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorDigest":
        """Return the digest of a tensor, which does not depend on its layout in memory."""
        values = tensor.detach().contiguous().flatten()
        checksum = hashlib.sha256()
        for part in values.split(PART):
            checksum.update(memoryview(part.cpu().view(torch.uint8).numpy()))
        return cls(checksum.hexdigest(), values[:: -(-len(values) // SAMPLED) or 1].to("cpu", torch.float32, copy=True))


def snapshot(vlm: PixelModel) -> dict[str, TensorDigest]:
    """Return the digest of every weight of the plain model by name, adapters folded in (`vlm.training.lora`).

    Every process calls it; only the main one gets them.
    """
    return {name: TensorDigest.of(tensor) for name, tensor in plain_weights(vlm) if is_main_process()}


def parameter_update_report(before: Mapping[str, TensorDigest], vlm: PixelModel) -> dict[str, dict[str, float]]:
    """Return, for each role, its number of tensors, how many changed since `snapshot`, and the largest change.

    That is the largest among the values that digests keep: 4,096 of each tensor.
    """
    after, report = snapshot(vlm), {}
    for role, parameters in role_parameters(vlm).items() if after else ():
        names = [name.replace(f"{BASE}.", ".") for name, _ in parameters if "lora_" not in name]
        changed = [name for name in names if after[name].checksum != before[name].checksum]
        changes = [float((after[name].sample - before[name].sample).abs().max()) for name in changed]
        report[role] = {"tensors": len(names), "changed": len(changed), "largest_change": max(changes, default=0.0)}
    return report
