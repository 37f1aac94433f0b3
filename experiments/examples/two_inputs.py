"""A plain JAX network with two inputs, a dict of two arrays, that classifies wines (scikit-learn's data).

python experiments/examples/two_inputs.py [--quick] [--out DIR] [--help]
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_wine
from sklearn.model_selection import StratifiedKFold, train_test_split

import hw1jax as hw

ACIDS, PHENOLS = slice(0, 5), slice(5, 13)  # columns: alcohol, acids, ash, magnesium; phenols, colour, proline
WIDTH = 16


def init(key, h):
    """One layer for each input and one for both: {name: float [inputs + 1, outputs]}; the last row is the bias."""
    shapes = {"acids": (6, WIDTH), "phenols": (9, WIDTH), "both": (2 * WIDTH + 1, 3)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: h["scale"] * jax.random.normal(k, shape) / jnp.sqrt(shape[0])
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def apply(params, x, h):
    hidden = [jnp.tanh(x[name] @ params[name][:-1] + params[name][None, -1]) for name in ("acids", "phenols")]
    return jnp.concatenate(hidden, axis=1) @ params["both"][:-1] + params["both"][None, -1]


def data():
    x, y = load_wine(return_X_y=True)
    x = np.float32((x - x.mean(axis=0)) / x.std(axis=0))
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    both = ({"acids": part[:, ACIDS], "phenols": part[:, PHENOLS]} for part in (x_train, x_test))
    return hw.Dataset(next(both), y_train, next(both), y_test)


STUDY = hw.Study(
    name="two_inputs",
    title="Wines, two inputs",
    task=lambda fixed: hw.Task(init, apply, hw.cross_entropy, lambda h: optax.sgd(h["learning_rate"], h["momentum"])),
    data=data,
    space={
        "learning_rate": hw.Float(1e-3, 1, log=True),
        "momentum": hw.Float(0, 0.95),
        "scale": hw.Choice(0.5, 1.0, 2.0),
    },
    metrics={"accuracy": hw.accuracy},
    folds=StratifiedKFold(5, shuffle=True, random_state=0),
    loss_name="cross entropy (nats)",
    num_trials=60,
    num_epochs=50,
    batch_size=16,
    quick={"num_trials": 6, "num_epochs": 5},
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__)
