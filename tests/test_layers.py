"""Each layer and its gradients equal a plain reference: `lax.conv` with `reduce_window`, or a matrix product."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax import layers

COMPILE_QUICKLY = {"xla_backend_optimization_level": 0}  # for what is not the program under test

# (input channels, image size, kernel size, channels, images): the bounds of the search space, then odd shapes
FIRST_BOUNDS = [(1, 28, 4, 4, 3), (1, 28, 4, 10, 2)]
FIRST_ODD = [(1, 5, 4, 1, 1), (1, 6, 3, 2, 2), (1, 13, 5, 3, 1), (3, 8, 4, 2, 2)]
LATER_BOUNDS = [(4, 13, 5, 10, 3), (10, 13, 5, 15, 2)]
LATER_ODD = [(1, 5, 5, 1, 1), (2, 6, 3, 3, 1), (2, 28, 7, 2, 2)]


@pytest.fixture(autouse=True)
def exact_products():
    """An accelerator's products of float32 have fewer bits unless told."""
    with jax.default_matmul_precision("float32"):
        yield


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def plain_conv_pool(x, weights):
    """As `conv_pool`: [channel, row, column, image]."""
    x = reference.convolution(x.transpose(3, 0, 1, 2), weights)
    return reference.pool(jax.nn.relu(x)).transpose(1, 2, 3, 0)


def value_and_gradients(layer, x, weights, cotangent):
    value, gradients = jax.vjp(layer, x, weights)
    return value, *gradients(cotangent)


PLAIN = {layers.first_conv_pool: plain_conv_pool, layers.conv_pool: plain_conv_pool}
FAST_FUNCTION = {layer: jax.jit(partial(value_and_gradients, layer)) for layer in PLAIN}
PLAIN_FUNCTION = {
    layer: jax.jit(partial(value_and_gradients, plain), compiler_options=COMPILE_QUICKLY)
    for layer, plain in PLAIN.items()
}
# The members of a fold share their images.
MEMBER_AXES = {layers.first_conv_pool: (None, 0, 0), layers.conv_pool: (0, 0, 0)}
MEMBERS_FUNCTION = {
    layer: jax.jit(jax.vmap(partial(value_and_gradients, layer), axes)) for layer, axes in MEMBER_AXES.items()
}


def shapes_of(layer, case):
    """(of x, of the weights, of the output)"""
    num_inputs, size, kernel_size, channels, images = case
    pooled = layers.pooled_size(size, kernel_size)
    return (
        (num_inputs, size, size, images),
        (channels, 1 + num_inputs * kernel_size**2),
        (channels, pooled, pooled, images),
    )


def random_arrays(shapes, dtype):
    rng = np.random.default_rng(3)
    x, weights, cotangent = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, weights / np.sqrt(weights.shape[-1]).astype(dtype), cotangent


def quantised_arrays(shapes, dtype):
    """Few different values, small multiples of 1/2: sums are exact, and ties and zeros abound."""
    rng = np.random.default_rng(4)
    return tuple((rng.integers(-1, 2, shape) / 2).astype(dtype) for shape in shapes)


def assert_close(found, expected, tolerance):
    """|found - expected| <= tolerance * max(1, |expected|), array by array."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.all(np.abs(np.asarray(a) - b) <= tolerance * np.maximum(1, np.abs(b)))


BOUNDS = [(layers.first_conv_pool, case) for case in FIRST_BOUNDS]
BOUNDS += [(layers.conv_pool, case) for case in LATER_BOUNDS]
ODD = [(layers.first_conv_pool, case) for case in FIRST_ODD] + [(layers.conv_pool, case) for case in LATER_ODD]


def over(cases):
    return pytest.mark.parametrize(("layer", "case"), cases, ids=lambda v: getattr(v, "__name__", str(v)))


@pytest.mark.slow
@over([*BOUNDS, *(pytest.param(*case, marks=pytest.mark.slow) for case in ODD)])
def test_convolution_equals_the_plain_one_in_float64(layer, case, float64):
    arrays = random_arrays(shapes_of(layer, case), np.float64)
    assert_close(FAST_FUNCTION[layer](*arrays), PLAIN_FUNCTION[layer](*arrays), 1e-10)


@pytest.mark.slow
@over(BOUNDS)
def test_convolution_equals_the_plain_one_in_float32(layer, case):
    arrays = random_arrays(shapes_of(layer, case), np.float32)
    with jax.enable_x64(True):  # two sums in float32 may each be near the truth and yet further from one another
        exact = [np.asarray(a, np.float32) for a in PLAIN_FUNCTION[layer](*(a.astype(np.float64) for a in arrays))]
    assert_close(FAST_FUNCTION[layer](*arrays), exact, 1e-5)


def arrays_of_members(layer, case):
    x, weights, cotangent = random_arrays([(3, *shape) for shape in shapes_of(layer, case)], np.float64)
    return x[0] if layer is layers.first_conv_pool else x, weights, cotangent


@over([BOUNDS[0], BOUNDS[2]])
def test_members_under_vmap_equal_the_plain_layer_one_by_one(layer, case, float64):
    x, weights, cotangent = arrays_of_members(layer, case)
    found = MEMBERS_FUNCTION[layer](x, weights, cotangent)
    for i in range(3):
        own_x = x if layer is layers.first_conv_pool else x[i]
        plain = PLAIN_FUNCTION[layer](own_x, weights[i], cotangent[i])
        alone = [leaf[i] for leaf in found]
        assert_close(alone, plain, 1e-10)


@over([BOUNDS[0], BOUNDS[2]])
def test_a_diverged_member_has_a_nan_loss_and_leaves_the_others_their_bits(layer, case, float64):
    x, weights, cotangent = arrays_of_members(layer, case)
    ordinary = MEMBERS_FUNCTION[layer](x, weights, cotangent)
    weights[1, 3, 2] = np.nan
    found = MEMBERS_FUNCTION[layer](x, weights, cotangent)
    losses = np.square(found[0]).sum(axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    for a, b in zip(found, ordinary, strict=True):
        np.testing.assert_array_equal(a[::2], b[::2])


@pytest.mark.slow
@over(BOUNDS)
def test_convolution_equals_the_plain_one_exactly_where_ties_and_zeros_abound(layer, case):
    x, weights, cotangent = quantised_arrays(shapes_of(layer, case), np.float32)
    half_constant = x.copy()
    half_constant[..., len(x) // 2 :, :] = 0.5
    for images in (x, half_constant, np.full_like(x, 0.5), np.zeros_like(x)):
        found, plain = (
            FAST_FUNCTION[layer](images, weights, cotangent),
            PLAIN_FUNCTION[layer](images, weights, cotangent),
        )
        assert_close(found, plain, 0)


def test_quantised_images_have_ties_that_matter():
    x, weights, _ = quantised_arrays(shapes_of(*BOUNDS[2]), np.float32)
    outputs = np.asarray(reference.convolution(x.transpose(3, 0, 1, 2), weights))[..., :10, :10]
    cells = outputs.reshape(*outputs.shape[:2], 5, 2, 5, 2).transpose(0, 1, 2, 4, 3, 5).reshape(-1, 4)
    best = cells.max(axis=1, keepdims=True)
    assert np.sum((best > 0)[:, 0] & ((cells == best).sum(axis=1) > 1)) > 20


def test_gradient_of_a_constant_image_goes_to_the_first_pixel_of_each_pooling_cell():
    identity = np.array([[0.0, 1.0]], np.float32)  # no bias, a 1 x 1 kernel
    image = np.ones((1, 6, 6, 1), np.float32)
    value, gradient, _ = FAST_FUNCTION[layers.conv_pool](image, identity, np.ones((1, 4, 4, 1), np.float32))
    expected = np.zeros((6, 6))
    # The padding of 1 shifts the cells: {0}, {1, 2}, {3, 4}, {5} in each direction.
    expected[np.ix_([0, 1, 3, 5], [0, 1, 3, 5])] = 1
    np.testing.assert_array_equal(value, 1)
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


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


@over([(layers.first_conv_pool, (1, 13, 4, 2, 170)), (layers.conv_pool, (2, 13, 5, 2, 170))])
def test_a_nan_pixel_makes_the_loss_of_its_own_image_nan_wherever_it_is(layer, case):
    x, weights, _ = random_arrays(shapes_of(layer, case), np.float32)
    pixels = x.reshape(-1, 13**2, 170)
    pixels[0, np.arange(13**2), np.arange(13**2)] = np.nan  # image i at pixel i; the last image has none
    losses = np.square(jax.jit(layer)(x, weights)).sum(axis=(0, 1, 2))
    np.testing.assert_array_equal(np.isnan(losses), np.arange(170) < 169)


def test_an_infinite_weight_of_a_diverged_network_gives_nan_where_the_plain_layer_does():
    x, weights, cotangent = random_arrays(shapes_of(*BOUNDS[2]), np.float32)
    weights[:, 1 + 12] = np.inf  # the middle of the first kernel
    x[:, ::2] = 0  # infinity times 0 is NaN: here in each pooling cell, but in its lower outputs alone
    found = FAST_FUNCTION[layers.conv_pool](x, weights, cotangent)[0]
    plain = PLAIN_FUNCTION[layers.conv_pool](x, weights, cotangent)[0]
    assert np.isnan(plain).all()
    assert np.isnan(found).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.parametrize(("batch", "inputs", "units"), [(20, 784, 50), (1, 1, 1), (6, 10, 3)])
def test_dense_equals_product_plus_bias(dtype, tolerance, batch, inputs, units):
    with jax.enable_x64(dtype is np.float64):
        x, weights, cotangent = random_arrays([(batch, inputs), (units, 1 + inputs), (batch, units)], dtype)
        found = jax.jit(partial(value_and_gradients, layers.dense))(x, weights, cotangent)
        weights_gradient = cotangent.T @ np.concatenate([np.ones_like(x[:, :1]), x], axis=1)
        expected = (x @ weights[:, 1:].T + weights[:, 0], cotangent @ weights[:, 1:], weights_gradient)
        assert_close(found, expected, tolerance)


@pytest.mark.parametrize("batch", [6, 1000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_gradients_of_a_dense_layer_are_of_the_types_of_what_they_are_of(dtype, batch, float64):
    x, weights = jnp.ones((batch, 7), dtype), jnp.ones((3, 8), "float32")
    of_x, of_weights = jax.grad(lambda x, weights: layers.dense(x, weights).sum(), (0, 1))(x, weights)
    assert (of_x.dtype, of_weights.dtype) == (x.dtype, weights.dtype)


@pytest.mark.parametrize("inputs", [7, 784])
def test_dense_under_vmap_equals_each_member_alone(inputs, float64):
    x, weights, cotangent = random_arrays([(5, inputs), (3, 4, 1 + inputs), (3, 5, 4)], np.float64)
    members = jax.jit(jax.vmap(partial(value_and_gradients, layers.dense), (None, 0, 0)))
    for *found, own, own_cotangent in zip(*members(x, weights, cotangent), weights, cotangent, strict=True):
        weights_gradient = own_cotangent.T @ np.concatenate([np.ones((5, 1)), x], axis=1)
        assert_close(found, (x @ own[:, 1:].T + own[:, 0], own_cotangent @ own[:, 1:], weights_gradient), 1e-10)


@pytest.mark.parametrize("kernel_size", range(1, 8))
def test_pooled_size_is_that_of_the_plain_convolution_and_pooling(kernel_size):
    for size in (*range(max(1, kernel_size - 1), 10), 13, 28):
        shapes = [(1, size, size, 1), (1, 1 + kernel_size**2)]
        plain = jax.eval_shape(plain_conv_pool, *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes))
        assert plain.shape[1] == plain.shape[2] == layers.pooled_size(size, kernel_size)


def test_pooled_sizes_of_the_reports_network():
    assert layers.pooled_size(28, 4) == 13
    assert layers.pooled_size(13, 5) == 5


@pytest.mark.parametrize(("num_inputs", "kernel_size"), [(1, 4), (10, 5), (3, 1), (4, 2)])
def test_kernels_are_the_weights_without_the_bias(num_inputs, kernel_size):
    kernel = np.random.default_rng(0).standard_normal((7, num_inputs, kernel_size, kernel_size)).astype(np.float32)
    weights = np.concatenate([np.full((7, 1), np.nan, np.float32), kernel.reshape(7, -1)], axis=1)
    np.testing.assert_array_equal(layers.kernels(jnp.asarray(weights), num_inputs), kernel)


@jax.jit
def masked(x, width):
    return layers.mask_units(x, width)


@pytest.mark.parametrize("width", [0, 1, 3, 4])
@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
def test_mask_units_keeps_the_width_and_zeroes_the_rest_whatever_it_is(shape, width):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[..., width:] = np.nan
    expected = np.concatenate([x[..., :width], np.zeros_like(x[..., width:])], axis=-1)
    np.testing.assert_array_equal(masked(x, width), expected)
    np.testing.assert_array_equal(layers.mask_units(jnp.asarray(x), width), expected)
    gradient = jax.grad(lambda x: jnp.sum(masked(x, width)))(x)
    np.testing.assert_array_equal(gradient, np.broadcast_to(np.arange(4) < width, shape))


draw = jax.jit(layers.uniform_by_fan_in, static_argnums=1, compiler_options=COMPILE_QUICKLY)
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


def test_initial_weights_of_an_input_depend_on_no_other_input_or_width():
    key = jax.random.key(1)
    many, few = (np.asarray(draw(key, LARGEST, fan_in, 30)) for fan_in in (40, 9))
    np.testing.assert_allclose(many[:, :10] * math.sqrt(40 / 9), few[:, :10], rtol=1e-6)  # scaled by fan_in alone
    np.testing.assert_array_equal(draw(key, LARGEST, 40, 11)[:11], many[:11])


def test_initial_weights_are_the_same_for_a_key_and_differ_between_keys_inputs_and_units():
    first, again, other = (np.asarray(draw(jax.random.key(seed), LARGEST, 40, 30)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.stack([first, other]))) > 0.99 * 2 * first.size


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "shape", "kernel_size"),
    [
        (layers.conv_pool, (3, 8, 8), 3),
        (layers.conv_pool, (2, 9, 14), 5),
        (layers.conv_pool, (2, 5, 8), 3),
        (layers.first_conv_pool, (3, 10, 7), 4),
        (layers.lax_conv_pool, (3, 10, 7), 4),
        (layers.lax_conv_pool, (2, 9, 14), 5),
    ],
)
def test_images_of_any_size_and_channels_equal_the_plain_layer(layer, shape, kernel_size, float64):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(*shape, 2)), rng.normal(size=(4, 1 + shape[0] * kernel_size**2))
    cotangent = rng.normal(size=jax.eval_shape(plain_conv_pool, x, weights).shape)
    found, expected = (
        jax.jit(partial(value_and_gradients, f), compiler_options=COMPILE_QUICKLY)(x, weights, cotangent)
        for f in (layer, plain_conv_pool)
    )
    assert_close(found, expected, 1e-10)


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


@pytest.mark.parametrize(("fan_in", "width"), [(4, 7), (8, 3), (np.int32(4), np.int32(7)), (np.int32(8), np.int32(3))])
def test_a_width_beyond_the_maximum_makes_a_member_fail_and_is_not_clipped(fan_in, width):
    key = jax.random.key(0)
    assert np.isnan(layers.uniform_by_fan_in(key, (6, 8), fan_in, width)).all()
    assert np.isfinite(layers.uniform_by_fan_in(key, (6, 8), 7, 6)).all()
