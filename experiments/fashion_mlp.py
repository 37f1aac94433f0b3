"""Fashion-MNIST with a dense net (sigmoid, cross entropy).

All folds of all trials train at once. Then the best trial is trained again on all training data and evaluated on the
test set.

    python experiments/fashion_mlp.py [--quick] [--beyond] [--out DIR] [--help]
"""

from dataclasses import replace

import flax.linen as nn
import homework
import jax.numpy as jnp

import hw1jax as hw
from hw1jax import models
from hw1jax.data import fashion_mnist
from hw1jax.report import network

SIZE, CLASSES = fashion_mnist.IMAGE_SIZE, fashion_mnist.CLASSES


def task(fixed):
    activation = getattr(nn, fixed.get("activation", "sigmoid"))
    net = models.MLP(fixed["hidden_units"], num_outputs=len(CLASSES), activation=activation)
    return hw.Task(
        init=lambda key, h: net.init(key, jnp.zeros((1, SIZE, SIZE)), h["hidden_units"])["params"],
        apply=lambda params, x, h: net.apply({"params": params}, x, h["hidden_units"]),
        loss=hw.cross_entropy,
        optimizer=lambda h: hw.chosen_l2(h["optimizer"], h["learning_rate"], h["l2"]),
        prepare=models.scale_pixels,
    )


STUDY = hw.Study(
    name="fashion_mlp",
    title="Fashion-MNIST, dense net",
    task=task,
    data=fashion_mnist.load,
    inputs={"data_dir": "Folder with the four Fashion-MNIST files, instead of fetching them."},
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
    num_trials=10,
    num_epochs=20,
    batch_size=200,
    stratify=False,  # the report's folds are not stratified
    quick={"num_trials": 4, "num_epochs": 2},
    epochs_per_call=1,
    loss_name="cross entropy (nats)",
    classes=CLASSES,
    reference=homework.report(
        params={"hidden_units": (49, 26, 24), "learning_rate": 0.002, "l2": 0.0001, "optimizer": "adam"},
        test={"loss": 0.35, "accuracy": 0.87},
    ),
    sections={"Summary": [homework.questions], "Inside the network": [network.weights]},
)

# The report proposes more units and more trials; this adds ReLU as an activation, and averaged parameters.
BEYOND = replace(
    STUDY,
    name="fashion_mlp_beyond",
    title="Fashion-MNIST, dense net beyond the report",
    space={
        "hidden_units": (hw.Int(128, 512, width=True), hw.Int(64, 256, width=True), hw.Int(32, 128, width=True)),
        "learning_rate": hw.Float(5e-4, 5e-3, log=True),
        "l2": hw.Float(1e-6, 1e-4, log=True),
        "optimizer": hw.Choice("adam", "sgd", "rmsprop", among=("adam",)),
        "activation": hw.Choice("sigmoid", "relu", static=True),
    },
    help=STUDY.help | {"activation": "Activations of the hidden dense layers to choose from."},
    halving=hw.Halving(3),
    averaging=0.995,
    ensemble=3,
    num_folds=5,
    num_trials=27,
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__, beyond=BEYOND)
