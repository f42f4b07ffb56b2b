"""The small CLIP saves and loads as transformers' own, and its tower becomes a LLaVA's encoder tensor for tensor."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from common.errors import UserError
from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.clip import MAX_TEXT_LENGTH, build_clip, load_clip, load_vision_tower
from vlm.presets import build
from vlm.tokenizer import build_tokenizer

WORDS = ("frame", "owls", "three")
CLIP = build_clip("tiny-clip", build_tokenizer(WORDS), seed=1)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 1, 210, 160, 3), dtype=np.uint8)


def test_frames_are_padded_to_a_square_and_not_resized():
    pixels = CLIP.preprocess(FRAMES)
    assert pixels.shape == (2, 3, 216, 216)
    whole = (pixels * 256).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(whole[:, :210, :160], FRAMES[:, 0])
    assert (whole[:, 210:] == 0).all()
    assert (whole[:, :, 160:] == 0).all()


def test_a_frame_larger_than_the_square_is_refused():
    with pytest.raises(UserError, match="at most 216 rows and columns, got 250 x 160"):
        CLIP.preprocess(np.zeros((1, 1, 250, 160, 3), dtype=np.uint8))


def test_images_and_texts_are_unit_vectors_of_one_space():
    images, texts = CLIP.image_vectors(FRAMES), CLIP.text_vectors(CLIP.tokenize(["three owls", "a frame of owls"]))
    assert images.shape == texts.shape == (2, 128)
    assert torch.allclose(images.norm(dim=1), torch.ones(2))
    assert torch.allclose(texts.norm(dim=1), torch.ones(2))


def test_padding_does_not_change_a_texts_vector():
    alone = CLIP.text_vectors(CLIP.tokenize(["three owls"]))
    padded = CLIP.text_vectors(CLIP.tokenize(["three owls", "a frame of the game with three owls"]))
    assert torch.allclose(alone[0], padded[0], atol=1e-6)
    assert not torch.allclose(padded[0], padded[1], atol=1e-2)


def test_a_long_text_is_truncated_and_keeps_its_end():
    tokens = CLIP.tokenize(["owls " * 200])
    assert tokens.shape == (1, MAX_TEXT_LENGTH)
    assert tokens[0, -1] == CLIP.tokenizer.eos_token_id


def test_a_checkpoint_reloads_and_plain_transformers_loads_it(tmp_path):
    checkpoint.save(CLIP, tmp_path / "clip", {"seed": 1})
    loaded = load_clip(tmp_path / "clip")
    assert (loaded.history, loaded.image_config.square_size) == (1, 216)
    assert torch.equal(loaded.image_vectors(FRAMES), CLIP.image_vectors(FRAMES))
    tokens = CLIP.tokenize(["three owls"])
    assert torch.equal(loaded.tokenize(["three owls"]), tokens)
    one, other = loaded.model.state_dict(), CLIP.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert torch.allclose(loaded.text_vectors(tokens), CLIP.text_vectors(tokens), atol=1e-6)
    plain = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    theirs = plain.get_image_features(pixel_values=CLIP.preprocess(FRAMES)).pooler_output
    assert torch.equal(torch.nn.functional.normalize(theirs, dim=-1), CLIP.image_vectors(FRAMES))


def test_a_clip_is_no_vlm_and_a_vlm_no_clip(tmp_path):
    checkpoint.save(CLIP, tmp_path / "clip")
    checkpoint.save(build("tiny-clip"), tmp_path / "vlm")
    with pytest.raises(CheckpointError, match="expected a checkpoint of kind pvplay-vlm, got pvplay-clip"):
        checkpoint.load(tmp_path / "clip")
    with pytest.raises(CheckpointError, match="expected a checkpoint of kind pvplay-clip, got pvplay-vlm"):
        load_clip(tmp_path / "vlm")


def test_a_llava_of_the_same_preset_starts_from_the_tower():
    vlm = build("tiny-clip", seed=2)
    load_vision_tower(vlm, CLIP)
    tower = CLIP.model.vision_model.state_dict()
    assert all(torch.equal(tensor, tower[name]) for name, tensor in vlm.encoder.state_dict().items())
    tokens = CLIP.model.vision_model(CLIP.preprocess(FRAMES), output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(vlm.encode_images(vlm.preprocess(FRAMES)).tokens, vlm.connector(tokens))


def test_an_encoder_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"expected an encoder like the CLIP's tower, CLIPVisionModel of .* parameters"):
        load_vision_tower(build("nano-clip"), CLIP)
    with pytest.raises(UserError, match="expected a preset with a CLIP tower"):
        build_clip("tiny", build_tokenizer(WORDS))
