"""Regression of a noisy scalar function with a dense net (sigmoid, mean squared error).

All folds of all trials train at once in one compiled program. Then the best trial is trained again on all training
data and evaluated on the test set.

    python experiments/regression.py [--quick] [--beyond] [--out DIR] [--help]
"""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import homework
import jax.numpy as jnp
import numpy as np

import hw1jax as hw
from hw1jax import models
from hw1jax.data import regression
from hw1jax.report import network, sections


def net_of(fixed):
    activation = getattr(nn, fixed.get("activation", "sigmoid"))
    return models.MLP(fixed["hidden_units"], num_outputs=1, activation=activation)


def task(fixed):
    net = net_of(fixed)
    return hw.Task(
        init=lambda key, h: net.init(key, jnp.zeros((1, 1)), h["hidden_units"])["params"],
        apply=lambda params, x, h: net.apply({"params": params}, x, h["hidden_units"]),
        loss=hw.squared_error,
        optimizer=lambda h: hw.chosen_l2(h["optimizer"], h["learning_rate"], h["l2"]),
    )


def activations(fixed):
    net = net_of(fixed)
    return lambda params, x, h: models.activations(net, params, x, h["hidden_units"])


STUDY = hw.Study(
    name="regression",
    title="Regression",
    task=task,
    data=regression.load,
    inputs={
        "train_csv": "Training data with the header input,label, instead of the embedded data.",
        "test_csv": "Test data with the header input,label.",
    },
    space={
        "hidden_units": (hw.Int(10, 50, width=True), hw.Int(10, 50, width=True), hw.Int(3, 30, width=True)),
        "learning_rate": hw.Float(1e-3, 1e-1, log=True),
        "l2": hw.Float(1e-4, 1e-1, log=True),
        "optimizer": hw.Choice("adam", "sgd", "rmsprop"),
    },
    help={
        "hidden_units": "Units of each hidden layer, as many ranges as layers.",
        "learning_rate": "Range of the learning rate (logarithmic).",
        "l2": "Range of the L2 coefficient (logarithmic).",
        "optimizer": "Optimizers to choose from.",
    },
    num_trials=25,
    num_epochs=1000,
    batch_size=20,
    quick={"num_trials": 6, "num_epochs": 200},
    epochs_per_call=50,
    loss_name="mean squared error",
    reference=homework.report(
        params={"hidden_units": (45, 21, 23), "learning_rate": 0.016, "l2": 0.0003, "optimizer": "adam"},
        test={"loss": 0.27},
        data="its own data, whose test set has more noise",
    ),
    activations=activations,
    sections={
        "Summary": [homework.questions],
        "Data": [partial(sections.points, gaps=regression.GAPS), homework.noise],
        "Test set": [partial(sections.fit, gaps=regression.GAPS)],
        "Inside the network": [network.weights, partial(network.profiles, inputs=(-2.0, 0.0, 2.0))],
    },
)


class Blocks:
    """Folds that hold out whole intervals of the input, like the gaps in the data, but never the two outermost ones."""

    num_folds, num_blocks = 4, 16

    def split(self, x, y=None, groups=None):
        """Pairs (training indices, validation indices)."""
        blocks = np.array_split(np.argsort(x[:, 0], kind="stable"), self.num_blocks)
        for fold in range(self.num_folds):
            held_out = np.concatenate(blocks[1:-1][fold :: self.num_folds])
            yield np.setdiff1d(np.arange(len(x)), held_out), held_out


# The report proposes more units and more trials. Most of the error is in the gaps of the data, so the folds have gaps.
BEYOND = replace(
    STUDY,
    name="regression_beyond",
    title="Regression, beyond the report",
    space={
        "hidden_units": (hw.Int(10, 64, width=True),),
        "learning_rate": hw.Float(1e-3, 1e-1, log=True),
        "l2": hw.Float(1e-5, 1e-1, log=True),
        "optimizer": hw.Choice("adam", "sgd", "rmsprop", among=("adam",)),
        "activation": hw.Choice("sigmoid", "tanh", static=True, among=("tanh",)),
    },
    help=STUDY.help | {"activation": "Activations of the hidden layers to choose from."},
    folds=Blocks(),
    halving=hw.Halving(3),
    averaging=0.99,
    ensemble=3,
    num_trials=108,
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__, beyond=BEYOND)
