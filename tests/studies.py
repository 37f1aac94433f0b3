"""Small studies that many tests share: a toy, a line, a deep one, and the homework's with narrow networks.

`finished_run` and `finished_copy` return folders of finished runs; each run happens once per session.
"""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import fashion_cnn
import fashion_mlp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression

from hw1jax import models, run_study, storage
from hw1jax.core.losses import accuracy, cross_entropy, squared_error
from hw1jax.core.optimizers import OPTIMIZERS, chosen_l2
from hw1jax.core.tasks import Task
from hw1jax.data import Dataset, sha256
from hw1jax.results import run_folder, trained_model
from hw1jax.results import trials as trials_
from hw1jax.results.trained_model import Model
from hw1jax.search import space, space_text, study, study_data
from hw1jax.search.networks import own
from hw1jax.search.space import Choice, Float, Int
from hw1jax.search.study import Halving, Study
from hw1jax.search.trial_score import TrialScore

# The toy: a dense net of padded layers on a sine, with the three optimizers.

TOY_X = np.random.default_rng(1).uniform(-5, 5, (81, 1)).astype(np.float32)
TOY_DATA = Dataset(TOY_X[:61], np.sin(TOY_X[:61]), TOY_X[61:], np.sin(TOY_X[61:]))


def toy_task(fixed):
    net = models.MLP(fixed["hidden_units"], num_outputs=1)
    return Task(
        init=lambda key, h: net.init(key, jnp.zeros((1, 1)), h["hidden_units"])["params"],
        apply=lambda params, x, h: net.apply({"params": params}, x, h["hidden_units"]),
        loss=squared_error,
        optimizer=lambda h: chosen_l2(h["optimizer"], h["learning_rate"], h["l2"]),
    )


TOY = Study(
    "toy",
    task=toy_task,
    data=TOY_DATA,
    space={
        "hidden_units": (Int(2, 6, width=True), Int(2, 4, width=True)),
        "learning_rate": Float(1e-3, 1e-1, log=True),
        "l2": Float(1e-4, 1e-1, log=True),
        "optimizer": Choice(*OPTIMIZERS),
    },
    num_trials=4,
    num_epochs=4,
    batch_size=20,
)

# The line is the soonest traced and trained: its slope is a sum of units, which are its width.


def line_task(fixed):
    units = np.arange(fixed["units"])
    return Task(
        init=lambda key, h: {"slopes": jnp.zeros(len(units))},
        apply=lambda params, x, h: x * jnp.sum(jnp.where(units < h["units"], params["slopes"], 0)),
        loss=squared_error,
        optimizer=lambda h: optax.sgd(h["learning_rate"]),
    )


LINE = Study(
    "line",
    task=line_task,
    data=TOY_DATA,
    space={"units": Int(1, 3, width=True), "learning_rate": Float(1e-3, 1e-1, log=True)},
    num_trials=3,
    num_epochs=2,
    batch_size=20,
)

# The deep one shares nothing with the homework: static depth, random in training, with state, ranked by accuracy.

DEEP_UNITS = 8
DEEP_X = np.random.default_rng(2).uniform(-1, 1, (130, 2)).astype(np.float32)
DEEP_Y = (DEEP_X[:, 0] * DEEP_X[:, 1] > 0).astype(np.int32)
DEEP_DATA = Dataset(DEEP_X[:90], DEEP_Y[:90], DEEP_X[90:], DEEP_Y[90:])


def deep_task(fixed):
    shapes = [(2, DEEP_UNITS), *[(DEEP_UNITS, DEEP_UNITS)] * fixed["depth"], (DEEP_UNITS, 2)]

    def init(key, h):
        keys = jax.random.split(key, len(shapes))
        params = [jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in zip(keys, shapes, strict=True)]
        return params, {"mean": jnp.zeros(DEEP_UNITS), "key": jax.random.key(3)}

    def apply(params, x, h, key, state, mask):
        if key is not None:
            x = x + h["noise"] * jax.random.normal(key, x.shape)
        first, *hidden, last = params
        x = x @ first
        if key is not None:
            now = jnp.sum(jnp.where(mask[:, None], x, 0), axis=0) / jnp.sum(mask)
            state = {"mean": 0.9 * state["mean"] + 0.1 * now, "key": jax.random.fold_in(state["key"], 1)}
        x = x - state["mean"][None]
        for weights in hidden:
            x = x + jnp.where(h["smooth"], jnp.tanh(x @ weights), jax.nn.relu(x @ weights))
        return x @ last, state

    return Task(init, apply, cross_entropy, lambda h: optax.adam(h["rate"]))


DEEP = Study(
    "deep",
    task=deep_task,
    data=DEEP_DATA,
    space={
        "rate": Float(1e-3, 1e-1, log=True),
        "noise": Float(0, 0.5),
        "depth": Int(1, 3, static=True),
        "smooth": Choice(True, False),
    },
    metrics={"accuracy": accuracy},
    maximize="accuracy",
    classes=("no", "yes"),
    num_trials=9,
    num_epochs=4,
    batch_size=20,
    epochs_per_call=2,
)

# The homework's three, with narrow networks and little work to do.

UNITS = (Int(2, 9, width=True), Int(2, 9, width=True), Int(3, 5, width=True))
CHANNELS = (Int(1, 3, width=True), Int(2, 3, width=True))


def pixels(num, *shape, seed=0):
    """Random images uint8 [num, *shape], 28 x 28 if no shape is given."""
    return np.random.default_rng(seed).integers(0, 256, (num, *(shape or (28, 28))), dtype=np.uint8)


def fake_images(num_train=20, num_test=30, **_) -> Dataset:
    """Instead of Fashion-MNIST: images whose class is the position of their brightest columns."""
    y = np.arange(num_train + num_test, dtype=np.int32) % 10
    x = pixels(len(y)) // 4
    x[np.arange(len(y)), :, 2 * y + 3] += 190
    return Dataset(x[:num_train], y[:num_train], x[num_train:], y[num_train:])


def few_images(**_) -> Dataset:
    """`fake_images` as a Study's `data`, whatever it may be asked for."""
    return fake_images()


def diverging(fixed):
    """The regression's task, in which the trial with the highest learning rate of five diverges."""
    task = regression.task(fixed)

    def optimizer(h):
        return task.optimizer(h | {"learning_rate": jnp.where(h["learning_rate"] > 0.07, 1e30, h["learning_rate"])})

    return task._replace(optimizer=optimizer)


def small(study_: Study, **changes) -> Study:
    """The study with narrow networks and little work to do."""
    space = {name: r for name, r in {"hidden_units": UNITS, "channels": CHANNELS}.items() if name in study_.space}
    little = {"num_trials": 5, "num_epochs": 4, "batch_size": 10, "epochs_per_call": 4}
    return replace(study_, **little | {"space": {**study_.space, **space}} | changes)


SMALL = {
    "regression": small(regression.STUDY, task=diverging),
    "fashion_mlp": small(fashion_mlp.STUDY, data=few_images),
    "fashion_cnn": small(fashion_cnn.STUDY, data=few_images, num_trials=3, num_epochs=1, epochs_per_call=1),
}
HALVING = small(regression.STUDY, task=diverging, num_trials=9, halving=Halving(2), epochs_per_call=1)
FINISHED = SMALL | {"halving": HALVING, "toy": TOY, "line": LINE, "deep": DEEP}


@cache
def _run(name: str, base: Path) -> Path:
    run_study(FINISHED[name], out=base / "finished" / name, num_devices=1, widths="padded")
    return base / "finished" / name


def finished_run(name: str, factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of FINISHED[name], on one device, padded; read only."""
    return _run(name, factory.getbasetemp())


def finished_copy(name: str, factory: pytest.TempPathFactory, to: Path) -> Path:
    """A copy of a finished run in the folder `to`, to be changed."""
    return Path(shutil.copytree(finished_run(name, factory), to / name))


def change_record(folder: Path, **changes) -> Path:
    """Changes entries of results.json, as if the run had written them."""
    record = json.loads((folder / "results.json").read_text())
    storage.write_json(folder / "results.json", record | changes)
    run_folder.write_digests(folder)
    return folder


# Networks of the homework as a run would leave them, with random parameters.

HOMEWORK = {s.name: s for s in (regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY)}
DRAWS = {
    "regression": {"hidden_units": (4, 3), "learning_rate": 0.016, "l2": 0.0003, "optimizer": "adam"},
    "fashion_mlp": {"hidden_units": (3, 5, 2), "learning_rate": 0.002, "l2": 0.0001, "optimizer": "sgd"},
    "fashion_cnn": {
        "channels": (2, 3),
        "hidden_units": (4, 3),
        "learning_rate": 0.008,
        "l2": 0.0001,
        "optimizer": "rmsprop",
    },
}


def as_deep_as_drawn(name: str) -> Study:
    """The homework's study with as many hidden layers as its draw has."""
    asked = HOMEWORK[name]
    return study.narrow(asked, hidden_units=asked.space["hidden_units"][-1:] * len(DRAWS[name]["hidden_units"]))


def make_model(name: str, num_folds: int = 0) -> Model:
    """A small network of the homework's study with random parameters, and fold models."""
    rng = np.random.default_rng(0)
    model = Model(as_deep_as_drawn(name), DRAWS[name], {})
    shapes = own(model.study, model.draw).shapes[0]
    networks = [
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes) for _ in range(1 + num_folds)
    ]
    return model._replace(params=networks[0], folds=tuple((params, None) for params in networks[1:]))


def examples(name: str) -> np.ndarray:
    """Seven inputs of the homework's study."""
    if name == "regression":
        return np.random.default_rng(1).uniform(-5, 5, (7, 1)).astype(np.float32)
    return pixels(7, seed=1)


# A folder as a run would leave it, written by hand: its networks and losses are random.

STATES = ("pruned", "complete", "failed", "pruned", "failed")
EPOCHS = (2, 6, 2, 2, 6)  # that these trials were trained, of 6; failed ones diverged in epochs 2 and 4


def write_run(folder: Path, asked: Study, states=STATES, epochs=EPOCHS, *, with_folds=True) -> Path:
    """What trials in these states would have left in the folder."""
    rng, data, num_folds = (
        np.random.default_rng(2),
        study_data.load_data(asked, dict.fromkeys(asked.inputs)),
        asked.num_folds,
    )
    shape, names = (len(states), num_folds, max(epochs)), ("loss", *asked.metrics)
    train, *values = rng.uniform(1, 2, (1 + len(names), *shape)).astype(np.float32)
    val, trials = dict(zip(names, values, strict=True)), []
    for i, (state, end) in enumerate(zip(states, epochs, strict=True)):
        for losses in (train, *values):
            losses[i, :, end:] = np.nan
        if state == "failed":
            val["loss"][i, -1, end // 2 : end] = np.inf
        scores = {name: tuple(val[name][i, :, end - 1].tolist()) for name in names}
        trials.append(TrialScore(i, space.random_draw(asked.space, 0, i), state, scores, end))
    best = trials_.best(trials, asked)
    model = Model(asked, best.draw, {})
    shapes = own(model.study, model.draw).shapes
    (params, state), *folds = (
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes) for _ in range(1 + num_folds)
    )
    model = model._replace(params=params, state=state, folds=tuple(folds) if with_folds else ())
    arrays = {"refit_number": np.array(best.number), "refit_train_loss": np.ones(max(epochs), np.float32)}
    arrays["test_outputs"] = model.predict(data.x_test)
    if with_folds:
        arrays["ensemble_outputs"] = model.predict(data.x_test, ensemble=True)
        if np.shape(data.x_train)[1:] == np.shape(data.y_train)[1:] == (1,):
            points = np.linspace(-5, 5, 100, dtype=np.float32)
            curves = [outputs[:, 0] for outputs in model.fold_outputs(points[:, None])]
            arrays |= {"curve_x": points, "curve_outputs": curves[0], "curve_fold_outputs": np.stack(curves)}
    ends = sorted({end for end, state in zip(epochs, states, strict=True) if state != "failed"})
    rungs = [
        {
            "num_epochs": end,
            "num_trials": sum(reached >= end for reached in epochs),
            "went_on": sum(reached > end for reached in epochs),
            "failed": sum(t.state == "failed" and t.epochs == end for t in trials),
            "seconds": 1.5 + i,
        }
        for i, end in enumerate(ends)
    ]
    config = {"num_trials": len(trials), "num_epochs": max(epochs), "num_folds": num_folds, "seed": 0}
    config |= {"batch_size": asked.batch_size, "halving": 3 if len(ends) > 1 else None, "first_rung": None}
    config |= {"brackets": False, "averaging": None, "precision": "float32", "space": space_text.to_json(asked.space)}
    config |= {"score": asked.score, "direction": "maximize" if asked.maximize else "minimize"}
    scored = {
        name: trained_model.score(model, arrays[f"{name}_outputs"], data.y_test)
        for name in ("test", "ensemble")[: 1 + with_folds]
    }
    record = {
        "format": storage.FORMAT,
        "study": asked.name,
        "title": asked.shown,
        "command": f"python {asked.name}.py",
        "config": config | {"data_sha256": sha256(data)},
        "environment": {"device": "cpu", "num_devices": 2},
        "inputs": dict.fromkeys(asked.inputs),
        "best": run_folder.summary(best),
        "refit": {"state": "complete", "failure": None, "train_loss": 1.0, "folds_train_loss": 1.5, "warning": None},
        "ensemble": None,
        "reference": run_folder.reference(asked),
        "trials": {state: states.count(state) for state in ("complete", "pruned", "failed")},
        "rungs": rungs,
        "timing": {"compile_seconds": 1.25, "train_seconds": 62.3, "total_seconds": 1416.9},
    }
    run_folder.write(folder, asked, record | scored, trials, train, val, arrays, model)
    return folder
