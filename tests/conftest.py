"""Tests compare numbers of the CPU, on a machine with a GPU as well; and a training can be killed at a chosen step."""

import os

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def kill_at_step(monkeypatch):
    """A function that lets the n-th call of an objective's loss end as Ctrl-C does.

    It returns the list of the calls' arguments so far, the killed one included: a batch is the last of each.
    """

    def patch(objective_class, step, method="loss"):
        calls, original = [], getattr(objective_class, method)

        def killed(self, *arguments):
            calls.append(arguments)
            if len(calls) == step:
                raise KeyboardInterrupt
            return original(self, *arguments)

        monkeypatch.setattr(objective_class, method, killed)
        return calls

    return patch
