"""Cross-validation of anyone's network: all folds of all trials at once, in one compiled program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from hw1jax import folds as folds_
from hw1jax import population
from hw1jax.training import Hyperparameters, Layout, Params, Task


class CrossValidation(NamedTuple):
    """What `cross_validate` returns. A trial's score is `val_loss[trial, :, -1].mean()`.

    Attributes:
      train_loss: float [trial, fold, epoch], mean over the epoch of each example's loss just before its step.
      val_loss: float [trial, fold, epoch], mean loss on the fold's held-out samples after the epoch.
      params: the trained parameters with leading axes [trial, fold], or None if they were not asked for.
    """

    train_loss: np.ndarray
    val_loss: np.ndarray
    params: Params | None


def cross_validate(
    init: Callable[[jax.Array, Hyperparameters], Params],
    apply: Callable[[Params, jax.Array, Hyperparameters], jax.Array],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    optimizer: Callable[[Hyperparameters], optax.GradientTransformation],
    hyperparameters: Hyperparameters,
    x: np.ndarray,
    y: np.ndarray,
    *,
    key: jax.Array,
    num_folds: int = 3,
    num_epochs: int,
    batch_size: int,
    folds: Sequence[Sequence[np.ndarray]] | None = None,
    return_params: bool = False,
) -> CrossValidation:
    """Trains every (trial, fold) pair at once, each exactly as if it had been trained alone.

    The minibatches of an epoch depend on (key, fold, epoch) alone, so all trials of a fold see the same ones; a
    member's initial parameters depend on (key, trial, fold) alone. Calling again with the same four functions and the
    same shapes compiles nothing. On a CPU, set JAX_NUM_CPU_DEVICES to the number of cores to use them all.

    Args:
      init: (key, one trial's hyperparameters) -> params, a tree of arrays.
      apply: (params, x [batch, ...], hyperparameters) -> outputs [batch, ...].
      loss: (outputs, y) -> [batch], one value an example, not its mean.
      optimizer: hyperparameters -> optax transformation; what it is made of may be traced.
      hyperparameters: a tree of arrays, each with a leading trial axis.
      x: [sample, ...].
      y: [sample, ...].
      key: PRNG key of folds, minibatches and initial parameters.
      num_folds: folds of a shuffled k-fold partition; ignored if `folds` is given.
      num_epochs: passes over each fold's training part.
      batch_size: samples a step; an epoch's last batch may be short.
      folds: pairs (training indices, validation indices) instead, for example from `stratified_k_fold`.
      return_params: whether to return the trained parameters.

    Raises:
      ValueError: sizes that don't fit each other, values that aren't finite, a loss that isn't one value an example.
      TypeError: data or hyperparameters that are not numbers, or `y` of a type that the loss doesn't take.
    """
    for name, tree in (("hyperparameters", hyperparameters), ("x", x), ("y", y)):
        _check_numbers(tree, name)
    num_trials = _common_length(hyperparameters, "hyperparameters", "trial")
    num_samples = _common_length((x, y), "x and y", "sample")
    for name, value in (("num_epochs", num_epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    seed = tuple(int(word) for word in np.ravel(jax.random.key_data(key)))
    splits = folds_.check(folds, num_samples) if folds is not None else folds_.k_fold(num_samples, num_folds, seed)
    batch_size = min(batch_size, max(len(fold.train) for fold in splits))
    task = Task(init, apply, loss, optimizer)
    params = _check_task(task, hyperparameters, x, y)

    plan = population.make_plan(num_trials, len(splits), params, Layout())
    spec = population.Spec(num_epochs, batch_size, seed, epochs_per_call=num_epochs)
    problem = population.place(task, plan, spec, x, y, splits)
    slots = np.arange(plan.slots) % num_trials  # slots that are left over train some trials twice
    filled = jax.tree.map(lambda a: np.asarray(a)[slots], hyperparameters)
    (end,) = population.train(problem, key, slots, filled)
    params = jax.tree.map(lambda a: a[:num_trials], end.state.params) if return_params else None
    assert end.val_loss is not None  # every fold has a validation part
    return CrossValidation(end.train_loss[:num_trials], end.val_loss[:num_trials], params)


def _check_numbers(tree: Any, name: str) -> None:
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        if leaf.dtype.kind not in "biufcV":  # V: bfloat16 and its like
            raise TypeError(f"{name} must be numbers, got an array of {leaf.dtype}")
        if leaf.dtype.kind in "fc" and not np.isfinite(leaf).all():
            count = np.count_nonzero(~np.isfinite(leaf))
            raise ValueError(f"{name} must be finite, got {count} of {leaf.size} values that are NaN or infinite")


def _common_length(tree: Any, name: str, axis: str) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) != 1 or not shapes[0][0]:
        raise ValueError(f"{name} must have the same leading {axis} axis, at least 1 long, got shapes {shapes}")
    return shapes[0][0]


def _check_task(task: Task, hyperparameters: Hyperparameters, x: np.ndarray, y: np.ndarray) -> Params:
    """Shapes of a member's parameters; a ValueError unless the loss is one value an example."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a)[1:], np.asarray(a).dtype), hyperparameters)
    params = jax.eval_shape(task.init, jax.random.key(0), one)
    outputs = jax.eval_shape(task.apply, params, x[:2], one)
    values = jax.eval_shape(task.loss, outputs, y[:2])
    if values.shape != (len(x[:2]),):
        raise ValueError(f"loss must return one value an example, [batch], got shape {values.shape} for a batch of 2")
    return params
