"""What is searched: ranges, and draws of hyperparameters from them. It needs no library but numpy."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class IntRange(NamedTuple):
    """Whole numbers from low to high, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


class FloatRange(NamedTuple):
    """Positive numbers from low to high, drawn on a logarithmic scale."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g}"


@dataclass(frozen=True)
class Space:
    """What is searched, and how widely.

    Attributes:
      hidden_units: the range of each hidden dense layer.
      channels: the range of each convolution; empty for a dense net.
      learning_rate, l2: their ranges.
      optimizers: names of `hw1jax.optimizers.OPTIMIZERS`.
    """

    hidden_units: tuple[IntRange, ...]
    channels: tuple[IntRange, ...] = ()
    learning_rate: FloatRange = FloatRange(1e-3, 1e-1)
    l2: FloatRange = FloatRange(1e-4, 1e-1)
    optimizers: tuple[str, ...] = ("adam", "sgd", "rmsprop")


class Draw(NamedTuple):
    """One trial's hyperparameters, as plain Python values."""

    channels: tuple[int, ...]
    hidden_units: tuple[int, ...]
    learning_rate: float
    l2: float
    optimizer: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON and MessagePack take it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self._asdict().items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Draw":
        """What `as_dict` gave, perhaps by way of a file.

        Raises:
          KeyError, TypeError, ValueError: something is missing, or of another type.
        """
        channels, hidden_units = (tuple(map(int, values[name])) for name in ("channels", "hidden_units"))
        learning_rate, l2 = float(values["learning_rate"]), float(values["l2"])
        return cls(channels, hidden_units, learning_rate, l2, str(values["optimizer"]))

    def columns(self) -> dict[str, Any]:
        """One plain value a name, the names of Optuna's parameters."""
        widths = {"channels": self.channels, "hidden_units": self.hidden_units}
        named = {f"{name}_{i + 1}": width for name, all in widths.items() for i, width in enumerate(all)}
        return named | {"learning_rate": self.learning_rate, "l2": self.l2, "optimizer": self.optimizer}


Values = IntRange | FloatRange | tuple[Any, ...]  # what a hyperparameter may be


def draw(space: Space, choose: Callable[[str, Values], Any]) -> Draw:
    """A trial's hyperparameters, each chosen by choose(name, values); the names are those of trials.csv."""
    return Draw(
        tuple(choose(f"channels_{i + 1}", values) for i, values in enumerate(space.channels)),
        tuple(choose(f"hidden_units_{i + 1}", values) for i, values in enumerate(space.hidden_units)),
        choose("learning_rate", space.learning_rate),
        choose("l2", space.l2),
        choose("optimizer", space.optimizers),
    )


def sample(values: Values, seed: int, number: int, name: str) -> Any:
    """One value at random, a pure function of (seed, trial number, the hyperparameter's name)."""
    rng = np.random.default_rng([seed, number, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])
    if isinstance(values, IntRange):
        return int(rng.integers(values.low, values.high, endpoint=True))
    if isinstance(values, FloatRange):
        return float(np.clip(np.exp(rng.uniform(np.log(values.low), np.log(values.high))), values.low, values.high))
    return values[rng.integers(len(values))]


def random_draw(space: Space, seed: int, number: int) -> Draw:
    """What the random search with this seed draws as its trial of this number, without a search."""
    return draw(space, lambda name, values: sample(values, seed, number, name))
