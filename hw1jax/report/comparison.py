"""Runs side by side, of one study or of several: what they found, what they were asked, how they learned.

Their folders are enough: no study is needed, and no data are read.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hw1jax.report import html, plots
from hw1jax.report.html import Figure, Item, Markup, grid, table, words
from hw1jax.results import run_folder
from hw1jax.results.trials import where_defined

RESULTS, SETTINGS, CURVES = "What they found", "What differs", "How they learned"
HIDDEN = ("format", "data_sha256", "plan", "own_folds", "space", "num_programs")  # not as they stand, or not at all


class Run(NamedTuple):
    """A run to be compared."""

    name: str  # no two of a page have the same
    record: dict[str, Any]
    curves: dict[str, np.ndarray]  # of its best trial: [fold, epoch]


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Reads runs; each is called by its path below the folder that they share.

    Raises:
      ValueError: a folder is named twice, or its files are missing or damaged; the message is one line.
    """
    paths = [Path(folder).absolute() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"{folders[i]} is named twice: a run is compared with others")
    shared = os.path.commonpath([path.parent for path in paths])
    return [Run(str(path.relative_to(shared)), *run_folder.read_curves(path)) for path in paths]


def sections(runs: Sequence[Run]) -> list[tuple[str, list[Item]]]:
    """Headings, tables and figures of a comparison."""
    results = headlines([(run.name, run.record) for run in runs], with_title=True)
    return [(RESULTS, [results]), (SETTINGS, [_settings(runs), _best(runs)]), (CURVES, _curves(runs))]


def headlines(
    runs: Sequence[tuple[str, dict[str, Any]]], *, with_title: bool = False, others: Sequence[tuple[str, str]] = ()
) -> Markup:
    """The numbers that count, a row a run: in validation, and on a test set those of refit, reference and ensemble.

    The ensemble is that of the search if it has one, else that of the best trial's fold models.

    Args:
      runs: of each its name, and what results.json holds.
      with_title: has a column for the title of each run's study.
      others: rows without numbers: the name, and why.
    """
    runs = [(name, record | {"ensemble": _ensemble(record)}) for name, record in runs]
    every = [record for _, record in runs]
    columns: dict[str, Callable[[dict[str, Any]], Any]] = {"study": lambda r: r["title"]} if with_title else {}
    names = {r["reference"]["name"].removeprefix("the ") for r in every if r["reference"]}
    whose = names.pop() if len(names) == 1 else "reference"
    for name in _names(record["best"] for record in every):
        if name.startswith("mean_val_"):
            metric = name.removeprefix("mean_val_")
            columns[f"validation {words(metric)}"] = partial(_validated, name=metric)
    for name in _names(record[part] or {} for record in every for part in ("test", "ensemble")):
        has_test, has_ensemble = (
            any((record[part] or {}).get(name) is not None for record in every) for part in ("test", "ensemble")
        )
        if name == "confusion" or not (has_test or has_ensemble):
            continue
        if has_test:
            columns[f"test {words(name)}"] = partial(_tested, part="test", name=name)
        if any(record["reference"] for record in every):
            columns[f"{whose}'s test {words(name)}"] = partial(_theirs, name=name)
        if has_ensemble:
            columns[f"ensemble's {words(name)}"] = partial(_tested, part="ensemble", name=name)
    columns["trials"] = lambda record: _counts(record["trials"])
    columns["time"] = _time
    rows = [[name, *(cell(record) for cell in columns.values())] for name, record in runs]
    rows += [[name, why, *["-"] * (len(columns) - 1)] for name, why in others]
    return table(["run" if with_title else "study", *columns], rows)


def _ensemble(record: dict[str, Any]) -> dict[str, Any] | None:
    return record["search_ensemble"]["test"] if "search_ensemble" in record else record["ensemble"]


def _validated(record: dict[str, Any], name: str) -> Markup | str:
    best = record["best"]
    there = f"mean_val_{name}" in best
    return html.spread(best[f"mean_val_{name}"], best[f"std_val_{name}"], name) if there else "-"


def _tested(record: dict[str, Any], part: str, name: str) -> Markup | str:
    value = (record[part] or {}).get(name)
    return "-" if value is None else html.score(name, value)


def _theirs(record: dict[str, Any], name: str) -> Markup | str:
    return html.theirs(name, record["reference"]["test"]) if record["reference"] else "-"


def _time(record: dict[str, Any]) -> Markup:
    time = html.duration(record["timing"]["total_seconds"])
    return Markup(f"{time} (resumed)") if record["timing"].get("resumed") else time


def _counts(trials: Mapping[str, int]) -> Markup:
    counts = {state: html.number(count, "{}") for state, count in trials.items()}
    pruned = f" + {counts['pruned']} pruned" if trials["pruned"] else ""
    return Markup(f"{counts['complete']}{pruned} + {counts['failed']} failed")


def _names(parts: Any) -> list[str]:
    """The keys of several dicts, each once."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _settings(runs: Sequence[Run]) -> Markup:
    """A row for each setting that is not the same in all runs, a column a run."""
    texts = [_shown_settings(run.record) for run in runs]
    names = [name for name in _names(texts) if len({part.get(name, "-") for part in texts}) > 1]
    if not names:
        return Markup("<p>All of them were asked the same.</p>")
    rows = [[words(name), *(part.get(name, "-") for part in texts)] for name in names]
    return table(["setting", *(run.name for run in runs)], rows)


def _shown_settings(record: dict[str, Any]) -> dict[str, str]:
    """A run's settings, data and device as text, by name."""
    config = {name: value for name, value in record["config"].items() if name not in HIDDEN}
    where = {name: record["environment"].get(name) for name in ("device", "num_devices", "git_commit")}
    digest = {"study": record["study"], "digest of the data": record["config"]["data_sha256"][:12]}
    if own := record["config"].get("own_folds"):
        digest["digest of the study's own folds"] = own
    space = record["config"]["space"]  # whose batch_size and num_epochs replace the settings
    return {name: html.setting(value) for name, value in (digest | space | config | space | where).items()}


def _best(runs: Sequence[Run]) -> Markup:
    """The best trials' hyperparameters, a column a run."""
    draws = [run.record["best"]["params"] for run in runs]
    rows = [
        [words(name), *(_value(params[name]) if name in params else "-" for params in draws)] for name in _names(draws)
    ]
    return table(["best trial's", *(run.name for run in runs)], rows)


def _value(value: Any) -> Markup:
    values = value if isinstance(value, list) else [value]
    return Markup(" ".join(html.cell(html.hyperparameter(inner)) for inner in values))


def _curves(runs: Sequence[Run]) -> list[Item]:
    """Losses and metrics by epoch of the runs' best trials, together."""
    figures: list[Item] = []
    for name in _names(run.curves for run in runs):
        means = {run.name: where_defined(run.curves[name][None])[0].mean(axis=0) for run in runs if name in run.curves}
        shown = words(name.replace("train_", "training ").replace("val_", "validation "))
        title = f"{shown[:1].upper()}{shown[1:]} of the best trials, mean over the folds"
        drawn = partial(plots.compared_curves, curves=means, title=title, label=shown, log=name.endswith("loss"))
        alt = "; ".join(f"{run}: {shown} ends at {curve[-1]:.4g}" for run, curve in means.items())
        height = 3.2 + 0.16 * ((len(means) + 1) // 2)
        caption = f"The best trial of each run: {shown}, the mean over its folds."
        figures.append(Figure(f"compared_{name}", alt, caption, grid([drawn], 1, height=height)))
    return figures
