"""One member: a network in training on one fold. Pure functions; how many members there are is decided elsewhere."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.custom_batching import sequential_vmap

from hw1jax.layout import Layout, canonical_convolutions
from hw1jax.losses import masked_sum

Params = Any  # a tree of arrays
Hyperparameters = Any  # a tree of arrays, one trial's: traced, and different from trial to trial
Metric = Callable[[Any, Any], Any]  # (outputs, y) -> [batch], one value an example

MAY_ASK = ("key", "train", "state", "mask")  # what `apply` gets by name after its first three arguments


def unchanged(x: Any) -> Any:
    """The `prepare` of a task whose batches need none."""
    return x


class Task(NamedTuple):
    """What is trained, as pure functions. They are static: another task is another program.

    `apply` may have more parameters than its three, of these names, and is then given

    - key: a PRNG key in training, by (key of the search, trial, fold, epoch, step) alone; None in evaluation.
    - train: True in training, False in evaluation; plain Python.
    - mask: bool [batch], False for the places that fill up a short batch: they must not enter any statistics (Flax's
      BatchNorm takes mask[:, None] where x is [batch, feature]).
    - state: what is not trained but changes in training (batch statistics). `init` then returns (params, state), and
      `apply` (outputs, new state); what it returns in evaluation is not kept.

    Attributes:
      init: (key, hyperparameters) -> params, a tree of floating-point arrays.
      apply: (params, x, hyperparameters) -> outputs, on a prepared batch.
      loss: (outputs, y) -> [batch], one value an example.
      optimizer: (hyperparameters) -> optax transformation. It may ask for `num_steps`, an int: the number of all
        updates of the member's own fold, for a schedule. A transformation whose `update` takes `value` is given the
        loss.
      prepare: x -> x, what a batch undergoes before `apply`. As it depends on no trial, it is done once for all the
        trials of a fold that share a program.
      metrics: pairs (name, (outputs, y) -> [batch]), evaluated beside the loss.
      averaging: decay of the parameters' exponential moving average, in (0, 1), which is then what is evaluated and
        kept (Polyak and Juditsky 1992); None: the last parameters are.
      eval_params: (opt_state, params) -> params, those that are evaluated and kept, of an optimizer that trains at
        other points than it returns, as `optax.contrib.schedule_free_eval_params`; None: those that are trained.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    loss: Callable[[Any, Any], Any]
    optimizer: Callable[..., optax.GradientTransformation]
    prepare: Callable[[Any], Any] = unchanged
    metrics: tuple[tuple[str, Metric], ...] = ()
    averaging: float | None = None
    eval_params: Callable[[Any, Any], Any] | None = None


@dataclass(frozen=True)
class NumSteps:
    """The number of all updates of a member's fold, where an optimizer asks for it.

    Optimizers need it as a Python number (schedules of optax decide by it), so there is one for each number that a
    fold has, and each member takes the updates of its own.
    """

    numbers: tuple[int, ...]  # those of all folds, each once
    index: Any = 0  # int [], traced: which of them is the member's


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyData:
    """A typed PRNG key within a state, as plain numbers: numpy, files and `jnp.where` across devices know no keys."""

    data: Any  # uint32 [..., words]
    impl: Any = field(metadata={"static": True})


def without_keys(tree: Any) -> Any:
    """The tree with `KeyData` for typed PRNG keys: as states are kept."""

    def convert(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return leaf
        return KeyData(jax.random.key_data(leaf), jax.random.key_impl(leaf))

    return jax.tree.map(convert, tree)


def with_keys(tree: Any) -> Any:
    """The tree with typed PRNG keys for `KeyData`: as a task's functions, and people, have it."""

    def convert(leaf: Any) -> Any:
        return jax.random.wrap_key_data(leaf.data, impl=leaf.impl) if isinstance(leaf, KeyData) else leaf

    return jax.tree.map(convert, tree, is_leaf=lambda leaf: isinstance(leaf, KeyData))


class Average(NamedTuple):
    """The exponential moving average of a member's parameters, in float32 at least: bfloat16 loses small updates."""

    params: Params
    num_updates: jax.Array  # int32 []


class State(NamedTuple):
    """A member in training, without typed PRNG keys; a population adds the leading axes [trial, fold]."""

    params: Params
    opt_state: optax.OptState
    model_state: Any = None  # a tree of arrays, of a task that has state
    average: Average | None = None  # of a task with averaging


class Best(NamedTuple):
    """The epoch of a member's lowest validation loss so far; a population adds the leading axes [trial, fold]."""

    state: State
    val_loss: jax.Array  # float []; infinite before the first epoch
    epoch: jax.Array  # int32 []; from 0, -1 before the first


class Data(NamedTuple):
    x: Any  # a tree of arrays [sample, ...]
    y: Any  # a tree of arrays [sample, ...]
    weights: Any = None  # float [sample]; None: all count the same


class Batch(NamedTuple):
    x: Any  # a tree of arrays [chunk, ...], prepared
    y: Any  # a tree of arrays [chunk, example, ...]
    real: jax.Array  # bool [chunk, example]; False where a short batch is padded
    weights: jax.Array | None = None  # float [chunk, example]


def asks(function: Callable[..., Any], num_given: int, names: Sequence[str]) -> tuple[str, ...]:
    """Which of the names the function has among its parameters after the first `num_given`."""
    parameters = {parameter.name for parameter in _parameters(function)[num_given:]}
    return tuple(name for name in names if name in parameters)


def required(function: Callable[..., Any], num_given: int) -> list[str]:
    """The names of the parameters after the first `num_given` that the function can't do without."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    rest = _parameters(function)[num_given:]
    return [
        parameter.name for parameter in rest if parameter.default is parameter.empty and parameter.kind not in several
    ]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # one that doesn't say
        return []


def has_state(task: Task) -> bool:
    """Whether the task has state that is not trained."""
    return "state" in asks(task.apply, 3, MAY_ASK)


def wants_key(task: Task) -> bool:
    """Whether the task's training is random."""
    return "key" in asks(task.apply, 3, MAY_ASK)


def takes_whole_batches(task: Task) -> bool:
    """Whether a batch may not be cut in chunks: what is drawn for it, or averaged over it, belongs to all of it."""
    return bool(asks(task.apply, 3, MAY_ASK))


def wants_num_steps(task: Task) -> bool:
    """Whether the optimizer asks for the number of updates."""
    return bool(asks(task.optimizer, 1, ("num_steps",)))


def init_variables(task: Task, key: jax.Array, hyperparameters: Hyperparameters) -> tuple[Params, Any]:
    """(params, state) of a new member, without typed PRNG keys; the state is None for a task that has none."""
    made = task.init(key, hyperparameters)
    if not has_state(task):
        return made, None
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError("init must return (params, state), as apply asks for state")
    params, state = made
    return params, without_keys(state)


def outputs_of(
    task: Task,
    params: Params,
    state: Any,
    x: Any,
    hyperparameters: Hyperparameters,
    *,
    mask: jax.Array,
    key: jax.Array | None = None,
    train: bool = False,
) -> tuple[Any, Any]:
    """(outputs, new state) of a prepared batch."""
    wanted = asks(task.apply, 3, MAY_ASK)
    given = {"key": key, "train": train, "state": with_keys(state), "mask": mask}
    made = task.apply(params, x, hyperparameters, **{name: given[name] for name in wanted})
    if "state" not in wanted:
        return made, state
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError("apply must return (outputs, state), as it asks for state")
    outputs, new_state = made
    return outputs, without_keys(new_state)


def evaluated(
    task: Task, params: Params, state: Any, x: Any, hyperparameters: Hyperparameters, mask: jax.Array | None = None
) -> Any:
    """The outputs of a batch that is not prepared yet, as in evaluation."""
    mask = jnp.ones(len(jax.tree.leaves(x)[0]), bool) if mask is None else mask
    return outputs_of(task, params, state, task.prepare(x), hyperparameters, mask=mask)[0]


def optimizer_of(
    task: Task, hyperparameters: Hyperparameters, num_steps: NumSteps | None
) -> optax.GradientTransformationExtraArgs:
    """The member's optimizer; `num_steps` for one that asks for it.

    Its `update` takes the loss as `value`, and its state has no typed PRNG keys.
    """
    if num_steps is None or not wants_num_steps(task):
        return _without_keys(_takes_value(task.optimizer(hyperparameters)))
    each = [
        _without_keys(_takes_value(task.optimizer(hyperparameters, num_steps=number))) for number in num_steps.numbers
    ]
    if len(each) == 1:
        return each[0]

    def init(params: Params) -> optax.OptState:
        return lax.switch(num_steps.index, [rule.init for rule in each], params)

    def update(updates: optax.Updates, state: optax.OptState, params: Params | None = None, **extra: Any) -> Any:
        branches = [lambda *given, rule=rule: rule.update(*given[:3], **given[3]) for rule in each]
        return lax.switch(num_steps.index, branches, updates, state, params, extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _takes_value(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same rule with an `update` that is given `value=`, and hands it on only if it has a parameter for it.

    optax marks some as taking any extra arguments that do not, as `optax.contrib.sam`.
    """
    rule = optax.with_extra_args_support(rule)
    kinds = {parameter.kind for parameter in _parameters(rule.update)}
    if inspect.Parameter.VAR_KEYWORD in kinds or asks(rule.update, 3, ("value",)):
        return rule
    return optax.GradientTransformationExtraArgs(
        rule.init, lambda updates, state, params=None, **extra: rule.update(updates, state, params)
    )


def _without_keys(rule: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The same rule with a state that has no typed PRNG keys, as `optax.add_noise` keeps one."""

    def init(params: Params) -> optax.OptState:
        return without_keys(rule.init(params))

    def update(updates: optax.Updates, state: optax.OptState, params: Params | None = None, **extra: Any) -> Any:
        updates, new_state = rule.update(updates, with_keys(state), params, **extra)
        return updates, without_keys(new_state)

    return optax.GradientTransformationExtraArgs(init, update)


def init(task: Task, key: jax.Array, hyperparameters: Hyperparameters, *, num_steps: NumSteps | None = None) -> State:
    """A new member."""
    params, model_state = init_variables(task, key, hyperparameters)
    opt_state = optimizer_of(task, hyperparameters, num_steps).init(params)
    return State(params, opt_state, model_state, new_average(task, params))


def new_average(task: Task, params: Params, num_updates: Any = 0) -> Average | None:
    """The average of parameters before their first update."""
    if task.averaging is None:
        return None
    return Average(jax.tree.map(in_float32, params), jnp.asarray(num_updates, jnp.int32))


def in_float32(array: Any) -> jax.Array:
    """The array in float32, or in its own type where that is a wider one: for sums over examples or updates."""
    return jnp.asarray(array, jnp.promote_types(array.dtype, jnp.float32))


def final_params(task: Task, state: State) -> Params:
    """The parameters that count: those that are evaluated, and kept in the end."""
    if state.average is not None:
        return jax.tree.map(lambda mean, own: mean.astype(own.dtype), state.average.params, state.params)
    return state.params if task.eval_params is None else task.eval_params(with_keys(state.opt_state), state.params)


def gather(task: Task, data: Data, index: jax.Array, chunk_size: int) -> Batch:
    """The samples at `index` (int [example], negative where there is none), prepared, in chunks."""
    if len(index) % chunk_size:
        index = jnp.pad(index, (0, -len(index) % chunk_size), constant_values=-1)
    index = index.reshape(-1, chunk_size)  # [chunk, example]
    real = index >= 0
    # An empty place takes the batch's first sample, not sample 0: that one may belong to another fold.
    index = jnp.where(real, index, jnp.maximum(index[0, 0], 0))

    def take(leaf: Any) -> jax.Array:
        # Taken as flat rows: a gather of images costs XLA:CPU a division for each pixel's place.
        return leaf.reshape(len(leaf), -1)[index].reshape(*index.shape, *leaf.shape[1:])

    x, y = jax.vmap(task.prepare)(jax.tree.map(take, data.x)), jax.tree.map(lambda leaf: leaf[index], data.y)
    return Batch(x, y, real, None if data.weights is None else jnp.where(real, data.weights[index], 0))


def total_weight(real: jax.Array, weights: jax.Array | None) -> jax.Array:
    """What the real examples weigh together: their number where all count the same."""
    return jnp.sum(real) if weights is None else jnp.sum(weights)


def weighted_sum(values: jax.Array, batch: Batch) -> jax.Array:
    """Sum of one value an example over a chunk's real ones, in float32 at least."""
    values = in_float32(values)
    return masked_sum(values if batch.weights is None else values * batch.weights, batch.real)


def loss_and_gradient(
    task: Task,
    params: Params,
    batch: Batch,
    hyperparameters: Hyperparameters,
    model_state: Any = None,
    key: jax.Array | None = None,
) -> tuple[tuple[jax.Array, Any], Params]:
    """((sum of the losses of the real examples, new state), its gradient in `params`), added up over the chunks."""

    def chunk_loss(params: Params, chunk: Batch) -> tuple[jax.Array, Any]:
        outputs, new_state = outputs_of(
            task, params, model_state, chunk.x, hyperparameters, mask=chunk.real, key=key, train=True
        )
        return weighted_sum(task.loss(outputs, chunk.y), chunk), new_state

    value_and_gradient = jax.value_and_grad(chunk_loss, has_aux=True)
    if len(batch.real) == 1:
        return value_and_gradient(params, jax.tree.map(lambda a: a[0], batch))
    if takes_whole_batches(task):
        raise ValueError("a batch of this task may not be cut in chunks")

    def add_chunk(total, chunk: Batch):
        (value, _), gradient = value_and_gradient(params, chunk)
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), total, (value, gradient)), None

    zeros = jax.tree.map(lambda p: jnp.zeros_like(in_float32(p)), params)
    value, gradient = lax.scan(add_chunk, (jnp.zeros((), jnp.result_type(float)), zeros), batch)[0]
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
    # A fold with fewer samples than another ends its epochs with empty batches, which must change nothing.
    return jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), new, state), total


def averaged(task: Task, average: Average | None, params: Params) -> Average | None:
    """The average with one more update's parameters in it."""
    if average is None or task.averaging is None:
        return None
    # A short memory at the start, as the first parameters are soon of no worth (as in TensorFlow's moving averages).
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
    """One pass over a fold's training part.

    Args:
      batches: int [step, batch], sample indices, negative where there is none.
      key: of the epoch; None for a task whose training is not random.
      num_steps: for the optimizer, where it asks for it.

    Returns:
      (state, mean over the epoch of each real example's loss just before the step that used it).
    """

    def one(state: State, batch: Batch, hyperparameters: Hyperparameters, key: jax.Array | None, index: Any):
        steps = None if num_steps is None else NumSteps(num_steps.numbers, index)
        return step(task, state, batch, hyperparameters, key=key, num_steps=steps)

    one = sequential_vmap(canonical_convolutions(one)) if layout.one_by_one else one

    def body(state: State, index_and_number: tuple[jax.Array, jax.Array | None]):
        index, number = index_and_number
        batch = gather(task, data, index, layout.chunk_size or len(index))
        step_key = None if key is None or number is None else jax.random.fold_in(key, number)
        state, total = one(state, batch, hyperparameters, step_key, None if num_steps is None else num_steps.index)
        return state, (total, None if batch.weights is None else jnp.sum(batch.weights))

    numbers = None if key is None else jnp.arange(len(batches))
    state, (totals, weights) = lax.scan(body, state, (batches, numbers))
    weight = jnp.sum(batches >= 0) if weights is None else jnp.sum(weights)
    return state, jnp.sum(totals) / weight.astype(totals.dtype)


def evaluate(
    task: Task,
    layout: Layout,
    state: State,
    data: Data,
    pieces: jax.Array,
    hyperparameters: Hyperparameters,
) -> dict[str, jax.Array]:
    """Mean "loss" and metrics, by name, over the real samples of `pieces`.

    Args:
      pieces: int [piece, example], negative where there is none.
    """
    functions, params = (("loss", task.loss), *task.metrics), final_params(task, state)

    def one(variables: tuple[Params, Any], piece: Batch, hyperparameters: Hyperparameters) -> tuple[jax.Array, ...]:
        piece = jax.tree.map(lambda a: a[0], piece)
        outputs, _ = outputs_of(task, *variables, piece.x, hyperparameters, mask=piece.real)
        return tuple(weighted_sum(function(outputs, piece.y), piece) for _, function in functions)

    one = sequential_vmap(canonical_convolutions(one)) if layout.one_by_one else one

    def body(totals: tuple[jax.Array, ...], index: jax.Array):
        piece = gather(task, data, index, len(index))
        sums = one((params, state.model_state), piece, hyperparameters)
        weight = None if piece.weights is None else jnp.sum(piece.weights)
        return jax.tree.map(lambda total, value: total + value, totals, sums), weight

    zero = jnp.zeros((), jnp.result_type(float))
    totals, weights = lax.scan(body, (zero,) * len(functions), pieces)
    weight = jnp.sum(pieces >= 0) if weights is None else jnp.sum(weights)
    named = zip((name for name, _ in functions), totals, strict=True)
    return {name: total / weight.astype(total.dtype) for name, total in named}


def fit(
    task: Task,
    layout: Layout,
    state: State,
    data: Data,
    batches: jax.Array,
    pieces: jax.Array | None,
    hyperparameters: Hyperparameters,
    *,
    key: jax.Array | None = None,
    epochs: jax.Array | None = None,
    num_steps: NumSteps | None = None,
    best: Best | None = None,
    patience: int | None = None,
) -> tuple[tuple[State, Best | None], jax.Array, dict[str, jax.Array] | None]:
    """As many epochs as `batches` has.

    Args:
      batches: int [epoch, step, batch], sample indices.
      pieces: int [piece, example], the held-out samples, evaluated after each epoch; None: there are none.
      key: of the member's training, where it is random.
      epochs: int [epoch], the epochs' numbers, where `key` or `best` is given.
      num_steps: for the optimizer, where it asks for it.
      best: the best epoch before these, to be kept up; no epoch counts that comes more than `patience` epochs after it.

    Returns:
      ((state, best), train_loss [epoch], validation loss and metrics by name, [epoch] each, or None).
    """

    def body(carry: tuple[State, Best | None], batches_and_number: tuple[jax.Array, jax.Array | None]):
        (state, best), (epoch_batches, number) = carry, batches_and_number
        epoch_key = None if key is None or number is None else jax.random.fold_in(key, number)
        state, train_loss = epoch(
            task, layout, state, data, epoch_batches, hyperparameters, key=epoch_key, num_steps=num_steps
        )
        if pieces is None:
            return (state, best), (train_loss, None)
        values = evaluate(task, layout, state, data, pieces, hyperparameters)
        if best is not None:
            assert number is not None and patience is not None
            better = (values["loss"] < best.val_loss) & (number - best.epoch <= patience)
            now = Best(state, values["loss"], number.astype(best.epoch.dtype))
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
        return (state, best), (train_loss, values)

    carry, (train_loss, values) = lax.scan(body, (state, best), (batches, epochs))
    return carry, train_loss, values
