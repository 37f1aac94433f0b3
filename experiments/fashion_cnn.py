"""Fashion-MNIST with a convolutional net (ReLU and max-pooling, then sigmoid; cross entropy).

All folds of all trials train at once. Then the best trial is trained again on all training data and evaluated on the
test set.

    python experiments/fashion_cnn.py [--quick] [--beyond] [--out DIR] [--help]
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


def net_of(fixed):
    if len(fixed["channels"]) > (most := models.most_convolutions(SIZE)):
        raise ValueError(f"channels= needs 1 to {most} ranges: no pixel of the image is left after {most} convolutions")
    activation = getattr(nn, fixed.get("activation", "sigmoid"))
    return models.CNN(fixed["channels"], fixed["hidden_units"], num_outputs=len(CLASSES), activation=activation)


def widths(h):
    return h["channels"], h["hidden_units"]


def task(fixed):
    net = net_of(fixed)
    return hw.Task(
        init=lambda key, h: net.init(key, models.images_last(jnp.zeros((1, SIZE, SIZE))), *widths(h))["params"],
        apply=lambda params, x, h: net.apply({"params": params}, x, *widths(h)),
        loss=hw.cross_entropy,
        optimizer=lambda h: hw.chosen_l2(h["optimizer"], h["learning_rate"], h["l2"]),
        prepare=models.images_last,
    )


def activations(fixed):
    net = net_of(fixed)
    return lambda params, x, h: models.activations(net, params, models.images_last(x), *widths(h))


STUDY = hw.Study(
    name="fashion_cnn",
    title="Fashion-MNIST, convolutional net",
    task=task,
    data=fashion_mnist.load,
    inputs={"data_dir": "Folder with the four Fashion-MNIST files, instead of fetching them."},
    space={
        "channels": (hw.Int(4, 10, width=True), hw.Int(10, 15, width=True)),
        "hidden_units": (hw.Int(20, 50, width=True), hw.Int(20, 50, width=True)),
        "learning_rate": hw.Float(1e-3, 1e-1, log=True),
        "l2": hw.Float(1e-4, 1e-1, log=True),
        "optimizer": hw.Choice("adam", "sgd", "rmsprop"),
    },
    help={
        "channels": "Channels of each convolution, as many ranges as convolutions.",
        "hidden_units": "Units of each hidden layer, as many ranges as layers.",
        "learning_rate": "Range of the learning rate (logarithmic).",
        "l2": "Range of the L2 coefficient (logarithmic).",
        "optimizer": "Optimizers to choose from.",
    },
    num_trials=10,
    num_epochs=20,
    batch_size=200,
    stratify=False,  # the report's folds are not stratified
    quick={"num_trials": 2, "num_epochs": 1},
    epochs_per_call=1,
    loss_name="cross entropy (nats)",
    classes=CLASSES,
    reference=homework.report(
        params={"channels": (4, 12), "hidden_units": (38, 28), "learning_rate": 8e-3, "l2": 1e-4, "optimizer": "adam"},
        test={"loss": 0.30, "accuracy": 0.89},
    ),
    activations=activations,
    sections={
        "Summary": [homework.questions],
        "Inside the network": [network.weights, network.receptive_fields, network.feature_maps],
    },
)

# The report proposes more units and more trials; this adds ReLU as an activation, and averaged parameters.
BEYOND = replace(
    STUDY,
    name="fashion_cnn_beyond",
    title="Fashion-MNIST, convolutional net beyond the report",
    space={
        "channels": (hw.Int(8, 16, width=True), hw.Int(16, 32, width=True)),
        "hidden_units": (hw.Int(48, 128, width=True),),
        "learning_rate": hw.Float(1e-3, 1e-2, log=True),
        "l2": hw.Float(1e-6, 1e-4, log=True),
        "optimizer": hw.Choice("adam", "sgd", "rmsprop", among=("adam",)),
        "activation": hw.Choice("sigmoid", "relu", static=True, among=("relu",)),
    },
    help=STUDY.help | {"activation": "Activations of the hidden dense layers to choose from."},
    halving=hw.Halving(3),
    averaging=0.995,
    ensemble=3,
    num_trials=18,
    num_epochs=12,
    batch_size=100,
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__, beyond=BEYOND)
