"""Greedy selection of an ensemble, with replacement (Caruana et al. 2004)."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hw1jax.core import losses, programs, tasks
from hw1jax.core.tasks import Task

NUM_ROUNDS = 50
SMALLEST = float(np.finfo(np.float32).tiny)  # the least mean probability: its logarithm is finite


def combines_probabilities(loss: Callable[..., Any]) -> bool:
    """True if networks with this loss are combined by their mean probabilities: the cross entropy, also a wrapped one.

    All others are combined by their mean outputs.
    """
    return inspect.unwrap(tasks.original(loss)) is losses.cross_entropy


def combinable(task: Task, outputs: Any) -> Any:
    """Outputs [example, ...] as they are averaged: probabilities or the outputs themselves, in float32 at least."""

    def of_array(array: np.ndarray) -> np.ndarray:
        array = np.asarray(array, np.promote_types(array.dtype, np.float32))
        if not combines_probabilities(task.loss):
            return array
        exponentials = np.exp(array - array.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    return jax.tree.map(of_array, outputs)


def greedy(scores_of: Callable[[Any, int], np.ndarray], candidates: Any, most: int) -> np.ndarray:
    """Adds in each round the candidate with which the ensemble's score is lowest -> how often each is chosen.

    Of the ensembles after each round the best counts. Ties go to fewer candidates, then to the first.

    Args:
      scores_of: (sum of what was chosen, size) -> scores [candidate] of the mean of `size`, with one more candidate.
      candidates: a tree of arrays [candidate, ...].
      most: candidates that may be chosen.

    Returns:
      int [candidate].
    """
    num_candidates = len(jax.tree.leaves(candidates)[0])
    total = jax.tree.map(lambda a: np.zeros(a.shape[1:], a.dtype), candidates)
    counts, chosen, reached = np.zeros(num_candidates, int), [], []
    for size in range(1, NUM_ROUNDS + 1):
        scores = np.array(scores_of(total, size), np.float64)
        scores[np.isnan(scores)] = np.inf
        is_new = counts == 0
        allowed = ~is_new if np.count_nonzero(counts) >= most else np.full(num_candidates, True)
        best = int(np.lexsort((np.arange(num_candidates), is_new, scores, ~allowed))[0])
        counts[best] += 1
        chosen.append(best)
        reached.append(scores[best])
        total = jax.tree.map(lambda total, own: total + own[best], total, candidates)  # noqa: B023
    return np.bincount(chosen[: int(np.argmin(reached)) + 1], minlength=num_candidates)


@programs.for_each_task(0, 1)
def scores(
    task: Task,
    names: Sequence[str],
    edges: Sequence[int],
    total: Any,
    size: Any,
    candidates: Any,
    y: Any,
    weights: jax.Array,
    statistics: Any,
) -> dict[str, jax.Array]:
    """Scores of ensembles that each have one of the candidates beside others, float [candidate] by name.

    Args:
      names: "loss" and metrics.
      edges: the rows where the folds' parts begin, but the first.
      total: the sum of the others, as `combinable`: a tree of arrays [row, ...].
      size: of the ensembles.
      candidates: a tree of arrays [candidate, row, ...].
      y: a tree of arrays [row, ...].
      weights: float [row].
      statistics: those of fitted preprocessing, [fold, ...], or None.
    """

    def one(candidate: Any) -> dict[str, jax.Array]:
        mean = jax.tree.map(lambda total, own: (total + own) / size, total, candidate)
        if combines_probabilities(task.loss):
            mean = jax.tree.map(lambda a: jnp.log(jnp.maximum(a, SMALLEST)), mean)
        return {name: _score(task, name, edges, mean, y, weights, statistics) for name in names}

    return lax.map(one, candidates)


def _score(
    task: Task, name: str, edges: Sequence[int], outputs: Any, y: Any, weights: jax.Array, statistics: Any
) -> jax.Array:
    if name in dict(task.wholes):
        return dict(task.wholes)[name](outputs, y, weights)
    values = _losses(task, edges, outputs, y, statistics) if name == "loss" else dict(task.metrics)[name](outputs, y)
    values = jnp.asarray(values, weights.dtype)
    return jnp.sum(jnp.where(weights > 0, values * weights, 0)) / jnp.sum(weights)


def _losses(task: Task, edges: Sequence[int], outputs: Any, y: Any, statistics: Any) -> jax.Array:
    """Losses [row] of outputs in the unit of y."""
    if task.prepare_y is None:
        return task.loss(outputs, y)
    parts, structure = jax.tree.flatten((outputs, y))
    found = []
    for i, part in enumerate(zip(*(jnp.split(leaf, edges) for leaf in parts), strict=True)):
        own = jax.tree.map(lambda a: a[i], statistics)  # noqa: B023
        pair = jax.tree.unflatten(structure, part)
        found.append(task.loss(*(tasks.prepared_y(task, own, values) for values in pair)))
    return jnp.concatenate(found)
