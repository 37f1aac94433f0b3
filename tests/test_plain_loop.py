"""What is asked for beside a network: with weights, schedules, early stopping, members equal the plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
from compilations import counted

from hw1jax import cross_validate, population, squared_error
from hw1jax.folds import Fold

RNG = np.random.default_rng(5)
NUM_SAMPLES = 24
X = RNG.normal(size=(NUM_SAMPLES, 3))
Y = np.sin(2 * X).sum(axis=1, keepdims=True) + RNG.normal(size=(NUM_SAMPLES, 1))
SETTINGS = {"key": jax.random.key(7), "num_folds": 3, "num_epochs": 4, "batch_size": 6}
HYPERPARAMETERS = {"learning_rate": np.array([2**-3, 2**-5])}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def init(key, h):
    return plain.exact(key, {"first": jnp.zeros((3, 8)), "second": jnp.zeros((8, 1))})


def apply(params, x, h):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def sgd(h, num_steps=None):
    return optax.sgd(h["learning_rate"], momentum=0.5)


def net_of(optimizer):
    return plain.Net(
        lambda key, h: (init(key, h), None),
        lambda params, state, x, h, key, train: (apply(params, x, h), None),
        squared_error,
        optimizer,
    )


def test_members_with_weights_equal_the_plain_loop_though_some_batches_have_none():
    weights = np.where(RNG.uniform(size=NUM_SAMPLES) < 0.5, 0, RNG.uniform(size=NUM_SAMPLES))
    settings = SETTINGS | {"batch_size": 2}
    found = cross_validate(
        init, apply, squared_error, sgd, HYPERPARAMETERS, X, Y, weights=weights, return_params=True, **settings
    )
    plain.assert_equal(found, plain.cross_validate(net_of(sgd), HYPERPARAMETERS, X, Y, weights=weights, **settings))


def test_in_full_batches_weight_0_is_absence_and_weight_2_is_presence_twice():
    weights = np.resize([0.0, 1.0, 2.0], NUM_SAMPLES)
    fold = Fold(np.arange(16), np.arange(16, 24))
    times = [np.repeat(part, weights[part].astype(int)) for part in fold]  # indices, as often as they count
    copies = np.concatenate(times)
    as_often = Fold(np.arange(len(times[0])), np.arange(len(times[0]), len(copies)))
    settings = SETTINGS | {"batch_size": NUM_SAMPLES}
    functions = init, apply, squared_error, sgd, HYPERPARAMETERS
    absolute = {"absolute": lambda outputs, y: jnp.abs(outputs - y)[:, 0]}
    found = cross_validate(*functions, X, Y, weights=weights, folds=[fold], metrics=absolute, **settings)
    expected = cross_validate(*functions, X[copies], Y[copies], folds=[as_often], metrics=absolute, **settings)
    plain.assert_close(found.train_loss, expected.train_loss)
    plain.assert_close(found.val_loss, expected.val_loss)
    plain.assert_close(found.metrics["absolute"], expected.metrics["absolute"])
    unweighted = cross_validate(*functions, X, Y, folds=[fold], **settings)
    assert not np.isclose(found.val_loss, unweighted.val_loss).any()


def test_weights_that_are_all_the_same_change_nothing():
    functions = init, apply, squared_error, sgd, HYPERPARAMETERS
    expected = cross_validate(*functions, X, Y, **SETTINGS)
    found = cross_validate(*functions, X, Y, weights=[3] * NUM_SAMPLES, **SETTINGS)
    plain.assert_close(found.val_loss, expected.val_loss)


def plateau(h, num_steps=None):
    return optax.chain(
        optax.sgd(h["learning_rate"]), optax.contrib.reduce_on_plateau(factor=0.25, patience=2, accumulation_size=2)
    )


def cosine(h, num_steps):
    assert num_steps == 4 * 3  # epochs of the 16 samples' batches
    warm = num_steps // 4
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, h["learning_rate"], warm), optax.cosine_decay_schedule(h["learning_rate"], 9)],
        [warm],
    )
    return optax.adam(schedule)


@pytest.mark.parametrize("optimizer", [plateau, cosine])
def test_members_whose_learning_rate_follows_the_loss_or_a_schedule_equal_the_plain_loop(optimizer):
    found = cross_validate(init, apply, squared_error, optimizer, HYPERPARAMETERS, X, Y, return_params=True, **SETTINGS)
    expected = plain.cross_validate(net_of(optimizer), HYPERPARAMETERS, X, Y, **SETTINGS)
    plain.assert_equal(found, expected)
    constant = plain.cross_validate(net_of(sgd), HYPERPARAMETERS, X, Y, **SETTINGS)
    assert not np.isclose(found.val_loss[..., -1], constant.val_loss[..., -1]).any()


def test_the_loss_has_been_on_a_plateau():
    """Or the test above would say nothing."""
    rule, params = plateau({"learning_rate": 0.5}), jnp.zeros(2)
    state = rule.init(params)
    for _ in range(8):
        _, state = rule.update(params, state, params, value=jnp.ones(()))
    assert state[-1].scale < 1


def test_members_that_stop_early_equal_the_plain_loop_that_does():
    settings = SETTINGS | {"num_epochs": 20}
    hyperparameters = {"learning_rate": np.array([2**-2, 2**-8])}
    functions = init, apply, squared_error, sgd, hyperparameters
    found = cross_validate(*functions, X, Y, early_stopping=3, return_params=True, **settings)
    expected = plain.cross_validate(net_of(sgd), hyperparameters, X, Y, patience=3, **settings)
    plain.assert_equal(found, expected)
    np.testing.assert_array_equal(found.best_epoch, expected.epoch)
    lowest = np.nanmin(expected.val_loss, axis=2)
    plain.assert_close(found.scores.mean, lowest.mean(axis=1))
    plain.assert_close(found.scores.std, lowest.std(axis=1))
    num_epochs = np.isfinite(expected.val_loss).sum(axis=2)
    assert num_epochs.min() < 12 and num_epochs.max() == 20  # some stop, some don't
    # The predictions are those of the best epoch.
    out_of_fold = found.out_of_fold(0)
    for f, fold in enumerate(found.folds):
        plain.assert_close(np.mean((out_of_fold - Y)[fold.validation] ** 2), lowest[0, f])


@pytest.mark.slow
def test_early_stopping_in_many_calls_or_one_is_the_same(monkeypatch):
    settings = SETTINGS | {"num_epochs": 20}
    functions = init, apply, squared_error, sgd, {"learning_rate": np.array([2**-2, 2**-8])}
    results = []
    for few in (1, 20):
        monkeypatch.setattr(population, "enough_epochs", lambda *_, few=few: few)
        results.append(cross_validate(*functions, X, Y, early_stopping=3, return_params=True, **settings))
    one, other = results
    np.testing.assert_array_equal(one.best_epoch, other.best_epoch)
    plain.assert_close(one.val_loss, other.val_loss)
    jax.tree.map(plain.assert_close, one.params, other.params)


def test_all_trials_whatever_they_ask_for_share_one_compilation():
    def asking(params, x, h, key, train, mask, state):
        noise = h["noise"] * jax.random.normal(key, x.shape) if train else 0.0
        mean = jnp.sum(jnp.where(mask[:, None], x, 0), axis=0) / jnp.sum(mask)
        return apply(params, x + noise, h), {"mean": mean} if train else state

    def init_both(key, h):
        return init(key, h), {"mean": jnp.zeros(3)}

    hyperparameters = {"learning_rate": np.linspace(0.01, 0.1, 7), "noise": np.linspace(0, 0.3, 7)}
    with counted() as compiled:
        found = cross_validate(
            init_both, asking, squared_error, cosine, hyperparameters, X, Y, weights=np.ones(NUM_SAMPLES),
            metrics={"again": squared_error}, early_stopping=2, return_params=True, **SETTINGS,
        )  # fmt: skip
    assert [name for name in compiled if "_fit" in name] == ["jit(_fit)"]
    assert [name for name in compiled if "_init" in name] == ["jit(_init)"]
    plain.assert_close(found.metrics["again"], found.val_loss)
    assert len(np.unique(found.val_loss[:, :, 0])) == 7 * 3
    with counted() as compiled:
        halved = {name: values / 2 for name, values in hyperparameters.items()}
        cross_validate(
            init_both, asking, squared_error, cosine, halved, X, Y, weights=np.ones(NUM_SAMPLES),
            metrics={"again": squared_error}, early_stopping=2, return_params=True, **SETTINGS,
        )  # fmt: skip
    assert not compiled
