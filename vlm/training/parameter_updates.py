"""Which parameters a training changed, told by checksums: a copy of the weights would take their memory once more."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.model import PixelModel
from vlm.training.learning_rates import role_parameters

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
    """Return the digest of every parameter by name; those of adapters, which are merged at the end, are left out."""
    return {name: TensorDigest.of(tensor) for name, tensor in _plain_parameters(dict(vlm.model.named_parameters()))}


def parameter_update_report(before: Mapping[str, TensorDigest], vlm: PixelModel) -> dict[str, dict[str, float]]:
    """Return, for each role, its number of tensors, how many changed since `snapshot`, and the largest change.

    That is the largest among the values that digests keep: 4,096 of each tensor.
    """
    report = {}
    for role, parameters in role_parameters(vlm).items():
        after = {name: TensorDigest.of(tensor) for name, tensor in parameters}
        changed = [name for name, digest in after.items() if digest.checksum != before[name].checksum]
        changes = [float((after[name].sample - before[name].sample).abs().max()) for name in changed]
        report[role] = {"tensors": len(after), "changed": len(changed), "largest_change": max(changes, default=0.0)}
    return report


def _plain_parameters(parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a model with adapters as without them."""
    for name, tensor in parameters.items():
        if "lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor
