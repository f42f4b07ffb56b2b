"""The presets' tokenizer: prompt words, actions and the numbers 0 to 255 are single tokens; the rest is spelled.

Text is lower-cased and split at whitespace and punctuation. A word outside the vocabulary, such as a game's title, is
spelled letter by letter; characters other than letters and digits become `<unk>`.
"""

from collections.abc import Sequence
from functools import lru_cache
from string import ascii_lowercase, digits

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

ACTIONS = ("noop", "fire", "up", "down", "left", "right")
WORDS = f"""
<pad> <s> </s> <unk> <image> , : . [ ] ? ' * - ( ) / ! & + {" ".join(ACTIONS)}
play action reconstruct segmentation caption loc rgb mask game frame
a an the and of in on at to is are with no above below left-most right-most top bottom middle large small red green blue
yellow white black grey orange pink purple brown cyan object objects ghost pellet rabbit duck owl bullet gun player
enemy ball paddle ship
""".split()
# The fixed parts of a prompt with coordinates are one token each, so that it is short.
COORDINATE_PROMPT_PARTS = ("[reconstruct] loc: [", "] rgb: [", "] mask:")


def build_tokenizer(extra_words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return the tokenizer; it saves and loads as any of transformers' own.

    `extra_words`, in lower case, become single tokens after all others. With them, `<end>` with the largest id ends a
    text: for an end token of id 2, CLIP's text model follows an old bug and pools at the largest id of a text instead.
    """
    pieces = [*map(str, range(256)), *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase + digits)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*WORDS, *pieces, *extra_words]))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^a-z0-9]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in COORDINATE_PROMPT_PARTS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>" if extra_words else "</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


@lru_cache(maxsize=4096)  # prompts about a grid have thousands of points and few coordinates
def token_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Return the token ids of a part of a text, without special tokens."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def padding_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id that pads token lists: of the end token where a tokenizer has no padding."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
