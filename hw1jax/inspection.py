"""What is inside a trained model, and what its outputs say, as numpy arrays: what the figures show, without them.

The networks' layers are called "conv1", "conv2", .. and "dense1", "dense2", .., and the last one "output".
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from hw1jax import evaluation, layers, models
from hw1jax.model_file import Model


def layer_names(model: Model) -> list[str]:
    """The layers that have weights, from the input to the output."""
    convolutions = [f"conv{i + 1}" for i in range(len(model.draw.channels))]
    return convolutions + [f"dense{i + 1}" for i in range(len(model.draw.hidden_units))] + ["output"]


def weights_and_biases(model: Model) -> dict[str, np.ndarray]:
    """Each layer's parameters, float32 [1 + inputs, units]; the first row is the bias."""
    return {name: np.asarray(model.params[name]["weights"]) for name in layer_names(model)}


def weights(model: Model) -> dict[str, np.ndarray]:
    """Each layer's weights without its biases, float32 [inputs, units].

    The inputs of a convolution are (input channel, row, column) of its window, those of the dense layer after it
    (channel, row, column) of its images.
    """
    return {name: values[1:] for name, values in weights_and_biases(model).items()}


def biases(model: Model) -> dict[str, np.ndarray]:
    """Each layer's biases, float32 [units]."""
    return {name: values[0] for name, values in weights_and_biases(model).items()}


def receptive_fields(model: Model) -> dict[str, np.ndarray]:
    """Each convolution's kernels, float32 [channel, input channel, row, column]; none for a dense net.

    The first convolution's are [C1, 1, 4, 4], the second's [C2, C1, 5, 5].
    """
    fields, num_inputs = {}, 1
    for name, values in weights_and_biases(model).items():
        if name.startswith("conv"):
            fields[name] = np.asarray(layers.kernels(values, num_inputs))
            num_inputs = len(fields[name])
    return fields


def activations(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """What every layer makes of an input, from the input to the output.

    Args:
      model: from `hw1jax.model_file.load_model`.
      x: float [example, 1], or uint8 images [example, 28, 28].

    Returns:
      float32 arrays by layer: "conv1" [example, channel, row, column] after ReLU and before pooling (27 x 27; 11 x 11
      for "conv2"), "pool1" the same after pooling (13 x 13; 5 x 5 for "pool2"), "dense1" [example, unit] after the
      sigmoid, and "output" [example, output], which is what `model.predict` gives.
    """
    parameters, fields = weights_and_biases(model), receptive_fields(model)
    values = np.asarray(models.scale_pixels(x) if x.dtype == np.uint8 else x, np.float32)
    if fields:
        values = values[:, None]  # [example, channel, row, column]
    found = {}
    for name, kernels in fields.items():
        values = np.asarray(lax.conv(values, kernels, (1, 1), ((1, 1), (1, 1)), precision="highest"))
        values = found[name] = np.maximum(values + parameters[name][0][:, None, None], 0)
        values = found[name.replace("conv", "pool")] = max_pool(values)
    values = values.reshape(len(values), -1)
    for name in layer_names(model)[len(fields) :]:
        values = values @ parameters[name][1:] + parameters[name][0]
        if name != "output":
            values = np.asarray(jax.nn.sigmoid(values))
        found[name] = values
    return found


def max_pool(images: np.ndarray) -> np.ndarray:
    """The largest value of each 2x2 cell, [.., row, column] -> [.., row // 2, column // 2]; odd ends are dropped."""
    rows, columns = images.shape[-2] // 2, images.shape[-1] // 2
    cells = images[..., : 2 * rows, : 2 * columns].reshape(*images.shape[:-2], rows, 2, columns, 2)
    return cells.max(axis=(-3, -1))


def inside_gaps(x: np.ndarray, gaps: Sequence[tuple[float, float]]) -> np.ndarray:
    """Which inputs lie in one of the open intervals, bool of the shape of `x`."""
    inside = [(start < x) & (x < stop) for start, stop in gaps]
    return np.any(inside, axis=0) if inside else np.zeros(x.shape, bool)


def constant_loss(y: np.ndarray, num_classes: int | None) -> float:
    """The loss of the best network that ignores its input: what a trial that has learned nothing ends at.

    Args:
      y: float [example, 1], or int [example] classes.
      num_classes: of a classifier; None for a regression.

    Returns:
      The variance of `y`, or the entropy of its classes in nats.
    """
    if num_classes is None:
        return float(np.var(y))
    shares = np.bincount(y, minlength=num_classes) / len(y)
    return float(-np.sum(shares * np.log(np.maximum(shares, np.finfo(float).tiny))))


def first_of_each_class(y: np.ndarray, num_classes: int) -> dict[int, int]:
    """{class: index of its first example}, without the classes that `y` (int [example]) does not have."""
    return {c: int(np.flatnonzero(y == c)[0]) for c in range(num_classes) if np.any(y == c)}


def most_confused_pair(confusion: np.ndarray) -> tuple[int, int]:
    """(true class, predicted class) of the largest number off the diagonal of [true class, predicted class]."""
    wrong = confusion - np.diag(np.diag(confusion))
    true, predicted = np.unravel_index(np.argmax(wrong), wrong.shape)
    return int(true), int(predicted)


def misclassified(outputs: np.ndarray, y: np.ndarray, true: int, predicted: int) -> np.ndarray:
    """Indices of the examples of class `true` that were taken for `predicted`, the surest mistakes first."""
    indices = np.flatnonzero((y == true) & (np.argmax(outputs, axis=1) == predicted))
    confidence = evaluation.softmax(outputs[indices])[:, predicted] if len(indices) else np.zeros(0)
    return indices[np.argsort(-confidence, kind="stable")]


class Calibration(NamedTuple):
    """How sure a classifier is, and how often it is right then, in bins of equal width.

    Confidence is the probability that the network gives to the class that it predicts.
    """

    edges: np.ndarray  # float [bin + 1], from 0 to 1
    right: np.ndarray  # int [bin], examples predicted rightly
    wrong: np.ndarray  # int [bin], examples predicted wrongly
    confidence: np.ndarray  # float [bin], mean confidence; NaN for a bin without examples
    accuracy: np.ndarray  # float [bin], share of the right ones; NaN for a bin without examples
    expected_error: float  # mean over the examples of |accuracy - confidence| of their bin (Guo et al., 2017)


def calibration(outputs: np.ndarray, y: np.ndarray, *, num_bins: int = 10) -> Calibration:
    """Calibration of outputs [example, class] on the classes `y` (int [example])."""
    probabilities = evaluation.softmax(outputs)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.digitize(confidence, edges) - 1, 0, num_bins - 1)
    count, right = np.bincount(bins, minlength=num_bins), np.bincount(bins[hit], minlength=num_bins)
    total = np.bincount(bins, weights=confidence, minlength=num_bins)
    filled = np.where(count > 0, count, np.nan)
    mean, accuracy = total / filled, right / filled
    expected_error = float(np.nansum(np.abs(accuracy - mean) * count) / max(len(y), 1))
    return Calibration(edges, right, count - right, mean, accuracy, expected_error)
