"""A network padded to the maximum widths is the small one: in its outputs, its activations and its gradients."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax import layers, losses, models

# Three times sooner compiled; test_equivalence.py has the programs as they are used.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MLP_NET = models.MLP((9, 7, 5), 3)  # the maximum widths
CNN_NET = models.CNN((4, 5), (8, 6), 10)
DEEP_NET = models.CNN((3, 4, 5), (6,), 10)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def images(num):
    return np.random.default_rng(5).integers(0, 256, (num, 28, 28), dtype=np.uint8)


def inputs(num):
    return np.random.default_rng(6).standard_normal((num, 4))


def plain_forward(params, x):
    """Outputs in numpy, at the parameters' own widths; x [example, ...], or [image, row, column] for a CNN."""
    return plain_activations(params, x)["output"]


def plain_activations(params, x):
    """What each layer makes of x, by its name."""
    params = {name: np.asarray(layer["weights"]).T for name, layer in params.items()}  # [1 + inputs, units]
    found = {}
    for i, name in enumerate(sorted(name for name in params if name.startswith("conv")), start=1):
        found[name] = plain_conv(x[:, None] if name == "conv1" else x, params[name])
        x = found[f"pool{i}"] = plain_pool(found[name])
    x = x.reshape(len(x), -1)
    for name in sorted(name for name in params if name.startswith("dense")):
        x = found[name] = 1 / (1 + np.exp(-(x @ params[name][1:] + params[name][0])))
    return found | {"output": x @ params["output"][1:] + params["output"][0]}


def plain_conv(x, weights):
    """[image, channel, row, column], padding 1, ReLU."""
    k = round(((len(weights) - 1) / x.shape[1]) ** 0.5)
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
    z = np.einsum("nirckl,iklo->norc", windows, weights[1:].reshape(x.shape[1], k, k, -1))
    return np.maximum(z + weights[0][:, None, None], 0)


def plain_pool(z):
    """2x2 max-pooling, floor."""
    rows = z.shape[2] // 2
    return z[:, :, : 2 * rows, : 2 * rows].reshape(*z.shape[:2], rows, 2, rows, 2).max(axis=(3, 5))


def dense_shapes(num_inputs, widths, num_outputs):
    sizes = [num_inputs, *widths, num_outputs]
    names = [f"dense{i + 1}" for i in range(len(widths))] + ["output"]
    return {name: (b, 1 + a) for name, a, b in zip(names, sizes[:-1], sizes[1:], strict=True)}


def cnn_shapes(channels, widths, cells):
    """Shapes of a CNN's weights, by the formulas of the report."""
    convolutions, num_inputs = {}, 1
    for i, width in enumerate(channels):
        convolutions[f"conv{i + 1}"] = (width, 1 + num_inputs * (25 if i else 16))
        num_inputs = width
    return convolutions | dense_shapes(cells * num_inputs, widths, 10)


def crop(params, shapes):
    return {name: {"weights": params[name]["weights"][:units, :columns]} for name, (units, columns) in shapes.items()}


def beyond(params, shapes):
    """The values outside a network of these shapes."""
    kept = {name: np.array(layer["weights"]) for name, layer in params.items()}
    for name, (units, columns) in shapes.items():
        kept[name][:units, :columns] = 0
    return np.concatenate([leaf.ravel() for leaf in kept.values()])


def shapes_of(params):
    return {name: layer["weights"].shape for name, layer in params.items()}


def layer_inputs(network, variables, x, *widths):
    """(outputs, what each layer takes, by the layer's name)"""
    taken = {}

    def record(method, args, kwargs, context):
        if isinstance(context.module, models.MaskedDense | models.MaskedConvPool) and context.method_name == "__call__":
            taken[context.module.name] = args[0]
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        outputs = network.apply(variables, x, *widths)
    return outputs, taken


def complete_step(network, x, y, key, *widths):
    """(params, outputs, inputs of each layer, loss's gradient)"""
    variables = network.init(key, x, *widths)
    outputs, taken = layer_inputs(network, variables, x, *widths)

    def loss(params):
        values = network.apply({"params": params}, x, *widths)
        return jnp.mean(losses.cross_entropy(values, y))

    return variables["params"], outputs, taken, jax.grad(loss)(variables["params"])


num_traces = {"mlp": 0, "cnn": 0}


@jit
def mlp_step(key, widths):
    num_traces["mlp"] += 1
    return complete_step(MLP_NET, jnp.asarray(inputs(6)), jnp.arange(6) % 3, key, widths)


@jit
def cnn_step(key, channels, widths):
    num_traces["cnn"] += 1
    return complete_step(CNN_NET, models.images_last(images(3)), jnp.arange(3), key, channels, widths)


def widths_up_to(*maxima):
    return st.tuples(*(st.integers(1, most) for most in maxima)).map(np.int32)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), widths=widths_up_to(*MLP_NET.hidden_units))
def test_padded_mlp_is_the_small_one_and_exactly_zero_beyond_it(seed, widths):
    params, outputs, taken, gradient = mlp_step(jax.random.key(seed), widths)
    shapes = dense_shapes(4, widths, 3)
    np.testing.assert_allclose(outputs, plain_forward(crop(params, shapes), inputs(6)), rtol=0, atol=1e-12)
    assert not beyond(params, shapes).any()
    assert not beyond(gradient, shapes).any()
    for name, width in zip(("dense2", "dense3", "output"), widths, strict=True):
        assert not np.asarray(taken[name])[:, width:].any()
        assert np.all(np.asarray(taken[name])[:, :width] > 0)  # a sigmoid's
    for own in crop(gradient, shapes).values():
        assert np.all(np.asarray(own["weights"]) != 0)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=widths_up_to(*CNN_NET.channels),
    widths=widths_up_to(*CNN_NET.hidden_units),
)
def test_padded_cnn_is_the_small_one_and_exactly_zero_beyond_it(seed, channels, widths):
    params, outputs, taken, gradient = cnn_step(jax.random.key(seed), channels, widths)
    shapes = cnn_shapes(channels, widths, 25)
    expected = plain_forward(crop(params, shapes), images(3) / 255)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)
    assert not beyond(params, shapes).any()
    assert not beyond(gradient, shapes).any()
    assert taken["conv2"].shape == (4, 13, 13, 3)
    assert not np.asarray(taken["conv2"])[channels[0] :].any()
    assert not np.asarray(taken["dense1"])[:, 25 * channels[1] :].any()
    for name, width in zip(("dense2", "output"), widths, strict=True):
        assert not np.asarray(taken[name])[:, width:].any()


def assert_activations_are_the_plain_ones(network, x, widths, shapes, plain_x):
    order = []

    @jit
    def look(key):
        params = network.init(key, x, *widths)["params"]
        found = models.activations(network, params, x, *widths)
        order.extend(found)  # which a compiled function sorts by name
        return params, found

    params, found = look(jax.random.key(2))
    expected = plain_activations(crop(params, shapes), plain_x)
    assert order == list(expected)
    for name, values in found.items():
        own = expected[name]
        np.testing.assert_allclose(values[:, : own.shape[1]], own, rtol=0, atol=1e-12)
        assert not np.asarray(values)[:, own.shape[1] :].any()  # beyond the network's own width


def test_activations_of_an_mlp_are_those_of_the_plain_network_layer_by_layer():
    widths = np.int32([5, 7, 2])
    assert_activations_are_the_plain_ones(MLP_NET, inputs(6), (widths,), dense_shapes(4, widths, 3), inputs(6))


@pytest.mark.slow
def test_activations_of_a_cnn_have_convolutions_before_and_after_pooling():
    channels, widths = np.int32([3, 5]), np.int32([8, 4])
    x, shapes = models.images_last(images(3)), cnn_shapes(channels, widths, 25)
    assert_activations_are_the_plain_ones(CNN_NET, x, (channels, widths), shapes, images(3) / 255)


def test_activations_are_computed_only_where_they_are_asked_for():
    params = jax.eval_shape(MLP_NET.init, jax.random.key(0), inputs(2), np.int32([5, 7, 2]))
    assert list(params) == ["params"]
    outputs = jax.eval_shape(MLP_NET.apply, params, inputs(2), np.int32([5, 7, 2]))
    assert outputs.shape == (2, 3)


def test_every_width_uses_the_same_program():
    for widths in ((1, 1, 1), (9, 7, 5), (3, 6, 2)):
        mlp_step(jax.random.key(0), np.int32(widths))
    for channels, widths in (((1, 1), (1, 1)), ((4, 5), (8, 6)), ((2, 5), (3, 3))):
        cnn_step(jax.random.key(0), np.int32(channels), np.int32(widths))
    assert num_traces == {"mlp": 1, "cnn": 1}  # the tests above included


@pytest.mark.slow
def test_padded_network_equals_the_module_of_its_own_size():
    key, x = jax.random.key(8), models.images_last(images(3))
    widths = (2, 3), (4, 5)  # here Python's numbers
    padded = cnn_step(key, *map(np.int32, widths))
    own = jit(lambda key: complete_step(models.CNN(*widths, 10), x, jnp.arange(3), key, *widths))(key)
    shapes = shapes_of(own[0])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-14), crop(padded[0], shapes), own[0])
    np.testing.assert_allclose(padded[1], own[1], rtol=0, atol=1e-12)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), crop(padded[3], shapes), own[3])


@pytest.mark.slow
def test_third_convolution_equals_the_plain_network():
    x, channels, widths = models.images_last(images(2)), np.int32([2, 3, 4]), np.int32([5])
    outputs, variables = jit(DEEP_NET.init_with_output)(jax.random.key(1), x, channels, widths)
    shapes = cnn_shapes(channels, widths, 1)
    expected = plain_forward(crop(variables["params"], shapes), images(2) / 255)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)
    assert not beyond(variables["params"], shapes).any()


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


def test_mlp_flattens_images_row_by_row():
    x, widths = models.scale_pixels(images(2)), np.int32([3])
    network = models.MLP((4,), 2)
    outputs, variables = jit(network.init_with_output)(jax.random.key(0), x, widths)
    expected = plain_forward(crop(variables["params"], dense_shapes(784, widths, 2)), images(2) / 255)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)


def test_a_nan_in_one_member_makes_its_outputs_nan_and_changes_no_other_member():
    rng, x, widths = np.random.default_rng(1), inputs(6), np.int32([[9, 7, 5], [2, 3, 4], [5, 5, 5]])
    shapes = dense_shapes(4, MLP_NET.hidden_units, 3)
    params = {name: {"weights": rng.standard_normal((3, *shape))} for name, shape in shapes.items()}
    members = jit(jax.vmap(MLP_NET.apply, (0, None, 0)))
    ordinary = np.asarray(members({"params": params}, x, widths))
    params["dense1"]["weights"][1, 0, 1] = np.nan
    found = np.asarray(members({"params": params}, x, widths))
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[::2], ordinary[::2])


@pytest.mark.parametrize("x64", [True, False])
def test_pixels_become_floats_between_0_and_1(x64):
    with jax.enable_x64(x64):
        pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        scaled = models.scale_pixels(jnp.asarray(pixels))
        assert scaled.dtype == (np.float64 if x64 else np.float32)
        np.testing.assert_allclose(scaled, pixels / 255, rtol=1e-7)
        assert scaled.min() == 0
        assert scaled.max() == 1


def test_images_last_puts_the_image_axis_last():
    found = models.images_last(jnp.asarray(images(3)))
    assert found.shape == (1, 28, 28, 3)
    for i, image in enumerate(images(3)):
        np.testing.assert_array_equal(found[0, :, :, i], models.scale_pixels(jnp.asarray(image)))


def test_images_last_takes_channels_and_leaves_floats_as_they_are():
    coloured = np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    np.testing.assert_array_equal(models.images_last(jnp.asarray(coloured)), coloured.transpose(3, 1, 2, 0))
