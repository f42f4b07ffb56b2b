"""Packed suffixes have the loss and gradients of separate sequences, whatever the class of the model."""

import pytest
import torch
from torch.nn import functional

from common.errors import UserError
from vlm.decoding.packing import PackedTreeLayout, forward_packed, pad_token_lists
from vlm.decoding.prefix import encode_prefix

SUFFIXES = [
    [[11, 35, 12, 13, 21, 22], [14, 21, 23], [15, 16, 17, 24, 25]],
    [[11, 18, 26, 27], [19, 28, 29, 30, 31, 32, 33], [20, 34]],
]  # of differing lengths; every token but the first is to be predicted


def separate_loss(family):
    """Each suffix with its image through the class's own forward; the mean over all predicted tokens."""
    losses, count = 0.0, 0
    for image, row in enumerate(SUFFIXES):
        for tokens in row:
            logits = family.vlm.model(**family.inputs(image, tokens)).logits
            labels = torch.tensor(tokens[1:])
            losses = losses + functional.cross_entropy(logits[0, -len(tokens) : -1], labels, reduction="sum")
            count += len(labels)
    return losses / count


def packed_loss(family, method):
    """All suffixes in one forward pass."""
    suffixes, lengths = pad_token_lists(SUFFIXES, pad=3)
    states = forward_packed(family.vlm, family.features(), family.shared, suffixes, method)
    logits = family.vlm.model.get_output_embeddings()(states)[:, :, :-1]
    counts = torch.arange(1, suffixes.shape[2]) < lengths[..., None]
    return functional.cross_entropy(logits[counts], suffixes[:, :, 1:][counts])


def gradients(family, loss):
    loss.backward()
    return {name: p.grad for name, p in family.vlm.model.named_parameters() if p.grad is not None}


def relative_difference(one, other):
    one, other = (torch.cat([grads[name].flatten() for name in sorted(grads)]) for grads in (one, other))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["mask", "cache"])
def test_loss_and_gradients_equal_those_of_separate_sequences(make_family, method, attention):
    packed, separate = make_family(), make_family()
    for family in (packed, separate):
        family.vlm.set_attn_implementation(attention)
    packed_value, separate_value = packed_loss(packed, method), separate_loss(separate)
    assert packed_value.item() == pytest.approx(separate_value.item(), abs=1e-5)
    found, expected = gradients(packed, packed_value), gradients(separate, separate_value)
    assert found.keys() == expected.keys()
    assert relative_difference(found, expected) < 1e-4
    encoder = {f"{id(p)}" for p in packed.vlm.encoder.parameters()}
    reached = [p.grad.norm() for p in packed.vlm.model.parameters() if f"{id(p)}" in encoder and p.grad is not None]
    assert max(reached) > 1e-4  # the comparison is of gradients that reach the image


@pytest.mark.parametrize("method", ["mask", "cache"])
def test_padding_has_no_effect(make_family, method):
    family = make_family()
    suffixes, lengths = pad_token_lists(SUFFIXES, pad=3)
    other, _ = pad_token_lists(SUFFIXES, pad=40)
    real = torch.arange(suffixes.shape[2]) < lengths[..., None]
    with torch.no_grad():
        one, two = (forward_packed(family.vlm, family.features(), family.shared, q, method) for q in (suffixes, other))
    assert torch.equal(one[real], two[real])
    assert not torch.equal(one[~real], two[~real])


def test_an_image_takes_fewer_positions_than_tokens_with_mrope(build_family):
    family = build_family("qwen2.5-vl")
    prefix = encode_prefix(family.vlm, family.features(), family.shared)
    # two words, 2 x 3 image tokens from position 2 on, three words behind the largest
    assert prefix.position_ids[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]
    assert prefix.position_ids_after(torch.arange(2)).tolist() == [[[8, 9], [8, 9]]] * 3
    # without the three words, a suffix follows the largest of the image's positions, whichever axis has it
    prefix = encode_prefix(family.vlm, family.features(), family.shared[:, :8])
    assert prefix.position_ids_after(torch.arange(2)).tolist() == [[[5, 6], [5, 6]]] * 3


def test_a_suffix_attends_to_the_prefix_and_to_itself_only():
    layout = PackedTreeLayout(2, torch.zeros(1, 1).long(), prefix_length=0, num_suffixes=2, suffix_length=2)
    assert layout.offsets().tolist() == [[0, 1, 0, 1]]
    assert (layout.mask()[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def checkpointed(family):
    family.vlm.model.train()
    family.vlm.model.gradient_checkpointing_enable()
    return family


def test_the_cache_is_refused_under_gradient_checkpointing_which_would_silently_lose_the_image(build_family):
    with pytest.raises(UserError, match="expected LlamaModel to keep keys and values: activation checkpointing"):
        packed_loss(checkpointed(build_family("llava")), "cache")


def test_the_mask_works_under_gradient_checkpointing(build_family):
    plain, saving = build_family("llava"), checkpointed(build_family("llava"))
    found, expected = (gradients(family, packed_loss(family, "mask")) for family in (saving, plain))
    assert relative_difference(found, expected) < 1e-4


def test_paligemma_is_refused_since_its_prompt_attends_in_both_directions(build_family):
    with pytest.raises(
        UserError, match=r"PaliGemmaForConditionalGeneration cannot .*: its image and prompt attend in both"
    ):
        packed_loss(build_family("paligemma"), "mask")


def test_a_decoder_with_a_sliding_window_is_refused(build_family):
    with pytest.raises(UserError, match="not every layer of its decoder attends to all earlier tokens"):
        packed_loss(build_family("sliding window"), "mask")


def test_placeholders_that_do_not_match_the_image_are_refused(build_family):
    family = build_family("llava")
    family.shared = family.shared[:, 3:]  # one of 16 placeholders is gone from each
    with pytest.raises(UserError, match="expected 32 image placeholders in 2 shared texts, got 30"):
        packed_loss(family, "mask")


def test_a_number_of_shared_texts_other_than_of_images_is_refused(build_family):
    family = build_family("llava")
    family.shared = family.shared[:1].expand(3, -1)
    with pytest.raises(UserError, match="expected a shared text for each of 2 images, got 3"):
        packed_loss(family, "mask")


def test_an_unknown_method_is_refused(build_family):
    with pytest.raises(UserError, match=r"expected a method \(mask, cache\), got 'flash'"):
        packed_loss(build_family("llava"), "flash")


def test_empty_token_lists_are_refused():
    with pytest.raises(UserError, match="none empty"):
        pad_token_lists([[[1, 2], []]], pad=0)


def test_an_image_in_a_suffix_is_refused(build_family):
    family = build_family("llava")
    suffixes = torch.full((2, 1, 3), family.vlm.model.config.image_token_id)
    with pytest.raises(UserError, match="got an image placeholder"):
        forward_packed(family.vlm, family.features(), family.shared, suffixes)
