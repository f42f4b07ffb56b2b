"""Captions are true of the objects of a frame and contain no pixel value."""

import re

import numpy as np
import pytest

from envs.colors import COLORS
from envs.games import list_games
from pretrain.data.frame_captions import DetectedObject, caption_tokenizer, describe_frame, write_caption
from vlm.clip import MAX_TEXT_LENGTH

RED, BLUE = (200, 72, 72), (66, 114, 194)


def scene(*rectangles):
    """A black frame with rectangles (top, left, bottom, right, rgb)."""
    frame = np.zeros((210, 160, 3), dtype=np.uint8)
    for top, left, bottom, right, rgb in rectangles:
        frame[top:bottom, left:right] = rgb
    return frame


TWO_RED = scene((10, 10, 16, 16, RED), (190, 140, 196, 146, RED), (100, 76, 106, 82, BLUE))


def captions(frame, title="Pong", count=60):
    objects = describe_frame(frame, "Pong")
    return [write_caption(objects, title, np.random.default_rng(seed)) for seed in range(count)]


def test_captions_name_the_game_and_its_objects_with_number_and_position():
    text = " ; ".join(captions(TWO_RED))
    for phrase in ("pong", "two red things", "a blue thing", "at the top left", "at the bottom right", "in the centre"):
        assert phrase in text
    assert "two blue" not in text
    assert "blue thing at the" not in text


def test_no_caption_contains_a_digit():
    crowd = scene(*[(8 * i + 4, 8 * j + 4, 8 * i + 8, 8 * j + 8, BLUE) for i in range(20) for j in range(15)])
    text = [*captions(TWO_RED), *captions(crowd), *captions(scene())]
    assert not any(re.search(r"\d", caption) for caption in text)
    assert any("many small blue things" in caption for caption in text)
    assert any("nothing" in caption for caption in text)


def test_the_seed_alone_chooses_the_caption():
    assert captions(TWO_RED) == captions(TWO_RED)
    assert len(set(captions(TWO_RED))) > 20


def test_without_a_title_the_game_is_not_named():
    assert not any("pong" in caption for caption in captions(TWO_RED, title=None))


@pytest.mark.parametrize(
    ("found", "detailed", "noun"),
    [
        (DetectedObject("rabbit", "white", "", "on the left"), True, "white rabbit"),
        (DetectedObject("red ghost", "red", "", "on the left"), True, "red ghost"),
        (DetectedObject("rabbit", "white", "", "on the left"), False, "rabbit"),
        (DetectedObject(None, "green", "small", "on the left"), True, "small green thing"),
        (DetectedObject(None, "green", "small", "on the left"), False, "green thing"),
    ],
)
def test_objects_are_called_by_name_or_by_color(found, detailed, noun):
    assert found.noun(detailed) == noun


def test_plurals_are_english():
    objects = tuple(
        DetectedObject(name, "white", "", "on the left") for name in ("bullet box", "pair of eyes") for _ in "ab"
    )
    text = " ".join(write_caption(objects, None, np.random.default_rng(seed)) for seed in range(30))
    assert "two bullet boxes" in text
    assert "two pairs of eyes" in text
    assert "two white pairs of eyes" in text
    assert "boxs" not in text


def test_the_tokenizer_has_whole_words_for_titles_and_colors_and_its_end_token_is_last():
    tokenizer = caption_tokenizer()
    for text in [*COLORS, *(game.title for game in list_games())]:
        pieces = tokenizer.tokenize(text)
        assert "<unk>" not in pieces
        assert any(letter.isdigit() for letter in text) or not any(piece.startswith("##") for piece in pieces), text
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert max(len(tokenizer(caption)["input_ids"]) for caption in captions(TWO_RED)) < MAX_TEXT_LENGTH
