"""Weights, gradients and optimizer states of which every process of a launcher holds a part (FSDP2).

Each transformer layer is gathered while it computes, everything else during a step (Zhao et al. 2023, "PyTorch FSDP",
arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`). On CPUs the processes speak through gloo, on GPUs through NCCL.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from common.processes import world_size
from vlm.checkpoint_files import CheckpointError

FOLDER = "sharded"  # in a checkpoint that a training resumes from: weights and optimizer states, in parts


def shard(module: nn.Module, device: torch.device) -> None:
    """Share a module's parameters among all processes, in place; its parameters are new ones afterwards."""
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in [one for one in module.modules() if isinstance(one, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole; if it is in parts, every process asks for it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def save_sharded(module: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Write weights and optimizer states, of each process its part; every process calls it."""
    distributed_checkpoint.save(_state(module, optimizer), checkpoint_id=directory / FOLDER)


def load_sharded(module: nn.Module, optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Load what `save_sharded` wrote, by as many processes or by others; `CheckpointError` if weights are missing.

    Parameters that had no gradient have no optimizer state.
    """
    state, stored = _state(module, optimizer), FileSystemReader(directory / FOLDER)
    known = stored.read_metadata().state_dict_metadata
    if missing := [name for name in state["model"] if f"model.{name}" not in known]:
        raise CheckpointError(f"{directory / FOLDER} lacks {len(missing)} weights of its model: {missing[0]}")
    planner = DefaultLoadPlanner(allow_partial_load=True)
    distributed_checkpoint.load(state, storage_reader=stored, planner=planner)
    set_state_dict(module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model, optimizers = get_state_dict(module, optimizer)
    return {"model": model, "optimizer": optimizers}
