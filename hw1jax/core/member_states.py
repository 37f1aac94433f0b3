"""Members of a population: their initial states, and states that other programs have trained."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from hw1jax.core import programs, training
from hw1jax.core.tasks import Hyperparameters, NumSteps, Task
from hw1jax.core.training import State

NEW_AT_ONCE, NEW_PARAMETERS = 32, 2**17  # members made together, at most, and their parameters: a call's milliseconds


def new_members(
    task: Task, num_steps: tuple[int, ...] | None, key: jax.Array, numbers, folds, hyperparameters, steps=None
) -> State:
    """New members [member, ...], made a few at a time: one program makes any number of them.

    Args:
      task: what is trained.
      num_steps: the numbers of updates that there are, for an optimizer that asks for its own.
      key: of the whole search.
      numbers: int [member], of each one's trial.
      folds: int [member], of each one's fold.
      hyperparameters: a tree of arrays [member, ...].
      steps: int [member], which of `num_steps` is each one's; the first, if not given.
    """
    if num_steps is not None and steps is None:
        steps = np.zeros(len(numbers), np.int32)
    members = numbers, folds, hyperparameters, steps
    shapes = _initial(task, num_steps).eval_shape(key, jax.tree.map(lambda a: a[0], hyperparameters))
    size = sum(leaf.size for leaf in jax.tree.leaves((shapes.params, shapes.model_state)))
    at_once = max(1, min(NEW_AT_ONCE, NEW_PARAMETERS // max(1, size)))
    few = np.arange(-(-len(numbers) // at_once) * at_once).reshape(-1, at_once) % len(numbers)
    pieces = [jax.tree.map(lambda a: a[index], members) for index in few]  # noqa: B023
    made = [_init(task)(*programs.key_parts(key), num_steps, *piece) for piece in pieces]

    # On the host, as each shape would be a program.
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(numbers)], *made)


def select(shapes: State, states: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The leaves [slot, fold, ...] of members that another program has trained so far, as those of a population.

    What they have is copied exactly: where they are narrower here, the corners that they have of the arrays.

    Args:
      shapes: of a member's state where they go on.
      states: of each slot's trial, the leaves [fold, ...] of its state, in the order of JAX's trees.

    Raises:
      ValueError: the states are those of other networks.
    """
    selected = []
    for own, *arrays in zip(jax.tree.leaves(shapes), *states, strict=True):
        selected.append(corner(np.stack(arrays), own.shape, num_leading=2).astype(own.dtype))
    return selected


def corner(array: np.ndarray, shape: Sequence[int], *, num_leading: int) -> np.ndarray:
    """What a narrower network has of a wide one's array: the first of each axis but the leading ones.

    Raises:
      ValueError: the array is no wide one's.
    """
    own = array.shape[num_leading:]
    if len(own) != len(shape) or any(wide < narrow for wide, narrow in zip(own, shape, strict=True)):
        raise ValueError(f"arrays of {own}, expected {tuple(shape)}")
    return array[(..., *map(slice, shape))]


def member_shapes(task: Task, num_steps: tuple[int, ...] | None, hyperparameters: Hyperparameters) -> State:
    """A member's state as shapes and dtypes; `hyperparameters` are one trial's."""
    return _initial(task, num_steps).eval_shape(jax.random.key(0), hyperparameters)


@lru_cache(programs.KEPT_TASKS)
def _initial(task: Task, num_steps: tuple[int, ...] | None) -> Any:
    """What makes a member: never run, but JAX keeps what it comes to, and need not trace the network each time."""
    return jax.jit(partial(training.init, task, num_steps=own_num_steps(num_steps, 0)))


def own_num_steps(numbers: tuple[int, ...] | None, index: Any) -> NumSteps | None:
    """A member's number of updates: the one at `index` among those that folds have."""
    return None if numbers is None else NumSteps(numbers, index)


@programs.quickly_for_each_task(0, 2)
def _init(task: Task, kind, key_data, num_steps, numbers, folds, hyperparameters: Hyperparameters, steps) -> State:
    """New members; numbers, folds and steps int [member], hyperparameters [member, ...]."""
    key = jax.random.wrap_key_data(key_data, impl=kind)

    def member(number, fold, hyperparameters, index):
        member_key = jax.random.fold_in(jax.random.fold_in(key, number), fold)
        return training.init(task, member_key, hyperparameters, num_steps=own_num_steps(num_steps, index))

    return jax.vmap(member)(numbers, folds, hyperparameters, steps)
