"""What every training command can be told, and what every training tells of itself."""

from dataclasses import dataclass
from typing import Any

from common.run_arguments import run_metadata, to_json
from vlm.device import world_size


@dataclass(kw_only=True)
class TrainConfig:
    """The options that all trainings share; a command may begin some of them elsewhere."""

    steps: int = 2000
    """Batches; each makes an optimizer step, or with P processes (torchrun --nproc-per-node P) P together do."""
    weight_decay: float = 0.05
    """Weight decay on matrices."""
    warmup_steps: int = 100
    """Steps of linear warm-up, before a cosine to zero."""
    seed: int = 0
    """Seed of new weights and of all that is drawn."""
    save_every: int = 500
    """Steps between checkpoints."""
    bf16: bool | None = None
    """Compute in bfloat16 where that is safe, the weights stay float32; None does where the device has it natively."""
    workers: int = 1
    """Processes that make batches ahead."""

    def plain(self) -> dict[str, Any]:
        """Return all options as JSON holds them."""
        return to_json(self)

    def record(self) -> dict[str, Any]:
        """Return how a checkpoint is made, for its `training.json`; a command adds what is its own."""
        return {**run_metadata(self), "processes": world_size()}
