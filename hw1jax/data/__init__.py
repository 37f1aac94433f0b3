"""Data as arrays: what a study trains and tests on, and the homework's own, `regression` and `fashion_mnist`."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np


class Dataset(NamedTuple):
    """Training and test examples: arrays, or trees (dicts, tuples) of arrays, whose leading axis counts examples.

    Attributes:
      x_train, y_train: what is trained on, in folds.
      x_test, y_test: looked at once, by the refitted best trial.
      weights: float [example] of the training part, at least 0: how much each counts in the loss, in training and in
        validation; all the same, if not given.
      groups: [example] of the training part, for splitters that keep groups together.
    """

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    weights: Any = None
    groups: Any = None


def sha256(data: Dataset) -> str:
    """A digest of all arrays, by which results know the data that they belong to."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(data):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
