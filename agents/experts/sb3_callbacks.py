"""Callbacks of an SB3 training: checkpoints that are scored on whole games, and a stop that saves."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from common.errors import UserError
from common.files import atomic_file, write_text_atomically


class BestModelCallback(BaseCallback):
    """Saves a checkpoint at each call, scores it on whole episodes and keeps the best.

    SB3's CheckpointCallback keeps every replay buffer, and its EvalCallback scores the clipped rewards of training.
    An evaluation also holds the raw scores of the training's own games since the one before, from `take_scores`, and
    the seconds of training so far.
    """

    def __init__(
        self,
        out: Path,
        evaluate: Callable[[Path], list[float]],
        has_replay_buffer: bool,
        take_scores: Callable[[], list[float]] = list,
    ):
        super().__init__()
        self.out, self.evaluate, self.has_replay_buffer = out, evaluate, has_replay_buffer
        self.take_scores = take_scores
        self.file = out / "evaluations.json"
        self.evaluations: list[dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.evaluated_steps = max((evaluation["steps"] for evaluation in self.evaluations), default=0)

    def _init_callback(self) -> None:
        self._counted_at = time.monotonic()

    def _on_step(self) -> bool:
        self.save_state()
        scores = self.evaluate(self.out / "last.zip")
        mean = float(np.mean(scores))
        if is_best := all(mean > np.mean(evaluation["scores"]) for evaluation in self.evaluations):
            self._save(self.out / "best.zip")
        self.evaluated_steps = self.model.num_timesteps
        self.logger.record("eval/mean_score", mean)
        self.logger.dump(self.evaluated_steps)
        print(f"after {self.evaluated_steps:,} steps: {mean:,.0f} points{', the best so far' if is_best else ''}")
        evaluation = {"steps": self.evaluated_steps, "scores": scores, "training_scores": self.take_scores()}
        self.evaluations.append({**evaluation, "seconds": self.model.__dict__["training_seconds"]})
        write_text_atomically(self.file, json.dumps(self.evaluations, indent=1))
        self._counted_at = time.monotonic()  # evaluations do not count
        return True

    def save_state(self) -> None:
        """Write the checkpoint that a repeated command resumes from; the replay buffer comes first."""
        if not all(parameter.isfinite().all() for parameter in self.model.policy.parameters()):
            raise UserError(
                f"after {self.model.num_timesteps} steps the weights are not finite; {self.out}/best.zip and "
                "last.zip are from before"
            )
        self._count_seconds()
        if self.has_replay_buffer:
            with atomic_file(self.out / "replay.pkl") as temporary:
                self.model.save_replay_buffer(temporary)
        self._save(self.out / "last.zip")

    def _count_seconds(self) -> None:
        """Add the seconds since the last count to the model's own, which its archive keeps."""
        now, kept = time.monotonic(), self.model.__dict__
        kept["training_seconds"] = kept.get("training_seconds", 0.0) + now - self._counted_at
        self._counted_at = now

    def _save(self, archive: Path) -> None:
        with atomic_file(archive) as temporary:
            self.model.save(temporary)


class StopCallback(BaseCallback):
    """Stops a training after the step in which a signal came."""

    def __init__(self, is_asked: Callable[[], bool]):
        super().__init__()
        self.is_asked = is_asked

    def _on_step(self) -> bool:
        return not self.is_asked()
