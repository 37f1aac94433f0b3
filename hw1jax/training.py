"""One member: a network in training on one fold. Pure functions; how many members there are is decided elsewhere."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.custom_batching import sequential_vmap

from hw1jax.layout import Layout, canonical_convolutions
from hw1jax.losses import masked_sum

Params = Any  # a tree of arrays
Hyperparameters = Any  # a tree of arrays, one trial's: traced, and different from trial to trial


def unchanged(x: jax.Array) -> jax.Array:
    """The `prepare` of a task whose batches need none."""
    return x


class Task(NamedTuple):
    """What is trained, as pure functions. They are static: another task is another program.

    Attributes:
      init: (key, hyperparameters) -> params.
      apply: (params, x, hyperparameters) -> outputs, on a prepared batch.
      loss: (outputs, y) -> [batch], one value an example.
      optimizer: (hyperparameters) -> optax transformation.
      prepare: x -> x, what a batch undergoes before `apply`. As it depends on no trial, it is done once for all the
        trials of a fold that share a program.
    """

    init: Callable[[jax.Array, Hyperparameters], Params]
    apply: Callable[[Params, jax.Array, Hyperparameters], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    optimizer: Callable[[Hyperparameters], optax.GradientTransformation]
    prepare: Callable[[jax.Array], jax.Array] = unchanged


class State(NamedTuple):
    """A member in training; a population adds the leading axes [trial, fold]."""

    params: Params
    opt_state: optax.OptState


class Data(NamedTuple):
    x: jax.Array | np.ndarray  # [sample, ...]
    y: jax.Array | np.ndarray  # [sample, ...]


class Batch(NamedTuple):
    x: jax.Array  # [chunk, ...], prepared
    y: jax.Array  # [chunk, example, ...]
    real: jax.Array  # bool [chunk, example]; False where a short batch is padded


def init(task: Task, key: jax.Array, hyperparameters: Hyperparameters) -> State:
    """A new member."""
    params = task.init(key, hyperparameters)
    return State(params, task.optimizer(hyperparameters).init(params))


def gather(task: Task, data: Data, index: jax.Array, chunk_size: int) -> Batch:
    """The samples at `index` (int [example], negative where there is none), prepared, in chunks."""
    if len(index) % chunk_size:
        index = jnp.pad(index, (0, -len(index) % chunk_size), constant_values=-1)
    index = index.reshape(-1, chunk_size)  # [chunk, example]
    real = index >= 0
    # An empty place takes the batch's first sample, not sample 0: that one may belong to another fold.
    index = jnp.where(real, index, jnp.maximum(index[0, 0], 0))
    # Taken as flat rows: a gather of images costs XLA:CPU a division for each pixel's place.
    x = data.x.reshape(len(data.x), -1)[index].reshape(*index.shape, *data.x.shape[1:])
    return Batch(jax.vmap(task.prepare)(x), data.y[index], real)


def loss_and_gradient(
    task: Task, params: Params, batch: Batch, hyperparameters: Hyperparameters
) -> tuple[jax.Array, Params]:
    """(sum of the losses of the real examples, its gradient in `params`), added up over the chunks."""

    def chunk_loss(params: Params, chunk: Batch) -> jax.Array:
        outputs = task.apply(params, chunk.x, hyperparameters)
        return masked_sum(task.loss(outputs, chunk.y), chunk.real)

    if len(batch.real) == 1:
        return jax.value_and_grad(chunk_loss)(params, jax.tree.map(lambda a: a[0], batch))

    def add_chunk(total, chunk: Batch):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(chunk_loss)(params, chunk)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return lax.scan(add_chunk, (jnp.zeros((), jnp.result_type(float)), zeros), batch)[0]


def step(task: Task, state: State, batch: Batch, hyperparameters: Hyperparameters) -> tuple[State, jax.Array]:
    """One update on the mean loss of the batch's real examples -> (state, sum of their losses before it)."""
    total, gradient = loss_and_gradient(task, state.params, batch, hyperparameters)
    count = jnp.sum(batch.real)
    gradient = jax.tree.map(lambda g: g / jnp.maximum(count, 1).astype(g.dtype), gradient)
    updates, opt_state = task.optimizer(hyperparameters).update(gradient, state.opt_state, state.params)
    new = State(optax.apply_updates(state.params, updates), opt_state)
    # A fold with fewer samples than another ends its epochs with empty batches, which must change nothing.
    return jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), new, state), total


def epoch(
    task: Task, layout: Layout, state: State, data: Data, batches: jax.Array, hyperparameters: Hyperparameters
) -> tuple[State, jax.Array]:
    """One pass over a fold's training part.

    Args:
      batches: int [step, batch], sample indices, negative where there is none.

    Returns:
      (state, mean over the epoch of each real example's loss just before the step that used it).
    """

    def one(state: State, batch: Batch, hyperparameters: Hyperparameters):
        return step(task, state, batch, hyperparameters)

    one = sequential_vmap(canonical_convolutions(one)) if layout.one_by_one else one

    def body(state: State, index: jax.Array):
        batch = gather(task, data, index, layout.chunk_size or len(index))
        return one(state, batch, hyperparameters)

    state, totals = lax.scan(body, state, batches)
    return state, jnp.sum(totals) / jnp.sum(batches >= 0).astype(totals.dtype)


def evaluate(
    task: Task, layout: Layout, params: Params, data: Data, pieces: jax.Array, hyperparameters: Hyperparameters
) -> jax.Array:
    """Mean loss over the real samples of `pieces`, int [piece, example], negative where there is none."""

    def one(params: Params, piece: Batch, hyperparameters: Hyperparameters) -> jax.Array:
        outputs = task.apply(params, piece.x[0], hyperparameters)
        return masked_sum(task.loss(outputs, piece.y[0]), piece.real[0])

    one = sequential_vmap(canonical_convolutions(one)) if layout.one_by_one else one

    def body(total: jax.Array, index: jax.Array):
        return total + one(params, gather(task, data, index, len(index)), hyperparameters), None

    total, _ = lax.scan(body, jnp.zeros((), jnp.result_type(float)), pieces)
    return total / jnp.sum(pieces >= 0).astype(total.dtype)


def fit(
    task: Task,
    layout: Layout,
    state: State,
    data: Data,
    batches: jax.Array,
    pieces: jax.Array | None,
    hyperparameters: Hyperparameters,
) -> tuple[State, jax.Array, jax.Array | None]:
    """As many epochs as `batches` has.

    Args:
      batches: int [epoch, step, batch], sample indices.
      pieces: int [piece, example], the held-out samples, evaluated after each epoch; None: there are none.

    Returns:
      (state, train_loss [epoch], val_loss [epoch] or None).
    """

    def body(state: State, epoch_batches: jax.Array):
        state, train_loss = epoch(task, layout, state, data, epoch_batches, hyperparameters)
        if pieces is None:
            return state, (train_loss, None)
        return state, (train_loss, evaluate(task, layout, state.params, data, pieces, hyperparameters))

    state, (train_loss, val_loss) = lax.scan(body, state, batches)
    return state, train_loss, val_loss
