"""Six studies that are not the homework's, each from its data to its page, and a member of each trained alone."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import processes
import pytest

from hw1jax import folds, plan, population, report, space, storage, study, training
from hw1jax.run import run_study

EXAMPLES = Path(__file__).parents[1] / "experiments" / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
SMALL = {"num_trials": 3, "num_epochs": 2}


def load(name):
    """The study of an example."""
    pytest.importorskip("sklearn")
    if name == "diabetes":
        pytest.importorskip("equinox")
    return importlib.import_module(name).STUDY


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_ends_with_results_a_page_and_a_journal(name, tmp_path):
    asked = load(name)
    with compilations.counted() as compiled:
        results = run_study(asked, out=tmp_path / name, **SMALL)
    num_groups = len({space.key_of(space.fixed(asked.space, trial, widest=True)) for trial in draws(asked)})
    assert results.record["num_programs"] == num_groups
    assert sum("fit" in program for program in compiled) == num_groups + 1  # and the refit
    assert set(results.best.params) == set(asked.space)
    assert results.trials.means[asked.score].shape == (3,)
    assert set(asked.metrics) <= set(results.test)
    some = jax.tree.map(lambda a: a[:5], results.data.x_test)
    np.testing.assert_allclose(results.model.predict(some), results.histories["test_outputs"][:5], rtol=1e-5, atol=1e-5)

    page = report.write_report(tmp_path / name, asked).read_text()
    for word in (*asked.space, *asked.metrics):
        assert word.replace("_", " ") in page
    with (tmp_path / name / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(space.columns(asked.space)) <= set(rows[0])
    assert {f"mean_val_{metric}" for metric in asked.metrics} <= set(rows[0])
    opened = optuna.load_study(
        study_name=asked.name,
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / name / "journal.log"))
        ),
    )
    assert [trial.params for trial in opened.trials] == [space.flatten(trial) for trial in draws(asked)]
    assert opened.direction.name == ("MAXIMIZE" if asked.maximize else "MINIMIZE")


def draws(asked, num_trials=3):
    return [space.random_draw(asked.space, 0, number) for number in range(num_trials)]


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_an_examples_space(name, tmp_path):
    asked = load(name)
    shown = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    for hyperparameter, declared in asked.space.items():
        flag = hyperparameter.replace("_", "-")
        flag += "s" if isinstance(declared, space.Choice) and not flag.endswith("s") else ""
        assert f"--{flag}" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_member_of_an_example_equals_the_network_trained_alone(name):
    """In float64, over two epochs with their short last batches: validation loss and parameters to 1e-10."""
    with jax.enable_x64(True):
        asked = replace(load(name), folds=None)
        order = study.order(asked, num_epochs=2, num_folds=3)
        data = few(study.load_data(asked, {}), 100)
        splits = folds.k_fold(100, 3, (0,))
        # At large learning rates training is chaotic: rounding grows.
        drawn = [d | {"learning_rate": min(d["learning_rate"], 0.01)} for d in draws(asked)]
        fixed = space.fixed(asked.space, drawn[0], widest=True)
        shared = [d for d in drawn if space.fixed(asked.space, d, widest=True) == fixed]
        layout = plan.make_layout(asked, order.search, data)
        members = plan.make_population(
            asked, order.search, population.Plan(len(shared), layout=layout), data, splits, fixed
        )
        members = members._replace(task=members.task._replace(init=in_float64(members.task.init)))
        trials = population.Trials(
            jax.random.key(0), np.array([drawn.index(d) for d in shared]), space.as_arrays(asked.space, shared)
        )
        *_, last = population.train(members, trials)
        loss, params = alone(members, asked, drawn[0], 0, fold=1)
        np.testing.assert_allclose(last.val["loss"][0, 1, -1], loss, rtol=1e-10, atol=1e-10)
        found = jax.tree.map(lambda a: a[0, 1], last.state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), found, params)


def in_float64(init):
    """The initial parameters in float64, which Flax doesn't make, to 1/64, which no way to compile rounds otherwise."""

    def wide(leaf):
        return jnp.round(64 * leaf.astype(jnp.float64)) / 64

    return lambda key, h: jax.tree.map(wide, init(key, h))


def few(data, count):
    """The first samples, in float64 where they are floats."""

    def part(leaf):
        return np.asarray(leaf[:count], np.float64 if np.asarray(leaf).dtype.kind == "f" else None)

    x, y, weights = jax.tree.map(part, (data.x_train, data.y_train, data.weights))
    return data._replace(x_train=x, y_train=y, weights=weights)


def alone(members, asked, draw, number, fold):
    """(validation loss, parameters) by a plain loop over the batches as they are, none filled up."""
    task, spec, key = members.task, members.spec, jax.random.key(0)
    h = jax.tree.map(jnp.asarray, study.one_trial(asked, draw))
    first_key = jax.random.fold_in(jax.random.fold_in(key, number), fold)
    # Compiled, as operations one by one are compiled too, each of them.
    params, state = jax.jit(lambda key: training.init_variables(task, key, h))(first_key)
    rule = training.optimizer_of(task, h, members.num_steps)
    opt_state = jax.jit(rule.init)(params)
    for word in (population.TRAINING, number, fold):
        key = jax.random.fold_in(key, word)
    x, y, weights = jax.tree.map(jnp.asarray, tuple(members.data))

    def mean_loss(params, state, index, key, train):
        taken = jax.tree.map(lambda a: a[index], x)
        outputs, state = training.outputs_of(
            task, params, state, task.prepare(taken), h, mask=jnp.ones(len(index), bool), key=key, train=train
        )
        values = task.loss(outputs, jax.tree.map(lambda a: a[index], y))
        w = jnp.ones(len(index)) if weights is None else weights[index]
        return jnp.sum(values * w) / jnp.sum(w), state

    @jax.jit
    def update(params, state, opt_state, index, key):
        (value, state), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params, state, index, key, True)
        updates, opt_state = rule.update(gradient, opt_state, params, value=value)
        return optax.apply_updates(params, updates), state, opt_state

    order = folds.minibatches(members.folds, range(spec.num_epochs), batch_size=spec.batch_size, seed=spec.seed)[fold]
    for epoch, batches in enumerate(order):
        epoch_key = jax.random.fold_in(key, epoch)
        for step, index in enumerate(batches):
            index = jnp.asarray(index[index >= 0])
            if len(index):
                step_key = jax.random.fold_in(epoch_key, step) if training.wants_key(task) else None
                params, state, opt_state = update(params, state, opt_state, index, step_key)
    held_out = jnp.asarray(members.folds[fold].validation)
    loss, _ = jax.jit(lambda params, state: mean_loss(params, state, held_out, None, False))(params, state)
    return loss, params


@pytest.mark.slow
def test_an_example_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    load("digits")
    command = [sys.executable, EXAMPLES / "digits.py", "--num-trials", "6", "--num-epochs", "4", "--quiet"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}

    def start(out):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*command, "--out", out], env=environment, **streams)
        processes.STARTED.append(process)
        return process

    undisturbed = start(tmp_path / "a")
    assert processes.finish(undisturbed, 300)[0] == 0
    killed = start(tmp_path / "b")
    processes.wait_for(lambda: list((tmp_path / "b").glob("brackets/*/*.npz")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b" / "results.json").exists()
    code, errors = processes.finish(start(tmp_path / "b"), 300)
    assert code == 0, errors
    kept = [storage.read_arrays(tmp_path / run / "histories.npz") for run in "ab"]
    assert {n: a.tobytes() for n, a in kept[0].items()} == {n: a.tobytes() for n, a in kept[1].items()}
    assert (tmp_path / "a" / "trials.csv").read_text() == (tmp_path / "b" / "trials.csv").read_text()
    best = [json.loads((tmp_path / run / "results.json").read_text())["best"] for run in "ab"]
    assert best[0] == best[1]
