"""Samplers of every objective know no model, so that data workers do not get a copy of one."""

import pytest

from envs.episodes import EpisodeDataset
from pretrain.caption_objective import CaptionData, CaptionSampler
from pretrain.contrastive_objective import ContrastiveData, ContrastiveSampler
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.pvp import pvp_objective
from pretrain.pvp_config import PvpData
from pretrain.referring.point_objective import PointQuestionSampler
from pretrain.referring.referring_config import ReferringData
from pretrain.referring.scene_dataset import SceneDataset
from vlm.clip import build_clip
from vlm.presets import build
from vlm.segmentation.point_prediction import PointPromptFormat


def pixel_values(vlm, games):
    return pvp_objective(vlm, PvpData(data=(str(games[0]),)), steps=9).sampler


def captions(vlm, games):
    return CaptionSampler(vlm, CaptionData(data=(str(games[0]),)))


def contrast(vlm, games):
    datasets = [EpisodeDataset(path) for path in games]
    return ContrastiveSampler(datasets, build_clip("tiny-clip", caption_tokenizer()), ContrastiveData(), steps=9)


def points(vlm, games):
    source = SceneDataset(games, "train", 1, vlm.history)
    return PointQuestionSampler(PointPromptFormat.of(vlm), source, ReferringData())


@pytest.mark.parametrize("make", [pixel_values, captions, contrast, points])
def test_a_sampler_knows_no_model(make, two_games, modules_in):
    vlm = build("tiny", tokenizer=caption_tokenizer())
    assert modules_in(vlm)
    assert modules_in(make(vlm, two_games)) == []
