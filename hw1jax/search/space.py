"""What is searched: hyperparameters of any name, each with its range, and draws from them. It needs numpy alone.

A space is a dict by name. From one end to the other a trial's hyperparameters go by these names: `task(fixed)` and
`h["learning_rate"]`, Optuna's parameters, the columns of trials.csv, JSON. A name may have a tuple of ranges, one a
layer; its columns are then `hidden_units_1`, `hidden_units_2`, .. (`columns`, the one place that knows).
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import Any

import numpy as np

LARGEST_WIDTH = 10_000  # of a layer; more is a slip of the finger, and fills the memory
LARGEST_INT = 2**31 - 1  # what an int32 holds


@dataclass(frozen=True)
class Int:
    """Whole numbers from low to high, both included.

    Attributes:
      low: the least.
      high: the most.
      log: drawn on a logarithmic scale.
      static: it shapes the program (a depth, say): `task` gets it in `fixed`, and each value has a program of its own.
      width: it is the width of a layer that may be padded. `task` gets in `fixed` the width to make the layer, at least
        as large as any trial's that trains in the program; `h` has each trial's own (see `hw1jax.models`). A
        network whose `apply` doesn't look at it there is never padded: each trial has a program of its own.
    """

    low: int
    high: int
    log: bool = False
    static: bool = False
    width: bool = False

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Float:
    """Numbers from low to high, both included; on a logarithmic scale with `log`."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g}"


@dataclass(frozen=True, init=False)
class Choice:
    """One of several values: names, numbers or truth values.

    In `h` a choice among numbers is the number, one among names its index in `values`: also where fewer are searched
    (`among`), so that an index means the same whatever is searched.

    Attributes:
      values: all there are, as declared.
      static: it shapes the program: `task` gets the value itself in `fixed`, and each has a program of its own.
      among: those that are searched; all, if not given.
    """

    values: tuple[Any, ...]
    static: bool
    among: tuple[Any, ...]

    def __init__(self, *values: Any, static: bool = False, among: Sequence[Any] | None = None):
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "static", static)
        object.__setattr__(self, "among", values if among is None else tuple(among))

    def __str__(self) -> str:
        return ", ".join(map(str, self.among))

    @property
    def is_named(self) -> bool:
        """Whether the values are names, which arrays can't hold."""
        return any(isinstance(value, str) for value in self.values)


Range = Int | Float | Choice
Space = Mapping[str, Range | Sequence[Range]]
Draw = dict[str, Any]  # one trial's hyperparameters by name, as plain Python values; a tuple where there are several


def ranges_of(space: Space) -> dict[str, tuple[Range, ...]]:
    """All ranges of each name: one, or one a layer."""
    return {name: tuple(r) if isinstance(r, Sequence) else (r,) for name, r in space.items()}


def columns(space: Space) -> dict[str, Range]:
    """The ranges by the names of Optuna's parameters and of the columns of trials.csv."""
    return flatten({name: tuple(r) if isinstance(r, Sequence) else r for name, r in space.items()})


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"hidden_units": (45, 21), "l2": .1} -> {"hidden_units_1": 45, "hidden_units_2": 21, "l2": .1}."""
    flat = {}
    for name, value in values.items():
        several = isinstance(value, tuple | list)
        flat |= {f"{name}_{i + 1}": one for i, one in enumerate(value)} if several else {name: value}
    return flat


def draw(space: Space, choose: Callable[[str, Range], Any]) -> Draw:
    """A trial's hyperparameters, each chosen by choose(column, range)."""
    drawn = {column: choose(column, r) for column, r in columns(space).items()}
    return unflatten(space, drawn)


def unflatten(space: Space, flat: Mapping[str, Any]) -> Draw:
    """What `flatten` undoes; a KeyError if a column is missing."""
    return {
        name: tuple(flat[f"{name}_{i + 1}"] for i in range(len(r))) if isinstance(r, Sequence) else flat[name]
        for name, r in space.items()
    }


def sample(values: Range, seed: int, number: int, name: str) -> Any:
    """One value at random, a pure function of (seed, trial number, the column's name)."""
    rng = np.random.default_rng([seed, number, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])
    if isinstance(values, Choice):
        return values.among[rng.integers(len(values.among))]
    if isinstance(values, Float):
        low, high = values.low, values.high
        # Python's own functions: NumPy's can differ in the last digit from one kind of processor to another.
        drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if values.log else rng.uniform(low, high)
        return float(np.clip(drawn, low, high))
    if values.log:
        drawn = math.floor(math.exp(rng.uniform(math.log(values.low), math.log(values.high + 1))))
        return int(np.clip(drawn, values.low, values.high))
    return int(rng.integers(values.low, values.high, endpoint=True))


def random_draw(space: Space, seed: int, number: int) -> Draw:
    """What the random search with this seed draws as its trial of this number, without a search."""
    return draw(space, lambda name, values: sample(values, seed, number, name))


def as_arrays(space: Space, draws: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What `h` is: by name float32, int32 or bool [trial], or [trial, layer] where a name has several ranges.

    Static hyperparameters are left out: their trials' programs have them built in.
    """
    traced = {name: r for name, r in ranges_of(space).items() if not is_static(r)}
    return {name: _array(space[name], r, [draw[name] for draw in draws]) for name, r in traced.items()}


def _array(declared: Any, ranges: Sequence[Range], values: Sequence[Any]) -> np.ndarray:
    kind = max(map(_kind, ranges), key=_KINDS.index)
    if not isinstance(declared, Sequence):
        return np.array([_number(ranges[0], value) for value in values], kind)
    num_layers = len(values[0]) if values else len(ranges)
    numbers = [[_number(r, value) for r, value in each_layer(ranges, own)] for own in values]
    return np.array(numbers, kind).reshape(len(values), num_layers)


_KINDS = (np.bool_, np.int32, np.float32)  # each holds what those before it hold


def _kind(r: Range) -> type[np.generic]:
    """The type of the numbers that stand for a range's values: by what is declared, whatever is drawn."""
    if isinstance(r, Float):
        return np.float32
    if isinstance(r, Int) or r.is_named:
        return np.int32
    return {"b": np.bool_, "i": np.int32, "f": np.float32}[np.array(r.values).dtype.kind]


def _number(r: Range, value: Any) -> Any:
    return r.values.index(value) if isinstance(r, Choice) and r.is_named else value


def each_layer(ranges: Sequence[Range], values: Sequence[Any]) -> Iterable[tuple[Range, Any]]:
    """Each layer's range and value. A network from a file may have more layers than are declared now, or fewer."""
    return zip([*ranges, *[ranges[-1]] * len(values)], values, strict=False)


def is_static(ranges: Sequence[Range]) -> bool:
    """Whether a name's hyperparameters shape the program, and so are no arrays."""
    return any(not isinstance(r, Float) and r.static for r in ranges)


def widths(space: Space) -> list[str]:
    """The names of the layers' widths."""
    return [name for name, r in ranges_of(space).items() if any(isinstance(one, Int) and one.width for one in r)]


def fixed(space: Space, draw: Mapping[str, Any], *, widest: bool) -> dict[str, Any]:
    """What `task` gets: the trial's static hyperparameters, and the widths to make the layers.

    `widest`: the widest that can be drawn, so that all trials share the program; else the trial's own.
    """
    at_most = {name: for_each_layer(space[name], lambda r: r.high) for name in widths(space)} if widest else draw
    return {name: draw[name] for name in statics(space)} | {name: at_most[name] for name in widths(space)}


def statics(space: Space) -> list[str]:
    """The names of the static hyperparameters."""
    return [name for name, ranges in ranges_of(space).items() if is_static(ranges)]


def names(space: Space) -> dict[str, tuple[str, ...]]:
    """Of each hyperparameter that `h` has as the index of a name, or as several: the names, of the first of several."""
    first = {name: each[0] for name, each in ranges_of(space).items()}
    return {name: r.values for name, r in first.items() if isinstance(r, Choice) and r.is_named and not r.static}


def narrowest(space: Space, draw: Mapping[str, Any]) -> Draw:
    """The draw with each width the lowest there is."""
    return {**draw, **{name: for_each_layer(space[name], lambda r: r.low) for name in widths(space)}}


def varying_widths(space: Space) -> list[str]:
    """The names of the widths that differ among trials."""
    return [
        name
        for name, ranges in ranges_of(space).items()
        if name in widths(space) and any(isinstance(r, Int) and r.low < r.high for r in ranges)
    ]


def static_draws(space: Space) -> list[Draw]:
    """Draws of the widest networks, one for each combination of static hyperparameters."""
    choices = {}
    for name, ranges in ranges_of(space).items():
        if is_static(ranges):
            values = [_static_values(r) for r in ranges]
            several = isinstance(space[name], Sequence)
            choices[name] = [combined if several else combined[0] for combined in product(*values)]
    return [widest(space) | dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]


def _static_values(r: Range) -> Sequence[Any]:
    assert not isinstance(r, Float)  # which is never static
    return r.among if isinstance(r, Choice) else range(r.low, r.high + 1)


def width_columns(space: Space) -> dict[str, Int]:
    """The ranges of the layers' widths, as `columns` has them."""
    return {column: r for column, r in columns(space).items() if isinstance(r, Int) and r.width}


def widened(space: Space, draw: Mapping[str, Any], num_groups: Sequence[int]) -> Draw:
    """The draw with each width as wide as the widest of its group.

    `num_groups`: of each width, in the order of `width_columns`, into how many even parts its range is cut.
    """
    flat = flatten(draw)
    for (column, r), n in zip(width_columns(space).items(), num_groups, strict=True):
        flat[column] = r.low + int(_tops_of_groups(r.high - r.low + 1, n)[flat[column] - r.low])
    return unflatten(space, flat)


def share_narrowed(num_values: int, num_groups: int) -> float:
    """By how much of a width's range its groups make layers narrower than the widest, on average over the values."""
    return 1 - float(np.mean(_tops_of_groups(num_values, num_groups))) / (num_values - 1) if num_values > 1 else 0.0


def _tops_of_groups(num_values: int, num_groups: int) -> np.ndarray:
    """Of each of the values 0, 1, .., the last in its group, if there are so many even groups."""
    groups = np.arange(num_values) * num_groups // num_values
    return -(-(groups + 1) * num_values // num_groups) - 1


def key_of(fixed: Mapping[str, Any]) -> Hashable:
    """Trials whose `fixed` have the same key share a program."""
    return tuple(sorted((name, type(value).__name__, value) for name, value in fixed.items()))


def widest(space: Space) -> Draw:
    """The draw of the widest network, and else of the first of everything."""
    return {name: for_each_layer(ranges, _of_widest) for name, ranges in space.items()}


def _of_widest(r: Range) -> Any:
    if isinstance(r, Choice):
        return r.among[0]
    return r.high if _is_width(r) else r.low


def num_programs(space: Space) -> int:
    """How many values the static hyperparameters can have together, each with a program of its own."""
    count = 1
    for r in columns(space).values():
        if not isinstance(r, Float) and r.static:
            count *= len(r.among) if isinstance(r, Choice) else r.high - r.low + 1
    return count


def _is_width(r: Range) -> bool:
    return isinstance(r, Int) and r.width


def for_each_layer(ranges: Any, function: Callable[[Any], Any]) -> Any:
    """function(range), or a tuple of these where there is a range a layer."""
    return tuple(map(function, ranges)) if isinstance(ranges, Sequence) else function(ranges)


def check(space: Space) -> None:
    """Raises a ValueError of one line, which names the hyperparameter, if there is nothing to draw."""
    if not isinstance(space, Mapping):
        raise TypeError(f"space= must be a dict of ranges by name, got {type(space).__name__}")
    for name, ranges in ranges_of(space).items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"space: {name!r} is no name as Python has them")
        if not ranges:
            raise ValueError(f"{name}= needs a range for each layer, for example {name}= 10-50 10-50")
        for r in ranges:
            _check(name, r)
        for what, kinds in (("static", {is_static([r]) for r in ranges}), ("a width", set(map(_is_width, ranges)))):
            if len(kinds) > 1:
                raise ValueError(f"{name}= is {what} in some of its ranges and not in others")
    if len(columns(space)) != sum(map(len, ranges_of(space).values())):
        raise ValueError(f"space: two hyperparameters have the same column among {', '.join(columns(space))}")


def _check(name: str, r: Range) -> None:
    if isinstance(r, Choice):
        if not r.among or not set(map(repr, r.among)) <= set(map(repr, r.values)):
            raise ValueError(f"{name}= needs at least one of {', '.join(map(str, r.values))}, got {str(r) or 'none'}")
        kinds = {str if isinstance(v, str) else bool if isinstance(v, bool) else float for v in r.values}
        if len(kinds) > 1 or not all(isinstance(v, str | bool | int | float) for v in r.values):
            raise ValueError(f"{name}= must be a choice among names, among numbers or among truth values, got {r}")
        if len(set(r.values)) != len(r.values):
            raise ValueError(f"{name}= has a value twice: {r}")
        if not r.is_named and not all(abs(v) <= LARGEST_INT if isinstance(v, int) else isfinite(v) for v in r.values):
            raise ValueError(f"{name}=: numbers must be finite, whole ones within +-{LARGEST_INT}, got {r}")
        return
    if not isinstance(r, Int | Float):
        raise TypeError(f"{name}= must be an Int, a Float, a Choice or a tuple of them, got {type(r).__name__}")
    numbers = (int,) if isinstance(r, Int) else (int, float)
    if not all(isinstance(v, numbers) and not isinstance(v, bool) for v in (r.low, r.high)):
        kind = "whole numbers" if isinstance(r, Int) else "numbers"
        raise TypeError(f"{name}= must have {kind} as bounds, got {r.low!r} and {r.high!r}")
    is_count = isinstance(r, Int) and (r.width or r.log)
    is_positive = isinstance(r, Float) and r.log
    fits = r.low >= 1 if is_count else r.low > 0 if is_positive else r.low > -np.inf
    if not (fits and r.low <= r.high < np.inf):
        least = " of at least 1" if is_count else " above 0" if is_positive else ""
        raise ValueError(f"{name}=: a range goes from a low number{least} up, got {r}")
    if isinstance(r, Int) and r.width and r.static:
        raise ValueError(f"{name}= is static and a width: a static one has a program for each value, and is not padded")
    if isinstance(r, Int) and r.width and r.high > LARGEST_WIDTH:
        raise ValueError(f"{name}=: a layer has at most {LARGEST_WIDTH} units, got {r}")
    if isinstance(r, Int) and max(abs(r.low), abs(r.high)) > LARGEST_INT:
        raise ValueError(f"{name}=: whole numbers lie within +-{LARGEST_INT}, got {r}")
