"""A convolutional network in Flax on scikit-learn's handwritten digits.

The number of channels is static: each value needs its own program.

    python experiments/examples/convolution.py [--quick] [--out DIR] [--help]
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hw1jax as hw


class Net(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x):
        """x float [batch, 8, 8, 1] -> [batch, 10]."""
        x = nn.max_pool(nn.relu(nn.Conv(self.channels, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(2 * self.channels, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def task(fixed):
    net = Net(fixed["channels"])
    return hw.Task(
        init=lambda key, h: net.init(key, jnp.zeros((1, 8, 8, 1))),
        apply=lambda params, x, h: net.apply(params, x),
        loss=hw.cross_entropy,
        optimizer=lambda h: hw.chosen_l2(h["optimizer"], h["learning_rate"], h["l2"]),
    )


def data():
    x, y = load_digits(return_X_y=True)
    x = np.float32(x / 16).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    return hw.Dataset(x_train, y_train, x_test, y_test)


STUDY = hw.Study(
    name="convolution",
    title="Digits, convolutional net",
    task=task,
    data=data,
    space={
        "learning_rate": hw.Float(1e-3, 1e-1, log=True),
        "l2": hw.Float(1e-6, 1e-2, log=True),
        "optimizer": hw.Choice("adam", "sgd", "rmsprop"),
        "channels": hw.Choice(4, 8, 16, static=True),
    },
    loss_name="cross entropy (nats)",
    classes=[str(digit) for digit in range(10)],
    num_trials=12,
    num_epochs=10,
    batch_size=64,
    quick={"num_trials": 3, "num_epochs": 2},
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__)
