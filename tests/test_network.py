"""Figures of a model's inside, compared with networks small enough to compute by hand."""

from dataclasses import replace

import fashion_cnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regression
from studies import DRAWS, TOY, TOY_DATA, examples, make_model, pixels

from hw1jax import models
from hw1jax.report import drawing, network
from hw1jax.results.results import Results
from hw1jax.results.trained_model import Model
from hw1jax.search import study


def dense_model(*matrices) -> Model:
    """A regression net with these [1 + inputs, units] layers, the last one the output."""
    names = [*(f"dense{i + 1}" for i in range(len(matrices) - 1)), "output"]
    params = {name: {"weights": np.array(layer, np.float32).T} for name, layer in zip(names, matrices, strict=True)}
    draw = DRAWS["regression"] | {"hidden_units": tuple(len(layer[0]) for layer in matrices[:-1])}
    units = regression.STUDY.space["hidden_units"][-1:] * len(draw["hidden_units"])
    return Model(study.narrow(regression.STUDY, hidden_units=units), draw, params)


def results_of(model: Model | None, x=None, y=None, **changes) -> Results:
    """A run with only its model and test examples."""
    asked = replace(model.study if model else TOY, **changes)
    data = TOY_DATA._replace(x_train=x, x_test=x, y_test=y)
    return Results(asked, None, {}, None, {}, model and model._replace(study=asked), data)


TINY = dense_model(
    [[0, np.log(3)], [1, 0]],  # biases 0 and log 3; one input
    [[-1], [2], [0]],
    [[0.5], [10]],
)


def activations_of(model: Model, x) -> dict[str, np.ndarray]:
    found = model.study.activations(model.fixed)(model.params, x, model.hyperparameters)
    return {name: np.asarray(values) for name, values in found.items()}


def test_weights_and_biases_of_each_layer_come_in_the_order_of_the_network():
    found = network.weights_and_biases(TINY)
    assert list(found) == ["dense1", "dense2", "output"]
    np.testing.assert_array_equal(found["dense2"][1:], [[2], [0]])
    np.testing.assert_allclose(found["dense1"][0], [0, np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(found["output"], [[0.5], [10]])
    deep = dense_model(*[[[0], [1]]] * 12)
    assert list(network.weights_and_biases(deep)) == [*(f"dense{i}" for i in range(1, 12)), "output"]


def test_activations_of_a_dense_net_are_those_computed_by_hand():
    found = activations_of(TINY, np.array([[0.0], [np.log(9)]], np.float32))
    np.testing.assert_allclose(found["dense1"], [[0.5, 0.75], [0.9, 0.75]], rtol=1e-6)  # sigmoid(log a) = a / (1 + a)
    second = 1 / (1 + np.exp(-np.array([[-1 + 2 * 0.5], [-1 + 2 * 0.9]])))
    np.testing.assert_allclose(found["dense2"], second, rtol=1e-6)
    np.testing.assert_allclose(found["output"], 0.5 + 10 * second, rtol=1e-6)
    assert list(found) == ["dense1", "dense2", "output"]


def pooled(maps):
    """The largest of each 2 x 2 cell of [..., row, column]; an odd last row and column is dropped."""
    rows = maps.shape[-1] // 2
    return maps[..., : 2 * rows, : 2 * rows].reshape(*maps.shape[:-2], rows, 2, rows, 2).max(axis=(-3, -1))


def test_activations_of_convolutions_are_those_computed_by_hand():
    model, images = make_model("fashion_cnn"), pixels(1)
    first, second = np.zeros((1 + 16, 2), np.float32), np.zeros((1 + 2 * 25, 3), np.float32)
    first[1 + 1 * 4 + 1, 1] = 1  # the kernel's row 1, column 1: with padding 1, the pixel itself
    first[0] = -0.5
    # Row 2, column 2 of the third channel's kernel for the second input: the cell one below and to the right.
    second[1 + 25 + 2 * 5 + 2, 2] = 3
    model.params["conv1"]["weights"], model.params["conv2"]["weights"] = first.T, second.T
    found = activations_of(model, images)

    expected = np.maximum(images / 255 - 0.5, 0)[:, :27, :27]
    np.testing.assert_array_equal(found["conv1"][:, 0], 0)
    np.testing.assert_allclose(found["conv1"][:, 1], expected, atol=1e-6)
    np.testing.assert_allclose(found["pool1"][:, 1], pooled(expected), atol=1e-6)
    assert found["conv2"].shape == (1, 3, 11, 11)
    np.testing.assert_array_equal(found["conv2"][:, :2], 0)
    np.testing.assert_allclose(found["conv2"][:, 2], 3 * pooled(expected)[:, 1:12, 1:12], atol=1e-5)
    np.testing.assert_allclose(found["pool2"], pooled(found["conv2"]), atol=1e-6)
    assert list(found) == ["conv1", "pool1", "conv2", "pool2", "dense1", "dense2", "output"]


@pytest.mark.parametrize("name", DRAWS)
def test_the_last_activation_is_what_the_model_predicts(name):
    model, x = make_model(name), examples(name)
    if name == "fashion_mlp":  # its page doesn't show them
        units = model.draw["hidden_units"]
        found = models.activations(models.MLP(units, 10), model.params, models.scale_pixels(jnp.asarray(x[:1])), units)
    else:
        found = activations_of(model, x[:1])
    np.testing.assert_allclose(found["output"], model.predict(x)[:1], atol=1e-4)


def test_a_padded_network_leaves_the_activations_of_the_small_one():
    x = models.images_last(pixels(2, 12, 12))
    wide, own = models.CNN((3, 4), (5,), 10), (jnp.array([1, 2]), jnp.array([3]))
    # One pixel of each channel is left by two convolutions with pooling.
    shapes = {"conv1": (1, 1 + 16), "conv2": (2, 1 + 25), "dense1": (3, 1 + 2), "output": (10, 1 + 3)}
    padded = {"conv1": (3, 1 + 16), "conv2": (4, 1 + 3 * 25), "dense1": (5, 1 + 4), "output": (10, 1 + 5)}
    rng = np.random.default_rng(0)
    cut = {name: {"weights": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    params = {name: {"weights": np.zeros(shape, np.float32)} for name, shape in padded.items()}
    for name, (rows, columns) in shapes.items():
        params[name]["weights"][:rows, :columns] = cut[name]["weights"]
    fast = {"xla_backend_optimization_level": 0}
    activations = jax.jit(models.activations, static_argnums=0, compiler_options=fast)
    small = activations(models.CNN((1, 2), (3,), 10), cut, x, *own)
    for name, values in activations(wide, params, x, *own).items():
        channels = small[name].shape[1]
        np.testing.assert_allclose(values[:, :channels], small[name], atol=1e-6)
        np.testing.assert_array_equal(values[:, channels:], 0)


@pytest.mark.parametrize("module, x", [(models.MLP((3,), 2), (4, 5)), (models.CNN((1,), (3,), 2), (1, 8, 8, 4))])
def test_where_no_activations_are_asked_for_nothing_more_is_computed(module, x):
    widths = (jnp.array([1]), jnp.array([3])) if isinstance(module, models.CNN) else (jnp.array([3]),)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x), *widths)
    assert list(params) == ["params"]

    def program(**options):
        return str(jax.make_jaxpr(lambda params, x: module.apply(params, x, *widths, **options))(params, jnp.zeros(x)))

    assert "conv_general" not in program()
    assert ("conv_general" in program(mutable=["intermediates"])) == isinstance(module, models.CNN)


def test_receptive_fields_are_the_kernels_by_channel_and_input_channel():
    model = make_model("fashion_cnn")
    fields, weights = network.kernels(model, pixels(2)), network.weights_and_biases(model)
    assert {name: field.shape for name, field in fields.items()} == {"conv1": (2, 1, 4, 4), "conv2": (3, 2, 5, 5)}
    assert fields["conv1"][1, 0, 3, 1] == weights["conv1"][1 + 3 * 4 + 1, 1]
    assert fields["conv2"][2, 1, 4, 3] == weights["conv2"][1 + 25 + 4 * 5 + 3, 2]
    assert network.kernels(TINY, pixels(2)) == {}


def test_a_dense_net_has_histograms_of_its_weights_with_its_biases_and_profiles_of_its_activations():
    found = results_of(TINY, np.zeros((2, 1), np.float32))
    (weights,) = network.weights(found)
    assert weights.alt == "Histograms of the weights of hidden layer 1, hidden layer 2, output layer"
    assert "ticks below the axis are its biases" in weights.caption
    (profiles,) = network.profiles(found, inputs=(0.0, np.log(9)))
    figure = profiles.draw()
    assert [ax.get_title() for ax in figure.axes][:2] == ["hidden layer 1, x = 0", "hidden layer 1, x = 2.19722"]
    heights = [ax.patches[0].get_xy()[1::4, 1] for ax in figure.axes]  # of the outline's bars
    np.testing.assert_allclose(heights[0], [0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose(heights[1], [0.9, 0.75], rtol=1e-6)
    assert len(figure.axes) == 4 and figure.axes[0].get_ylim() == (0, 1)


def test_activations_beyond_0_and_1_are_seen_whole():
    def doubled(fixed):
        return lambda params, x, h: {"hidden": jnp.concatenate([4 * x, -x], axis=1), "output": x}

    (profiles,) = network.profiles(results_of(TINY, np.zeros((2, 1), np.float32), activations=doubled), [1.0, 2.0])
    assert all(ax.get_ylim() == (-2, 8) for ax in profiles.draw().axes)


def test_a_network_of_somebody_else_has_a_histogram_of_each_array():
    params = {"Dense_10": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}, "Dense_2": {"kernel": jnp.ones((2, 3))}}
    params |= {"empty": np.ones((0, 3))}
    found = results_of(Model(TOY, {}, params))
    (weights,) = network.weights(found)
    assert weights.alt == "Histograms of the weights of Dense_2/kernel, Dense_10/bias, Dense_10/kernel"
    titles = [ax.get_title() for ax in weights.draw().axes]
    assert titles == ["Dense_2/kernel, 2 x 3", "Dense_10/bias, 4", "Dense_10/kernel, 3 x 4"]
    many = [np.ones(2)] * 30
    (weights,) = network.weights(results_of(Model(TOY, {}, many)))
    assert "the first 24 of 30 arrays" in weights.caption and len(weights.draw().axes) == 24


def test_feature_maps_are_those_of_the_test_image_before_pooling():
    model, images = make_model("fashion_cnn"), pixels(2)
    (maps,) = network.feature_maps(results_of(model, images, np.array([3, 5])), example=1)
    assert maps.alt.endswith("for a test image, Sandal")
    shown = [ax for ax in maps.draw().axes if ax.images]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), images[1])
    tiles = np.ma.filled(shown[1].images[0].get_array(), np.nan)
    np.testing.assert_allclose(tiles[:27, :27], activations_of(model, images[1:])["conv1"][0, 0], atol=1e-6)
    fields = network.receptive_fields(results_of(model, images))
    assert [picture.name for picture in fields] == ["receptive_fields_conv1", "receptive_fields_conv2"]


def test_of_a_model_that_diverged_or_a_study_without_activations_nothing_is_shown():
    for found in (results_of(None), results_of(TINY, activations=None)):
        assert network.profiles(found, inputs=[0.0]) == network.feature_maps(found) == []
    assert network.weights(results_of(None)) == network.receptive_fields(results_of(None)) == []


def test_colours_of_images_are_input_channels():
    params = {"conv1": {"weights": np.arange(2 * (1 + 3 * 16)).reshape(2, -1)}}
    model = Model(fashion_cnn.STUDY, DRAWS["fashion_cnn"], params)
    assert network.kernels(model, pixels(2, 8, 8, 3))["conv1"].shape == (2, 3, 4, 4)
    with drawing.style():
        assert network.receptive_fields(results_of(model, pixels(2, 8, 8, 3)))
