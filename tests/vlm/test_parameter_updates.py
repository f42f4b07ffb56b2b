"""Checksums notice every change of a parameter and take hardly any memory."""

import pytest
import torch

from vlm.presets import build
from vlm.training.parameter_updates import SAMPLED, TensorDigest, parameter_update_report, snapshot


@pytest.fixture
def weights():
    return torch.arange(10.0 * SAMPLED).reshape(16, 8, 8, -1)


def test_a_change_of_one_value_that_was_not_sampled_shows(weights):
    before, changed = TensorDigest.of(weights), weights.clone()
    changed.view(-1)[1] += 1e-3
    after = TensorDigest.of(changed)
    assert torch.equal(before.sample, after.sample)
    assert before.checksum != after.checksum


def test_values_that_change_places_show(weights):
    assert TensorDigest.of(weights).checksum != TensorDigest.of(weights.flip(0)).checksum


def test_the_layout_in_memory_does_not_matter(weights):
    digest, other = (TensorDigest.of(x) for x in (weights, weights.to(memory_format=torch.channels_last)))
    assert digest.checksum == other.checksum
    assert torch.equal(digest.sample, other.sample)


def test_a_digest_stays_when_its_tensor_changes():
    tensor = torch.zeros(3)
    digest = TensorDigest.of(tensor)
    tensor += 1
    assert digest.sample.tolist() == [0, 0, 0]


def test_a_tensor_larger_than_a_part_is_hashed_whole(weights, monkeypatch):
    whole = TensorDigest.of(weights)
    monkeypatch.setattr("vlm.training.parameter_updates.PART", 1000)
    assert TensorDigest.of(weights).checksum == whole.checksum


def test_a_snapshot_takes_a_small_part_of_the_weights_memory():
    vlm = build("nano")
    kept = sum(digest.sample.untyped_storage().nbytes() for digest in snapshot(vlm).values())
    assert kept < 0.2 * sum(parameter.nbytes for parameter in vlm.model.parameters())
    largest = max(vlm.model.parameters(), key=torch.numel)
    assert TensorDigest.of(largest).sample.numel() <= SAMPLED < largest.numel() / 10


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_report_counts_what_changed_and_says_by_how_much(kind):
    vlm = build("tiny")
    vlm.model.to(kind)
    before = snapshot(vlm)
    assert all(role["changed"] == 0 for role in parameter_update_report(before, vlm).values())
    with torch.no_grad():
        next(vlm.encoder.parameters()).add_(0.5)
    report = parameter_update_report(before, vlm)
    assert [report[role]["changed"] for role in ("encoder", "connector", "decoder")] == [1, 0, 0]
    assert report["encoder"]["largest_change"] == pytest.approx(0.5, abs=0.01)
