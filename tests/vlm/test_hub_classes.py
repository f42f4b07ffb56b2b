"""Every class of other people's models, as its files lie on the hub: exact, or refused in one line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from agents import play, score
from agents.vlm_agent import VlmAgent
from common.command import run
from common.errors import UserError
from envs.protocol import PROTOCOLS
from experiments.model_classes.jobs import lacks_package
from experiments.model_classes.tiny_checkpoints import CHAT, CLASSES, write
from pretrain import reconstruct
from pretrain.pvp import train_pvp
from pretrain.pvp_config import CONFIGS as PVP_CONFIGS
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer, generate_text, prompt_ids
from vlm.decoding.openvino_scorer import OpenVinoScorer
from vlm.decoding.packing import forward_packed
from vlm.hf_processor import missing_package
from vlm.image_tokens import describe_image_input, image_tokens
from vlm.letterbox import pad_to_aspect_ratio, share_seen
from vlm.presets import build
from vlm.prompts import IMAGE, action_prompt

REFUSED = ("blip2", "instructblip")
UNSHARED = ("llava-sliding", "paligemma", "paligemma2", "gemma3")  # prompts cannot share a prefix
ADMITTED = [
    pytest.param(name, marks=pytest.mark.skipif(bool(lacks_package(name)), reason=f"it needs {lacks_package(name)}"))
    for name in CLASSES
    if name not in REFUSED
]
pytestmark = pytest.mark.usefixtures("spelled_numbers")
TEXT_CHAT = "{% for one in messages %}{{ one['role'].upper() + ': ' + one['content'] }}{% endfor %} ASSISTANT:"
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


def test_a_graph_is_not_made_of_a_model_that_preprocesses_outside_of_torch(hub):
    vlm = checkpoint.load(hub("llava"))
    with pytest.raises(UserError, match="LlavaForConditionalGeneration brings its own preprocessing"):
        OpenVinoScorer(CandidateScorer(vlm, vlm.action_prompt("Pong", NAMES), NAMES), frames(1))


@pytest.mark.parametrize("name", ADMITTED)
def test_a_prompt_is_what_the_classs_processor_writes(hub, name):
    vlm = checkpoint.load(hub(name))
    stack, prompt = frames(1), vlm.action_prompt("Pong", NAMES)
    found = prompt_ids(vlm, prompt, vlm.image_ids(vlm.preprocess(stack)))
    before, after = (part.strip() for part in prompt.split(IMAGE))
    if name.startswith("paligemma"):  # its processor takes text before an image, its training had none
        prompt = f"{IMAGE}{before} {after}"
    text, image = prompt.replace(IMAGE, vlm._image_text), vlm.frame_processor._image(stack[0, 0])
    assert found == vlm.processor(text=[text], images=[[image]], return_tensors="pt")["input_ids"][0].tolist()


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


@pytest.mark.parametrize("name", UNSHARED)
def test_what_shares_a_prefix_is_refused_before_an_output_is_touched(hub, name, tmp_path):
    config = PVP_CONFIGS["default"].replace(init=hub(name), synthetic=1, grid="8", steps=1, out=tmp_path / "pvp")
    Image.fromarray(frames(1)[0, 0]).save(tmp_path / "frame.png")
    args = reconstruct.Args((hub(name),), tmp_path / "seen", (tmp_path / "frame.png",), grid="4")
    for refused in (lambda: train_pvp(config), lambda: reconstruct.reconstruct(args)):
        with pytest.raises(UserError, match="cannot share a prefix among prompts: ") as raised:
            refused()
        assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["frame.png"]


@pytest.mark.parametrize("name", REFUSED)
def test_classes_that_hide_their_image_tokens_are_refused_in_one_line(hub, name):
    with pytest.raises(UserError, match=r"Blip.*ForConditionalGeneration is not supported") as refused:
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


@pytest.fixture
def hub_id(hub, tmp_path, monkeypatch):
    """The id of a model in a hub's cache, without network."""
    cache, commit = tmp_path / "hub", "0" * 40
    place = cache / "models--owner--llava-tiny"
    shutil.copytree(hub("llava"), place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoint._snapshot.cache_clear()
    return "owner/llava-tiny"


def test_a_hub_id_is_hashed_before_play_and_its_result_kept(hub, hub_id, tmp_path, monkeypatch):
    order, hashed, played = [], checkpoint._hash_files, VlmAgent.act
    monkeypatch.setattr(checkpoint, "_hash_files", lambda files: order.append("hash") or hashed(files))
    monkeypatch.setattr(VlmAgent, "act", lambda *arguments: order.append("act") or played(*arguments))
    arguments = [
        "--game",
        "Carnival",
        "--checkpoint",
        hub_id,
        "--max-frames",
        "8",
        "--no-video",
        "--out",
        str(tmp_path),
    ]
    assert run(lambda: play.main(arguments)) == 0
    assert order[0] == "hash"
    (file,) = tmp_path.glob("Carnival-*.json")
    (row,) = json.loads(file.read_text())["rows"]
    assert row["checkpoint"] == checkpoint.content_hash(hub("llava"))
    assert row["steps"] == order.count("act") == 2


def test_a_hub_id_is_scored(hub, hub_id, tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(PROTOCOLS["machado2018"], max_episode_frames=16))
    out = tmp_path / "scores.json"
    arguments = ["--agents", f"vlm:{hub_id}", "--games", "Carnival", "--episodes", "1", "--out", str(out)]
    assert run(lambda: score.main(arguments)) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["checkpoint"] == checkpoint.content_hash(hub("llava"))


def test_an_id_that_is_not_to_be_had_is_one_line_before_play(hub_id, tmp_path, capsys):
    arguments = ["--game", "Carnival", "--checkpoint", "owner/other", "--no-video", "--out", str(tmp_path)]
    assert run(lambda: play.main(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a checkpoint directory or the id of a model on the hub, got owner/other" in line


def share_of_rows_seen(vlm):
    """The share of a frame's rows of pixels on which the model's input depends, by one row of three after the other."""
    black = np.zeros((1, 1, 210, 160, 3), np.uint8)
    unchanged = vlm.preprocess(black)["pixel_values"]
    changed, rows = 0, range(0, 210, 3)
    for row in rows:
        frame = black.copy()
        frame[:, :, row] = 255
        changed += not torch.equal(vlm.preprocess(frame)["pixel_values"], unchanged)
    return changed / len(rows)


def test_a_processor_that_cuts_out_the_center_gets_the_whole_frame(hub, monkeypatch):
    vlm = checkpoint.load(hub("llava"))
    vlm.processor.image_processor.size = {"shortest_edge": 336}  # as of LLaVA 1.5, so that single rows show
    vlm.processor.image_processor.crop_size = {"height": 336, "width": 336}
    assert share_of_rows_seen(vlm) == 1
    assert "16 image tokens a decision, 100% of a frame of 210 x 160 is seen" in describe_image_input(
        checkpoint.load(hub("llava"))
    )
    monkeypatch.setattr("vlm.hf_vlm.input_aspect_ratio", lambda processor: None)
    assert share_of_rows_seen(vlm) == pytest.approx(162 / 210, abs=0.02), "24 rows at each end are cut off otherwise"
    pixels = lambda frame: vlm.preprocess(frame[None, None])["pixel_values"].numpy()  # noqa: E731
    assert share_seen(pixels, 210, 160) == pytest.approx(share_of_rows_seen(vlm), abs=0.02)


def test_a_padded_frame_stands_in_the_middle_of_the_shape_asked_for():
    frame = np.full((210, 160, 3), 9, np.uint8)
    square = pad_to_aspect_ratio(frame, 1.0)
    assert square.shape == (210, 210, 3)
    assert np.array_equal(square[:, 25:185], frame)
    assert not square[:, :25].any()
    assert not square[:, 185:].any()
    assert pad_to_aspect_ratio(frame, 0.5).shape == (320, 160, 3)


@pytest.mark.parametrize(
    ("name", "most", "tokens"),
    [
        ("llava", None, 16),
        ("idefics3", None, 4),
        ("idefics3", 40, 20),
        ("smolvlm2", None, 4),
        ("internvl", None, 4),
        ("internvl", 20, 20),
        ("internvl", 19, 4),
        ("llava-next", None, 36),
        ("llava-next", 72, 72),
        ("llava-onevision", None, 36),
        ("qwen2-vl", None, 9),
        ("qwen2-vl", 40, 35),
        ("qwen3-vl", 6, 4),
    ],
)
def test_an_image_takes_one_tile_or_as_many_tokens_as_are_allowed(hub, name, most, tokens, tmp_path):
    vlm = checkpoint.load(hub(name), image_tokens=most)
    assert image_tokens(vlm) == tokens
    assert vlm.encode_images(vlm.preprocess(frames(2))).tokens.shape[:2] == (2, tokens)
    checkpoint.save(vlm, tmp_path / "saved")
    again = checkpoint.load(tmp_path / "saved")
    assert image_tokens(again) == tokens
    with torch.no_grad():
        one, two = (model.encode_images(model.preprocess(frames(1))).tokens for model in (vlm, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("name", "each"), [("idefics3", 20), ("qwen2-vl", 35), ("internvl", 20)])
def test_the_most_image_tokens_are_of_each_of_several_frames(hub, name, each):
    assert image_tokens(checkpoint.load(hub(name), image_tokens=40, history=2)) == 2 * each


def test_fewer_image_tokens_than_a_class_takes_are_refused(hub, tiny_preset):
    with pytest.raises(
        UserError, match="--image-tokens: LlavaForConditionalGeneration takes at least 16 a frame, got 6"
    ):
        checkpoint.load(hub("llava"), image_tokens=6)
    with pytest.raises(UserError, match="--image-tokens and --history are for models of transformers"):
        checkpoint.load(tiny_preset, image_tokens=6)


@pytest.fixture
def tiny_preset(tmp_path):
    """A checkpoint of a preset."""
    checkpoint.save(build("tiny", seed=1), tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_number_of_frames_passes_into_a_checkpoint(hub, tmp_path):
    checkpoint.save(checkpoint.load(hub("llava"), history=2), tmp_path / "saved")
    assert checkpoint.load(tmp_path / "saved").history == 2


def test_instruct_models_are_asked_in_their_chat_template(hub):
    vlm, plain = checkpoint.load(hub("llava")), checkpoint.load(hub("idefics3"))
    prompt = vlm.action_prompt("Pong", NAMES)
    assert prompt.startswith("USER: <image>You are playing the Atari game Pong. The legal actions are: noop, fire,")
    assert prompt.endswith("Answer with one of them only. ASSISTANT: ")
    assert plain.action_prompt("Pong", NAMES) == action_prompt("Pong", NAMES)
    before, after = vlm.prompt_ids(prompt)
    assert vlm.tokenizer.decode(before) == "<s>USER: "
    assert vlm.tokenizer.decode(after) == prompt.partition("<image>")[2]
    vlm.processor.chat_template = TEXT_CHAT
    assert vlm.action_prompt("Pong", NAMES).startswith("USER: <image>\nYou are playing the Atari game Pong.")
    vlm.processor.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(UserError, match="has no place for an image"):
        vlm.action_prompt("Pong", NAMES)
    vlm.processor.chat_template = "<s>" + CHAT
    assert vlm.prompt_ids(vlm.action_prompt("Pong", NAMES)) == (before, after)


def test_an_answer_may_end_as_a_turn_ends(hub):
    vlm = checkpoint.load(hub("llava"))
    vlm.model.generation_config.eos_token_id = [2, 40]
    assert vlm.end_ids == [2, 40]
    images, prompt = vlm.preprocess(frames(1)), vlm.action_prompt("Pong", NAMES)
    scorer = CandidateScorer(vlm, prompt, NAMES)
    with torch.no_grad():
        found = scorer.log_probs(vlm.encode_images(images))[:, 1]
        ends = [forced(vlm, images, prompt, [*scorer.candidates[1], end]) for end in (2, 40)]
    assert torch.allclose(found, torch.stack(ends).logsumexp(0), atol=1e-4)


def test_generated_answers_are_as_long_as_asked_for(hub, monkeypatch):
    vlm, asked = checkpoint.load(hub("llava")), []
    monkeypatch.setattr("agents.vlm_agent.generate_text", lambda *arguments: asked.append(arguments[3]) or ["Fire."])
    for most, expected in ((None, 32), (200, 200)):
        agent = VlmAgent(vlm, "Pong", NAMES, decode="generate", max_new_tokens=most)
        agent.reset([1])
        actions = agent.act(frames(1)[:, 0])
        assert asked.pop() == expected
        assert actions.indices.tolist() == [1]
        assert actions.texts == ("Fire.",)
        assert not actions.invalid.any()


def test_a_missing_package_is_named_with_what_installs_it(hub, monkeypatch):
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(
        UserError, match=r"needs the package num2words, which is not installed; pip install -e '.\[vlm\]'"
    ):
        checkpoint.load(hub("smolvlm2"))
    for text, name in (
        ("\nPixtralProcessor requires the Torchvision library but it was not found", "torchvision"),
        ("No module named 'timm'", "timm"),
    ):
        assert f"the package {name}, " in missing_package(ImportError(text))


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_a_processor_made_without_torchvision_keeps_its_settings_for_videos(hub, tmp_path):
    directory = shutil.copytree(hub("qwen2-vl"), tmp_path / "model")
    settings = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3}
    (directory / "video_preprocessor_config.json").write_text(json.dumps(settings))
    checkpoint.save(checkpoint.load(directory), tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "video_preprocessor_config.json").read_text()) == settings
    assert (
        json.loads((tmp_path / "saved" / "processor_config.json").read_text())["processor_class"] == "Qwen2VLProcessor"
    )
