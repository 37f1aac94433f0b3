"""Datasets, and the homework's own: `regression` and `fashion_mnist`."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np


class Dataset(NamedTuple):
    """Training and test examples: arrays, or trees (dicts, tuples) of arrays, whose leading axis counts examples.

    Attributes:
      x_train, y_train: training examples, split into folds.
      x_test, y_test: test examples, evaluated once, by the refitted best trial.
      weights: float [training example], at least 0: weights of the loss in training and validation; None: all equal.
      groups: [training example], for splitters that keep groups together.
    """

    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any
    weights: Any = None
    groups: Any = None


def sha256(data: Dataset) -> str:
    """Digest of all arrays, which identifies the data of results."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(data):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
