"""The state of what trains, between two epochs, as a file: written whole, and checked before it is trusted."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from hw1jax import storage
from hw1jax.training import State

SECONDS_BETWEEN_CHECKPOINTS = 20
Losses = list[tuple[np.ndarray, dict[str, np.ndarray]]]  # (training loss, validation by name), of some epochs each


class Checkpoint:
    """A file with the state of a population in training."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._path, self._clock, self._last = path, clock, clock()

    def is_due(self) -> bool:
        """Whether enough time has gone since the last one to be worth the writing."""
        return self._clock() - self._last >= SECONDS_BETWEEN_CHECKPOINTS

    def write(self, state: State, num_epochs: int, losses: Losses) -> None:
        """The state after so many epochs, and the losses of all of them."""
        leaves = {f"state_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        train_loss, val = in_one(losses)
        progress = {"num_epochs": np.array(num_epochs), "train_loss": train_loss}
        named = {f"val_{name}": values for name, values in val.items()}
        storage.write_arrays(self._path, leaves | progress | named)
        self._last = self._clock()

    def read(self, start: State, first_epoch: int = 0) -> tuple[State, int, Losses]:
        """(state, epochs done, losses) of the file, or of the beginning where there is none.

        `first_epoch`: how many epochs are done at the beginning; losses are those of the epochs after them.

        Raises:
          ValueError: the file is damaged or doesn't fit; the message says what to do.
        """
        if not self._path.exists():
            return start, first_epoch, []
        arrays = storage.read_arrays(self._path)
        leaves, tree = jax.tree.flatten(start)
        try:
            saved = [storage.restored(arrays[f"state_{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
            num_epochs, train_loss = int(arrays["num_epochs"]), arrays["train_loss"]
            val = {name.removeprefix("val_"): values for name, values in arrays.items() if name.startswith("val_")}
            fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(saved, leaves, strict=True))
            expected = (*leaves[0].shape[:2], num_epochs - first_epoch)
            if not fits or any(a.shape != expected for a in (train_loss, *val.values())):
                raise ValueError("arrays of other shapes")
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self._path, error) from error
        return jax.tree.unflatten(tree, saved), num_epochs, [(train_loss, val)]


def in_one(losses: Losses) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The epochs of several calls as those of one: [trial, fold, epoch]."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=2), *losses)


def damaged(path: Path, reason: object) -> ValueError:
    """What says that a file can't be used, and what to do."""
    return ValueError(f"{path} is damaged ({reason}): remove it and run the same command again")
