"""Scores and packed losses of every admitted class equal its own separate forward passes to 1e-4, by every path."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from experiments.model_classes.jobs import lacks_package
from experiments.model_classes.tasks import ACTIONS, GAME, LORA, noise_frames
from experiments.model_classes.tiny_checkpoints import CLASSES, write
from pretrain.pvp_prediction import grid_coordinates, predict_pixels
from pretrain.pvp_questions import PixelPromptFormat
from vlm import checkpoint
from vlm.decoding.batched_generate import generate_batch
from vlm.decoding.candidate_scoring import CandidateScorer, prompt_ids
from vlm.decoding.packing import forward_packed, forward_packed_answers, forward_packed_tree, pad_token_lists
from vlm.decoding.prefix import reason_against_sharing
from vlm.image_tokens import image_tokens
from vlm.segmentation.point_prediction import PointPromptFormat, PointSampler
from vlm.training.lora import add_lora

REFUSED = ("blip2", "instructblip")
UNSHARED = ("llava-sliding", "paligemma", "paligemma2", "gemma3")
SUFFIXES = [[[40, 41, 42], [43, 44], [45, 46, 47]], [[48, 49], [40, 50, 51], [52, 53, 54]]]
SHARED = [30, 31]
pytestmark = pytest.mark.usefixtures("spelled_numbers")


def classes(names):
    """Parameters of the classes that can be made here."""
    lacks = {name: lacks_package(name) for name in names}
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(package), reason=f"it needs {package}"))
        for name, package in lacks.items()
    ]


def slow(*ways):
    return [pytest.param(way, marks=pytest.mark.slow) for way in ways]


ADMITTED = classes(name for name in CLASSES if name not in REFUSED)
SHARING = classes(name for name in CLASSES if name not in (*REFUSED, *UNSHARED))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function that loads a class's checkpoint, which is written once."""
    written = {}

    def find(name, **options):
        if name not in written:
            written[name] = write(name, tmp_path_factory.mktemp(name) / "model")
        return checkpoint.load(written[name], **options)

    return find


def answer_loss(vlm, images, prompt, answer):
    """The negative log-likelihood of an answer after a prompt, by the class's own forward pass, image by image."""
    count = len(answer)
    ids = torch.tensor([*prompt, *answer]).expand(images.num_images, -1)
    logits = vlm.model(**vlm.forward_inputs(ids, images, count)).logits[:, -count - 1 : -1].float()
    return functional.cross_entropy(logits.transpose(1, 2), ids[:, -count:], reduction="none").sum(1)


def whole_prompt(vlm, images, *tokens):
    """The ids of a packed prompt about an image, for the class's own forward pass."""
    return [*vlm.bos_ids, *vlm.image_ids(images), *(token for part in tokens for token in part)]


def in_training(vlm, way):
    """Set a model up as a training does in this way."""
    vlm.model.train()
    if way == "checkpointing":
        vlm.model.gradient_checkpointing_enable()
    if way == "lora":
        torch.manual_seed(0)
        add_lora(vlm, LORA["lora_rank"])
        vlm.encoder.requires_grad_(True)
    if way == "eager":
        vlm.set_attn_implementation("eager")
    return vlm


@pytest.mark.parametrize("way", ["eager", *slow("sdpa", "checkpointing")])
@pytest.mark.parametrize("name", ADMITTED)
def test_the_loss_of_cloning_and_its_gradient_are_those_of_separate_passes(load, name, way):
    found, expected = (in_training(load(name), way) for _ in range(2))
    images, prompt = found.preprocess(noise_frames(2)), found.action_prompt(GAME, ACTIONS)
    scorer = CandidateScorer(found, prompt, ACTIONS)
    losses = -scorer.log_probs(found.encode_images(images))
    ids, end = prompt_ids(expected, prompt, expected.image_ids(images)), expected.tokenizer.eos_token_id
    separate = torch.stack([answer_loss(expected, images, ids, [*c, end]) for c in scorer.candidates], dim=1)
    assert torch.allclose(losses, separate, atol=1e-4)
    require_same_gradients(found, losses.mean(), expected, separate.mean())


def require_same_gradients(found, found_loss, expected, expected_loss):
    """Require the gradients of two models to agree, those of the encoder included."""
    found_loss.backward()
    expected_loss.backward()
    own, other = (dict(vlm.model.named_parameters()) for vlm in (found, expected))
    names = [name for name, parameter in other.items() if parameter.grad is not None]
    assert [name for name in own if own[name].grad is not None] == names
    flat = [torch.cat([parameters[name].grad.flatten() for name in names]) for parameters in (own, other)]
    assert (flat[0] - flat[1]).norm() < 1e-4 * flat[1].norm()
    encoder = [parameter.grad.norm() for parameter in found.encoder.parameters() if parameter.grad is not None]
    assert max(encoder) > 0


PACKED = {
    "cache": partial(forward_packed, method="cache"),
    "mask": partial(forward_packed, method="mask"),
    "checkpointing": forward_packed,
    "lora": forward_packed,
}


@pytest.mark.parametrize("way", ["answers", *slow(*PACKED)])
@pytest.mark.parametrize("name", SHARING)
def test_packed_losses_and_their_gradients_are_those_of_separate_passes(load, name, way):
    found, expected = (in_training(load(name), way) for _ in range(2))
    images, shared = found.preprocess(noise_frames(2)), torch.tensor(SHARED)
    suffixes, lengths = pad_token_lists(SUFFIXES, pad=0)
    labelled = torch.arange(suffixes.shape[2] - 1) < lengths[..., None] - 1
    features, inputs = found.encode_images(images), suffixes[..., :-1]
    if way == "answers":
        states, _ = forward_packed_answers(found, features, shared, inputs, labelled)
    else:
        states = PACKED[way](found, features, shared, inputs)[labelled]
    logits = found.model.get_output_embeddings()(states).float()
    loss = functional.cross_entropy(logits, suffixes[..., 1:][labelled], reduction="sum")
    separate = torch.stack([
        answer_loss(expected, images, whole_prompt(expected, images, SHARED, row[number][:1]), row[number][1:])[image]
        for image, row in enumerate(SUFFIXES)
        for number in range(len(row))
    ]).sum()  # fmt: skip
    count = int(labelled.sum())
    assert loss.item() / count == pytest.approx(separate.item() / count, abs=1e-4)
    require_same_gradients(found, loss, expected, separate)


@pytest.mark.parametrize("name", SHARING)
@torch.no_grad()
def test_questions_about_expressions_get_the_logits_of_separate_passes(load, name):
    vlm, shared = load(name), torch.tensor(SHARED)
    images, (prefixes, lengths) = vlm.preprocess(noise_frames(2)), pad_token_lists([[[40, 41, 42], [43]]] * 2, pad=0)
    suffixes = torch.tensor([[[[60, 61], [62, 63]]] * 2] * 2)  # [B, E, K, L]
    states = forward_packed_tree(vlm, vlm.encode_images(images), shared, prefixes, lengths, suffixes)
    logits = vlm.model.get_output_embeddings()(states)[:, :, :, -1]
    for expression in range(2):
        words = prefixes[0, expression, : lengths[0, expression]].tolist()
        for point in range(2):
            ids = torch.tensor(whole_prompt(vlm, images, SHARED, words, suffixes[0, 0, point].tolist())).expand(2, -1)
            alone = vlm.model(**vlm.forward_inputs(ids, images)).logits[:, -1]
            assert torch.allclose(logits[:, expression, point], alone, atol=1e-4)


@pytest.mark.parametrize("name", SHARING)
@torch.no_grad()
def test_points_get_the_logits_of_separate_passes(load, name):
    vlm = load(name)
    images, prompts = vlm.preprocess(noise_frames(1)), PointPromptFormat.of(vlm)
    found = PointSampler(vlm, vlm.encode_images(images), prompts, "the red ghost").point_logits(torch.tensor([[0, 2]]))
    words = [*prompts.shared.tolist(), *prompts.expression_tokens("the red ghost"), *prompts.point_tokens(0, 2)]
    ids = torch.tensor([whole_prompt(vlm, images, words)])
    no, yes = vlm.model(**vlm.forward_inputs(ids, images)).logits[0, -1, prompts.answers]
    assert float(found) == pytest.approx(float(yes - no), abs=1e-4)


@pytest.mark.parametrize("name", SHARING)
@torch.no_grad()
def test_answers_about_pixels_are_those_of_generation_one_by_one(load, name):
    vlm, most = load(name), 4
    stack, form = noise_frames(1), PixelPromptFormat.from_model(vlm)
    images, coordinates = vlm.preprocess(stack), grid_coordinates(2, 2)
    questions, lengths = pad_token_lists([form.question_ids(coordinates)], form.pad_token_id)
    answers = generate_batch(vlm, vlm.encode_images(images), form.prefix_ids, questions, most, lengths)[0].tolist()
    for question, answer in zip(form.question_ids(coordinates), answers, strict=True):
        ids = torch.tensor([whole_prompt(vlm, images, form.prefix_ids.tolist(), question)])
        alone = vlm.model.generate(**vlm.forward_inputs(ids, images), max_new_tokens=most, do_sample=False)
        own = alone[0, ids.shape[1] :].tolist()
        assert answer[: len(own)] == own
    prediction = predict_pixels(vlm, stack[0], coordinates, form, chunk=3)
    assert prediction.greedy.shape == (4, 3)
    assert np.isin(prediction.greedy, range(-1, 256)).all()


@pytest.mark.parametrize(
    ("name", "most", "tokens"),
    [
        ("llava", 16, 32),
        ("idefics3", 40, 40),
        ("smolvlm2", 40, 40),
        ("internvl", 20, 40),
        ("llava-next", 72, 144),
        ("llava-onevision", 72, 34),  # it takes several images whole, without tiles
        ("qwen2-vl", 40, 70),
        ("qwen2.5-vl", 40, 70),
        ("qwen3-vl", 40, 70),
    ],
)
@torch.no_grad()
def test_several_frames_of_several_tiles_are_scored_and_asked_exactly(load, name, most, tokens):
    vlm = load(name, history=2, image_tokens=most)
    images, prompt = vlm.preprocess(noise_frames(2, history=2)), vlm.action_prompt(GAME, ACTIONS)
    assert image_tokens(vlm) == tokens
    features, scorer, end = vlm.encode_images(images), CandidateScorer(vlm, prompt, ACTIONS), vlm.tokenizer.eos_token_id
    ids = prompt_ids(vlm, prompt, vlm.image_ids(images))
    separate = torch.stack([answer_loss(vlm, images, ids, [*c, end]) for c in scorer.candidates], dim=1)
    assert torch.allclose(-scorer.log_probs(features), separate, atol=1e-4)
    states = forward_packed(vlm, features, torch.tensor(SHARED), torch.tensor([[[40, 41], [42, 43]]] * 2))
    logits = vlm.model.get_output_embeddings()(states)[:, :, -1]
    for number, question in enumerate(([40, 41], [42, 43])):
        whole = torch.tensor(whole_prompt(vlm, images, SHARED, question)).expand(2, -1)
        assert torch.allclose(
            logits[:, number], vlm.model(**vlm.forward_inputs(whole, images)).logits[:, -1], atol=1e-4
        )


def test_a_decoder_that_reads_the_image_in_deeper_layers_otherwise_than_known_shares_no_prefix(load):
    vlm = load("qwen3-vl")
    assert reason_against_sharing(vlm.model) is None
    assert len(vlm.encode_images(vlm.preprocess(noise_frames(1))).deep_tokens) == 1
    vlm.model.config.model_type = "another"
    assert "reads the image in deeper layers too" in reason_against_sharing(vlm.model)
    assert vlm.encode_images(vlm.preprocess(noise_frames(1))).deep_tokens == ()
