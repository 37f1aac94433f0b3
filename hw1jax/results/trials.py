"""The trials of a search: ranks, and trials.csv as a table of columns for pandas and polars."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hw1jax import storage
from hw1jax.search import space as space_
from hw1jax.search import trial_score
from hw1jax.search.space import Choice, Int, Range
from hw1jax.search.study import Study
from hw1jax.search.trial_score import TrialScore


def best(trials: Sequence[TrialScore], study: Study) -> TrialScore | None:
    """The complete trial with the best mean score, the first among equals; None if there is none."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return min(complete, key=lambda trial: trial_score.sort_key(trial, study), default=None)


def ranks(trials: Sequence[TrialScore], study: Study) -> list[int | None]:
    """Rank of each trial by `trial_score.sort_key`, 1 for the best, equal for ties; None for a failed one."""
    places = [None if trial.state == "failed" else trial_score.sort_key(trial, study) for trial in trials]
    in_order = sorted(place for place in places if place)
    return [place and in_order.index(place) + 1 for place in places]


class Trials(dict[str, np.ndarray]):
    """All trials of a run, {column: [trial]}: `pandas.DataFrame(trials)`, `polars.DataFrame(trials)`.

    The columns are those of trials.csv, in its order: "number" and "epochs" (int), "state" (str), each hyperparameter
    (int, float, bool or str; Python objects for a choice of None, tuples or several kinds), for the loss and each
    metric NAME "split0_val_NAME", .. (a fold each), "mean_val_NAME" and "std_val_NAME" (float), "rank" and
    "diverged_epoch" (float, NaN if undefined).

    Attributes:
      rows: the rows of the file, as text.
    """

    def __init__(
        self,
        columns: dict[str, np.ndarray],
        rows: Sequence[dict[str, str]],
        params: Iterable[str],
        scores: Iterable[str],
    ):
        super().__init__(columns)
        self.rows = rows
        self._params, self._scores = tuple(params), tuple(scores)

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The hyperparameters by column, each int, float, bool or str [trial]."""
        return {name: self[name] for name in self._params}

    @property
    def means(self) -> dict[str, np.ndarray]:
        """Mean over the folds of "loss" and each metric, by name, float [trial]."""
        return {name: self[f"mean_val_{name}"] for name in self._scores}

    @property
    def folds(self) -> dict[str, np.ndarray]:
        """ "loss" and metrics by name, float [trial, fold], in validation after a trial's last epoch."""
        scores = {}
        for name in self._scores:
            columns = [column for column in self if re.fullmatch(rf"split\d+_val_{re.escape(name)}", column)]
            scores[name] = np.stack([self[column] for column in columns], axis=1)
        return scores

    @property
    def complete(self) -> np.ndarray:
        """Bool [trial]."""
        return self["state"] == "complete"

    @property
    def pruned(self) -> np.ndarray:
        """Bool [trial], stopped before the last epoch."""
        return self["state"] == "pruned"

    def __repr__(self) -> str:
        pruned = f" and {self.pruned.sum()} pruned" if self.pruned.any() else ""
        names = ", ".join(self._params)
        names = names if len(names) <= 120 else names[:115].rpartition(",")[0] + ", .."
        return f"Trials({len(self.rows)}, of which {self.complete.sum()} are complete{pruned}: {names})"


def where_defined(values: np.ndarray) -> np.ndarray:
    """Values [trial, fold, ...] without the folds in which no trial has one: the metric is undefined there."""
    missing = np.isnan(np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)).all(axis=1)
    return values if missing.all() else values[:, ~missing]


def counting_curves(values: np.ndarray, best_epochs: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Values [trial, fold, epoch] in which the best epoch of a fold goes on after it has stopped.

    `best_epochs` [trial, fold] are from 1, 0 if none is finite; `epochs` [trial] are each trial's.
    """
    best, each = best_epochs[:, :, None], np.arange(1, values.shape[2] + 1)
    stopped = np.isnan(values) & (best > 0) & (best < each) & (each <= epochs[:, None, None])
    return np.where(stopped, np.take_along_axis(values, np.maximum(best - 1, 0), axis=2), values)


def write_trials(
    path: Path, study: Study, trials: Sequence[TrialScore], train_loss: np.ndarray, val: Mapping[str, np.ndarray]
) -> None:
    """Writes trials.csv, a row a trial, with scikit-learn's column names.

    `train_loss` and each of `val` ("loss" and metrics by name) are [trial, fold, epoch]; epochs after a trial's last
    are ignored.
    """
    text = io.StringIO()
    missing = np.array([value is None for value in trials[0].scores[study.score]])[None, :, None]  # undefined there
    finite = np.isfinite(train_loss) & np.isfinite(val["loss"]) & (np.isfinite(val[study.score]) | missing)
    rows = []
    for trial, rank, own in zip(trials, ranks(trials, study), np.all(finite, axis=1), strict=True):
        row = {"number": trial.number, "state": trial.state, "epochs": trial.epochs}
        row |= {name: _cell(value) for name, value in space_.flatten(trial.draw, study.space).items()}
        for name, folds in trial.scores.items():
            row |= {f"split{i}_val_{name}": value for i, value in enumerate(folds)}
            row |= {f"mean_val_{name}": trial.mean(name), f"std_val_{name}": trial.std(name)}
        row |= {f"split{i}_best_epoch": epoch for i, epoch in enumerate(trial.best_epochs)}
        diverged = 1 + int(np.argmin(own[: trial.epochs])) if trial.state == "failed" else ""
        rows.append(row | {"rank": rank, "diverged_epoch": diverged})
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    """A hyperparameter as a cell of trials.csv; with a quote before it, a spreadsheet takes a formula for text."""
    if value is None or isinstance(value, tuple):
        return str(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else value


def read_trials(path: Path, study: Study) -> Trials:
    """Reads trials.csv of a run of the study, whose ranges are those of the run.

    Raises:
      ValueError, KeyError: the columns are those of another study.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    num_folds = sum(re.fullmatch(r"split\d+_val_loss", name) is not None for name in rows[0])

    def numbers(column: str) -> np.ndarray:
        return np.array([float(row[column] or "nan") for row in rows])

    names, params = ("loss", *study.metrics), space_.columns(study.space)
    columns = {
        "number": np.array([int(row["number"]) for row in rows], np.int64),
        "state": np.array([row["state"] for row in rows]),
        "epochs": np.array([int(row["epochs"]) for row in rows], np.int64),
    }
    for name, r in params.items():
        for row in rows:
            row[name] = row[name].removeprefix("'")
        columns[name] = _values(r, [row[name] for row in rows])
    for name in names:
        scores = [f"split{i}_val_{name}" for i in range(num_folds)] + [f"mean_val_{name}", f"std_val_{name}"]
        columns |= {column: numbers(column) for column in scores}
    best_epochs = [f"split{i}_best_epoch" for i in range(num_folds) if f"split{i}_best_epoch" in rows[0]]
    columns |= {column: numbers(column) for column in (*best_epochs, "rank", "diverged_epoch")}
    return Trials(columns, rows, params, names)


def _values(r: Range, texts: Sequence[str]) -> np.ndarray:
    if isinstance(r, Choice):
        by_text = {str(value): value for value in r.values}
        values = [by_text[text] for text in texts]
        if not r.is_named or all(isinstance(value, str) for value in r.values):
            return np.array(values)
        objects = np.empty(len(values), object)  # by itself, numpy would make an axis of tuples of equal lengths
        objects[:] = values
        return objects
    return np.array([int(text) for text in texts], np.int64) if isinstance(r, Int) else np.array(texts, float)
