"""`--dtype bfloat16` loads half the bytes and keeps in float32 what trains alone."""

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from experiments.model_classes.tiny_checkpoints import write
from pretrain import pvp
from pretrain.pvp_config import CONFIGS
from pretrain.pvp_objective import PvpObjective
from vlm import checkpoint

SHORT = ("save_steps=9", "warmup_steps=0", "dataloader_num_workers=0", "report_to=none")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A tiny LLaVA in the hub's layout."""
    return write("llava", tmp_path_factory.mktemp("hub") / "llava")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A checkpoint of a preset with a patch expansion."""
    return pvp.train_pvp(
        CONFIGS["default"].replace(
            out=tmp_path_factory.mktemp("preset"), preset="tiny", patch_expansion=2, synthetic=1, size=(64, 64),
            grid="8", images=2, questions=2, steps=1, trainer=SHORT,
        )
    )  # fmt: skip


@pytest.fixture
def small(llava, tmp_path):
    """A short training of pixel values from the tiny LLaVA."""
    return CONFIGS["default"].replace(
        out=tmp_path / "run", init=llava, synthetic=1, size=(42, 32), grid="8", images=2, questions=3, lora_rank=2,
        steps=2, trainer=SHORT, learning_rate=0.01,
    )  # fmt: skip


def dtypes(parameters):
    return {parameter.dtype for parameter in parameters}


@pytest.mark.parametrize("name", ["llava", "preset"])
def test_weights_are_loaded_in_the_type_that_is_asked_for_and_never_in_another(name, request, monkeypatch):
    asked, whole = [], torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: asked.append(tensor.numel()) or whole(tensor))
    model = checkpoint.load(request.getfixturevalue(name), dtype=torch.bfloat16).model
    assert dtypes(model.parameters()) == {torch.bfloat16}
    assert max(asked, default=0) < max(parameter.numel() for parameter in model.parameters())
    assert dtypes(checkpoint.load(request.getfixturevalue(name)).model.parameters()) == {torch.float32}


def kept_dtypes(monkeypatch):
    """A dictionary that gets the types of the parameters, by role and whether they train, in a step of training."""
    found, whole = {}, PvpObjective.loss

    def loss(self, features, batch):
        vlm = self.vlm
        inside = {id(p): role for role in ("encoder", "connector", "decoder") for p in getattr(vlm, role).parameters()}
        for parameter in vlm.model.parameters():
            role = inside.get(id(parameter), "decoder")
            found.setdefault((role, parameter.requires_grad), set()).add(parameter.dtype)
        return whole(self, features, batch)

    monkeypatch.setattr(PvpObjective, "loss", loss)
    return found


@pytest.mark.parametrize("decoder", ["lora", "frozen"])
def test_what_is_frozen_is_kept_in_bfloat16_and_what_trains_in_float32(small, decoder, monkeypatch):
    found = kept_dtypes(monkeypatch)
    last = pvp.train_pvp(small.replace(decoder=decoder, dtype="bfloat16"))
    trained = {("encoder", True): {torch.float32}, ("connector", True): {torch.float32}}
    adapters = {("decoder", True): {torch.float32}} if decoder == "lora" else {}
    assert found == {**trained, **adapters, ("decoder", False): {torch.bfloat16}}
    updates = checkpoint.read_training(last)["parameter_updates"]
    assert updates["encoder"]["changed"] > 0 < updates["connector"]["changed"]
    assert (updates["decoder"]["changed"] > 0) == (decoder == "lora")
    assert dtypes(load_file(last / "model.safetensors").values()) == {torch.bfloat16}


def test_a_frozen_encoder_is_kept_in_bfloat16(small, monkeypatch):
    found = kept_dtypes(monkeypatch)
    pvp.train_pvp(small.replace(encoder_learning_rate=0, dtype="bfloat16"))
    assert found["encoder", False] == {torch.bfloat16}
    assert found["decoder", True] == {torch.float32}


def test_losses_in_bfloat16_are_near_those_in_float32(small, tmp_path, monkeypatch):
    losses, whole = [], PvpObjective.loss

    def loss(self, features, batch):
        found = whole(self, features, batch)
        losses.append(float(found.loss.detach()))
        return found

    monkeypatch.setattr(PvpObjective, "loss", loss)
    for dtype, bf16 in (("float32", "false"), ("bfloat16", "true")):
        config = small.replace(out=tmp_path / dtype, dtype=dtype, decoder="lora", trainer=(*SHORT, f"bf16={bf16}"))
        pvp.train_pvp(config)
    assert losses[2:] == pytest.approx(losses[:2], rel=0.02)
    assert losses[2:] != losses[:2]


def test_weights_in_bfloat16_are_not_computed_in_float32(small):
    with pytest.raises(UserError, match="--dtype bfloat16 computes in bfloat16, got --trainer bf16=false"):
        pvp.train_pvp(small.replace(decoder="lora", dtype="bfloat16", trainer=(*SHORT, "bf16=false")))


def test_a_run_among_bfloat16_weights_resumes_to_the_same_weights(small, tmp_path, kill_at_step):
    config = small.replace(decoder="lora", dtype="bfloat16", trainer=(*SHORT[1:], "save_steps=1"))
    whole = pvp.train_pvp(config.replace(out=tmp_path / "whole"))
    kill_at_step(PvpObjective, 2)
    with pytest.raises(KeyboardInterrupt):
        pvp.train_pvp(config.replace(out=tmp_path / "killed"))
    resumed = pvp.train_pvp(config.replace(out=tmp_path / "killed"))
    one, other = (load_file(place / "model.safetensors") for place in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_validation_computes_among_bfloat16_weights(small, capsys):
    pvp.train_pvp(small.replace(decoder="lora", dtype="bfloat16", val_data=("synthetic",), val_images=1))
    assert "step 2, " in capsys.readouterr().out
