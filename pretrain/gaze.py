"""Where a training that began with flat images turns to the others: the decoder's gaze is fitted (`vlm.gaze`)."""

from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from pretrain.pixel_values import Questions
from pretrain.questions import colours, pad_rows
from pretrain.synthetic import mosaic
from vlm.errors import VlmError
from vlm.gaze import Asked, fit_gaze, resting_on_gaze
from vlm.model import PixelVLM

IMAGES, QUESTIONS = 48, 48  # to fit to
SEED = 20_000


def examples(vlm: PixelVLM, questions: Questions) -> Asked:
    """Return questions about mosaics of 1 to 8 cells a side, in the words and on the grid of a training."""
    rng = np.random.default_rng(SEED)
    height, width = questions.draw(rng, 1.0).shape[1:3]
    images = [mosaic(rng, height, width, int(rng.integers(1, 9))) for _ in range(IMAGES)]
    language, rows, shares = questions.language, [], []
    for image in images:
        values = colours(image, questions.grid)
        size = np.array(values.shape[:2])
        places = rng.integers(size, size=(QUESTIONS, 2))
        rows.append(language.lesson(places, values[places[:, 0], places[:, 1]])[0])
        shares.append((places + 0.5) / size)
    question, back = _layout(language.questions(np.array([[11, 7], [7, 11]])))
    frames = torch.from_numpy(np.stack([np.stack([image] * vlm.history) for image in images]))
    read = pad_rows(rows, language.pad)
    return Asked(frames, language.shared, read, torch.from_numpy(np.stack(shares)), question, back)


def _layout(asked: list[list[int]]) -> tuple[int, tuple[int, int]]:
    """Return a question's length, and how far its end stands behind the two tokens in which two questions differ."""
    length = len(asked[0])
    places = [index for index, (one, other) in enumerate(zip(*asked, strict=False)) if one != other]
    if len(places) != 2 or len(asked[1]) != length:
        raise VlmError("expected a tokenizer whose numbers from 0 to 255 are single tokens")
    return length, (length - 1 - places[0], length - 1 - places[1])


class FitGaze(TrainerCallback):
    """Fits a model's gaze where its flat images end, and holds still what the gaze rests on for some steps after.

    What it does depends on the step alone, so that a run that goes on does what an unbroken one would.

    Args:
        vlm: the model.
        questions: its training.
        flat: share of the training whose images are flat.
        hold: share of the training, after that, in which the gaze is held.
        settled: what all learning rates are multiplied by once it is let go.
    """

    def __init__(self, vlm: PixelVLM, questions: Questions, flat: float, hold: float, settled: float = 1.0):
        self.vlm, self.questions, self.settled = vlm, questions, settled
        steps = len(questions)
        self.first = next(step for step in range(steps + 1) if step >= flat * steps)
        self.end = self.first + round(hold * steps)
        self.held = [parameter for parameter in resting_on_gaze(vlm) if parameter.requires_grad]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fit, hold or let go, by the step at hand."""
        if state.global_step == self.first:
            report = fit_gaze(self.vlm, examples(self.vlm, self.questions))
            print("gaze fitted at step", self.first, {name: round(value, 3) for name, value in report.items()})
        for parameter in self.held:
            parameter.requires_grad_(not self.first <= state.global_step < self.end)
        if state.global_step >= self.end:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] *= self.settled  # the schedule writes it anew after every step
