"""Scores are numbers where they are defined, and only there: diverged networks, odd labels, samples of weight 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_right_values import X, Y, apply, cross_validate, init, sgd, sine

import hw1jax as hw


def binary(outputs, y):
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], y)


def breaks(h):
    """Diverges after twelve updates."""
    return optax.sgd(lambda count: jnp.where(count < 12, h["rate"], jnp.nan))


METRICS = {"auc": hw.roc_auc, "right": hw.accuracy, "order": hw.average_precision}


def test_a_network_that_has_diverged_has_no_score(tmp_path):
    """Ranks of NaN would be those of the samples, and the largest NaN that of class 0."""
    x, y = np.sort(X, axis=0), np.repeat(np.int32([0, 1]), 20)
    rates, given = {"rate": np.float32([0.01, 0.1])}, {"key": jax.random.key(0), "num_epochs": 8, "batch_size": 8}
    found = hw.cross_validate(init, apply, binary, breaks, rates, x, y, metrics=METRICS, **given)
    assert np.isfinite(found.val_loss[:, :, 2]).all() and np.isnan(found.val_loss[:, :, 4:]).all()
    for values in found.metrics.values():
        np.testing.assert_array_equal(np.isfinite(values), np.isfinite(found.val_loss))
    data = hw.Dataset(x, y, x, y)
    study = sine(loss=binary, optimizer=breaks, metrics=METRICS, maximize="auc", data=data, num_epochs=8)
    stopped = hw.run_study(study, early_stopping=8, out=tmp_path)
    assert set(stopped.trials["state"]) == {"complete"}


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_labels_that_are_no_indices_of_classes_are_nan(sign):
    outputs, weights = sign * np.float32(Y - Y.mean()), np.ones(40, np.float32)
    right = np.where(Y[:, 0] > Y.mean(), 1, 0)
    wholes = hw.roc_auc, hw.average_precision, hw.f1, hw.f1_macro, hw.f1_micro, hw.f1_weighted, hw.balanced_accuracy
    for labels in (2 * right - 1, right + 1):
        assert np.isnan(hw.accuracy(outputs, labels)).any()
        for metric in wholes:
            area = metric in wholes[:2] and labels.min() == -1  # of class 1
            found, expected = (metric(outputs, y, weights) for y in (labels, right))
            assert np.isfinite(expected) and (found == expected if area else np.isnan(found)), metric


def test_scores_of_more_classes_than_a_small_type_of_labels_holds_are_numbers():
    labels, outputs = np.uint8(np.arange(40) % 3), np.float32(np.random.default_rng(0).normal(size=(40, 300)))
    for metric in (hw.f1_macro, hw.balanced_accuracy):
        assert metric(outputs, labels, np.ones(40, np.float32)) == metric(outputs, np.int32(labels), np.ones(40))


def test_a_sample_of_weight_0_may_have_any_target():
    y, weights = np.array(Y), np.ones(40)
    y[::7], weights[::7] = 1e30, 0.0
    found = cross_validate(lambda h: optax.sgd(h["rate"]), y=y, weights=weights)
    y[::7] = 0
    np.testing.assert_array_equal(cross_validate(sgd, y=y, weights=weights).val_loss, found.val_loss)


def test_a_metric_of_positive_outputs_counts_in_every_fold_and_may_take_a_tree():
    def rmsle(outputs, y, weights):
        squared = jnp.square(jnp.log1p(outputs["size"][:, 0]) - jnp.log1p(y["size"][:, 0]))
        return jnp.sqrt(jnp.sum(jnp.where(weights > 0, squared * weights, 0)) / jnp.sum(weights))

    def apart(outputs, y, weights):  # of random outputs as well
        difference = weights * (outputs["size"] - outputs["first"])[:, 0]
        return jnp.sum(difference) / jnp.sum(jnp.abs(difference))

    found = hw.cross_validate(
        init,
        lambda params, x, h: {"first": x, "size": jax.nn.softplus(apply(params, x, h))},
        lambda outputs, y: jnp.mean(jnp.square(outputs["size"] - y["size"]), axis=1),
        sgd,
        {"rate": np.float32([0.01])},
        X,
        {"size": np.abs(Y)},
        metrics={"rmsle": hw.whole(rmsle), "apart": hw.whole(apart)},
        key=jax.random.key(0),
        num_epochs=1,
        batch_size=8,
    )
    assert not found.undefined and np.isfinite(found.metrics["rmsle"]).all()
