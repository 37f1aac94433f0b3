"""The notebooks run from their first cell to their last, and what is kept of them is what a reader would get."""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
NOTEBOOKS = sorted((EXPERIMENTS / "notebooks").glob("*.ipynb"))
MOST_BYTES = 300_000
NAMES = [path.stem for path in NOTEBOOKS]


def cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell) -> list[tuple[str, tuple[str, ...]]]:
    """What kinds of output a cell has."""
    return [(output.output_type, tuple(sorted(output.get("data", ())))) for output in cell.outputs]


def test_there_are_two():
    assert NAMES == ["digits", "regression"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_kept_is_small_whole_and_of_no_machine(path):
    text, notebook = path.read_text(encoding="utf-8"), nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert len(text.encode()) < MOST_BYTES
    assert not re.search(r"/(home|root|work|tmp|opt|usr|Users|private)/", text)
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert not [output for cell in cells(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", ()) for cell in cells(notebook) for output in cell.outputs) >= 2
    assert max(len(line) for cell in notebook.cells for line in cell.source.splitlines()) <= 120


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_and_shows_what_is_kept_of_it(path, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("pandas", reason="pandas is not installed")
    kept, notebook = nbformat.read(path, 4), nbformat.read(path, 4)
    (tmp_path / "cwd").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (EXPERIMENTS.parent, EXPERIMENTS))))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("XLA_FLAGS", "")
    where = {"metadata": {"path": str(tmp_path / "cwd")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    for before, after in zip(cells(kept), cells(notebook), strict=True):
        assert kinds(after) == kinds(before), before.source
    (folder,) = (tmp_path / "cwd" / "runs").iterdir()
    assert (folder / "results.json").exists() and (folder / "trials.csv").exists()
