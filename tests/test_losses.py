"""Losses return one value per example and agree with numpy formulas; masked values can't leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw1jax.core import losses

squared_error, cross_entropy, accuracy = map(jax.jit, (losses.squared_error, losses.cross_entropy, losses.accuracy))
masked_sum = jax.jit(jax.value_and_grad(losses.masked_sum))


def test_squared_error_is_the_mean_over_the_outputs():
    outputs, y = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    values = squared_error(outputs, y)
    assert values.shape == (7,) and values.dtype == jnp.float32
    np.testing.assert_allclose(values, np.mean((outputs - y) ** 2, axis=1), rtol=1e-6)


def test_cross_entropy_is_minus_the_log_of_the_softmax_at_the_class_and_its_gradient_softmax_minus_one_hot():
    outputs, y = np.random.default_rng(0).normal(size=(9, 10)), np.arange(9)
    exponentials = np.exp(outputs)
    values = cross_entropy(outputs.astype(np.float32), y.astype(np.int32))
    assert values.shape == (9,) and values.dtype == jnp.float32
    np.testing.assert_allclose(values, np.log(exponentials.sum(axis=1)) - outputs[np.arange(9), y], rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda o: jnp.sum(cross_entropy(o, y))))(outputs.astype(np.float32))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(10)[y]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
def test_cross_entropy_of_a_class_that_is_not_there_is_nan_and_no_other_class(dtype):
    y = np.array([3, 0, 2, -1]).astype(dtype)  # of an unsigned type -1 is the largest
    values = cross_entropy(np.zeros((4, 3), np.float32), y)
    assert np.isfinite(values).tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_cross_entropy_takes_more_classes_than_a_small_type_of_labels_holds(dtype):
    values = cross_entropy(np.zeros((2, 300), np.float32), np.array([0, 127], dtype))
    np.testing.assert_allclose(values, np.log(300), rtol=1e-6)


@pytest.mark.parametrize("y, expected", [([0, 0], [0, 1e4 + np.log(2)]), ([1, 1], [1e4, np.log(2)])])
def test_cross_entropy_is_finite_where_exp_overflows(y, expected):
    outputs = np.array([[1e4, 0, 0], [-1e4, 0, 0]], np.float32)
    np.testing.assert_allclose(cross_entropy(outputs, np.array(y)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "loss, outputs, y, error, message",
    [
        (losses.squared_error, (7, 1), np.zeros(7), ValueError, "squared error takes y of the outputs' shape"),
        (losses.squared_error, (7,), np.zeros((7, 1)), ValueError, "squared error takes y of the outputs' shape"),
        (losses.squared_error, (7, 2), np.zeros((7, 1)), ValueError, "squared error takes y of the outputs' shape"),
        (losses.squared_error, (7,), np.zeros(7), ValueError, "squared error takes y of the outputs' shape"),
        (losses.cross_entropy, (2, 3), np.zeros((2, 3), int), ValueError, "one-hot: give y.argmax"),
        (losses.cross_entropy, (2, 3), np.zeros((2, 1), int), ValueError, "takes one class an example"),
        (losses.cross_entropy, (2, 3), np.zeros(2), TypeError, "give y.astype"),
        (losses.cross_entropy, (2, 1), np.zeros(2, int), ValueError, "takes an output of each class, got one"),
        (losses.accuracy, (2, 3), np.zeros((2, 1), int), ValueError, "accuracy takes one class an example"),
    ],
)
def test_labels_of_another_shape_or_type_are_refused(loss, outputs, y, error, message):
    with pytest.raises(error, match=message):
        loss(np.zeros(outputs), y)


def test_accuracy_is_1_where_the_class_has_the_largest_output_and_else_0():
    outputs = np.array([[3.0, 1.0, 2.0], [0.0, -1.0, -2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 5.0]], np.float32)
    values = accuracy(outputs, np.array([0, 1, 0, 2]))  # the third is a tie, which the first wins
    assert values.tolist() == [1, 0, 1, 1]
    assert values.dtype == jnp.float32
    odds = np.array([[0.5], [-0.5], [0.0], [2.0]], np.float32)  # of class 1
    assert accuracy(odds, np.array([1, 0, 1, 0])).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 1e38])
def test_a_masked_sum_ignores_whatever_is_masked_out_and_so_does_its_gradient(hidden):
    for mask in np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool):
        total, gradient = masked_sum(np.array([1, hidden, 3, hidden], np.float32), mask)
        assert total == 4 * mask[0]
        np.testing.assert_array_equal(gradient, mask)
    kept = losses.masked_sum(
        np.array([np.nan, hidden], np.float32), np.array([False, True])
    )  # one by one, not compiled
    np.testing.assert_array_equal(kept, np.float32(hidden))


@pytest.mark.parametrize("loss, y", [(squared_error, np.zeros((2, 3))), (cross_entropy, np.array([0, 1]))])
def test_the_outputs_gradient_of_a_padded_example_is_zero(loss, y):
    mask = np.array([True, False])
    gradient = jax.jit(jax.grad(lambda o: losses.masked_sum(loss(o, y), mask)))(np.ones((2, 3), np.float32))
    assert np.any(gradient[0] != 0)
    np.testing.assert_array_equal(gradient[1], 0)


def test_losses_are_float64_where_their_inputs_are():
    with jax.enable_x64(True):
        outputs, classes, mask = np.zeros((2, 3)), np.zeros(2, int), np.ones(2, bool)
        values = jax.eval_shape(losses.squared_error, outputs, outputs)
        for of_doubles in (
            values,
            jax.eval_shape(losses.cross_entropy, outputs, classes),
            jax.eval_shape(losses.accuracy, outputs, classes),
            jax.eval_shape(losses.masked_sum, values, mask),
        ):
            assert of_doubles.dtype == np.float64
