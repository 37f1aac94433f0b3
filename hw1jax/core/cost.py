"""Costs of programs on this machine's devices, and the population's layout that follows from them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hw1jax.core import layout as layout_
from hw1jax.core import member_states, tasks, training
from hw1jax.core.layout import Layout
from hw1jax.core.population import Plan, Population, lowered
from hw1jax.core.tasks import Hyperparameters, Params, Task
from hw1jax.core.training import Data

CACHED_BYTES = 2**21  # bytes of members' state that fit a CPU core's cache
MOST_BYTES = 2**24  # of members' state that step together on a core, if the first layer has most of it
FEW_EPOCHS = 10  # epochs that are enough for a call: Ctrl-C takes effect between calls
FEW_INDICES = 2**14  # minibatch entries that are enough for a call
MANY_INDICES = 2**19  # minibatch entries of the longest call
STATE_COPIES = 3  # the parameters and an optimizer's two moments


def make_plan(
    num_trials: int,
    num_folds: int,
    params: Params,
    layout: Layout,
    num_devices: int | None = None,
    *,
    num_inputs: int | None = None,
) -> Plan:
    """Plans one program for all trials: split evenly over devices, on a CPU in groups that fit the cache.

    Slots may be a few more than `num_trials`, to divide evenly; `params` may be shapes; at most `num_devices` are used;
    `num_inputs` as in `trials_at_once`.
    """
    devices = jax.devices()[:num_devices]
    num_devices = min(len(devices), num_trials)
    a_device = -(-num_trials // num_devices)
    fit = a_device
    if devices[0].platform == "cpu":
        fit = trials_at_once(params, num_folds, None if layout.sequential else num_inputs)
    num_groups = -(-a_device // fit)
    at_once = -(-a_device // num_groups)
    return Plan(num_devices * num_groups * at_once, num_devices, at_once, layout)


def trials_that_fit(params: Params, num_folds: int) -> int:
    """Number of trials whose state fits a CPU core's cache; at least one."""
    return max(1, CACHED_BYTES // _state_bytes(jax.tree.leaves(params), num_folds))


def trials_at_once(params: Params, num_folds: int, num_inputs: int | None) -> int:
    """Number of trials that step together on a CPU core.

    Their first layers multiply the same batch, so they are one product, which takes less time a trial the more trials
    there are. That gains more than the cache, so only the state of the other layers must fit, in half of it.

    `num_inputs`: the numbers of an example's x; None if it isn't one array, or trials share no product.
    """
    fit = trials_that_fit(params, num_folds)
    if num_inputs is None:
        return fit
    leaves = jax.tree.leaves(params)
    later = [leaf for leaf in leaves if num_inputs not in leaf.shape and num_inputs + 1 not in leaf.shape]  # 1: a bias
    most = MOST_BYTES // _state_bytes(leaves, num_folds)
    return max(fit, min(most, CACHED_BYTES // 2 // _state_bytes(later, num_folds)))


def _state_bytes(leaves: Sequence[Any], num_folds: int) -> int:
    """Bytes of a trial's state for these leaves of its parameters; at least one."""
    return max(1, STATE_COPIES * num_folds * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))


def num_inputs(x: Any) -> int | None:
    """The numbers of an example of x [example, ...]; None if x isn't one array."""
    return math.prod(x.shape[1:]) if isinstance(x, np.ndarray) else None


def enough_epochs(num_indices: int) -> int:
    """Epochs of a call that outweigh its overhead, about a millisecond; a call can't be interrupted.

    `num_indices`: entries of an epoch's minibatches, over all folds.
    """
    enough = min(FEW_EPOCHS, -(-FEW_INDICES // num_indices))
    return max(1, min(enough, MANY_INDICES // num_indices))


def epochs_of_a_call(lengths: Sequence[int], most: int) -> int:
    """Epochs of each call, at most `most`, of one program that trains any of `lengths` epochs.

    All calls are equally long, so the last may end with empty epochs: as few as possible, then as few calls.
    """
    most = min(most, max(lengths))
    spent = {n: sum(-(-length // n) * n / length for length in lengths) for n in range(most // 2 + 1, most + 1)}
    return min(spent, key=lambda n: (round(spent[n], 9), -n))


def choose_layout(
    task: Task,
    params: Params,
    state: Any,
    x: Any,
    hyperparameters: Hyperparameters,
    *,
    batch_size: int,
    statistics: Any = None,
) -> Layout:
    """Chooses the layout for members.

    `params` and `state` may be shapes; `hyperparameters` are one trial's, `statistics` one fold's.
    """

    def apply(params: Params, x: Any, rest: tuple[Any, Hyperparameters]) -> Any:
        return tasks.evaluated(task, params, rest[0], x, rest[1], statistics)

    chosen = layout_.choose(apply, params, x, (state, hyperparameters), batch_size, jax.devices()[0].platform)
    return chosen._replace(microbatch_size=None) if tasks.takes_whole_batches(task) else chosen


def flops(task: Task, data: Data, hyperparameters: Hyperparameters) -> float:
    """Floating-point operations of one member's loss and gradient on these samples, as counted by XLA."""
    num_samples = len(jax.tree.leaves(data.x)[0])
    params, state = member_states.variable_shapes(task, hyperparameters)

    def compute(params, state, key, data, hyperparameters):
        index: Any = np.arange(num_samples)
        batch = training.gather(task, data, index, num_samples)
        return training.loss_and_gradient(task, params, batch, hyperparameters, state, key)

    costs: Any = jax.jit(compute).lower(params, state, jax.random.key(0), data, hyperparameters).cost_analysis()
    return costs["flops"]


def bytes_needed(population: Population, hyperparameters: Hyperparameters) -> int:
    """Device memory in bytes that a call of the program takes beside the data, as counted by XLA."""
    sizes: Any = lowered(population, hyperparameters).compile().memory_analysis()
    taken = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return taken - sizes.alias_size_in_bytes
