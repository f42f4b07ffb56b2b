"""Words, numbers and actions are single tokens; any title can be spelled."""

import pytest

from vlm.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def tokens(text):
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])


def test_numbers_from_0_to_255_are_one_token_each():
    assert all(tokens(str(number)) == [str(number)] for number in range(256))


def test_actions_are_their_words():
    assert tokens("up right fire") == ["up", "right", "fire"]


@pytest.mark.parametrize("text", ["ms . pac - man", "q * bert", "right fire", "[ 12 , 255 , 0 ]", "xyzzy 300"])
def test_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text
    assert TOKENIZER.unk_token_id not in TOKENIZER(text)["input_ids"]
