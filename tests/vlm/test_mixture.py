"""A mixture draws objectives by weight, and each one trains the model as if it were alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from common.errors import UserError
from vlm.presets import build
from vlm.training.fit import TrainingModule
from vlm.training.mixture import Mixture, MixtureBatch, MixtureDataset


@pytest.fixture(scope="module")
def vlm():
    return build("tiny", seed=0)


def test_objectives_come_at_their_weights_by_seed_and_step_alone(vlm, token_objective):
    mixture = Mixture({"often": token_objective(vlm), "seldom": token_objective(vlm)}, [3, 1])
    dataset = MixtureDataset(mixture, 300, seed=0)
    assert len(dataset) == 300
    drawn = [dataset[step].objectives[0] for step in range(300)]
    assert 50 < sum(drawn) < 100
    assert drawn == [dataset[step].objectives[0] for step in range(300)]
    assert drawn != [MixtureDataset(mixture, 300, seed=1)[step].objectives[0] for step in range(300)]


def test_a_step_has_the_batch_that_its_objective_would_draw_alone(vlm, token_objective):
    one, two = token_objective(vlm), token_objective(vlm)
    two.stream = (7,)
    dataset = MixtureDataset(Mixture({"one": one, "two": two}), 20, seed=3)
    for step in range(20):
        objective = (one, two)[dataset[step].objectives[0]]
        assert torch.equal(dataset[step].batches[0].tokens, objective.sampler(step, objective.rng(3, step)).tokens)
    assert not torch.equal(one.sampler(4, one.rng(3, 4)).tokens, two.sampler(4, two.rng(3, 4)).tokens)


def test_metrics_of_several_objectives_carry_their_name_and_those_of_one_alone_do_not(vlm, token_objective):
    objective = token_objective(vlm)
    batch = objective.sampler(0, objective.rng(0, 0))
    alone = objective.loss(objective.encode(batch), batch)
    single = Mixture({"words": objective})
    assert set(single.loss(MixtureDataset(single, 1, 0)[0]).metrics) == {"accuracy"}
    mixture = Mixture({"words": objective, "others": token_objective(vlm)})
    for number, name in enumerate(("words", "others")):
        losses = mixture.loss(MixtureBatch((number,), (batch,)))
        assert set(losses.metrics) == {f"{name}/loss", f"{name}/accuracy"}
        assert losses.loss.item() == losses.metrics[f"{name}/loss"].item() == alone.loss.item()


def test_a_joint_step_has_every_objective_and_adds_their_losses_by_weight(vlm, token_objective):
    one, two = token_objective(vlm), token_objective(vlm)
    two.stream = (7,)
    mixture = Mixture({"one": one, "two": two}, [3, 1], joint=True)
    batch = MixtureDataset(mixture, 20, seed=3)[5]
    assert batch.objectives == (0, 1)
    for objective, own in zip((one, two), batch.batches, strict=True):
        assert torch.equal(own.tokens, objective.sampler(5, objective.rng(3, 5)).tokens)
    losses = mixture.loss(batch)
    parts = {name: losses.metrics[f"{name}/loss"].item() for name in ("one", "two")}
    assert parts["one"] != parts["two"]
    assert losses.loss.item() == pytest.approx(0.75 * parts["one"] + 0.25 * parts["two"])


def test_each_objective_computes_attention_in_its_own_way(token_objective):
    vlm = build("tiny", seed=0)
    objectives = {name: token_objective(vlm) for name in ("eager", "sdpa")}
    for name, objective in objectives.items():
        objective.attention = name
    mixture = Mixture(objectives)
    dataset, module = MixtureDataset(mixture, 12, seed=0), TrainingModule(mixture, bf16=False)
    drawn = [dataset[step].objectives[0] for step in range(12)]
    assert len(set(pairwise(drawn))) == 4  # each follows each
    for step in range(12):
        module(dataset[step])
    for name, objective in objectives.items():
        assert set(objective.attention_seen) == {name}


def test_modules_beside_the_model_are_those_of_all_objectives_by_name(vlm, token_objective):
    with_layer = token_objective(vlm, own_layer=True)
    mixture = Mixture({"plain": token_objective(vlm), "deep": with_layer})
    assert dict(mixture.auxiliary().items()) == {"layer": with_layer.layer}


def test_data_workers_get_no_model(vlm, token_objective, modules_in):
    mixture = Mixture({"plain": token_objective(vlm), "deep": token_objective(vlm, own_layer=True)})
    assert "Linear" in modules_in(mixture)
    assert modules_in(MixtureDataset(mixture, 4, seed=0)) == []


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [2.0, -1.0]])
def test_weights_are_positive_and_one_for_each_objective(vlm, token_objective, weights):
    with pytest.raises(UserError, match="expected a positive weight for each of 2 objectives"):
        Mixture({"one": token_objective(vlm), "two": token_objective(vlm)}, weights)


def test_no_objective_and_objectives_over_two_models_are_refused(vlm, token_objective):
    with pytest.raises(UserError, match="each of 0 objectives"):
        Mixture({})
    with pytest.raises(UserError, match="objectives over one model"):
        Mixture({"one": token_objective(vlm), "two": token_objective(build("tiny"))})


def test_weights_are_relative(vlm, token_objective):
    objectives = {"one": token_objective(vlm), "two": token_objective(vlm)}
    assert np.allclose(Mixture(objectives, [30, 10]).probabilities, [0.75, 0.25])
    assert np.allclose(Mixture(objectives).probabilities, 0.5)
