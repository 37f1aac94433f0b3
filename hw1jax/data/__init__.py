"""Datasets, and the homework's own: `regression` and `fashion_mnist`."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np


class Dataset(NamedTuple):
    """Training examples, and test examples if there are any, as arrays or trees (dicts, tuples) of arrays.

    The leading axis of each array counts examples.

    Attributes:
      x_train, y_train: training examples, split into folds.
      x_test, y_test: test examples, evaluated once, by the refitted best trial; both None: no test set.
      weights: float [training example], at least 0: weights of the loss in training and validation; None: all equal.
      groups: [training example], for splitters that keep groups together.
    """

    x_train: Any
    y_train: Any
    x_test: Any = None
    y_test: Any = None
    weights: Any = None
    groups: Any = None

    @property
    def has_test_set(self) -> bool:
        return self.x_test is not None


def sha256(data: Dataset) -> str:
    """Digest of all arrays, which identifies the data of results."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(data):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
