"""Cross-validation of any network: all folds of all trials at once, in one compiled program."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

from hw1jax import formatting
from hw1jax.core import array_checks, checks, cost, fitting, identity, metric_checks, population, tasks, tracebacks
from hw1jax.core import folds as folds_
from hw1jax.core.cv_result import CrossValidation
from hw1jax.core.folds import Fold
from hw1jax.core.tasks import Hyperparameters, Metric, Task, fresh_task, with_keys
from hw1jax.core.training import Data

Say = Callable[[int, int, np.ndarray], None]  # (epochs done, num_epochs, validation loss [trial, fold])


@tracebacks.short
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
    prepare: Any = tasks.unchanged,
    prepare_y: tasks.Fitted | None = None,
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
      metrics: by name (outputs, y) -> [batch], one value an example; or a metric of the whole held-out part, such as
        `hw1jax.roc_auc` or `hw1jax.whole(f)`.
      early_stopping: a member stops after so many epochs without a lower validation loss; its best epoch counts.
      averaging: decay of an exponential moving average of the parameters, which is evaluated and returned instead.
      eval_params: (optimizer's state, params) -> the parameters that are evaluated and returned, as
        `optax.contrib.schedule_free_eval_params`.
      prepare: x -> x before `apply`, or a `hw1jax.Fitted` (such as `hw1jax.standardize`) that is fitted on each fold's
        training part, or a tuple of them in order. With a `Fitted`, x may have NaN.
      prepare_y: a `hw1jax.Fitted` with an inverse: the loss takes the transformed y; metrics and predictions are in the
        unit of y.
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
    data, hyperparameters, groups = _checked(x, y, weights, hyperparameters, groups, nan=tasks.fits_x(prepare))
    seed = tuple(int(word) for word in np.ravel(jax.random.key_data(key)))
    splits = folds_.make_folds(
        data.x, data.y, num_folds=num_folds, seed=seed, folds=folds, groups=groups, stratify=stratify
    )
    if rare := folds_.rare_classes(data.y, splits):
        warnings.warn(rare, stacklevel=3)
    array_checks.check_weights(data.weights, splits)
    named = tuple((metrics or {}).items())
    task = Task(init, apply, loss, optimizer, prepare, named, averaging, eval_params, prepare_y)
    task = fresh_task(task)
    data = data._replace(statistics=fitting.statistics(task, data, splits))
    batch_size = min(batch_size, max(len(fold.train) for fold in splits))
    config = population.TrainConfig(num_epochs, batch_size, seed, patience=early_stopping)
    members, trials = _laid_out(task, config, key, data, splits, hyperparameters)
    first = jax.tree.map(lambda a: a[0], hyperparameters)
    undefined = metric_checks.undefined(task, first, fitting.of_fold(data, 0), splits)
    if said := metric_checks.in_words(undefined):
        warnings.warn(said, stacklevel=3)
    say = formatting.progress_printer("cross_validate") if progress is True else progress or None
    train_loss, values, last = _train(members, trials, len(jax.tree.leaves(hyperparameters)[0]), say)
    for name, missing in undefined.items():
        values[name][:, list(missing)] = np.nan
    result = _result(task, early_stopping, return_params, train_loss, values, last, hyperparameters, splits, data.x)
    return replace(result, undefined=undefined, statistics=data.statistics)


def _checked(
    x: Any, y: Any, weights: Any, hyperparameters: Any, groups: Any, nan: bool
) -> tuple[Data, Hyperparameters, Any]:
    """(data, hyperparameters, groups) as arrays that fit each other; `nan`: whether x may have NaN."""
    x, y = array_checks.as_arrays(x, "x", nan=nan), array_checks.as_arrays(y, "y")
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
    of_first = fitting.of_fold(data, 0)
    params, state = checks.check_task(task, first, of_first, num_steps)
    checks.check_examples(task, key, first, of_first, num_steps)
    unused = identity.unused(identity.traced(task, first, of_first, config.batch_size, num_steps))
    if unused and len(unused) < len(jax.tree.leaves(first)):  # one alone may just count the trials
        text = "neither initial parameters nor training nor evaluation depend on it"
        raise ValueError(f"hyperparameters{unused[0]} has no effect: {text}")
    layout = cost.choose_layout(
        task, params, state, data.x, first, batch_size=config.batch_size, statistics=of_first.statistics
    )
    num_trials = len(jax.tree.leaves(hyperparameters)[0])
    num_inputs = cost.num_inputs(data.x)
    plan = cost.make_plan(_num_slots(num_trials), len(splits), params, layout, num_inputs=num_inputs)
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
        best_loss = last.val["loss"][:, :, -1] if last.best is None else np.asarray(last.best.score)
        if say is not None:
            say(last.num_epochs, config.num_epochs, best_loss[:num_trials])
        if last.best is not None and population.have_stopped(config, last.best.epoch, last.num_epochs).all():
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
