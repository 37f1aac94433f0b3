"""Every script in `experiments`, started as a person starts it, runs to its end: small, on a few images."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from speed import forms, peers
from test_peers import synthetic_work

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
SMALL = ("--quick", "--num-trials", "1", "--num-epochs", "1", "--num-folds", "2")
STUDIES = ("regression", "fashion_mlp", "fashion_cnn")
LEFT = ("results.json", "trials.csv", "histories.npz", "model.msgpack", "report.html")
NEEDED = {  # flags, and what must be there at the end, below --out
    "regression": (SMALL, LEFT),
    "reproduce": (SMALL, ["report.html", *(f"{study}/{name}" for study in STUDIES for name in LEFT)]),
    "seeds": (["--quick", "--studies", "regression"], ["seeds.json"]),
    "benchmark": (
        ["--quick", "--synthetic", "--no-peers", "--seconds", "0", "--studies", "regression"],
        ["benchmark.json", "benchmark.md", "speed.png", "growth.png"],
    ),
}


def run(script, *flags, cwd):
    """A script on small data -> its standard output."""
    return python(ROOT / "tests" / "small_data.py", script, *flags, cwd=cwd)


def python(*command, cwd):
    """What Python prints in a process that ends well."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_every_script_has_a_test_here():
    """But the examples, which have one of their own."""
    alike = {"fashion_mlp", "fashion_cnn"}
    there = {str(path.relative_to(EXPERIMENTS).with_suffix("")) for path in EXPERIMENTS.rglob("*.py")}
    there = {name for name in there if not name.startswith("examples/") and not name.endswith("__init__")}
    assert there == {
        *NEEDED,
        *alike,
        "homework",
        "speed/forms",
        "speed/growth",
        "speed/peers",
        "speed/prediction",
        "speed/score",
        "speed/time_to_score",
        "readme",
    }


@pytest.mark.parametrize("name", NEEDED)
def test_it_runs_to_its_end_and_leaves_its_files(name, tmp_path):
    flags, files = NEEDED[name]
    run(EXPERIMENTS / f"{name}.py", *flags, "--out", tmp_path / "out", cwd=tmp_path)
    for file in files:
        assert (tmp_path / "out" / file).stat().st_size > 0


@pytest.mark.parametrize("name", ["fashion_mlp", "fashion_cnn"])
def test_the_experiment_of_a_classifier_runs_to_its_end(name, tmp_path):
    run(EXPERIMENTS / f"{name}.py", *SMALL, "--out", tmp_path / "out", cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["test"]["confusion"]


def test_forms_prints_a_line_of_json(tmp_path):
    work = synthetic_work("regression")
    work = forms.order_work("regression", work.x, work.y, work.trials, num_folds=3, num_epochs=2, batch_size=10)
    peers.save_work(tmp_path / "work.npz", work)
    flags = ("--form", "folds in parallel", "--work", tmp_path / "work.npz", "--repeats", 1, "--seconds", 0)
    line = python("-m", "speed.forms", *flags, cwd=EXPERIMENTS)
    assert len(json.loads(line)["us_per_sample"]) == 1


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_peers_prints_a_line_of_json(tmp_path):
    peers.save_work(tmp_path / "work.npz", synthetic_work("regression"))
    flags = ("--peer", "torch eager 2 threads", "--work", tmp_path / "work.npz", "--repeats", 1, "--seconds", 0)
    line = python(EXPERIMENTS / "speed" / "peers.py", *flags, cwd=tmp_path)
    assert len(json.loads(line)["us_per_sample"]) == 1


def test_readme_writes_the_readme_of_its_checkout(tmp_path):
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    runs = tmp_path / "runs" / "regression"
    runs.mkdir(parents=True)
    results = json.loads((EXPERIMENTS / "results" / "regression.json").read_text())
    refit = {
        "state": "diverged",
        "failure": "it diverged",
        "train_loss": None,
        "folds_train_loss": 0.1,
        "warning": None,
    }
    results |= {"test": dict.fromkeys(results["test"]), "ensemble": None, "refit": refit}
    (runs / "results.json").write_text(json.dumps(results))
    run(tmp_path / "experiments" / "readme.py", tmp_path / "runs", cwd=tmp_path)
    text = (tmp_path / "docs" / "reproduce.md").read_text()
    assert "none (0.27)" in text and "it diverged" in text
    assert np.isclose(len(text), len((ROOT / "docs" / "reproduce.md").read_text()), rtol=0.05)
