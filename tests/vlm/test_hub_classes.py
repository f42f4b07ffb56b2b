"""Every class of other people's models, as its files lie on the hub: exact, or refused in one line."""

import numpy as np
import pytest
import torch
from transformers.utils import is_torchvision_available

from agents.vlm_agent import VlmAgent
from common.errors import UserError
from tests.hub_checkpoints import CLASSES, write
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer, generate_text, prompt_ids
from vlm.decoding.openvino_scorer import OpenVinoScorer
from vlm.decoding.packing import forward_packed

REFUSED = ("blip2", "instructblip")
UNSHARED = ("llava-sliding", "qwen3-vl", "paligemma", "paligemma2", "gemma3")  # prompts cannot share a prefix
NEEDS_TORCHVISION = ("pixtral", "mistral3")
ADMITTED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in NEEDS_TORCHVISION and not is_torchvision_available(), reason="its processor needs torchvision"
        ),
    )
    for name in CLASSES
    if name not in REFUSED
]
NAMES = ("noop", "fire", "up", "up right")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A function that returns the checkpoint of a class, written once."""
    written = {}

    def find(name):
        if name not in written:
            written[name] = write(name, tmp_path_factory.mktemp(name) / "model")
        return written[name]

    return find


@pytest.fixture(autouse=True)
def _num2words(monkeypatch):
    """SmolVLM asks for a package that spells numbers, in questions about videos."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)


def frames(count, history=1, seed=0):
    shape = (count, history, 210, 160, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def forced(vlm, images, prompt, answer):
    """The log-probability of an answer's tokens, given to the class's own `generate` one after the other."""
    ids = torch.tensor(prompt_ids(vlm, prompt, vlm.image_ids(images))).expand(images.num_images, -1)
    output = vlm.model.generate(
        **vlm.forward_inputs(ids, images), max_new_tokens=len(answer), min_new_tokens=len(answer), do_sample=False,
        prefix_allowed_tokens_fn=lambda _, tokens: [answer[len(tokens) - ids.shape[1]]],
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return sum(x.float().log_softmax(-1)[:, token] for x, token in zip(output.logits, answer, strict=True))


@pytest.mark.parametrize("name", ADMITTED)
@torch.no_grad()
def test_actions_get_the_log_probabilities_of_the_classs_own_generation(hub, name):
    vlm = checkpoint.load(hub(name))
    images, prompt = vlm.preprocess(frames(3)), vlm.action_prompt("Pong", NAMES)
    scorer = CandidateScorer(vlm, prompt, NAMES, cache_prompt=True)
    assert scorer.shares_prompt == (name not in UNSHARED)
    log_probs = scorer.log_probs(vlm.encode_images(images))
    for number in (1, 3):
        expected = forced(vlm, images, prompt, [*scorer.candidates[number], vlm.tokenizer.eos_token_id])
        assert torch.allclose(log_probs[:, number], expected, atol=1e-4)
    alone = scorer.log_probs(vlm.encode_images(vlm.preprocess(frames(3)[1:2])))
    assert torch.allclose(alone[0], log_probs[1], atol=1e-4)
    assert len(generate_text(vlm, images, prompt, 2)) == 3


@pytest.mark.parametrize("name", ADMITTED)
def test_every_engine_sees_every_frame_and_engines_agree(hub, name):
    vlm, played = checkpoint.load(hub(name)), {}
    for engine in ("torch", "auto"):
        agent = VlmAgent(vlm, "Pong", NAMES, engine=engine)
        agent.reset([1])
        scores = [agent.act(frames(1, seed=seed)[:, 0]).scores for seed in range(3)]
        played[engine] = np.log(np.concatenate(scores).astype(float) + 1e-30)
        assert np.abs(np.diff(played[engine], axis=0)).max(1).min() > 1e-4, "two frames have one score"
    assert np.array_equal(played["torch"], played["auto"])
    with pytest.raises(UserError, match="brings its own preprocessing and computes in torch; expected --engine torch"):
        VlmAgent(vlm, "Pong", NAMES, engine="openvino")


def test_a_graph_is_not_made_of_a_model_that_preprocesses_outside_of_torch(hub):
    vlm = checkpoint.load(hub("llava"))
    with pytest.raises(UserError, match="LlavaForConditionalGeneration computes in torch alone; expected --engine"):
        OpenVinoScorer(CandidateScorer(vlm, vlm.action_prompt("Pong", NAMES), NAMES), frames(1))


@pytest.mark.parametrize("name", ADMITTED)
@torch.no_grad()
def test_many_questions_about_an_image_equal_single_ones_or_are_refused(hub, name):
    vlm = checkpoint.load(hub(name))
    images, shared, questions = vlm.preprocess(frames(2)), torch.tensor([30, 31]), torch.tensor([[40, 41], [42, 43]])
    features = vlm.encode_images(images)
    if name in UNSHARED:
        with pytest.raises(UserError, match="cannot share a prefix among prompts"):
            forward_packed(vlm, features, shared, questions.expand(2, -1, -1))
        return
    states = forward_packed(vlm, features, shared, questions.expand(2, -1, -1))
    logits = vlm.model.get_output_embeddings()(states)[:, :, -1]
    for number, question in enumerate(questions):
        ids = torch.tensor([*vlm.bos_ids, *vlm.image_ids(images), *shared, *question]).expand(2, -1)
        alone = vlm.model(**vlm.forward_inputs(ids, images)).logits[:, -1]
        assert torch.allclose(logits[:, number], alone, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_classes_that_hide_their_image_tokens_are_refused_in_one_line(hub, name):
    with pytest.raises(UserError, match="BlipForConditionalGeneration|Blip2.* is not supported") as refused:
        checkpoint.load(hub(name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ADMITTED)
@torch.no_grad()
def test_several_frames_are_several_images(hub, name):
    vlm, stacks = checkpoint.load(hub(name), history=2), frames(2, history=2)
    scorer = CandidateScorer(vlm, vlm.action_prompt("Pong", NAMES), NAMES)
    images = vlm.preprocess(stacks)
    log_probs = scorer.log_probs(vlm.encode_images(images))
    answer = [*scorer.candidates[1], vlm.tokenizer.eos_token_id]
    expected = forced(vlm, images, vlm.action_prompt("Pong", NAMES), answer)
    assert torch.allclose(log_probs[:, 1], expected, atol=1e-4)
    stacks[:, 0] = 255 - stacks[:, 0]
    if name == "llava-sliding":  # its window ends before the earlier frame
        return
    assert not torch.allclose(scorer.log_probs(vlm.encode_images(vlm.preprocess(stacks))), log_probs, atol=1e-4)
