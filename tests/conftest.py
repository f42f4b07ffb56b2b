"""Tests compare numbers of the CPU, on a machine with a GPU as well. Trainings can be killed at a chosen step."""

import io
import os
import pickle
from types import FunctionType

import pytest
import torch
from jaxtyping import install_import_hook
from torch import nn

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start; tests run in one process a core
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Calls of these modules are checked against their annotations, array shapes included.
CHECKED = """vlm.model vlm.image_input vlm.image_features vlm.decoding vlm.segmentation vlm.sinusoidal_init
vlm.training.attention_supervision vlm.training.mixture pretrain.pvp_questions pretrain.pvp_prediction
pretrain.answer_objective pretrain.reconstruction_metrics agents.bc_dataset agents.auxiliary_action_head"""
install_import_hook(CHECKED.split(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def pytest_collection_modifyitems(items):
    """Mark as fast what is not marked as slow."""
    for item in items:
        if item.get_closest_marker("slow") is None:
            item.add_marker("fast")


class _ModuleFinder(pickle.Pickler):
    """Lists the modules that would be pickled with an object, as when a data worker gets it."""

    def __init__(self):
        super().__init__(io.BytesIO())
        self.found = []

    def reducer_override(self, thing):
        if isinstance(thing, nn.Module):
            self.found.append(type(thing).__name__)
        return (tuple, ()) if isinstance(thing, (nn.Module, FunctionType)) else NotImplemented


@pytest.fixture
def modules_in():
    """A function that returns the names of the classes of all torch modules that an object holds, at any depth."""

    def find(thing):
        finder = _ModuleFinder()
        finder.dump(thing)
        return finder.found

    return find


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
