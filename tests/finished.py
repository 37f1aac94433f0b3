"""Finished runs of the homework's studies, small: each is run once a session, and copied to be changed."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import fashion_cnn
import fashion_mlp
import jax.numpy as jnp
import numpy as np
import pytest
import regression

from hw1jax import run_study, storage
from hw1jax.data import Dataset
from hw1jax.space import Int
from hw1jax.study import Halving, Study

UNITS = (Int(2, 9, width=True), Int(2, 9, width=True), Int(3, 5, width=True))
CHANNELS = (Int(1, 3, width=True), Int(2, 3, width=True))


def images(data_dir=None) -> Dataset:
    """For Fashion-MNIST: 50 random images."""
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (50, 28, 28)).astype(np.uint8)
    y = np.tile(np.arange(10, dtype=np.int32), 5)
    return Dataset(x[:20], y[:20], x[20:], y[20:])


def diverging(fixed):
    """The regression's task, in which the trial with the highest learning rate of five diverges."""
    task = regression.task(fixed)

    def optimizer(h):
        return task.optimizer(h | {"learning_rate": jnp.where(h["learning_rate"] > 0.07, 1e30, h["learning_rate"])})

    return task._replace(optimizer=optimizer)


def small(study: Study, **changes) -> Study:
    """The study with narrow networks and little work to do."""
    space = {name: r for name, r in {"hidden_units": UNITS, "channels": CHANNELS}.items() if name in study.space}
    little = {"num_trials": 5, "num_epochs": 4, "batch_size": 10, "epochs_per_call": 4}
    return replace(study, **little | {"space": {**study.space, **space}} | changes)


STUDIES = {
    "regression": small(regression.STUDY, task=diverging),
    "fashion_mlp": small(fashion_mlp.STUDY, data=images),
    "fashion_cnn": small(fashion_cnn.STUDY, data=images, num_trials=3, num_epochs=1, epochs_per_call=1),
}
HALVING = small(regression.STUDY, task=diverging, num_trials=9, halving=Halving(2), epochs_per_call=1)


@cache
def _run(name: str, base: Path) -> Path:
    run_study((STUDIES | {"halving": HALVING})[name], out=base / "finished" / name, num_devices=1, widths="padded")
    return base / "finished" / name


def run(name: str, factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; nobody changes it."""
    return _run(name, factory.getbasetemp())


def copy(name: str, factory: pytest.TempPathFactory, to: Path) -> Path:
    """A copy in the folder `to`, to be changed."""
    return Path(shutil.copytree(run(name, factory), to / name))


def change(folder: Path, **changes) -> Path:
    """Changes entries of results.json."""
    record = json.loads((folder / "results.json").read_text())
    storage.write_json(folder / "results.json", record | changes)
    return folder
