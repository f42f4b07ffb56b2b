"""Each role trains at its own rate, and the report proves it."""

import torch

from vlm.presets import build
from vlm.training.learning_rates import (
    ModuleLearningRates,
    parameter_groups,
    role_parameters,
)
from vlm.training.parameter_updates import parameter_update_report, snapshot


def step(vlm, rates):
    """One optimizer step that pushes on every parameter; return the report."""
    groups = parameter_groups(vlm, rates, weight_decay=0.0)
    before = snapshot(vlm)
    sum(p.sum() for p in vlm.model.parameters() if p.requires_grad).backward()
    torch.optim.SGD(groups, lr=1.0).step()
    return parameter_update_report(before, vlm)


def test_every_parameter_has_one_role():
    vlm = build("tiny")
    found = [name for parameters in role_parameters(vlm).values() for name, _ in parameters]
    assert sorted(found) == sorted(name for name, _ in vlm.model.named_parameters())


def test_all_roles_move_at_their_own_rates():
    report = step(build("tiny"), ModuleLearningRates(encoder=0.1, connector=0.2, decoder=0.3))
    for role, rate in zip(("encoder", "connector", "decoder"), (0.1, 0.2, 0.3), strict=True):
        assert report[role]["changed"] == report[role]["tensors"] > 0
        assert abs(report[role]["largest_change"] - rate) < 1e-3


def test_a_frozen_role_does_not_move():
    report = step(build("tiny"), ModuleLearningRates(encoder=None, connector=0.1, decoder=0.1))
    assert report["encoder"]["changed"] == 0
    assert report["decoder"]["changed"] == report["decoder"]["tensors"]
