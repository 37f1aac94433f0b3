"""Evaluation of a trained model's outputs on a test set."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hw1jax.core import losses, selection
from hw1jax.data import Dataset

CURVE_POINTS = 400  # of the fitted curve of a scalar regression
MOST_CLASSES = 100  # of a confusion matrix, unless they have names: it has their square of numbers
REFIT_MARGIN = 0.1  # of the folds' highest loss: a refit less far above it is like them, however close they are


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Class probabilities, float64 [example, class], from unnormalised log-probabilities."""
    outputs = np.asarray(outputs, np.float64)
    exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def logits(outputs: np.ndarray, num_classes: int) -> np.ndarray:
    """Outputs [example, class], without those that are of no class of y.

    A single one, [example, 1] or [example], is the log-odds of the second of two classes.

    Raises:
      ValueError: too few outputs.
    """
    if num_classes == 2 and outputs.shape in ((len(outputs),), (len(outputs), 1)):
        return np.column_stack([np.zeros(len(outputs)), outputs.reshape(-1)])
    if outputs.ndim != 2 or outputs.shape[1] < num_classes:
        raise ValueError(f"outputs have the shape {outputs.shape}: {num_classes} classes need [sample, {num_classes}]")
    return outputs[:, :num_classes]


def ensemble(loss: Callable[..., Any], outputs: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """Combines the outputs of networks ([example, ...] each, arrays or trees) into outputs that the same loss takes.

    `weights` of the networks, of sum 1; by default they are equal.

    Returns:
      The logarithm of the mean probabilities if the loss is the cross entropy or wraps it (`functools.wraps`), as with
      weights of classes, else the mean of the outputs; float32, or float64 if the outputs are.
    """
    together = _log_mean_softmax if selection.combines_probabilities(loss) else _mean
    own = None if weights is None else np.asarray(weights, np.float64)

    def of_arrays(*arrays: Any) -> np.ndarray:
        stacked = np.stack(arrays)
        return together(stacked.astype(np.float64), own).astype(np.promote_types(stacked.dtype, np.float32))

    return jax.tree.map(of_arrays, *outputs)


def _mean(outputs: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return outputs.mean(axis=0) if weights is None else np.tensordot(weights, outputs, 1)


def _log_mean_softmax(outputs: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """[example, class] of outputs [network, example, class]; finite even if a probability underflows."""
    logs = outputs - np.logaddexp.reduce(outputs, axis=-1, keepdims=True)
    if weights is not None:
        return np.logaddexp.reduce(logs + np.log(weights).reshape(-1, *[1] * (logs.ndim - 1)), axis=0)
    return np.logaddexp.reduce(logs, axis=0) - np.log(len(outputs))


def accuracy(outputs: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of the examples whose largest output ([example, class]) is that of their class (`y`: [example])."""
    return float(np.average(np.argmax(outputs, axis=1) == y, weights=weights))


def confusion_matrix(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Counts, int [true class, predicted class]."""
    num_classes = outputs.shape[1]
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (y, np.argmax(outputs, axis=1)), 1)
    return counts


def normalise_rows(confusion: np.ndarray) -> np.ndarray:
    """Share of each true class that was predicted as each class; a row of 0 for a class without examples."""
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def precision_and_recall(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(precision, recall) of each class, [class]; 0 without predictions, or without examples."""
    hits = np.diag(confusion)
    return hits / np.maximum(confusion.sum(axis=0), 1), hits / np.maximum(confusion.sum(axis=1), 1)


def most_confused_pair(confusion: np.ndarray) -> tuple[int, int] | None:
    """(true class, predicted class) of the largest off-diagonal entry; None if all are 0."""
    wrong = confusion - np.diag(np.diag(confusion))
    if not wrong.any():
        return None
    true, predicted = np.unravel_index(np.argmax(wrong), wrong.shape)
    return int(true), int(predicted)


def misclassified(outputs: np.ndarray, y: np.ndarray, true: int, predicted: int) -> np.ndarray:
    """Indices of the examples of class `true` predicted as `predicted`, the most confident first."""
    indices = np.flatnonzero((y == true) & (np.argmax(outputs, axis=1) == predicted))
    confidence = softmax(outputs[indices])[:, predicted] if len(indices) else np.zeros(0)
    return indices[np.argsort(-confidence, kind="stable")]


class Calibration(NamedTuple):
    """Confidence of a classifier (probability of the predicted class) against its accuracy, in equal bins."""

    edges: np.ndarray  # float [bin + 1], from 0 to 1
    right: np.ndarray  # int [bin], number of correct predictions
    wrong: np.ndarray  # int [bin], number of wrong predictions
    confidence: np.ndarray  # float [bin], mean confidence; NaN for an empty bin
    accuracy: np.ndarray  # float [bin]; NaN for an empty bin
    expected_error: float  # mean over the examples of |accuracy - confidence| of their bin (Guo et al., 2017)


def calibration(outputs: np.ndarray, y: np.ndarray, *, num_bins: int = 10) -> Calibration:
    """Calibration of outputs [example, class] on the classes `y` (int [example])."""
    probabilities = softmax(outputs)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.digitize(confidence, edges) - 1, 0, num_bins - 1)
    count, right = np.bincount(bins, minlength=num_bins), np.bincount(bins[hit], minlength=num_bins)
    total = np.bincount(bins, weights=confidence, minlength=num_bins)
    filled = np.where(count > 0, count, np.nan)
    mean, accuracy = total / filled, right / filled
    expected_error = float(np.nansum(np.abs(accuracy - mean) * count) / max(len(y), 1))
    return Calibration(edges, right, count - right, mean, accuracy, expected_error)


def constant_loss(loss: Callable[..., Any], y: Any) -> float | None:
    """The loss of the best constant prediction: the score of a network that has learned nothing.

    Returns:
      The variance of `y` (float [example, output]) for the squared error; the entropy in nats of its classes (int
      [example]) for the cross entropy; None for another loss.
    """
    if loss is losses.squared_error:
        return float(np.mean(np.var(np.asarray(y, np.float64), axis=0)))
    if loss is losses.cross_entropy and np.ndim(y) == 1:
        shares = np.unique(y, return_counts=True)[1] / len(y)
        return float(-np.sum(shares * np.log(shares)))
    return None


def are_classes(classes: Sequence[str] | None, outputs: Any, y: Any) -> bool:
    """True if y are class indices, and there is an output for each class (of these, if they have names)."""
    if not (isinstance(outputs, np.ndarray) and isinstance(y, np.ndarray)):
        return False
    if outputs.ndim != 2 or len(outputs) != len(y) or y.ndim != 1 or y.dtype.kind not in "iu":
        return False
    num_classes = outputs.shape[1]
    fits = num_classes == len(classes) if classes else num_classes > 1
    return fits and bool(np.all((y >= 0) & (y < num_classes)))


def class_names(classes: Sequence[str] | None, outputs: np.ndarray) -> Sequence[str]:
    """The classes' names, by default their indices; none if they are too many for a confusion matrix."""
    num_classes = outputs.shape[1]
    return classes or (tuple(map(str, range(num_classes))) if num_classes <= MOST_CLASSES else ())


def refit_warning(refit_train_loss: float, folds_train_loss: Sequence[float] | np.ndarray) -> str | None:
    """A warning if the refit's last training loss is far above that of the folds (`is_far_above`), else None."""
    if not is_far_above(refit_train_loss, folds_train_loss):
        return None
    return (
        f"the refit ended at a training loss of {refit_train_loss:.3g}, where the folds ended at "
        f"{np.mean(folds_train_loss):.3g} on average and {np.max(folds_train_loss):.3g} at most: its optimizer has "
        "jumped in the last epochs, or has not settled"
    )


def test_warning(test_loss: float | None, folds_val_loss: Sequence[float] | np.ndarray) -> str | None:
    """A warning if the refit's test loss is far above its folds' validation losses (`is_far_above`), else None.

    A refit of few epochs can end at chance with a training loss like the folds', since that is a mean over an epoch.
    """
    if test_loss is None or not is_far_above(test_loss, folds_val_loss):
        return None
    return (
        f"the refit's loss on the test set is {test_loss:.3g}, where its folds had {np.mean(folds_val_loss):.3g} on "
        f"average and {np.max(folds_val_loss):.3g} at most on what they held out: its training has not settled, or the "
        "test set is of another kind"
    )


def is_far_above(loss: float, folds_loss: Sequence[float] | np.ndarray) -> bool:
    """True if a loss is far above those of the folds; False if these aren't finite.

    Far above: more than five of their standard deviations above their mean and at least a tenth above the highest (few
    folds can be close to each other by chance); or more than twice the highest.
    """
    folds = np.asarray(folds_loss, np.float64)
    if not np.isfinite(folds).all():
        return False
    highest = float(folds.max())
    spread = float(folds.std(ddof=1)) if len(folds) > 1 else np.inf
    beyond = max(highest + REFIT_MARGIN * abs(highest), float(folds.mean()) + 5 * spread)
    return not loss <= min(beyond, highest + abs(highest))


def curve_inputs(data: Dataset, outputs: Any) -> np.ndarray:
    """Inputs [point] of the curve of a scalar regression; empty for other data or outputs."""
    parts = (data.x_train, data.y_train, data.x_test, outputs)
    if not all(isinstance(a, np.ndarray) and a.shape[1:] == (1,) and a.dtype.kind == "f" for a in parts):
        return np.zeros(0, np.float32)
    both = np.concatenate([data.x_train, data.x_test])
    return np.linspace(both.min(), both.max(), CURVE_POINTS, dtype=np.float32)
