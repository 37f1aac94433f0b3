"""Scores of trials, and their ranking."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from hw1jax.search.space import Draw
from hw1jax.search.study import Study


class TrialScore(NamedTuple):
    """A trained trial."""

    number: int
    draw: Draw
    state: Literal["complete", "pruned", "failed"]  # failed: a loss or the score is not finite
    scores: dict[str, tuple[float, ...]]  # "loss" and metrics by name: each fold's value after the last epoch
    epochs: int = 0

    def mean(self, name: str) -> float:
        """Mean over the folds."""
        with np.errstate(invalid="ignore"):  # inf - inf, in a failed trial
            return float(np.mean(self.scores[name]))

    def std(self, name: str) -> float:
        """Standard deviation over the folds with ddof=0, as scikit-learn's `std_test_score`."""
        values = self.scores[name]
        return float(np.std(values)) if np.isfinite(values).all() else float("nan")


Values = Mapping[str, np.ndarray]  # a trial's "loss" and metrics by name, [fold, epoch]


def scored(number: int, draw: Draw, study: Study, values: Values, num_epochs: int) -> TrialScore:
    """Scores a trial by its values after the last epoch; it was pruned if it has fewer than `num_epochs`.

    A space that has `num_epochs` gives each trial its own.
    """
    num_epochs = draw.get("num_epochs", num_epochs)
    last = {name: tuple(map(float, values[name][:, -1])) for name in ("loss", *study.metrics)}
    finite = np.isfinite(last["loss"]).all() and np.isfinite(last[study.score]).all()
    epochs = values["loss"].shape[1]
    return TrialScore(
        number, draw, "failed" if not finite else "complete" if epochs == num_epochs else "pruned", last, epochs
    )


def sort_key(trial: TrialScore, study: Study) -> tuple[bool, int, float]:
    """Sort key of a trial that has not failed; lower is better.

    Scores after different rungs can't be compared, so complete trials come first, then pruned ones in order of
    decreasing epochs; the mean score decides among equals.
    """
    mean, is_pruned = trial.mean(study.score), trial.state != "complete"
    return is_pruned, -trial.epochs if is_pruned else 0, -mean if study.maximize else mean
