"""The configuration of a training: nested frozen dataclasses, named configs and command-line flags.

A command adds its own `data` section, and where it must its own `model` section:

    @dataclass(frozen=True)
    class CaptionConfig(TrainConfig):
        data: CaptionData

Flags are the fields' names without their section (`--learning-rate`, not `--optimizer.learning-rate`), so a field's
name is unique within a config. Everything that transformers' `TrainingArguments` knows is reached through `--trainer`.
PPO has a configuration of its own (`agents.ppo_config`).
"""

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
import tyro

from common.command import parse, require_at_least
from common.errors import UserError, nearest
from common.processes import world_size
from common.run_arguments import run_metadata

TRAINER_DEFAULTS = """lr_scheduler_type=cosine warmup_steps=100 weight_decay=0.05 optim=adamw_torch_fused save_steps=500
save_total_limit=1 logging_steps=50 logging_nan_inf_filter=false report_to=tensorboard dataloader_num_workers=1
dataloader_pin_memory=false"""


@dataclass(frozen=True)
class ModelConfig:
    """The model that a training starts from."""

    preset: str = "nano"
    """The size of a new model (`vlm.presets`)."""
    init: Path | None = None
    """A checkpoint to start from instead of a new model."""
    image_tokens: int | None = None
    """With a model of transformers as --init, the most tokens that an image may take; by default one tile."""
    history: int | None = None
    """With a model of transformers as --init, the frames that it sees, each as an image; by default as before, or 1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the weights: of those that are loaded, of those that do not train, and of the result's. bfloat16 is
    half as large. What trains is kept in float32, in which small steps are not lost."""
    quantize: Literal["none", "nf4"] = "none"
    """With a model of transformers as --init and --decoder lora, how the decoder's weights are kept while adapters
    train: nf4 takes four bits for each, on a GPU, by bitsandbytes (QLoRA, Dettmers et al. 2023)."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "image_tokens", "history")
        if self.init is None and (self.image_tokens or self.history):
            raise UserError("--image-tokens and --history are for a model of transformers, expected --init with one")
        if self.init is None and self.quantize != "none":
            raise UserError(f"--quantize {self.quantize} is for a model of transformers, expected --init with one")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


@dataclass(frozen=True)
class OptimizerConfig:
    """Peak learning rates by component; weight decay, warm-up and schedule are `--trainer` options."""

    learning_rate: float = 1e-3
    """Peak learning rate of the decoder."""
    connector_learning_rate: float | None = None
    """The connector's, if it differs from the decoder's; 0 freezes it."""
    encoder_learning_rate: float | None = None
    """The encoder's, if it differs from the decoder's; 0 freezes it."""
    auxiliary_learning_rate: float | None = None
    """That of auxiliary modules; by default the encoder's, or the decoder's where the encoder is frozen."""
    decoder: Literal["full", "lora", "frozen"] = "full"
    """Which decoder parameters train: all, LoRA adapters that are merged at the end, or none."""
    lora_rank: int = 16
    """The rank of the adapters, with --decoder lora."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for weight matrices and AdamW for the rest; adamw: AdamW for all. `--trainer optim=NAME` overrides."""
    muon_lr_scale: float = 3.0
    """Muon's learning rates, relative to those of AdamW."""


@dataclass(frozen=True)
class RunConfig:
    """Where a training writes, how long it runs and the options of transformers' Trainer."""

    out: Path
    """The run's directory: arguments.json, checkpoints, TensorBoard logs and `last/`, the final checkpoint. The same
    command resumes the run."""
    steps: int = 2000
    """Total batches. One optimizer step uses one of each process, times gradient_accumulation_steps."""
    seed: int = 0
    """The seed of new weights and of data sampling."""
    trainer: tuple[str, ...] = ()
    """Options of transformers' TrainingArguments as NAME=VALUE: save_steps=200 warmup_steps=40 weight_decay=0.1
    optim=adamw_torch gradient_accumulation_steps=4 dataloader_num_workers=2 bf16=false report_to=none."""
    fsdp: bool = False
    """Share weights, gradients and optimizer states among the processes of a launcher (`vlm.training.sharding`), where
    each would hold all of them. Weight matrices then train by AdamW."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training. Subclasses add a `data` section."""

    run: RunConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        require_at_least(self.run, 1, "steps")
        require_at_least(self.optimizer, 1, "lora_rank")
        if self.model.quantize != "none" and self.optimizer.decoder != "lora":
            quantize, decoder = self.model.quantize, self.optimizer.decoder
            raise UserError(f"--quantize {quantize} needs --decoder lora, got {decoder}: four bits do not train")
        if self.run.fsdp and self.model.quantize != "none":
            raise UserError(f"--fsdp does not share four bits among processes, got --quantize {self.model.quantize}")
        if self.optimizer.muon_lr_scale <= 0:
            raise UserError(f"--muon-lr-scale must be above 0, got {self.optimizer.muon_lr_scale}")

    def replace(self, **fields: Any) -> Self:
        """Return a copy with some fields changed, each named without its section."""
        owners, sections = field_owners(self), defaultdict[str, dict[str, Any]](dict)
        for name, value in fields.items():
            if name not in owners:
                raise UserError(f"{type(self).__name__} has no field {name!r}; nearest: {nearest(name, owners)}")
            sections[owners[name]][name] = value
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
    """Return a named config; `UserError` names the nearest."""
    if name not in configs:
        raise UserError(f"expected {flag} {', '.join(configs)}, got {name!r}; nearest: {nearest(name, configs)}")
    return configs[name]


def parse_config(configs: Mapping[str, Config], argv: list[str] | None, description: str | None) -> Config:
    """Parse a training's command line: `--config NAME` picks a named config, every other flag overrides one field."""
    choice = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    choice.add_argument("--config", default="default")
    try:
        chosen, flags = choice.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(f"--config expects a name ({', '.join(configs)})") from error
    config = named_config(configs, chosen.config)
    named = f"Named configs (--config NAME; other flags override single fields): {', '.join(configs)}."
    text, options = f"{description or ''}\n{named}", (tyro.conf.OmitArgPrefixes,)
    parsed = parse(type(config), flags, text, default=config, config=options)
    if parsed.run.trainer == config.run.trainer:
        return parsed
    given = {option.partition("=")[0] for option in parsed.run.trainer}
    kept = [option for option in config.run.trainer if option.partition("=")[0] not in given]
    return parsed.replace(trainer=(*kept, *parsed.run.trainer))


UNSET_OUT: Any = tyro.MISSING  # the `out` of a named config: every run names its own
