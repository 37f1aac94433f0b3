"""What a stranger gets wrong in a study of their own: one line that names the argument, before anything is written."""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from hw1jax import Choice, Dataset, Float, Int, Study, Task, cross_entropy, run_study, squared_error

NET = nn.Dense(1)
CLASSES = np.arange(61) % 3


def labelled(y):
    """The data with other labels, in both parts."""
    return toy.DATA._replace(y_train=y, y_test=y[: len(toy.DATA.x_test)])


def plain(**other):
    """A linear net, but for what is another."""
    functions = {
        "init": lambda key, h: NET.init(key, jnp.zeros((1, 1))),
        "apply": lambda params, x, h: NET.apply(params, x),
        "loss": squared_error,
        "optimizer": lambda h: optax.sgd(h["learning_rate"]),
    }
    return lambda fixed: Task(**functions | other)


def study(**other):
    space = {"learning_rate": Float(1e-3, 1e-1, log=True)}
    settings = {"num_trials": 2, "num_epochs": 1, "batch_size": 20}
    return Study(**{"name": "wrong", "task": plain(), "data": toy.DATA, "space": space} | settings | other)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))


class Splitter:
    def split(self, x, y, groups):
        return [(np.arange(40), np.arange(40, 61))]


@dataclass
class Unhashable:
    """With eq, and so without a hash."""

    depth: int = 1

    def __call__(self, fixed):
        return plain()(fixed)


def normalised(fixed):
    net = Normalised()

    def init(key, h):
        variables = net.init(key, jnp.zeros((1, 1)), False)
        return variables["params"], {"batch_stats": variables["batch_stats"]}

    def apply(params, x, h, train, state):
        return net.apply({"params": params, **state}, x, train, mutable=["batch_stats"])

    return plain(init=init, apply=apply)(fixed)


def three(**other):
    """Three outputs."""
    net = nn.Dense(3)
    functions = {"init": lambda key, h: net.init(key, jnp.zeros((1, 1))), "apply": lambda p, x, h: net.apply(p, x)}
    return plain(**functions | {"loss": cross_entropy} | other)


WRONG = {
    "a loss that is a mean": (
        study(task=plain(loss=lambda o, y: jnp.mean((o - y) ** 2))),
        "loss must return one value",
    ),
    "a metric of the wrong shape": (study(metrics={"off": lambda o, y: o - y}), "metric off must return one value"),
    "a task that is none": (study(task=lambda fixed: plain()), "task= must return a Task, got function"),
    "a tree that can't be trained": (
        study(task=plain(init=lambda key, h: {"w": jnp.zeros((1, 1)), "n": jnp.arange(3)})),
        "init returns ['n'] of int32",
    ),
    "statistics beside the parameters": (
        study(task=plain(init=lambda key, h: {"params": jnp.zeros((1, 1)), "batch_stats": jnp.zeros(1)})),
        "init returns batch_stats beside params",
    ),
    "padding in the statistics": (study(task=normalised), "apply lets padding into its statistics"),
    "examples that are mixed": (study(task=plain(apply=lambda p, x, h: x - x.mean())), "apply mixes examples"),
    "an optimizer that is no function": (study(task=plain(optimizer=optax.sgd(0.1))), "optimizer= must be a function"),
    "labels one-hot": (
        study(task=three(), data=labelled(np.eye(3, dtype=np.int32)[CLASSES])),
        "one-hot",
    ),
    "labels without an output": (
        study(task=three(), data=labelled(CLASSES + 1)),
        "y has labels 1 to 3, 3 outputs take 0 to 2",
    ),
    "labels that are floats": (study(task=three(), data=labelled(CLASSES * 1.0)), "integers"),
    "lists for data": (study(data=Dataset([[1.0], [2.0]], [[1.0], [2.0]], toy.X, toy.X)), "x_train= must be an array"),
    "fewer labels than samples": (study(data=toy.DATA._replace(y_train=toy.X[:9])), "x_train and y_train must have"),
    "a range upside down": (study(space={"learning_rate": Float(0.1, 0.01)}), "learning_rate=: a range goes from"),
    "a list for a choice": (study(space={"learning_rate": [0.1, 0.2]}), "learning_rate= must be an Int"),
    "a name that is a setting's": (study(space={"seed": Int(1, 2)}), "seed is the name of a setting"),
    "mixed choices": (study(space={"learning_rate": Choice("a", 1)}), "learning_rate= must be a choice among names"),
    "too many programs": (study(space={"depth": Int(1, 99, static=True)}), "would need as many programs"),
    "a score that isn't there": (study(maximize="accuracy"), "maximize= must be one of loss"),
    "a name that is no folder's": (study(name="../up"), "name= must be letters"),
    "a batch larger than a fold": (study(batch_size=50), "batch_size=50 is more than a fold's 40"),
    "folds that are a number": (study(folds=5), "their number is num_folds="),
    "a list for a space": (study(space=[Float(0.1, 1)]), "space= must be a dict of ranges by name, got list"),
    "a logarithm of 0": (study(space={"learning_rate": Float(0, 1, log=True)}), "a low number above 0 up, got 0-1"),
    "a choice of tuples": (
        study(space={"learning_rate": Choice((1, 2), (3, 4))}),
        "learning_rate= must be a choice among names, among numbers or among truth values, got (1, 2), (3, 4)",
    ),
    "a Task for its function": (
        study(task=plain()({})),
        "task= must be a function of the static hyperparameters that returns a Task, got Task",
    ),
    "a task that can't be hashed": (
        study(task=Unhashable()),
        "task= must be hashable, which Unhashable is not: wrap it",
    ),
    "a task that asks for another name": (
        study(task=lambda fixed: plain()(fixed["depth"])),
        "task(fixed: {}) fails at test_wrong_studies.py:",
    ),
    "arrays for a data set": (
        study(data=(toy.X, toy.X)),
        "data= must be a Dataset or a function that returns one, got",
    ),
    "values that are missing": (
        study(data=toy.DATA._replace(x_train=np.where(toy.X[:61] > 0, toy.X[:61], np.nan))),
        "x_train= must be finite, got",
    ),
    "metrics in a list": (study(metrics=[squared_error]), "metrics= must be a dict of functions by name, got list"),
    "a metric that is none": (study(metrics={"off": 1.0}), "metrics['off']= must be a function, got float"),
    "an if on what is traced": (
        study(task=plain(optimizer=lambda h: optax.sgd(0.1) if h["learning_rate"] > 0.01 else optax.sgd(0.2))),
        "but it is traced: use jnp.where, or in a Study static=True",
    ),
    "a width that is not declared one": (
        study(space={"units": Int(2, 4)}, task=plain(init=lambda key, h: {"w": jnp.zeros((1, h["units"]))})),
        "init needs hyperparameters['units'] as a Python number at test_wrong_studies.py:",
    ),
    "a static one among the traced": (
        study(
            space={"depth": Int(1, 2, static=True), "learning_rate": Float(0.01, 0.1)},
            task=plain(optimizer=lambda h: optax.sgd(h["learning_rate"] / h["depth"])),
        ),
        "optimizer(hyperparameters: {learning_rate}) fails at test_wrong_studies.py:",
    ),
    "labels that are truth values": (study(task=three(), data=labelled(CLASSES == 0)), "give y.astype(int)"),
    "y without an axis": (study(data=labelled(np.sin(toy.X[:61, 0]))), "give y[:, None]"),
    "a splitter's class": (study(folds=Splitter), "Splitter'>; their number is num_folds="),
    "weights of nothing": (study(data=toy.DATA._replace(weights=np.zeros(61))), "weights= must be one number"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_study_is_told_in_a_line_and_nothing_is_written(what, tmp_path):
    wrong, line = WRONG[what]
    with pytest.raises((ValueError, TypeError)) as caught:
        run_study(wrong, out=tmp_path / "out")
    message = str(caught.value)
    assert line in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_plain_study_is_right(tmp_path):
    results = run_study(study(), out=tmp_path / "out")
    assert results.trials.complete.all()
    other = run_study(replace(study(), name="other"), out=tmp_path / "other")
    assert [row["mean_val_loss"] for row in other.trials.rows] == [row["mean_val_loss"] for row in results.trials.rows]
