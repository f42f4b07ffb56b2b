"""The notebook runs from its first cell to its last, and is stored without outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NotebookClient = pytest.importorskip("nbclient").NotebookClient

FILE = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def test_the_notebook_is_stored_without_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    for name, value in {"PLAY_STEPS": "20", "TRAIN_STEPS": "4", "OUT": str(tmp_path / "run")}.items():
        monkeypatch.setenv(f"QUICKSTART_{name}", value)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": FILE.parent}}).execute()
    assert (tmp_path / "run" / "last" / "model.safetensors").is_file()
