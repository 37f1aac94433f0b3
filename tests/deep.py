"""A study that shares nothing with the homework: static depth, random in training, with state, ranked by accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hw1jax.data import Dataset
from hw1jax.losses import accuracy, cross_entropy
from hw1jax.space import Choice, Float, Int
from hw1jax.study import Study
from hw1jax.training import Task

UNITS = 8
X = np.random.default_rng(2).uniform(-1, 1, (130, 2)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
DATA = Dataset(X[:90], Y[:90], X[90:], Y[90:])


def task(fixed):
    shapes = [(2, UNITS), *[(UNITS, UNITS)] * fixed["depth"], (UNITS, 2)]

    def init(key, h):
        keys = jax.random.split(key, len(shapes))
        params = [jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in zip(keys, shapes, strict=True)]
        return params, {"mean": jnp.zeros(UNITS)}

    def apply(params, x, h, key, state, mask):
        if key is not None:
            x = x + h["noise"] * jax.random.normal(key, x.shape)
        first, *hidden, last = params
        x = x @ first
        if key is not None:
            now = jnp.sum(jnp.where(mask[:, None], x, 0), axis=0) / jnp.sum(mask)
            state = {"mean": 0.9 * state["mean"] + 0.1 * now}
        x = x - state["mean"][None]
        for weights in hidden:
            x = x + jnp.where(h["smooth"], jnp.tanh(x @ weights), jax.nn.relu(x @ weights))
        return x @ last, state

    return Task(init, apply, cross_entropy, lambda h: optax.adam(h["rate"]))


STUDY = Study(
    "deep",
    task=task,
    data=DATA,
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
