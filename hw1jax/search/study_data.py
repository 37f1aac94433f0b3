"""The data of a study as arrays, and its folds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hw1jax.core import array_checks
from hw1jax.core import folds as folds_
from hw1jax.core.folds import Fold
from hw1jax.data import Dataset
from hw1jax.search.study import SearchConfig, Study


def load_data(study: Study, inputs: Mapping[str, Path | None]) -> Dataset:
    """Loads the study's data, converted to arrays.

    Raises:
      TypeError, ValueError: invalid data; one line.
    """
    data = study.data if isinstance(study.data, Dataset) else study.data(**inputs)
    if not isinstance(data, Dataset):
        raise TypeError(f"data= must be a Dataset or a function that returns one, got {type(data).__name__}")
    if (data.x_test is None) != (data.y_test is None):
        raise ValueError("x_test= and y_test= go together: give both, or neither for a study without a test set")
    named = zip(data._fields, data[: 4 if data.has_test_set else 2], strict=False)
    # NaN in x may be filled by the task's `prepare`; `Networks.check` refuses it if it isn't.
    x_train, y_train, *test_set = (array_checks.as_arrays(part, name, nan=name[0] == "x") for name, part in named)
    x_test, y_test = test_set or (None, None)
    weights = None
    if data.weights is not None:
        weights = array_checks.as_weights(data.weights)
    groups = None if data.groups is None else array_checks.as_groups(data.groups)
    for names, parts in (
        ("x_train and y_train", (x_train, y_train)),
        *([("x_test and y_test", (x_test, y_test))] if test_set else []),
        ("x_train and weights", (x_train, weights)),
        ("x_train and groups", (x_train, groups)),
    ):
        array_checks.common_length(parts, names, "sample")
    for names, parts in (("x_train and x_test", (x_train, x_test)), ("y_train and y_test", (y_train, y_test))):
        shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], part) for part in parts]
        if test_set and shapes[0] != shapes[1]:
            raise ValueError(f"{names} must have examples of the same shape, got {shapes[0]} and {shapes[1]}")
    if test_set:
        _check_kinds(x_train, x_test, y_train, y_test)
    array_checks.check_weights(weights)
    return Dataset(x_train, y_train, x_test, y_test, weights, groups)


def _check_kinds(x_train: Any, x_test: Any, y_train: Any, y_test: Any) -> None:
    """Raises a ValueError if the test set is scaled, or has labels, in another way than the training set."""
    for both in zip(jax.tree.leaves(x_train), jax.tree.leaves(x_test), strict=True):
        if any(a.dtype == np.uint8 for a in both) and any(a.dtype.kind == "f" for a in both):
            raise ValueError(f"x_train is {both[0].dtype} and x_test {both[1].dtype}: give both in the same unit")
    for train, test in zip(jax.tree.leaves(y_train), jax.tree.leaves(y_test), strict=True):
        whole = test.dtype.kind == "f" and np.all(test == np.floor(test))  # else they are numbers, not classes
        if train.dtype.kind in "biu" and whole:
            raise ValueError(f"y_train is {train.dtype} and y_test {test.dtype}: give y_test.astype(int)")


def splits_of(study: Study, search: SearchConfig, data: Dataset) -> list[Fold]:
    """The study's own folds, or `num_folds` shuffled ones; `repeats` times, one repeat after the other.

    Initial parameters and minibatches depend on a fold's number, which goes on from one repeat to the next.

    Raises:
      TypeError, ValueError: invalid folds, or weights that are all 0 in a part of a fold; one line.
    """
    splits = folds_.make_folds(
        data.x_train,
        data.y_train,
        num_folds=search.num_folds if study.folds is None else study.num_folds,
        seed=(search.seed,),
        folds=study.folds,
        groups=data.groups,
        stratify=study.stratify,
    )
    array_checks.check_weights(data.weights, splits)
    return splits * search.repeats
