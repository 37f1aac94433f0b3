"""Metrics of a whole held-out part are scikit-learn's, and rows of weight 0 change nothing."""

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as theirs

import hw1jax as hw

OF_CLASSES = {
    "roc_auc": lambda y, p, w: theirs.roc_auc_score(y, p, sample_weight=w, multi_class="ovr"),
    "average_precision": lambda y, p, w: theirs.average_precision_score(y, p, sample_weight=w),
    "f1_macro": lambda y, p, w: theirs.f1_score(y, _hard(p), average="macro", sample_weight=w),
    "f1_micro": lambda y, p, w: theirs.f1_score(y, _hard(p), average="micro", sample_weight=w),
    "f1_weighted": lambda y, p, w: theirs.f1_score(y, _hard(p), average="weighted", sample_weight=w),
    "balanced_accuracy": lambda y, p, w: theirs.balanced_accuracy_score(y, _hard(p), sample_weight=w),
}
OF_TWO = OF_CLASSES | {"f1": lambda y, p, w: theirs.f1_score(y, _hard(p), sample_weight=w)}
OF_NUMBERS = {
    "r2": lambda y, o, w: theirs.r2_score(y, o, sample_weight=w),
    "rmse": lambda y, o, w: theirs.root_mean_squared_error(y, o, sample_weight=w),
}


def _hard(probabilities):
    return probabilities.argmax(axis=1) if probabilities.ndim > 1 else (probabilities > 0.5).astype(int)


def some_weights(kind, rng, n):
    if kind == "none":
        return None
    return np.where(rng.random(n) < 0.2, 0, rng.uniform(0.1, 3, n)).astype(np.float32)


def with_ties(rng, n, *shape):
    """Normal numbers, of which many come twice or more often; whole rows, so that softmax ties as well."""
    rows = rng.normal(size=(n // 3, *shape)).astype(np.float32)
    return rows[rng.integers(0, len(rows), n)]


def softmax(logits):
    e = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


CASES = [(seed, n, kind) for seed, n in enumerate((30, 300, 1100)) for kind in ("none", "some")]


@pytest.mark.parametrize(("seed", "n", "kind"), CASES)
@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_classes_are_those_of_scikit_learn(seed, n, kind, classes):
    rng = np.random.default_rng(seed)
    logits, y = with_ties(rng, n, classes), rng.integers(0, classes, n)
    logits[np.arange(n), y] += 0.5
    logits[n // 2 :] = logits[: n - n // 2]  # ties between the classes too
    weights = some_weights(kind, rng, n)
    probabilities = softmax(logits)
    for name, reference in (OF_TWO if classes == 2 else OF_CLASSES).items():
        known = reference(y, probabilities[:, 1] if classes == 2 else probabilities, weights)
        assert float(getattr(hw, name)(logits, y, weights)) == pytest.approx(known, abs=1e-6), name


@pytest.mark.parametrize(("seed", "n", "kind"), CASES)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_logit_is_that_of_class_1(seed, n, kind, shape):
    rng = np.random.default_rng(seed)
    logits, y = with_ties(rng, n, *shape), rng.random(n) < 0.3
    weights = some_weights(kind, rng, n)
    score = 1 / (1 + np.exp(-np.float64(logits.reshape(n))))
    for name, reference in OF_TWO.items():
        known = reference(y, score, weights)
        assert float(getattr(hw, name)(logits, y, weights)) == pytest.approx(known, abs=1e-6), name


@pytest.mark.parametrize(("seed", "n", "kind"), CASES)
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_metrics_of_numbers_are_those_of_scikit_learn(seed, n, kind, shape):
    rng = np.random.default_rng(seed)
    y = 50 + with_ties(rng, n, *shape)
    outputs = y + rng.normal(size=y.shape).astype(np.float32)
    weights = some_weights(kind, rng, n)
    for name, reference in OF_NUMBERS.items():
        known = reference(np.float64(y), outputs, weights)
        assert float(getattr(hw, name)(outputs, y, weights)) == pytest.approx(known, abs=1e-6), name


@pytest.mark.parametrize("n", [30, 1100])
def test_spearman_is_scipys_with_ties_and_a_weight_counts_examples(n):
    rng = np.random.default_rng(n)
    y, outputs = with_ties(rng, n), with_ties(rng, n)
    outputs += np.float32(0.5) * y
    assert float(hw.spearman(outputs, y)) == pytest.approx(scipy.stats.spearmanr(outputs, y)[0], abs=1e-6)
    times = rng.integers(0, 4, n)
    known = scipy.stats.spearmanr(np.repeat(outputs, times), np.repeat(y, times))[0]
    assert float(hw.spearman(outputs, y, times.astype(np.float32))) == pytest.approx(known, abs=1e-6)
    two = hw.spearman(np.stack([outputs, y], 1), np.stack([y, y], 1))
    assert float(two) == pytest.approx((scipy.stats.spearmanr(outputs, y)[0] + 1) / 2, abs=1e-6)


def test_in_float64_they_are_exact_for_many_examples():
    rng, n = np.random.default_rng(5), 30_000
    y, outputs, weights = rng.integers(0, 2, n), np.round(rng.normal(size=n), 3), rng.uniform(0, 2, n)
    with jax.enable_x64(True):
        for name in ("roc_auc", "average_precision"):
            known = OF_TWO[name](y, outputs, weights)
            assert float(getattr(hw, name)(outputs, y, weights)) == pytest.approx(known, abs=1e-12), name
        known = scipy.stats.spearmanr(outputs, y)[0]
        assert float(hw.spearman(outputs, y.astype(float))) == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize("name", [*OF_TWO, *OF_NUMBERS, "spearman"])
def test_rows_of_weight_0_change_nothing(name):
    rng = np.random.default_rng(7)
    outputs, y = rng.normal(size=(40, 2)).astype(np.float32), rng.integers(0, 2, 40)
    if name not in OF_TWO:
        y = rng.normal(size=(40, 2)).astype(np.float32)
    weights = np.where(np.arange(40) < 25, 1, 0).astype(np.float32)
    own = getattr(hw, name)(outputs[:25], y[:25])
    assert float(getattr(hw, name)(outputs, y, weights)) == pytest.approx(float(own), abs=1e-6)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "f1"])
def test_without_a_class_they_are_undefined_and_not_0(name):
    outputs = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    assert np.isnan(getattr(hw, name)(outputs, np.zeros(9, int)))
    other = np.arange(9) // 8  # the one example of class 1 has weight 0
    assert np.isnan(getattr(hw, name)(outputs, other, np.float32(1 - other)))


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize("unit", [2.0**-80, 2.0**80, 2.0**120])
def test_in_a_unit_whose_square_float32_has_not_they_are_the_same(name, unit):
    rng, unit = np.random.default_rng(3), np.float32(unit)
    y, outputs = (rng.normal(size=(30, 2)).astype(np.float32) for _ in range(2))
    metric = getattr(hw, name)
    assert metric(unit * outputs, unit * y) == metric(outputs, y) * (unit if name == "rmse" else 1)
    constant = np.ones_like(y)
    assert hw.r2(unit * outputs, unit * constant) == 0 and hw.r2(unit * constant, unit * constant) == 1


def test_of_a_constant_y_spearman_is_undefined_and_r2_is_scikit_learns():
    y, weights = np.full(9, 0.1, np.float32), np.ones(9, np.float32)
    y[0], weights[0] = 3, 0
    outputs = np.arange(9, dtype=np.float32)
    assert np.isnan(hw.spearman(outputs, y, weights))
    both = np.stack([outputs, y], 1), np.stack([y, y], 1)  # the second column is predicted exactly
    for ours, y_true in ((outputs, y), (y, y), both):
        known = theirs.r2_score(np.float64(y_true[1:]), ours[1:])
        assert float(hw.r2(ours, y_true, weights)) == pytest.approx(known, abs=1e-6)
    assert np.isnan(hw.r2(outputs[:2], y[:2], weights[:2])), "a single example, as scikit-learn's"
