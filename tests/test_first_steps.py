"""The notebook of the first steps runs from top to bottom, without Jupyter."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/first_steps.ipynb"


@pytest.mark.sim
def test_the_cells_of_the_notebook_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        assert not cell["outputs"], "a notebook is kept without what it printed"
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    assert (tmp_path / "first_steps.mp4").stat().st_size > 1000
    assert names["moved"].std() > 0, "the advantages tell the episodes apart"
    assert abs(names["advantages"].sum()) < 1e-5
    assert names["after"] < names["before"]
