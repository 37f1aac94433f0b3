"""Metrics of a whole held-out part in cross-validation and studies: on all outputs of a fold, without the padding."""

import csv
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import roc_auc_score

import hw1jax as hw
from hw1jax.core import folds, training
from hw1jax.core.layout import Layout
from hw1jax.search.observer import Observer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(203, 3)).astype(np.float32)
Y = (X[:, 0] + RNG.normal(size=203) > 0.5).astype(np.int32)
WEIGHTS = RNG.integers(0, 3, 203).astype(np.float32)
RATES = {"rate": np.array([0.01, 0.3], np.float32)}
NEGATIVE = np.flatnonzero(Y == 0)[:30]
FOLDS = [
    (np.arange(100), np.arange(100, 203)),
    (np.delete(np.arange(203), NEGATIVE), NEGATIVE),
]  # the second: one class
OF_BIG_OUTPUTS = hw.whole(lambda outputs, y, w: jnp.where(jnp.max(jnp.abs(outputs)) > 100, jnp.nan, jnp.sum(w)))

LINEAR = {
    "init": lambda key, h: 0.1 * jax.random.normal(key, (3, 2)),
    "apply": lambda params, x, h: x @ params,
    "loss": hw.cross_entropy,
    "optimizer": lambda h: optax.adam(h["rate"]),
}


def cross_validated(**more):
    given = {"x": X, "y": Y, "hyperparameters": RATES, "num_epochs": 2, "batch_size": 16, "return_params": True}
    return hw.cross_validate(**LINEAR | given | more, key=jax.random.key(0))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_each_fold_has_the_metric_of_all_its_outputs(weights):
    found = cross_validated(weights=weights, metrics={"auc": hw.roc_auc, "accuracy": hw.accuracy})
    for trial in range(2):
        for i, fold in enumerate(found.folds):
            outputs = X[fold.validation] @ found.params[trial, i]
            own = None if weights is None else weights[fold.validation]
            known = roc_auc_score(Y[fold.validation], outputs[:, 1] - outputs[:, 0], sample_weight=own)
            assert found.metrics["auc"][trial, i, -1] == pytest.approx(known, abs=1e-6)
    alone = cross_validated(weights=weights, metrics={"accuracy": hw.accuracy})
    np.testing.assert_array_equal(found.metrics["accuracy"], alone.metrics["accuracy"])


@pytest.mark.parametrize("sequential", [False, True])
def test_padding_counts_in_no_batch(sequential):
    index, params = np.arange(7, 60), RNG.normal(size=(3, 2)).astype(np.float32)
    batches = folds.pad_batches([index, np.arange(100)], 16)[0]  # the last three batches have padding, or nothing else
    total = hw.whole(lambda outputs, y, w: jnp.sum(w * outputs[:, 0]) + 100 * jnp.sum(w * y) + 10_000 * jnp.sum(w))
    task, data = hw.Task(**LINEAR, metrics=(("total", total),)), training.Data(jnp.asarray(X), jnp.asarray(Y))
    found = training.evaluate(
        task, Layout(sequential=sequential), training.State(params, None), data, batches, {"rate": 0.1}
    )
    known = np.sum(X[index] @ params[:, 0]) + 100 * np.sum(Y[index]) + 10_000 * len(index)
    assert float(found["total"]) == pytest.approx(known, rel=1e-6)


WRONG = {
    "counts rows of weight 0": lambda outputs, y, w: jnp.mean(jnp.argmax(outputs, 1) == y),
    "must return one number": lambda outputs, y, w: w,
    "NaN in every fold": lambda outputs, y, w: jnp.where(jnp.any(y == 2), 1, jnp.nan),
}


@pytest.mark.parametrize("reason", WRONG)
def test_an_error_of_one_line_names_the_metric(reason, tmp_path):
    metrics = {"auc": hw.whole(WRONG[reason])}
    with pytest.raises(ValueError, match=rf"^metrics\['auc'\] .*{reason[-12:]}") as raised:
        cross_validated(metrics=metrics)
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"^metrics\['auc'\]"):
        hw.run_study(a_study(metrics=metrics), out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_folds_where_y_leaves_it_undefined_do_not_count():
    with (
        pytest.warns(UserWarning, match="no sample of class 1"),
        pytest.warns(UserWarning, match="undefined for y alone.*: auc in fold 1"),
    ):
        found = cross_validated(folds=FOLDS, metrics={"auc": hw.roc_auc})
    table, defined = found.table(), found.metrics["auc"][:, 0, -1]
    assert np.isnan(found.metrics["auc"][:, 1]).all() and np.isnan(table["split1_val_auc"]).all()
    np.testing.assert_array_equal(table["mean_val_auc"], defined)
    np.testing.assert_array_equal(table["std_val_auc"], 0)
    assert not np.isnan(found.scores.mean).any() and f"auc {defined[found.best]:.4g}" in repr(found)


def test_nan_where_it_is_defined_is_a_failure(tmp_path):
    rates = {"rate": np.array([0.01, 1e4], np.float32)}
    found = cross_validated(hyperparameters=rates, metrics={"small": OF_BIG_OUTPUTS})
    np.testing.assert_array_equal(np.isnan(found.table()["mean_val_small"]), [False, True])
    space = {"rate": hw.Choice(0.01, 1e4)}
    results = hw.run_study(a_study(metrics={"small": OF_BIG_OUTPUTS}, maximize="small", space=space), out=tmp_path)
    failed = results.trials["rate"] > 1
    assert failed.any() and set(results.trials["state"][failed]) == {"failed"}
    assert set(results.trials["state"][~failed]) == {"complete"}


def a_study(**changes):
    data = hw.Dataset(X[:153], Y[:153], X[153:], Y[153:])
    given = {"metrics": {"auc": hw.roc_auc}, "maximize": "auc", "space": {"rate": hw.Float(1e-3, 1, log=True)}}
    return hw.Study(
        "auc", lambda fixed: hw.Task(**LINEAR), data, **{**given, "num_trials": 5, "num_epochs": 2} | changes
    )


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


ONE_CLASS = NEGATIVE[:25]
PARTS = [(np.arange(80), np.arange(80, 153)), (np.delete(np.arange(153), ONE_CLASS), ONE_CLASS)]
PARTS += [(np.arange(60, 153), np.arange(60))]


@pytest.mark.parametrize("halving", [None, hw.Halving(2)])
def test_a_study_ranks_and_tests_by_it(tmp_path, halving):
    asked, observer = a_study(folds=PARTS, halving=halving, num_trials=6, num_epochs=4), Notes()
    results = hw.run_study(asked, out=tmp_path, observer=observer)
    assert "auc in fold 1" in " ".join(observer.notes)
    trials = results.trials
    folds_ = trials.folds["auc"]
    assert np.isnan(folds_[:, 1]).all() and (folds_[:, [0, 2]] > 0).all()
    np.testing.assert_allclose(trials["mean_val_auc"], folds_[:, [0, 2]].mean(axis=1))
    np.testing.assert_allclose(trials["std_val_auc"], folds_[:, [0, 2]].std(axis=1))
    complete = np.flatnonzero(trials.complete)
    assert results.best.number == complete[np.argmax(trials["mean_val_auc"][complete])]
    ended = trials["epochs"] == 1  # pruned on the first rung
    assert not halving or (ended.any() and trials["mean_val_auc"][ended].max() <= first_epoch(results)[~ended].min())
    with (tmp_path / "trials.csv").open() as file:
        assert {row["split1_val_auc"] for row in csv.DictReader(file)} == {""}
    outputs = results.model.predict(X[153:])
    assert results.test["auc"] == pytest.approx(roc_auc_score(Y[153:], outputs[:, 1] - outputs[:, 0]), abs=1e-6)
    again = hw.run_study(asked, out=tmp_path)  # read from the journal and the files
    assert again.best == results.best


@pytest.mark.slow
def test_a_page_leaves_out_folds_where_it_is_undefined(tmp_path):
    asked = a_study(folds=PARTS)
    hw.run_study(asked, out=tmp_path, repeats=2)
    hw.write_report(tmp_path, asked)
    page = (tmp_path / "report.html").read_text()
    assert "could not be" not in page and ">nan" not in page and "between repeats" in page


def first_epoch(results):
    return np.mean(results.histories["val_auc"][:, [0, 2], 0], axis=1)


def test_it_is_pickled_by_name_or_by_value():
    assert pickle.loads(pickle.dumps(hw.roc_auc)) is hw.roc_auc
    copy = cloudpickle.loads(cloudpickle.dumps(OF_BIG_OUTPUTS))
    assert float(copy(np.ones((3, 2)), np.ones(3))) == 3
