"""Runs side by side, of one study or of several: what they found, what they were asked, how they learned.

Their folders are enough: no study is needed, and no data are read.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hw1jax import formatting
from hw1jax.report import html, plots
from hw1jax.report.html import Figure, Item, Markup, grid, table, words
from hw1jax.results import run_folder

RESULTS, SETTINGS, CURVES = "What they found", "What differs", "How they learned"
UNTOLD = ("format", "data_sha256", "plan", "own_folds", "space", "num_programs")  # not as they stand


class Run(NamedTuple):
    """A run to be compared."""

    name: str  # no two of a page have the same
    record: dict[str, Any]
    curves: dict[str, np.ndarray]  # of its best trial: [fold, epoch]


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Reads runs; each is called by the last parts of its path, as many as tell it from the others.

    Raises:
      ValueError: a folder is named twice, or its files are missing or damaged; the message is one line.
    """
    paths = [Path(folder).absolute() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"{folders[i]} is named twice: a run is compared with others")
    names = [path.name for path in paths]
    for length in range(2, 1 + max((len(path.parts) for path in paths), default=0)):
        if len(set(names)) == len(names):
            break
        names = ["/".join(path.parts[-length:]) for path in paths]
    return [Run(name, *run_folder.read_curves(path)) for name, path in zip(names, folders, strict=True)]


def sections(runs: Sequence[Run]) -> list[tuple[str, list[Item]]]:
    """Headings, tables and figures of a comparison."""
    return [(RESULTS, [_results(runs)]), (SETTINGS, [_settings(runs), _best(runs)]), (CURVES, _curves(runs))]


def _results(runs: Sequence[Run]) -> Markup:
    """The numbers that count, a row a run."""
    metrics = _names(run.curves for run in runs)
    tested = [name for name in _names(run.record["test"] for run in runs) if name != "confusion"]
    tested = [name for name in tested if any(run.record["test"].get(name) is not None for run in runs)]
    ensemble = any(run.record["ensemble"] for run in runs)
    headings = ["run", "study", *(words(name.replace("val_", "validation ")) for name in metrics if name[:4] == "val_")]
    headings += [f"test {words(name)}" for name in tested]
    headings += [f"ensemble's {words(name)}" for name in tested] if ensemble else []
    rows = []
    for run in runs:
        record, row = run.record, [run.name, run.record["title"]]
        for name in (name.removeprefix("val_") for name in metrics if name[:4] == "val_"):
            best = record["best"]
            there = f"mean_val_{name}" in best
            row.append(html.spread(best[f"mean_val_{name}"], best[f"std_val_{name}"], name) if there else "-")
        parts = [record["test"], *([record["ensemble"] or {}] if ensemble else [])]
        row += [_score(part, name) for part in parts for name in tested]
        rows.append([*row, formatting.counts(record["trials"]), html.duration(record["timing"]["total_seconds"])])
    return table([*headings, "trials", "time"], rows)


def _score(part: Mapping[str, Any], name: str) -> Markup | str:
    return "-" if part.get(name) is None else html.score(name, part[name])


def _names(parts: Any) -> list[str]:
    """The keys of several dicts, each once."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _settings(runs: Sequence[Run]) -> Markup:
    """A row for each setting that is not the same in all runs, a column a run."""
    told = [_told(run.record) for run in runs]
    names = [name for name in _names(told) if len({part.get(name, "-") for part in told}) > 1]
    if not names:
        return Markup("<p>All of them were asked the same.</p>")
    rows = [[words(name), *(part.get(name, "-") for part in told)] for name in names]
    return table(["setting", *(run.name for run in runs)], rows)


def _told(record: dict[str, Any]) -> dict[str, str]:
    """What a run was asked, on what data, and on what it ran, as text by name."""
    config = {name: value for name, value in record["config"].items() if name not in UNTOLD}
    where = {name: record["environment"].get(name) for name in ("device", "num_devices", "git_commit")}
    digest = {"study": record["study"], "digest of the data": record["config"]["data_sha256"][:12]}
    return {name: _text(value) for name, value in (digest | record["config"]["space"] | config | where).items()}


def _text(value: Any) -> str:
    """A setting as a line: 10-50 for a range, the others as they are."""
    if isinstance(value, dict):
        if {"low", "high"} <= value.keys():
            return f"{value['low']:g}-{value['high']:g}" + (", log scale" if value.get("log") else "")
        return ", ".join(f"{words(str(name))} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "-" if value is None else str(value)


def _best(runs: Sequence[Run]) -> Markup:
    """The best trials' hyperparameters, a column a run."""
    found = [run.record["best"]["params"] for run in runs]
    rows = [
        [words(name), *(_value(params[name]) if name in params else "-" for params in found)] for name in _names(found)
    ]
    return table(["best trial's", *(run.name for run in runs)], rows)


def _value(value: Any) -> Markup:
    values = value if isinstance(value, list) else [value]
    return Markup(" ".join(html.cell(html.hyperparameter(inner)) for inner in values))


def _curves(runs: Sequence[Run]) -> list[Item]:
    """Losses and metrics by epoch of the runs' best trials, together."""
    figures: list[Item] = []
    for name in _names(run.curves for run in runs):
        means = {run.name: run.curves[name].mean(axis=0) for run in runs if name in run.curves}
        shown = words(name.replace("train_", "training ").replace("val_", "validation "))
        title = f"{shown[:1].upper()}{shown[1:]} of the best trials, mean over the folds"
        drawn = partial(plots.compared_curves, curves=means, title=title, label=shown, log=name.endswith("loss"))
        alt = "; ".join(f"{run}: {shown} ends at {curve[-1]:.4g}" for run, curve in means.items())
        height = 3.2 + 0.16 * ((len(means) + 1) // 2)
        caption = f"The best trial of each run: {shown}, the mean over its folds."
        figures.append(Figure(f"compared_{name}", alt, caption, grid([drawn], 1, height=height)))
    return figures
