"""The data of the three studies, as numpy arrays: `regression` (embedded generator, CSV) and `fashion_mnist`."""

import hashlib
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Training and test examples; the leading axis counts examples, and x and y of a part have the same length.

    Regression: x and y float32 [example, 1].
    Fashion-MNIST: x uint8 [example, 28, 28], 0 to 255; y int32 [example], 0 to 9.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def sha256(data: Dataset) -> str:
    """A digest of all four arrays, by which results know the data that they belong to."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(part.tobytes())
    return digest.hexdigest()
