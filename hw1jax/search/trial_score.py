"""Scores of a trial, and how trials are ranked by them."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from hw1jax.search.space import Draw
from hw1jax.search.study import Study


class TrialScore(NamedTuple):
    """A trial that has been trained."""

    number: int
    draw: Draw
    state: Literal["complete", "pruned", "failed"]  # failed: a loss or the score is not finite
    scores: dict[str, tuple[float, ...]]  # "loss" and metrics by name: each fold's value after the last epoch
    epochs: int = 0  # that it was trained

    def mean(self, name: str) -> float:
        """Mean over the folds."""
        with np.errstate(invalid="ignore"):  # infinity less infinity, in a failed trial
            return float(np.mean(self.scores[name]))

    def std(self, name: str) -> float:
        """Standard deviation over the folds, as scikit-learn's `std_test_score` (no degrees of freedom lost)."""
        values = self.scores[name]
        return float(np.std(values)) if np.isfinite(values).all() else float("nan")


Values = Mapping[str, np.ndarray]  # a trial's "loss" and metrics by name: [fold, epoch], of the epochs it was trained


def scored(number: int, draw: Draw, study: Study, values: Values, num_epochs: int) -> TrialScore:
    """A trial with its values after the last epoch, and the state that follows from them.

    `num_epochs`: of a trial that is complete; one whose values are of fewer was pruned.
    """
    last = {name: tuple(map(float, values[name][:, -1])) for name in ("loss", *study.metrics)}  # in this order, always
    finite = np.isfinite(last["loss"]).all() and np.isfinite(last[study.score]).all()
    epochs = values["loss"].shape[1]
    return TrialScore(
        number, draw, "failed" if not finite else "complete" if epochs == num_epochs else "pruned", last, epochs
    )


def sort_key(trial: TrialScore, study: Study) -> tuple[bool, int, float]:
    """What ranks a trial that has not failed: the lowest is the best.

    Scores after other numbers of epochs can't be compared: complete trials come first, then those that were pruned the
    later the better, and the mean score decides among trials that were trained as long.
    """
    mean = trial.mean(study.score)
    return trial.state != "complete", -trial.epochs, -mean if study.maximize else mean
