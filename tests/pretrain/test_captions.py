"""Captions as an objective: true ones, drawn from seed and step alone, trained beside pixel values and after a kill."""

import pytest
import torch

from common.errors import UserError
from envs.episodes import EpisodeDataset
from pretrain.answer_objective import IGNORE_INDEX
from pretrain.caption_objective import CaptionData, CaptionObjective
from pretrain.captions import main
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.pvp import train_pvp
from pretrain.pvp_config import CONFIGS
from vlm import checkpoint
from vlm.decoding.candidate_scoring import generate_text
from vlm.presets import build
from vlm.training.mixture import Mixture

SHORT = ("save_steps=2", "warmup_steps=1", "dataloader_num_workers=0", "bf16=false")


@pytest.fixture(scope="module")
def vlm():
    return build("tiny-clip", seed=0, tokenizer=caption_tokenizer())


def captions(vlm, place, **changes):
    return CaptionObjective(vlm, CaptionData(**{"data": (str(place),), "images": 4, "captions": 2, **changes}))


def batch_of(objective, step):
    return objective.sampler(step, objective.rng(5, step))


def test_every_frame_has_captions_of_its_own_game_behind_the_prompts_last_token(vlm, two_games):
    batch = batch_of(captions(vlm, two_games[0]), 1)
    assert batch.frames.shape == (4, 1, 210, 160, 3)
    assert batch.input_ids.shape == batch.labels.shape
    assert batch.input_ids.shape[:2] == (4, 2)
    words = vlm.tokenizer.batch_decode(batch.labels.flatten(0, 1).clamp_min(0), skip_special_tokens=True)
    assert all("pong" in caption for caption in words)
    input_ids, labels = batch.input_ids[0, 0], batch.labels[0, 0]
    length = int((labels != IGNORE_INDEX).sum())
    assert vlm.tokenizer.convert_ids_to_tokens(input_ids[:1].tolist()) == ["]"]  # of "[caption]"
    assert torch.equal(input_ids[1:length], labels[: length - 1])
    assert labels[length - 1] == vlm.tokenizer.eos_token_id


def test_batches_are_drawn_from_seed_and_step_alone_and_leave_held_out_games_alone(vlm, two_games):
    one, two = (batch_of(captions(vlm, two_games[0]), 2) for _ in range(2))
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("frames", "input_ids", "labels"))
    assert not torch.equal(batch_of(captions(vlm, two_games[0]), 1).frames, one.frames)
    kept = captions(vlm, two_games[0], val_episodes=1).sampler.sources[0]
    assert len(kept) < len(EpisodeDataset(two_games[0]))
    with pytest.raises(UserError, match="expected directories of recorded games"):
        captions(vlm, two_games[0], data=())


def test_a_model_overfits_the_captions_of_one_batch_and_generates_them(vlm, two_games):
    own = build("tiny-clip", seed=1, tokenizer=vlm.tokenizer)
    objective = captions(own, two_games[0], images=2, captions=1)
    batch = batch_of(objective, 0)
    optimizer = torch.optim.AdamW(own.model.parameters(), lr=3e-3)
    own.model.train()
    for _ in range(120):
        losses = objective.loss(objective.encode(batch), batch)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    assert losses.loss < 0.1
    assert losses.metrics["token_accuracy"] == 1
    own.model.eval()
    labels = batch.labels[0, 0]
    caption = own.tokenizer.decode(labels[labels != IGNORE_INDEX], skip_special_tokens=True)
    assert generate_text(own, own.preprocess(batch.frames[:1]), "<image> [caption]", len(labels)) == [caption]


def test_a_mixture_of_pixels_and_captions_resumes_after_a_kill_to_the_same_weights(two_games, tmp_path, kill_at_step):
    def config(name):
        return CONFIGS["default"].replace(
            out=tmp_path / name, data=(str(two_games[0]),), val_episodes=1, preset="tiny-clip", grid="8", steps=6,
            images=2, questions=4, caption_weight=0.5, trainer=SHORT,
        )  # fmt: skip

    whole = checkpoint.load(train_pvp(config("whole")))
    calls = kill_at_step(Mixture, 4)
    with pytest.raises(KeyboardInterrupt):
        train_pvp(config("killed"))
    again = checkpoint.load(train_pvp(config("killed")))
    assert len(calls) == 4 + 4
    assert {batch.objectives for (batch,) in calls} == {(0,), (1,)}
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_new_model_learns_captions_alone_with_every_role_and_others_start_from_it(two_games, tmp_path):
    command = ["--data", str(two_games[0]), "--preset", "tiny", "--steps", "2", "--images", "2", "--trainer", *SHORT]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    made = checkpoint.read_training(tmp_path / "run" / "last")
    assert all(made["parameter_updates"][role]["changed"] > 0 for role in ("encoder", "connector", "decoder"))
    frozen = ["--init", str(tmp_path / "run" / "last"), "--encoder-learning-rate", "0"]
    assert main([*command, *frozen, "--out", str(tmp_path / "on")]) == 0
    assert checkpoint.read_training(tmp_path / "on" / "last")["parameter_updates"]["encoder"]["changed"] == 0
    with pytest.raises(UserError, match="--captions must be at least 1, got 0"):
        main([*command, "--captions", "0", "--out", str(tmp_path / "x")])


def test_a_caption_weight_of_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="--caption-weight must be less than 1"):
        CONFIGS["default"].replace(out=tmp_path, synthetic=1.0, caption_weight=1.0)
