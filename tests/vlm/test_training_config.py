"""Configs of trainings are changed by flat names, parsed from flags over a named config, and written as JSON."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.errors import UserError
from vlm.training.config import (
    UNSET_OUT,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    field_owners,
    named_config,
    parse_config,
)

COMMANDS = ("pretrain.pvp", "pretrain.captions", "pretrain.contrastive", "pretrain.referring.train", "agents.clone")


@dataclass(frozen=True)
class SmallData:
    """Images."""

    data: tuple[Path, ...] = ()
    """Where they come from."""
    images: int = 4
    """Of a batch."""


@dataclass(frozen=True)
class SmallConfig(TrainConfig):
    """Train something small."""

    data: SmallData = SmallData()


DEFAULT = SmallConfig(RunConfig(UNSET_OUT), optimizer=OptimizerConfig(encoder_learning_rate=0.5))
CONFIGS = {"default": DEFAULT, "short": DEFAULT.replace(steps=7, images=2, trainer=("save_steps=3",))}


def test_fields_of_any_section_are_replaced_by_their_own_names():
    config = CONFIGS["short"].replace(out=Path("runs/a"), preset="tiny", learning_rate=0.1, images=3)
    assert (config.run.out, config.model.preset, config.data.images) == (Path("runs/a"), "tiny", 3)
    assert config.optimizer == OptimizerConfig(0.1, encoder_learning_rate=0.5)
    assert config.run.steps == 7
    assert CONFIGS["short"].data.images == 2  # and the one before stays as it was


def test_trainer_options_are_set_over_those_there_are():
    config = CONFIGS["short"].with_trainer_options(save_steps=9, optim="sgd")
    assert config.run.trainer == ("save_steps=9", "optim=sgd")


def test_an_unknown_field_is_refused_and_the_nearest_is_named():
    with pytest.raises(UserError, match="SmallConfig has no field 'imags'; nearest: images"):
        DEFAULT.replace(imags=3)


def test_replaced_values_are_checked():
    with pytest.raises(UserError, match="--steps must be at least 1, got 0"):
        DEFAULT.replace(steps=0)
    with pytest.raises(UserError, match="--lora-rank must be at least 1, got 0"):
        DEFAULT.replace(lora_rank=0)


@pytest.mark.parametrize("choice", [["--config", "short"], ["--config=short"]])
def test_flags_override_a_named_config_wherever_the_name_stands(choice):
    flags = ["--out", "runs/b", "--images", "5", "--encoder-learning-rate", "0", "--data", "one", "two"]
    for words in ([*choice, *flags], [*flags, *choice]):
        config = parse_config(CONFIGS, words, "Train.")
        assert config == CONFIGS["short"].replace(
            out=Path("runs/b"), images=5, encoder_learning_rate=0.0, data=(Path("one"), Path("two"))
        )


def test_without_a_name_flags_override_the_default_and_trainer_options_are_a_list():
    config = parse_config(CONFIGS, ["--out", "runs/c", "--trainer", "save_steps=2", "bf16=false"], None)
    assert config == DEFAULT.replace(out=Path("runs/c"), trainer=("save_steps=2", "bf16=false"))


def test_help_names_the_configs_and_a_run_needs_its_directory(capsys):
    with pytest.raises(SystemExit):
        parse_config(CONFIGS, ["--help"], "Train something.")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Train something. Named configs" in shown
    assert "default, short" in shown
    with pytest.raises(SystemExit):
        parse_config(CONFIGS, ["--config", "short"], None)
    assert "--out" in capsys.readouterr().err


def test_an_unknown_config_is_refused_and_the_nearest_is_named():
    with pytest.raises(UserError, match="expected --config default, short, got 'shrt'; nearest: short"):
        parse_config(CONFIGS, ["--out", "x", "--config", "shrt"], None)
    with pytest.raises(UserError, match=r"--config expects a name \(default, short\)"):
        parse_config(CONFIGS, ["--out", "x", "--config"], None)
    with pytest.raises(UserError, match="expected --pvp-config default, short, got 'defalt'; nearest: default"):
        named_config(CONFIGS, "defalt", "--pvp-config")


def test_a_config_is_written_flat_as_json():
    flat = CONFIGS["short"].replace(out=Path("runs/d"), data=(Path("one"),)).to_flat()
    assert json.loads(json.dumps(flat)) == flat
    assert (flat["out"], flat["data"], flat["trainer"]) == ("runs/d", ["one"], ["save_steps=3"])
    assert (flat["steps"], flat["init"], flat["decoder"]) == (7, None, "full")
    assert set(flat) == set(field_owners(DEFAULT))


@dataclass(frozen=True)
class AmbiguousData:
    """A section with a name that the run has."""

    seed: int = 0


@dataclass(frozen=True)
class AmbiguousConfig(TrainConfig):
    """A config whose seed stands in two sections."""

    data: AmbiguousData = AmbiguousData()


def test_a_name_stands_in_one_section_alone():
    with pytest.raises(AssertionError, match="seed stands in two sections"):
        AmbiguousConfig(RunConfig(Path("x"))).to_flat()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_named_configs_of_every_command_are_written_and_can_be_run_anywhere(command, tmp_path):
    for name, config in importlib.import_module(command).CONFIGS.items():
        flat = config.replace(out=tmp_path).to_flat()
        assert flat["out"] == str(tmp_path), name
        assert {"preset", "init", "learning_rate", "decoder", "steps", "seed", "trainer"} <= set(flat)
