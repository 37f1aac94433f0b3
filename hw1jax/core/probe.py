"""Trial evaluations of a task on a few examples, for `checks` and for padded networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hw1jax.core import member_states, programs, tasks, training
from hw1jax.core.tasks import Hyperparameters, NumSteps, Params, Task
from hw1jax.core.training import Data

NUM_EMPTY = 3  # padding examples of a batch


class Alike(NamedTuple):
    """Values [example, ...] computed in one batch, and one example at a time."""

    together: Any
    alone: Any


class Found(NamedTuple):
    """Results of `try_out`."""

    outputs: Alike  # in evaluation
    losses: Alike  # of the batch's outputs, and with `prepare_y` these in the unit of y
    metrics: dict[str, Alike]
    of_labels: jax.Array  # [label, 2]: losses on the first example's outputs and on outputs that are all equal
    padding: Alike | None  # outputs and state in training, of two batches that differ in their padding alone


def try_out(
    task: Task,
    num_steps: tuple[int, ...] | None,
    key: jax.Array,
    hyperparameters: Hyperparameters,
    data: Data,
    labels: np.ndarray,
) -> Found:
    """Evaluates a few examples (`data`) in a batch and alone, with two paddings, and the loss of each label.

    `key` is that of a new member, `hyperparameters` are one trial's, `labels` [label, ...] are values of `y`.
    """
    one, first = jax.tree.map(lambda a: np.asarray(a)[None], hyperparameters), np.zeros(1, int)
    # By the program that makes all members: it is compiled anyway.
    member = member_states.new_members(task, num_steps, key, first, first, one)
    params, state = jax.tree.map(lambda a: a[0], (member.params, member.model_state))
    with jax.default_matmul_precision("float32"):
        return _try_out(task)(*programs.key_parts(key), params, state, hyperparameters, data, labels)


@programs.quickly_for_each_task(0)
def _try_out(task: Task, kind, key_data, params: Params, state, hyperparameters, data: Data, labels) -> Found:
    key = jax.random.wrap_key_data(key_data, impl=kind)
    # Not the initial parameters: a last layer of zeros would hide the layers before it.
    params = jax.tree.map(lambda p: p + 0.01 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    params = lax.optimization_barrier(params)  # else XLA computes with more bits in one of two uses
    x, y, statistics = data.x, tasks.prepared_y(task, data.statistics, data.y), data.statistics
    num_examples = len(jax.tree.leaves(x)[0])

    def one_by_one(function: Callable[..., Any], *arrays: Any) -> Any:
        alone = lax.map(lambda one: function(*jax.tree.map(lambda a: a[None], one)), arrays)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), alone)

    def in_evaluation(x: Any) -> Any:
        return tasks.evaluated(task, params, state, x, hyperparameters, statistics)

    def in_training(filler: Any) -> Any:
        filled = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, filler)
        mask = jnp.arange(len(jax.tree.leaves(filled)[0])) < num_examples
        filled = tasks.prepared(task, statistics, filled)
        made, new_state = tasks.outputs_of(task, params, state, filled, hyperparameters, mask=mask, key=key, train=True)
        return jax.tree.map(lambda a: a[:num_examples], made), new_state

    def with_other_padding() -> Alike:
        # Random numbers may depend on the batch size, so a random task gets other padding, any other task none.
        num_other = NUM_EMPTY if tasks.takes_key(task) else 0
        first = jax.tree.map(lambda a: jnp.repeat(a[:1], NUM_EMPTY, axis=0), x)
        return Alike(in_training(first), in_training(jax.tree.map(lambda a: jnp.repeat(a[-1:], num_other, axis=0), x)))

    outputs = in_evaluation(x)
    even = jax.tree.map(lambda a: jnp.full_like(a[0], 1 / max(1, a[0].size)), outputs)
    two = jax.tree.map(lambda a, even: jnp.stack([a[0], even]), outputs, even)
    labels = labels if task.prepare_y is None else jax.tree.map(lambda a: a[:0], y)  # there are none
    of_labels = lax.map(lambda label: task.loss(two, jax.tree.map(lambda a: jnp.stack([a, a]), label)), labels)
    own = tasks.in_own_units(task, statistics, outputs)

    def loss_of(outputs: Any, own_y: Any) -> Any:
        """Also the outputs in the unit of y, if that is another."""
        own = () if task.prepare_y is None else tasks.in_own_units(task, statistics, outputs)
        return task.loss(outputs, tasks.prepared_y(task, statistics, own_y)), own

    values = {name: Alike(metric(own, data.y), one_by_one(metric, own, data.y)) for name, metric in task.each}
    losses = Alike(loss_of(outputs, data.y), one_by_one(loss_of, outputs, data.y))
    padding = with_other_padding() if tasks.takes_whole_batches(task) else None
    return Found(Alike(outputs, one_by_one(in_evaluation, x)), losses, values, of_labels, padding)


PADDED_ROUNDING = 1e-3  # tolerance relative to the largest value, between padded and unpadded networks


def padding_changes(
    wide: Task,
    narrow: Task,
    num_steps: tuple[int, ...] | None,
    key: jax.Array,
    hyperparameters: Hyperparameters,
    data: Data,
) -> str | None:
    """Returns which part of a trial's network differs between the padded task (`wide`) and the task at its own widths.

    None if nothing differs. `key` is that of a new member, `hyperparameters` are one trial's, `data` a few examples.
    """
    one, first = jax.tree.map(lambda a: np.asarray(a)[None], hyperparameters), np.zeros(1, int)
    new = member_states.new_members(wide, num_steps, key, first, first, one)
    padded = jax.tree.map(lambda a: np.asarray(a[0]), (new.params, new.model_state))
    with jax.default_matmul_precision("float32"):
        begin = (*programs.key_parts(key), num_steps)
        own, changed, *narrow_way = _first_step(narrow)(*begin, None, hyperparameters, data)
        if not _same(padded, own):
            return "its initial parameters"
        _, _, *wide_way = _first_step(wide)(*begin, jax.tree.map(_with_corner, padded, changed), hyperparameters, data)
    found = wide_way, narrow_way
    for name, one_way, other in zip(("its outputs", "its loss's gradient"), *(f[:2] for f in found), strict=True):
        if not _same(one_way, other):
            return name
    # By the norm: some optimizers take a step by the sign of a gradient that is 0 up to rounding.
    (_, _, padded), (_, _, own) = found
    with np.errstate(invalid="ignore"):  # of learning rates with which a trial diverges at once
        off = jax.tree.map(lambda a, b: np.sum(np.square(np.float64(_corner(a, b)) - np.float64(b))), padded, own)
    size = jax.tree.map(lambda b: np.sum(np.square(np.float64(b))), own)
    if sum(jax.tree.leaves(off)) > 0.01**2 * sum(jax.tree.leaves(size)):
        return "its first update"
    return None


def _corner(wide: Any, narrow: Any) -> np.ndarray:
    return np.asarray(wide)[tuple(map(slice, np.shape(narrow)))]


def _with_corner(wide: np.ndarray, narrow: Any) -> np.ndarray:
    changed = np.array(wide)
    changed[tuple(map(slice, np.shape(narrow)))] = narrow
    return changed


def _same(wide: Any, narrow: Any) -> bool:
    """Returns True if the corners of `wide` equal `narrow`, up to rounding."""
    if jax.tree.structure(wide) != jax.tree.structure(narrow):
        return False

    def same(wide: Any, narrow: Any) -> bool:
        corner, own = _corner(wide, narrow).astype(np.float64), np.asarray(narrow, np.float64)
        largest = np.max(np.abs(own), where=np.isfinite(own), initial=0)
        return corner.shape == own.shape and np.allclose(
            corner, own, rtol=0, atol=PADDED_ROUNDING * largest, equal_nan=True
        )

    return all(jax.tree.leaves(jax.tree.map(same, wide, narrow)))


@programs.quickly_for_each_task(0, 2)
def _first_step(task: Task, kind, key_data, num_steps, variables, hyperparameters, data: Data):
    """-> (variables of a new member, those of the step, and of one training step outputs, gradient, update).

    The step begins at `variables`, (params, state); None: at the new member's, a little changed. If training is random,
    the outputs are those of evaluation.
    """
    key, new = jax.random.wrap_key_data(key_data, impl=kind), None
    if variables is None:
        new = tasks.init_variables(task, jax.random.fold_in(jax.random.fold_in(key, 0), 0), hyperparameters)
        # Not the initial parameters: a last layer of zeros would hide the layers before it.
        variables = jax.tree.map(
            lambda a: a + (0.01 * jnp.cos(jnp.arange(a.size))).astype(a.dtype).reshape(jnp.shape(a)), new
        )
    params, state = variables
    is_random = tasks.takes_key(task)
    steps = None if num_steps is None else NumSteps(num_steps)
    mask = jnp.ones(len(jax.tree.leaves(data.y)[0]), bool)

    def loss(params):
        outputs, _ = tasks.outputs_of(
            task,
            params,
            state,
            tasks.prepared(task, data.statistics, data.x),
            hyperparameters,
            mask=mask,
            key=None if is_random else key,
            train=not is_random,
        )
        y = tasks.prepared_y(task, data.statistics, data.y)
        return jnp.mean(training.in_float32(task.loss(outputs, y))), outputs

    (value, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    rule = tasks.optimizer_of(task, hyperparameters, steps)
    updates, _ = rule.update(gradient, rule.init(params), params, value=value)
    return new, variables, outputs, gradient, updates
