"""A study of a dozen lines, soon compiled: a small dense net with padded layers on a sine, and all three optimizers."""

import jax.numpy as jnp
import numpy as np

from hw1jax import models
from hw1jax.data import Dataset
from hw1jax.losses import squared_error
from hw1jax.optimizers import OPTIMIZERS, chosen_l2
from hw1jax.space import Choice, Float, Int
from hw1jax.study import Study
from hw1jax.training import Task

X = np.random.default_rng(1).uniform(-5, 5, (81, 1)).astype(np.float32)
DATA = Dataset(X[:61], np.sin(X[:61]), X[61:], np.sin(X[61:]))


def task(fixed):
    net = models.MLP(fixed["hidden_units"], num_outputs=1)
    return Task(
        init=lambda key, h: net.init(key, jnp.zeros((1, 1)), h["hidden_units"])["params"],
        apply=lambda params, x, h: net.apply({"params": params}, x, h["hidden_units"]),
        loss=squared_error,
        optimizer=lambda h: chosen_l2(h["optimizer"], h["learning_rate"], h["l2"]),
    )


STUDY = Study(
    "toy",
    task=task,
    data=DATA,
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
