"""Metrics on the test set, compared with small cases computed by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hw1jax.core import losses
from hw1jax.results import evaluation

# Outputs of five examples over three classes; the largest of each row is the prediction: 0, 2, 1, 2, 0.
OUTPUTS = np.array([[3, 1, 2], [0, -1, 5], [-3, -1, -2], [0.1, 0.2, 0.3], [9, 8, 7]], np.float32)
Y = np.array([0, 2, 0, 1, 0], np.int32)
CONFUSION = [[2, 1, 0], [0, 0, 1], [0, 0, 1]]  # a row per true class


def test_softmax_by_hand_in_float64_without_overflow_and_leaves_its_input_alone():
    np.testing.assert_allclose(evaluation.softmax([[0, np.log(3)], [7, 7]]), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-12)
    probabilities = evaluation.softmax(np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], np.float32))
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    outputs = OUTPUTS.astype(np.float64)
    evaluation.softmax(outputs)
    np.testing.assert_array_equal(outputs, OUTPUTS)


@pytest.mark.parametrize(
    "y, share", [(Y, pytest.approx(3 / 5)), (np.array([0, 2, 1, 2, 0]), 1.0), (np.array([1, 1, 2, 0, 2]), 0.0)]
)
def test_accuracy_by_hand(y, share):
    assert evaluation.accuracy(OUTPUTS, y) == share and isinstance(evaluation.accuracy(OUTPUTS, y), float)


def test_the_confusion_matrix_has_a_row_per_true_class():
    confusion = evaluation.confusion_matrix(OUTPUTS, Y)
    assert json.loads(json.dumps(confusion.tolist())) == CONFUSION
    assert np.issubdtype(confusion.dtype, np.integer)


def test_the_confusion_matrix_counts_every_example_and_its_diagonal_is_the_accuracy():
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(500, 10)), rng.integers(9, size=500)  # class 9 has no example
    confusion = evaluation.confusion_matrix(outputs, y)
    assert confusion.sum(axis=1).tolist() == np.bincount(y, minlength=10).tolist()
    assert confusion.sum(axis=0).tolist() == np.bincount(outputs.argmax(axis=1), minlength=10).tolist()
    assert np.trace(confusion) / 500 == pytest.approx(evaluation.accuracy(outputs, y))


def test_rows_are_normalised_by_their_true_class_and_an_empty_one_is_zero():
    shares = evaluation.normalise_rows(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 7]]))
    np.testing.assert_array_equal(shares, [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "confusion, precision, recall",
    [
        (CONFUSION, [1, 0, 1 / 2], [2 / 3, 0, 1]),
        ([[2, 0, 0], [1, 0, 0], [0, 0, 0]], [2 / 3, 0, 0], [1, 0, 0]),  # never predicted, never there
    ],
)
def test_precision_and_recall_by_hand(confusion, precision, recall):
    found = evaluation.precision_and_recall(np.array(confusion))
    np.testing.assert_allclose(found, [precision, recall])


def test_constant_loss_is_the_variance_or_the_entropy_of_the_labels_where_the_loss_is_known():
    squared_error, cross_entropy = losses.squared_error, losses.cross_entropy
    assert evaluation.constant_loss(squared_error, np.array([[1.0], [3.0]])) == 1
    assert evaluation.constant_loss(squared_error, np.array([[1.0, 5.0], [3.0, 5.0]])) == 0.5
    assert evaluation.constant_loss(cross_entropy, np.array([0, 1, 2, 3])) == pytest.approx(np.log(4))
    by_hand = 0.75 * np.log(4 / 3) + 0.25 * np.log(4)
    assert evaluation.constant_loss(cross_entropy, np.array([0, 0, 0, 2])) == pytest.approx(by_hand)
    assert evaluation.constant_loss(lambda outputs, y: outputs, np.array([0, 1])) is None


@given(
    st.sampled_from([1, 3, 5]).flatmap(
        lambda n: hnp.arrays(np.float32, (n, 3, 4), elements=st.floats(-30, 30, width=32))
    )
)
@settings(max_examples=30, deadline=None)
def test_an_ensemble_of_classifiers_gives_the_mean_of_their_probabilities(outputs):
    """`outputs`: of several networks, [network, example, class]."""
    together = evaluation.ensemble(losses.cross_entropy, list(outputs))
    probabilities = np.mean([evaluation.softmax(own) for own in outputs], axis=0)
    np.testing.assert_allclose(np.exp(together.astype(np.float64)), probabilities, rtol=1e-4, atol=1e-9)
    y = np.zeros(3, np.int32)
    loss = losses.cross_entropy(together, y)
    np.testing.assert_allclose(loss, -np.log(probabilities[:, 0]), rtol=1e-4, atol=1e-5)
    mean_loss = np.mean([losses.cross_entropy(own, y) for own in outputs], axis=0)
    assert np.all(loss <= mean_loss + 1e-4), "by convexity it is never worse than its members are on average"


def test_an_ensemble_of_very_sure_classifiers_stays_finite():
    sure = np.float32([[2000, 0, -2000]])
    together = evaluation.ensemble(losses.cross_entropy, [sure, sure])
    np.testing.assert_allclose(together, [[0, -2000, -4000]], rtol=1e-6)
    opposed = evaluation.ensemble(losses.cross_entropy, [sure, -sure])
    np.testing.assert_allclose(opposed, np.log([[0.5, 1, 0.5]]) - [[0, 2000, 0]], rtol=1e-6)


def test_an_ensemble_of_others_gives_the_mean_of_their_outputs_whatever_tree_they_are():
    outputs = np.random.default_rng(0).uniform(-100, 100, (3, 4, 2)).astype(np.float32)
    mean = outputs.mean(axis=0)
    np.testing.assert_allclose(evaluation.ensemble(losses.squared_error, list(outputs)), mean, rtol=1e-4, atol=1e-4)
    tree = evaluation.ensemble(lambda outputs, y: y, [{"a": own, "b": (own[:, 0],)} for own in outputs])
    assert set(tree) == {"a", "b"}
    np.testing.assert_allclose(tree["a"], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tree["b"][0], mean[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.squared_error])
@pytest.mark.parametrize(
    "dtype, expected",
    [(jnp.bfloat16, np.float32), (np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)],
)
def test_an_ensemble_is_as_exact_as_its_networks_and_float32_at_least(loss, dtype, expected):
    outputs = np.array([[[1, 2]], [[3, 5]]], dtype)
    assert evaluation.ensemble(loss, list(outputs)).dtype == expected


def test_the_most_confused_pair_is_never_on_the_diagonal_and_its_mistakes_come_the_surest_first():
    assert evaluation.most_confused_pair(np.array([[9, 1, 0], [0, 5, 4], [2, 2, 9]])) == (1, 2)
    assert evaluation.most_confused_pair(np.diag([3, 4])) is None
    outputs = np.array([[0, 1, 0], [0, 9, 0], [5, 0, 0], [0, 3, 0], [0, 2, 0]], float)
    y = np.array([0, 0, 0, 1, 0])
    np.testing.assert_array_equal(evaluation.misclassified(outputs, y, 0, 1), [1, 4, 0])
    assert len(evaluation.misclassified(outputs, y, 2, 1)) == 0


def test_calibration_counts_each_example_once_and_weighs_the_bins():
    log = np.log([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65], [0.5, 0.5]])
    found = evaluation.calibration(log, np.array([0, 1, 0, 1, 0]))
    np.testing.assert_array_equal(found.right, [0, 0, 0, 0, 0, 1, 2, 0, 0, 1])
    np.testing.assert_array_equal(found.wrong, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(found.confidence[[5, 6, 9]], [0.5, 0.65, 0.95])
    np.testing.assert_allclose(found.accuracy[[5, 6, 9]], [1, 1, 0.5])
    assert np.isnan(found.accuracy[0])
    assert found.expected_error == pytest.approx((1 * 0.5 + 2 * 0.35 + 2 * 0.45) / 5)
    certain = evaluation.calibration(np.array([[1000.0, 0]]), np.array([0]))
    assert certain.right[-1] == 1 and certain.expected_error == 0
