"""Spaces and hyperparameters as text and JSON."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hw1jax.search.space import LARGEST_INT, Choice, Draw, Float, Int, Range, Space, check, each_layer, for_each_layer

NUMBER = r"-?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?"


def narrowed(
    declared: Range, low: Any = None, high: Any = None, among: Sequence[Any] | None = None, step: int | None = None
) -> Range:
    """The same hyperparameter with another range."""
    if isinstance(declared, Choice):
        return Choice(*declared.values, static=declared.static, among=among)
    return replace(declared, low=low, high=high, **({} if step is None else {"step": step}))


def from_text(declared: Range, text: str) -> Range:
    """Parses LOW-HIGH or LOW-HIGH:STEP, or VALUE,VALUE for a choice; raises a ValueError for other text."""
    if isinstance(declared, Choice):
        return among(declared, re.split(r",(?![^(]*\))", text))  # not at a comma in parentheses
    step = "(?::([0-9]+))?" if isinstance(declared, Int) else "()"
    match = re.fullmatch(f"({NUMBER})-({NUMBER}){step}", text)
    try:
        low, high = map(int if isinstance(declared, Int) else float, match.groups()[:2] if match else ())
    except ValueError:
        raise ValueError(f"expected LOW-HIGH, got {text!r}") from None
    return narrowed(declared, low, high, step=int(match[3]) if match and match[3] else None)


def among(declared: Choice, texts: Sequence[str]) -> Range:
    """The choice among these values; raises a ValueError if one is unknown."""
    values = {str(value): value for value in declared.values}
    without_spaces = {text.replace(" ", ""): value for text, value in values.items() if isinstance(value, tuple)}
    known = without_spaces | values
    if wrong := [text for text in texts if text not in known]:
        raise ValueError(f"expected values of {', '.join(values)}, got {wrong[0]!r}")
    return narrowed(declared, among=[known[text] for text in texts])


def to_json(space: Space) -> dict[str, Any]:
    """Converts a space to JSON: a list of ranges for several."""
    return {name: for_each_layer(r, _range_to_json) if not isinstance(r, Sequence) else list(map(_range_to_json, r))
            for name, r in space.items()}  # fmt: skip


def _range_to_json(r: Range) -> dict[str, Any]:
    if isinstance(r, Choice):
        return {"among": list(r.among)}
    step = {"step": r.step} if isinstance(r, Int) and r.step != 1 else {}
    return {"low": r.low, "high": r.high} | ({"log": True} if r.log else {}) | step


def from_json(declared: Space, values: Any) -> dict[str, Any]:
    """Inverse of `to_json`, with the declarations of the space `declared`.

    Raises:
      ValueError, TypeError: a name is missing, or its range is invalid.
    """
    space = _convert(declared, values, _range_from_json)
    check(space)
    return space


def _convert(space: Space, values: Any, function: Callable[[str, Range, Any], Any]) -> dict[str, Any]:
    """function(name, range, value) by name, a tuple for several ranges."""
    if not isinstance(values, Mapping) or set(values) != set(space):
        found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(f"hyperparameters {found}, expected {sorted(space)}")
    converted = {}
    for name, ranges in space.items():
        several, is_list = isinstance(ranges, Sequence), isinstance(values[name], list | tuple)
        if several != is_list and not isinstance(ranges, Choice):  # its values may be tuples
            raise ValueError(f"{name} is {'no list' if several else 'a list'}")
        if isinstance(ranges, Sequence):
            converted[name] = tuple(function(name, r, value) for r, value in each_layer(ranges, values[name]))
        else:
            converted[name] = function(name, ranges, values[name])
    return converted


def _range_from_json(name: str, declared: Range, value: Any) -> Range:
    parts = ("among",) if isinstance(declared, Choice) else ("low", "high")
    if not isinstance(value, Mapping) or not set(parts) <= set(value):
        raise ValueError(f"{name} has no {' and '.join(parts)}")
    if isinstance(declared, Choice):
        return narrowed(declared, among=_tuples(value["among"]))
    step = value.get("step", 1) if isinstance(declared, Int) else None
    return narrowed(declared, value["low"], value["high"], step=step)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def draw_to_json(draw: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a draw for JSON and MessagePack."""
    return {name: _lists(value) for name, value in draw.items()}


def in_words(draw: Mapping[str, Any]) -> str:
    """A draw as a line of text: "hidden_units 45 21, l2 0.0003, optimizer adam"."""

    def word(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{n} {' '.join(map(word, v if isinstance(v, tuple) else (v,)))}" for n, v in draw.items())


def draw_from_json(space: Space, values: Any) -> Draw:
    """Inverse of `draw_to_json`. The ranges of the space may have changed, its names not.

    Raises:
      ValueError: a name is missing, or a value is of another type.
    """
    return _convert(space, values, _plain)


def _plain(name: str, r: Range, value: Any) -> Any:
    if isinstance(r, Choice):
        value = _tuples(value)
        fits = repr(value) in set(map(repr, r.values))
    elif isinstance(r, Int):
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < np.inf
    if not fits:
        raise ValueError(f"{name} can't be {str(value)[:40]}")
    return float(value) if isinstance(r, Float) else value


def check_ranges(space: Space) -> None:
    """Raises a TypeError that says which range is meant where a space has plain numbers or names."""
    for name, declared in space.items() if isinstance(space, Mapping) else ():
        values = (declared,) if isinstance(declared, str) or not isinstance(declared, Sequence) else tuple(declared)
        if values and all(isinstance(value, str | int | float | tuple) for value in values):
            raise TypeError(
                f"{name}= must be an Int, a Float, a Choice or a tuple of them, got {type(values[0]).__name__}: give "
                f"{_range_of(values)}"
            )


def _range_of(values: Sequence[Any]) -> str:
    """The range that is meant by plain values, as code."""
    if len(values) == 2 and not any(isinstance(v, str | bool | tuple) for v in values) and values[0] < values[1]:
        kind = "Int" if all(isinstance(v, int) for v in values) else "Float"
        log = ", log=True" if kind == "Float" and 0 < 100 * values[0] <= values[1] else ""
        return f"hw.{kind}({values[0]}, {values[1]}{log})"
    return f"hw.Choice({', '.join(map(repr, values))})"
