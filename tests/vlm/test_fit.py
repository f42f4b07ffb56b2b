"""`fit` takes the Trainer's options, accumulates gradients, resumes what was killed and refuses what is another run."""

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from common.command import run
from common.errors import UserError
from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.precision import native_bfloat16
from vlm.presets import build
from vlm.training.config import RunConfig, TrainConfig
from vlm.training.fit import (
    AUXILIARY,
    TrainingModule,
    fit,
    load_auxiliary,
    save_auxiliary,
    trainer_options,
    training_arguments,
)
from vlm.training.mixture import Mixture, MixtureDataset
from vlm.training.optimizers import MuonWithAdamW
from vlm.training.resumption import UNFINISHED, newest_complete_checkpoint, remove_old_checkpoints

SHORT = ("save_steps=2", "warmup_steps=1", "dataloader_num_workers=0", "report_to=none", "bf16=false")
PLAIN_SGD = ("optim=sgd", "lr_scheduler_type=constant", "warmup_steps=0", "weight_decay=0", "max_grad_norm=0")


@pytest.fixture
def train(token_objective):
    """A function that trains a tiny model on tokens and returns its objective and the last checkpoint."""

    def train_tokens(out, *trainer, own_layer=False, seed=0, callbacks=(), learning_rate=1e-3, steps=4):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            objective = token_objective(build("tiny", seed=0), own_layer)
        config = TrainConfig(RunConfig(out, steps, seed, (*SHORT, *trainer))).replace(learning_rate=learning_rate)
        return objective, fit(Mixture({"tokens": objective}), config, callbacks=callbacks)

    return train_tokens


@dataclass
class Watch(TrainerCallback):
    """Keeps the optimizer, the number of its steps and the log of a training."""

    optimizer: torch.optim.Optimizer | None = None
    steps: int = 0
    logs: tuple = ()

    def on_train_begin(self, args, state, control, optimizer=None, **_):
        self.optimizer = optimizer.optimizer

    def on_step_end(self, args, state, control, **_):
        self.steps = state.global_step

    def on_log(self, args, state, control, logs=None, **_):
        self.logs += (logs,)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("save_steps", "--trainer: expected NAME=VALUE, as in save_steps=200, got 'save_steps'"),
        ("save_step=3", "--trainer: TrainingArguments has no 'save_step'; nearest: save_steps"),
        ("learning_rate=1", "--trainer: learning_rate has a flag of its own, --learning-rate"),
        ("max_steps=1", "--trainer: max_steps has a flag of its own, --steps"),
        ("seed=1", "--trainer: seed has a flag of its own, --seed"),
        ("output_dir=x", "--trainer: output_dir has a flag of its own, --out"),
    ],
)
def test_wrong_options_are_refused_and_tell_what_is_right(option, message):
    with pytest.raises(UserError, match=message):
        trainer_options([option])


@pytest.mark.parametrize("option", ["save_steps=often", "optim=magic", "bf16=perhaps"])
def test_values_that_an_option_cannot_have_are_refused(option, tmp_path):
    with pytest.raises(UserError, match=f"--trainer.*{option.partition('=')[0]}"):
        training_arguments(RunConfig(tmp_path, trainer=(option,)))


def test_options_reach_the_trainer_over_our_defaults(tmp_path):
    arguments, bf16 = training_arguments(RunConfig(tmp_path, 100, 3, ("save_steps=7", "gradient_accumulation_steps=4")))
    assert (arguments.save_steps, arguments.seed, arguments.max_steps) == (7, 3, 25)
    assert (arguments.warmup_steps, arguments.weight_decay, arguments.lr_scheduler_type) == (100, 0.05, "cosine")
    assert not arguments.remove_unused_columns
    assert bf16 is None


@pytest.mark.parametrize(("word", "value"), [("true", True), ("False", False), (None, None)])
def test_bfloat16_is_our_own_autocast(word, value, tmp_path, token_objective):
    arguments, bf16 = training_arguments(RunConfig(tmp_path, trainer=(f"bf16={word}",) if word else ()))
    assert bf16 is value
    assert not arguments.bf16
    seen = []

    class Watching(token_objective):
        def loss(self, features, batch):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().loss(features, batch)

    mixture = Mixture({"tokens": Watching(build("tiny"))})
    out = TrainingModule(mixture, bf16)(MixtureDataset(mixture, 1, 0)[0])
    assert seen == [native_bfloat16(torch.device("cpu")) if value is None else value]
    assert out["loss"].dtype == torch.float32
    assert set(out["metrics"]) == {"accuracy"}


@pytest.mark.parametrize(
    ("name", "kind", "fused"),
    [("adamw_torch", torch.optim.AdamW, False), ("sgd", torch.optim.SGD, False), (None, MuonWithAdamW, False)],
)
def test_the_optimizer_is_the_one_that_is_named(train, tmp_path, name, kind, fused):
    watch = Watch()
    train(tmp_path, *([f"optim={name}"] if name else []), callbacks=[watch], steps=1)
    assert type(watch.optimizer) is kind
    assert bool(watch.optimizer.defaults.get("fused")) == fused
    assert {group["role"] for group in watch.optimizer.param_groups} == {"encoder", "connector", "decoder"}


def test_two_accumulated_batches_make_one_step_by_the_mean_of_their_gradients(train, tmp_path, token_objective):
    watch, rate = Watch(), 0.5
    options = ("gradient_accumulation_steps=2", "save_steps=1", "logging_steps=1")
    _, last = train(tmp_path, *options, *PLAIN_SGD, callbacks=[watch], learning_rate=rate, steps=2)
    assert watch.steps == 1
    assert [place.name for place in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-1"]
    objective = token_objective(build("tiny", seed=0))
    model, losses = objective.vlm.model.train(), []
    for step in range(2):
        batch = objective.sampler(step, objective.rng(0, step))
        losses.append(objective.loss(objective.encode(batch), batch).loss)
    mean = torch.stack(losses).mean()
    mean.backward()
    trained = checkpoint.load(last).model.state_dict()
    for name, parameter in model.named_parameters():
        change = 0 if parameter.grad is None else rate * parameter.grad
        assert torch.allclose(trained[name], parameter.detach() - change, atol=1e-6), name
    assert watch.logs[0]["loss"] == pytest.approx(mean.item(), abs=1e-3)
    assert "accuracy" in watch.logs[0]


@pytest.mark.slow
def test_twice_the_accumulation_is_half_the_steps_and_what_is_left_over_is_left_out(train, tmp_path):
    for steps, count, expected in ((8, 1, 8), (8, 2, 4), (7, 2, 3)):
        watch = Watch()
        out = tmp_path / f"{steps}-{count}"
        train(out, f"gradient_accumulation_steps={count}", "save_steps=99", callbacks=[watch], steps=steps)
        assert watch.steps == expected


def test_a_directory_with_another_run_is_refused_and_the_fields_that_differ_are_named(train, tmp_path, monkeypatch):
    _, last = train(tmp_path / "run")
    before = (last / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="run holds a run with another seed, learning_rate; choose another --out"):
        train(tmp_path / "run", seed=1, learning_rate=0.5)
    with pytest.raises(UserError, match="holds a run with another trainer"):
        train(tmp_path / "run", "weight_decay=0.5")
    assert (last / "model.safetensors").read_bytes() == before
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    train((tmp_path / "moved").relative_to(tmp_path))  # the same run at another place


def test_a_run_that_was_refused_can_be_begun_with_what_is_right(train, tmp_path):
    with pytest.raises(UserError, match="TrainingArguments has no 'save_step'"):
        train(tmp_path, "save_step=1")
    train(tmp_path, "save_steps=1")


def test_a_finished_run_is_repeated_without_a_step(train, tmp_path, token_objective, kill_at_step):
    _, last = train(tmp_path)
    report = checkpoint.read_training(last)["parameter_updates"]
    calls = kill_at_step(token_objective, 99)
    assert train(tmp_path)[1] == last
    assert calls == []
    assert checkpoint.read_training(last)["parameter_updates"] == report


def test_a_checkpoint_whose_state_is_missing_or_cut_short_is_not_complete(tmp_path):
    assert newest_complete_checkpoint(tmp_path / "none") is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-14").mkdir()
    (tmp_path / "checkpoint-14" / "trainer_state.json").write_text('{"global_step": 1')
    assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_run_killed_while_it_saves_resumes_from_the_checkpoint_before(train, tmp_path, token_objective, kill_at_step):
    _, whole = train(tmp_path / "whole", "save_total_limit=9", steps=6)
    calls = kill_at_step(token_objective, 5)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", "save_total_limit=9", steps=6)
    (tmp_path / "broken" / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    _, broken = train(tmp_path / "broken", "save_total_limit=9", steps=6)
    assert len(calls) == 5 + 4  # steps 3 to 6 again
    one, other = (checkpoint.load(place).model.state_dict() for place in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_gets_its_name_when_it_is_complete(train, tmp_path, monkeypatch):
    seen, whole = [], Trainer._save_checkpoint

    def watched(self, *arguments):
        whole(self, *arguments)
        place = tmp_path / "checkpoints"
        seen.append([sorted(file.name for file in one.iterdir()) for one in (place, place / UNFINISHED)])
        if self.state.global_step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", watched)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert seen[1] == [[UNFINISHED, "checkpoint-2"], ["checkpoint-4"]]
    monkeypatch.undo()
    train(tmp_path)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-4"]


def test_a_checkpoint_that_is_being_removed_is_never_seen_in_part(tmp_path, monkeypatch):
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))

    def killed(path, **_):
        if path.exists():
            assert (path / "trainer_state.json").exists()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_old_checkpoints(tmp_path, 1)
    monkeypatch.undo()
    assert sorted(file.name for file in tmp_path.iterdir()) == [UNFINISHED, "checkpoint-4"]
    remove_old_checkpoints(tmp_path, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint-4"]


def test_a_repeat_removes_the_old_checkpoint_that_a_kill_left(train, tmp_path):
    train(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    train(tmp_path)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-4"]


def test_a_clock_that_goes_back_does_not_delete_the_newest_checkpoint(train, tmp_path, token_objective, kill_at_step):
    kill_at_step(token_objective, 4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "save_steps=1")
    os.utime(tmp_path / "checkpoints" / "checkpoint-3", (4e9, 4e9))  # saved in the future
    train(tmp_path, "save_steps=1")
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-4"]


def test_a_signal_saves_the_step_and_the_run_resumes_to_the_same_weights(train, tmp_path):
    class EndAtThree(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    train(tmp_path / "whole", "save_steps=9")
    assert run(lambda: train(tmp_path / "ended", "save_steps=9", callbacks=[EndAtThree()])) == 143
    assert [file.name for file in (tmp_path / "ended" / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert not (tmp_path / "ended" / "last").exists()
    watch = Watch()
    train(tmp_path / "ended", "save_steps=9", callbacks=[watch])
    one, other = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("whole", "ended"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_training_stops_at_the_first_loss_that_is_not_finite(train, tmp_path, token_objective, monkeypatch, number):
    whole, steps = token_objective.loss, []

    def loss(self, features, batch):
        steps.append(batch)
        found = whole(self, features, batch)
        return replace(found, loss=found.loss * number) if len(steps) == 4 else found

    monkeypatch.setattr(token_objective, "loss", loss)
    kept = tmp_path / "checkpoints" / "checkpoint-2"
    with pytest.raises(UserError, match=f"the loss of step 4 is {number}, .* the last good checkpoint is {kept};"):
        train(tmp_path, steps=6)
    assert len(steps) == 4
    assert list((tmp_path / "checkpoints").iterdir()) == [kept]
    assert not (tmp_path / "last").exists()


def test_weights_that_are_not_finite_are_not_saved(train, tmp_path):
    class Ruin(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step == 3:
                next(model.parameters()).data.fill_(torch.inf)

    with pytest.raises(UserError, match="the weights after step 3 are not finite"):
        train(tmp_path, "save_steps=1", callbacks=[Ruin()])
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_modules_beside_the_model_are_trained_and_resumed(train, tmp_path, token_objective, kill_at_step):
    objective, _ = train(tmp_path / "whole", own_layer=True)
    calls = kill_at_step(token_objective, 3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", own_layer=True)
    train(tmp_path / "broken", own_layer=True)
    assert len(calls) == 5
    whole, broken = (load_file(tmp_path / name / AUXILIARY) for name in ("whole", "broken"))
    assert whole.keys() == {"layer.weight", "layer.bias"}
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert torch.equal(whole["layer.weight"], objective.layer.weight)
    torch.manual_seed(0)
    assert not torch.equal(whole["layer.weight"], torch.nn.Linear(*objective.layer.weight.shape).weight)
    assert not (tmp_path / "whole" / "last" / AUXILIARY).exists()


def test_other_modules_than_those_of_a_run_are_refused(tmp_path):
    three, two = (torch.nn.ModuleDict({"layer": torch.nn.Linear(size, 2)}) for size in (3, 2))
    save_auxiliary(torch.nn.ModuleDict(), tmp_path)
    assert not (tmp_path / AUXILIARY).exists()
    with pytest.raises(CheckpointError, match=f"expected {AUXILIARY} in "):
        load_auxiliary(two, tmp_path)
    save_auxiliary(three, tmp_path)
    with pytest.raises(CheckpointError, match="holds other modules"):
        load_auxiliary(two, tmp_path)


def test_the_last_checkpoint_tells_how_it_was_made_and_takes_in_more(token_objective, tmp_path):
    objective = token_objective(build("tiny"))
    config = TrainConfig(RunConfig(tmp_path, 2, trainer=SHORT)).replace(dtype="bfloat16")
    last = fit(
        Mixture({"tokens": objective}), config, {"games": ["Pong"]},
        finish=lambda: {"trained": objective.vlm.model.training},
        export=lambda place: (place / "more.txt").write_text("more") and None,
    )  # fmt: skip
    training = checkpoint.read_training(last)
    assert training["arguments"] == config.to_flat() == json.loads((tmp_path / "arguments.json").read_text())
    assert (training["games"], training["trained"]) == (["Pong"], True)
    assert training["parameter_updates"]["encoder"]["changed"] == 0  # tokens alone
    assert training["parameter_updates"]["decoder"]["changed"] > 0
    assert (last / "more.txt").read_text() == "more"
    assert {tensor.dtype for tensor in load_file(last / "model.safetensors").values()} == {torch.bfloat16}
