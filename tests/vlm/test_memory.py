"""The estimate of a training's memory is what a training holds."""

import pytest
import torch
from transformers import TrainerCallback

from experiments.model_classes.tiny_checkpoints import write
from pretrain import pvp
from pretrain.pvp_config import CONFIGS
from vlm import checkpoint
from vlm.training.memory import training_memory

SHORT = ("save_steps=9", "warmup_steps=0", "dataloader_num_workers=0", "report_to=none")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write("llava", tmp_path_factory.mktemp("hub") / "llava")


class Weigh(TrainerCallback):
    """Keeps the bytes of weights, gradients and optimizer states in a step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        parameters = list(model.parameters())
        self.weights = sum(parameter.nbytes for parameter in parameters)
        self.gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)

    def on_step_end(self, args, state, control, optimizer=None, **_):
        inner = optimizer.optimizer
        parts = [part for part in (getattr(inner, "muon", None), getattr(inner, "adamw", None)) if part] or [inner]
        tensors = [value for part in parts for state in part.state.values() for value in state.values()]
        self.optimizer = sum(value.nbytes for value in tensors if torch.is_tensor(value) and value.ndim)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": "adamw"},
        {"decoder": "lora", "dtype": "bfloat16"},
        {"decoder": "frozen", "dtype": "bfloat16", "optimizer": "adamw"},
        {"encoder_learning_rate": 0, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_an_estimate_is_what_a_training_holds(llava, tmp_path, fields):
    config = CONFIGS["default"].replace(
        out=tmp_path, init=llava, synthetic=1, size=(42, 32), grid="8", images=2, questions=3, steps=1, lora_rank=3,
        trainer=SHORT, **fields,
    )  # fmt: skip
    expected, found = training_memory(checkpoint.load(llava), config), Weigh()
    pvp.train_pvp(config, callbacks=[found])
    assert found.weights == expected.weights
    reached = found.gradients / expected.gradients  # the tower's layers behind the one that is read have none
    assert 0.6 < reached <= 1
    assert found.optimizer == pytest.approx(reached * expected.optimizer, rel=0.1)


def test_shares_are_parts_of_a_whole_by_adamw(llava, tmp_path):
    config = CONFIGS["default"].replace(out=tmp_path, init=llava, optimizer="adamw")
    vlm = checkpoint.load(llava)
    assert training_memory(vlm, config, shares=4).total == training_memory(vlm, config).total / 4
    size = sum(parameter.numel() for parameter in vlm.model.parameters())
    assert training_memory(vlm, config).total == 16 * size


def test_four_bits_take_an_eighth_of_float32_and_their_scales(llava, tmp_path):
    config = CONFIGS["default"].replace(out=tmp_path, init=llava, decoder="lora", dtype="bfloat16")
    vlm = checkpoint.load(llava)
    matrices = sum(m.weight.numel() for m in vlm.decoder.modules() if isinstance(m, torch.nn.Linear))
    saved = training_memory(vlm, config).weights - training_memory(vlm, config.replace(quantize="nf4")).weights
    assert saved == pytest.approx(matrices * (2 - 0.516), rel=1e-3)
