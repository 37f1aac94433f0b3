"""Hyperparameters and messages of the estimators: scikit-learn's words for this package's."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from hw1jax.core import checks
from hw1jax.search.observer import Observer
from hw1jax.search.space import Choice, Float, Int, Range

OF_MLP = {  # of `tabular.mlp`: of scikit-learn
    "layers": "hidden_layer_sizes",
    "learning_rate": "learning_rate_init",
    "l2": "alpha",
    "optimizer": "solver",
}


def layers(sizes: Any) -> Any:
    """Widths for `tabular.mlp`."""
    if isinstance(sizes, list | range | np.ndarray):
        listed = sizes.tolist() if isinstance(sizes, np.ndarray) else sizes
        choices = [tuple(one) if isinstance(one, Sequence) else (one,) for one in listed]
        if not all(isinstance(units, int | np.integer) and units > 0 for one in choices for units in one):
            raise ValueError(f"hidden_layer_sizes= in a list must be numbers of units or tuples of them, got {listed}")
        return Choice(*choices, static=True)
    if isinstance(sizes, Choice):
        return Choice(*sizes.values, static=True, among=sizes.among)
    sizes = sizes if isinstance(sizes, Sequence) else (sizes,)
    return tuple(_of_distribution(size, "hidden_layer_sizes") if hasattr(size, "dist") else size for size in sizes)


def as_range(value: Any, name: str) -> Any:
    """A range from a pair, a list or array of values or a frozen distribution of scipy's; a number stays one.

    Raises:
      ValueError: the value is none of these; one line that names the argument.
    """
    if hasattr(value, "dist"):
        return _of_distribution(value, name)
    if isinstance(value, Range):
        return value
    values = value if isinstance(value, list | tuple) else np.ravel(value).tolist()
    is_pair = isinstance(value, tuple)
    plain = all(isinstance(one, int | float | np.number) and 0 <= one < np.inf for one in values)
    if not (plain and values) or (is_pair and len(values) != 2):
        raise ValueError(
            f"{name}= must be a number of at least 0, a pair (low, high), a list of numbers, a frozen distribution of "
            f"scipy.stats or a range of hw1jax, got {value!r}"
        )
    if is_pair and not 0 < values[0] <= values[1]:
        raise ValueError(f"{name}= is searched on a logarithmic scale, from a low number above 0 up, got {value!r}")
    return Choice(*values) if isinstance(value, list | np.ndarray) else value


def _of_distribution(value: Any, name: str) -> Range:
    low, high = (bound.item() for bound in value.support())
    kind = value.dist.name
    if kind == "randint":
        return Int(int(low), int(high))
    if kind not in ("uniform", "loguniform", "reciprocal"):
        raise ValueError(f"{name}= has scipy's {kind}: give uniform, loguniform or randint, or hw1jax's Float")
    if kind != "uniform" and any((*value.args[2:3], value.kwds.get("loc", 0))):
        raise ValueError(f"{name}= has scipy's {kind} with loc=: give one without, or hw1jax's Float")
    return Float(low, high, log=kind != "uniform")


def scaled(value: Any, factor: float) -> Any:
    """A range or number times a factor.

    Raises:
      ValueError: a range of whole numbers, which would no longer be any.
    """
    if isinstance(value, Int):
        raise ValueError(f"alpha= must be a number or a range of numbers, got whole numbers ({value}): give Float, say")
    if isinstance(value, Float):
        return Float(value.low * factor, value.high * factor, value.log)
    if isinstance(value, Choice):
        values, among = ([one * factor for one in each] for each in (value.values, value.among))
        return Choice(*values, static=value.static, among=among)
    return tuple(one * factor for one in value) if isinstance(value, tuple) else value * factor


ARGUMENTS = {  # of a study: of an estimator
    "num_trials=": "n_iter=",
    "num_folds=": "cv=",
    "num_epochs=": "max_iter=",
    "seed=": "random_state=",
    "weights=": "sample_weight=",
    "x_train=": "X=",
    "y_train=": "y=",
    "metrics['score']": "scoring=",
    "metric score": "scoring=",
}


@contextmanager
def in_messages(words: dict[str, str]) -> Iterator[None]:
    """Replaces words in the messages of errors, except of those that a user's function has raised."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if checks.note_of(error) is None and error.args and isinstance(error.args[0], str):
            pattern = "|".join(rf"(?<!\w){re.escape(word)}" for word in words)
            error.args = (re.sub(pattern, lambda word: words[word[0]], error.args[0]), *error.args[1:])
        raise


def check_labels(y: Any) -> None:
    """Raises a ValueError if labels are missing: scikit-learn would compare them with the others, or make a class."""
    if y is None or np.asarray(y).dtype.kind not in "OUT":
        return
    labels = np.asarray(y, object).ravel()
    missing = [
        i
        for i, label in enumerate(labels)
        if label is None or (not isinstance(label, str) and str(label) in ("nan", "<NA>", "NaT"))
    ]
    if missing:
        count = f"{len(missing)} of {len(labels)}, the first in row {missing[0]}"
        raise ValueError(f"y has missing labels ({count}): leave these samples out")


class Notes(Observer):
    """Keeps the notes of a search without a display: they become warnings."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def note(self, text: str) -> None:
        self.kept.append(text)


def column(values: Sequence[Any]) -> np.ma.MaskedArray:
    """A hyperparameter's values as scikit-learn has them: objects, unless all are numbers, booleans or names."""
    if any(all(isinstance(value, kind) for value in values) for kind in (bool, str, (int, float))):
        return np.ma.array(values)
    objects = np.ma.empty(len(values), object)
    objects[:] = values
    return objects
