"""An Equinox network that predicts the progress of diabetes after a year from ten measurements (scikit-learn's data).

An Equinox module is a tree of arrays and functions. Its arrays are trained; its functions stay in `task`.

    python experiments/examples/diabetes.py [--quick] [--out DIR] [--help]
"""

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import hw1jax as hw


def task(fixed):
    def model(key):
        return eqx.nn.MLP(10, 1, width_size=32, depth=2, activation=jax.nn.gelu, key=key)

    functions = eqx.partition(eqx.filter_eval_shape(model, jax.random.key(0)), eqx.is_array_like)[1]
    return hw.Task(
        init=lambda key, h: eqx.filter(model(key), eqx.is_array),
        apply=lambda params, x, h: jax.vmap(eqx.combine(params, functions))(x),
        loss=hw.squared_error,
        optimizer=lambda h: optax.adamw(h["learning_rate"], b1=h["momentum"], weight_decay=h["weight_decay"]),
    )


def data():
    x, y = load_diabetes(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y[:, None], test_size=0.25, random_state=0)
    mean, std = y_train.mean(), y_train.std()
    x_train, x_test = (np.float32(part / x.std(axis=0)) for part in (x_train, x_test))
    return hw.Dataset(x_train, np.float32((y_train - mean) / std), x_test, np.float32((y_test - mean) / std))


STUDY = hw.Study(
    name="diabetes",
    title="Diabetes, dense net in Equinox",
    task=task,
    data=data,
    space={
        "learning_rate": hw.Float(1e-4, 1e-1, log=True),
        "weight_decay": hw.Float(1e-4, 1.0, log=True),
        "momentum": hw.Choice(0.8, 0.9, 0.95),
    },
    loss_name="mean squared error (variances)",
    num_trials=40,
    num_epochs=60,
    batch_size=32,
    quick={"num_trials": 6, "num_epochs": 5},
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__)
