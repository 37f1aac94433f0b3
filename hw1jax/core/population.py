"""All folds of all trials at once: `training` mapped over folds and trials, compiled, on every device.

The only module with a mesh. A population's leading axes are always [trial, fold].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Lowered

from hw1jax.core import folds as folds_
from hw1jax.core import member_states, programs, tasks, training
from hw1jax.core.folds import Fold
from hw1jax.core.layout import Layout
from hw1jax.core.tasks import Fit, Hyperparameters, Params, Task
from hw1jax.core.training import Best, Data, State


@dataclass(frozen=True)
class Plan:
    """Layout of a population in a program. It determines the bits of every result, so it is stored with a search."""

    num_slots: int  # trials in the program; empty slots hold copies
    num_devices: int = 1  # devices that share the slots
    trials_per_vmap: int = 1  # of a device; groups of this size run in sequence, to fit a CPU's cache
    layout: Layout = Layout()
    first_device: int = 0

    def __post_init__(self):
        if self.num_slots % (self.num_devices * self.trials_per_vmap):
            raise ValueError(
                f"{self.num_slots} slots don't divide by {self.num_devices} devices x {self.trials_per_vmap}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Training settings that all members share."""

    num_epochs: int
    batch_size: int  # samples a step
    seed: tuple[int, ...]  # seed of folds and minibatches, non-negative integers
    epochs_per_call: int = 1  # epochs of a call of the program; the last call may train fewer
    first_fold: int = 0  # number of the first fold (k for the refit after k-fold cross-validation)
    patience: int | None = None  # epochs without a better score before a member stops; None: it never does
    monitor: str = "loss"  # the score: the validation loss, or the name of a metric
    maximize: bool = False  # whether a higher score is better


TRAINING = 2**32 - 1  # fold_in tag of the training keys; larger than any trial number


class Population(NamedTuple):
    """A program and its data on the devices, whichever trials it trains."""

    task: Task
    plan: Plan
    config: TrainConfig
    folds: list[Fold]
    data: Data  # with statistics [fold, ...]
    val_batches: jax.Array | None  # int32 [fold, batch, example], indices of the held-out samples

    @property
    def num_steps(self) -> tuple[int, ...] | None:
        """See `num_updates`."""
        return num_updates(self.task, self.folds, self.config.num_epochs, self.config.batch_size)

    @property
    def steps_of_folds(self) -> np.ndarray | None:
        """Int32 [fold]: each fold's index into `num_steps`."""
        if self.num_steps is None:
            return None
        numbers = _updates_of_folds(self.folds, self.config.num_epochs, self.config.batch_size)
        return np.array([self.num_steps.index(number) for number in numbers], np.int32)


def num_updates(task: Task, folds: Sequence[Fold], num_epochs: int, batch_size: int) -> tuple[int, ...] | None:
    """The distinct numbers of all updates of the folds, sorted, for an optimizer that takes `num_steps`; else None."""
    if not tasks.takes_num_steps(task):
        return None
    return tuple(sorted(set(_updates_of_folds(folds, num_epochs, batch_size))))


def _updates_of_folds(folds: Sequence[Fold], num_epochs: int, batch_size: int) -> list[int]:
    return [num_epochs * -(-len(fold.train) // batch_size) for fold in folds]


class Trials(NamedTuple):
    """The trials of a population, one a slot."""

    key: jax.Array  # PRNG key of the search
    numbers: np.ndarray  # int [trial]; initial parameters and random training are functions of (key, number, fold)
    hyperparameters: Hyperparameters  # a tree of arrays [trial, ...]


class Progress(NamedTuple):
    """A population after some epochs."""

    num_epochs: int  # done so far
    state: State  # [trial, fold, ...]
    train_loss: np.ndarray  # float [trial, fold, epoch], of the epochs of this call
    val: dict[str, np.ndarray] | None  # "loss" and metrics by name: float [trial, fold, epoch]
    best: Best | None = None  # [trial, fold, ...], where the config has a patience


def make_population(task: Task, plan: Plan, config: TrainConfig, data: Data, folds: list[Fold]) -> Population:
    """Puts the data on the devices. A fold without validation samples is not evaluated."""
    data, val_batches = jax.device_put((data, _val_batches(plan, folds)), NamedSharding(_mesh(plan), P()))
    return Population(task, plan, config, folds, data, val_batches)


def _val_batches(plan: Plan, folds: list[Fold]) -> np.ndarray | None:
    parts = [fold.validation for fold in folds]
    if not all(map(len, parts)):
        return None
    return folds_.pad_batches(parts, min(plan.layout.eval_batch_size, max(map(len, parts))))


def with_plan(population: Population, plan: Plan) -> Population:
    """Returns the same population with another plan; the data stay where they are if the devices do."""
    val_batches = population.val_batches
    if plan.layout != population.plan.layout:
        val_batches = _val_batches(plan, population.folds)
    data, val_batches = jax.device_put((population.data, val_batches), NamedSharding(_mesh(plan), P()))
    return population._replace(plan=plan, data=data, val_batches=val_batches)


def with_statistics(population: Population, statistics: Any) -> Population:
    """Returns the same population with other statistics [fold, ...] of its data."""
    statistics = jax.device_put(statistics, NamedSharding(_mesh(population.plan), P()))
    return population._replace(data=population.data._replace(statistics=statistics))


def init(population: Population, trials: Trials) -> State:
    """Initializes the members."""
    num_folds = len(population.folds)
    numbers, folds = np.repeat(trials.numbers, num_folds), np.tile(_fold_numbers(population), len(trials.numbers))
    hyperparameters = jax.tree.map(lambda a: np.repeat(np.asarray(a), num_folds, 0), trials.hyperparameters)
    steps = population.steps_of_folds
    steps = None if steps is None else np.tile(steps, len(trials.numbers))
    made = member_states.new_members(
        population.task, population.num_steps, trials.key, numbers, folds, hyperparameters, steps
    )
    return shard(population, jax.tree.map(lambda a: a.reshape(len(trials.numbers), num_folds, *a.shape[1:]), made))


def shard(population: Population, state: Any) -> Any:
    """Shards a state over the devices as a call returns it, so that the second call compiles nothing."""
    return _over_devices(population.plan, state)


def train(population: Population, trials: Trials) -> Iterator[Progress]:
    """Trains all epochs; yields after each call of the program."""
    return resume(population, init(population, trials), trials, first_epoch=0)


def resume(
    population: Population,
    state: State,
    trials: Trials,
    *,
    first_epoch: int,
    last_epoch: int | None = None,
    best: Best | None = None,
) -> Iterator[Progress]:
    """As `train`, from what was yielded after `first_epoch` epochs up to `last_epoch`."""
    task, plan, config, folds, data, val_batches = population
    hyperparameters = _over_devices(plan, trials.hyperparameters)
    keys = _training_keys(population, trials) if tasks.takes_key(task) else None
    if config.patience is not None and best is None:
        best = shard(population, _no_best(task, state))
    static, steps = _static(population), population.steps_of_folds
    last_epoch = last_epoch or config.num_epochs
    for done in range(first_epoch, last_epoch, config.epochs_per_call):
        epochs = range(done, min(done + config.epochs_per_call, last_epoch))
        batches = folds_.minibatches(
            folds, epochs, batch_size=config.batch_size, seed=config.seed, first_fold=config.first_fold
        )
        # All calls run the same program: the last one ends with epochs of empty batches, which change nothing.
        num_empty = config.epochs_per_call - len(epochs)
        batches = np.pad(batches, ((0, 0), (0, num_empty), (0, 0), (0, 0)), constant_values=folds_.PADDING)
        numbers = None if keys is None and best is None else np.arange(done, done + batches.shape[1], dtype=np.int32)
        carry = state, best
        (state, best), train_loss, val = _fit(task)(
            plan, static, carry, hyperparameters, keys, data, batches, val_batches, numbers, steps
        )
        train_loss, val = jax.tree.map(lambda values: np.asarray(values)[:, :, : len(epochs)], (train_loss, val))  # noqa: B023
        yield Progress(epochs.stop, state, train_loss, val, best)


def final_variables(task: Task, state: State) -> tuple[Params, Any]:
    """(params, state) of members [trial, fold, ...] to evaluate and keep."""
    params = state.params
    if task.averaging is not None or task.eval_params is not None:
        params = jax.vmap(jax.vmap(partial(training.final_params, task)))(state)
    return params, state.model_state


def init_narrow(wide: Population, narrow: Population, trials: Trials) -> State:
    """Initializes one trial at its own widths: the corners of its parameters in the wide population.

    So the program that initializes parameters is compiled once, not for each trial.
    """
    params = init(wide, trials).params
    shapes, _ = member_states.variable_shapes(narrow.task, jax.tree.map(lambda a: a[0], trials.hyperparameters))
    params = jax.tree.map(lambda a, own: member_states.corner(np.asarray(a), own.shape, num_leading=2), params, shapes)
    opt_state = _init_optimizer(narrow.task)(narrow.num_steps, params, trials.hyperparameters, narrow.steps_of_folds)
    average = training.new_average(narrow.task, params, np.zeros((len(trials.numbers), len(narrow.folds))))
    return shard(narrow, State(params, opt_state, average=average))


def lowered(population: Population, hyperparameters: Hyperparameters, platform: str | None = None) -> Lowered:
    """Lowers the program of a call, without running it.

    `platform`: "cuda", "rocm" or "tpu", of which no device is needed; None: this machine's.
    """
    task, plan, config, folds, data, val_batches = population
    trials = Trials(jax.random.key(0), np.arange(plan.num_slots), hyperparameters)
    state = init(population, trials)
    keys = _training_keys(population, trials) if tasks.takes_key(task) else None
    best = None if config.patience is None else shard(population, _no_best(task, state))
    batches = folds_.minibatches(folds, range(config.epochs_per_call), batch_size=config.batch_size, seed=config.seed)
    numbers = None if keys is None and best is None else np.arange(config.epochs_per_call, dtype=np.int32)
    static, carry = _static(population), (state, best)
    hyperparameters = _over_devices(plan, hyperparameters)
    steps = population.steps_of_folds
    traced = _fit(task).trace(plan, static, carry, hyperparameters, keys, data, batches, val_batches, numbers, steps)
    return traced.lower(lowering_platforms=None if platform is None else (platform,))


def _over_devices(plan: Plan, tree: Any) -> Any:
    return jax.device_put(tree, NamedSharding(_mesh(plan), P("trial")))


def _fold_numbers(population: Population) -> np.ndarray:
    return population.config.first_fold + np.arange(len(population.folds))


def _training_keys(population: Population, trials: Trials) -> jax.Array:
    """The members' training keys, [trial, fold]."""
    numbers = _over_devices(population.plan, trials.numbers)
    kind, key_data = programs.key_parts(trials.key)
    made = _make_training_keys(kind)(key_data, numbers, _fold_numbers(population))
    # As numbers: JAX can't share an array of typed keys between processes.
    return jax.random.wrap_key_data(shard(population, made), impl=kind)


def have_stopped(config: TrainConfig, best_epoch: Any, number: Any) -> np.ndarray:
    """Whether members, by their best epochs, have stopped before the epoch of this number; both are arrays from 0."""
    assert config.patience is not None
    return number - np.asarray(best_epoch) > config.patience


def _static(population: Population) -> tuple[Any, ...]:
    config = population.config
    return population.num_steps, config.patience, config.monitor, config.maximize


def _no_best(task: Task, state: State) -> Best:
    shape, dtype = jax.tree.leaves(state)[0].shape[:2], jnp.result_type(float)
    # A copy, since the program donates its arguments.
    lowest, epoch = np.full(shape, np.inf, dtype), np.full(shape, -1, np.int32)
    values = {name: jnp.full(shape, np.nan, dtype) for name in ("loss", *(name for name, _ in task.metrics))}
    return Best(jax.tree.map(np.array, state), jnp.asarray(lowest), jnp.asarray(epoch), values)


def _mesh(plan: Plan) -> Mesh:
    # Auto axes: Explicit, the default, refuses a member's gather from data without a trial axis.
    devices = jax.devices()[plan.first_device : plan.first_device + plan.num_devices]
    return jax.make_mesh((plan.num_devices,), ("trial",), (AxisType.Auto,), devices=devices)


@programs.quickly_for_each_task()
def _make_training_keys(kind, key_data, numbers, fold_numbers) -> jax.Array:
    """Key data [trial, fold, ...]."""
    key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=kind), TRAINING)
    of_trial = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jax.random.key_data(jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(of_trial, fold_numbers))


@programs.quickly_for_each_task(0)
def _init_optimizer(task: Task, num_steps, params: Params, hyperparameters: Hyperparameters, steps) -> optax.OptState:
    def member(params: Params, hyperparameters: Hyperparameters, index) -> optax.OptState:
        return tasks.optimizer_of(task, hyperparameters, member_states.own_num_steps(num_steps, index)).init(params)

    return jax.vmap(jax.vmap(member, (0, None, 0)), (0, 0, None))(params, hyperparameters, steps)


@programs.for_each_task(0, 1, donate_argnums=2)
def _fit(task: Task, plan: Plan, static, carry, hyperparameters, keys, data: Data, batches, val_batches, epochs, steps):
    """-> ((state, best), train_loss [trial, fold, epoch], validation loss and metrics by name).

    Args: static (num_steps, patience, monitor, maximize); carry (state, best) and keys [trial, fold, ...];
    hyperparameters [trial, ...]; batches [fold, epoch, step, batch], val_batches [fold, batch, example] and steps
    [fold], shared by trials; epochs [epoch].
    """
    num_steps, patience, monitor, maximize = static

    def on_one_device(carry, hyperparameters, keys, data: Data, batches, val_batches, epochs, steps):
        def member(carry, hyperparameters, key, batches, val_batches, index, statistics):
            state, best = carry
            return training.fit(
                task,
                plan.layout,
                state,
                data._replace(statistics=statistics),
                batches,
                val_batches,
                hyperparameters,
                key=key,
                epochs=epochs,
                num_steps=member_states.own_num_steps(num_steps, index),
                best=best,
                patience=patience,
                monitor=monitor,
                maximize=maximize,
            )

        over_folds = jax.vmap(member, (0, None, 0, 0, 0, 0, 0))
        over_trials = jax.vmap(over_folds, (0, 0, 0, None, None, None, None))

        def group(members):
            carry, hyperparameters, keys = members
            return over_trials(carry, hyperparameters, keys, batches, val_batches, steps, data.statistics)

        return _in_groups(group, (carry, hyperparameters, keys), plan.trials_per_vmap)

    sharded, everywhere = P("trial"), P()
    members, shared = (carry, hyperparameters, keys), (data, batches, val_batches, epochs, steps)
    over_devices = jax.shard_map(
        _mapped_before_the_mesh(on_one_device, plan, members, shared),
        mesh=_mesh(plan),
        in_specs=(*[sharded] * len(members), *[everywhere] * len(shared)),
        out_specs=sharded,
        check_vma=False,
    )
    return over_devices(*members, *shared)


def _mapped_before_the_mesh(function: Callable[..., Any], plan: Plan, members: tuple, shared: tuple):
    """Traces the function on a device's share of the arguments, so that its `vmap`s are resolved outside the mesh.

    Within a mesh JAX refuses to map a convolution that has groups already and whose kernel alone is mapped, as in a
    kernel's gradient if trials share a fold's batches (NotImplementedError, jax issues 31798 and 32157).
    """

    def shape(leaf: jax.Array, devices: int = 1) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(leaf) // devices, *leaf.shape[1:]), leaf.dtype)

    own = jax.tree.map(lambda leaf: shape(leaf, plan.num_devices), members)
    jaxpr, outputs = jax.make_jaxpr(function, return_shape=True)(*own, *jax.tree.map(shape, shared))

    def operations(*arguments: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(outputs), jaxpr_as_fun(jaxpr)(*jax.tree.leaves(arguments)))

    return operations


def _in_groups(function, members: Any, size: int) -> Any:
    """Runs function(members) on groups of `size` members in sequence."""
    num_members = len(jax.tree.leaves(members)[0])
    if num_members == size:
        return function(members)
    grouped = jax.tree.map(lambda a: a.reshape(num_members // size, size, *a.shape[1:]), members)
    return jax.tree.map(lambda a: a.reshape(num_members, *a.shape[2:]), lax.map(function, grouped))


def predict(
    task: Task, params: Params, hyperparameters: Hyperparameters, x: Any, *, state: Any = None, batch_size: int = 500
) -> Any:
    """Outputs [example, ...] of one network in the unit of y, computed in batches of `batch_size`.

    `state`: a `tasks.Fit` if the task has a `Fitted`.
    """
    state, statistics = state if isinstance(state, Fit) else (state, None)
    num_examples = len(jax.tree.leaves(x)[0])
    index = np.arange(-(-num_examples // batch_size) * batch_size).reshape(-1, batch_size) % num_examples
    batches = jax.tree.map(lambda a: np.asarray(a)[index], x)  # on the host: one program for any number of examples
    outputs = _predict(task)(params, state, hyperparameters, batches, statistics)
    return jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[:num_examples], outputs)


@programs.for_each_task()
def _predict(task: Task, params: Params, state: Any, hyperparameters: Hyperparameters, batches: Any, statistics: Any):
    def outputs(x: Any) -> Any:
        return tasks.in_own_units(
            task, statistics, tasks.evaluated(task, params, state, x, hyperparameters, statistics)
        )

    return lax.map(outputs, batches)
