"""transformers' Trainer over whole batches: its checkpoints are ours, with the optimizer's state beside them."""

from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from vlm.device import best_device, is_main_process, world_size
from vlm.model import PixelModel
from vlm.precision import autocast
from vlm.training import lora
from vlm.training.config import TrainConfig


class Objective(nn.Module):
    """What is trained: a subclass whose forward takes a batch and returns `loss` and what else is worth logging."""

    def __init__(self, vlm: PixelModel, bf16: bool | None, attention: str = "eager"):
        super().__init__()
        # on a CPU, backward through sdpa is a fifth slower than eager over few tokens, and faster over hundreds
        vlm.set_attn_implementation(attention)
        if not any(parameter.ndim == 5 for parameter in vlm.model.parameters()):  # of films, which know no such layout
            vlm.model.to(memory_format=torch.channels_last)  # convolutions train a third faster so
        self.model, self.vlm, self.bf16, self.attention = vlm.model, vlm, bf16, attention

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 where that is safe, if asked to."""
        return autocast(self.vlm.device, self.bf16)

    def save(self, directory: Path, record: dict[str, Any]) -> None:
        """Write a checkpoint of what is trained."""
        lora.save(self.vlm, directory, record)
        self.save_auxiliary(directory)

    def restore(self, directory: Path) -> None:
        """Take the weights of a checkpoint of `save`."""
        lora.restore(self.vlm, directory)
        self.load_auxiliary(directory)

    def save_auxiliary(self, directory: Path) -> None:
        """Write what is trained beside the model and is no part of it, for a lesson that has such."""

    def load_auxiliary(self, directory: Path) -> None:
        """Take what `save_auxiliary` wrote."""


def _only(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return batches[0]


class VlmTrainer(Trainer):
    """Trains a `Objective` on a dataset whose items are whole batches, in order; item i is step i's batch.

    A dataset that draws item i from a seed and i alone makes a resumed run see what an unbroken one would.
    """

    def __init__(self, lesson: Objective, groups: list[dict], record: dict[str, Any], **kwargs: Any):
        self.groups, self.record = groups, record
        self._noted: dict[str, list[Tensor]] = {}
        super().__init__(model=lesson, data_collator=_only, **kwargs)

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """AdamW over the groups of the trainable plan."""
        self.optimizer = torch.optim.AdamW(self.groups, betas=(0.9, 0.999), fused=True)
        return self.optimizer

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **_: Any) -> Any:
        """Return the lesson's loss; the means of its other figures since the last entry go to the log."""
        out = model(**inputs)
        for name, value in out.items():
            if name != "loss":
                self._noted.setdefault(name, []).append(value.detach())
        return (out["loss"], out) if return_outputs else out["loss"]

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Add the means of the lesson's figures over the batches that had them."""
        if "loss" in logs:
            logs |= {name: round(float(torch.stack(found).mean()), 4) for name, found in self._noted.items()}
            self._noted.clear()
        super().log(logs, *rest)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if is_main_process():
            self.model.save(Path(output_dir or self.args.output_dir), self.record)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.model.restore(Path(resume_from_checkpoint))


def train(
    lesson: Objective,
    groups: list[dict],
    record: dict[str, Any],
    batches: Sized,
    out: Path,
    schedule: TrainConfig,
    callbacks: list[TrainerCallback] | None = None,
) -> None:
    """Train on every batch, or go on from the last checkpoint in `out/checkpoints`; logs go to TensorBoard.

    With P processes (`torchrun --nproc-per-node P`) a step is on the next P batches, one a process, and the
    mean of their gradients: the same batches make a P-th of the steps.
    """
    place = out / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(place),
        max_steps=max(1, len(batches) // world_size()),
        per_device_train_batch_size=1,  # an item is a whole batch
        ddp_find_unused_parameters=world_size() > 1 or None,  # a step of pixels leaves a readout out
        use_cpu=world_size() > 1 and best_device().type == "cpu",  # without which they know nothing of each other
        lr_scheduler_type="cosine",
        warmup_steps=schedule.warmup_steps,
        max_grad_norm=1.0,
        save_steps=schedule.save_every,
        save_total_limit=1,
        logging_steps=50,
        logging_nan_inf_filter=False,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_num_workers=schedule.workers,
        dataloader_pin_memory=False,
        seed=schedule.seed,
    )
    trainer = VlmTrainer(lesson, groups, record, args=arguments, train_dataset=batches, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(place)) if place.is_dir() else None)
