"""Packed questions are what separate sequences are, in loss and in gradient."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from vlm.choices import prompt_ids
from vlm.packing import Packing, packed_hidden
from vlm.presets import build
from vlm.prompts import IMAGE, PIXEL_PREFIX, pixel_answer, pixel_prompt

PLACES = [[(3, 7), (200, 150), (80, 80)], [(0, 0), (120, 5), (209, 159)]]
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 2, 210, 160, 3), dtype=np.uint8)


def texts(image):
    return [(pixel_prompt(r, c), pixel_answer(FRAMES[image, -1, r, c])) for r, c in PLACES[image]]


def separate_loss(vlm, pixels):
    """Each question with its image through the plain forward; the mean over answer tokens, their end included."""
    losses, count = 0.0, 0
    for image in range(2):
        for prompt, answer in texts(image):
            asked = prompt_ids(vlm, prompt, 9)
            said = [*vlm.tokenizer(answer)["input_ids"], vlm.tokenizer.eos_token_id]
            ids = torch.tensor([asked + said])
            logits = vlm.model(
                input_ids=ids, pixel_values=pixels[image : image + 1], attention_mask=torch.ones_like(ids)
            ).logits
            predicted = logits[0, len(asked) - 1 : -1].float()
            losses = losses + functional.cross_entropy(predicted, torch.tensor(said), reduction="sum")
            count += len(said)
    return losses / count


def packed_loss(vlm, pixels):
    encode = lambda text: vlm.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    head = f"{IMAGE} {PIXEL_PREFIX}"
    asked = [[encode(prompt.removeprefix(head) + answer) for prompt, answer in texts(image)] for image in range(2)]
    questions = torch.tensor(asked)  # [2, 3, L]
    hidden = packed_hidden(vlm, pixels, torch.tensor(encode(PIXEL_PREFIX)), questions)[:, 1:]
    logits = vlm.model.get_output_embeddings()(hidden.unflatten(1, questions.shape[1:]))[:, :, 3:].float()
    end = torch.full((2, 3, 1), vlm.tokenizer.eos_token_id)
    return functional.cross_entropy(logits.flatten(0, 2), torch.cat([questions[:, :, 4:], end], 2).flatten())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_equal_those_of_separate_sequences(attention):
    found = {}
    for name, loss_of in (("packed", packed_loss), ("separate", separate_loss)):
        vlm = build("nano", seed=1)
        vlm.model.set_attn_implementation(attention)
        loss = loss_of(vlm, vlm.pixels(FRAMES))
        loss.backward()
        found[name] = (
            loss.item(),
            torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None]),
        )
    assert found["packed"][0] == pytest.approx(found["separate"][0], abs=1e-5)
    difference = (found["packed"][1] - found["separate"][1]).norm() / found["separate"][1].norm()
    assert difference < 1e-4


def test_a_question_sees_the_prefix_and_itself_alone():
    layout = Packing(prefix=2, questions=2, length=2)
    assert layout.positions.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert (layout.mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
