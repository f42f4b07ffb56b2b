"""`fit`: the one training loop, transformers' Trainer over a mixture of objectives.

It starts from a model, trains roles at their own learning rates, resumes from its newest complete checkpoint, and
writes `last`: a checkpoint with plain weights (adapters merged) that tells how it was made and which parameters moved.
"""

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from common.errors import UserError, nearest
from common.files import atomic_file, replace_directory
from common.interruption import deferred_interruption
from common.output_lock import output_lock
from common.processes import is_main_process, world_size
from common.run_arguments import require_same_arguments
from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.device import best_device
from vlm.hf_vlm import PretrainedVLM
from vlm.image_tokens import describe_image_input
from vlm.model import PixelModel, PixelVLM
from vlm.precision import autocast, required_autocast
from vlm.training import lora
from vlm.training.config import TRAINER_DEFAULTS, ModelConfig, RunConfig, TrainConfig
from vlm.training.learning_rates import (
    auxiliary_group,
    module_learning_rates,
    parameter_groups,
    set_dtypes,
)
from vlm.training.mixture import Mixture, MixtureBatch, MixtureDataset
from vlm.training.optimizers import MuonWithAdamW, hidden_matrices
from vlm.training.parameter_updates import parameter_update_report, snapshot
from vlm.training.quantization import quantize_decoder, require_quantization
from vlm.training.resumption import (
    UNFINISHED,
    newest_complete_checkpoint,
    non_finite_error,
    remove_old_checkpoints,
)
from vlm.training.sharding import load_sharded, own_part, save_sharded, shard

AUXILIARY = "auxiliary.safetensors"  # the modules that train beside the model, in a run and in its checkpoints
MAX_UNCHECKED = 50  # losses on a GPU between two looks at them
OWN_FLAGS = {
    "output_dir": "--out",
    "max_steps": "--steps",
    "seed": "--seed",
    "learning_rate": "--learning-rate",
    "fsdp": "--fsdp",
    "fsdp_config": "--fsdp",
}


class TrainingModule(nn.Module):
    """The model, the auxiliary modules and the mixture's loss as the one module that the Trainer trains.

    Weights of convolutions lie channels last in memory, by which they train a third faster, unless they are shared
    among processes, which cut them along their first dimension.
    """

    def __init__(self, mixture: Mixture, bf16: bool | None, channels_last: bool = True):
        super().__init__()
        self.mixture, self.bf16 = mixture, bf16
        self.model, self.auxiliary = mixture.vlm.model, mixture.auxiliary()
        is_3d = any(parameter.ndim == 5 for parameter in self.model.parameters())  # which has no such layout
        if channels_last and not is_3d:
            self.model.to(memory_format=torch.channels_last)

    def forward(self, batch: MixtureBatch) -> dict[str, Any]:
        """Return `loss` and `metrics` of a batch."""
        with autocast(self.mixture.vlm.device, self.bf16):
            losses = self.mixture.loss(batch)
        return {"loss": losses.loss, "metrics": losses.metrics}

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass, for the Trainer's option of that name."""
        self.model.activation_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Do so under the name that transformers before 5.24 calls."""
        self.model.gradient_checkpointing_enable(**options)


def _only(batches: list[MixtureBatch]) -> dict[str, MixtureBatch]:
    return {"batch": batches[0]}


class VlmTrainer(Trainer):
    """transformers' Trainer over whole batches, whose checkpoints are ours with the optimizer's state beside them."""

    model: TrainingModule

    def __init__(
        self,
        module: TrainingModule,
        groups: Callable[[], list[dict]],
        metadata: dict[str, Any],
        muon_lr_scale: float | None = None,
        fsdp: bool = False,
        **options: Any,
    ):
        self.groups, self.metadata, self.muon_lr_scale, self.fsdp = groups, metadata, muon_lr_scale, fsdp
        self._metrics: dict[str, list[Tensor]] = defaultdict(list)
        self._unchecked: list[tuple[int, Tensor]] = []  # losses by step
        self._unfinished: Path | None = None
        super().__init__(model=module, data_collator=_only, **options)
        if fsdp:  # else it would copy the gradients of what is shared already
            prepare = self.accelerator.prepare_model
            self.accelerator.prepare_model = lambda model, **_: prepare(model, False, evaluation_mode=True)

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """Build Muon with AdamW, or the optimizer that `optim` names, over the parameter groups of the roles.

        The model is shared among processes before: its parameters are others then. Muon needs whole matrices.
        """
        if self.fsdp:
            shard(self.model, self.args.device)
        if self.muon_lr_scale and not self.fsdp:
            matrices = hidden_matrices(self.model.mixture.vlm)
            self.optimizer = MuonWithAdamW(self.groups(), matrices, self.muon_lr_scale)
            return self.optimizer
        build, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = build(self.groups(), **options)
        return self.optimizer

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss; the log gets the means of the other metrics since its last entry."""
        out = model(**inputs)
        for name, value in out["metrics"].items():
            self._metrics[name].append(value.detach())
        return (out["loss"], out) if return_outputs else out["loss"]

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Add the mean of each metric over the batches that had it."""
        if "loss" in logs:
            logs |= {name: round(float(torch.stack(values).nanmean()), 4) for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, *rest)

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Take a step; `UserError` if its loss is not finite, on a GPU some steps later, which need not wait for it."""
        loss = super().training_step(*arguments, **options)
        self._unchecked.append((self.state.global_step + 1, loss))
        if loss.device.type == "cpu" or len(self._unchecked) == MAX_UNCHECKED:
            self._require_finite_losses()
        return loss

    def _require_finite_losses(self) -> None:
        found, self._unchecked = self._unchecked, []
        if found and not torch.stack([loss for _, loss in found]).isfinite().all():
            step, loss = next((step, float(loss)) for step, loss in found if not loss.isfinite())
            raise non_finite_error(f"the loss of step {step} is {loss}", Path(str(self.args.output_dir)))

    def require_finite(self) -> None:
        """Check losses and weights before they are saved; raise `UserError` if they are not finite."""
        self._require_finite_losses()
        is_finite = all(own_part(parameter).isfinite().all() for parameter in self.model.parameters())
        if world_size() > 1:  # all end, or none
            is_finite = bool(self.accelerator.gather(torch.tensor([is_finite], device=self.args.device)).all())
        if not is_finite:
            step, place = self.state.global_step, Path(str(self.args.output_dir))
            raise non_finite_error(f"the weights after step {step} are not finite", place)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as transformers does, in a directory that gets its name when it is complete; then remove the oldest.

        Transformers itself orders checkpoints by the clock, which may go back.
        """
        self.require_finite()
        place, limit = Path(str(self.args.output_dir)), self.args.save_total_limit
        if is_main_process():
            shutil.rmtree(place / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._unfinished, self.args.save_total_limit = place / UNFINISHED, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._unfinished, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        if is_main_process():
            (saved,) = (place / UNFINISHED).iterdir()
            replace_directory(saved, place / saved.name)
            remove_old_checkpoints(place, limit)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if is_main_process() and not self.fsdp:
            directory = Path(output_dir or str(self.args.output_dir))
            lora.save(self.model.mixture.vlm, directory, self.metadata)
            save_auxiliary(self.model.auxiliary, directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        directory = Path(resume_from_checkpoint)
        if not self.fsdp:
            lora.restore(self.model.mixture.vlm, directory)
            load_auxiliary(self.model.auxiliary, directory)

    def _unwrapped_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # without accelerate's wrapper

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.fsdp:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_sharded(self.model, self._unwrapped_optimizer(), Path(output_dir))
        if is_main_process():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.fsdp or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_sharded(self.model, self._unwrapped_optimizer(), Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


def save_auxiliary(modules: nn.Module, directory: Path) -> None:
    """Write the weights of auxiliary modules into a directory, if there are any."""
    if tensors := {name: tensor.detach().cpu().contiguous() for name, tensor in modules.state_dict().items()}:
        with atomic_file(directory / AUXILIARY) as temporary:
            save_file(tensors, temporary)


def load_auxiliary(modules: nn.Module, directory: Path) -> None:
    """Load what `save_auxiliary` wrote; `CheckpointError` if the file is missing or holds other modules."""
    expected, file = {name: tensor.shape for name, tensor in modules.state_dict().items()}, directory / AUXILIARY
    if not expected:
        return
    if not file.is_file():
        raise CheckpointError(f"expected {AUXILIARY} in {directory}: was this run begun without its modules?")
    found = load_file(file)
    if {name: tensor.shape for name, tensor in found.items()} != expected:
        raise CheckpointError(f"{file} holds other modules; move it away to begin with new ones")
    modules.load_state_dict(found)


def continue_auxiliary(modules: nn.ModuleDict, directory: Path) -> None:
    """Load those of the modules that the run in a directory trained as well; the others stay new.

    Raises:
        CheckpointError: a module of the same name has other tensors.
    """
    file = directory / AUXILIARY
    found = load_file(file) if file.is_file() else {}
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
        expected = {key: tensor.shape for key, tensor in module.state_dict().items()}
        if own and {key: tensor.shape for key, tensor in own.items()} != expected:
            raise CheckpointError(f"{file} holds another {name}; move it away to begin with a new one")
        if own:
            module.load_state_dict(own)


def trainer_options(options: Sequence[str]) -> dict[str, str]:
    """Return `--trainer` options by name, over our defaults; `UserError` for one that cannot be set."""
    known = {field.name for field in fields(TrainingArguments) if field.init}
    found = {}
    for option in (*TRAINER_DEFAULTS.split(), *options):
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--trainer: expected NAME=VALUE, as in save_steps=200, got {option!r}")
        if name in OWN_FLAGS:
            raise UserError(f"--trainer: {name} has a flag of its own, {OWN_FLAGS[name]}")
        if name not in known:
            raise UserError(f"--trainer: TrainingArguments has no {name!r}; nearest: {nearest(name, known)}")
        found[name] = value
    return found


def training_arguments(run: RunConfig) -> tuple[TrainingArguments, bool | None]:
    """Return transformers' arguments for a run, and whether our own autocast computes bfloat16 (None: where native)."""
    options = trainer_options(run.trainer)
    bf16 = options.pop("bf16", "").lower()
    if bf16 not in ("", "true", "false"):
        raise UserError(f"--trainer: expected bf16=true or bf16=false, got {bf16!r}")
    options |= {
        "output_dir": str(run.out / "checkpoints"),
        "seed": str(run.seed),
        "per_device_train_batch_size": "1",  # an item is a whole batch
        "remove_unused_columns": "false",
    }
    if world_size() > 1:
        options["ddp_find_unused_parameters"] = "true"  # a step may leave an auxiliary module out
        if best_device().type == "cpu":
            options["use_cpu"] = "true"  # else the processes do not find each other
    try:
        flags = [f"--{name}={value}" for name, value in options.items()]
        (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(flags)
    except (ValueError, SystemExit) as error:
        raise UserError(f"--trainer {' '.join(run.trainer)}: {error}") from error
    arguments.max_steps = max(1, run.steps // (world_size() * arguments.gradient_accumulation_steps))
    return arguments, bf16 == "true" if bf16 else None


def require_shardable(mixture: Mixture, finish: Any) -> None:
    """Refuse under --fsdp what some processes would compute without the others, who would wait for them."""
    reason = None
    if world_size() == 1:
        reason = "several processes, among which a model is shared, got one: torchrun starts them"
    elif len(mixture.objectives) > 1 and not mixture.joint:
        reason = f"the same objective in every process, got {', '.join(mixture.names)} in turn; --joint trains all"
    elif names := list(mixture.auxiliary()):
        reason = f"a model without auxiliary modules, got {', '.join(names)}"
    elif finish:
        reason = "a training that ends with its last step, got one that calibrates points after it"
    if reason:
        raise UserError(f"--fsdp: expected {reason}")


def require_same_run(config: TrainConfig, ignore: Sequence[str] = ()) -> None:
    """Write a run's configuration; raise `UserError` for a directory that holds a run with another one."""
    if is_main_process():
        require_same_arguments(config.run.out, config.to_flat(), ignore)


class StopCallback(TrainerCallback):
    """Saves and stops after the step in which a signal came."""

    def __init__(self, is_asked: Callable[[], bool]):
        self.is_asked = is_asked

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer to save and to stop."""
        if self.is_asked():
            control.should_save = control.should_training_stop = True


def _train(trainer: VlmTrainer) -> None:
    """Train, from the newest complete checkpoint if there is one; a signal saves before it ends the command."""
    place = Path(str(trainer.args.output_dir))
    resumed = newest_complete_checkpoint(place)
    if is_main_process():
        remove_old_checkpoints(place, trainer.args.save_total_limit)
    alone = world_size() == 1  # several processes get a signal in different steps
    with deferred_interruption() if alone else contextlib.nullcontext(lambda: False) as is_asked:
        trainer.add_callback(StopCallback(is_asked))
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)


def load_start(config: ModelConfig) -> PixelVLM:
    """Return the model of `init`; one of transformers' reads of its images what the configuration says."""
    assert config.init
    load = partial(
        checkpoint.load,
        config.init,
        image_tokens=config.image_tokens,
        history=config.history,
        dtype=config.torch_dtype,
    )
    if config.quantize == "none":
        return load()
    require_quantization()
    vlm = load(torch.device("cpu"))
    quantize_decoder(vlm, partial(load, torch.device("cpu")))
    vlm.model.to(best_device())
    return vlm


def fit(
    mixture: Mixture,
    config: TrainConfig,
    metadata: dict[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    finish: Callable[[], dict[str, Any]] | None = None,
    export: Callable[[Path], None] | None = None,
) -> Path:
    """Train the mixture's model, or resume; return the directory of the last checkpoint.

    Args:
        mixture: objectives over one model.
        config: how to train, and in which directory.
        metadata: what `training.json` holds beside the configuration.
        callbacks: of transformers' Trainer.
        finish: called after the training, before `last` is written; returns more metadata.
        export: writes more files into `last`.
    """
    with output_lock(config.run.out):
        return _fit(mixture, config, metadata or {}, callbacks, finish, export)


def _fit(
    mixture: Mixture,
    config: TrainConfig,
    metadata: dict[str, Any],
    callbacks: Sequence[TrainerCallback],
    finish: Callable[[], dict[str, Any]] | None,
    export: Callable[[Path], None] | None,
) -> Path:
    if config.run.fsdp:
        require_shardable(mixture, finish)
    arguments, bf16 = training_arguments(config.run)
    require_same_run(config)
    vlm: PixelModel = mixture.vlm
    if isinstance(vlm, PretrainedVLM) and is_main_process():
        print(describe_image_input(vlm))
    if config.optimizer.decoder == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            lora.add_lora(vlm, config.optimizer.lora_rank)

    def groups() -> list[dict[str, Any]]:
        rates, decay = module_learning_rates(config.optimizer), arguments.weight_decay
        return parameter_groups(vlm, rates, decay) + auxiliary_group(module.auxiliary, config.optimizer, decay)

    parameter_groups(vlm, module_learning_rates(config.optimizer), arguments.weight_decay)  # freezes what is to stay
    set_dtypes(vlm.model, config.model.torch_dtype)
    if bf16 is False and required_autocast(vlm.model):
        raise UserError("--dtype bfloat16 computes in bfloat16, got --trainer bf16=false; expected bf16=true")
    before = snapshot(vlm)
    module = TrainingModule(mixture, required_autocast(vlm.model) or bf16, channels_last=not config.run.fsdp)
    metadata = {**config.metadata(), **metadata}
    dataset = MixtureDataset(mixture, config.run.steps, config.run.seed)
    is_muon = config.optimizer.optimizer == "muon" and not any(o.startswith("optim=") for o in config.run.trainer)
    trainer = VlmTrainer(
        module,
        groups,
        metadata,
        config.optimizer.muon_lr_scale if is_muon else None,
        config.run.fsdp,
        args=arguments,
        train_dataset=dataset,
        callbacks=list(callbacks),
    )
    _train(trainer)
    trainer.require_finite()
    metadata |= {"parameter_updates": parameter_update_report(before, vlm)}
    if finish:
        with autocast(vlm.device, required_autocast(vlm.model) or False):
            metadata |= finish()
    lora.save_plain(vlm, config.run.out / "last", metadata, config.model.torch_dtype, export)
    if is_main_process():
        save_auxiliary(module.auxiliary, config.run.out)
    return config.run.out / "last"
