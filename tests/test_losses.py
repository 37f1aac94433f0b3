"""Losses are one value an example and agree with their formulas in numpy; what is masked out can't leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw1jax import losses

squared_error, cross_entropy = jax.jit(losses.squared_error), jax.jit(losses.cross_entropy)
masked_sum = jax.jit(jax.value_and_grad(losses.masked_sum))


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_squared_error_is_the_mean_over_the_outputs(num_outputs):
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(2, 7, num_outputs)).astype(np.float32)
    values = squared_error(outputs, y)
    assert values.shape == (7,)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, np.mean((outputs - y) ** 2, axis=1), rtol=1e-6)


def test_squared_error_by_hand():
    assert squared_error(jnp.array([[3.0], [1.0]]), jnp.array([[1.0], [1.0]])).tolist() == [4.0, 0.0]


def test_cross_entropy_is_minus_the_log_of_the_softmax_at_the_class():
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(9, 10)), rng.integers(10, size=9)
    expected = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(9), y]
    values = cross_entropy(outputs.astype(np.float32), y.astype(np.int32))
    assert values.shape == (9,)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_cross_entropy_of_an_undecided_net_is_the_log_of_the_number_of_classes():
    np.testing.assert_allclose(cross_entropy(jnp.zeros((2, 10)), jnp.array([0, 9])), np.log(10), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
def test_cross_entropy_of_a_class_that_is_not_there_is_nan_and_no_other_class(dtype):
    y = np.array([3, 0, 2, -1]).astype(dtype)  # of an unsigned type -1 is the largest
    values = cross_entropy(np.zeros((4, 3), np.float32), y)
    assert np.isfinite(values).tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_cross_entropy_takes_more_classes_than_a_small_type_of_labels_holds(dtype):
    np.testing.assert_allclose(cross_entropy(np.zeros((2, 300), np.float32), dtype([0, 127])), np.log(300), rtol=1e-6)


def test_cross_entropy_is_finite_where_exp_overflows():
    outputs = jnp.array([[1e4, 0.0, 0.0], [-1e4, 0.0, 0.0]])
    np.testing.assert_allclose(cross_entropy(outputs, jnp.array([0, 0])), [0, 1e4 + np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(outputs, jnp.array([1, 1])), [1e4, np.log(2)], rtol=1e-6)


def test_cross_entropys_gradient_is_softmax_minus_one_hot():
    outputs, y = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 2, 1, 1])
    exponentials = np.exp(outputs)
    expected = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(3)[y]
    gradient = jax.jit(jax.grad(lambda o: jnp.sum(cross_entropy(o, y))))(jnp.asarray(outputs, jnp.float32))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("outputs, y", [((7, 1), (7,)), ((7,), (7, 1)), ((7, 2), (7, 1))])
def test_squared_error_of_shapes_that_would_broadcast_is_refused(outputs, y):
    with pytest.raises(ValueError, match="squared error takes y of the outputs' shape"):
        losses.squared_error(np.zeros(outputs), np.zeros(y))


def test_accuracy_is_1_where_the_class_has_the_largest_output_and_else_0():
    outputs = np.array([[3.0, 1.0, 2.0], [0.0, -1.0, -2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 5.0]], np.float32)
    values = jax.jit(losses.accuracy)(outputs, np.array([0, 1, 0, 2]))  # the third is a tie, which the first wins
    assert values.tolist() == [1, 0, 1, 1]
    assert values.dtype == jnp.float32


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 1e38])
def test_a_masked_sum_ignores_whatever_is_masked_out_and_so_does_its_gradient(hidden):
    values = jnp.array([1.0, hidden, 3.0, hidden])
    mask = jnp.array([True, False, True, False])
    total, gradient = masked_sum(values, mask)
    assert total == 4.0
    assert gradient.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_masked_sum_keeps_what_is_not_finite_where_the_mask_holds():
    assert np.isnan(losses.masked_sum(np.array([1.0, np.nan]), np.array([False, True])))


def test_a_masked_sum_over_nothing_is_zero():
    total, gradient = masked_sum(jnp.full(3, jnp.nan), jnp.zeros(3, bool))
    assert total == 0
    assert gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "loss, outputs, y", [(squared_error, np.ones((2, 1)), np.zeros((2, 1))), (cross_entropy, np.ones((2, 3)), [0, 1])]
)
def test_the_outputs_gradient_of_a_padded_example_is_zero(loss, outputs, y):
    def total(outputs):
        return losses.masked_sum(loss(outputs, np.asarray(y)), np.array([True, False]))

    gradient = jax.jit(jax.grad(total))(outputs.astype(np.float32))
    assert np.any(gradient[0] != 0)
    np.testing.assert_array_equal(gradient[1], 0)


def test_losses_are_float64_where_their_inputs_are():
    with jax.enable_x64(True):
        outputs, classes, mask = np.zeros((2, 3)), np.zeros(2, int), np.ones(2, bool)
        values = jax.eval_shape(losses.squared_error, outputs, outputs)
        assert values.dtype == np.float64
        assert jax.eval_shape(losses.cross_entropy, outputs, classes).dtype == np.float64
        assert jax.eval_shape(losses.accuracy, outputs, classes).dtype == np.float64
        assert jax.eval_shape(losses.masked_sum, values, mask).dtype == np.float64
