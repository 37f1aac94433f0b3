"""Figures of a run, drawn alone for a notebook or a paper: those of the page.

Each is a matplotlib Figure that pyplot does not know: a notebook shows it, `figure.savefig(path)` writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hw1jax.report import classes, sections, trials
from hw1jax.report.html import Figure, Item, grid
from hw1jax.results.results import Results

if TYPE_CHECKING:
    from hw1jax.report.drawing import Drawing


def learning_curves(results: Results) -> Drawing:
    """Losses by epoch, of the best trial's folds and of all trials."""
    return _drawn(Figure("", "", "", grid(sections.learning_panels(results), 1, height=6)))


def trial_scores(results: Results) -> Drawing:
    """The score of every trial with its folds, the best first."""
    return _drawn(_named(trials.all_trials(results), "trial_scores"))


def parallel_coordinates(results: Results) -> Drawing:
    """Each trial a line through its hyperparameters to its score, dark the good ones."""
    return _drawn(trials.parallel_coordinates(results))


def importances(results: Results) -> Drawing:
    """The importance of each hyperparameter for the score, by Optuna's fANOVA (without scikit-learn: PED-ANOVA).

    Raises:
      ValueError: fewer than 50 complete trials, or all of them are equally good.
    """
    return _drawn(trials.importances(results))


def fitted_curve(results: Results) -> Drawing:
    """The curve that a scalar regression has learned, over its data; a ValueError for anything else."""
    if not results.has_curve:
        raise ValueError("fitted_curve: only where one number is predicted from one number")
    return _drawn(_named(_test_set(results), "fitted_curve"))


def confusion_matrix(results: Results) -> Drawing:
    """The confusion matrix on the test set, or without one out of fold; a ValueError for anything but a classifier."""
    if not results.has_classes:
        raise ValueError("confusion_matrix: only where y are class indices, with an output for each class")
    return _drawn(_named(classes.classification(results), "confusion"))


def _test_set(results: Results) -> list[Item]:
    """The study's own items below that heading, which may know more of the data."""
    content: list[Item] = []
    for function in results.study.sections.get("Test set", [sections.test_set]):
        items = function(results)
        content += [items] if isinstance(items, Figure | str) else items
    figures = [item for item in content if isinstance(item, Figure)]
    return content if any(p.name == "fitted_curve" for p in figures) else [*sections.fit(results)]


def _named(items: list[Item], name: str) -> Figure:
    return next(item for item in items if isinstance(item, Figure) and item.name == name)


def _drawn(figure: Figure) -> Drawing:
    from hw1jax.report import drawing

    with drawing.style():
        drawn = figure.draw()
        drawn.draw_without_rendering()  # ticks take their style as they are made, not later
    return drawn
