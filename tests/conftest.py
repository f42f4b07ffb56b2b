"""Tests compare numbers of the CPU, on a machine with a GPU as well. Trainings can be killed at a chosen step."""

import io
import json
import os
import pickle
import tempfile
from types import FunctionType

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from PIL import Image
from torch import nn

os.environ["CUDA_VISIBLE_DEVICES"] = ""
_DATASETS_CACHE = tempfile.TemporaryDirectory()  # removed when the tests end
os.environ["HF_DATASETS_CACHE"] = _DATASETS_CACHE.name  # before `datasets` is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start; tests run in one process a core
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Calls of these modules are checked against their annotations, array shapes included.
CHECKED = """vlm.model vlm.image_input vlm.image_features vlm.decoding vlm.segmentation vlm.sinusoidal_init
vlm.training.attention_supervision vlm.training.mixture pretrain.pvp_questions pretrain.pvp_prediction
pretrain.answer_objective pretrain.reconstruction_metrics agents.bc_dataset agents.auxiliary_action_head
agents.frame_questions agents.seen_frame"""
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


@pytest.fixture
def spelled_numbers(monkeypatch):
    """SmolVLM's processor asks for a package that spells numbers, in questions about videos; go without."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)


@pytest.fixture
def write_refcoco(tmp_path):
    """A function that writes RefCOCO in REFER's layout and returns its folder.

    It holds a grey picture with a red rectangle, and for it the expressions "thing" and "object" of every split.
    """

    def write(splits, size, top, left, bottom, right):
        place, images = tmp_path / "refer", "images/mscoco/images/train2014"
        (place / images).mkdir(parents=True)
        (place / "refcoco").mkdir()
        picture, picture_name = np.full((*size, 3), 60, np.uint8), "COCO_train2014_000000000011.jpg"
        picture[top:bottom, left:right] = (200, 30, 30)
        Image.fromarray(picture).save(place / images / picture_name, format="PNG")
        ref, refs = {"ann_id": 5, "category_id": 1, "image_id": 11, "file_name": "x"}, []
        for i, split in enumerate(splits.split()):
            words = {2 * i: "thing", 2 * i + 1: "object"}
            sentences = [{"sent_id": n, "raw": word, "sent": word, "tokens": [word]} for n, word in words.items()]
            refs.append({**ref, "ref_id": i + 1, "split": split, "sent_ids": list(words), "sentences": sentences})
        (place / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs))
        outline = [left, top, right, top, right, bottom, left, bottom]
        found = {
            "images": [{"id": 11, "file_name": picture_name, "height": size[0], "width": size[1]}],
            "annotations": [{"id": 5, "image_id": 11, "category_id": 1, "segmentation": [outline]}],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (place / "refcoco" / "instances.json").write_text(json.dumps(found))
        return place

    return write
