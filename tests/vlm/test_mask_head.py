"""The mask head reads the encoder's maps and the expression's states, trains both, and is stored beside its model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from common.errors import UserError
from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.presets import build
from vlm.segmentation.encoder_maps import dense_patch_embedding, encoder_maps
from vlm.segmentation.mask_head import MaskHead, expression_states, expression_tokens
from vlm.segmentation.referring_segmenter import ReferringSegmenter, load_segmenter

EXPRESSIONS = [["the red ghost", "the left-most duck"], ["the gun", "the red object above the gun"]]


def scene(seed=0, history=2):
    """Two squares at random places: frames uint8[2, history, 210, 160, 3], masks bool[2, 2, 210, 160]."""
    rng = np.random.default_rng(seed)
    frames, masks = np.zeros((2, history, 210, 160, 3), np.uint8), np.zeros((2, 2, 210, 160), bool)
    for image in range(2):
        for number, color in enumerate(((200, 72, 72), (66, 158, 130))):
            top, left = rng.integers(0, 80) + 110 * number, rng.integers(0, 130)
            frames[image, :, top : top + 16, left : left + 16] = color
            masks[image, number, top : top + 16, left : left + 16] = True
    return frames, torch.from_numpy(masks)


def encode(vlm, pixels):
    return vlm.encode_images(pixels, output_hidden_states=True)


@pytest.fixture(params=["tiny", "tiny-clip"])
def parts(request):
    vlm = build(request.param, seed=1)
    torch.manual_seed(0)
    return vlm, MaskHead.of(vlm, hidden_channels=16)


def test_maps_are_the_encoders_last_of_each_size_the_finest_first():
    vlm = build("tiny")
    pixels = vlm.preprocess(scene()[0])
    assert [tuple(found.shape) for found in encoder_maps(vlm, encode(vlm, pixels))] == [
        (2, 16, 56, 40), (2, 16, 28, 20), (2, 16, 14, 10), (2, 32, 7, 5),
    ]  # fmt: skip
    with pytest.raises(UserError, match="expected features with the encoder's hidden states"):
        encoder_maps(vlm, vlm.encode_images(pixels))


@torch.no_grad()
def test_a_coarse_patch_embedding_is_applied_again_at_a_smaller_stride():
    vlm = build("tiny-clip", seed=1)
    pixels = vlm.preprocess(scene(history=1)[0])
    dense, middle, last = encoder_maps(vlm, encode(vlm, pixels))
    assert (dense.shape, middle.shape, last.shape) == ((2, 32, 36, 36), (2, 32, 6, 6), (2, 32, 6, 6))
    embedding = vlm.encoder.embeddings.patch_embedding
    assert torch.allclose(dense_patch_embedding(embedding, pixels)[:, :, 2, 3], dense[:, :, 2, 3])
    shifted = functional.pad(pixels, (15, 0, 15, 0))[..., :216, :216]  # patches of 36 around cells of 6
    assert torch.allclose(embedding(shifted), dense[:, :, ::6, ::6], atol=1e-5)


@torch.no_grad()
def test_padding_is_cropped_and_the_images_mask_is_the_same(parts):
    vlm, head = parts
    pixels, (height, width) = vlm.preprocess(scene(history=vlm.history)[0][:, :, :120, :100]), (120, 100)
    features = encode(vlm, pixels)
    states = expression_states(vlm, features, *expression_tokens(vlm.tokenizer, EXPRESSIONS))
    whole, cut = encoder_maps(vlm, features), encoder_maps(vlm, features, (height, width))
    assert cut[0].shape[3] < whole[0].shape[3]
    assert all(torch.equal(one, other) for one, other in zip(cut[1:], whole[1:], strict=True))
    found, truth = (head(seen, *states)[..., :height, :width] for seen in (cut, whole))
    assert torch.allclose(found, truth, atol=1e-5)
    assert float(truth.std()) > 1e-3


@torch.no_grad()
def test_position_comes_from_the_sinusoids_alone(parts):
    vlm, head = parts
    head.controller.weight.zero_()
    head.controller.bias.zero_()
    head.controller.bias[head.config.pixel_features] = (
        5.0  # half a period down the image: the sine is 1 in the middle, 0 at the ends
    )
    pixels = vlm.preprocess(scene(history=vlm.history)[0])
    features = encode(vlm, pixels)
    states = expression_states(vlm, features, *expression_tokens(vlm.tokenizer, EXPRESSIONS))
    logits = head(encoder_maps(vlm, features), *states)
    assert torch.allclose(logits, logits[:1, :1, :, :1])
    middle = logits.shape[2] // 2
    assert torch.allclose(logits[0, 0, [0, middle], 0], torch.tensor([0.0, 5.0]))


def test_logits_cover_every_pixel_and_gradients_reach_encoder_and_decoder(parts):
    vlm, head = parts
    pixels = vlm.preprocess(scene(history=vlm.history)[0])
    features = encode(vlm, pixels)
    states = expression_states(vlm, features, *expression_tokens(vlm.tokenizer, EXPRESSIONS))
    logits = head(encoder_maps(vlm, features), *states)
    assert logits.shape == (2, 2, *pixels.shape[2:])
    logits.square().mean().backward()
    for part in (vlm.encoder, vlm.decoder, head):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0


@torch.no_grad()
def test_expressions_in_one_batch_get_the_masks_that_each_gets_alone(parts):
    vlm, head = parts
    segmenter, image = ReferringSegmenter(vlm, head), scene(history=vlm.history)[0][0]
    together = segmenter.predict(image, EXPRESSIONS[1])
    alone = [segmenter.predict(image, [words])[0] for words in EXPRESSIONS[1]]
    assert together.shape == (2, 210, 160)
    assert np.abs(together - np.stack(alone)).max() < 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-4


@pytest.mark.slow
def test_one_batch_is_overfitted_by_expression(tmp_path):
    vlm = build("tiny", seed=0)
    torch.manual_seed(0)
    head = MaskHead.of(vlm, hidden_channels=16)
    frames, masks = scene()
    pixels, words = vlm.preprocess(frames), ["the red object", "the cyan object"]
    tokens = expression_tokens(vlm.tokenizer, [words] * 2)
    optimizer = torch.optim.AdamW([*vlm.model.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(400):
        features = encode(vlm, pixels)
        logits = head(encoder_maps(vlm, features), *expression_states(vlm, features, *tokens))[..., :210, :160]
        loss = functional.binary_cross_entropy_with_logits(logits, masks.float(), pos_weight=torch.tensor(4.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    segmenter = ReferringSegmenter(vlm, head)
    shown = np.stack([segmenter.predict(frame, words) for frame in frames]) > 0.5
    truth = masks.numpy()
    assert (shown & truth).sum() / (shown | truth).sum() > 0.9


def test_an_image_is_resized_to_the_training_size_and_its_mask_back(parts):
    vlm, head = parts
    segmenter = ReferringSegmenter(vlm, head, size=(96, 64))
    image = np.random.default_rng(0).integers(0, 256, (1, 301, 200, 3), dtype=np.uint8)
    found = segmenter.predict(image, EXPRESSIONS[0])
    assert found.shape == (2, 301, 200)
    assert 0 <= found.min() <= found.max() <= 1


def test_a_head_is_stored_beside_its_model_which_plain_transformers_loads(parts, tmp_path):
    vlm, head = parts
    checkpoint.save(vlm, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"expected a checkpoint trained on masks \(`pretrain.referring`\), got"):
        load_segmenter(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"with a mask head, mask_head\.safetensors and mask_head\.json, got"):
        MaskHead.load(tmp_path / "run")
    head.save(tmp_path / "run")
    image = scene(history=vlm.history)[0][0]
    segmenter = load_segmenter(tmp_path / "run")
    assert segmenter.method == "mask head"
    assert np.array_equal(
        segmenter.predict(image, EXPRESSIONS[0]), ReferringSegmenter(vlm, head).predict(image, EXPRESSIONS[0])
    )
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_a_head_of_another_version_is_refused(parts, tmp_path):
    _, head = parts
    head.save(tmp_path)
    weights = {name.replace("controller.", "controller.1."): tensor for name, tensor in head.state_dict().items()}
    save_file(weights, tmp_path / "mask_head.safetensors")
    with pytest.raises(CheckpointError, match=r"mask_head\.safetensors is no mask head of this version"):
        MaskHead.load(tmp_path)
    (tmp_path / "mask_head.json").write_text('{"channels": [4], "strides": [4], "decoder_dim": 8, "smooth": 3}')
    with pytest.raises(CheckpointError, match=r"is no mask head of this version: .*smooth"):
        MaskHead.load(tmp_path)


def test_files_of_version_0_1_are_read(parts, tmp_path):
    _, head = parts
    old_modules = {"lateral_convs": "sides", "conv_blocks": "near", "subpixel_conv": "unfold", "expression_mlp": "word"}

    def old_name(name):
        first, rest = name.replace("controller", "query").split(".", 1)
        rest = rest.replace("conv", "mix" if first == "lateral_convs" else "look")
        return f"{old_modules.get(first, first)}.{rest}"

    config = head.config
    old_config = {
        "widths": config.channels, "strides": config.strides, "state": config.decoder_dim,
        "width": config.hidden_channels, "fine": config.pixel_features, "waves": config.num_frequencies,
    }  # fmt: skip
    save_file(
        {old_name(name): tensor for name, tensor in head.state_dict().items()}, tmp_path / "mask_head.safetensors"
    )
    (tmp_path / "mask_head.json").write_text(json.dumps(old_config))
    loaded = MaskHead.load(tmp_path)
    assert loaded.config == config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in head.state_dict().items())
