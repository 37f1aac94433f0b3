"""An exponential moving average of the parameters: what is evaluated, kept and compacted where a task asks for it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

import hw1jax as hw
from hw1jax import folds, run, run_study, study
from hw1jax.losses import squared_error
from hw1jax.observer import Observer

X = np.linspace(-1, 1, 30, dtype=np.float32)[:, None]
Y = 3 * X + np.random.default_rng(0).normal(0, 0.1, X.shape).astype(np.float32)
KEY, RATES = jax.random.key(3), np.array([0.05, 0.4], np.float32)


def line(params, x, h):
    return params["w"] * x + params["b"]


def init(key, h):
    return {"w": jax.random.normal(key), "b": jnp.zeros(())}


def cross_validated(averaging, **options):
    return hw.cross_validate(
        init, line, squared_error, optax.sgd, RATES, X, Y,
        key=KEY, num_epochs=6, batch_size=7, averaging=averaging, return_params=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_is_that_of_a_plain_loop_and_is_what_is_evaluated(decay):
    found = cross_validated(decay)
    seed = tuple(int(word) for word in np.ravel(jax.random.key_data(KEY)))
    splits = folds.k_fold(len(X), 3, seed)
    for fold, split in enumerate(splits):
        raw = jax.tree.map(lambda a: a[0, fold], first_params())  # noqa: B023
        average, count = raw, 0
        for epoch in range(6):
            [[batches]] = folds.minibatches([split], range(epoch, epoch + 1), batch_size=7, seed=seed, first_fold=fold)
            for index in batches:
                index = index[index >= 0]
                gradient = jax.grad(lambda p: jnp.mean(squared_error(line(p, X[index], 0), Y[index])))(raw)  # noqa: B023
                raw = jax.tree.map(lambda p, g: p - RATES[0] * g, raw, gradient)
                now = min(decay, (1 + count) / (10 + count))
                average = jax.tree.map(lambda a, p: now * a + (1 - now) * p, average, raw)  # noqa: B023
                count += 1
        for name in average:
            np.testing.assert_allclose(found.params[name][0, fold], average[name], rtol=1e-4, atol=1e-5)
        held_out = np.mean(squared_error(line(average, X[split.validation], 0), Y[split.validation]))
        np.testing.assert_allclose(found.val_loss[0, fold, -1], held_out, rtol=1e-4)


def first_params():
    """[trial, fold] before the first step: a learning rate of 0 leaves them."""
    return hw.cross_validate(
        init, line, squared_error, lambda h: optax.sgd(0.0), RATES, X, Y,
        key=KEY, num_epochs=1, batch_size=7, return_params=True,
    ).params  # fmt: skip


def test_training_itself_is_the_same_with_an_average_and_without():
    np.testing.assert_array_equal(cross_validated(0.9).train_loss, cross_validated(None).train_loss)


@pytest.mark.parametrize("averaging", [0.0, 1.0, -0.5, 2.0, True, "0.9"])
def test_what_is_no_decay_is_refused(averaging):
    with pytest.raises(ValueError, match="averaging= is a decay, above 0 and below 1"):
        cross_validated(averaging)


@pytest.mark.parametrize("widths", ["padded", "exact"])
def test_a_searched_network_is_the_average_in_its_folds(tmp_path, widths):
    plain = run_study(toy.STUDY, out=tmp_path / "plain", widths=widths)
    found = run_study(toy.STUDY, out=tmp_path / "averaged", widths=widths, averaging=0.9)
    np.testing.assert_allclose(found.histories["train_loss"], plain.histories["train_loss"], rtol=1e-5)
    assert (found.histories["val_loss"] != plain.histories["val_loss"]).any()
    row, val = found.row, []
    for (params, _), fold in zip(found.model.folds, folds.k_fold(61, 3, (0,)), strict=True):
        x, y = toy.DATA.x_train[fold.validation], toy.DATA.y_train[fold.validation]
        outputs = found.model.task.apply(params, x, found.model.hyperparameters)
        val.append(float(np.mean(squared_error(outputs, y))))
    np.testing.assert_allclose(val, found.histories["val_loss"][row, :, -1], rtol=1e-5)


def test_a_refitted_network_is_the_average():
    refitted = {}
    for averaging in (None, 0.9):
        draw = {"hidden_units": (4, 3), "learning_rate": 0.05, "l2": 1e-4, "optimizer": "adam"}
        refitted[averaging] = run.refit(study.order(toy.STUDY, averaging=averaging), toy.DATA, 3, draw, Observer())
    (plain, plain_loss), (average, average_loss) = refitted.values()
    np.testing.assert_allclose(average_loss, plain_loss, rtol=1e-5)  # the same training
    for own, last in zip(jax.tree.leaves(average.params), jax.tree.leaves(plain.params), strict=True):
        assert np.abs(own - last).max() > 1e-4


def test_averages_go_on_through_halving(tmp_path):
    asked = replace(toy.STUDY, task=lambda fixed: toy.task(fixed)._replace(averaging=0.9))
    whole = run_study(asked, out=tmp_path / "whole", widths="padded", num_trials=6, num_epochs=9)
    halved = run_study(asked, out=tmp_path / "halved", widths="padded", num_trials=6, num_epochs=9, halving=3)
    row = halved.row
    np.testing.assert_allclose(
        halved.histories["val_loss"][row], whole.histories["val_loss"][row], rtol=1e-4, atol=1e-6
    )
