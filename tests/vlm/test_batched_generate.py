"""Questions answered together are answered as the library's `generate` answers each alone."""

import pytest
import torch

from common.errors import UserError
from vlm.decoding.batched_generate import generate_batch
from vlm.decoding.packing import pad_token_lists

QUESTIONS = [
    [[11, 35, 12, 13, 21, 22], [14, 21], [11, 16, 17, 24, 25]],
    [[11, 18, 26], [11, 28, 29, 30, 31, 32, 33], [11, 20]],
]  # about the second image all begin alike
NEW = 9


def alone(family):
    """Each question by `generate`; lists of token ids, image by image."""
    return [
        [
            family.vlm.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            for inputs in (family.inputs(image, tokens) for tokens in asked)
        ]
        for image, asked in enumerate(QUESTIONS)
    ]


def together(family, **settings):
    questions, lengths = pad_token_lists(QUESTIONS, pad=3)
    return generate_batch(family.vlm, family.features(), family.shared, questions, NEW, lengths, **settings)


def test_answers_are_those_of_generate_to_the_token(make_family):
    family = make_family()
    family.vlm.model.generation_config.eos_token_id = None
    endless = together(family)
    assert endless.shape == (2, 3, NEW)
    assert [[said.tolist() for said in row] for row in alone(family)] == endless.tolist()
    assert len({tuple(said) for said in endless.flatten(0, 1).tolist()}) > 2  # they do differ

    family.vlm.model.generation_config.eos_token_id = [endless[0, 0, 1].item(), endless[1, 1, 3].item()]
    family.vlm.model.generation_config.pad_token_id = 0
    ended = together(family)
    lengths = []
    for row, expected in zip(ended, alone(family), strict=True):
        for said, one in zip(row, expected, strict=True):
            assert said[: len(one)].tolist() == one.tolist()
            assert (said[len(one) :] == 0).all()
            lengths.append(len(one))
    assert len(set(lengths)) > 1  # some ended before others


def test_what_questions_begin_with_alike_is_read_once(build_family):
    family = build_family("llava")
    read = []
    family.vlm.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    together(family)
    # the images and their texts; 11 and 14 of the first, 11 of the second and once more, to have as many rows;
    # the rest of six questions; their answers
    assert read == [(2, 21), (4, 1), (6, 6), *[(6, 1)] * (NEW - 1)]


def test_the_size_of_a_chunk_changes_nothing(build_family):
    family = build_family("qwen2.5-vl")
    assert torch.equal(together(family, chunk=2), together(family))


def test_decoding_stops_when_all_have_ended(build_family):
    family = build_family("llava")
    family.vlm.model.generation_config.eos_token_id = list(range(64))
    assert together(family).shape == (2, 3, 1)


def test_lengths_of_another_shape_are_refused(build_family):
    family = build_family("llava")
    with pytest.raises(UserError, match=r"expected suffixes int\[B, K, L\], lengths int\[B, K\]"):
        generate_batch(family.vlm, family.features(), family.shared, torch.ones(2, 3, 4).long(), 1, torch.ones(2, 2))
