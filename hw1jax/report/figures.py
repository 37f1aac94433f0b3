"""Figures of a run, drawn alone for a notebook or a paper: the page's own. `Results.plot_*` are their door.

Each takes a run's results and returns a matplotlib Figure that pyplot does not know.
"""

import base64

import numpy as np

from hw1jax.report import plots, search, sections
from hw1jax.report.items import Item, Picture, escape, grid, table, words
from hw1jax.results import Results

MOST_ROWS = 8  # of trials in a summary


def learning_curves(results: Results) -> plots.Drawing:
    """Losses by epoch, of the best trial and of all."""
    return _drawn(Picture("", "", "", grid(sections.learning_cells(results), 1, height=6)))


def trials(results: Results) -> plots.Drawing:
    """The score of every trial with its folds."""
    return _drawn(_named(search.all_trials(results), "trial_scores"))


def parallel_coordinates(results: Results) -> plots.Drawing:
    """Each trial a line through its hyperparameters to its score."""
    return _drawn(search.parallel_coordinates(results))


def importances(results: Results) -> plots.Drawing:
    """The share of the score's variance that each hyperparameter explains."""
    return _drawn(search.importances(results))


def fit(results: Results) -> plots.Drawing:
    """The curve that a scalar regression has learned; a ValueError for anything else."""
    if not results.has_curve:
        raise ValueError("plot_fit: only where one number is predicted from one number")
    return _drawn(_named(_test_set(results), "fitted_curve"))


def confusion(results: Results) -> plots.Drawing:
    """The confusion matrix on the test set; a ValueError for anything but a classifier."""
    if not results.has_classes:
        raise ValueError("plot_confusion: only of a study with classes= and an output for each class")
    return _drawn(_named(sections.test_set(results), "confusion"))


def summary(results: Results) -> str:
    """What a notebook shows of results, HTML: the numbers that count, the best trials, the learning curves."""
    trials, study = results.trials, results.study
    first = [line.strip() for line in repr(results).removeprefix("Results(").splitlines()[:-1]]  # without the folder
    names = list(dict.fromkeys([study.score, "loss", *study.metrics]))
    rows = []
    for i in np.argsort(trials.ranks, kind="stable")[:MOST_ROWS]:
        params = [trials.params[name][i].item() for name in trials.params]
        shown = [f"{value:.4g}" if isinstance(value, float) else value for value in params]
        rows.append([trials.numbers[i], trials.states[i], *(f"{trials.means[name][i]:.4g}" for name in names), *shown])
    headings = ["trial", "state", *(f"validation {words(name)}" for name in names), *map(words, trials.params)]
    caption = "All trials, the best first" if len(trials.rows) <= MOST_ROWS else f"The {len(rows)} best trials"
    content, size = learning_curves(results)._repr_png_()
    image = f'<img alt="Losses by epoch, of the best trial and of all trials" width="{size["width"]}" src="data:'
    image += f'image/png;base64,{base64.b64encode(content).decode()}">'
    head = f"<strong>{escape(first[0])}</strong><br>" + "<br>".join(map(escape, first[1:]))
    return f"<div><p>{head}</p>{table(headings, rows, caption=caption)}{image}</div>"


def _test_set(results: Results) -> list[Item]:
    """The study's own items below that heading, which may know more of the data."""
    found: list[Item] = []
    for function in results.study.sections.get("Test set", [sections.test_set]):
        made = function(results)
        found += [made] if isinstance(made, Picture | str) else made
    pictures = [item for item in found if isinstance(item, Picture)]
    return found if any(p.name == "fitted_curve" for p in pictures) else [*sections.fit(results)]


def _named(items: list[Item], name: str) -> Picture:
    return next(item for item in items if isinstance(item, Picture) and item.name == name)


def _drawn(picture: Picture) -> plots.Drawing:
    with plots.style():
        figure = picture.draw()
        figure.draw_without_rendering()  # ticks take their style as they are made, not later
    return figure
