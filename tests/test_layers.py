"""Each layer and its gradients equal a plain reference: `lax.conv` with `reduce_window`, or a matrix product."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax import layers

# (input channels, rows, columns, kernel size, channels, images): the bounds of the search space, then odd ones.
FIRST, LATER, LAX = layers.first_conv_pool, layers.conv_pool, layers.lax_conv_pool
BOUNDS = [(FIRST, (1, 28, 28, 4, 4, 3)), (LATER, (4, 13, 13, 5, 10, 3))]
HIGH_BOUNDS = [(FIRST, (1, 28, 28, 4, 10, 2)), (LATER, (10, 13, 13, 5, 15, 2))]
ODD = [(FIRST, (1, 5, 5, 4, 1, 1)), (FIRST, (1, 6, 6, 3, 2, 2)), (FIRST, (3, 10, 7, 4, 4, 2))]
ODD += [(LATER, (1, 5, 5, 5, 1, 1)), (LATER, (2, 28, 28, 7, 2, 2)), (LATER, (2, 9, 14, 5, 4, 2))]
ODD += [(LATER, (2, 5, 8, 3, 4, 2)), (LAX, (3, 10, 7, 4, 4, 2)), (LAX, (2, 9, 14, 5, 4, 2))]


@pytest.fixture(autouse=True)
def exact_products():
    """By default an accelerator's float32 products have fewer bits."""
    with jax.default_matmul_precision("float32"):
        yield


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def over(cases):
    return pytest.mark.parametrize(("layer", "case"), cases, ids=lambda v: getattr(v, "__name__", str(v)))


def plain_conv_pool(x, weights):
    """As `conv_pool`: [channel, row, column, image]."""
    x = reference.convolution(x.transpose(3, 0, 1, 2), weights)
    return reference.pool(jax.nn.relu(x)).transpose(1, 2, 3, 0)


def value_and_gradients(layer, x, weights, cotangent):
    value, gradients = jax.vjp(layer, x, weights)
    return value, *gradients(cotangent)


def images_axis(layer):
    """The members of a fold share their images."""
    return None if layer is FIRST else 0


PLAIN = plain.compiled(partial(value_and_gradients, plain_conv_pool))
ALONE = {layer: jax.jit(partial(value_and_gradients, layer)) for layer in (FIRST, LATER, LAX)}
MEMBERS = {
    layer: jax.jit(jax.vmap(partial(value_and_gradients, layer), (images_axis(layer), 0, 0)))
    for layer in (FIRST, LATER)
}


def random_arrays(case, dtype=np.float64, members=()):
    """(x, weights, cotangent of the output)"""
    num_inputs, *sizes, kernel_size, channels, images = case
    pooled = [layers.pooled_size(size, kernel_size) for size in sizes]
    shapes = (num_inputs, *sizes, images), (channels, 1 + num_inputs * kernel_size**2), (channels, *pooled, images)
    x, weights, cotangent = (np.random.default_rng(3).standard_normal((*members, *s)).astype(dtype) for s in shapes)
    return x, weights / np.sqrt(weights.shape[-1]).astype(dtype), cotangent


def assert_close(found, expected, tolerance):
    """|found - expected| <= tolerance * max(1, |expected|), array by array."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.all(np.abs(np.asarray(a) - b) <= tolerance * np.maximum(1, np.abs(b)))


def arrays_of_members(layer, case):
    x, weights, cotangent = random_arrays(case, members=(3,))
    return x[0] if layer is FIRST else x, weights, cotangent


def assert_members_are_plain(layer, x, weights, cotangent, tolerance):
    found = MEMBERS[layer](x, weights, cotangent)
    for i in range(3):
        expected = PLAIN(x if layer is FIRST else x[i], weights[i], cotangent[i])
        assert_close([leaf[i] for leaf in found], expected, tolerance)


@over(BOUNDS)
def test_members_under_vmap_equal_the_plain_layer_one_by_one(layer, case, float64):
    assert_members_are_plain(layer, *arrays_of_members(layer, case), 1e-10)


@over(BOUNDS)
def test_members_equal_the_plain_layer_exactly_where_ties_and_zeros_abound(layer, case, float64):
    """Few different values, small multiples of 1/2: sums are exact."""
    rng = np.random.default_rng(4)
    x, weights, cotangent = (rng.integers(-1, 2, a.shape) / 2 for a in arrays_of_members(layer, case))
    half_constant = x.copy()
    half_constant[..., case[1] // 2 :, :, :] = 0.5
    for images in (x, half_constant, np.full_like(x, 0.5), np.zeros_like(x)):
        assert_members_are_plain(layer, images, weights, cotangent, 0)
    z = reference.convolution((x if layer is FIRST else x[0]).transpose(3, 0, 1, 2), weights[0])
    cells = np.asarray(z)[..., :10, :10].reshape(*z.shape[:2], 5, 2, 5, 2).transpose(0, 1, 2, 4, 3, 5).reshape(-1, 4)
    best = cells.max(axis=1, keepdims=True)
    assert np.sum((best > 0)[:, 0] & ((cells == best).sum(axis=1) > 1)) > 20, "ties that matter"


@over(BOUNDS)
def test_a_diverged_member_has_a_nan_loss_and_leaves_the_others_their_bits(layer, case, float64):
    x, weights, cotangent = arrays_of_members(layer, case)
    ordinary = MEMBERS[layer](x, weights, cotangent)
    weights[1, 3, 2] = np.nan
    found = MEMBERS[layer](x, weights, cotangent)
    losses = np.square(found[0]).sum(axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    for a, b in zip(found, ordinary, strict=True):
        np.testing.assert_array_equal(a[::2], b[::2])


def test_an_infinite_weight_of_a_diverged_network_gives_nan_where_the_plain_layer_does(float64):
    x, weights, cotangent = arrays_of_members(*BOUNDS[1])
    weights[:, :, 1 + 12] = np.inf  # the middle of the first kernel
    x[:, :, ::2] = 0  # infinity times 0 is NaN: here in each pooling cell, but in its lower outputs alone
    assert np.isnan(PLAIN(x[0], weights[0], cotangent[0])[0]).all()
    assert np.isnan(MEMBERS[LATER](x, weights, cotangent)[0]).all()


@pytest.mark.slow
@over([*HIGH_BOUNDS, *ODD])
def test_convolution_of_images_of_any_size_and_channels_equals_the_plain_one(layer, case, float64):
    arrays = random_arrays(case)
    assert_close(ALONE[layer](*arrays), PLAIN(*arrays), 1e-10)


@pytest.mark.slow
@over(BOUNDS)
def test_convolution_equals_the_plain_one_in_float32(layer, case):
    arrays = random_arrays(case, np.float32)
    with jax.enable_x64(True):  # two sums in float32 may each be near the truth and yet further from one another
        exact = [np.asarray(a, np.float32) for a in PLAIN(*(a.astype(np.float64) for a in arrays))]
    assert_close(ALONE[layer](*arrays), exact, 1e-5)


def test_relu_of_maximum_has_one_winner_the_first_and_none_at_zero_or_below():
    z = np.array(list(itertools.product([-1.0, 0.0, 0.5, 2.0], repeat=4)), np.float32).T  # every pattern of ties
    cotangent = np.arange(1, 1 + z.shape[1], dtype=np.float32)
    value, pullback = jax.vjp(layers.relu_of_maximum, z)
    (gradient,) = pullback(cotangent)
    best = z.max(axis=0)
    first = np.arange(4)[:, None] == z.argmax(axis=0)
    np.testing.assert_array_equal(value, np.maximum(best, 0))
    np.testing.assert_array_equal(gradient, np.where(first & (best > 0), cotangent, 0))
    np.testing.assert_array_equal(np.sum(gradient, axis=0), np.where(best > 0, cotangent, 0))


def test_relu_of_maximum_is_nan_wherever_one_of_the_four_is():
    z = np.where(np.eye(4, dtype=bool), np.nan, np.float32([[1], [2], [-1], [0]]))
    assert np.isnan(layers.relu_of_maximum(z)).all()


@over([(FIRST, (1, 13, 13, 4, 2, 170)), (LATER, (2, 13, 13, 5, 2, 170))])
def test_a_nan_pixel_makes_the_loss_of_its_own_image_nan_wherever_it_is(layer, case):
    x, weights, _ = random_arrays(case, np.float32)
    pixels = x.reshape(-1, 13**2, 170)
    pixels[0, np.arange(13**2), np.arange(13**2)] = np.nan  # image i at pixel i; the last image has none
    losses = np.square(plain.compiled(layer)(x, weights)).sum(axis=(0, 1, 2))
    np.testing.assert_array_equal(np.isnan(losses), np.arange(170) < 169)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.parametrize(("batch", "inputs", "units"), [(20, 784, 50), (6, 10, 3), (1, 1, 1)])
def test_dense_under_vmap_equals_product_plus_bias(dtype, tolerance, batch, inputs, units):
    rng = np.random.default_rng(3)
    x, weights, cotangent = (
        rng.standard_normal(s).astype(dtype) for s in ((batch, inputs), (2, units, 1 + inputs), (2, batch, units))
    )
    weights /= np.sqrt(1 + inputs).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        members = jax.jit(jax.vmap(partial(value_and_gradients, layers.dense), (None, 0, 0)))
        for *found, own, gradient in zip(*members(x, weights, cotangent), weights, cotangent, strict=True):
            of_weights = gradient.T @ np.concatenate([np.ones_like(x[:, :1]), x], axis=1)
            assert_close(found, (x @ own[:, 1:].T + own[:, 0], gradient @ own[:, 1:], of_weights), tolerance)


@pytest.mark.parametrize("batch", [6, 1000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_gradients_of_a_dense_layer_are_of_the_types_of_what_they_are_of(dtype, batch, float64):
    x, weights = jnp.ones((batch, 7), dtype), jnp.ones((3, 8), "float32")
    gradients = jax.grad(lambda x, weights: layers.dense(x, weights).sum(), (0, 1))
    of_x, of_weights = jax.eval_shape(gradients, x, weights)
    assert (of_x.dtype, of_weights.dtype) == (x.dtype, weights.dtype)


def test_pooled_size_is_that_of_the_plain_convolution_and_pooling():
    for kernel_size in range(1, 8):
        for size in (*range(max(1, kernel_size - 1), 10), 13, 28):
            shapes = [(1, size, size, 1), (1, 1 + kernel_size**2)]
            pooled = jax.eval_shape(plain_conv_pool, *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes))
            assert pooled.shape[1] == pooled.shape[2] == layers.pooled_size(size, kernel_size)
    assert (layers.pooled_size(28, 4), layers.pooled_size(13, 5)) == (13, 5)  # the report's


@pytest.mark.parametrize(("num_inputs", "kernel_size"), [(1, 4), (10, 5), (3, 1), (4, 2)])
def test_kernels_are_the_weights_without_the_bias(num_inputs, kernel_size):
    kernel = np.random.default_rng(0).standard_normal((7, num_inputs, kernel_size, kernel_size)).astype(np.float32)
    weights = np.concatenate([np.full((7, 1), np.nan, np.float32), kernel.reshape(7, -1)], axis=1)
    np.testing.assert_array_equal(layers.kernels(jnp.asarray(weights), num_inputs), kernel)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
def test_mask_units_keeps_the_width_and_zeroes_the_rest_whatever_it_is(shape):
    masked = plain.compiled(layers.mask_units)
    gradient = plain.compiled(jax.grad(lambda x, width: jnp.sum(layers.mask_units(x, width))))
    for width in (0, 1, 3, 4):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        x[..., width:] = np.nan
        np.testing.assert_array_equal(masked(x, width), np.where(np.arange(4) < width, x, 0))
        np.testing.assert_array_equal(gradient(x, width), np.broadcast_to(np.arange(4) < width, shape))


draw = partial(plain.compiled, static_argnums=1)(layers.uniform_by_fan_in)
LARGEST = (30, 41)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), fan_in=st.integers(1, 40), width=st.integers(1, 30))
def test_initial_weights_fill_exactly_the_members_own_size_within_the_bound(seed, fan_in, width):
    values = np.asarray(draw(jax.random.key(seed), LARGEST, fan_in, width))
    assert not values[:, fan_in + 1 :].any()
    assert not values[width:].any()
    inside = values[:width, : fan_in + 1]
    assert np.count_nonzero(inside) >= inside.size - 1  # a draw of exactly 0 has a chance of 1e-7
    assert np.abs(inside).max() <= np.float32(1) / np.sqrt(np.float32(fan_in))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), fan_in=st.integers(1, 4), width=st.integers(1, 3))
def test_initial_weights_do_not_depend_on_the_padding(seed, fan_in, width):
    key = jax.random.key(seed)
    corner = np.asarray(draw(key, LARGEST, fan_in, width))[:3, :5]
    np.testing.assert_array_equal(corner, draw(key, (3, 5), fan_in, width))


def test_initial_weights_differ_between_keys_inputs_and_units_and_depend_on_no_other_input_or_width():
    first, again, other = (np.asarray(draw(jax.random.key(seed), LARGEST, 40, 30)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.stack([first, other]))) > 0.99 * 2 * first.size
    few = draw(jax.random.key(0), LARGEST, 9, 30)
    np.testing.assert_allclose(first[:, :10] * math.sqrt(40 / 9), few[:, :10], rtol=1e-6)  # scaled by fan_in alone
    np.testing.assert_array_equal(draw(jax.random.key(0), LARGEST, 40, 11)[:11], first[:11])


@pytest.mark.parametrize("fan_in", [16, 250, 784])
def test_initial_weights_are_uniform_between_the_bounds_of_their_fan_in(fan_in):
    values = np.asarray(draw(jax.random.key(2), (50, 785), fan_in, 50))[:, : fan_in + 1]
    scaled = np.sort(values.ravel()) * math.sqrt(fan_in)
    assert scaled[0] >= -1
    assert scaled[-1] <= 1
    # Kolmogorov and Smirnov: the largest distance between the distributions is below 1.95 / sqrt(n) in 999 of 1000.
    quantiles = (np.arange(scaled.size) + 0.5) / scaled.size
    assert np.abs((scaled + 1) / 2 - quantiles).max() < 1.95 / math.sqrt(scaled.size)
    assert abs(values[:, 0].mean()) < 5 / math.sqrt(3 * 50 * fan_in)  # the biases too are centred


def test_initial_weights_have_the_precision_of_the_computation(float64):
    values = draw(jax.random.key(0), (3, 5), 4, 3)
    assert values.dtype == np.float64
    assert np.any(np.asarray(values) != np.asarray(values, np.float32))


@pytest.mark.parametrize(
    ("shape", "num_weights", "message"),
    [
        ((1, 2, 8, 1), 26, "2 x 8 pixels are too few for a convolution of 5 x 5 and pooling"),
        ((1, 8, 8, 1), 17, "kernels of odd size, got 4 x 4"),
        ((2, 8, 8, 1), 26, "weights for 25 inputs are no square kernels over 2 channels"),
    ],
)
def test_images_and_weights_that_dont_fit_are_told_in_one_line(shape, num_weights, message):
    with pytest.raises(ValueError, match=message):
        layers.conv_pool(np.zeros(shape), np.zeros((2, num_weights)))


@pytest.mark.parametrize(("fan_in", "width"), [(40, 31), (41, 30)])
def test_a_width_beyond_the_maximum_makes_a_member_fail_and_is_not_clipped(fan_in, width):
    assert np.isnan(draw(jax.random.key(0), LARGEST, fan_in, width)).all()
    assert np.isfinite(draw(jax.random.key(0), LARGEST, 40, 30)).all()
