"""The notebooks run from top to bottom; their stored outputs are small and name no machine."""

import json
import re

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


LITTLE = {
    "num_trials=25": "num_trials=5",
    "num_trials=27": "num_trials=9",
    "num_epochs=1000": "num_epochs=60",
    "num_epochs=18": "num_epochs=9",
    "Choice(4, 6, ": "Choice(4, ",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    """With less work than it has."""
    texts = {file.relative_to(readme.ROOT): file.read_text() for file in readme.ROOT.glob("experiments/*.py")}
    texts[path.relative_to(readme.ROOT)] = path.read_text()
    assert any(much in text for much in LITTLE for text in texts.values())
    for file, text in texts.items():  # notebooks look for studies in the folder above
        for much, little in LITTLE.items():
            text = text.replace(much, little)
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    notebook, folder = nbformat.read(tmp_path / path.relative_to(readme.ROOT), 4), tmp_path / "experiments/notebooks"
    nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    kept = {cell["id"]: len(cell.get("outputs", [])) for cell in nbformat.read(path, 4).cells}
    for cell in notebook.cells:
        shown = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        assert len(shown) == kept[cell["id"]]
