"""The notebooks run from top to bottom, and what they keep of an earlier run is small and names no machine."""

import json
import re
import shutil

import nbclient
import nbformat
import pytest
import readme

FOLDER = readme.ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_are_whole_small_and_without_paths(path):
    assert path.stat().st_size < 300_000
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds and "display_data" in kinds
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not re.search(r"/(work|root|home|tmp)/", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    (tmp_path / "experiments" / "notebooks").mkdir(parents=True)
    for script in (readme.ROOT / "experiments").glob("*.py"):  # beside which notebooks look for studies
        shutil.copy(script, tmp_path / "experiments")
    folder = tmp_path / "experiments" / "notebooks"
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    kept = {cell["id"]: len(cell.get("outputs", [])) for cell in nbformat.read(path, 4).cells}
    for cell in notebook.cells:
        shown = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        assert len(shown) == kept[cell["id"]]
