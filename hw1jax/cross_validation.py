"""Cross-validation of anyone's network: all folds of all trials at once, in one compiled program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hw1jax import folds as folds_
from hw1jax import losses, population
from hw1jax.training import Hyperparameters, Params, Task

FEW_EPOCHS = 10  # of a call of the program: Ctrl-C is heard between calls
FEW_INDICES = 2**14  # places in its minibatches that make a call long enough, however few its epochs
MANY_INDICES = 2**19  # that make it too long
NUM_EXAMPLES = 4  # tried alone and together
NUM_LABELS = 1000  # tried at most


class Scores(NamedTuple):
    """Validation loss after the last epoch over a trial's folds, each float [trial]; NaN: the trial failed."""

    mean: np.ndarray
    std: np.ndarray  # of the folds themselves, with none taken off their number, as in scikit-learn's tables


class CrossValidation(NamedTuple):
    """What `cross_validate` returns.

    Attributes:
      train_loss: float [trial, fold, epoch], mean over the epoch of each example's loss just before its step.
      val_loss: float [trial, fold, epoch], mean loss on the fold's held-out samples after the epoch.
      params: the trained parameters with leading axes [trial, fold], or None if they were not asked for.
    """

    train_loss: np.ndarray
    val_loss: np.ndarray
    params: Params | None

    @property
    def scores(self) -> Scores:
        """Mean and standard deviation over the folds; both NaN for a trial of which a fold is not finite."""
        last = self.val_loss[:, :, -1]
        last = np.where(np.isfinite(last).all(axis=1, keepdims=True), last, np.nan)
        return Scores(last.mean(axis=1), last.std(axis=1))

    @property
    def best(self) -> int:
        """The trial with the lowest mean of those that did not fail; a ValueError if all did."""
        mean = self.scores.mean
        if np.isnan(mean).all():
            raise ValueError(f"no trial is the best: the validation loss of all {len(mean)} is not finite")
        return int(np.nanargmin(mean))


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
    same shapes compiles nothing. Ctrl-C is heard every few epochs. On a CPU, set JAX_NUM_CPU_DEVICES to the number of
    cores to use them all.

    Args:
      init: (key, one trial's hyperparameters) -> params, a tree of floating-point arrays, all of them trained.
      apply: (params, x [batch, ...], hyperparameters) -> outputs [batch, ...], each example's from itself alone.
      loss: (outputs, y) -> [batch], one value an example, not its mean, and from itself alone.
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
      ValueError: sizes that don't fit each other, values that aren't finite, a loss that isn't one value an example,
        examples that are mixed with each other, labels without an output, parameters that can't be trained.
      TypeError: data or hyperparameters that are not numbers, or `y` of a type that the loss doesn't take.
    """
    for name, tree in (("hyperparameters", hyperparameters), ("x", x), ("y", y)):
        _check_numbers(tree, name)
    x, y = np.asarray(x), np.asarray(y)
    num_trials = _common_length(hyperparameters, "hyperparameters", "trial")
    num_samples = _common_length((x, y), "x and y", "sample")
    for name, value in (("num_epochs", num_epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    seed = tuple(int(word) for word in np.ravel(jax.random.key_data(key)))
    splits = folds_.check(folds, num_samples) if folds is not None else folds_.k_fold(num_samples, num_folds, seed)
    batch_size = min(batch_size, max(len(fold.train) for fold in splits))
    task = Task(init, apply, loss, optimizer)
    first = jax.tree.map(lambda a: np.asarray(a)[0], hyperparameters)
    params = _check_task(task, first, x, y)
    _check_examples(task, key, first, x, y)

    layout = population.choose_layout(task, params, x, first, batch_size=batch_size)
    plan = population.make_plan(num_trials, len(splits), params, layout)
    num_indices = len(splits) * folds_.num_steps(splits, batch_size) * batch_size
    spec = population.Spec(num_epochs, batch_size, seed, _epochs_per_call(num_epochs, num_indices))
    problem = population.place(task, plan, spec, x, y, splits)
    slots = np.arange(plan.slots) % num_trials  # slots that are left over train some trials twice
    filled = jax.tree.map(lambda a: np.asarray(a)[slots], hyperparameters)
    histories, trained = [], None
    for step in population.train(problem, key, slots, filled):
        assert step.val_loss is not None  # every fold has a validation part
        histories.append((step.train_loss[:num_trials], step.val_loss[:num_trials]))
        trained = step.state.params
    train_loss, val_loss = (np.concatenate(parts, axis=2) for parts in zip(*histories, strict=True))
    trained = jax.tree.map(lambda a: a[:num_trials], trained) if return_params else None
    return CrossValidation(train_loss, val_loss, trained)


def _epochs_per_call(num_epochs: int, num_indices: int) -> int:
    """The divisor of `num_epochs` that a call advances by, where an epoch's minibatches have `num_indices` places.

    A call costs about a millisecond of its own, and nobody can interrupt it.
    """
    divisors = [n for n in range(1, num_epochs + 1) if num_epochs % n == 0]
    enough = next((n for n in divisors if n >= FEW_EPOCHS or n * num_indices >= FEW_INDICES), num_epochs)
    return max(n for n in divisors if n == 1 or (n <= enough and n * num_indices <= MANY_INDICES))


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
    """Shapes of a member's parameters; a ValueError unless they can be trained and the loss is one value an example."""
    params = jax.eval_shape(task.init, jax.random.key(0), hyperparameters)
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = ", ".join(sorted(str(name) for name in params if name != "params"))
        raise ValueError(f"init returns {others} beside params, all of which would be trained: only params can be")
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise ValueError("init returns no parameters")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = jax.tree_util.keystr(path) or "an array"
            raise ValueError(
                f"init returns {name} of {leaf.dtype}: parameters are trained, so all must be floating-point"
            )
    outputs = jax.eval_shape(task.apply, params, x[:2], hyperparameters)
    values = jax.eval_shape(task.loss, outputs, y[:2])
    if values.shape != (len(x[:2]),):
        raise ValueError(f"loss must return one value an example, [batch], got shape {values.shape} for a batch of 2")
    return params


def _check_examples(task: Task, key: jax.Array, hyperparameters: Hyperparameters, x: np.ndarray, y: np.ndarray) -> None:
    """A ValueError where examples are mixed, or `y` has a label that the loss doesn't take."""
    some = np.linspace(0, len(x) - 1, min(NUM_EXAMPLES, len(x))).astype(int)
    labels = np.unique(y) if y.ndim == 1 and y.dtype.kind in "iu" else y[:0]
    # As many whatever the labels: another number would be another program. The lowest and the highest are among them.
    count = min(NUM_LABELS, len(y)) if len(labels) else 0
    tried = labels[np.linspace(0, len(labels) - 1, count).astype(int)]
    with jax.default_matmul_precision("float32"):
        outputs, values, of_labels = population.examples_alone_and_together(
            task, key, hyperparameters, x[some], y[some], tried
        )
    if not _equal(outputs):
        raise ValueError(
            "apply mixes examples: an example's outputs change with the others of its batch. Statistics over a batch "
            "are not supported: normalise over each example's own features (as LayerNorm or GroupNorm does)"
        )
    if not _equal(values):
        raise ValueError(
            "loss mixes examples: an example's value changes with the others of its batch. Compute it from the "
            f"example's own outputs and y alone (do shapes broadcast? {_shape(outputs)} outputs, y {y[some].shape})"
        )
    wrong = tried[~np.isfinite(np.asarray(of_labels)).any(axis=1)]
    if len(wrong):
        message = f"the loss of label {wrong[0]} of y is not finite"
        if task.loss is losses.cross_entropy:
            num_outputs = _shape(outputs)[-1]
            message = f"y has labels {labels[0]} to {labels[-1]}, {num_outputs} outputs take 0 to {num_outputs - 1}"
        raise ValueError(message)


def _shape(outputs: population.Alike) -> Any:
    """Of the outputs of the few examples: one shape, or those of all leaves."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(outputs.together)]
    return shapes[0] if len(shapes) == 1 else shapes


def _equal(found: population.Alike) -> bool:
    """Whether both are the same but for rounding, measured by the largest value."""

    def same(together: jax.Array, alone: jax.Array) -> bool:
        if together.shape != alone.shape:
            return False
        tolerance = float(jnp.finfo(together.dtype).eps) ** 0.5 if jnp.issubdtype(together.dtype, jnp.inexact) else 0
        a, b = (np.asarray(v).astype(np.result_type(v.dtype, np.float32)) for v in (together, alone))
        largest = np.max(np.abs(a), where=np.isfinite(a), initial=0)
        return np.allclose(b, a, rtol=0, atol=tolerance * largest, equal_nan=True)

    return all(jax.tree.leaves(jax.tree.map(same, found.together, found.alone)))
