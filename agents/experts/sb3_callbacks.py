"""Callbacks of an SB3 training: its curve, checkpoints that are scored on whole games, and a stop that saves."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from common.errors import UserError
from common.files import atomic_file, write_text_atomically


class TrainingClock:
    """The seconds of a training so far, pauses apart."""

    def __init__(self) -> None:
        self.start(0.0)

    def start(self, seconds: float) -> None:
        """Go on from `seconds`."""
        self._earlier, self._started = seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return self._earlier + time.monotonic() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done meanwhile."""
        seconds = self.seconds
        yield
        self.start(seconds)


class CurveCallback(BaseCallback):
    """Writes a row of a training's curve at each call: the steps and seconds so far, evaluations apart, and, since the
    row before, the steps, the sum of raw rewards and the raw scores of the games that ended.
    """

    def __init__(self, file: Path, clock: TrainingClock, take_progress: Callable[[], tuple[float, list[float]]]):
        super().__init__()
        self.file, self.clock, self.take_progress = file, clock, take_progress
        self.rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []

    def _init_callback(self) -> None:
        self.rows = [row for row in self.rows if row["steps"] <= self.model.num_timesteps]
        self.clock.start(self.rows[-1]["seconds"] if self.rows else 0.0)
        self._last_steps = self.model.num_timesteps

    def _on_step(self) -> bool:
        steps, (points, scores) = self.model.num_timesteps, self.take_progress()
        row = {"steps": steps, "seconds": self.clock.seconds, "new_steps": steps - self._last_steps}
        self.rows.append({**row, "points": points, "scores": scores})
        self._last_steps = steps
        write_text_atomically(self.file, json.dumps(self.rows, indent=1))
        return True


class BestModelCallback(BaseCallback):
    """Saves a checkpoint at each call, scores it on whole episodes and keeps the best.

    SB3's CheckpointCallback keeps every replay buffer, and its EvalCallback scores the clipped rewards of training.
    """

    def __init__(
        self, out: Path, evaluate: Callable[[Path], list[float]], has_replay_buffer: bool, clock: TrainingClock
    ):
        super().__init__()
        self.out, self.evaluate, self.has_replay_buffer, self.clock = out, evaluate, has_replay_buffer, clock
        self.file = out / "evaluations.json"
        self.evaluations: list[dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.evaluated_steps = max((evaluation["steps"] for evaluation in self.evaluations), default=0)

    def _on_step(self) -> bool:
        self.save_state()
        with self.clock.paused():
            scores = self.evaluate(self.out / "last.zip")
        mean = float(np.mean(scores))
        if is_best := all(mean > np.mean(evaluation["scores"]) for evaluation in self.evaluations):
            self._save(self.out / "best.zip")
        self.evaluated_steps = self.model.num_timesteps
        self.logger.record("eval/mean_score", mean)
        self.logger.dump(self.evaluated_steps)
        print(f"after {self.evaluated_steps:,} steps: {mean:,.0f} points{', the best so far' if is_best else ''}")
        self.evaluations.append({"steps": self.evaluated_steps, "scores": scores})
        write_text_atomically(self.file, json.dumps(self.evaluations, indent=1))
        return True

    def save_state(self) -> None:
        """Write the checkpoint that a repeated command resumes from; the replay buffer comes first."""
        if not all(parameter.isfinite().all() for parameter in self.model.policy.parameters()):
            raise UserError(
                f"after {self.model.num_timesteps} steps the weights are not finite; {self.out}/best.zip and "
                "last.zip are from before"
            )
        if self.has_replay_buffer:
            with atomic_file(self.out / "replay.pkl") as temporary:
                self.model.save_replay_buffer(temporary)
        self._save(self.out / "last.zip")

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
