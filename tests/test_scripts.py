"""Every script in `experiments` shows its help; those that run studies run to the end on small data."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import readme

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
SMALL = "--quick --num-trials 1 --num-epochs 1 --num-folds 2 --num-devices 1"
STUDIES = ("regression", "fashion_mlp", "fashion_cnn")
LEFT = ("results.json", "results.sha256", "trials.csv", "histories.npz", "model.msgpack", "report.html")


def run(script, *flags, cwd):
    """A script in a process of its own, on small data, compiled without optimization -> what it prints."""
    command = [sys.executable, str(ROOT / "tests" / "small_data.py"), str(script), *" ".join(flags).split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in EXPERIMENTS.glob("*.py")} - {"readme", "homework", "peers"})
)
def test_a_script_shows_its_help(name, monkeypatch, capsys):
    """All but readme.py, homework.py and peers.py, which have no --help."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "--quick" in shown
    assert ("--beyond," in shown) == (name in STUDIES), "a flag, not only in the first lines"


@pytest.mark.slow
def test_reproduce_leaves_three_studies_and_a_page(tmp_path):
    run(EXPERIMENTS / "reproduce.py", SMALL, "--out out", cwd=tmp_path)
    for file in ("report.html", *(f"{study}/{name}" for study in STUDIES for name in LEFT)):
        assert (tmp_path / "out" / file).stat().st_size > 0
    for study in STUDIES:
        results = json.loads((tmp_path / "out" / study / "results.json").read_text())
        assert np.sum(results["test"]["confusion"] or 0) == (0 if study == "regression" else 20), "small images"


@pytest.mark.slow
def test_seeds_leaves_its_numbers(tmp_path):
    run(EXPERIMENTS / "seeds.py", "--quick --studies regression --ways report --out out", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "seeds.json").read_text())["regression"]
    assert found["refit"][0]["loss"] > 0 and found["report"][0]["trials"] == 6


@pytest.mark.slow
def test_readme_writes_the_readme_of_its_checkout(tmp_path):
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    results = json.loads((readme.RESULTS / "regression.json").read_text())
    refit = {"state": "diverged", "failure": "it diverged", "train_loss": None, "folds_train_loss": 0.1}
    results |= {"test": dict.fromkeys(results["test"]), "ensemble": None, "refit": refit | {"warning": None}}
    (tmp_path / "runs" / "regression").mkdir(parents=True)
    (tmp_path / "runs" / "regression" / "results.json").write_text(json.dumps(results))
    run(tmp_path / "experiments" / "readme.py", "runs", cwd=tmp_path)
    text = (tmp_path / "docs" / "reproduce.md").read_text()
    assert "none (0.27)" in text and "it diverged" in text
    assert np.isclose(len(text), len((ROOT / "docs" / "reproduce.md").read_text()), rtol=0.05)


@pytest.mark.slow
def test_the_commands_of_the_docs_run_one_after_the_other_in_one_clone(tmp_path):
    page = (ROOT / "docs" / "reproduce.md").read_text()
    block = page.partition("<!-- commands: searching further -->\n```bash\n")[2].partition("```")[0]
    commands = [line.partition("#")[0].split()[1:] for line in block.splitlines()]
    assert len(commands) == 6
    for name in ("train", "test"):
        rows = [f"{x / 10},{np.sin(x / 10)}" for x in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["input,label", *rows]))
    for script, *flags in (["experiments/regression.py"], *commands):  # the main command's own folder is there first
        run(ROOT / script, *flags, "--num-trials 3 --num-epochs 2 --num-devices 1", cwd=tmp_path)
    found = {path.parent.name for path in (tmp_path / "runs").glob("*/results.json")}
    assert found == {"regression", "regression_beyond", "halving", "deeper", "third", "tpe", "own"}
