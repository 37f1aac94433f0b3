"""What is inside a model, against networks small enough to compute by hand, and what outputs say."""

import numpy as np
import pytest

from hw1jax import inspection, studies
from hw1jax.model_file import Model
from hw1jax.space import Draw


def dense_model(*layers: np.ndarray) -> Model:
    """A regression net with these [1 + inputs, units] layers, the last one the output."""
    names = [*(f"dense{i + 1}" for i in range(len(layers) - 1)), "output"]
    params = {name: {"weights": np.array(layer, np.float32).T} for name, layer in zip(names, layers, strict=True)}
    return Model("regression", Draw((), tuple(len(layer[0]) for layer in layers[:-1]), 0.01, 0.001, "adam"), params)


def random_model(name: str, channels: tuple[int, ...], hidden_units: tuple[int, ...]) -> Model:
    study, draw = studies.by_name(name), Draw(channels, hidden_units, 0.01, 0.001, "adam")
    random = np.random.RandomState(0)
    shapes = studies.parameter_shapes(study, draw)
    params = {
        layer: {"weights": random.normal(0, 0.3, parts["weights"].shape).astype(np.float32)}
        for layer, parts in shapes.items()
    }
    return Model(name, draw, params)


TINY = dense_model(
    [[0, np.log(3)], [1, 0]],  # biases 0 and log 3; one input
    [[-1], [2], [0]],
    [[0.5], [10]],
)


def test_weights_and_biases_of_each_layer_come_apart_in_the_order_of_the_network():
    assert list(inspection.weights(TINY)) == ["dense1", "dense2", "output"]
    np.testing.assert_array_equal(inspection.weights(TINY)["dense2"], [[2], [0]])
    np.testing.assert_allclose(inspection.biases(TINY)["dense1"], [0, np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(inspection.weights_and_biases(TINY)["output"], [[0.5], [10]])


def test_activations_of_a_dense_net_are_those_computed_by_hand():
    found = inspection.activations(TINY, np.array([[0.0], [np.log(9)]], np.float32))
    np.testing.assert_allclose(found["dense1"], [[0.5, 0.75], [0.9, 0.75]], rtol=1e-6)  # sigmoid(log a) = a / (1 + a)
    second = 1 / (1 + np.exp(-np.array([[-1 + 2 * 0.5], [-1 + 2 * 0.9]])))
    np.testing.assert_allclose(found["dense2"], second, rtol=1e-6)
    np.testing.assert_allclose(found["output"], 0.5 + 10 * second, rtol=1e-6)
    assert list(found) == ["dense1", "dense2", "output"]


def test_activations_of_convolutions_are_those_computed_by_hand():
    model = random_model("fashion_cnn", (1, 2), (3, 3))
    first, second = np.zeros((1 + 16, 1), np.float32), np.zeros((1 + 25, 2), np.float32)
    first[1 + 1 * 4 + 1] = 1  # the kernel's row 1, column 1: with padding 1, the pixel itself
    first[0] = -0.5
    second[1 + 2 * 5 + 2, 1] = 3  # row 2, column 2 of the second channel's kernel: the cell one below and to the right
    model.params["conv1"]["weights"], model.params["conv2"]["weights"] = first.T, second.T
    images = np.random.RandomState(1).randint(0, 256, (2, 28, 28)).astype(np.uint8)
    found = inspection.activations(model, images)

    expected = np.maximum(images / 255 - 0.5, 0)[:, :27, :27]
    np.testing.assert_allclose(found["conv1"][:, 0], expected, atol=1e-6)
    pooled = np.array([[image[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max() for r in range(13) for c in range(13)]
                       for image in expected]).reshape(2, 13, 13)  # fmt: skip
    np.testing.assert_allclose(found["pool1"][:, 0], pooled, atol=1e-6)
    assert found["conv2"].shape == (2, 2, 11, 11)
    np.testing.assert_array_equal(found["conv2"][:, 0], 0)
    np.testing.assert_allclose(found["conv2"][:, 1], 3 * pooled[:, 1:12, 1:12], atol=1e-5)
    assert found["pool2"].shape == (2, 2, 5, 5)
    assert list(found) == ["conv1", "pool1", "conv2", "pool2", "dense1", "dense2", "output"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, channels, hidden_units",
    [("regression", (), (5, 4, 3)), ("fashion_mlp", (), (6, 5)), ("fashion_cnn", (3, 4), (5, 4))],
)
def test_the_last_activation_is_what_the_model_predicts(name, channels, hidden_units):
    model, random = random_model(name, channels, hidden_units), np.random.RandomState(2)
    x = random.randint(0, 256, (7, 28, 28)).astype(np.uint8)
    if name == "regression":
        x = random.uniform(-5, 5, (7, 1)).astype(np.float32)
    np.testing.assert_allclose(inspection.activations(model, x)["output"], model.predict(x), atol=1e-4)


def test_receptive_fields_are_the_kernels_by_channel_and_input_channel():
    model = random_model("fashion_cnn", (3, 2), (4, 4))
    fields, weights = inspection.receptive_fields(model), inspection.weights(model)
    assert {name: field.shape for name, field in fields.items()} == {"conv1": (3, 1, 4, 4), "conv2": (2, 3, 5, 5)}
    assert fields["conv1"][2, 0, 3, 1] == weights["conv1"][3 * 4 + 1, 2]
    assert fields["conv2"][1, 2, 4, 3] == weights["conv2"][2 * 25 + 4 * 5 + 3, 1]
    assert inspection.receptive_fields(TINY) == {}


def test_pooling_drops_an_odd_last_row_and_column():
    images = np.arange(15.0).reshape(1, 3, 5)
    np.testing.assert_array_equal(inspection.max_pool(images), [[[6, 8]]])


def test_inside_gaps_are_the_open_intervals():
    x = np.array([-3, -2, -1, 0, 2, 5.0])
    np.testing.assert_array_equal(inspection.inside_gaps(x, ((-3, -1), (1, 3))), [0, 1, 0, 0, 1, 0])
    assert not inspection.inside_gaps(x, ()).any()


def test_constant_loss_is_the_variance_or_the_entropy_of_the_labels():
    assert inspection.constant_loss(np.array([[1.0], [3.0]]), None) == 1
    assert inspection.constant_loss(np.array([0, 1, 2, 3]), 4) == pytest.approx(np.log(4))
    assert inspection.constant_loss(np.array([0, 0, 0, 1]), 3) == pytest.approx(0.75 * np.log(4 / 3) + 0.25 * np.log(4))


def test_first_of_each_class_leaves_out_a_class_without_examples():
    assert inspection.first_of_each_class(np.array([2, 0, 2, 0]), 4) == {0: 1, 2: 0}


def test_the_most_confused_pair_is_never_on_the_diagonal():
    assert inspection.most_confused_pair(np.array([[9, 1, 0], [0, 5, 4], [2, 2, 9]])) == (1, 2)


def test_misclassified_are_the_pairs_images_the_surest_first():
    outputs = np.array([[0, 1, 0], [0, 9, 0], [5, 0, 0], [0, 3, 0], [0, 2, 0]], float)
    y = np.array([0, 0, 0, 1, 0])
    np.testing.assert_array_equal(inspection.misclassified(outputs, y, 0, 1), [1, 4, 0])
    assert len(inspection.misclassified(outputs, y, 2, 1)) == 0


def test_calibration_counts_each_example_once_and_weighs_the_bins():
    log = np.log([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65], [0.5, 0.5]])
    found = inspection.calibration(log, np.array([0, 1, 0, 1, 0]))
    np.testing.assert_array_equal(found.right, [0, 0, 0, 0, 0, 1, 2, 0, 0, 1])
    np.testing.assert_array_equal(found.wrong, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(found.confidence[[5, 6, 9]], [0.5, 0.65, 0.95])
    np.testing.assert_allclose(found.accuracy[[5, 6, 9]], [1, 1, 0.5])
    assert np.isnan(found.accuracy[0])
    assert found.expected_error == pytest.approx((1 * 0.5 + 2 * 0.35 + 2 * 0.45) / 5)


def test_a_certain_classifier_falls_into_the_last_bin():
    found = inspection.calibration(np.array([[1000.0, 0]]), np.array([0]))
    assert found.right[-1] == 1 and found.expected_error == 0


def test_by_column_names_are_those_of_the_table():
    params = {"channels": [], "hidden_units": [4, 3], "l2": 0.1, "optimizer": "sgd"}
    expected = {"hidden_units_1": 4, "hidden_units_2": 3, "l2": 0.1, "optimizer": "sgd"}
    assert inspection.by_column(params) == expected
