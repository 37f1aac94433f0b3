"""A recurrent Flax network on scikit-learn's handwritten digits as sequences of tokens, one for each pixel.

python experiments/examples/tokens.py [--quick] [--out DIR] [--help]
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hw1jax as hw

NUM_TOKENS = 17  # grey values 0 to 16


class Net(nn.Module):
    cell: str

    @nn.compact
    def __call__(self, tokens):
        """tokens int [batch, 64]: the image's pixels, row by row -> [batch, 10]."""
        x = nn.Embed(NUM_TOKENS, 8)(tokens).reshape(len(tokens), 8, 64)  # [batch, row, (column, feature)]
        kind = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[self.cell]
        cell = kind(32, param_dtype=jnp.result_type(float))  # float32, or float64 if JAX has x64 enabled
        return nn.Dense(10)(nn.RNN(cell)(x)[:, -1])


def task(fixed):
    net = Net(fixed["cell"])
    return hw.Task(
        init=lambda key, h: net.init(key, jnp.zeros((1, 64), int)),
        apply=lambda params, x, h: net.apply(params, x),
        loss=hw.cross_entropy,
        optimizer=lambda h: optax.chain(optax.clip_by_global_norm(h["clip"]), optax.adam(h["learning_rate"])),
    )


def data():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    return hw.Dataset(np.int32(x_train), y_train, np.int32(x_test), y_test)


STUDY = hw.Study(
    name="tokens",
    title="Digits as tokens, recurrent net",
    task=task,
    data=data,
    space={
        "learning_rate": hw.Float(1e-3, 1e-1, log=True),
        "clip": hw.Float(0.1, 10, log=True),
        "cell": hw.Choice("gru", "lstm", static=True),
    },
    loss_name="cross entropy (nats)",
    num_trials=20,
    num_epochs=20,
    batch_size=64,
    quick={"num_trials": 4, "num_epochs": 2},
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__)
