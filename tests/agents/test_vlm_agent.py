"""The VLM agent answers in text, keeps frames per environment, and samples by the episode's seed alone."""

import numpy as np
import pytest
import torch

from agents.frame_stack import FrameStack
from agents.vlm_agent import VlmAgent
from common.errors import UserError
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.presets import build
from vlm.prompts import action_prompt

NAMES = ("noop", "fire", "right", "left", "right fire", "left fire")
TINY = build("tiny", seed=7)


def frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 214, 160, 3), dtype=np.uint8)


def test_a_frame_stack_repeats_the_first_frame_and_shifts_in_each_environment():
    stack = FrameStack(2)
    stack.reset(np.array([True, True]))
    first, second, third = frames(2, 1), frames(2, 2), frames(2, 3)
    assert np.array_equal(stack.add(first), np.stack([first, first], axis=1))
    assert np.array_equal(stack.add(second), np.stack([first, second], axis=1))
    stack.reset(np.array([False, True]))
    stacks = stack.add(third)
    assert np.array_equal(stacks[0], np.stack([second[0], third[0]]))
    assert np.array_equal(stacks[1], np.stack([third[1], third[1]]))


def test_greedy_play_takes_the_most_probable_answer():
    agent = VlmAgent(TINY, "Carnival", NAMES)
    agent.reset([1, 2])
    seen = frames(2)
    actions = agent.act(seen)
    features = TINY.encode_images(TINY.preprocess(np.stack([seen, seen], axis=1)))
    with torch.no_grad():
        log_probs = CandidateScorer(TINY, action_prompt("Carnival", NAMES), NAMES).log_probs(features)
    expected = log_probs.softmax(-1).numpy()
    assert np.abs(actions.scores - expected).max() < 1e-5
    assert actions.indices.tolist() == expected.argmax(1).tolist()
    assert actions.texts == tuple(NAMES[i] for i in actions.indices)
    assert not actions.invalid.any()


def sampled(agent, seeds, steps=12):
    agent.reset(seeds)
    return [agent.act(np.repeat(frames(1, step), len(seeds), axis=0)).indices.tolist() for step in range(steps)]


def test_samples_depend_on_the_episodes_seed_and_not_on_its_environment():
    make = lambda: VlmAgent(TINY, "Carnival", NAMES, temperature=5.0)  # noqa: E731
    alone = [row[0] for row in sampled(make(), [42])]
    among = [row[2] for row in sampled(make(), [40, 41, 42])]
    other = [row[0] for row in sampled(make(), [43])]
    assert alone == among
    assert alone != other


def test_a_generated_answer_that_names_no_legal_action_is_invalid_and_noop_is_played():
    agent = VlmAgent(TINY, "Carnival", NAMES, decode="generate")
    agent.reset([1])
    actions = agent.act(frames(1))
    assert actions.scores is None
    assert actions.texts[0] not in NAMES  # of an untrained model
    assert actions.invalid.tolist() == [True]
    assert actions.indices.tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "guess"}, "scores or generate, got 'guess'"),
        ({"temperature": -1.0}, "temperature of at least 0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        VlmAgent(TINY, "Carnival", NAMES, **options)


@pytest.mark.slow
def test_openvino_gives_the_probabilities_of_torch():
    seen = frames(1)
    answers = []
    for engine in ("torch", "openvino", "auto"):
        agent = VlmAgent(TINY, "Carnival", NAMES, engine=engine)
        agent.reset([1])
        answers.append(agent.act(seen))
    assert all(np.abs(answer.scores - answers[0].scores).max() < 0.05 for answer in answers)
    assert np.array_equal(answers[1].scores, answers[2].scores)


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match=r"expected an engine \(auto, torch, openvino\), got 'warp'"):
        VlmAgent(TINY, "Carnival", NAMES, engine="warp")
