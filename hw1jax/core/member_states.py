"""States of members: new ones, and those that another program has trained."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from hw1jax.core import programs, tasks, training
from hw1jax.core.tasks import Hyperparameters, NumSteps, Params, Task
from hw1jax.core.training import State

NEW_AT_ONCE, NEW_PARAMETERS = 32, 2**17  # at most so many members, and parameters, are initialized in one call


def new_members(
    task: Task, num_steps: tuple[int, ...] | None, key: jax.Array, numbers, folds, hyperparameters, steps=None
) -> State:
    """Initializes members [member, ...] in batches, so that one program serves any number of them.

    `numbers` and `folds` are int [member], the numbers of trials and folds; `hyperparameters` a tree of arrays
    [member, ...]; `steps` int [member], indices into `num_steps` (see `population.num_updates`), by default 0.
    """
    if num_steps is not None and steps is None:
        steps = np.zeros(len(numbers), np.int32)
    members = numbers, folds, hyperparameters, steps
    shapes = variable_shapes(task, jax.tree.map(lambda a: a[0], hyperparameters))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    at_once = max(1, min(NEW_AT_ONCE, NEW_PARAMETERS // max(1, size)))
    few = np.arange(-(-len(numbers) // at_once) * at_once).reshape(-1, at_once) % len(numbers)
    batches = [jax.tree.map(lambda a: a[index], members) for index in few]  # noqa: B023
    states = [_init(task)(*programs.key_parts(key), num_steps, *batch) for batch in batches]

    # On the host, since each shape would compile a program.
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(numbers)], *states)


def select(shapes: State, states: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Returns leaves [slot, fold, ...] for a population from `states` that another program has trained.

    `states` has for each slot its trial's leaves [fold, ...], in the order of JAX's trees, `shapes` a member's state in
    the new population. Values are copied exactly; of wider arrays, the corner.

    Raises:
      ValueError: the shapes don't fit.
    """
    selected = []
    for own, *arrays in zip(jax.tree.leaves(shapes), *states, strict=True):
        selected.append(corner(np.stack(arrays), own.shape, num_leading=2).astype(own.dtype))
    return selected


def corner(array: np.ndarray, shape: Sequence[int], *, num_leading: int) -> np.ndarray:
    """Returns the first entries along each axis but the leading ones: a narrow network's part of a wide one's array.

    Raises:
      ValueError: the array is narrower than `shape`.
    """
    own = array.shape[num_leading:]
    if len(own) != len(shape) or any(wide < narrow for wide, narrow in zip(own, shape, strict=True)):
        raise ValueError(f"arrays of {own}, expected {tuple(shape)}")
    return array[(..., *map(slice, shape))]


def member_shapes(task: Task, num_steps: tuple[int, ...] | None, hyperparameters: Hyperparameters) -> State:
    """Shapes and dtypes of a member's state; `hyperparameters` are one trial's."""
    return _begin(task, num_steps).eval_shape(*variable_shapes(task, hyperparameters), hyperparameters)


def variable_shapes(task: Task, hyperparameters: Hyperparameters) -> tuple[Params, Any]:
    """Shapes and dtypes of a member's (params, state); `hyperparameters` are one trial's."""
    return _variables(task).eval_shape(jax.random.key(0), hyperparameters)


# Jitted for their shapes alone: JAX caches a trace.


@lru_cache(programs.KEPT_TASKS)
def _variables(task: Task) -> Any:
    return jax.jit(partial(tasks.init_variables, task))


@lru_cache(programs.KEPT_TASKS)
def _begin(task: Task, num_steps: tuple[int, ...] | None) -> Any:
    return jax.jit(partial(training.begin, task, num_steps=own_num_steps(num_steps, 0)))


def own_num_steps(numbers: tuple[int, ...] | None, index: Any) -> NumSteps | None:
    """Returns a member's `NumSteps`, with its `index` into the folds' numbers of updates."""
    return None if numbers is None else NumSteps(numbers, index)


@programs.quickly_for_each_task(0, 2)
def _init(task: Task, kind, key_data, num_steps, numbers, folds, hyperparameters: Hyperparameters, steps) -> State:
    key = jax.random.wrap_key_data(key_data, impl=kind)

    def member(number, fold, hyperparameters, index):
        member_key = jax.random.fold_in(jax.random.fold_in(key, number), fold)
        return training.init(task, member_key, hyperparameters, num_steps=own_num_steps(num_steps, index))

    return jax.vmap(member)(numbers, folds, hyperparameters, steps)
