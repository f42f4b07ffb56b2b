"""QLoRA quantizes the decoder alone, gives back whole weights, and is refused in one line where it cannot be."""

import importlib.util

import pytest
import torch

from common.errors import UserError
from experiments.model_classes.tiny_checkpoints import write
from pretrain import pvp
from pretrain.pvp_config import CONFIGS
from pretrain.pvp_objective import PvpObjective
from vlm import checkpoint
from vlm.training import quantization
from vlm.training.lora import TRAINED, add_lora

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")


@pytest.fixture
def qlora(tmp_path):
    """A short QLoRA training of pixel values from a tiny LLaVA."""
    return CONFIGS["default"].replace(
        out=tmp_path / "run", init=write("llava", tmp_path / "llava"), synthetic=1, size=(42, 32), grid="8", images=2,
        questions=3, steps=2, decoder="lora", lora_rank=2, quantize="nf4", dtype="bfloat16", learning_rate=0.05,
        trainer=("save_steps=1", "warmup_steps=0", "dataloader_num_workers=0", "report_to=none"),
    )  # fmt: skip


@pytest.fixture
def _on_a_cpu(monkeypatch):
    """Let a CPU do what is for a GPU: bitsandbytes can, slowly."""
    monkeypatch.setattr(quantization, "require_quantization", lambda: None)
    monkeypatch.setattr("vlm.training.fit.require_quantization", lambda: None)


def test_a_missing_package_is_named_with_what_installs_it(qlora, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"--quantize nf4 needs the package bitsandbytes, which is not installed; pip install -e '.\[quantize\]'"
    with pytest.raises(UserError, match=message):
        pvp.train_pvp(qlora)


def test_a_machine_without_a_gpu_is_refused(qlora, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="--quantize nf4 needs a GPU, found none"):
        pvp.train_pvp(qlora)


@pytest.mark.parametrize("decoder", ["full", "frozen"])
def test_four_bits_go_with_adapters_only(qlora, decoder):
    with pytest.raises(UserError, match=f"--quantize nf4 needs --decoder lora, got {decoder}"):
        qlora.replace(decoder=decoder)


def test_a_new_model_is_not_quantized(qlora):
    with pytest.raises(UserError, match="--quantize nf4 is for a model of transformers, expected --init with one"):
        qlora.replace(init=None)


@needs_bitsandbytes
@pytest.mark.usefixtures("_on_a_cpu")
def test_the_decoders_matrices_alone_are_quantized_and_adapters_train_beside_the_encoder(qlora, monkeypatch):
    found, whole = {}, PvpObjective.loss

    def loss(self, features, batch):
        found.update((name, (p.dtype, p.requires_grad)) for name, p in self.vlm.model.named_parameters())
        return whole(self, features, batch)

    monkeypatch.setattr(PvpObjective, "loss", loss)
    last = pvp.train_pvp(qlora)
    packed = [name for name, (dtype, _) in found.items() if dtype == torch.uint8]
    assert len(packed) == 2 * 7  # of each layer: queries, keys, values, output, gate, up and down
    assert all("language_model" in name for name in packed)
    trained = {name for name, (_, trains) in found.items() if trains}
    assert all(found[name][0] == torch.float32 for name in trained)
    assert {name for name in found if "lora_" in name} < trained
    assert any("vision_tower" in name for name in trained)
    updates = checkpoint.read_training(last)["parameter_updates"]
    assert updates["decoder"]["changed"] == len(packed)
    assert updates["encoder"]["changed"] > 0 < updates["connector"]["changed"]


@needs_bitsandbytes
@pytest.mark.usefixtures("_on_a_cpu")
def test_weights_that_no_adapter_changed_come_back_as_they_were(qlora):
    last = pvp.train_pvp(qlora.replace(learning_rate=1e-30, encoder_learning_rate=0, connector_learning_rate=0))
    start, trained = (checkpoint.load(place).model.state_dict() for place in (qlora.model.init, last))
    assert start.keys() == trained.keys()
    assert all(torch.equal(start[name].bfloat16().float(), trained[name]) for name in start)


@needs_bitsandbytes
@pytest.mark.usefixtures("_on_a_cpu")
def test_a_killed_run_resumes_to_the_same_weights_from_what_trains_alone(qlora, tmp_path, kill_at_step):
    whole = pvp.train_pvp(qlora)
    kill_at_step(PvpObjective, 2)
    with pytest.raises(KeyboardInterrupt):
        pvp.train_pvp(qlora.replace(out=tmp_path / "killed"))
    saved = tmp_path / "killed" / "checkpoints" / "checkpoint-1"
    assert (saved / TRAINED).is_file()
    assert not (saved / "model.safetensors").exists()
    resumed = pvp.train_pvp(qlora.replace(out=tmp_path / "killed"))
    one, other = (checkpoint.load(place).model.state_dict() for place in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@needs_bitsandbytes
def test_a_quantized_matrix_gives_nearly_the_products_of_the_whole_one(qlora):
    start, vlm = (checkpoint.load(qlora.model.init) for _ in range(2))
    quantization.quantize_decoder(vlm, lambda: start)
    vlm.model.to("cpu")
    add_lora(vlm, 2)
    inputs = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        products = [model.decoder.layers[0].mlp.up_proj(inputs).flatten() for model in (start, vlm)]
    correlation = float(torch.corrcoef(torch.stack(products))[0, 1])
    assert 0.95 < correlation < 0.9999
