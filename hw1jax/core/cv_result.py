"""The result of a cross-validation: scores, a table, predictions."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from hw1jax.core import array_checks, population
from hw1jax.core import folds as folds_
from hw1jax.core.folds import Fold
from hw1jax.core.tasks import Fit, Hyperparameters, Params, Task, fits_x


class Scores(NamedTuple):
    """Mean and standard deviation over a trial's folds, each float [trial]; NaN if the trial failed."""

    mean: np.ndarray
    std: np.ndarray  # ddof=0, as in scikit-learn


@dataclass(frozen=True, eq=False, repr=False)
class CrossValidation:
    """The result of `cross_validate`.

    Attributes:
      train_loss: float [trial, fold, epoch], mean over the epoch of each example's loss just before its step.
      val_loss: float [trial, fold, epoch], mean loss on the fold's held-out samples after the epoch. With early
        stopping, NaN after a member's last epoch.
      params: the trained parameters with leading axes [trial, fold]; None without `return_params`.
      metrics: by name, like `val_loss`.
      statistics: of `prepare` and `prepare_y`, with a leading fold axis; None if neither is a `hw1jax.Fitted`.
      undefined: by name of a metric, the folds in which it is undefined: NaN there, they don't count in mean and std.
      state: untrained arrays such as batch statistics, with leading axes [trial, fold], along with `params`.
      best_epoch: int [trial, fold], with early stopping: the epoch of the lowest validation loss (-1: none was finite),
        to which `params`, `state` and all scores belong; None: they belong to the last epoch.
      hyperparameters: [trial, ...].
      folds: training and validation samples of each fold.
      task: the trained task; its lambdas can't be pickled, `dataclasses.replace(result, task=None)` can.
      x: the inputs it was trained on.
    """

    train_loss: np.ndarray
    val_loss: np.ndarray
    params: Params | None = None
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: Any = None
    best_epoch: np.ndarray | None = None
    hyperparameters: Hyperparameters = None
    folds: Sequence[Fold] = ()
    task: Task | None = None
    x: Any = None
    statistics: Any = None
    undefined: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def scores(self) -> Scores:
        """Mean and standard deviation over the folds; both NaN if a fold is not finite."""
        return self._over_folds("loss", self.val_loss)

    @property
    def best(self) -> int:
        """The trial with the lowest mean; raises a ValueError if all trials failed."""
        mean = self.scores.mean
        if np.isnan(mean).all():
            raise ValueError(f"no trial is the best: the validation loss of all {len(mean)} is not finite")
        return int(np.nanargmin(mean))

    def table(self) -> dict[str, np.ndarray]:
        """Columns [trial] by name, as in scikit-learn, for example for pandas' `DataFrame`.

        They are the hyperparameters; split0_val_loss, .., mean_val_loss and std_val_loss; the same of each metric; and
        rank: 1 for the lowest mean_val_loss, equal for ties, NaN for a failed trial.

        Raises:
          ValueError: a hyperparameter has the name of another column.
        """
        named, values = _columns(self.hyperparameters), {}
        for name, each in {"loss": self.val_loss, **self.metrics}.items():
            scored = self._scored(each)
            values |= {f"split{i}_val_{name}": scored[:, i] for i in range(scored.shape[1])}
            values |= {f"{part}_val_{name}": array for part, array in self._over_folds(name, each)._asdict().items()}
        mean = values["mean_val_loss"]
        values["rank"] = np.where(np.isnan(mean), np.nan, 1 + np.sum(mean[None] < mean[:, None], axis=1))
        columns = dict(named)
        if taken := columns.keys() & values:
            raise ValueError(f"the table has a column {min(taken)} of its own: give that hyperparameter another name")
        if len(columns) < len(named):
            raise ValueError("two hyperparameters have the same column in the table: give one of them another name")
        return columns | values

    def predict(self, x: Any, trial: int | None = None) -> Any:
        """Mean over the folds of their networks' outputs (of logits, not of probabilities) on `x`, [example, ...].

        With `prepare_y` they are in the unit of y.

        `trial`: whose networks; None: the best trial's.

        Raises:
          ValueError: without `return_params`, or there is no such trial.
        """
        if isinstance(x, np.ndarray) and x.dtype == np.float64:  # rows may be more alike than JAX's dtype can tell
            x = x.astype(jax.dtypes.canonicalize_dtype(float))
        x = array_checks.as_arrays(x, "x", nan=self.task is not None and fits_x(self.task.prepare))
        each = [self._outputs(trial, fold, x) for fold in range(self.val_loss.shape[1])]
        return jax.tree.map(lambda *outputs: np.mean(outputs, axis=0), *each)

    def out_of_fold(self, trial: int | None = None) -> Any:
        """Outputs [sample, ...] on the training samples, each by the network of the fold that held it out.

        NaN if no fold did; the mean if several did. `trial`: whose networks; None: the best trial's.

        Raises:
          ValueError: without `return_params`, or there is no such trial.
        """
        outputs = folds_.held_out(partial(self._outputs, trial), self.folds, self.x)
        return folds_.out_of_fold(self.folds, outputs, len(jax.tree.leaves(self.x)[0]))

    def __repr__(self) -> str:
        num_trials, num_folds, num_epochs = self.val_loss.shape
        mean, std = self.scores
        num_failed = np.count_nonzero(np.isnan(mean))
        text = f"CrossValidation({num_trials} trials x {num_folds} folds x {num_epochs} epochs"
        text += f", {num_failed} failed" if num_failed else ""
        if num_failed < num_trials:
            text += f"; the best is trial {self.best}, validation loss {mean[self.best]:.4g} +- {std[self.best]:.2g}"
            for name, values in self.metrics.items():
                text += f", {name} {self._over_folds(name, values).mean[self.best]:.4g}"
            text += "".join(f", {name}={c[self.best]:.4g}" for name, c in _columns(self.hyperparameters))
        return textwrap.shorten(text, 400, placeholder=" ...") + ")"

    def _over_folds(self, name: str, values: np.ndarray) -> Scores:
        """Mean and deviation of values of this name, [trial, fold, epoch], over the folds where it is defined."""
        scored = np.delete(self._scored(values), list(self.undefined.get(name, ())), axis=1)
        scored = np.where(np.isfinite(scored).all(axis=1, keepdims=True), scored, np.nan)
        return Scores(scored.mean(axis=1), scored.std(axis=1))

    def _scored(self, values: np.ndarray) -> np.ndarray:
        """Takes the values [trial, fold] of the epoch that counts."""
        if self.best_epoch is None:
            return values[:, :, -1]
        return np.take_along_axis(values, self.best_epoch[:, :, None], axis=2)[:, :, 0]

    def _outputs(self, trial: int | None, fold: int, x: Any) -> Any:
        if self.params is None or self.task is None:
            raise ValueError(
                "predicting needs the task and its parameters: call cross_validate with return_params=True"
            )
        trial = self.best if trial is None else trial
        if not 0 <= trial < len(self.val_loss):
            raise ValueError(f"trial={trial}: there are trials 0 to {len(self.val_loss) - 1}")
        params, state = jax.tree.map(lambda a: a[trial, fold], (self.params, self.state))
        own = jax.tree.map(lambda a: a[trial], self.hyperparameters)
        if self.statistics is not None:
            state = Fit(state, jax.tree.map(lambda a: a[fold], self.statistics))
        return population.predict(self.task, params, own, x, state=state)


def _columns(hyperparameters: Hyperparameters) -> list[tuple[str, np.ndarray]]:
    """(name, array [trial]) of each; those of an array with more axes are numbered from 1, as `hidden_units_1`."""
    columns: list[tuple[str, np.ndarray]] = []
    for path, leaf in jax.tree.leaves_with_path(hyperparameters):
        name = jax.tree_util.keystr(path, simple=True, separator="_") or "hyperparameters"
        flat = leaf.reshape(len(leaf), -1).T
        several = [(f"{name}_{i + 1}", column) for i, column in enumerate(flat)]
        columns += [(name, leaf)] if leaf.ndim == 1 else several
    return columns
