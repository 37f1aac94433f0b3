"""The seven example studies: all show their flags and train, three are compared with a plain loop."""

import csv
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import plain
import pytest

import hw1jax as hw
from hw1jax import cli, report
from hw1jax.search import networks, space, study_data

EXAMPLES = Path(__file__).parents[1] / "experiments" / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
TRAINED, WHOLE = ["digits", "nnx_net", "two_metrics"], "two_inputs"  # against the plain loop; from its data to its page


def load(name):
    """The study of an example."""
    pytest.importorskip("sklearn")
    if name == "diabetes":
        pytest.importorskip("equinox")
    return importlib.import_module(name).STUDY


def draws(asked, num_trials):
    return [space.random_draw(asked.space, 0, number) for number in range(num_trials)]


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_an_examples_space(name, monkeypatch, capsys):
    asked = load(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        hw.main(asked, inspect.getmodule(asked.task).__doc__)
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"--{cli.flag_names(asked)[hyperparameter]} " in shown for hyperparameter in asked.space)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES} - {*TRAINED, WHOLE}))
def test_an_example_is_trained(name):
    asked, (draw,) = load(name), draws(load(name), 1)
    task, data = networks.padded(asked, draw).task, study_data.load_data(asked, {})
    functions = task.init, task.apply, task.loss, task.optimizer
    h = space.as_arrays(asked.space, [draw | {"learning_rate": 0.002}])
    found = hw.cross_validate(*functions, h, data.x_train[:200], data.y_train[:200], key=jax.random.key(0),
                              num_folds=2, num_epochs=3, batch_size=50, metrics=dict(asked.metrics))  # fmt: skip
    assert np.isfinite(found.val_loss).all() and (found.train_loss[..., -1] < found.train_loss[..., 0]).all()


@pytest.mark.slow
def test_an_example_ends_with_results_a_page_and_a_journal(tmp_path):
    asked = load(WHOLE)
    (draw,) = draws(asked, 1)
    results = hw.run_study(asked, out=tmp_path, num_trials=1, num_epochs=1, batch_size=100, num_devices=1)
    assert set(results.best.params) == set(asked.space)
    assert set(asked.metrics) <= set(results.test)
    some = jax.tree.map(lambda a: a[:5], results.data.x_test)
    np.testing.assert_allclose(results.model.predict(some), results.histories["test_outputs"][:5], rtol=1e-5, atol=1e-5)
    page = report.write_report(tmp_path, asked).read_text()
    assert all(word.replace("_", " ") in page for word in (*asked.space, *asked.metrics))
    with (tmp_path / "trials.csv").open() as file:
        columns = set(next(csv.reader(file)))
    assert {*space.columns(asked.space), *(f"mean_val_{metric}" for metric in asked.metrics)} <= columns
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    opened = optuna.load_study(study_name=asked.name, storage=optuna.storages.JournalStorage(journal))
    assert [trial.params for trial in opened.trials] == [space.flatten(draw)]
    assert opened.direction.name == ("MAXIMIZE" if asked.maximize else "MINIMIZE")


@pytest.mark.parametrize("name", TRAINED)
def test_a_member_of_an_example_equals_the_network_trained_alone(name):
    """In float64, over two epochs with their short last batches: losses and parameters to 1e-10.

    Digits have dropout, batch normalisation and a schedule; nnx_net has PRNG keys in its state; the two metrics have
    weights.
    """
    asked, (first, second) = load(name), draws(load(name), 2)
    task = networks.padded(asked, first).task
    drawn = [draw | {"learning_rate": min(draw["learning_rate"], 0.01)} for draw in (first, second)]
    data = study_data.load_data(asked, {})
    x, y = np.float64(data.x_train[:100]), data.y_train[:100]
    weights = None if data.weights is None else np.float64(data.weights[:100])
    settings = {"key": jax.random.key(0), "num_epochs": 2, "batch_size": 16, "weights": weights}
    settings["folds"] = hw.k_fold(100, 2, (0,))
    with jax.enable_x64(True):
        h = space.as_arrays(asked.space, drawn)
        task = task._replace(init=in_float64(task.init))
        functions = task.init, task.apply, task.loss, task.optimizer
        found = hw.cross_validate(*functions, h, x, y, **settings, return_params=True)
        plain.assert_equal(found, plain.cross_validate(plain_net(task), h, x, y, **settings))


def in_float64(init):
    """The initial variables in float64, which Flax doesn't make, to 1/64, which no way to compile rounds otherwise."""

    def wide(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.round(64 * leaf.astype(jnp.float64)) / 64

    return lambda key, h: jax.tree.map(wide, init(key, h))


def plain_net(task):
    """The example's own functions, as the plain loop takes them."""
    wanted, optimizers = (inspect.signature(function).parameters for function in (task.apply, task.optimizer))
    has_state = "state" in wanted

    def init(key, h):
        return task.init(key, h) if has_state else (task.init(key, h), None)

    def forward(params, state, x, h, key, train):
        given = {"key": key, "train": train, "state": state, "mask": jnp.ones(len(x), bool)}
        outputs = task.apply(params, x, h, **{name: given[name] for name in wanted if name in given})
        return outputs if has_state else (outputs, state)

    def optimizer(h, num_steps):
        return task.optimizer(h, num_steps) if len(optimizers) == 2 else task.optimizer(h)

    return plain.Net(init, forward, task.loss, optimizer)
