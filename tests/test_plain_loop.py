"""With weights, schedules, averages and early stopping, members equal the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
from plain import float64  # noqa: F401

from hw1jax import cross_validate, squared_error
from hw1jax.core import cost

RNG = np.random.default_rng(5)
NUM_SAMPLES = 24
X = RNG.normal(size=(NUM_SAMPLES, 3))
Y = np.sin(2 * X).sum(axis=1, keepdims=True) + RNG.normal(size=(NUM_SAMPLES, 1))
WEIGHTS = np.where(RNG.uniform(size=NUM_SAMPLES) < 0.5, 0, RNG.uniform(size=NUM_SAMPLES))
SETTINGS = {"key": jax.random.key(7), "num_folds": 3, "num_epochs": 4, "batch_size": 6}
HYPERPARAMETERS = {"learning_rate": np.array([2**-3, 2**-5])}


def init(key, h):
    return plain.exact(key, {"first": jnp.zeros((3, 8)), "second": jnp.zeros((8, 1))})


def apply(params, x, h):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def sgd(h, num_steps=None):
    return optax.sgd(h["learning_rate"])


def plainly(optimizer, hyperparameters=HYPERPARAMETERS, **settings):
    net = plain.Net(
        lambda key, h: (init(key, h), None),
        lambda params, state, x, h, key, train: (apply(params, x, h), None),
        squared_error,
        optimizer,
    )
    return plain.cross_validate(net, hyperparameters, X, Y, **SETTINGS | settings)


def together(optimizer, hyperparameters=HYPERPARAMETERS, **settings):
    return cross_validate(
        init, apply, squared_error, optimizer, hyperparameters, X, Y, return_params=True, **SETTINGS | settings
    )


def test_members_with_weights_equal_the_plain_loop_though_some_batches_have_none():
    absolute = {"absolute": lambda outputs, y: jnp.abs(outputs - y)[:, 0]}
    settings = {"batch_size": 2, "averaging": 0.99}
    found = together(sgd, weights=WEIGHTS.tolist(), metrics=absolute, **settings)
    plain.assert_equal(found, plainly(sgd, weights=WEIGHTS, **settings))
    errors = np.abs(found.out_of_fold(1) - Y)[:, 0]
    for f, fold in enumerate(found.folds):
        own = fold.validation
        plain.assert_close(found.metrics["absolute"][1, f, -1], np.average(errors[own], weights=WEIGHTS[own]))


def test_members_whose_learning_rate_follows_the_loss_equal_the_plain_loop():
    def plateau(h, num_steps=None):
        scale = optax.contrib.reduce_on_plateau(factor=0.25, patience=2, accumulation_size=2)
        return optax.chain(optax.sgd(h["learning_rate"]), scale)

    found = together(plateau)
    plain.assert_equal(found, plainly(plateau))
    assert not np.isclose(found.val_loss[..., -1], plainly(sgd).val_loss[..., -1]).all(), "no loss was on a plateau"


def test_members_with_a_schedule_and_an_average_of_their_parameters_equal_the_plain_loop():
    def cosine(h, num_steps):
        assert num_steps == 4 * 3  # epochs x batches of the 16 samples
        rate = h["learning_rate"]
        warm = optax.linear_schedule(0.0, rate, 3)
        return optax.adam(optax.join_schedules([warm, optax.cosine_decay_schedule(rate, 9)], [3]))

    plain.assert_equal(together(cosine, averaging=0.5), plainly(cosine, averaging=0.5))


def test_members_that_stop_early_equal_the_plain_loop_that_does(monkeypatch):
    monkeypatch.setattr(cost, "enough_epochs", lambda _: 3)  # no call ends where the members do
    settings = {
        "num_epochs": 20,
        "early_stopping": 3,
        "hyperparameters": {"learning_rate": 2.0 ** np.array([-2, -8, -6, -3])},
    }
    found, expected = together(sgd, **settings), plainly(sgd, **settings)
    plain.assert_equal(found, expected)
    np.testing.assert_array_equal(found.best_epoch, expected.epoch)
    lowest = np.nanmin(expected.val_loss, axis=2)
    plain.assert_close(found.scores.mean, lowest.mean(axis=1))
    plain.assert_close(found.scores.std, lowest.std(axis=1))
    num_epochs = np.isfinite(expected.val_loss).sum(axis=2)
    assert num_epochs.min() < 12 and num_epochs.max() == 20  # some stop, some don't
    lows = np.flatnonzero(np.diff(np.minimum.accumulate(expected.val_loss[3, 0])) < 0)
    assert 3 in np.diff(lows), "one is lower again just before its patience ends"
    # The predictions are those of the best epoch.
    out_of_fold = found.out_of_fold(0)
    for f, fold in enumerate(found.folds):
        plain.assert_close(np.mean((out_of_fold - Y)[fold.validation] ** 2), lowest[0, f])
