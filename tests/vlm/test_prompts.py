"""Parsing is the inverse of formatting, and accepts nothing else."""

import time

import pytest

from vlm.prompts import action_prompt, parse_action, parse_pixel, pixel_answer, pixel_prompt
from vlm.tokenizer import build_tokenizer

LEGAL = ("noop", "fire", "up", "right", "left", "up right", "up right fire")


@pytest.mark.parametrize("name", LEGAL)
def test_an_answer_is_parsed_to_its_action(name):
    tokenizer = build_tokenizer()
    answer = tokenizer.decode(tokenizer(name)["input_ids"])
    assert parse_action(answer, LEGAL) == name


@pytest.mark.parametrize("answer", ["", "jump", "right up", "I would go up", "up up", "down"])
def test_an_answer_that_names_no_legal_action_is_invalid(answer):
    assert parse_action(answer, LEGAL) is None


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("FIRE.", "fire"),
        ("  Up Right!\n", "up right"),
        ("**up-right**", "up right"),
        ("UPRIGHTFIRE", "up right fire"),
        ("no-op", "noop"),
        ('"left"', "left"),
        ("Action: FIRE", "fire"),
        ("action = up_right", "up right"),
        ("So my final answer is fire.", "fire"),
        ('{"action": "up right"}', "up right"),
        ('```json\n{"thought": "go up", "Action": "LEFT"}\n```', "left"),
        ("The ball is on the left.\nI should not move right.\n\nAction: left", "left"),
        ("The ball is on the right. Action: RIGHT.", "right"),
        ("Action: left\nNo, the ball is to the right.\nAction: right", "right"),
        ("I go there\nup", "up"),
    ],
)
def test_an_answer_is_parsed_as_people_write_it(answer, name):
    assert parse_action(answer, LEGAL) == name


@pytest.mark.parametrize(
    "answer",
    [
        "left or right",
        "left, right",
        "right, fire",
        "Action: left or right",
        "Action: left. Action: right.",
        '{"action": "left"} {"action": "right"}',
        '{"action": "jump"}',
        '{"action": ["left", "right"]}',
        "I would not fire",
        "I refuse the action: fire is bad",
        "left\nwhich is what I would do",
        "not up",
        "Action:",
    ],
)
def test_an_ambiguous_answer_is_never_guessed(answer):
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


@pytest.mark.parametrize(
    "thought", ["left or right? left!", 'action: left.\n{"action": "left"}', "The action is left.\n"]
)
def test_a_thought_is_no_answer(thought):
    assert parse_action(f"<think>{thought}</think>fire", LEGAL) == "fire"
    assert parse_action(f"<think>{thought}</think>", LEGAL) is None


@pytest.mark.parametrize(
    "answer",
    ['{"action": ' + "[" * 100_000 + "}", "! " * 500_000, "action " * 200_000, "{" * 1_000_000, "a_" * 500_000 + "!"],
    ids=["brackets", "marks", "labels", "braces", "words"],
)
def test_no_answer_of_any_length_takes_long(answer):
    start = time.monotonic()
    assert parse_action(answer, LEGAL) is None
    assert time.monotonic() - start < 5
