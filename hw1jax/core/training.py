"""One member: the training of a network on one fold, as pure functions. `population` maps them over members."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.custom_batching import sequential_vmap

from hw1jax.core.layout import Layout, canonical
from hw1jax.core.losses import masked_sum
from hw1jax.core.tasks import (
    Hyperparameters,
    NumSteps,
    Params,
    Task,
    in_own_units,
    init_variables,
    optimizer_of,
    outputs_of,
    prepared,
    prepared_y,
    takes_whole_batches,
    with_keys,
)


class Average(NamedTuple):
    """Exponential moving average of a member's parameters, in float32 at least: bfloat16 loses small updates."""

    params: Params
    num_updates: jax.Array  # int32 []


class State(NamedTuple):
    """A member's training state, without typed PRNG keys; a population adds the leading axes [trial, fold]."""

    params: Params
    opt_state: optax.OptState
    model_state: Any = None  # a tree of arrays, if the task has state
    average: Average | None = None  # if the task has averaging


class Best(NamedTuple):
    """A member's best epoch so far by a loss or metric; a population adds the leading axes [trial, fold]."""

    state: State
    score: jax.Array  # float [], the lower the better; infinite before the first epoch
    epoch: jax.Array  # int32 [], from 0; -1 before the first
    values: dict[str, jax.Array]  # "loss" and metrics by name in that epoch, float []; NaN before the first


class Data(NamedTuple):
    x: Any  # a tree of arrays [sample, ...]
    y: Any  # a tree of arrays [sample, ...]
    weights: Any = None  # float [sample]; None: all equal
    statistics: Any = None  # of the member's fold (`tasks.fit`); a population adds a leading fold axis


class Batch(NamedTuple):
    x: Any  # a tree of arrays [microbatch, ...], prepared
    y: Any  # a tree of arrays [microbatch, example, ...], prepared
    real: jax.Array  # bool [microbatch, example]; False for padding
    weights: jax.Array | None = None  # float [microbatch, example]
    own_y: Any = None  # y before `prepare_y`, if the task has one


def init(task: Task, key: jax.Array, hyperparameters: Hyperparameters, *, num_steps: NumSteps | None = None) -> State:
    """The state of a new member."""
    return begin(task, *init_variables(task, key, hyperparameters), hyperparameters, num_steps=num_steps)


def begin(
    task: Task,
    params: Params,
    model_state: Any,
    hyperparameters: Hyperparameters,
    *,
    num_steps: NumSteps | None = None,
) -> State:
    """The state of a member with these initial parameters."""
    opt_state = optimizer_of(task, hyperparameters, num_steps).init(params)
    return State(params, opt_state, model_state, new_average(task, params))


def new_average(task: Task, params: Params, num_updates: Any = 0) -> Average | None:
    """The moving average before the first update, or None for a task without averaging."""
    if task.averaging is None:
        return None
    return Average(jax.tree.map(in_float32, params), jnp.asarray(num_updates, jnp.int32))


def in_float32(array: Any) -> jax.Array:
    """Casts to float32, unless the dtype is wider already: for sums over examples or updates."""
    return jnp.asarray(array, jnp.promote_types(array.dtype, jnp.float32))


def final_params(task: Task, state: State) -> Params:
    """The parameters that are evaluated and kept."""
    if state.average is not None:
        return jax.tree.map(lambda mean, own: mean.astype(own.dtype), state.average.params, state.params)
    return state.params if task.eval_params is None else task.eval_params(with_keys(state.opt_state), state.params)


def gather(task: Task, data: Data, index: jax.Array, microbatch_size: int) -> Batch:
    """Takes the samples at `index` (int [example], negative for padding) and prepares them, in microbatches."""
    if len(index) % microbatch_size:
        index = jnp.pad(index, (0, -len(index) % microbatch_size), constant_values=-1)
    index = index.reshape(-1, microbatch_size)  # [microbatch, example]
    real = index >= 0
    # Padding repeats the batch's first sample, not sample 0, which may belong to another fold.
    index = jnp.where(real, index, jnp.maximum(index[0, 0], 0))

    def take(leaf: Any) -> jax.Array:
        # As flat rows: a gather of images costs XLA:CPU a division for each pixel.
        return leaf.reshape(len(leaf), -1)[index].reshape(*index.shape, *leaf.shape[1:])

    x = jax.vmap(lambda x: prepared(task, data.statistics, x))(jax.tree.map(take, data.x))
    y, own_y = jax.tree.map(lambda leaf: leaf[index], data.y), None
    if task.prepare_y is not None:
        y, own_y = jax.vmap(lambda y: prepared_y(task, data.statistics, y))(y), y
    return Batch(x, y, real, None if data.weights is None else jnp.where(real, data.weights[index], 0), own_y)


def total_weight(real: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Sum of the weights of the real examples; their number without weights."""
    return jnp.sum(real) if weights is None else jnp.sum(weights)


def weighted_sum(values: jax.Array, batch: Batch) -> jax.Array:
    """Weighted sum of one value an example over a microbatch's real examples, in float32 at least."""
    values = in_float32(values)
    if batch.weights is None:
        return masked_sum(values, batch.real)
    return masked_sum(values * batch.weights, batch.real & (batch.weights > 0))  # an infinite one may have no weight


def loss_and_gradient(
    task: Task,
    params: Params,
    batch: Batch,
    hyperparameters: Hyperparameters,
    model_state: Any = None,
    key: jax.Array | None = None,
) -> tuple[tuple[jax.Array, Any], Params]:
    """((sum of the real examples' losses, new state), its gradient in `params`), accumulated over microbatches."""

    def microbatch_loss(params: Params, microbatch: Batch) -> tuple[jax.Array, Any]:
        outputs, new_state = outputs_of(
            task, params, model_state, microbatch.x, hyperparameters, mask=microbatch.real, key=key, train=True
        )
        return weighted_sum(task.loss(outputs, microbatch.y), microbatch), new_state

    value_and_gradient = jax.value_and_grad(microbatch_loss, has_aux=True)
    if len(batch.real) == 1:
        return value_and_gradient(params, jax.tree.map(lambda a: a[0], batch))
    if takes_whole_batches(task):
        raise ValueError("a batch of this task must not be split")

    def add_microbatch(total, microbatch: Batch):
        (value, _), gradient = value_and_gradient(params, microbatch)
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), total, (value, gradient)), None

    zeros = jax.tree.map(lambda p: jnp.zeros_like(in_float32(p)), params)
    value, gradient = lax.scan(add_microbatch, (jnp.zeros((), jnp.result_type(float)), zeros), batch)[0]
    return (value, model_state), jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params)


def step(
    task: Task,
    state: State,
    batch: Batch,
    hyperparameters: Hyperparameters,
    *,
    key: jax.Array | None = None,
    num_steps: NumSteps | None = None,
) -> tuple[State, jax.Array]:
    """One update on the mean loss of the batch's real examples -> (state, sum of their losses before it)."""
    (total, model_state), gradient = loss_and_gradient(
        task, state.params, batch, hyperparameters, state.model_state, key
    )
    weight = total_weight(batch.real, batch.weights)
    divisor = jnp.where(weight > 0, weight, 1)
    gradient = jax.tree.map(lambda g: (in_float32(g) / divisor.astype(in_float32(g).dtype)).astype(g.dtype), gradient)
    updates, opt_state = optimizer_of(task, hyperparameters, num_steps).update(
        gradient, state.opt_state, state.params, value=total / divisor.astype(total.dtype)
    )
    params = optax.apply_updates(state.params, updates)
    new = State(params, opt_state, model_state, averaged(task, state.average, params))
    # A fold with fewer samples than another ends its epochs with empty batches: they must change nothing.
    return jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), new, state), total


def averaged(task: Task, average: Average | None, params: Params) -> Average | None:
    """Updates the moving average with the parameters of one more step."""
    if average is None or task.averaging is None:
        return None
    # A smaller decay at the start, as in TensorFlow's moving averages: the first parameters are soon outdated.
    decay = jnp.minimum(task.averaging, (1 + average.num_updates) / (10 + average.num_updates))

    def mix(old: jax.Array, new: jax.Array) -> jax.Array:
        return (decay * old + (1 - decay) * new).astype(old.dtype)

    return Average(jax.tree.map(mix, average.params, params), average.num_updates + 1)


def epoch(
    task: Task,
    layout: Layout,
    state: State,
    data: Data,
    batches: jax.Array,
    hyperparameters: Hyperparameters,
    *,
    key: jax.Array | None = None,
    num_steps: NumSteps | None = None,
) -> tuple[State, jax.Array]:
    """One pass over a fold's training part -> (state, mean over the epoch of each example's loss just before its step).

    `batches` int [step, batch] are sample indices, negative for padding; `key` is the epoch's, None without random
    training.
    """

    def one(state: State, batch: Batch, hyperparameters: Hyperparameters, key: jax.Array | None, index: Any):
        steps = None if num_steps is None else NumSteps(num_steps.numbers, index)
        return step(task, state, batch, hyperparameters, key=key, num_steps=steps)

    one = canonical(one, products=layout.canonical) if layout.canonical or layout.sequential else one
    one = sequential_vmap(one) if layout.sequential else one

    def body(state: State, index_and_number: tuple[jax.Array, jax.Array | None]):
        index, number = index_and_number
        batch = gather(task, data, index, layout.microbatch_size or len(index))
        step_key = None if key is None or number is None else jax.random.fold_in(key, number)
        state, total = one(state, batch, hyperparameters, step_key, None if num_steps is None else num_steps.index)
        return state, (total, None if batch.weights is None else jnp.sum(batch.weights))

    numbers = None if key is None else jnp.arange(len(batches))
    state, (totals, weights) = lax.scan(body, state, (batches, numbers))
    weight = jnp.sum(batches >= 0) if weights is None else jnp.sum(weights)
    return state, jnp.sum(totals) / weight.astype(totals.dtype)


def evaluate(
    task: Task, layout: Layout, state: State, data: Data, val_batches: jax.Array, hyperparameters: Hyperparameters
) -> dict[str, jax.Array]:
    """Mean "loss" and metrics, and metrics of the whole, by name; `val_batches`: int [batch, example], sample indices.

    The whole has the padding too, with weight 0.
    """
    names, params = ("loss", *(name for name, _ in task.each)), final_params(task, state)

    def one(
        variables: tuple[Params, Any], batch: Batch, hyperparameters: Hyperparameters, statistics: Any
    ) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda a: a[0], batch)
        outputs, _ = outputs_of(task, *variables, batch.x, hyperparameters, mask=batch.real)
        own, own_y = in_own_units(task, statistics, outputs), batch.y if batch.own_y is None else batch.own_y
        calls = (task.loss, outputs, batch.y), *((metric, own, own_y) for _, metric in task.each)
        return tuple(weighted_sum(function(o, y), batch) for function, o, y in calls), own if task.wholes else None

    one = sequential_vmap(canonical(one)) if layout.sequential else one

    def body(totals: tuple[jax.Array, ...], index: jax.Array):
        batch = gather(task, data, index, len(index))
        sums, outputs = one((params, state.model_state), batch, hyperparameters, data.statistics)
        weight = None if batch.weights is None else jnp.sum(batch.weights)
        y = batch.y if batch.own_y is None else batch.own_y
        whole = (outputs, y, batch.real, batch.weights) if task.wholes else None
        return jax.tree.map(lambda total, value: total + value, totals, sums), (weight, whole)

    zero = jnp.zeros((), jnp.result_type(float))
    totals, (weights, whole) = lax.scan(body, (zero,) * len(names), val_batches)
    weight = jnp.sum(val_batches >= 0) if weights is None else jnp.sum(weights)
    means = {name: total / weight.astype(total.dtype) for name, total in zip(names, totals, strict=True)}
    if whole is not None:
        outputs, y, real, weights = whole
        outputs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)  # [batch, example, ..] -> [example, ..]
        y = jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), y)  # [batch, microbatch, example, ..]
        weights = (real if weights is None else weights).astype(zero.dtype).reshape(-1)
        means |= {name: jnp.asarray(metric(outputs, y, weights), zero.dtype) for name, metric in task.wholes}
    # A network that has diverged has no score: ranks and classes can be computed of NaN as well.
    finite = jnp.isfinite(means["loss"])
    return {name: value if name == "loss" else jnp.where(finite, value, jnp.nan) for name, value in means.items()}


def fit(
    task: Task,
    layout: Layout,
    state: State,
    data: Data,
    batches: jax.Array,
    val_batches: jax.Array | None,
    hyperparameters: Hyperparameters,
    *,
    key: jax.Array | None = None,
    epochs: jax.Array | None = None,
    num_steps: NumSteps | None = None,
    best: Best | None = None,
    patience: int | None = None,
    monitor: str = "loss",
    maximize: bool = False,
) -> tuple[tuple[State, Best | None], jax.Array, dict[str, jax.Array] | None]:
    """Trains for the epochs of `batches`, evaluating after each.

    Args:
      batches: int [epoch, step, batch], sample indices.
      val_batches: int [batch, example], the held-out samples; None: no evaluation.
      key: PRNG key of the member's training, if it is random.
      epochs: int [epoch], the epochs' numbers; needed with `key` or `best`.
      num_steps: for an optimizer that takes it.
      best: the best epoch so far by `monitor`, the loss or a metric, minimized unless `maximize`; epochs more than
        `patience` after it don't count.

    Returns:
      ((state, best), train_loss [epoch], validation loss and metrics by name, [epoch] each, or None).
    """

    def body(carry: tuple[State, Best | None], batches_and_number: tuple[jax.Array, jax.Array | None]):
        (state, best), (epoch_batches, number) = carry, batches_and_number
        epoch_key = None if key is None or number is None else jax.random.fold_in(key, number)
        state, train_loss = epoch(
            task, layout, state, data, epoch_batches, hyperparameters, key=epoch_key, num_steps=num_steps
        )
        if val_batches is None:
            return (state, best), (train_loss, None)
        values = evaluate(task, layout, state, data, val_batches, hyperparameters)
        if best is not None:
            assert number is not None and patience is not None
            score = -values[monitor] if maximize else values[monitor]
            better = (score < best.score) & (number - best.epoch <= patience)
            now = Best(state, score, number.astype(best.epoch.dtype), values)
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
        return (state, best), (train_loss, values)

    carry, (train_loss, values) = lax.scan(body, (state, best), (batches, epochs))
    return carry, train_loss, values
