"""Checks of metrics of a whole held-out part, and the folds in which they are undefined.

Both are found by calls on random outputs: only y and weights are the folds' own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hw1jax.core import programs, tasks
from hw1jax.core.folds import Fold
from hw1jax.core.tasks import Hyperparameters, Task
from hw1jax.core.training import Data

NUM_EXTRA = 5  # rows of weight 0 beyond the longest held-out part

Undefined = Mapping[str, Sequence[int]]  # by name of a metric: the folds in which it is undefined, whatever the outputs


def undefined(task: Task, hyperparameters: Hyperparameters, data: Data, folds: Sequence[Fold]) -> Undefined:
    """Checks a task's metrics of a whole held-out part on the folds' y -> the folds in which one is undefined.

    `hyperparameters` are one trial's, the statistics of `data` one fold's.

    Raises:
      ValueError: a metric counts rows of weight 0, or is undefined in all folds.
    """
    if not task.wholes or not all(len(fold.validation) for fold in folds):
        return {}
    some = jax.tree.map(lambda a: a[:1], data.x)
    outputs = jax.eval_shape(lambda h, x: _outputs(task, h, x, data.statistics), hyperparameters, some)
    length, missing = _longest(folds) + NUM_EXTRA, {}

    def of_all(positive: bool) -> dict[str, np.ndarray]:
        padded = [_part(data, fold, outputs, length, positive) for fold in folds]
        return {name: np.asarray(values) for name, values in _of_parts(task)(*jax.tree.map(_stack, *padded)).items()}

    # Some metrics take positive outputs alone.
    named = of_all(False)
    positive = of_all(True) if any(np.isnan(values).any() for values in named.values()) else named
    use_positive = {name: bool(np.isnan(named[name]).sum() > np.isnan(positive[name]).sum()) for name in named}
    named = {name: positive[name] if use_positive[name] else values for name, values in named.items()}
    for name, values in named.items():
        missing[name] = np.flatnonzero(np.isnan(values)).tolist()
        if len(missing[name]) == len(folds):
            raise ValueError(f"metrics[{name!r}] is NaN in every fold, whatever the outputs are: y leaves it undefined")
    firsts = {name: int(np.argmin(np.isnan(values))) for name, values in named.items()}
    for i, kind in sorted({(first, use_positive[name]) for name, first in firsts.items()}):
        alone = _of_parts(task)(*jax.tree.map(lambda a: a[None], _part(data, folds[i], outputs, None, kind)))
        for name in (name for name, first in firsts.items() if (first, use_positive[name]) == (i, kind)):
            if not _is_close(named[name][i], np.asarray(alone[name])[0]):
                raise ValueError(
                    f"metrics[{name!r}] counts rows of weight 0, which fill up batches: it is {alone[name][0]:.6g} "
                    f"without and {named[name][i]:.6g} with {NUM_EXTRA} or more of them; multiply by weights"
                )
    return {name: folds for name, folds in missing.items() if folds}


def in_words(undefined: Undefined) -> str | None:
    """A line that names the folds that don't count for a metric; None without any."""
    if not undefined:
        return None
    each = [f"{name} in fold{'s' if len(i) > 1 else ''} {', '.join(map(str, i))}" for name, i in undefined.items()]
    return f"undefined for y alone, and left out of mean and deviation: {'; '.join(each)}"


def _outputs(task: Task, hyperparameters: Hyperparameters, x: Any, statistics: Any) -> Any:
    params, state = tasks.init_variables(task, jax.random.key(0), hyperparameters)
    outputs = tasks.evaluated(task, params, state, x, hyperparameters, statistics)
    return tasks.in_own_units(task, statistics, outputs)


def _longest(folds: Sequence[Fold]) -> int:
    return max(len(fold.validation) for fold in folds)


def _part(data: Data, fold: Fold, outputs: Any, length: int | None, positive: bool) -> tuple[Any, Any, np.ndarray]:
    """(random outputs, y, weights) of a fold's held-out part, filled up with training samples of weight 0.

    `positive`: outputs between 0 and 1.
    """
    index = fold.validation
    num_more = 0 if length is None else length - len(index)
    everything = np.concatenate([index, np.resize(fold.train, num_more)])
    leaves, tree = jax.tree.flatten(outputs)
    drawn = []
    for i, leaf in enumerate(leaves):
        rng = np.random.default_rng([0, i])  # of each array, so that the first rows don't depend on the length
        draw = rng.random if positive else rng.normal
        drawn.append(draw(size=(len(everything), *leaf.shape[1:])).astype(leaf.dtype))

    weights = np.ones(len(index)) if data.weights is None else data.weights[index]
    weights = np.concatenate([weights, np.zeros(num_more)]).astype(jax.dtypes.canonicalize_dtype(float))
    return tree.unflatten(drawn), jax.tree.map(lambda a: a[everything], data.y), weights


def _stack(*arrays: np.ndarray) -> np.ndarray:
    return np.stack(arrays)


@programs.quickly_for_each_task()
def _of_parts(task: Task, outputs: Any, y: Any, weights: jax.Array) -> dict[str, jax.Array]:
    """The metrics of a whole held-out part, by name, each [part]."""

    def one(part: tuple[Any, Any, jax.Array]) -> dict[str, jax.Array]:
        return {name: jnp.asarray(metric(*part), jnp.result_type(float)) for name, metric in task.wholes}

    return jax.lax.map(one, (outputs, y, weights))


def _is_close(a: Any, b: Any) -> bool:
    tolerance = float(jnp.finfo(jnp.result_type(float)).eps) ** 0.5
    return bool(np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))
