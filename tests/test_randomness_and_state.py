"""What is random in training, and state that is not trained: a member equals the plain loop with the same keys."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest

from hw1jax import cross_validate, squared_error

KEY = jax.random.key(11)
RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 3))
Y = np.sin(X).sum(axis=1, keepdims=True)
SETTINGS = {"key": KEY, "num_folds": 3, "num_epochs": 4, "batch_size": 6}  # 16 train: the last batch is short
HYPERPARAMETERS = {"learning_rate": np.array([2**-4, 2**-6]), "dropout": np.array([0.25, 0.5])}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Dropping(nn.Module):
    """Flax's own dropout, of a rate that is fixed, and one of a rate that differs by trial."""

    @nn.compact
    def __call__(self, x, rate, key, train):
        x = nn.tanh(nn.Dense(8)(x))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = nn.tanh(nn.Dense(6)(x))
        if train:
            x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
        return nn.Dense(1)(x)


class Normalising(nn.Module):
    """Flax's own batch norm; with or without dropout before it, whose rows must not reach the statistics either."""

    drops: bool = False

    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.Dense(8, use_bias=False)(x)  # its gradient would be rounding alone, which Adam makes a step of
        if self.drops:
            x = nn.Dropout(0.25, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x, mask=None if mask is None else mask[:, None])
        return nn.Dense(1)(nn.tanh(x))


def optimizer(h, num_steps=None):
    return optax.adam(h["learning_rate"])


def dropping_init(key, h):
    made = jax.eval_shape(partial(Dropping().init, train=False), key, X[:1], 0.0, None)
    return plain.exact(key, made["params"])


def dropping_apply(params, x, h, key):
    rngs = {} if key is None else {"dropout": key}
    return Dropping().apply({"params": params}, x, h["dropout"], key, key is not None, rngs=rngs)


def normalising_init(key, h, drops=False):
    made = jax.eval_shape(partial(Normalising(drops).init, train=False, mask=None), key, X[:1])
    params, stats = plain.exact(key, made["params"]), made["batch_stats"]["BatchNorm_0"]
    return params, {"BatchNorm_0": {"mean": jnp.zeros(stats["mean"].shape), "var": jnp.ones(stats["var"].shape)}}


def normalising_apply(params, x, h, state, train, mask, key=None, drops=False):
    rngs = {} if key is None else {"dropout": key}
    outputs, new = Normalising(drops).apply(
        {"params": params, "batch_stats": state}, x, train, mask, rngs=rngs, mutable=["batch_stats"]
    )
    return outputs, new["batch_stats"]


def test_members_with_flax_dropout_equal_the_plain_loop():
    net = plain.Net(
        lambda key, h: (dropping_init(key, h), None),
        lambda params, state, x, h, key, train: (dropping_apply(params, x, h, key), None),
        squared_error,
        optimizer,
    )
    found = cross_validate(
        dropping_init, dropping_apply, squared_error, optimizer, HYPERPARAMETERS, X, Y, return_params=True, **SETTINGS
    )
    plain.assert_equal(found, plain.cross_validate(net, HYPERPARAMETERS, X, Y, **SETTINGS))


@pytest.mark.parametrize("drops", [False, True], ids=["batch norm", "dropout and batch norm"])
def test_members_with_flax_batch_norm_equal_the_plain_loop_whatever_fills_up_short_batches(drops):
    def forward(params, state, x, h, key, train):
        return normalising_apply(params, x, h, state, train, None, key if train else None, drops)

    def apply(params, x, h, state, train, mask):
        return normalising_apply(params, x, h, state, train, mask)

    def apply_and_drop(params, x, h, key, state, train, mask):
        return normalising_apply(params, x, h, state, train, mask, key, drops=True)

    init = partial(normalising_init, drops=drops)
    chosen = apply_and_drop if drops else apply
    net = plain.Net(init, forward, squared_error, optimizer)
    found = cross_validate(
        init, chosen, squared_error, optimizer, HYPERPARAMETERS, X, Y, return_params=True, **SETTINGS
    )
    plain.assert_equal(found, plain.cross_validate(net, HYPERPARAMETERS, X, Y, **SETTINGS))
