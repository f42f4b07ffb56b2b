"""Prompts answered in one batch get the answers of transformers' `generate` for each alone."""

import pytest
import torch

from common.errors import UserError
from vlm.decoding.batched_generate import fill_template, generate_batch
from vlm.decoding.packing import pad_token_lists
from vlm.decoding.shared_prefix_attention import CachedPrefix

SUFFIXES = [
    [[11, 35, 12, 13, 21, 22], [14, 21], [11, 16, 17, 24, 25]],
    [[11, 18, 26], [11, 28, 29, 30, 31, 32, 33], [11, 20]],
]  # those of the second image all begin with one token
NEW = 9


def answers_alone(family):
    """The answer to each prompt by `generate`; token ids, image by image."""
    return [
        [
            family.vlm.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            for inputs in (family.inputs(image, tokens) for tokens in suffixes)
        ]
        for image, suffixes in enumerate(SUFFIXES)
    ]


def answers_together(family, **settings):
    suffixes, lengths = pad_token_lists(SUFFIXES, pad=3)
    return generate_batch(family.vlm, family.features(), family.shared, suffixes, NEW, lengths, **settings)


def test_answers_are_those_of_generate_to_the_token(make_family):
    family = make_family()
    family.vlm.model.generation_config.eos_token_id = None
    endless = answers_together(family)
    assert endless.shape == (2, 3, NEW)
    assert [[answer.tolist() for answer in row] for row in answers_alone(family)] == endless.tolist()
    assert len({tuple(answer) for answer in endless.flatten(0, 1).tolist()}) > 2  # they do differ

    family.vlm.model.generation_config.eos_token_id = [endless[0, 0, 1].item(), endless[1, 1, 3].item()]
    family.vlm.model.generation_config.pad_token_id = 0
    ended = answers_together(family)
    lengths = []
    for row, expected in zip(ended, answers_alone(family), strict=True):
        for answer, one in zip(row, expected, strict=True):
            assert answer[: len(one)].tolist() == one.tolist()
            assert (answer[len(one) :] == 0).all()
            lengths.append(len(one))
    assert len(set(lengths)) > 1  # some ended before others


def test_the_tokens_that_suffixes_begin_with_are_computed_once(build_family):
    family = build_family("llava")
    computed = []
    family.vlm.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: computed.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    answers_together(family)
    # the images and their texts; 11 and 14 of the first, 11 of the second and once more, to have as many rows;
    # the rest of six suffixes; their answers
    assert computed == [(2, 21), (4, 1), (6, 6), *[(6, 1)] * (NEW - 1)]


def test_the_chunk_size_does_not_change_answers(build_family):
    family = build_family("qwen2.5-vl")
    assert torch.equal(answers_together(family, chunk=2), answers_together(family))


def test_decoding_stops_when_all_have_ended(build_family):
    family = build_family("llava")
    family.vlm.model.generation_config.eos_token_id = list(range(64))
    assert answers_together(family).shape == (2, 3, 1)


def test_lengths_of_another_shape_are_refused(build_family):
    family = build_family("llava")
    with pytest.raises(UserError, match=r"expected suffixes int\[B, K, L\], lengths int\[B, K\]"):
        generate_batch(
            family.vlm, family.features(), family.shared, torch.ones(2, 3, 4).long(), 1, torch.ones(2, 2).long()
        )


def test_a_template_is_filled_with_the_likeliest_allowed_tokens_after_forced_separators(make_family):
    family, allowed, separators = make_family(), torch.tensor([5, 9, 17, 23, 41]), [[30, 31], [32]]
    suffixes, lengths = pad_token_lists(SUFFIXES, pad=3)
    cached_prefix = CachedPrefix.encode(family.vlm, family.features(), family.shared)
    separator_ids = [torch.tensor(separator) for separator in separators]
    logits = fill_template(family.vlm, cached_prefix, suffixes, allowed, separator_ids, lengths, chunk=2)
    assert logits.shape == (2, 3, 3, 5)
    for image, rows in enumerate(SUFFIXES):
        for row, tokens in enumerate(rows):
            for slot in range(3):
                with torch.no_grad():
                    alone = family.vlm.model(**family.inputs(image, tokens)).logits[0, -1, allowed]
                assert logits[image, row, slot].tolist() == pytest.approx(alone.tolist(), abs=1e-4)
                tokens = [*tokens, allowed[alone.argmax()].item(), *(separators[slot] if slot < 2 else [])]
