"""Two metrics, one of them maximised, and sample weights: benign and malignant tumours (scikit-learn's data).

python experiments/examples/two_metrics.py [--quick] [--out DIR] [--help]
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import hw1jax as hw

NET = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(1)])


def loss(outputs, y):
    """Cross entropy [batch]; outputs float [batch, 1] are the log-odds that y int [batch] is 1."""
    return optax.losses.sigmoid_binary_cross_entropy(outputs[:, 0], y)


def right(outputs, y):
    """1 if the more probable class is the true one, else 0: float [batch]."""
    return ((outputs[:, 0] > 0) == (y == 1)).astype(jnp.float32)


def brier(outputs, y):
    """Squared error of the probability (Brier, 1950): float [batch]."""
    return (nn.sigmoid(outputs[:, 0]) - y) ** 2


def data():
    x, y = load_breast_cancer(return_X_y=True)
    x = np.float32((x - x.mean(axis=0)) / x.std(axis=0))
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    return hw.Dataset(x_train, y_train, x_test, y_test, weights=np.where(y_train == 0, 2.0, 1.0))


STUDY = hw.Study(
    name="two_metrics",
    title="Tumours, two metrics",
    task=lambda fixed: hw.Task(
        init=lambda key, h: NET.init(key, jnp.zeros((1, 30))),
        apply=lambda params, x, h: NET.apply(params, x),
        loss=loss,
        optimizer=lambda h: optax.adamw(h["learning_rate"], weight_decay=h["weight_decay"]),
    ),
    data=data,
    space={"learning_rate": hw.Float(1e-4, 1e-1, log=True), "weight_decay": hw.Float(1e-4, 1e-1, log=True)},
    metrics={"share_right": right, "brier": brier},
    maximize="share_right",
    loss_name="cross entropy (nats)",
    num_trials=40,
    num_epochs=30,
    batch_size=32,
    quick={"num_trials": 6, "num_epochs": 4},
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__)
