"""A Flax NNX network with dropout and batch normalisation on scikit-learn's handwritten digits.

`nnx.split` splits a module into its structure, its parameters, which are trained, and its state: the running averages
of batch normalisation, and the keys and counts of dropout.

    python experiments/examples/nnx_net.py [--quick] [--out DIR] [--help]
"""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hw1jax as hw


class Net(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, width, use_bias=False, rngs=rngs)  # BatchNorm has a bias
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x, mask):
        """x float [batch, 64], mask bool [batch] -> [batch, 10]."""
        x = nnx.relu(self.norm(self.hidden(x), mask=mask[:, None]))
        return self.out(self.dropout(x))


def task(fixed):
    structure = nnx.graphdef(nnx.eval_shape(lambda: Net(fixed["width"], nnx.Rngs(0))))

    def init(key, h):
        _, params, state = nnx.split(Net(fixed["width"], nnx.Rngs(key)), nnx.Param, ...)
        return params, state

    def apply(params, x, h, state, train, mask):
        net = nnx.merge(structure, params, state, copy=True)  # training changes the copy, not `state`
        (net.train if train else net.eval)()
        outputs = net(x, mask)
        return outputs, nnx.split(net, nnx.Param, ...)[2]

    return hw.Task(init, apply, hw.cross_entropy, lambda h: optax.adam(h["learning_rate"]))


def data():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(np.float32(x / 16), y, random_state=0, stratify=y)
    return hw.Dataset(x_train, y_train, x_test, y_test)


STUDY = hw.Study(
    name="nnx_net",
    title="Digits, Flax NNX",
    task=task,
    data=data,
    space={"learning_rate": hw.Float(1e-3, 1e-1, log=True), "width": hw.Choice(16, 32, 64, static=True)},
    loss_name="cross entropy (nats)",
    num_trials=12,
    num_epochs=10,
    batch_size=64,
    quick={"num_trials": 3, "num_epochs": 2},
)

if __name__ == "__main__":
    hw.main(STUDY, __doc__)
