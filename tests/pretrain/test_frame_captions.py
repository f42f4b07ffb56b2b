"""Captions say what is there, truly, and nothing of pixel values."""

import re

import numpy as np
import pytest

from envs.games import list_games
from envs.objects import COLOURS
from pretrain.data.frame_captions import LONGEST, DetectedObject, caption_tokenizer, describe_frame, write_caption

RED, BLUE = (200, 72, 72), (66, 114, 194)


def scene(*things):
    """A black frame with rectangles (top, left, bottom, right, rgb)."""
    frame = np.zeros((210, 160, 3), dtype=np.uint8)
    for top, left, bottom, right, rgb in things:
        frame[top:bottom, left:right] = rgb
    return frame


TWO_RED = scene((10, 10, 16, 16, RED), (190, 140, 196, 146, RED), (100, 76, 106, 82, BLUE))


def captions(frame, title="Pong", count=60):
    things = describe_frame(frame, "Pong")
    return [write_caption(things, title, np.random.default_rng(seed)) for seed in range(count)]


def test_captions_tell_the_game_the_things_how_many_and_where():
    said = " ; ".join(captions(TWO_RED))
    for phrase in ("pong", "two red things", "a blue thing", "at the top left", "at the bottom right", "in the centre"):
        assert phrase in said
    assert "two blue" not in said
    assert "blue thing at the" not in said


def test_no_caption_holds_a_digit():
    crowd = scene(*[(8 * i + 4, 8 * j + 4, 8 * i + 8, 8 * j + 8, BLUE) for i in range(20) for j in range(15)])
    said = [*captions(TWO_RED), *captions(crowd), *captions(scene())]
    assert not any(re.search(r"\d", caption) for caption in said)
    assert any("many small blue things" in caption for caption in said)
    assert any("nothing" in caption for caption in said)


def test_the_same_seed_writes_the_same_caption_and_others_other_phrases():
    assert captions(TWO_RED) == captions(TWO_RED)
    assert len(set(captions(TWO_RED))) > 20


def test_without_a_title_the_game_is_not_told():
    assert not any("pong" in caption for caption in captions(TWO_RED, title=None))


@pytest.mark.parametrize(
    ("thing", "closely", "noun"),
    [
        (DetectedObject("rabbit", "white", "", "on the left"), True, "white rabbit"),
        (DetectedObject("red ghost", "red", "", "on the left"), True, "red ghost"),
        (DetectedObject("rabbit", "white", "", "on the left"), False, "rabbit"),
        (DetectedObject(None, "green", "small", "on the left"), True, "small green thing"),
        (DetectedObject(None, "green", "small", "on the left"), False, "green thing"),
    ],
)
def test_things_are_called_by_name_or_by_colour(thing, closely, noun):
    assert thing.noun(closely) == noun


def test_plurals_are_english():
    things = tuple(
        DetectedObject(name, "white", "", "on the left") for name in ("bullet box", "pair of eyes") for _ in "ab"
    )
    said = " ".join(write_caption(things, None, np.random.default_rng(seed)) for seed in range(30))
    assert "two bullet boxes" in said
    assert "two pairs of eyes" in said
    assert "two white pairs of eyes" in said
    assert "boxs" not in said


def test_the_tokenizer_reads_every_title_and_colour_in_whole_words_and_closes_with_its_last_id():
    tokenizer = caption_tokenizer()
    for text in [*COLOURS, *(game.title for game in list_games())]:
        pieces = tokenizer.tokenize(text)
        assert "<unk>" not in pieces
        assert any(letter.isdigit() for letter in text) or not any(piece.startswith("##") for piece in pieces), text
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert max(len(tokenizer(caption)["input_ids"]) for caption in captions(TWO_RED)) < LONGEST
