"""Parsing is the inverse of formatting, and accepts nothing else."""

import pytest

from vlm.prompts import action_prompt, parse_action, parse_pixel, pixel_answer, pixel_prompt
from vlm.tokenizer import build_tokenizer

LEGAL = ("noop", "fire", "up", "right", "left", "up right", "up right fire")


@pytest.mark.parametrize("name", LEGAL)
def test_an_answer_is_parsed_to_its_action(name):
    tokenizer = build_tokenizer()
    answer = tokenizer.decode(tokenizer(name)["input_ids"])
    assert parse_action(answer, LEGAL) == name


@pytest.mark.parametrize("answer", ["", "jump", "right up", "I would go up", "up up", "fire !", "down"])
def test_an_answer_that_names_no_legal_action_is_invalid(answer):
    assert parse_action(answer, LEGAL) is None


def test_the_action_prompt_holds_the_game_and_every_legal_action_before_the_image():
    prompt = action_prompt("Ms. Pac-Man", LEGAL)
    before, after = prompt.split("<image>")
    assert "Ms. Pac-Man" in before
    assert all(f" {name} " in before for name in LEGAL)
    assert "action" in after


@pytest.mark.parametrize("rgb", [(0, 0, 0), (255, 255, 255), (184, 50, 7)])
def test_a_colour_is_parsed_to_itself(rgb):
    tokenizer = build_tokenizer()
    assert parse_pixel(tokenizer.decode(tokenizer(pixel_answer(rgb))["input_ids"])) == rgb


@pytest.mark.parametrize("answer", ["", "1,2]", "1,2,256]", "1,2,3", "a,2,3]", "-1,2,3]", "1,2,3,4]"])
def test_what_is_no_colour_is_invalid(answer):
    assert parse_pixel(answer) is None


def test_the_pixel_prompt_names_the_row_first():
    assert pixel_prompt(12, 7) == "<image> [reconstruct] loc: [12,7] rgb: ["
