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
    scores: dict[str, tuple[float | None, ...]]  # "loss" and metrics by name, each fold's last; None: undefined there
    epochs: int = 0
    best_epochs: tuple[int, ...] = ()  # with early stopping, each fold's epoch that counts, from 1; 0: none is finite

    @property
    def refit_epochs(self) -> int | None:
        """With early stopping, the epochs of the refit: the rounded mean of the best epochs."""
        return max(1, round(float(np.mean(self.best_epochs)))) if self.best_epochs else None

    @property
    def last_epochs(self) -> np.ndarray:
        """Each fold's epoch that counts, from 1, int [fold]."""
        return np.array(self.best_epochs or [self.epochs] * len(self.scores["loss"]))

    def defined(self, name: str) -> np.ndarray:
        """The values in the folds where it is defined, float [fold]."""
        return np.array([value for value in self.scores[name] if value is not None])

    def mean(self, name: str) -> float:
        """Mean over the folds where it is defined."""
        with np.errstate(invalid="ignore"):  # inf - inf, in a failed trial
            return float(np.mean(self.defined(name)))

    def std(self, name: str) -> float:
        """Standard deviation over these folds with ddof=0, as scikit-learn's `std_test_score`."""
        values = self.defined(name)
        return float(np.std(values)) if np.isfinite(values).all() else float("nan")


# A trial's "loss" and metrics by name, [fold, epoch]; masked in folds in which a metric is undefined. With early
# stopping also "best_epoch", from 0, and the values then: "best loss", .., [fold] each.
Values = Mapping[str, np.ndarray]
BEST, BEST_EPOCH = "best ", "best_epoch"


def scored(number: int, draw: Draw, study: Study, values: Values, num_epochs: int) -> TrialScore:
    """Scores a trial by its values after the last or best epoch; it was pruned if it has fewer than `num_epochs`.

    A space that has `num_epochs` gives each trial its own.
    """
    num_epochs = draw.get("num_epochs", num_epochs)
    epochs = values["loss"].shape[1]
    last = {
        name: tuple(None if value is np.ma.masked else float(value) for value in scores)
        for name in ("loss", *study.metrics)
        for scores in [values.get(BEST + name, values[name][:, -1])]
    }
    best_epochs = tuple(int(epoch) + 1 for epoch in values.get(BEST_EPOCH, ()))
    trial = TrialScore(number, draw, "complete" if epochs == num_epochs else "pruned", last, epochs, best_epochs)
    finite = np.isfinite(trial.defined("loss")).all() and np.isfinite(trial.defined(study.score)).all()
    return trial if finite else trial._replace(state="failed")


def sort_key(trial: TrialScore, study: Study) -> tuple[bool, int, float]:
    """Sort key of a trial that has not failed; lower is better.

    Scores after different rungs can't be compared, so complete trials come first, then pruned ones in order of
    decreasing epochs; the mean score decides among equals.
    """
    mean, is_pruned = trial.mean(study.score), trial.state != "complete"
    return is_pruned, -trial.epochs if is_pruned else 0, -mean if study.maximize else mean
