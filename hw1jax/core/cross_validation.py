"""Cross-validation of any network: all folds of all trials at once, in one compiled program."""

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from hw1jax import formatting
from hw1jax.core import array_checks, checks, cost, identity, population
from hw1jax.core import folds as folds_
from hw1jax.core.folds import Fold
from hw1jax.core.tasks import Hyperparameters, Metric, Params, Task, fresh_task, with_keys
from hw1jax.core.training import Data

Say = Callable[[int, int, np.ndarray], None]  # (epochs done, num_epochs, validation loss [trial, fold])


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

    @property
    def scores(self) -> Scores:
        """Mean and standard deviation over the folds; both NaN if a fold is not finite."""
        return _over_folds(self._scored(self.val_loss))

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
        columns = _columns(self.hyperparameters)
        values = {}
        for name, each in {"loss": self.val_loss, **self.metrics}.items():
            scored = self._scored(each)
            values |= {f"split{i}_val_{name}": scored[:, i] for i in range(scored.shape[1])}
            values |= {f"{part}_val_{name}": array for part, array in _over_folds(scored)._asdict().items()}
        mean = values["mean_val_loss"]
        values["rank"] = np.where(np.isnan(mean), np.nan, 1 + np.sum(mean[None] < mean[:, None], axis=1))
        if taken := columns.keys() & values:
            raise ValueError(f"the table has a column {min(taken)} of its own: give that hyperparameter another name")
        return columns | values

    def predict(self, x: Any, trial: int | None = None) -> Any:
        """Mean over the folds of their networks' outputs (of logits, not of probabilities) on `x`, [example, ...].

        `trial`: whose networks; None: the best trial's.

        Raises:
          ValueError: without `return_params`, or there is no such trial.
        """
        x = array_checks.as_arrays(x, "x")
        each = [self._outputs(trial, fold, x) for fold in range(self.val_loss.shape[1])]
        return jax.tree.map(lambda *outputs: np.mean(outputs, axis=0), *each)

    def out_of_fold(self, trial: int | None = None) -> Any:
        """Outputs [sample, ...] on the training samples, each by the network of the fold that held it out.

        NaN if no fold did; the mean if several did. `trial`: whose networks; None: the best trial's.

        Raises:
          ValueError: without `return_params`, or there is no such trial.
        """
        num_samples = len(jax.tree.leaves(self.x)[0])
        held_out = [fold.validation for fold in self.folds]
        longest = max(map(len, held_out))  # all are padded to it, so that one program serves
        each = [
            self._outputs(trial, i, jax.tree.map(lambda a: a[np.resize(index, longest)], self.x))  # noqa: B023
            for i, index in enumerate(held_out)
        ]
        count = np.bincount(np.concatenate(held_out), minlength=num_samples)

        def put_together(*outputs: np.ndarray) -> np.ndarray:
            total = np.zeros((num_samples, *outputs[0].shape[1:]), np.result_type(outputs[0], np.float32))
            for index, values in zip(held_out, outputs, strict=True):
                np.add.at(total, index, values[: len(index)])
            times = count.reshape(-1, *[1] * (total.ndim - 1))
            return np.where(times > 0, total / np.maximum(times, 1), np.nan).astype(total.dtype)

        return jax.tree.map(put_together, *each)

    def __repr__(self) -> str:
        num_trials, num_folds, num_epochs = self.val_loss.shape
        mean, std = self.scores
        num_failed = np.count_nonzero(np.isnan(mean))
        text = f"CrossValidation({num_trials} trials x {num_folds} folds x {num_epochs} epochs"
        text += f", {num_failed} failed" if num_failed else ""
        if num_failed < num_trials:
            text += f"; the best is trial {self.best}, validation loss {mean[self.best]:.4g} +- {std[self.best]:.2g}"
            for name, values in self.metrics.items():
                text += f", {name} {_over_folds(self._scored(values)).mean[self.best]:.4g}"
            text += "".join(f", {name}={c[self.best]:.4g}" for name, c in _columns(self.hyperparameters).items())
        return textwrap.shorten(text, 400, placeholder=" ...") + ")"

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
        return population.predict(self.task, params, own, x, state=state)


def cross_validate(
    init: Callable[[jax.Array, Any], Any],
    apply: Callable[..., Any],
    loss: Callable[[Any, Any], Any],
    optimizer: Callable[..., optax.GradientTransformation],
    hyperparameters: Hyperparameters,
    x: Any,
    y: Any,
    *,
    key: jax.Array,
    num_folds: int = 3,
    num_epochs: int,
    batch_size: int,
    folds: Any = None,
    groups: Any = None,
    stratify: bool | None = None,
    weights: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    early_stopping: int | None = None,
    averaging: float | None = None,
    eval_params: Callable[[Any, Any], Any] | None = None,
    progress: bool | Say = False,
    return_params: bool = False,
) -> CrossValidation:
    """Trains every (trial, fold) pair at once, each exactly as if it had been trained alone.

    All trials of a fold see the same minibatches, which depend on (key, fold, epoch) alone; a member's initial
    parameters depend on (key, trial, fold) alone. A second call with equal functions and shapes compiles nothing.
    On a CPU, set JAX_NUM_CPU_DEVICES to the number of cores to use them all.

    Args:
      init: (key, one trial's hyperparameters) -> params, a tree of floating-point arrays.
      apply: (params, x [batch, ...], hyperparameters) -> outputs [batch, ...], each example's from itself alone. It may
        take `key`, `train`, `mask` and `state` by name (see `hw1jax.Task`).
      loss: (outputs, y) -> [batch], one value an example.
      optimizer: hyperparameters -> optax transformation. It may take `num_steps`, the number of all updates, by name.
      hyperparameters: a tree of arrays with a leading trial axis; a dict of lists will do.
      x, y: trees (dicts, tuples) of arrays [sample, ...], or one array each; data frames are taken as arrays.
      key: PRNG key of folds, minibatches, initial parameters and what is random in training.
      num_folds: folds of a shuffled k-fold partition, if `folds` is not given.
      num_epochs: passes over each fold's training part.
      batch_size: samples a step; the last batch of an epoch may be short.
      folds: pairs (training indices, validation indices), or a splitter of scikit-learn's.
      groups: [sample], for a splitter that keeps groups together.
      stratify: True if each fold has as many samples of each class, False if not; None: if `y` are classes.
      weights: [sample], at least 0: how much each sample counts in losses and metrics.
      metrics: by name (outputs, y) -> [batch], one value an example.
      early_stopping: a member stops after so many epochs without a lower validation loss; its best epoch counts.
      averaging: decay of an exponential moving average of the parameters, which is evaluated and returned instead.
      eval_params: (optimizer's state, params) -> the parameters that are evaluated and returned, as
        `optax.contrib.schedule_free_eval_params`.
      progress: True for a line now and then on standard error; or a function of (epochs done, num_epochs, validation
        loss [trial, fold]).
      return_params: True to return the trained parameters.

    Raises:
      ValueError: data, sizes or functions that don't fit each other; examples that are mixed with each other.
      TypeError: arguments of a wrong type; a call within `jax.jit`.
      Exception: the exceptions of the functions, with a note on how they were called.
    """
    array_checks.check_outside(x, y, hyperparameters, weights, key)
    array_checks.check_calls(num_folds, folds, metrics, progress)
    for name, value in (("num_epochs", num_epochs), ("batch_size", batch_size), ("early_stopping", early_stopping)):
        if value is not None or name != "early_stopping":
            array_checks.check_number(value, name)
    array_checks.check_key(key)
    data, hyperparameters, groups = _checked(x, y, weights, hyperparameters, groups)
    seed = tuple(int(word) for word in np.ravel(jax.random.key_data(key)))
    splits = folds_.make_folds(
        data.x, data.y, num_folds=num_folds, seed=seed, folds=folds, groups=groups, stratify=stratify
    )
    if rare := folds_.rare_classes(data.y, splits):
        warnings.warn(rare, stacklevel=2)
    array_checks.check_weights(data.weights, splits)
    named = tuple((metrics or {}).items())
    task = Task(init, apply, loss, optimizer, metrics=named, averaging=averaging, eval_params=eval_params)
    task = fresh_task(task)
    batch_size = min(batch_size, max(len(fold.train) for fold in splits))
    config = population.TrainConfig(num_epochs, batch_size, seed, patience=early_stopping)
    members, trials = _laid_out(task, config, key, data, splits, hyperparameters)
    say = formatting.progress_printer("cross_validate") if progress is True else progress or None
    train_loss, values, last = _train(members, trials, len(jax.tree.leaves(hyperparameters)[0]), say)
    return _result(task, early_stopping, return_params, train_loss, values, last, hyperparameters, splits, data.x)


def _checked(x: Any, y: Any, weights: Any, hyperparameters: Any, groups: Any) -> tuple[Data, Hyperparameters, Any]:
    """(data, hyperparameters, groups) as arrays that fit each other."""
    x, y = array_checks.as_arrays(x, "x"), array_checks.as_arrays(y, "y")
    if weights is not None:
        weights = array_checks.as_weights(weights)
    hyperparameters = array_checks.check_hyperparameters(hyperparameters)
    array_checks.common_length((x, y), "x and y", "sample")
    groups = None if groups is None else array_checks.as_groups(groups)
    array_checks.common_length((x, weights, groups), "x, weights and groups", "sample")
    return Data(x, y, weights), hyperparameters, groups


def _laid_out(
    task: Task,
    config: population.TrainConfig,
    key: jax.Array,
    data: Data,
    splits: list[Fold],
    hyperparameters: Hyperparameters,
) -> tuple[population.Population, population.Trials]:
    """The population of a checked task, and its trials.

    Raises:
      ValueError, TypeError: the task can't be trained on the data, or a hyperparameter has no effect.
    """
    first = jax.tree.map(lambda a: a[0], hyperparameters)
    num_steps = population.num_updates(task, splits, config.num_epochs, config.batch_size)
    params, state = checks.check_task(task, first, data, num_steps)
    checks.check_examples(task, key, first, data, num_steps)
    unused = identity.unused(identity.traced(task, first, data, config.batch_size, num_steps))
    if unused and len(unused) < len(jax.tree.leaves(first)):  # one alone may just count the trials
        text = "neither initial parameters nor training nor evaluation depend on it"
        raise ValueError(f"hyperparameters{unused[0]} has no effect: {text}")
    layout = cost.choose_layout(task, params, state, data.x, first, batch_size=config.batch_size)
    num_trials = len(jax.tree.leaves(hyperparameters)[0])
    plan = cost.make_plan(_num_slots(num_trials), len(splits), params, layout)
    num_indices = len(splits) * folds_.num_steps(splits, config.batch_size) * config.batch_size
    per_call = cost.epochs_of_a_call([config.num_epochs], cost.enough_epochs(num_indices))
    slots = np.arange(plan.num_slots) % num_trials  # slots that are left over train some trials twice
    trials = population.Trials(key, slots, jax.tree.map(lambda a: a[slots], hyperparameters))
    return population.make_population(task, plan, replace(config, epochs_per_call=per_call), data, splits), trials


def _result(
    task: Task,
    early_stopping: int | None,
    return_params: bool,
    train_loss: np.ndarray,
    values: dict[str, np.ndarray],
    last: population.Progress,
    hyperparameters: Hyperparameters,
    splits: list[Fold],
    x: Any,
) -> CrossValidation:
    """The result after the last epoch."""
    num_trials, num_epochs = len(train_loss), train_loss.shape[2]
    trained, best_epoch = last.state, None
    if last.best is not None and early_stopping is not None:
        trained, best_epoch = last.best.state, np.asarray(last.best.epoch)[:num_trials]
        has_stopped = np.arange(num_epochs)[None, None] > best_epoch[:, :, None] + early_stopping
        train_loss, values = jax.tree.map(lambda a: np.where(has_stopped, np.nan, a), (train_loss, values))
    params = state = None
    if return_params:
        params, state = jax.tree.map(lambda a: np.asarray(a)[:num_trials], population.final_variables(task, trained))
        state = with_keys(state)
    metrics = {name: values[name] for name, _ in task.metrics}
    return CrossValidation(
        train_loss, values["loss"], params, metrics, state, best_epoch, hyperparameters, splits, task, x
    )


def _train(
    members: population.Population, trials: population.Trials, num_trials: int, say: Say | None
) -> tuple[np.ndarray, dict[str, np.ndarray], population.Progress]:
    """(train_loss, validation loss and metrics by name, last progress) of the first trials, until all have stopped.

    The histories are [trial, fold, epoch], NaN after the last epoch.
    """
    config, histories, last = members.config, [], None
    for last in population.train(members, trials):
        assert last.val is not None  # every fold has a validation part
        histories.append(jax.tree.map(lambda a: a[:num_trials], (last.train_loss, last.val)))
        best_loss = last.val["loss"][:, :, -1] if last.best is None else np.asarray(last.best.val_loss)
        if say is not None:
            say(last.num_epochs, config.num_epochs, best_loss[:num_trials])
        if last.best is not None and config.patience is not None:
            since = last.num_epochs - np.asarray(last.best.epoch)
            if (since > config.patience).all():
                break
    assert last is not None  # there is an epoch
    num_left = config.num_epochs - last.num_epochs
    histories.append(jax.tree.map(lambda a: np.full_like(a[:, :, :1], np.nan).repeat(num_left, axis=2), histories[-1]))
    train_loss, values = jax.tree.map(lambda *parts: np.concatenate(parts, axis=2), *histories)
    return train_loss, values, last


def _num_slots(num_trials: int) -> int:
    """Trial count rounded up by at most a quarter, so that similar counts reuse a program.

    Up to 4 exact, up to 8 a multiple of 2, up to 32 of 4, up to 64 of 8, and so on.
    """
    step = 1 if num_trials <= 4 else 2 if num_trials <= 8 else max(4, 2 ** ((num_trials - 1).bit_length() - 3))
    return -(-num_trials // step) * step


def _over_folds(values: np.ndarray) -> Scores:
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
    return Scores(values.mean(axis=1), values.std(axis=1))


def _columns(hyperparameters: Hyperparameters) -> dict[str, np.ndarray]:
    """Arrays [trial] by name; those of an array with more axes are numbered from 1, as `hidden_units_1`."""
    columns = {}
    for path, leaf in jax.tree.leaves_with_path(hyperparameters):
        name = jax.tree_util.keystr(path, simple=True, separator="_") or "hyperparameters"
        flat = leaf.reshape(len(leaf), -1).T
        columns |= {name: leaf} if leaf.ndim == 1 else {f"{name}_{i + 1}": column for i, column in enumerate(flat)}
    return columns
