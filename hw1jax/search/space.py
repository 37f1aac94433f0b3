"""Search spaces: named hyperparameters with their ranges, and random draws. Needs NumPy alone.

A space is a dict by name. Each hyperparameter has the same name everywhere: in `task(fixed)`, `h["learning_rate"]`,
Optuna's parameters, trials.csv, JSON. With a tuple of ranges, one a layer, the columns are `hidden_units_1`,
`hidden_units_2`, .. (see `columns`).
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import Any

import numpy as np

LARGEST_WIDTH = 10_000  # units of a layer; more is probably a typo, and fills the memory
LARGEST_INT = 2**31 - 1  # of int32


@dataclass(frozen=True)
class Int:
    """Integers from low to high, both included.

    Attributes:
      low, high: the bounds; `high` is lowered to the last value that steps from `low` reach.
      log: drawn on a logarithmic scale.
      static: shapes the program (for example a depth): passed to `task` in `fixed`; each value is a program of its own.
      width: width of a layer that may be padded. `fixed` has the width to allocate, at least that of any trial in the
        program; `h` has each trial's own (see `hw1jax.models`). A network whose `apply` ignores `h`'s is never padded:
        each trial then has its own program.
      step: the values are low, low + step, .., high; not with `log`.
    """

    low: int
    high: int
    log: bool = False
    static: bool = False
    width: bool = False
    step: int = 1

    def __post_init__(self):
        for name in ("low", "high", "step"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        numbers = (self.low, self.high, self.step)
        if all(isinstance(n, int) for n in numbers) and self.step > 1 and self.low <= self.high:
            object.__setattr__(self, "high", self.low + (self.high - self.low) // self.step * self.step)

    def __str__(self) -> str:
        return f"{self.low}-{self.high}" + (f":{self.step}" if self.step != 1 else "")

    @property
    def values(self) -> range:
        """All values."""
        return range(self.low, self.high + 1, self.step)


@dataclass(frozen=True)
class Float:
    """Floats from low to high, both included; drawn on a logarithmic scale with `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        for name in ("low", "high"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g}"


@dataclass(frozen=True, init=False)
class Choice:
    """One of several values: names, numbers, booleans, None, tuples of these.

    In `h`, a choice among numbers, or among booleans, is the value itself; any other is the value's index in `values`,
    even if only `among` is searched.

    Attributes:
      values: all values.
      static: shapes the program: `task` gets the value in `fixed`; each value is a program of its own.
      among: the values to search; default all.
    """

    values: tuple[Any, ...]
    static: bool
    among: tuple[Any, ...]

    def __init__(self, *values: Any, static: bool = False, among: Sequence[Any] | None = None):
        object.__setattr__(self, "values", plain(values))
        object.__setattr__(self, "static", static)
        object.__setattr__(self, "among", plain(values if among is None else tuple(among)))

    def __str__(self) -> str:
        return ", ".join(map(str, self.among))

    @property
    def is_named(self) -> bool:
        """True if a value is one that arrays can't hold: a string, None or a tuple."""
        return not all(isinstance(value, int | float) for value in self.values)


def plain(value: Any) -> Any:
    """A scalar of NumPy as a Python value, also within tuples."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


Range = Int | Float | Choice
Space = Mapping[str, Range | Sequence[Range]]
Draw = dict[str, Any]  # one trial's hyperparameters by name, as Python values; a tuple for several ranges


def ranges_of(space: Space) -> dict[str, tuple[Range, ...]]:
    """The ranges of each name: one, or one a layer."""
    return {name: tuple(r) if isinstance(r, Sequence) else (r,) for name, r in space.items()}


def columns(space: Space) -> dict[str, Range]:
    """The ranges by the names of Optuna's parameters and of the columns of trials.csv."""
    return flatten({name: tuple(r) if isinstance(r, Sequence) else r for name, r in space.items()})


def flatten(values: Mapping[str, Any], space: Space | None = None) -> dict[str, Any]:
    """{"hidden_units": (45, 21), "l2": .1} -> {"hidden_units_1": 45, "hidden_units_2": 21, "l2": .1}.

    With `space`, a tuple that is one value of a `Choice` stays whole.
    """
    flat = {}
    for name, value in values.items():
        several = isinstance(value, tuple | list) and not (space and isinstance(space.get(name), Choice))
        flat |= {f"{name}_{i + 1}": one for i, one in enumerate(value)} if several else {name: value}
    return flat


def draw(space: Space, choose: Callable[[str, Range], Any]) -> Draw:
    """Draws a trial's hyperparameters, each by choose(column, range)."""
    drawn = {column: choose(column, r) for column, r in columns(space).items()}
    return unflatten(space, drawn)


def unflatten(space: Space, flat: Mapping[str, Any]) -> Draw:
    """Inverse of `flatten`; raises a KeyError if a column is missing."""
    return {
        name: tuple(flat[f"{name}_{i + 1}"] for i in range(len(r))) if isinstance(r, Sequence) else flat[name]
        for name, r in space.items()
    }


def sample(values: Range, seed: int, number: int, name: str) -> Any:
    """Draws one value, a pure function of (seed, trial number, the column's name)."""
    rng = np.random.default_rng([seed, number, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])
    if isinstance(values, Choice):
        return values.among[rng.integers(len(values.among))]
    if isinstance(values, Float):
        low, high = values.low, values.high
        # Python's functions: NumPy's can differ in the last digit between processors.
        drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if values.log else rng.uniform(low, high)
        return float(np.clip(drawn, low, high))
    if values.log:
        drawn = math.floor(math.exp(rng.uniform(math.log(values.low), math.log(values.high + 1))))
        return int(np.clip(drawn, values.low, values.high))
    return values.low + values.step * int(rng.integers(0, len(values.values) - 1, endpoint=True))


def random_draw(space: Space, seed: int, number: int) -> Draw:
    """Returns the draw of a random search with this seed and trial number."""
    return draw(space, lambda name, values: sample(values, seed, number, name))


def as_arrays(space: Space, draws: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Converts draws to `h`: by name float32, int32 or bool [trial], or [trial, layer] for several ranges.

    Static hyperparameters are left out.
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


_KINDS = (np.bool_, np.int32, np.float32)  # from narrow to wide


def _kind(r: Range) -> type[np.generic]:
    """The dtype of a range's values, from its declaration alone."""
    if isinstance(r, Float):
        return np.float32
    if isinstance(r, Int) or r.is_named:
        return np.int32
    return {"b": np.bool_, "i": np.int32, "f": np.float32}[np.array(r.values).dtype.kind]


def _number(r: Range, value: Any) -> Any:
    return r.values.index(value) if isinstance(r, Choice) and r.is_named else value


def each_layer(ranges: Sequence[Range], values: Sequence[Any]) -> Iterable[tuple[Range, Any]]:
    """Pairs each layer's range with its value. Values from a file may be more, or fewer, than the ranges."""
    return zip([*ranges, *[ranges[-1]] * len(values)], values, strict=False)


def is_static(ranges: Sequence[Range]) -> bool:
    """True if a name's hyperparameters shape the program."""
    return any(not isinstance(r, Float) and r.static for r in ranges)


def widths(space: Space) -> list[str]:
    """The names of the layers' widths."""
    return [name for name, r in ranges_of(space).items() if any(isinstance(one, Int) and one.width for one in r)]


def fixed(space: Space, draw: Mapping[str, Any], *, widest: bool) -> dict[str, Any]:
    """Returns the argument of `task`: static hyperparameters, and the widths to allocate.

    `widest`: the widest in the space, so that all trials share the program; else the trial's own.
    """
    at_most = {name: for_each_layer(space[name], lambda r: r.high) for name in widths(space)} if widest else draw
    return {name: draw[name] for name in statics(space)} | {name: at_most[name] for name in widths(space)}


def statics(space: Space) -> list[str]:
    """The names of the static hyperparameters."""
    return [name for name, ranges in ranges_of(space).items() if is_static(ranges)]


def narrowest(space: Space, draw: Mapping[str, Any]) -> Draw:
    """The draw with each width at its lowest."""
    return {**draw, **{name: for_each_layer(space[name], lambda r: r.low) for name in widths(space)}}


def varying_widths(space: Space) -> list[str]:
    """The names of the widths that differ among trials."""
    ranges = ranges_of(space)
    return [name for name in widths(space) if any(isinstance(r, Int) and r.low < r.high for r in ranges[name])]


def static_draws(space: Space) -> list[Draw]:
    """Draws of the widest networks, one for each combination of static hyperparameters."""
    choices = {}
    for name, ranges in ranges_of(space).items():
        if is_static(ranges):
            values = [_static_values(r) for r in ranges]
            several = isinstance(space[name], Sequence)
            choices[name] = [combined if several else combined[0] for combined in product(*values)]
    return [widest(space) | dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]


def static_values(space: Space, name: str) -> Sequence[Any]:
    """The values of a static hyperparameter; none if the space doesn't have it, (None,) if it isn't static."""
    if not isinstance(space, Mapping) or name not in space:
        return ()
    r = space[name]
    return _static_values(r) if isinstance(r, Int | Choice) and r.static else (None,)


def _static_values(r: Range) -> Sequence[Any]:
    assert not isinstance(r, Float)  # a Float is never static
    return r.among if isinstance(r, Choice) else r.values


def width_columns(space: Space) -> dict[str, Int]:
    """The ranges of the layers' widths, by column."""
    return {column: r for column, r in columns(space).items() if isinstance(r, Int) and r.width}


def widened(space: Space, draw: Mapping[str, Any], num_groups: Sequence[int]) -> Draw:
    """The draw with each width raised to the highest of its group; `num_groups` as in `width_columns`."""
    flat = flatten(draw, space)
    for (column, r), n in zip(width_columns(space).items(), num_groups, strict=True):
        flat[column] = r.values[_tops_of_groups(len(r.values), n)[r.values.index(flat[column])]]
    return unflatten(space, flat)


def share_narrowed(num_values: int, num_groups: int) -> float:
    """Mean share of a width's range by which its groups make layers narrower than the widest."""
    return 1 - float(np.mean(_tops_of_groups(num_values, num_groups))) / (num_values - 1) if num_values > 1 else 0.0


def _tops_of_groups(num_values: int, num_groups: int) -> np.ndarray:
    """The last value in the group of each of the values 0, 1, .."""
    groups = np.arange(num_values) * num_groups // num_values
    return -(-(groups + 1) * num_values // num_groups) - 1


def key_of(fixed: Mapping[str, Any]) -> Hashable:
    """A hashable key: trials whose `fixed` have equal keys share a program."""
    # The text tells equal values of other types apart: 1, 1.0, True and (1,), (1.0,).
    return tuple(sorted((name, repr(value), value) for name, value in fixed.items()))


def widest(space: Space) -> Draw:
    """The draw of the widest network, with the first value of everything else."""
    return {name: for_each_layer(ranges, _of_widest) for name, ranges in space.items()}


def _of_widest(r: Range) -> Any:
    if isinstance(r, Choice):
        return r.among[0]
    return r.high if _is_width(r) else r.low


def num_programs(space: Space) -> int:
    """Number of combinations of static hyperparameters."""
    return math.prod(len(_static_values(r)) for r in columns(space).values() if is_static([r]))


def _is_width(r: Range) -> bool:
    return isinstance(r, Int) and r.width


def for_each_layer(ranges: Any, function: Callable[[Any], Any]) -> Any:
    """function(range), or a tuple of results for several ranges."""
    return tuple(map(function, ranges)) if isinstance(ranges, Sequence) else function(ranges)


def check(space: Space) -> None:
    """Raises a ValueError or TypeError that names the hyperparameter if a range is invalid."""
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
        _check_choice(name, r)
        return
    if not isinstance(r, Int | Float):
        raise TypeError(f"{name}= must be an Int, a Float, a Choice or a tuple of them, got {type(r).__name__}")
    if isinstance(r, Int) and (not isinstance(r.step, int) or isinstance(r.step, bool) or r.step < 1):
        raise ValueError(f"{name}=: step= must be a whole number of at least 1, got {r.step!r}")
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
    if isinstance(r, Int) and r.log and r.step != 1:
        raise ValueError(f"{name}=: step= doesn't go with log=True")
    if isinstance(r, Int) and r.width and r.static:
        raise ValueError(f"{name}= is static and a width: a static one has a program for each value, and is not padded")
    if isinstance(r, Int) and r.width and r.high > LARGEST_WIDTH:
        raise ValueError(f"{name}=: a layer has at most {LARGEST_WIDTH} units, got {r}")
    if isinstance(r, Int) and max(abs(r.low), abs(r.high)) > LARGEST_INT:
        raise ValueError(f"{name}=: whole numbers lie within +-{LARGEST_INT}, got {r}")


def _check_choice(name: str, r: Choice) -> None:
    if not r.among or not set(map(repr, r.among)) <= set(map(repr, r.values)):
        raise ValueError(f"{name}= needs at least one of {', '.join(map(str, r.values))}, got {str(r) or 'none'}")
    leaves = [leaf for value in r.values for leaf in _leaves(value)]
    if not all(leaf is None or isinstance(leaf, str | bool | int | float) for leaf in leaves):
        raise ValueError(f"{name}= must be a choice of names, numbers, truth values, None or tuples of these, got {r}")
    if len(set(r.values)) != len(r.values):
        raise ValueError(f"{name}= has a value twice: {r}")
    numbers = [leaf for leaf in leaves if isinstance(leaf, int | float)]
    if not all(abs(v) <= LARGEST_INT if isinstance(v, int) else isfinite(v) for v in numbers):
        raise ValueError(f"{name}=: numbers must be finite, whole ones within +-{LARGEST_INT}, got {r}")
    if not r.is_named and len({isinstance(v, bool) for v in r.values}) > 1:
        raise ValueError(f"{name}= must be a choice among numbers or among truth values, got both: {r}")
    if len(set(map(str, r.values))) != len(r.values):
        raise ValueError(f"{name}= has two values with the same text: {r}")


def _leaves(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]
