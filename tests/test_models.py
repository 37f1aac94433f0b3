"""A network padded to the maximum widths equals the small one in outputs, activations and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import reference
from plain import float64  # noqa: F401

from hw1jax import layers, models
from hw1jax.core import losses

MLP_NET = models.MLP((9, 7, 5), 3)  # the maximum widths
CNN_NET = models.CNN((3, 4, 5), (8, 6), 10)
RNG = np.random.default_rng(5)
IMAGES, INPUTS = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8), RNG.standard_normal((6, 4))


def dense_shapes(num_inputs, widths, num_outputs):
    sizes = [num_inputs, *widths, num_outputs]
    names = [f"dense{i + 1}" for i in range(len(widths))] + ["output"]
    return {name: (b, 1 + a) for name, a, b in zip(names, sizes[:-1], sizes[1:], strict=True)}


def mlp_shapes(widths):
    return dense_shapes(4, widths, 3)


def cnn_shapes(channels, widths):
    """Shapes of a CNN's weights, by the formulas of the report."""
    convolutions, num_inputs = {}, 1
    for i, width in enumerate(channels):
        convolutions[f"conv{i + 1}"] = (width, 1 + num_inputs * (25 if i else 16))
        num_inputs = width
    return convolutions | dense_shapes(num_inputs, widths, 10)  # a third pooling leaves one cell


def crop(params, shapes):
    return reference.crop(params, {name: {"weights": np.empty(shape)} for name, shape in shapes.items()})


def beyond(params, shapes):
    """How many values outside a network of these shapes are not 0."""
    own = crop(params, shapes)
    return {name: np.count_nonzero(params[name]["weights"]) - np.count_nonzero(own[name]["weights"]) for name in shapes}


@pytest.mark.parametrize(
    ("network", "x", "shapes_of", "all_widths"),
    [
        (MLP_NET, INPUTS, mlp_shapes, [((1, 1, 1),), ((9, 7, 5),), ((3, 6, 2),), ((8, 1, 5),)]),
        (CNN_NET, IMAGES, cnn_shapes, [((1, 1, 1), (1, 1)), ((3, 1, 4), (2, 6))]),
    ],
    ids=["mlp", "cnn"],
)
def test_padded_network_is_the_small_one_in_one_program_and_zero_beyond_it(network, x, shapes_of, all_widths):
    orders, plain_orders, y = [], [], np.arange(len(x)) % 3

    @plain.compiled
    def padded(key, *widths):
        given = jnp.asarray(x) if network is MLP_NET else models.images_last(jnp.asarray(x))
        params = network.init(key, given, *widths)["params"]
        found = models.activations(network, params, given, *widths)
        orders.append(list(found))  # a compiled function sorts them by name

        def loss(params):
            outputs = network.apply({"params": params}, given, *widths)
            return jnp.mean(losses.cross_entropy(outputs, y)), outputs

        return params, found, *jax.grad(loss, has_aux=True)(params)

    @plain.compiled
    def alone(networks):
        def loss(params):
            found = reference.activations(params, x)
            plain_orders.append(list(found))
            return reference.cross_entropy(found["output"], y), found

        return [jax.grad(loss, has_aux=True)(params) for params in networks]

    results = [padded(jax.random.key(i), *map(np.int32, widths)) for i, widths in enumerate(all_widths)]
    assert len(orders) == 1, "every width uses the same program"
    shapes = [shapes_of(*widths) for widths in all_widths]
    smalls = alone([crop(result[0], own) for result, own in zip(results, shapes, strict=True)])
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    for (params, found, gradient, outputs), own, small in zip(results, shapes, smalls, strict=True):
        jax.tree.map(close, crop(gradient, own), small[0])
        assert not any(beyond(params, own).values()) and not any(beyond(gradient, own).values())
        close(outputs, small[1]["output"])
        for name in orders[0]:
            expected = small[1][name]
            close(found[name][:, : expected.shape[1]], expected)
            assert not np.asarray(found[name])[:, expected.shape[1] :].any()  # beyond the network's own width
    assert orders[0] == plain_orders[0]


def test_activations_are_computed_only_where_they_are_asked_for():
    params = jax.eval_shape(MLP_NET.init, jax.random.key(0), INPUTS, np.int32([5, 7, 2]))
    assert list(params) == ["params"]
    outputs = jax.eval_shape(MLP_NET.apply, params, INPUTS, np.int32([5, 7, 2]))
    assert outputs.shape == (6, 3)


def test_one_more_convolution_than_the_most_leaves_no_pixel():
    def cells(num):
        x = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float64)
        network = models.CNN((2,) * num, (3,), 10)
        variables = jax.eval_shape(network.init, jax.random.key(0), x, (2,) * num, (3,))
        return (variables["params"]["dense1"]["weights"].shape[1] - 1) / 2

    most = models.most_convolutions(28)
    assert most == 3
    assert [cells(num) for num in range(1, most + 1)] == [13**2, 5**2, 1]
    assert layers.pooled_size(1, models.LATER_KERNEL) < 1


@pytest.mark.parametrize(
    ("network", "x_shape", "widths", "count"),
    [
        (models.MLP((45, 21, 23), 1), (2, 1), ([45, 21, 23],), 90 + 966 + 506 + 24),
        (models.MLP((49, 26, 24), 10), (2, 28, 28), ([49, 26, 24],), 38465 + 1300 + 648 + 250),
        (models.CNN((4, 12), (38, 28), 10), (1, 28, 28, 2), ([4, 12], [38, 28]), 68 + 1212 + 11438 + 1092 + 290),
    ],
    ids=["regression", "dense", "cnn"],
)
def test_the_reports_best_networks_have_as_many_parameters_and_outputs_as_torchs(network, x_shape, widths, count):
    x = jax.ShapeDtypeStruct(x_shape, jnp.float64)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), x, *widths)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    assert outputs.shape == (2, network.num_outputs)
    assert outputs.dtype == jnp.float64


@pytest.mark.parametrize("x64", [True, False])
def test_pixels_become_floats_between_0_and_1(x64):
    with jax.enable_x64(x64):
        pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        scaled = models.scale_pixels(jnp.asarray(pixels))
        assert scaled.dtype == (np.float64 if x64 else np.float32)
        np.testing.assert_allclose(scaled, pixels / 255, rtol=1e-7)


def test_images_last_puts_the_image_axis_last_takes_channels_and_leaves_floats_as_they_are():
    found = models.images_last(jnp.asarray(IMAGES))
    np.testing.assert_allclose(found, IMAGES.transpose(1, 2, 0)[None] / 255, rtol=1e-15)
    coloured = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    np.testing.assert_array_equal(models.images_last(jnp.asarray(coloured)), coloured.transpose(3, 1, 2, 0))
