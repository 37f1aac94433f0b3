"""The homework's three studies, and studies derived from them."""

import csv
import inspect
import json
import runpy
import threading
from pathlib import Path
from types import SimpleNamespace

import homework
import jax
import jax.numpy as jnp
import pytest
import regression
import reproduce

import hw1jax as hw
from hw1jax import cli, environment
from hw1jax.search import networks, space, space_text, study

HOMEWORK = pytest.mark.parametrize("asked", reproduce.STUDIES.values(), ids=reproduce.STUDIES)


@HOMEWORK
def test_a_task_made_in_one_precision_computes_in_the_other(asked):
    """Tasks are cached: one that held an array would carry the precision of its first use into the next."""
    draw = {"hidden_units": (5, 4, 3), "learning_rate": 0.01, "l2": 0.001, "optimizer": "adam"}
    draw |= {"channels": (3, 4)} if "channels" in asked.space else {}
    fixed = {name: draw[name] for name in ("hidden_units", "channels") if name in draw}
    wide = {name: (hw.Int(1, 9, width=True),) * len(draw[name]) for name in fixed}
    narrowed = study.narrow(asked, **wide)
    tasks = []

    def precision():
        network = networks.own(narrowed, draw)
        task, h = network.task, network.hyperparameters
        tasks.append(task)
        params = jax.eval_shape(task.init, jax.random.key(0), h)
        x = jnp.zeros((2, 28, 28), jnp.uint8) if asked.classes else jnp.zeros((2, 1))
        outputs = jax.eval_shape(lambda params: task.apply(params, task.prepare(x), h), params)
        return {leaf.dtype.name for leaf in jax.tree.leaves([params, outputs])}

    with jax.enable_x64(True):
        assert precision() == {"float64"}
    assert precision() == {"float32"}
    with jax.enable_x64(True):
        assert precision() == {"float64"}
    assert tasks[0] is tasks[1] is tasks[2]


@HOMEWORK
def test_the_reports_best_can_be_drawn_and_everything_says_what_it_is(asked):
    best = dict(asked.reference.params)
    assert space_text.draw_from_json(asked.space, best) == best
    columns = space.columns(asked.space)
    assert list(space.flatten(best)) == list(columns)
    for column, value in space.flatten(best).items():
        r = columns[column]
        assert value in r.values if isinstance(r, hw.Choice) else r.low <= value <= r.high
    assert set(asked.help) == set(asked.space)
    assert set(asked.inputs) <= set(inspect.signature(asked.data).parameters)


@HOMEWORK
def test_an_experiment_is_read_in_one_sitting(asked):
    """A newcomer reads it first; the study itself is 30 to 60 lines, what lies beyond it another 20 to 40."""
    module = inspect.getmodule(asked.task)
    assert module is not None
    source = inspect.getsource(module)
    assert len(source.splitlines()) <= 125
    assert 29 <= source.count("\n", source.index("STUDY = "), source.index("\n)\n", source.index("STUDY = "))) <= 60


# A copy of regression.py under another name, with one hyperparameter more: its range, and its use.

ONE_MORE = {
    '        "l2": hw.Float(1e-4, 1e-1, log=True),\n': '        "momentum": hw.Float(0.5, 0.99),\n',
    "import jax.numpy as jnp\n": "import optax\n",
}
OPTIMIZER = 'hw.chosen_l2(h["optimizer"], h["learning_rate"], h["l2"])'
WITH_MOMENTUM = f'optax.chain({OPTIMIZER}, optax.trace(h["momentum"]))'


@pytest.mark.slow
def test_one_more_hyperparameter_is_a_flag_and_in_all_that_a_run_leaves(tmp_path, monkeypatch):
    """No other file has heard of it, or of the study's name."""
    source = inspect.getsource(regression)
    changes = {line: line + new for line, new in ONE_MORE.items()} | {OPTIMIZER: WITH_MOMENTUM}
    for old, new in (changes | {'name="regression",': 'name="other",'}).items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    path = tmp_path / "with_momentum.py"
    path.write_text(source)
    module = runpy.run_path(str(path))
    monkeypatch.setattr(environment, "use_all_cores", lambda *_: None)  # the tests have devices of their own
    monkeypatch.setattr(cli, "stop_on_signals", threading.Event)
    out, other = tmp_path / "out", module["STUDY"]
    sizes = "--num-trials 3 --num-epochs 2 --num-folds 2 --num-devices 1 --hidden-units 2-5 2-5 --momentum 0.6-0.9"
    monkeypatch.setattr("sys.argv", [str(path), *sizes.split(), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        hw.main(other, module["__doc__"])
    record = json.loads((out / "results.json").read_text())
    assert (end.value.code, record["study"]) == (0, "other")
    assert record["config"]["space"]["momentum"] == {"low": 0.6, "high": 0.9}
    assert 0.6 <= record["best"]["params"]["momentum"] <= 0.9
    with (out / "trials.csv").open() as file:
        drawn = [float(row["momentum"]) for row in csv.DictReader(file)]
    assert len(set(drawn)) == 3 and all(0.6 <= value <= 0.9 for value in drawn)
    assert "<td>momentum</td>" in (out / "report.html").read_text()
    assert hw.load_model(out / "model.msgpack", other).predict(jnp.zeros((7, 1))).shape == (7, 1)


@HOMEWORK
def test_a_page_answers_three_questions_by_the_runs_that_there_are(asked, monkeypatch):
    def record(folder):
        if folder.name.endswith("_halving"):
            raise ValueError("it has not run")
        test = dict.fromkeys(asked.reference.test, 0.123 if folder.name == asked.name else 0.456)
        best, config = {"mean_val_loss": 0.5, "std_val_loss": 0.1}, {"num_folds": 3, "data_sha256": "0a"}
        theirs = {"name": "the report", "test": dict(asked.reference.test), "data": ""}
        counts = {"complete": 1, "pruned": 0, "failed": 0}
        return {"title": "", "best": best, "config": config, "test": test, "ensemble": test, "reference": theirs,
                "trials": counts, "timing": {"total_seconds": 1.0}, "refit": {"failure": None}}  # fmt: skip

    monkeypatch.setattr(homework.run_folder, "read_record", record)
    folder, config = Path("runs") / asked.name, {"data_sha256": "0a"}
    results = SimpleNamespace(study=asked, folder=folder, record={"config": config}, has_usual_data=True)
    table, luck = homework.questions(results)
    assert "Is it reproduced?" in table and "How lucky was it?" in table and "instead" not in table
    assert "0.123" in table and "0.456" in table and "With seeds 0 to " in luck
    results.has_usual_data = False
    assert homework.questions(results) == [table], "seeds.json is of the usual data"
    results.record = {"config": {"data_sha256": "1b"}}
    assert homework.questions(results) == [], "the others are of other data"
    for other in homework.ways(asked)[:2]:
        results.study = other
        assert homework.questions(results) == []
    monkeypatch.setattr(homework.run_folder, "read_record", lambda folder: record(Path("x_halving")))
    results.study, results.record = asked, {"config": config}
    assert homework.questions(results) == []
