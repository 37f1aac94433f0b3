"""What a task makes of a few examples, for those who want to know whether it keeps its promises (`checks`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hw1jax import population, programs, training
from hw1jax.training import Data, Hyperparameters, Params, Task

NUM_EMPTY = 3  # places that a batch is filled up with, to see whether they count


class Alike(NamedTuple):
    """What each of a few examples gives in company and alone, [example, ...]."""

    together: Any
    alone: Any


class Found(NamedTuple):
    """What a task makes of a few examples, for those who want to know whether it keeps its promises."""

    outputs: Alike  # in evaluation
    losses: Alike  # of the outputs together
    metrics: dict[str, Alike]
    of_labels: jax.Array  # [label, 2]: losses on the first example's outputs and on outputs that are all the same
    padding: Alike | None  # outputs and state in training, in two batches that differ in what fills them up alone


def try_out(
    task: Task, num_steps: int | None, key: jax.Array, hyperparameters: Hyperparameters, data: Data, labels: np.ndarray
) -> Found:
    """What shows whether a task mixes examples, lets padding in, and which labels its loss takes.

    Args:
      task: what is trained.
      num_steps: for an optimizer that asks for it, see `training.Task`.
      key: of a new member's initial parameters.
      hyperparameters: one trial's.
      data: a few examples.
      labels: values of `y` to try, [label, ...].
    """
    one, first = jax.tree.map(lambda a: np.asarray(a)[None], hyperparameters), np.zeros(1, int)
    # By the program that makes all members, which is compiled in any case.
    member = population.new_members(task, num_steps, key, first, first, one)
    params, state = jax.tree.map(lambda a: a[0], (member.params, member.model_state))
    with jax.default_matmul_precision("float32"):
        return _try_out(task)(*programs.key_parts(key), params, state, hyperparameters, data, labels)


@programs.quickly_for_each_task(0)
def _try_out(task: Task, kind, key_data, params: Params, state, hyperparameters, data: Data, labels) -> Found:
    key = jax.random.wrap_key_data(key_data, impl=kind)
    # Away from where they begin: a last layer of zeros would hide what those before it do.
    params = jax.tree.map(lambda p: p + 0.01 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    x, y = data.x, data.y
    num_examples = len(jax.tree.leaves(x)[0])

    def one_by_one(function: Callable[..., Any], *arrays: Any) -> Any:
        alone = lax.map(lambda one: function(*jax.tree.map(lambda a: a[None], one)), arrays)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), alone)

    def in_evaluation(x: Any) -> Any:
        return training.evaluated(task, params, state, x, hyperparameters)

    def in_training(filler: Any) -> Any:
        filled = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, filler)
        mask = jnp.arange(len(jax.tree.leaves(filled)[0])) < num_examples
        made, new_state = training.outputs_of(
            task, params, state, task.prepare(filled), hyperparameters, mask=mask, key=key, train=True
        )
        return jax.tree.map(lambda a: a[:num_examples], made), new_state

    def with_other_padding() -> Alike:
        # What is drawn for a batch may depend on its size: a task that draws gets other padding, any other task none.
        num_other = NUM_EMPTY if training.wants_key(task) else 0
        first = jax.tree.map(lambda a: jnp.repeat(a[:1], NUM_EMPTY, axis=0), x)
        return Alike(in_training(first), in_training(jax.tree.map(lambda a: jnp.repeat(a[-1:], num_other, axis=0), x)))

    outputs = in_evaluation(x)
    even = jax.tree.map(lambda a: jnp.full_like(a[0], 1 / max(1, a[0].size)), outputs)
    two = jax.tree.map(lambda a, even: jnp.stack([a[0], even]), outputs, even)
    of_labels = lax.map(lambda label: task.loss(two, jax.tree.map(lambda a: jnp.stack([a, a]), label)), labels)
    values = {
        name: Alike(function(outputs, y), one_by_one(function, outputs, y))
        for name, function in (("loss", task.loss), *task.metrics)
    }
    losses = values.pop("loss")
    padding = with_other_padding() if training.takes_whole_batches(task) else None
    return Found(Alike(outputs, one_by_one(in_evaluation, x)), losses, values, of_labels, padding)
