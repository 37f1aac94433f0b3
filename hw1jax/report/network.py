"""Sections about the parameters and activations of the refitted best model; empty without one."""

import re
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

from hw1jax import layers
from hw1jax.core import programs
from hw1jax.report import plots
from hw1jax.report.classes import has_images, image
from hw1jax.report.html import Figure, Item, Panel, grid
from hw1jax.results.results import Results
from hw1jax.results.trained_model import Model

MOST_ARRAYS = 24  # of parameters, whose histograms are shown
LAYER = re.compile(r"conv\d+|dense\d+|output")  # of the networks in `hw1jax.models`


def weights(results: Results) -> list[Item]:
    """Histograms of the weights of each layer; for a network that is not from `hw1jax.models`, of each array."""
    model = _refitted(results)
    if model is None:
        return []
    if layers_of := weights_and_biases(model):
        panels: list[Panel] = [
            _weight_histogram(in_words(name), values[1:], biases=values[0]) for name, values in layers_of.items()
        ]
        names = ", ".join(map(in_words, layers_of))
        caption = "Weights of each layer of the refitted best model; ticks below the axis are its biases."
        return _histograms(panels, names, caption)
    arrays = {name: values for name, values in parameters(model).items() if values.size}
    shown = list(arrays.items())[:MOST_ARRAYS]
    histogram = partial(plots.histogram, label="value")
    panels = [partial(histogram, values=v, title=f"{name}, {' x '.join(map(str, v.shape))}") for name, v in shown]
    which = f"the first {len(shown)} of {len(arrays)} arrays" if len(shown) < len(arrays) else "each array"
    caption = f"The parameters in {which} of the refitted best model."
    return _histograms(panels, ", ".join(name for name, _ in shown), caption)


def _refitted(results: Results) -> Model | None:
    return results.model if results.model and results.model.has_refit else None


def _weight_histogram(layer: str, values: np.ndarray, biases: np.ndarray) -> Panel:
    title = f"{layer}: {values.size:,} weights"
    return partial(plots.histogram, values=values, biases=biases, title=title, label="weight (bias: ticks)")


def _histograms(panels: list[Panel], names: str, caption: str) -> list[Item]:
    draw = grid(panels, 2, height=0.2 + 1.9 * -(-len(panels) // 2))
    return [Figure("weights", f"Histograms of the weights of {names}", caption, draw)]


def parameters(model: Model) -> dict[str, np.ndarray]:
    """A model's arrays by their places in its tree, "dense1/kernel", in the order of the numbers in these."""
    named = model._replace(state=None).named_parameters()
    return {name: named[name].astype(np.float32) for name in sorted(named, key=_with_numbers)}


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """dense2 comes before dense10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def weights_and_biases(model: Model) -> dict[str, np.ndarray]:
    """{layer: float [1 + inputs, units], the first row the bias} of a `hw1jax.models` network; {} for another.

    The inputs of a convolution are (input channel, row, column) of its window, those of the dense layer after it
    (channel, row, column) of its images.
    """
    layers = {name.removesuffix("/weights"): values.T for name, values in parameters(model).items()}
    known = all(LAYER.fullmatch(name) and values.ndim == 2 for name, values in layers.items())
    return layers if known else {}


def profiles(results: Results, inputs: Sequence[float]) -> list[Item]:
    """The activation of every hidden unit of a scalar regression for these inputs, from the study's `activations`."""
    model, activations = _refitted(results), results.study.activations
    if model is None or activations is None:
        return []
    x = np.array(inputs, results.data.x_train.dtype)[:, None]
    units = programs.evaluated(activations(model.fixed), model.params, x, model.hyperparameters)
    units = {name: np.asarray(values) for name, values in units.items() if name != "output"}
    every = np.concatenate([np.ravel(values) for values in units.values()])
    low, high = min(0.0, float(every.min())), max(1.0, float(every.max()))
    panels = [
        partial(plots.activation_profile, activations=v[i], title=f"{in_words(name)}, x = {x:g}", limits=(low, high))
        for name, v in units.items()
        for i, x in enumerate(inputs)
    ]
    alt = f"Activation of every hidden unit for the inputs {', '.join(f'{x:g}' for x in inputs)}"
    draw = grid(panels, len(inputs), height=0.3 + 1.4 * len(units), label="activation", sharey=True)
    return [Figure("activations", alt, f"{alt}: a row a layer, a column an input.", draw)]


def receptive_fields(results: Results) -> list[Item]:
    """The kernels of each convolution of a `hw1jax.models.CNN`."""
    model = _refitted(results)
    filters = {} if model is None else kernels(model, results.data.x_train)
    return [_receptive_fields(name, values) for name, values in filters.items()]


def kernels(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """{convolution: float [channel, input channel, row, column]} of a `hw1jax.models.CNN` on images `x`."""
    found, num_inputs = {}, 1 if x.ndim == 3 else x.shape[3]
    for name, values in weights_and_biases(model).items():
        if name.startswith("conv"):
            found[name] = np.asarray(layers.kernels(jnp.asarray(values.T), num_inputs))
            num_inputs = len(found[name])
    return found


def _receptive_fields(name: str, kernels: np.ndarray) -> Figure:
    num_channels, num_inputs, *size = kernels.shape
    title = f"{in_words(name)}: {num_inputs} x {num_channels} kernels of {' x '.join(map(str, size))} weights"
    draw = grid(
        [partial(plots.receptive_fields, kernels=kernels, title=title)], 1, height=1.1 + 5 * num_inputs / num_channels
    )
    alt = f"Receptive fields of {title}, positive weights red, negative blue"
    caption = f"Receptive fields of {in_words(name)}: a column a channel, a row an input channel."
    return Figure(f"receptive_fields_{name}", alt, f"{caption} Red weights are positive, blue negative.", draw)


def feature_maps(results: Results, example: int = 0) -> list[Item]:
    """The outputs of each convolution for a test image, before pooling; from the study's `activations`.

    A training image without a test set.
    """
    model, activations, data = _refitted(results), results.study.activations, results.data
    if model is None or activations is None:
        return []
    x, y, kind = (data.x_test, data.y_test, "test") if data.has_test_set else (data.x_train, data.y_train, "training")
    one = x[example : example + 1]
    found = programs.evaluated(activations(model.fixed), model.params, one, model.hyperparameters)
    maps = {name: np.asarray(v)[0] for name, v in found.items() if v.ndim == 4 and not name.startswith("pool")}
    name = results.study.classes[y[example]] if results.study.classes else f"{kind} image {example}"
    shown = image(x, example, f"{kind} image {example}:\n{name}") if has_images(results) else plots.nothing
    panels: list[Panel] = []
    for layer, values in maps.items():
        title = f"{in_words(layer)}: {len(values)} channels of {' x '.join(map(str, values.shape[1:]))}"
        tiles = partial(plots.feature_maps, maps=values, title=title)
        panels += [plots.nothing if panels else shown, tiles]
    heights = [0.4 + 0.95 * -(-len(values) // 5) for values in maps.values()]
    draw = grid(panels, 2, height=sum(heights), width_ratios=[1, 4.5], height_ratios=heights)
    alt = f"Activations of every channel of the convolutions for a {kind} image, {name}"
    return [Figure("feature_maps", alt, f"{alt}: after ReLU and before pooling.", draw)]


def in_words(layer: str) -> str:
    """conv1 -> convolution 1, dense2 -> hidden layer 2, output -> output layer."""
    if layer == "output":
        return "output layer"
    return layer.replace("conv", "convolution ").replace("dense", "hidden layer ")
