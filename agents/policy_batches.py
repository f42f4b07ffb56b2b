"""One thread computes for all clients: what waits for it when it is free becomes one forward pass.

Nothing waits for a batch to fill: one client alone is answered at once, and while a batch computes, the next gathers.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from agents.sampling import softmax
from common.errors import UserError
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.model import PixelVLM

MAX_SCORERS = 32  # kept, one for each game and list of actions


@dataclass(frozen=True)
class ActionQuestion:
    """Which of these actions to take in a game, by its title, after these frames."""

    title: str
    action_names: tuple[str, ...]
    frames: UInt8[np.ndarray, "history H W 3"]

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """What the questions of one batch share."""
        return self.title, self.action_names, self.frames.shape


@dataclass
class _Job:
    question: ActionQuestion | Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)


class PolicyBatcher:
    """Answers from any thread, with one model on a thread of its own. batch_sizes: those of the last forward passes."""

    def __init__(self, vlm: PixelVLM, max_batch: int):
        self.vlm, self.max_batch = vlm, max_batch
        self.batch_sizes: list[int] = []
        self._scorers: OrderedDict[tuple[Any, ...], CandidateScorer] = OrderedDict()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="policy").start()

    def probabilities(self, question: ActionQuestion) -> Float[np.ndarray, " actions"]:
        """Return the probability of every action; waits."""
        return self._ask(question)

    def compute(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns, called on the model's thread; waits."""
        return self._ask(function)

    def _ask(self, question: Any) -> Any:
        job = _Job(question)
        self._jobs.put(job)
        return job.answer.result()

    def _work(self) -> None:
        while True:
            waiting = [self._jobs.get()]
            while len(waiting) < 4 * self.max_batch and not self._jobs.empty():
                waiting.append(self._jobs.get())
            for batch in self._batches(waiting):
                self._answer(batch)

    def _batches(self, jobs: list[_Job]) -> list[list[_Job]]:
        """Return the jobs in the order of their arrival, those that share a forward pass together."""
        batches: list[list[_Job]] = []
        open_batches: dict[Any, list[_Job]] = {}
        for job in jobs:
            key = job.question.batch_key if isinstance(job.question, ActionQuestion) else id(job)
            if len(open_batches.get(key, ())) in (0, self.max_batch):
                open_batches[key] = []
                batches.append(open_batches[key])
            open_batches[key].append(job)
        return batches

    def _answer(self, batch: list[_Job]) -> None:
        try:
            questions = [job.question for job in batch if isinstance(job.question, ActionQuestion)]
            first = batch[0].question
            answers = [first()] if not isinstance(first, ActionQuestion) else list(self._probabilities(questions))
            for job, answer in zip(batch, answers, strict=True):
                job.answer.set_result(answer)
        except BaseException as error:  # of any kind: the clients wait for it, and the thread goes on
            for job in batch:
                job.answer.set_exception(error)

    @torch.no_grad()
    def _probabilities(self, questions: list[ActionQuestion]) -> Float[np.ndarray, "B actions"]:
        self.batch_sizes = [*self.batch_sizes[-999:], len(questions)]
        features = self.vlm.encode_images(self.vlm.preprocess(np.stack([question.frames for question in questions])))
        found = softmax(self._scorer(questions[0]).log_probs(features).cpu().numpy())
        if not np.isfinite(found).all():
            raise UserError("expected probabilities of the model, got NaN: its weights overflow or are damaged")
        return found

    def _scorer(self, question: ActionQuestion) -> CandidateScorer:
        key = question.batch_key[:2]
        if key not in self._scorers:
            prompt = self.vlm.action_prompt(question.title, question.action_names)
            self._scorers[key] = CandidateScorer(self.vlm, prompt, question.action_names, cache_prompt=True)
            if len(self._scorers) > MAX_SCORERS:
                self._scorers.popitem(last=False)
        self._scorers.move_to_end(key)
        return self._scorers[key]
