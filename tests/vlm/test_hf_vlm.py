"""Pretrained models use their own processor, and packed prompts get the states of their own forward."""

import string

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from common.errors import UserError
from pretrain import pvp, reconstruct
from pretrain.pvp_config import CONFIGS
from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.decoding.candidate_scoring import CandidateScorer, generate_text, prompt_ids
from vlm.decoding.packing import forward_packed
from vlm.hf_vlm import PretrainedVLM, looks_like_id
from vlm.prompts import IMAGE, PIXEL_PREFIX
from vlm.segmentation.mask_head import MaskHead
from vlm.segmentation.referring_segmenter import ReferringSegmenter
from vlm.training.attention_supervision import require_attention_access
from vlm.training.mixture import MixtureDataset

TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "initializer_range": 0.2}  # fmt: skip
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PROMPT = f"{IMAGE} {PIXEL_PREFIX}3,4] rgb: ["


def tokenizer(*special, **named):
    """Letters and marks, with a token that begins every text, as Llama's."""
    words = ["<pad>", "<s>", "</s>", *special, *string.printable]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens(list(special))
    fast.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>",
        extra_special_tokens=named,
    )  # fmt: skip


def llava():
    words = tokenizer("<image>", image_token="<image>")
    text = LlamaConfig(vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=0, **TEXT)
    vision = CLIPVisionConfig(image_size=28, patch_size=7, **VISION)
    image = words.convert_tokens_to_ids("<image>")
    pictures = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        pictures, words, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image)
    return LlavaForConditionalGeneration(config), processor


def idefics3():
    special = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
    words = tokenizer(*special, image_token="<image>")
    text = {"model_type": "llama", "vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, **TEXT}
    config = Idefics3Config(
        vision_config={"image_size": 28, "patch_size": 7, **VISION}, text_config=text, scale_factor=2, pad_token_id=0,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 28}, max_image_size={"longest_edge": 28})
    return Idefics3ForConditionalGeneration(config), Idefics3Processor(pictures, words, image_seq_len=4)


@pytest.fixture(params=[llava, idefics3])
def model_dir(request, tmp_path):
    """A directory of transformers' own files, as a download would leave it."""
    torch.manual_seed(0)
    model, processor = request.param()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def frames(count=2):
    return np.random.default_rng(0).integers(0, 256, (count, 1, 40, 30, 3), dtype=np.uint8)


def plain_logits(vlm, frames, words):
    """The class's own forward over one whole prompt, as its processor and tokenizer write it."""
    images = [vlm.frame_processor._image(frame) for frame in frames[:, 0]]
    inputs = vlm.processor(text=[vlm._image_text], images=images, return_tensors="pt", add_special_tokens=False)
    ids = torch.tensor([[1, *inputs.pop("input_ids")[0].tolist(), *words]])
    inputs.pop("attention_mask")
    return vlm.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0, -1]


def test_attention_supervision_is_refused_where_the_positions_of_image_tokens_are_unknown(model_dir):
    with pytest.raises(UserError, match="a model of ours"):
        require_attention_access(checkpoint.load(model_dir))


@torch.no_grad()
def test_packed_prompts_get_the_logits_of_the_classs_own_forward(model_dir):
    vlm = checkpoint.load(model_dir)
    assert isinstance(vlm, PretrainedVLM)
    assert vlm.bos_ids == [1]
    shared = torch.tensor(vlm.tokenizer(PIXEL_PREFIX, add_special_tokens=False)["input_ids"])
    suffixes = [vlm.tokenizer(f"{n},7] rgb: [", add_special_tokens=False)["input_ids"] for n in (3, 4)]
    states = forward_packed(vlm, vlm.encode_images(vlm.preprocess(frames())), shared, torch.tensor([suffixes] * 2))
    head = vlm.model.get_output_embeddings()
    for image in range(2):
        for number in range(2):
            alone = plain_logits(vlm, frames()[image : image + 1], [*shared.tolist(), *suffixes[number]])
            assert torch.allclose(head(states[image, number, -1]), alone, atol=2e-5)


@torch.no_grad()
def test_candidates_get_the_log_probabilities_of_the_classs_own_forward(model_dir):
    vlm = checkpoint.load(model_dir)
    images, names = vlm.preprocess(frames(1)), ("up", "down")
    log_probs = CandidateScorer(vlm, f"{IMAGE} go :", names).log_probs(vlm.encode_images(images))[0]
    ids = prompt_ids(vlm, f"{IMAGE} go :", vlm.image_ids(images))
    for number, name in enumerate(names):
        answer = [*vlm.tokenizer(name, add_special_tokens=False)["input_ids"], 2]
        whole = torch.tensor([[*ids, *answer]])
        logits = vlm.model(input_ids=whole, attention_mask=torch.ones_like(whole), **images).logits[0].log_softmax(-1)
        wanted = sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(answer))
        assert float(log_probs[number]) == pytest.approx(float(wanted), abs=1e-4)


def test_it_generates_the_same_text_after_a_round_trip_through_a_checkpoint(model_dir, tmp_path):
    vlm = checkpoint.load(model_dir)
    assert checkpoint.read_training(model_dir) == {}
    answers = generate_text(vlm, vlm.preprocess(frames(2)), PROMPT, 3)
    assert len(answers) == 2
    checkpoint.save(vlm, tmp_path / "saved", {"note": "trained"})
    again = checkpoint.load(tmp_path / "saved")
    assert isinstance(again, PretrainedVLM)
    assert checkpoint.read_training(tmp_path / "saved") == {"note": "trained"}
    assert generate_text(again, again.preprocess(frames(2)), PROMPT, 3) == answers
    assert checkpoint.content_hash(tmp_path / "saved") == checkpoint.content_hash(model_dir)


def test_it_trains_and_evaluates_pvp_and_segments_by_points(model_dir, tmp_path):
    Image.fromarray(frames()[0, 0]).save(tmp_path / "frame.png")
    config = CONFIGS["default"].replace(
        out=tmp_path / "run", init=model_dir, synthetic=1, size=(40, 30), grid="8", images=2, questions=3,
        decoder="lora", lora_rank=2, steps=2, trainer=("save_steps=2", "warmup_steps=1", "dataloader_num_workers=0"),
    )  # fmt: skip
    last = pvp.train_pvp(config)
    updates = checkpoint.read_training(last)["parameter_updates"]
    assert all(updates[role]["changed"] > 0 for role in ("encoder", "connector", "decoder"))
    args = reconstruct.Args(
        image=(tmp_path / "frame.png",), checkpoint=(last,), grid="4", out=tmp_path / "reconstructions", chunk=16
    )
    rows = reconstruct.reconstruct(args)
    assert any(row.get("n") == 16 and row.get("parse_failure_rate") is not None for row in rows)
    with pytest.raises(UserError, match="whose maps a mask head cannot place"):
        MaskHead.of(checkpoint.load(last))
    probabilities = ReferringSegmenter(checkpoint.load(last), None, 3).predict(frames(1)[0], ["the red ghost"])
    assert probabilities.shape == (1, 40, 30)


def test_a_history_of_frames_and_invalid_directories_are_refused(model_dir, tmp_path):
    vlm = checkpoint.load(model_dir)
    with pytest.raises(UserError, match=r"expected frames uint8\[B, 1, H, W, 3\], got torch.uint8\[2, 2, 40, 30, 3\]"):
        vlm.preprocess(np.repeat(frames(), 2, axis=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="expected a checkpoint directory with pvplay"):
        checkpoint.load(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected a vision-language model of transformers at"):
        checkpoint.load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "is_one"), [("owner/model", True), ("runs/last", False), ("./a", False), ("a/b/c", False), ("/a", False)]
)
def test_an_id_has_an_owner_and_a_model(name, is_one):
    assert looks_like_id(name) == is_one


def test_a_mistyped_checkpoint_is_one_line_at_once(tmp_path, monkeypatch):
    asked = []

    def unknown(api, name, timeout):
        asked.append((name, timeout))
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unknown)
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda *_, **__: pytest.fail("asked for minutes"))
    message = "got nobody/x: there is no such directory, and the hub says: Name or service not known$"
    with pytest.raises(UserError, match=message):
        checkpoint.load("nobody/x")
    assert asked == [("nobody/x", 10)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match="expected a checkpoint directory, got models/x, which does not exist"):
        checkpoint.load("models/x")
    assert len(asked) == 1


def test_data_workers_run_the_processor_and_get_no_model(model_dir, tmp_path, modules_in, monkeypatch):
    config = CONFIGS["default"].replace(
        init=model_dir, synthetic=1, size=(40, 30), grid="8", images=2, questions=3, steps=2,
        trainer=("save_steps=9", "warmup_steps=0", "report_to=none", "dataloader_num_workers=0"),
    )  # fmt: skip
    mixture = pvp.pvp_mixture(checkpoint.load(model_dir), config)
    dataset = MixtureDataset(mixture, 2, seed=0)
    assert modules_in(dataset) == []
    batch = dataset[0].batches[0]
    expected = mixture.vlm.preprocess(batch.frames)
    moved = batch.to(torch.device("cpu")).images
    assert moved.keys() == expected.keys()
    assert all(torch.equal(moved[name], expected[name]) for name in expected)
    assert torch.equal(moved.image_ids, expected.image_ids)
    assert moved.num_images == 2
    alone = pvp.train_pvp(config.replace(out=tmp_path / "alone"))
    monkeypatch.setattr(PretrainedVLM, "preprocess", lambda *_: pytest.fail("the training itself ran the processor"))
    monkeypatch.setattr("vlm.training.fit.describe_image_input", lambda vlm: "")
    trainer = ("save_steps=9", "warmup_steps=0", "report_to=none", "dataloader_num_workers=2")
    helped = pvp.train_pvp(config.replace(out=tmp_path / "helped", trainer=trainer))
    monkeypatch.undo()
    one, other = (checkpoint.load(last).model.state_dict() for last in (alone, helped))
    assert all(torch.equal(one[name], other[name]) for name in one)
