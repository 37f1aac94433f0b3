"""Statistics of preprocessing that is fitted on each fold's training part."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hw1jax.core import checks, programs, tasks
from hw1jax.core.folds import Fold
from hw1jax.core.tasks import Task
from hw1jax.core.training import Data


def statistics(task: Task, data: Data, folds: Sequence[Fold]) -> Any:
    """Statistics [fold, ...] of a task (`tasks.fit`), each fold's from its training part alone; None if it has none.

    Raises:
      ValueError, TypeError: `prepare` or `prepare_y` is none, their statistics aren't finite or have other shapes in
        another fold, or what they give isn't finite; one line that names the argument.
      Exception: the exceptions of `fit`, with a note.
    """
    checks.check_prepare(task)
    if not tasks.is_fitted(task):
        return None
    num_samples = len(jax.tree.leaves(data.x)[0])
    weights = np.ones(num_samples) if data.weights is None else data.weights
    everything = jax.tree.map(jnp.asarray, (data.x, data.y, weights))
    each = []
    for i, fold in enumerate(folds):
        x, y, own_weights = jax.tree.map(lambda a: a[fold.train], everything)  # noqa: B023
        with checks.in_function("fit", task.prepare, values=x, y=y, weights=own_weights):
            each.append(jax.tree.map(np.asarray, _fit(task)(x, y, own_weights)))
        for name, own in _by_name(task, each[i]).items():
            _check(own, _by_name(task, each[0])[name], name, i)
        for name, is_finite in _are_finite(task)(each[i], *everything[:2]).items():
            if not is_finite:
                raise ValueError(
                    f"{name}= gives values in fold {i} that are NaN or infinite: fill them, as hw1jax.impute_mean does"
                )
    return jax.tree.map(lambda *folds: np.stack(folds), *each)


def check_test_set(task: Task, statistics: Any, x_test: Any, y_test: Any) -> None:
    """Raises a ValueError if x_test has NaN that `prepare` doesn't fill; `statistics` are one fold's."""
    has_nan = any(leaf.dtype.kind == "f" and np.isnan(leaf).any() for leaf in jax.tree.leaves(x_test))
    if has_nan and not _are_finite(task)(statistics, x_test, y_test)["prepare"]:
        raise ValueError("prepare= gives values of x_test that are NaN: fill them, as hw1jax.impute_mean does")


def of_fold(data: Data, fold: int) -> Data:
    """The data with the statistics of one fold, as arrays of JAX: a traced index must not meet one of numpy's."""
    return data._replace(statistics=jax.tree.map(lambda a: jnp.asarray(a[fold]), data.statistics))


def _by_name(task: Task, found: Any) -> dict[str, Any]:
    """The statistics of each `Fitted` by the argument that it is."""
    steps = tasks.steps_of(task.prepare)
    names = ["prepare" if len(steps) == 1 else f"prepare[{i}]" for i in range(len(steps))]
    each = zip(names, steps, found[0], strict=True)
    named = {name: own for name, step, own in each if isinstance(step, tasks.Fitted)}
    return named | ({} if task.prepare_y is None else {"prepare_y": found[1]})


def _check(own: Any, of_first: Any, name: str, fold: int) -> None:
    if not _is_plain(own):
        raise TypeError(f"{name}=: fit must return an array, or a dict or tuple of arrays, got {type(own).__name__}")
    shapes, first = (jax.tree.map(lambda a: a.shape, tree) for tree in (own, of_first))
    if shapes != first:
        raise ValueError(
            f"{name}=: fit returns shapes {shapes} in fold {fold} and {first} in fold 0: they must not depend on the "
            "number of samples"
        )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own)):
        raise ValueError(
            f"{name}=: fit returns NaN or infinite values in fold {fold}: a column without any value in its training "
            "part, say"
        )


def _is_plain(tree: Any) -> bool:
    """True if a model's file can hold the tree."""
    if isinstance(tree, dict):
        return all(isinstance(key, str) and _is_plain(value) for key, value in tree.items())
    if type(tree) in (tuple, list):
        return all(map(_is_plain, tree))
    return tree is None or isinstance(tree, np.ndarray)


@programs.quickly_for_each_task()
def _fit(task: Task, x: Any, y: Any, weights: jax.Array) -> Any:
    return tasks.fit(task, x, y, weights)


@programs.quickly_for_each_task()
def _are_finite(task: Task, statistics: Any, x: Any, y: Any) -> dict[str, jax.Array]:
    """Whether all prepared values are finite, by argument."""
    values = {"prepare": tasks.prepared(task, statistics, x), "prepare_y": tasks.prepared_y(task, statistics, y)}
    leaves = {name: jax.tree.leaves(tree) for name, tree in values.items()}
    return {name: jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in own])) for name, own in leaves.items()}
