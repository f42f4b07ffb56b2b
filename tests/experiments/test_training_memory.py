"""The table of what large trainings take is the one that the command prints, of a model of the right size."""

from pathlib import Path

import pytest

from experiments.training_memory import kept_activations, llava_7b, memory_table

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def vlm():
    return llava_7b()


def test_the_page_has_the_table_that_the_command_prints(vlm):
    assert memory_table(vlm) in PAGE.read_text()


def test_the_model_has_the_size_of_the_released_one_and_takes_no_memory(vlm):
    assert sum(parameter.numel() for parameter in vlm.model.parameters()) == 7_063_427_072
    assert {parameter.device.type for parameter in vlm.model.parameters()} == {"meta"}


def test_the_page_says_what_activation_checkpointing_keeps(vlm):
    assert f"it keeps {kept_activations(vlm) / 1e9:.2f} GB for 1,000 tokens" in PAGE.read_text()
