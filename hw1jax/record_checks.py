"""What results.json must hold before it is trusted, whoever wrote it: entries, their types, numbers within bounds."""

from typing import Any

import numpy as np

LARGEST_NUMBER = 1e15  # of settings, seconds and counts; a whole number may have thousands of digits in JSON
LARGEST_FLOAT = float(np.finfo(np.float64).max)
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
_NUMBER, _NOTHING = (int, float), type(None)
STATES = ("complete", "pruned", "failed")
_TESTED = {"loss": (*_NUMBER, _NOTHING), "accuracy": (*_NUMBER, _NOTHING), "confusion": (list, _NOTHING)}
_EXPECTED = {
    "study": str,
    "title": str,
    "command": str,
    "config": {
        **dict.fromkeys(("num_trials", "num_epochs", "num_folds", "batch_size"), int),
        **dict.fromkeys(("score", "direction", "data_sha256", "precision"), str),
        **dict.fromkeys(("halving", "first_rung"), (int, _NOTHING)),
        "brackets": bool,
        "averaging": (float, _NOTHING),
        "space": dict,
    },
    "environment": dict,
    "best": {"number": int, "params": dict},
    "refit": {
        "state": str,
        **dict.fromkeys(("failure", "warning"), (str, _NOTHING)),
        **dict.fromkeys(("train_loss", "folds_train_loss"), (*_NUMBER, _NOTHING)),
    },
    "test": _TESTED,
    "ensemble": (dict, _NOTHING),
    "trials": dict.fromkeys(STATES, int),
    "rungs": list,
    "timing": {"total_seconds": _NUMBER},
}
_RUNG = dict.fromkeys(("num_epochs", "num_trials", "went_on", "failed"), int) | {"seconds": _NUMBER}
_REFERENCE = {"name": str, "params": dict, "test": dict}


def check_record(record: Any) -> None:
    """Raises a ValueError that says what is wrong with what results.json holds; whose study it is doesn't matter."""
    _check(record, _EXPECTED, "the file")
    for part in ("config", "timing", "trials", "rungs"):
        _check_numbers(record[part], repr(part), LARGEST_NUMBER)
    _check_numbers(record, "the file", LARGEST_FLOAT)
    if record.get("reference") is not None:
        _check(record["reference"], _REFERENCE, "'reference'")
        _check(record["reference"]["test"], dict.fromkeys(record["reference"]["test"], _NUMBER), "its 'test'")
    if not all(isinstance(value, str | None) for value in _dict(record.get("inputs", {}), "'inputs'").values()):
        raise ValueError("'inputs' are no paths")
    if (record["test"]["loss"] is None) != bool(record["refit"]["failure"]):
        raise ValueError("a test loss, or why there is none, and not both")
    if record["ensemble"] is not None:
        _check(record["ensemble"], _TESTED, "'ensemble'")
        if record["refit"]["state"] == "diverged":
            raise ValueError("an ensemble without a model")
    _check_rungs(record["rungs"], record["config"]["num_epochs"])
    if record["config"]["precision"] not in PRECISIONS:
        raise ValueError("there is no such precision")


def check_values(record: dict[str, Any], names: list[str]) -> None:
    """Raises a ValueError unless the best trial and the tested models have a loss and these metrics; None: not finite.

    The mean that trials are ranked by is never None.
    """
    best, score = record["best"], record["config"]["score"]
    columns = [f"{kind}_val_{name}" for name in ("loss", *names) for kind in ("mean", "std")]
    _check(best, dict.fromkeys(columns, (*_NUMBER, _NOTHING)), "'best'")
    _check(best, dict.fromkeys((f"mean_val_{score}", f"std_val_{score}"), _NUMBER), "'best'")
    for part in ("test", "ensemble"):
        if record[part] is not None:
            _check(record[part], dict.fromkeys(names, (*_NUMBER, _NOTHING)), repr(part))


def _check_rungs(rungs: list[Any], num_epochs: int) -> None:
    """Raises a ValueError unless a record's rungs lead to the last epoch, with numbers of trials that can be."""
    for rung in rungs:
        _check(rung, _RUNG, "a rung")
        parts = rung["went_on"], rung["failed"]
        if min(parts) < 0 or sum(parts) > rung["num_trials"]:
            raise ValueError("a rung from which more trials went than there were")
    ends = [rung["num_epochs"] for rung in rungs]
    if ends != sorted({0, *ends})[1:] or ends[-1:] != [num_epochs]:
        raise ValueError(f"rungs that don't lead to epoch {num_epochs}")


def _check(value: Any, expected: Any, name: str) -> None:
    """Raises a ValueError unless a value is of a type, or a dict that has at least these entries."""
    if not isinstance(expected, dict):
        if not isinstance(value, expected):
            raise ValueError(f"{name} is {type(value).__name__}")
        return
    for key, inner in expected.items():
        if key not in _dict(value, name):
            raise ValueError(f"{name} has no {key!r}")
        _check(value[key], inner, repr(key))


def _dict(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {type(value).__name__}, not an object")
    return value


def _check_numbers(value: Any, name: str, most: float) -> None:
    """Raises a ValueError if a number anywhere in a part of a record is larger, or is none."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, repr(key), most)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, name, most)
    elif isinstance(value, int | float) and not abs(value) <= most:
        raise ValueError(f"{name} is out of all bounds")
