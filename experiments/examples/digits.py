"""A Flax network with dropout and batch normalisation on scikit-learn's handwritten digits.

The depth is static, so each of its three values needs its own program. All other hyperparameters are traced.

    python experiments/examples/digits.py [--quick] [--out DIR] [--help]
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hw1jax as hw


class Net(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x, activation, dropout, train, mask):
        for _ in range(self.depth):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(64, use_bias=False)(x), mask=mask[:, None])
            x = jnp.where(activation == 0, nn.relu(x), nn.tanh(x))
            if train:  # dropout with a traced rate, which nn.Dropout doesn't accept
                kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - dropout, x.shape)
                x = jnp.where(kept, x / (1 - dropout), 0)
        return nn.Dense(10)(x)


def task(fixed):
    net = Net(fixed["depth"])

    def init(key, h):
        variables = net.init(key, jnp.zeros((1, 64)), 0, 0.0, False, jnp.ones(1, bool))
        return variables["params"], {"batch_stats": variables["batch_stats"]}

    def apply(params, x, h, key, train, state, mask):
        return net.apply({"params": params, **state}, x, h["activation"], h["dropout"], train, mask,
                         rngs={"dropout": key} if train else None, mutable=["batch_stats"])  # fmt: skip

    def optimizer(h, num_steps):
        return optax.adamw(optax.cosine_decay_schedule(h["learning_rate"], num_steps), weight_decay=h["weight_decay"])

    return hw.Task(init, apply, hw.cross_entropy, optimizer)


def data():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    return hw.Dataset(np.float32(x_train / 16), y_train, np.float32(x_test / 16), y_test)


STUDY = hw.Study(
    name="digits",
    title="Digits, dense net with dropout and batch normalisation",
    task=task,
    data=data,
    space={
        "learning_rate": hw.Float(1e-4, 1e-1, log=True),
        "weight_decay": hw.Float(1e-6, 1e-2, log=True),
        "dropout": hw.Float(0, 0.5),
        "activation": hw.Choice("relu", "tanh"),
        "depth": hw.Int(1, 3, static=True),
    },
    metrics={"accuracy": hw.accuracy},
    maximize="accuracy",
    loss_name="cross entropy (nats)",
    num_trials=30,
    num_epochs=40,
    batch_size=64,
    quick={"num_trials": 6, "num_epochs": 4},
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__)
