"""Cloning with adapters or a frozen decoder: `best` and `last` are plain models that play as the trained one did."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from agents import checkpoint_selection
from agents.bc_objective import BehaviorCloningObjective
from agents.clone import clone
from agents.clone_config import CONFIGS
from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments.model_classes.tiny_checkpoints import write
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer

NAMES = ("noop", "fire", "up", "up right")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """One game whose frames are noise."""
    path, rng = tmp_path_factory.mktemp("data") / "carnival", np.random.default_rng(1)
    frames, rewards = rng.integers(0, 256, (8, 214, 160, 3), dtype=np.uint8), np.ones(8, np.float32)
    episode = Episode(frames, rng.integers(len(NAMES), size=8), rewards, None, terminated=True, truncated=False, seed=1)
    EpisodeWriter(path, DatasetInfo("Carnival", NAMES, MACHADO2018, "test", None, "abc", {})).append(episode)
    return path


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write("llava", tmp_path_factory.mktemp("hub") / "llava")


@pytest.fixture
def config(dataset, llava, tmp_path):
    return CONFIGS["default"].replace(
        out=tmp_path / "run", init=llava, data=(dataset,), batch_size=2, eval_every=1, steps=2, lora_rank=2,
        learning_rate=0.02,
        trainer=("save_steps=1", "warmup_steps=0", "dataloader_num_workers=0", "report_to=none", "bf16=false"),
    )  # fmt: skip


def log_probs(vlm):
    frames = np.random.default_rng(3).integers(0, 256, (2, 1, 210, 160, 3), dtype=np.uint8)
    scorer = CandidateScorer(vlm, vlm.action_prompt("Carnival", NAMES), NAMES)
    with torch.no_grad():
        return scorer.log_probs(vlm.encode_images(vlm.preprocess(frames))).float()


@pytest.fixture
def played(monkeypatch):
    """The probabilities of the model at each evaluation by play, whose second one scores best."""
    found = []

    def play(vlm, *_):
        found.append(log_probs(vlm))
        return [100.0 * len(found)]

    monkeypatch.setattr(checkpoint_selection, "evaluate_policy", play)
    return found


def test_the_best_weights_of_a_training_with_adapters_are_a_plain_model(config, played, llava):
    best = clone(config.replace(decoder="lora"))
    assert best.name == "best"
    vlm = checkpoint.load(best)
    assert vlm.model.state_dict().keys() == checkpoint.load(llava).model.state_dict().keys()
    assert torch.allclose(log_probs(vlm), played[1], atol=1e-4)
    assert torch.allclose(log_probs(checkpoint.load(config.run.out / "last")), played[1], atol=1e-4)
    assert not torch.allclose(played[0], played[1], atol=1e-2), "adapters went on training after they were saved"
    _, report = AutoModelForImageTextToText.from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    updates = checkpoint.read_training(config.run.out / "last")["parameter_updates"]
    assert updates["encoder"]["changed"] > 0
    linear = sum(isinstance(module, torch.nn.Linear) for module in vlm.decoder.modules())
    assert updates["decoder"]["changed"] == linear


def test_a_frozen_decoder_stays_and_the_encoder_learns_to_play_through_it(config, played):
    clone(config.replace(decoder="frozen"))
    updates = checkpoint.read_training(config.run.out / "last")["parameter_updates"]
    assert updates["decoder"]["changed"] == 0 < updates["encoder"]["changed"]
    assert not torch.allclose(played[0], played[1], atol=1e-3)


def test_adapters_and_bfloat16_weights_play_in_evaluations_and_are_stored_so(config, played):
    trainer = ("save_steps=1", "warmup_steps=0", "dataloader_num_workers=0", "report_to=none")
    best = clone(config.replace(decoder="lora", dtype="bfloat16", trainer=trainer))
    vlm = checkpoint.load(best, dtype=torch.bfloat16)
    vlm.model.float()
    assert torch.allclose(log_probs(vlm), played[1], atol=0.3)
    with torch.no_grad():
        assert all(torch.equal(p, p.bfloat16().float()) for p in checkpoint.load(best).model.parameters())


@pytest.mark.slow
def test_a_killed_training_with_adapters_resumes_to_the_same_weights(config, played, tmp_path, kill_at_step):
    whole = config.replace(decoder="lora", eval_every=0)
    last = clone(whole)
    kill_at_step(BehaviorCloningObjective, 2)
    with pytest.raises(KeyboardInterrupt):
        clone(whole.replace(out=tmp_path / "killed"))
    resumed = clone(whole.replace(out=tmp_path / "killed"))
    one, other = (checkpoint.load(place).model.state_dict() for place in (last, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
