"""What a run has left, what is inside its model, and what its outputs say: what the figures show, as numpy arrays.

`read_run` reads a run's folder; the other functions take its model and arrays.

The networks' layers are called "conv1", "conv2", .. and "dense1", "dense2", .., and the last one "output".
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hw1jax import evaluation, layers, models, storage, studies
from hw1jax.data import Dataset, regression, sha256
from hw1jax.model_file import Model, load_model
from hw1jax.studies import Study


class Trials(NamedTuple):
    """trials.csv."""

    rows: list[dict[str, str]]  # as they stand in the file
    numbers: np.ndarray  # int [trial]
    complete: np.ndarray  # bool [trial]; False for failed ones
    folds: np.ndarray  # float [trial, fold], validation loss after the last epoch
    means: np.ndarray  # float [trial]
    ranks: np.ndarray  # float [trial], 1 for the best; NaN for failed ones
    params: dict[str, np.ndarray]  # float [trial], or str for the optimizer


class Run(NamedTuple):
    """All that a run has left on disk, checked, and its data."""

    study: Study
    results: dict[str, Any]  # results.json
    trials: Trials
    histories: dict[str, np.ndarray]  # histories.npz
    model: Model | None  # None where the refit diverged
    data: Dataset
    gaps: tuple[tuple[float, float], ...]  # of the regression's training inputs

    @property
    def failure(self) -> str | None:
        """Why there is no test loss, in a line; None if there is one."""
        return self.results.get("refit", {}).get("failure")

    @property
    def best(self) -> int:
        """The row of the best trial."""
        return int(np.flatnonzero(self.trials.numbers == self.results["best"]["number"])[0])


def read_run(folder: Path) -> Run:
    """Reads and checks what a run has left on disk, and its data.

    Raises:
      ValueError: a file is missing or damaged, or the data are not those of the run; the message is one line.
    """
    results = _read_results(folder / "results.json")
    study = studies.by_name(results["study"])
    trials = _read_trials(folder / "trials.csv", results)
    path = folder / "model.msgpack"
    try:
        diverged = results.get("refit", {}).get("state") == "diverged"
        model = None if diverged else load_model(path)
    except FileNotFoundError:
        raise _missing(path) from None
    if model and (model.study != study.name or model.draw.as_dict() != results["best"]["params"]):
        raise ValueError(f"{path} is not the best model of the results.json beside it: repeat the run")
    inputs = results.get("inputs") or {}
    known = {field.name for field in fields(study.settings)}
    named = {name: Path(value) for name, value in inputs.items() if value and name in known}
    data = study.load(replace(study.settings, **named))
    digest = sha256(data)
    if digest != results["config"].get("data_sha256", digest):
        what = ", ".join(map(str, named.values())) or "the usual data"
        raise ValueError(f"{folder} was run with other data than {what} is now: restore the data, or repeat the run")
    histories = _read_histories(folder / "histories.npz", study, trials, len(data.x_test))
    gaps = () if study.classes or named else regression.GAPS
    return Run(study, results, trials, histories, model, data, gaps)


LARGEST_NUMBER = 1e15  # that a run's results may hold; a whole number may have thousands of digits in JSON
_NUMBER = (int, float)
_EXPECTED = {
    "study": str,
    "title": str,
    "command": str,
    "config": {
        **dict.fromkeys(("num_trials", "num_epochs", "num_folds", "batch_size"), int),
        **dict.fromkeys(("hidden_units", "learning_rate", "l2", "optimizers"), list),
    },
    "environment": dict,
    "best": {"number": int, "params": dict, "mean_val_loss": _NUMBER, "std_val_loss": _NUMBER},
    "refit": {"state": str, "failure": (str, type(None))},
    "test": {"loss": (*_NUMBER, type(None)), "accuracy": (*_NUMBER, type(None)), "confusion": (list, type(None))},
    "reported": {"params": dict, "test_loss": _NUMBER, "test_accuracy": (*_NUMBER, type(None))},
    "trials": {"complete": int, "failed": int},
    "timing": {"total_seconds": _NUMBER},
}
_SINCE = {"refit"}  # entries that the first version did not write


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, dict):
            storage.check_format(results, path)
        _check(results, _EXPECTED, "the file")
        studies.by_name(results["study"])
        if (results["test"]["loss"] is None) != bool(results.get("refit", {}).get("failure")):
            raise ValueError("a test loss, or why there is none, and not both")
        found = choices(results["config"])
        if set(found) != set(by_column(results["best"]["params"])):
            raise ValueError("config and best.params name other hyperparameters")
        for name, values in found.items():
            kinds = [str] * len(values) if name == "optimizer" else [_NUMBER] * 2
            if len(values) != len(kinds) or not all(map(isinstance, values, kinds)):
                raise ValueError(f"config has no range of {name}")
            if name != "optimizer" and not 0 < values[0] <= values[1] < LARGEST_NUMBER:
                raise ValueError(f"config has the range {values[0]:.3g}-{values[1]:.3g} of {name}")
    except storage.FormatError:
        raise
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _damaged(path, error) from None
    return results


def _check(value: Any, expected: Any, name: str) -> None:
    """Raises a ValueError unless a value is of a type, or a dict that has at least these entries."""
    if not isinstance(expected, dict):
        if not isinstance(value, expected):
            raise ValueError(f"{name} is {type(value).__name__}")
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"{name} is out of all bounds")
        return
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {type(value).__name__}, not an object")
    for key, inner in expected.items():
        if key not in value and key in _SINCE:
            continue
        if key not in value:
            raise ValueError(f"{name} has no {key!r}")
        _check(value[key], inner, repr(key))


def _read_trials(path: Path, results: dict[str, Any]) -> Trials:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row is shorter or longer than the first")
        splits = [name for name in rows[0] if re.fullmatch(r"split\d+_val_loss", name)]
        if len(splits) != results["config"]["num_folds"]:
            raise ValueError(f"{len(splits)} folds, expected {results['config']['num_folds']}")
        params = by_column(results["best"]["params"])
        trials = Trials(
            rows,
            np.array([int(row["number"]) for row in rows]),
            np.array([row["state"] == "complete" for row in rows]),
            np.array([[float(row[split] or "nan") for split in splits] for row in rows]),
            np.array([float(row["mean_val_loss"] or "nan") for row in rows]),
            np.array([float(row["rank"] or "nan") for row in rows]),
            {name: np.array([row[name] for row in rows], str if name == "optimizer" else float) for name in params},
        )
        if results["best"]["number"] not in trials.numbers[trials.complete]:
            raise ValueError(f"no complete trial {results['best']['number']}, the best of results.json")
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise _damaged(path, error) from None
    return trials


def _read_histories(path: Path, study: Study, trials: Trials, num_test: int) -> dict[str, np.ndarray]:
    try:
        arrays = storage.read_arrays(path)
        storage.check_format(arrays, path)
        num_epochs, num_outputs = len(arrays["refit_train_loss"]), len(study.classes or "1")
        losses = (*trials.folds.shape, num_epochs)
        expected = {"train_loss": losses, "val_loss": losses, "test_outputs": (num_test, num_outputs)}
        if not study.classes:
            num_points = len(arrays["curve_x"])
            expected |= {"curve_outputs": (num_points,), "curve_fold_outputs": (*trials.folds.shape, num_points)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has the shape {arrays[name].shape}, expected {shape}")
    except storage.FormatError:
        raise
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    return arrays


def _missing(path: Path) -> ValueError:
    return ValueError(f"{path} is missing: name the folder of a finished run, or repeat the run")


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is damaged ({reason}): repeat the run's command, which writes it again")


def by_column(params: dict[str, Any]) -> dict[str, Any]:
    """{"hidden_units": [45, 21], "l2": .1} -> {"hidden_units_1": 45, "hidden_units_2": 21, "l2": .1}, as trials.csv."""
    columns = {}
    for name, value in params.items():
        columns |= {f"{name}_{i + 1}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
    return columns


def choices(config: dict[str, Any]) -> dict[str, Any]:
    """What a search could draw, by the columns of trials.csv: [low, high], or the optimizers' names."""
    space = {name: config[name] for name in ("channels", "hidden_units") if name in config}
    ranges = by_column(space) | {name: config[name] for name in ("learning_rate", "l2")}
    return ranges | {"optimizer": config["optimizers"]}


# A model


def layer_names(model: Model) -> list[str]:
    """The layers that have weights, from the input to the output."""
    convolutions = [f"conv{i + 1}" for i in range(len(model.draw.channels))]
    return convolutions + [f"dense{i + 1}" for i in range(len(model.draw.hidden_units))] + ["output"]


def weights_and_biases(model: Model) -> dict[str, np.ndarray]:
    """Each layer's parameters, float32 [1 + inputs, units]; the first row is the bias."""
    return {name: np.asarray(model.params[name]["weights"]).T for name in layer_names(model)}


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
            fields[name] = np.asarray(layers.kernels(jnp.asarray(values.T), num_inputs))
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
    values = np.asarray(models.scale_pixels(jnp.asarray(x)) if x.dtype == np.uint8 else x, np.float32)
    if fields:
        values = values[:, None]  # [example, channel, row, column]
    found = {}
    for name, kernels in fields.items():
        padding = ((1, 1), (1, 1))
        both = jnp.asarray(values), jnp.asarray(kernels)
        values = np.asarray(lax.conv_general_dilated(*both, (1, 1), padding, precision="highest"))
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


# Outputs and labels


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
