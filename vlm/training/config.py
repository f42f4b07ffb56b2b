"""The configuration of a training: nested frozen dataclasses, named configs and command-line flags.

A command defines its own `data` section (and, where it must, its own `model` section) and inherits the rest:

    @dataclass(frozen=True)
    class CaptionConfig(TrainConfig):
        data: CaptionData

Flags are the fields' names without their section (`--learning-rate`, not `--optimizer.learning-rate`), so a field's
name is unique within a config. Everything that transformers' `TrainingArguments` knows is reached through `--trainer`.
"""

import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tyro

from common.command import require_at_least
from common.errors import UserError
from common.run_arguments import run_metadata
from vlm.device import world_size


@dataclass(frozen=True)
class ModelConfig:
    """The model that a training starts from."""

    preset: str = "nano"
    """The size of a new model (`vlm.presets`)."""
    init: Path | None = None
    """A checkpoint to start from instead of a new model."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Peak learning rates by role; weight decay, warm-up and the schedule are `--trainer` options."""

    learning_rate: float = 1e-3
    """Peak learning rate of the decoder."""
    connector_learning_rate: float | None = None
    """The connector's, if it differs from the decoder's; 0 freezes it."""
    encoder_learning_rate: float | None = None
    """The encoder's, if it differs from the decoder's; 0 freezes it."""
    auxiliary_learning_rate: float | None = None
    """That of modules trained beside the model, if it differs from the encoder's (the decoder's, if that is frozen)."""
    decoder: Literal["full", "lora", "frozen"] = "full"
    """What of the decoder trains: all of it, LoRA adapters that are merged at the end, or nothing."""
    lora_rank: int = 16
    """The rank of the adapters, with --decoder lora."""


@dataclass(frozen=True)
class RunConfig:
    """Where a training writes, how long it runs and what transformers' Trainer is told."""

    out: Path
    """The run's directory: arguments.json, checkpoints, TensorBoard logs and `last`. The same command resumes it."""
    steps: int = 2000
    """Batches in all. One optimizer step takes one from each process, times gradient_accumulation_steps."""
    seed: int = 0
    """The seed of new weights and of all sampling."""
    trainer: tuple[str, ...] = ()
    """Options of transformers' TrainingArguments as NAME=VALUE: save_steps=200 warmup_steps=40 weight_decay=0.1
    optim=adamw_torch gradient_accumulation_steps=4 dataloader_num_workers=2 bf16=false report_to=none
    fsdp=full_shard."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training. Subclasses add a `data` section."""

    run: RunConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        require_at_least(self.run, 1, "steps")
        require_at_least(self.optimizer, 1, "lora_rank")

    def replace(self, **fields: Any) -> Self:
        """Return a copy with some fields changed, each named without its section."""
        owners = field_owners(self)
        if unknown := sorted(set(fields) - set(owners)):
            near = difflib.get_close_matches(unknown[0], owners, n=1, cutoff=0.0)[0]
            raise UserError(f"{type(self).__name__} has no field {unknown[0]!r}; nearest: {near}")
        sections: dict[str, dict[str, Any]] = {}
        for name, value in fields.items():
            sections.setdefault(owners[name], {})[name] = value
        changed = {name: dataclasses.replace(getattr(self, name), **own) for name, own in sections.items()}
        return dataclasses.replace(self, **changed)

    def with_trainer_options(self, **options: Any) -> Self:
        """Return a copy with some `--trainer` options set, over those it has."""
        kept = [option for option in self.run.trainer if option.partition("=")[0] not in options]
        return self.replace(trainer=(*kept, *(f"{name}={value}" for name, value in options.items())))

    def to_flat(self) -> dict[str, Any]:
        """Return every field by its name, as JSON values."""
        flat = {name: getattr(getattr(self, owner), name) for name, owner in field_owners(self).items()}
        return json.loads(json.dumps(flat, default=str))

    def metadata(self) -> dict[str, Any]:
        """Return how a checkpoint is made, for its `training.json`."""
        return {**run_metadata(self.to_flat()), "processes": world_size()}


Config = TypeVar("Config", bound=TrainConfig)


def field_owners(config: TrainConfig) -> dict[str, str]:
    """Return, for each field of each section, the section's name."""
    owners: dict[str, str] = {}
    for section in dataclasses.fields(config):
        for field in dataclasses.fields(getattr(config, section.name)):
            assert field.name not in owners, f"{field.name} stands in two sections"
            owners[field.name] = section.name
    return owners


def named_config(configs: Mapping[str, Config], name: str, flag: str = "--config") -> Config:
    """Return a named config.

    Raises:
        UserError: no config has that name; the nearest is named.
    """
    if name not in configs:
        near = difflib.get_close_matches(name, configs, n=1, cutoff=0.0)[0]
        raise UserError(f"expected {flag} {', '.join(configs)}, got {name!r}; nearest: {near}")
    return configs[name]


def parse_config(
    configs: Mapping[str, Config], argv: list[str] | None, description: str | None, default: str = "default"
) -> Config:
    """Parse a training's command line: `--config NAME` picks a named config, every other flag overrides one field.

    Raises:
        UserError: no config has that name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = default
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            if not equals and index + 1 == len(arguments):
                raise UserError(f"--config expects a name ({', '.join(configs)})")
            name = value if equals else arguments[index + 1]
            del arguments[index : index + (1 if equals else 2)]
            break
    config = named_config(configs, name)
    named = f"\nNamed configs (--config NAME; other flags override single fields): {', '.join(configs)}."
    return tyro.cli(
        type(config),
        args=arguments,
        default=config,
        description=(description or "") + named,
        config=(tyro.conf.OmitArgPrefixes,),
    )


UNSET_OUT: Any = tyro.MISSING  # the `out` of a named config: every run names its own
