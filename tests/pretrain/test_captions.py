"""Captions as a lesson: true ones, drawn from seed and step alone, learnt beside pixel values and after a kill."""

import pytest
import torch

from common.errors import UserError
from envs.episodes import EpisodeDataset
from pretrain.captions import CaptionDataset, CaptionObjective, main
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.pvp import Args, train_pvp
from pretrain.pvp_prompts import IGNORE_INDEX
from vlm import checkpoint
from vlm.decoding.candidate_scoring import generate_text
from vlm.presets import build
from vlm.training.mixture import MixtureObjective


@pytest.fixture(scope="module")
def vlm():
    return build("tiny-clip", seed=0, tokenizer=caption_tokenizer())


def describe(vlm, place, **changes):
    plain = {"data": [str(place)], "held_out": 0, "size": (210, 160), "steps": 3, "images": 4, "count": 2, "seed": 5}
    return CaptionDataset(vlm, **{**plain, **changes})


def test_every_frame_has_captions_of_its_own_game_behind_the_prompts_last_token(vlm, two_games):
    batch = describe(vlm, two_games[0])[1]
    assert batch["frames"].shape == (4, 1, 210, 160, 3)
    assert batch["read"].shape == batch["said"].shape
    assert batch["read"].shape[:2] == (4, 2)
    words = vlm.tokenizer.batch_decode(batch["said"].flatten(0, 1).clamp_min(0), skip_special_tokens=True)
    assert all("pong" in caption for caption in words)
    read, said = batch["read"][0, 0], batch["said"][0, 0]
    length = int((said != IGNORE_INDEX).sum())
    assert vlm.tokenizer.convert_ids_to_tokens(read[:1].tolist()) == ["]"]  # of "[caption]"
    assert torch.equal(read[1:length], said[: length - 1])
    assert said[length - 1] == vlm.tokenizer.eos_token_id


def test_batches_are_drawn_from_seed_and_step_alone_and_leave_held_out_games_alone(vlm, two_games):
    one, two = describe(vlm, two_games[0]), describe(vlm, two_games[0])
    assert all(torch.equal(one[2][name], two[2][name]) for name in ("frames", "read", "said"))
    assert not torch.equal(one[1]["frames"], one[2]["frames"])
    data = EpisodeDataset(two_games[0])
    kept = describe(vlm, two_games[0], held_out=1).sources[0]
    assert len(kept) < len(data)
    with pytest.raises(UserError, match="expected directories of recorded games"):
        describe(vlm, two_games[0], data=[])


def test_captions_of_one_batch_are_learnt_by_heart_and_said(vlm, two_games):
    own = build("tiny-clip", seed=1, tokenizer=vlm.tokenizer)
    batch = describe(own, two_games[0], images=2, count=1)[0]
    lesson = CaptionObjective(own, bf16=False)
    optimizer = torch.optim.AdamW(own.model.parameters(), lr=3e-3)
    own.model.train()
    for _ in range(120):
        loss = lesson(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    own.model.eval()
    said = batch["said"][0, 0]
    wanted = own.tokenizer.decode(said[said != IGNORE_INDEX], skip_special_tokens=True)
    assert generate_text(own, own.preprocess(batch["frames"][:1]), "<image> [caption]", len(said)) == [wanted]


def test_a_mixture_of_pixels_and_captions_goes_on_after_a_kill_to_the_same_weights(two_games, tmp_path, monkeypatch):
    def args(name):
        return Args(
            out=tmp_path / name, data=(str(two_games[0]),), hold_episodes=1, preset="tiny-clip", grid="8", steps=6,
            images=2, questions=4, captions=0.5, save_every=2, warmup_steps=1, workers=0,
        )  # fmt: skip

    whole = checkpoint.load(train_pvp(args("whole")))
    forward, steps, tasks = MixtureObjective.forward, [], []

    def killed_in_the_fourth(self, task, **batch):
        steps.append(1)
        tasks.append(int(task))
        if len(steps) == 4:
            raise KeyboardInterrupt
        return forward(self, task, **batch)

    monkeypatch.setattr(MixtureObjective, "forward", killed_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        train_pvp(args("killed"))
    again = checkpoint.load(train_pvp(args("killed")))
    assert len(steps) == 4 + 4
    assert set(tasks) == {0, 1}
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_new_model_is_taught_captions_alone_with_every_role_and_goes_on_as_the_start_of_others(two_games, tmp_path):
    command = ["--data", str(two_games[0]), "--preset", "tiny", "--steps", "2", "--images", "2", "--workers", "0"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    made = checkpoint.read_training(tmp_path / "run" / "last")
    assert all(made["parameter_updates"][role]["changed"] > 0 for role in ("encoder", "connector", "decoder"))
    frozen = ["--init", str(tmp_path / "run" / "last"), "--encoder-learning-rate", "0"]
    assert main([*command, *frozen, "--out", str(tmp_path / "on")]) == 0
    assert checkpoint.read_training(tmp_path / "on" / "last")["parameter_updates"]["encoder"]["changed"] == 0
    with pytest.raises(UserError, match="--captions must be at least 1, got 0"):
        main([*command, "--captions", "0", "--out", str(tmp_path / "x")])


def test_pixels_are_not_taught_by_captions_alone(tmp_path):
    with pytest.raises(UserError, match="--captions must be less than 1"):
        Args(out=tmp_path, synthetic=1.0, captions=1.0)
