"""All folds of all trials at once: one member's training mapped over folds and trials, compiled, on every device.

The only file that says vmap, jit or mesh. A population's leading axes are always [trial, fold].
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hw1jax import folds as folds_
from hw1jax import layout as layout_
from hw1jax import training
from hw1jax.folds import Fold
from hw1jax.layout import Layout
from hw1jax.losses import Array
from hw1jax.training import Data, Hyperparameters, Params, State, Task


@dataclass(frozen=True)
class Plan:
    """How a population is laid out in a program. It fixes the bits of every result, so it is stored with a study.

    Attributes:
      slots: trials in the program. Trial n of a search always has slot n mod `slots`; empty slots hold dummies.
      num_devices: devices that share the slots.
      trials_at_once: of a device's slots, how many train at once; such groups follow one another. It bounds what a
        CPU's cache must hold.
      layout: how a member's step is laid out.
      first_device: the first of the devices.
      own_widths: whether each trial has a program of its own (`one_trial_each`), one slot wide.
    """

    slots: int
    num_devices: int = 1
    trials_at_once: int = 1
    layout: Layout = Layout()
    first_device: int = 0
    own_widths: bool = False

    def __post_init__(self):
        if not self.own_widths and self.slots % (self.num_devices * self.trials_at_once):
            raise ValueError(f"{self.slots} slots don't divide by {self.num_devices} devices x {self.trials_at_once}")


@dataclass(frozen=True)
class Spec:
    """What training is the same for all members.

    Attributes:
      num_epochs: epochs of a member.
      batch_size: samples a step.
      seed: of the folds and the minibatches, non-negative integers.
      epochs_per_call: epochs that a call of the program advances by; a divisor of `num_epochs`.
      first_fold: the number of the first fold (k for the refit after k-fold cross-validation).
    """

    num_epochs: int
    batch_size: int
    seed: tuple[int, ...]
    epochs_per_call: int = 1
    first_fold: int = 0


CACHED_BYTES = 2**21  # of members' state that a CPU core trains at once; more falls out of its cache
KEPT_TASKS = 8  # whose compiled programs are kept; those of the task not used for longest go
STATE_COPIES = 3  # the parameters and an optimizer's two moments


def make_plan(num_trials: int, num_folds: int, params: Params, layout: Layout, num_devices: int | None = None) -> Plan:
    """All trials in one program, shared evenly by the devices, on a CPU in groups that fit the cache.

    Args:
      num_trials: trials that train at once; slots may be a few more, so that they divide evenly.
      num_folds: folds of each.
      params: a member's parameters, or their shapes.
      layout: how a member's step is laid out.
      num_devices: at most so many devices; all, if not given.
    """
    devices = jax.devices()[:num_devices]
    num_devices = min(len(devices), num_trials)
    a_device = -(-num_trials // num_devices)
    trial_bytes = STATE_COPIES * num_folds * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    fit = max(1, CACHED_BYTES // trial_bytes) if devices[0].platform == "cpu" else a_device
    num_groups = -(-a_device // fit)
    at_once = -(-a_device // num_groups)
    return Plan(num_devices * num_groups * at_once, num_devices, at_once, layout)


def choose_layout(
    task: Task, params: Params, x: np.ndarray, hyperparameters: Hyperparameters, *, batch_size: int
) -> Layout:
    """How members of this kind are best laid out on the devices that are here.

    Args:
      task: what is trained.
      params: a member's parameters, or their shapes.
      x: the samples.
      hyperparameters: one trial's.
      batch_size: samples a step.
    """

    def apply(params: Params, x: jax.Array, hyperparameters: Hyperparameters) -> jax.Array:
        return task.apply(params, task.prepare(x), hyperparameters)

    return layout_.choose(apply, params, x, hyperparameters, batch_size, jax.devices()[0].platform)


class Problem(NamedTuple):
    """Everything that all batches of trials share: the program, and the data on its devices."""

    task: Task
    plan: Plan
    spec: Spec
    folds: list[Fold]
    data: Data
    pieces: jax.Array | None  # int32 [fold, piece, example], the held-out samples


class Progress(NamedTuple):
    """A population after some epochs."""

    num_epochs: int  # done so far
    state: State  # [trial, fold, ...]
    train_loss: np.ndarray  # float [trial, fold, epoch], of the epochs of this call
    val_loss: np.ndarray | None  # float [trial, fold, epoch]


def place(task: Task, plan: Plan, spec: Spec, x: np.ndarray, y: np.ndarray, folds: list[Fold]) -> Problem:
    """Puts the data on the devices. Folds with an empty validation part are trained, not validated."""
    everywhere = NamedSharding(_mesh(plan), P())
    parts = [fold.validation for fold in folds]
    pieces = None
    if all(map(len, parts)):
        size = min(plan.layout.piece_size, max(map(len, parts)))
        pieces = jax.device_put(folds_.pieces(parts, size), everywhere)
    return Problem(task, plan, spec, folds, jax.device_put(Data(x, y), everywhere), pieces)


def start(problem: Problem, key: jax.Array, numbers: np.ndarray, hyperparameters: Hyperparameters) -> State:
    """New members.

    Args:
      problem: from `place`.
      key: the PRNG key of the whole search.
      numbers: int [trial], the trials' numbers: a member's initial parameters depend on (key, number, fold) alone.
      hyperparameters: a tree of arrays with a leading [trial] axis, as long as the plan's slots.
    """
    mesh = _mesh(problem.plan)
    numbers, hyperparameters = jax.device_put((numbers, hyperparameters), NamedSharding(mesh, P("trial")))
    key_data, kind = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)  # all processes may hold numbers
    fold_numbers = problem.spec.first_fold + np.arange(len(problem.folds))
    return put(problem, _init(problem.task)(kind, key_data, numbers, fold_numbers, hyperparameters))


def put(problem: Problem, state: State) -> State:
    """A state on its devices as a call leaves it, or the second call would compile anew."""
    return jax.device_put(state, NamedSharding(_mesh(problem.plan), P("trial")))


def train(
    problem: Problem, key: jax.Array, numbers: np.ndarray, hyperparameters: Hyperparameters
) -> Iterator[Progress]:
    """Trains a population from its first epoch to its last, yielding after each call of the program.

    The arguments are those of `start`.
    """
    return resume(problem, start(problem, key, numbers, hyperparameters), hyperparameters, first_epoch=0)


def resume(problem: Problem, state: State, hyperparameters: Hyperparameters, *, first_epoch: int) -> Iterator[Progress]:
    """As `train`, from the state that it yielded after `first_epoch` epochs."""
    task, plan, spec, folds, data, pieces = problem
    hyperparameters = jax.device_put(hyperparameters, NamedSharding(_mesh(plan), P("trial")))
    for done in range(first_epoch, spec.num_epochs, spec.epochs_per_call):
        epochs = range(done, done + spec.epochs_per_call)
        batches = folds_.minibatches(
            folds, epochs, batch_size=spec.batch_size, seed=spec.seed, first_fold=spec.first_fold
        )
        state, train_loss, val_loss = _fit(task)(plan, state, hyperparameters, data, batches, pieces)
        val_loss = None if val_loss is None else on_host(val_loss)
        yield Progress(epochs.stop, state, on_host(train_loss), val_loss)


def on_host(array: jax.Array) -> np.ndarray:
    """A whole array; where several processes hold its parts, all of them call this together."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def one_trial_each(problem: Problem) -> list[Problem]:
    """The problem as programs one slot wide, one for each of the plan's devices, to train side by side in threads.

    On a CPU a trial's own network, without padding, pays for the time that its program takes to compile; an
    accelerator is better filled by all trials in one. Here a trial's bits can't depend on its companions.
    """
    problems = []
    for i in range(problem.plan.num_devices):
        # The cores of a CPU can share its first device, and a program that is always compiled for that one is found
        # again in the compilation cache, whichever thread has its turn.
        plan = Plan(1, layout=problem.plan.layout, first_device=0 if jax.default_backend() == "cpu" else i)
        data, pieces = jax.device_put((problem.data, problem.pieces), jax.devices()[plan.first_device])
        problems.append(problem._replace(plan=plan, data=data, pieces=pieces))
    return problems


def start_narrow(problem: Problem, task: Task, key: jax.Array, number: int, hyperparameters: Hyperparameters) -> State:
    """A new trial of `task`, the problem's at the trial's own widths: the corners of the wide one's parameters.

    So the program that makes initial parameters is compiled once, not for each trial.
    """
    wide = start(problem, key, np.array([number]), hyperparameters).params
    shapes = jax.eval_shape(task.init, key, jax.tree.map(lambda a: a[0], hyperparameters))
    params = jax.tree.map(lambda a, own: np.asarray(a)[(..., *map(slice, own.shape))], wide, shapes)
    return put(problem, State(params, _init_optimizer(task)(params, hyperparameters)))


def flops(task: Task, x: np.ndarray, y: np.ndarray, hyperparameters: Hyperparameters) -> float:
    """Floating-point operations of the loss and gradient of one member on these samples, by XLA's own count."""

    def compute(key, x, y, hyperparameters):
        index: Any = np.arange(len(x))
        batch = training.gather(task, Data(x, y), index, len(x))
        return training.loss_and_gradient(task, task.init(key, hyperparameters), batch, hyperparameters)

    costs: Any = jax.jit(compute).lower(jax.random.key(0), x, y, hyperparameters).cost_analysis()
    return costs["flops"]


def lowered(problem: Problem, hyperparameters: Hyperparameters, platform: str | None = None) -> jax.stages.Lowered:
    """The program of a call, for those who want to look at it or to compile it.

    `platform`: "cuda", "rocm" or "tpu" instead of the one that is here. It need not be here for this.
    """
    task, plan, spec, folds, data, pieces = problem
    state = start(problem, jax.random.key(0), np.arange(plan.slots), hyperparameters)
    hyperparameters = jax.device_put(hyperparameters, NamedSharding(_mesh(plan), P("trial")))
    batches = folds_.minibatches(folds, range(spec.epochs_per_call), batch_size=spec.batch_size, seed=spec.seed)
    traced = _fit(task).trace(plan, state, hyperparameters, data, batches, pieces)
    return traced.lower(lowering_platforms=platform and (platform,))


def bytes_needed(problem: Problem, hyperparameters: Hyperparameters) -> int:
    """What a call of the program takes of a device's memory beside the data, by XLA's own count."""
    sizes: Any = lowered(problem, hyperparameters).compile().memory_analysis()
    taken = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return taken - sizes.alias_size_in_bytes


def _mesh(plan: Plan) -> Mesh:
    # Auto axes: the default, Explicit, refuses a member's gather from data that has no trial axis.
    devices = jax.devices()[plan.first_device : plan.first_device + plan.num_devices]
    return jax.make_mesh((plan.num_devices,), ("trial",), (AxisType.Auto,), devices=devices)


def _compiled_for_each_task(**options: Any) -> Callable[[Callable[..., Any]], Callable[[Task], Any]]:
    """Makes a function of (task, ...) one of a task that gives a compiled function of the rest.

    `jax.jit` with the task as a static argument would keep each task that there ever was, with its programs and all
    that its functions close over.
    """

    def decorate(function: Callable[..., Any]) -> Callable[[Task], Any]:
        return lru_cache(KEPT_TASKS)(lambda task: jax.jit(partial(function, task), **options))

    return decorate


# These run once, for a moment: compiling them with care would take longer than anything else that a study compiles.
_compiled_quickly = partial(_compiled_for_each_task, compiler_options={"xla_backend_optimization_level": 0})


@_compiled_quickly(static_argnums=0)
def _init(task: Task, kind, key_data, numbers, fold_numbers, hyperparameters: Hyperparameters) -> State:
    key = jax.random.wrap_key_data(key_data, impl=kind)

    def member(number, hyperparameters, fold):
        member_key = jax.random.fold_in(jax.random.fold_in(key, number), fold)
        return training.init(task, member_key, hyperparameters)

    over_folds = jax.vmap(member, (None, None, 0))
    return jax.vmap(over_folds, (0, 0, None))(numbers, hyperparameters, fold_numbers)


@_compiled_quickly()
def _init_optimizer(task: Task, params: Params, hyperparameters: Hyperparameters) -> optax.OptState:
    over_folds = jax.vmap(lambda params, hyperparameters: task.optimizer(hyperparameters).init(params), (0, None))
    return jax.vmap(over_folds)(params, hyperparameters)


@_compiled_for_each_task(static_argnums=0, donate_argnums=1)
def _fit(task: Task, plan: Plan, state: State, hyperparameters, data: Data, batches, pieces):
    """-> (state, train_loss [trial, fold, epoch], val_loss). batches [fold, epoch, step, batch], shared by trials."""

    def on_one_device(state: State, hyperparameters, data: Data, batches, pieces):
        def member(state: State, hyperparameters, batches, pieces):
            return training.fit(task, plan.layout, state, data, batches, pieces, hyperparameters)

        over_folds = jax.vmap(member, (0, None, 0, 0))
        over_trials = jax.vmap(over_folds, (0, 0, None, None))

        def group(members):
            state, hyperparameters = members
            return over_trials(state, hyperparameters, batches, pieces)

        return _in_groups(group, (state, hyperparameters), plan.trials_at_once)

    sharded, everywhere = P("trial"), P()
    over_devices = jax.shard_map(
        _mapped_before_the_mesh(on_one_device, plan, state, hyperparameters, data, batches, pieces),
        mesh=_mesh(plan),
        in_specs=(sharded, sharded, everywhere, everywhere, everywhere),
        out_specs=sharded,
        check_vma=False,
    )
    return over_devices(state, hyperparameters, data, batches, pieces)


def _mapped_before_the_mesh(function: Callable[..., Any], plan: Plan, state, hyperparameters, *shared: Any):
    """The function as the plain operations that it comes to on a device's share of the arguments.

    Within a mesh JAX refuses to map a convolution whose kernel alone is mapped when it has groups already, as a
    kernel's gradient does where trials share a fold's batches (NotImplementedError, jax issues 31798 and 32157). So
    its `vmap`s are resolved here, before `shard_map` sets the mesh.
    """

    def shape(leaf: jax.Array, devices: int = 1) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(leaf) // devices, *leaf.shape[1:]), leaf.dtype)

    own = jax.tree.map(lambda leaf: shape(leaf, plan.num_devices), (state, hyperparameters))
    jaxpr, outputs = jax.make_jaxpr(function, return_shape=True)(*own, *jax.tree.map(shape, shared))

    def operations(*arguments: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(outputs), jaxpr_as_fun(jaxpr)(*jax.tree.leaves(arguments)))

    return operations


def _in_groups(function, members: Any, size: int) -> Any:
    """function(members), group after group of `size` of them; the arrays' first axis counts the members."""
    num_members = len(jax.tree.leaves(members)[0])
    if num_members == size:
        return function(members)
    grouped = jax.tree.map(lambda a: a.reshape(num_members // size, size, *a.shape[1:]), members)
    return jax.tree.map(lambda a: a.reshape(num_members, *a.shape[2:]), lax.map(function, grouped))


class Alike(NamedTuple):
    """What each of a few examples gives in company and alone, [example, ...]."""

    together: Any
    alone: Any


def examples_alone_and_together(
    task: Task, key: jax.Array, hyperparameters: Hyperparameters, x: np.ndarray, y: np.ndarray, labels: np.ndarray
) -> tuple[Alike, Alike, jax.Array]:
    """What shows whether a task mixes examples, and which labels its loss takes.

    Args:
      task: what is trained.
      key: of a new member's initial parameters.
      hyperparameters: one trial's.
      x: a few examples.
      y: what belongs to them.
      labels: values of `y` to try, [label, ...].

    Returns:
      (the outputs, the losses of the outputs together, each label's losses [label, 2] on the first example's outputs
      and on outputs that are all the same).
    """
    key_data, kind = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
    return _examples_alone_and_together(task)(kind, key_data, hyperparameters, x, y, labels)


@_compiled_quickly(static_argnums=0)
def _examples_alone_and_together(task: Task, kind, key_data, hyperparameters: Hyperparameters, x, y, labels):
    params = task.init(jax.random.wrap_key_data(key_data, impl=kind), hyperparameters)
    # Away from where they begin: a last layer of zeros would hide what those before it do.
    params = jax.tree.map(lambda p: p + 0.01 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)

    def one_by_one(function: Callable[..., Any], *arrays: Any) -> Any:
        alone = [function(*jax.tree.map(lambda a: a[i : i + 1], arrays)) for i in range(len(x))]  # noqa: B023
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *alone)

    def outputs_of(x: jax.Array) -> Any:
        return task.apply(params, task.prepare(x), hyperparameters)

    outputs = outputs_of(x)
    even = jax.tree.map(lambda a: jnp.full_like(a[0], 1 / max(1, a[0].size)), outputs)
    two = jax.tree.map(lambda a, even: jnp.stack([a[0], even]), outputs, even)
    of_labels = lax.map(lambda label: task.loss(two, jnp.stack([label, label])), labels)
    losses = Alike(task.loss(outputs, y), one_by_one(task.loss, outputs, y))
    return Alike(outputs, one_by_one(outputs_of, x)), losses, of_labels


def predict(
    task: Task, params: Params, hyperparameters: Hyperparameters, x: np.ndarray, piece_size: int = 500
) -> np.ndarray:
    """Outputs [example, output] of one network, computed in pieces."""
    index = np.arange(-(-len(x) // piece_size) * piece_size).reshape(-1, piece_size) % len(x)
    outputs = _predict(task)(params, hyperparameters, x, index)
    return np.asarray(outputs).reshape(-1, *outputs.shape[2:])[: len(x)]


@_compiled_for_each_task()
def _predict(task: Task, params: Params, hyperparameters: Hyperparameters, x: jax.Array, index: jax.Array):
    return lax.map(lambda i: task.apply(params, task.prepare(x[i]), hyperparameters), index)


def predict_all(task: Task, params: Params, hyperparameters: Hyperparameters, x: Array) -> jax.Array:
    """Outputs [trial, fold, example, output] of a population on the same few examples."""
    return _predict_all(task)(params, hyperparameters, x)


@_compiled_for_each_task()
def _predict_all(task: Task, params: Params, hyperparameters: Hyperparameters, x: jax.Array) -> jax.Array:
    prepared = task.prepare(x)
    over_folds = jax.vmap(lambda params, h: task.apply(params, prepared, h), (0, None))
    return jax.vmap(over_folds)(params, hyperparameters)
