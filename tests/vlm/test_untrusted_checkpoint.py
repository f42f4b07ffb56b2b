"""A checkpoint from anyone runs no code, asks nothing, and plays with its own finite weights or not at all."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from agents.vlm_agent import VlmAgent
from common.command import run
from common.errors import UserError
from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.presets import build
from vlm.segmentation.mask_head import MaskHead
from vlm.segmentation.referring_segmenter import load_segmenter
from vlm.tokenizer import build_tokenizer

CODE = "raise SystemExit('code of a checkpoint ran')\n"
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of ours, one of transformers' own files, and one with a mask head."""
    root, tokenizer, vlm = tmp_path_factory.mktemp("saved"), build_tokenizer(), build("tiny", seed=4)
    checkpoint.save(vlm, root / "ours", {"games": ["Carnival"]})
    checkpoint.save(vlm, root / "masks", export=MaskHead.of(vlm).save)
    vision = CLIPVisionConfig(image_size=28, patch_size=7, **TEXT)
    text = LlamaConfig(vocab_size=len(tokenizer), **TEXT)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image)
    LlavaForConditionalGeneration(config).save_pretrained(root / "others")
    pictures = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(pictures, tokenizer, patch_size=7).save_pretrained(root / "others")
    return root


@pytest.fixture(params=["ours", "others"])
def directory(request, saved, tmp_path):
    """A copy of a checkpoint of each kind, to be changed."""
    return shutil.copytree(saved / request.param, tmp_path / request.param)


@pytest.fixture
def ours(saved, tmp_path):
    return shutil.copytree(saved / "ours", tmp_path / "ours")


def change(file, **values):
    """Set entries of a JSON file; a dict is merged into the one that is there."""
    content = json.loads(file.read_text())
    for name, value in values.items():
        content[name] = content[name] | value if isinstance(value, dict) and name in content else value
    file.write_text(json.dumps(content))


def change_weights(file, edit):
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, {"format": "pt"})


def refuse_to_ask(*_):
    raise AssertionError("a question on stdin")


def test_unchanged_copies_load(directory):
    checkpoint.load(directory)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_checkpoint_that_asks_to_run_its_own_code_is_refused_without_a_prompt(directory, file, monkeypatch):
    (directory / "own.py").write_text(CODE)
    kinds = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"), "own.Own")
    change(directory / file, auto_map=kinds | {"AutoTokenizer": ["own.Own", None]}, model_type="own")
    monkeypatch.setattr("builtins.input", refuse_to_ask)
    with pytest.raises(CheckpointError, match=rf"{file} asks to run code of its own \(auto_map\)"):
        checkpoint.load(directory)


def test_code_and_kernels_named_within_a_part_are_refused(ours):
    change(ours / "config.json", text_config={"auto_map": {"AutoConfig": "own.Own"}})
    with pytest.raises(CheckpointError, match="code of its own"):
        checkpoint.load(ours)
    change(ours / "config.json", text_config={"auto_map": None, "attn_implementation": "owner/kernel"})
    with pytest.raises(CheckpointError, match="code of its own"):
        checkpoint.load(ours)


def test_no_loader_may_run_code():
    """Every call of transformers' loaders in the repository says so."""
    calls = [
        (file.name, call)
        for room in ("agents", "envs", "vlm", "pretrain", "experiments")
        for file in (Path(__file__).parents[2] / room).rglob("*.py")
        for call in file.read_text().split(".from_pretrained(")[1:]
        if not call.startswith(("DIR)", "`"))  # prose
    ]
    assert len(calls) == 7
    for file, call in calls:
        assert "trust_remote_code=False" in call[:200], file


def test_pickled_weights_are_not_read(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load(directory)


def test_an_adapter_is_refused_by_its_name(directory):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "owner/model", "r": 4}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json, an adapter of peft: merge it"):
        checkpoint.load(directory)
    for file in directory.glob("*.*"):
        if not file.name.startswith("adapter"):
            file.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json, an adapter of peft: merge it"):
        checkpoint.load(directory)


@pytest.mark.parametrize("prefix", ["", "base."])
def test_weights_that_are_missing_or_under_a_prefix_are_refused(directory, prefix):
    def edit(weights):
        for name in [name for name in weights if "layers.1." in name or "stages.1." in name or "layers.0." in name]:
            tensor = weights.pop(name)
            if prefix:
                weights[prefix + name] = tensor

    change_weights(directory / "model.safetensors", edit)
    with pytest.raises(CheckpointError, match=r"lacks \d* ?weights of its model|does not fit its config\.json"):
        checkpoint.load(directory)


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 500}, {"vocab_size": 10**9}, {"hidden_size": 2**20}])
def test_a_model_larger_than_its_weights_is_refused_before_it_takes_memory(ours, sizes):
    change(ours / "config.json", text_config=sizes)
    with pytest.raises(CheckpointError, match=r"lacks weights of its model: [\d,]+ are needed, [\d,]+ are stored"):
        checkpoint.load(ours)
    change(ours / "config.json", text_config={"num_hidden_layers": 10**6})
    with pytest.raises(CheckpointError, match=r"at most 1000 num_hidden_layers, got 1000000"):
        checkpoint.load(ours)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_tensor(directory, value):
    names = sorted(load_file(directory / "model.safetensors"))
    name = next(name for name in names if name.endswith("layers.0.mlp.up_proj.weight"))
    change_weights(directory / "model.safetensors", lambda weights: weights[name][:1, :1].fill_(value))
    with pytest.raises(CheckpointError, match=r"finite weights, got NaN or infinity in \S+layers\.0\.mlp\.up_proj"):
        checkpoint.load(directory)


def test_probabilities_that_overflow_are_no_score(ours):
    change_weights(
        ours / "model.safetensors", lambda weights: [t.mul_(1e30) for t in weights.values() if t.is_floating_point()]
    )
    agent = VlmAgent(checkpoint.load(ours), "Carnival", ("noop", "fire"))
    agent.reset([1])
    with pytest.raises(UserError, match="expected probabilities of the model, got NaN"):
        agent.act(np.full((1, 210, 160, 3), 200, np.uint8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"history": 0}, "history: .* greater than or equal to 1, got 0"),
        ({"history": -1}, "history: .* got -1"),
        ({"history": 10**9}, "history: .* got 1000000000"),
        ({"history": "2"}, "history: .* valid integer, got '2'"),
        ({"history": 3}, "does not fit config.json: its images have channels 11, its model takes 8"),
        ({"stride": 0}, "stride: .* got 0"),
        ({"square_size": 0}, "square_size: .* got 0"),
        ({"frame_diff_scale": float("nan")}, "frame_diff_scale: .* finite number"),
        ({"coordinate_channels": 2}, "coordinate_channels: .* boolean, got 2"),
        ({"strides": 32}, "strides: unexpected"),
    ],
)
def test_image_settings_of_other_kinds_are_refused(ours, fields, message):
    change(ours / "pvplay.json", **fields)
    with pytest.raises(CheckpointError, match=rf"pvplay\.json .*{message}"):
        checkpoint.load(ours)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"play": {"temperature": "nan"}}, "play.temperature: .* valid number, got 'nan'"),
        ({"play": {"temperature": float("inf")}}, "play.temperature: .* finite"),
        ({"play": {"temperature": -1}}, "play.temperature: .* greater than or equal to 0"),
        ({"play": []}, "play: .* object"),
        ({"games": "Pong"}, "games: .* array"),
        ({"arguments": {"size": [210]}}, "arguments.size: .* at least 2 items"),
        ({"arguments": {"size": [10**9, 1]}}, "arguments.size.0: .* got 1000000000"),
        ({"point_grid": 0}, "point_grid: .* got 0"),
        ({"logit_bias": "1"}, "logit_bias: .* valid number"),
        ({"started_from": {"play": {"temperature": "x"}}}, "started_from.play.temperature"),
    ],
)
def test_training_metadata_of_other_kinds_is_refused(ours, fields, message):
    change(ours / "training.json", **fields)
    with pytest.raises(CheckpointError, match=rf"training\.json is damaged: .*{message}"):
        checkpoint.read_training(ours)


@pytest.mark.parametrize("file", ["pvplay.json", "training.json", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, "5", "", "\xff", '{"a": 1'])
def test_files_of_other_content_are_damaged(ours, file, content):
    (ours / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"{file} is damaged"):
        checkpoint.read_training(ours) if file == "training.json" else checkpoint.load(ours)


@pytest.mark.parametrize("value", [None, [], "x", 0, -1, {"model_type": "own"}])
@pytest.mark.parametrize("name", ["text_config", "vision_config", "model_type", "image_token_index"])
def test_configurations_of_other_kinds_end_in_one_line(ours, name, value, capsys):
    content = json.loads((ours / "config.json").read_text())
    (ours / "config.json").write_text(json.dumps({**content, name: value}))
    if run(lambda: 0 if checkpoint.load(ours) else 1):
        assert re.search(rf"^error: .*{ours}.*\n\Z", capsys.readouterr().err, re.MULTILINE)


def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused(ours):
    build_tokenizer([f"word{i}" for i in range(50)]).save_pretrained(ours)
    with pytest.raises(CheckpointError, match="expected at most 404 tokens, got the token 45"):
        checkpoint.load(ours)


def test_a_token_beyond_the_embeddings_is_refused_whatever_their_number(ours):
    content = json.loads((ours / "tokenizer.json").read_text())
    content["model"]["vocab"]["the"] = 10**6
    (ours / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="expected at most 404 tokens, got the token 1000000"):
        checkpoint.load(ours)


@pytest.mark.parametrize("value", ["x", 0.5, 404, -2, [2, "x"], True, [[2]]])
@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_tokens_that_end_an_answer_are_checked(ours, name, value):
    content = json.loads((ours / "generation_config.json").read_text())
    (ours / "generation_config.json").write_text(json.dumps({**content, name: value}))
    with pytest.raises(CheckpointError, match=f"damaged: .*({name}|not supported)"):
        checkpoint.load(ours)


@pytest.mark.parametrize(
    "fields", [{"hidden_channels": 10**9}, {"channels": []}, {"strides": [0, 1, 2]}, {"channels": "x"}, {"other": 1}]
)
def test_a_mask_head_of_other_sizes_is_refused(saved, tmp_path, fields):
    directory = shutil.copytree(saved / "masks", tmp_path / "masks")
    assert MaskHead.load(directory).config.channels
    change(directory / "mask_head.json", **fields)
    with pytest.raises(CheckpointError, match="is no mask head of this version"):
        MaskHead.load(directory)
    (directory / "mask_head.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"mask_head\.json is damaged"):
        MaskHead.load(directory)


def test_a_mask_head_of_another_model_is_refused(saved, tmp_path):
    directory = shutil.copytree(saved / "masks", tmp_path / "masks")
    assert load_segmenter(directory).head
    checkpoint.save(build("tiny-clip"), tmp_path / "other", {"games": []})
    for name in ("mask_head.json", "mask_head.safetensors"):
        shutil.copy(directory / name, tmp_path / "other" / name)
    with pytest.raises(CheckpointError, match=r"mask_head\.json does not fit its model"):
        load_segmenter(tmp_path / "other")


def test_settings_that_transformers_takes_and_cannot_compute_are_refused(saved, tmp_path):
    checkpoint.save(build("tiny-clip"), tmp_path / "clip")
    change(tmp_path / "clip" / "config.json", vision_feature_layer=7)
    with pytest.raises(CheckpointError, match="is damaged: tuple index out of range"):
        checkpoint.load(tmp_path / "clip")
    directory = shutil.copytree(saved / "ours", tmp_path / "ours")
    change(directory / "tokenizer_config.json", model_max_length=[])
    with pytest.raises(CheckpointError, match="is damaged: "):
        checkpoint.load(directory)


def test_a_mask_head_that_is_not_finite_is_refused(saved, tmp_path):
    directory = shutil.copytree(saved / "masks", tmp_path / "masks")
    change_weights(directory / "mask_head.safetensors", lambda weights: weights["controller.bias"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"mask_head\.safetensors .* infinity in controller\.bias"):
        MaskHead.load(directory)
