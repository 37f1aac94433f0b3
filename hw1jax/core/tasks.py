"""Tasks: the pure functions that define a training, and their calls."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

Params = Any  # a tree of arrays
Hyperparameters = Any  # a tree of arrays, one trial's: traced, and different from trial to trial
Metric = Callable[[Any, Any], Any]  # (outputs, y) -> [batch], one value an example; or a `Whole`
OPTIONAL = ("key", "train", "state", "mask")  # optional parameters of `apply`, after its first three


class Whole:
    """A metric of a whole held-out part, such as the area under the ROC curve: no mean of values of the examples.

    Attributes:
      function: (outputs [n, ...], y [n, ...], weights float [n]) -> scalar. Examples of weight 0 must not change it.
    """

    def __init__(self, function: Callable[[Any, Any, Any], Any]):
        self.function = function
        update_wrapper(self, function)  # type: ignore[arg-type]

    def __call__(self, outputs: Any, y: Any, weights: Any = None) -> jax.Array:
        """The metric; without weights, each example counts 1."""
        if weights is None:
            weights = jnp.ones(len(jax.tree.leaves(y)[0]), jnp.result_type(float))
        return self.function(outputs, y, weights)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whole) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __reduce__(self) -> Any:
        """Pickles those of this package by name: a name there is the metric, not the function."""
        return self.function.__qualname__ if self.__module__.startswith("hw1jax.") else (Whole, (self.function,))


class Fitted(NamedTuple):
    """Preprocessing that is fitted on each fold's training part, as scikit-learn's transformers in a Pipeline.

    Pure functions of `jax.numpy`; `statistics` is a tree (dict, tuple) of arrays, of the same shapes in all folds.

    Attributes:
      fit: (values [n, ...], y [n, ...], weights float [n]) -> statistics. Without weights of the samples all are 1.
      transform: (statistics, values [batch, ...]) -> values, each example's from itself alone.
      inverse: (statistics, outputs [batch, ...]) -> outputs in the unit of the values; for `prepare_y`.
    """

    fit: Callable[[Any, Any, Any], Any]
    transform: Callable[[Any, Any], Any]
    inverse: Callable[[Any, Any], Any] | None = None


class Fit(NamedTuple):
    """The untrained arrays of a network whose task has a `Fitted`."""

    state: Any  # as from the task's `init`
    statistics: Any  # of the training part on which it was trained, as `fit` returns them


def unchanged(x: Any) -> Any:
    """The default `prepare`."""
    return x


class Task(NamedTuple):
    """The pure functions that define a training. They are static: another task is another program.

    `apply` may have more parameters, by these names:

    - key: a PRNG key in training, a function of (key of the search, trial, fold, epoch, step); None in evaluation.
    - train: True in training, False in evaluation; plain Python.
    - mask: bool [batch], False for padding, which must not enter any statistics (Flax's BatchNorm takes mask[:, None]
      if x is [batch, feature]).
    - state: arrays that change in training but are not trained (batch statistics). `init` then returns (params, state),
      and `apply` (outputs, new state); in evaluation the new state is dropped.

    Attributes:
      init: (key, hyperparameters) -> params, a tree of floating-point arrays.
      apply: (params, x, hyperparameters) -> outputs, on a prepared batch.
      loss: (outputs, y) -> [batch], one value an example.
      optimizer: (hyperparameters) -> optax transformation. It may take `num_steps`, an int: the number of all updates
        of the member's fold, for a schedule. A transformation whose `update` takes `value` gets the loss.
      prepare: x -> x, applied to a batch before `apply`; once for all trials of a fold that share a program. Or a
        `Fitted`; or a tuple of such, applied in order, each fitted on what those before it give.
      metrics: pairs (name, (outputs, y) -> [batch]), evaluated beside the loss; or (name, `hw1jax.whole(..)`).
      averaging: decay, in (0, 1), of an exponential moving average of the parameters, which is then evaluated and kept
        (Polyak and Juditsky 1992); None: no averaging.
      eval_params: (opt_state, params) -> params to evaluate and keep, such as
        `optax.contrib.schedule_free_eval_params`; None: the trained parameters.
      prepare_y: a `Fitted` with an inverse: the loss takes the network's outputs and the transformed y; metrics and
        predictions have outputs in the unit of y (`inverse`).
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    loss: Callable[[Any, Any], Any]
    optimizer: Callable[..., optax.GradientTransformation]
    prepare: Any = unchanged
    metrics: tuple[tuple[str, Metric], ...] = ()
    averaging: float | None = None
    eval_params: Callable[[Any, Any], Any] | None = None
    prepare_y: Fitted | None = None

    @property
    def each(self) -> tuple[tuple[str, Metric], ...]:
        """The metrics of one value an example."""
        return tuple(pair for pair in self.metrics if not isinstance(pair[1], Whole))

    @property
    def wholes(self) -> tuple[tuple[str, Whole], ...]:
        """The metrics of a whole held-out part."""
        return tuple((name, metric) for name, metric in self.metrics if isinstance(metric, Whole))


def fresh(function: Any) -> Any:
    """The function (or tuple of functions) as a new object: JAX traces it again, since a global may have changed.

    `programs` finds what has been compiled before. Functions of this package have no such globals.
    """
    if isinstance(function, Fitted):
        return Fitted(*map(fresh, function))
    if type(function) is tuple:
        return tuple(map(fresh, function))
    if isinstance(function, Whole):
        return function if (renewed := fresh(function.function)) is function.function else Whole(renewed)
    # `functools.wraps` gives a user's function the module of the one that it wraps, but not its globals.
    module = getattr(function, "__globals__", {}).get("__name__") or getattr(function, "__module__", None) or ""
    return function if not callable(function) or module.partition(".")[0] == "hw1jax" else partial(function)


def original(function: Any) -> Any:
    """The function of which `fresh` made a new object."""
    return function.func if isinstance(function, partial) and not (function.args or function.keywords) else function


def fresh_task(task: Task) -> Task:
    """The task with functions that are new objects."""
    functions = {
        name: fresh(getattr(task, name))
        for name in ("init", "apply", "loss", "optimizer", "prepare", "eval_params", "prepare_y")
    }
    return task._replace(metrics=tuple((name, fresh(metric)) for name, metric in task.metrics), **functions)


@dataclass(frozen=True)
class NumSteps:
    """The number of updates of a member's fold, for an optimizer that takes it.

    Schedules of optax need a Python number, so there is one optimizer for each number, chosen by `index`.
    """

    numbers: tuple[int, ...]  # of all folds, without duplicates
    index: Any = 0  # int [], traced: the member's


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyData:
    """A typed PRNG key as plain numbers, for numpy, files and `jnp.where` across devices."""

    data: Any  # uint32 [..., words]
    impl: Any = field(metadata={"static": True})


def without_keys(tree: Any) -> Any:
    """Replaces typed PRNG keys by `KeyData`."""

    def convert(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return leaf
        return KeyData(jax.random.key_data(leaf), jax.random.key_impl(leaf))

    return jax.tree.map(convert, tree)


def with_keys(tree: Any) -> Any:
    """Replaces `KeyData` by typed PRNG keys."""

    def convert(leaf: Any) -> Any:
        return jax.random.wrap_key_data(leaf.data, impl=leaf.impl) if isinstance(leaf, KeyData) else leaf

    return jax.tree.map(convert, tree, is_leaf=lambda leaf: isinstance(leaf, KeyData))


def accepted(function: Callable[..., Any], num_given: int, names: Sequence[str]) -> tuple[str, ...]:
    """Returns those of `names` that are parameters of the function after its first `num_given`."""
    parameters = {parameter.name for parameter in _parameters(function)[num_given:]}
    return tuple(name for name in names if name in parameters)


def required(function: Callable[..., Any], num_given: int) -> list[str]:
    """Returns the names of the function's parameters after the first `num_given` that have no default."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    rest = _parameters(function)[num_given:]
    return [
        parameter.name for parameter in rest if parameter.default is parameter.empty and parameter.kind not in several
    ]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return []


def has_state(task: Task) -> bool:
    """True if `apply` takes state."""
    return "state" in accepted(task.apply, 3, OPTIONAL)


def takes_key(task: Task) -> bool:
    """True if `apply` takes a key: training is random."""
    return "key" in accepted(task.apply, 3, OPTIONAL)


def takes_whole_batches(task: Task) -> bool:
    """True if a batch must not be split: its randomness or statistics span the whole batch."""
    return bool(accepted(task.apply, 3, OPTIONAL))


def takes_num_steps(task: Task) -> bool:
    """True if the optimizer takes the number of updates."""
    return bool(accepted(task.optimizer, 1, ("num_steps",)))


def init_variables(task: Task, key: jax.Array, hyperparameters: Hyperparameters) -> tuple[Params, Any]:
    """(params, state) of a new member, without typed PRNG keys; state is None if the task has none."""
    made = task.init(key, hyperparameters)
    if not has_state(task):
        return made, None
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError("init must return (params, state), as apply takes state")
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
    wanted = accepted(task.apply, 3, OPTIONAL)
    given = {"key": key, "train": train, "state": with_keys(state), "mask": mask}
    made = task.apply(params, x, hyperparameters, **{name: given[name] for name in wanted})
    if "state" not in wanted:
        return made, state
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError("apply must return (outputs, state), as it takes state")
    outputs, new_state = made
    return outputs, without_keys(new_state)


def evaluated(
    task: Task, params: Params, state: Any, x: Any, hyperparameters: Hyperparameters, statistics: Any = None
) -> Any:
    """The outputs in evaluation of a batch that has not been prepared, in the unit of the loss."""
    mask = jnp.ones(len(jax.tree.leaves(x)[0]), bool)
    return outputs_of(task, params, state, prepared(task, statistics, x), hyperparameters, mask=mask)[0]


def steps_of(prepare: Any) -> tuple[Any, ...]:
    """The functions and `Fitted`s of `prepare`, in order."""
    return prepare if isinstance(prepare, tuple) and not isinstance(prepare, Fitted) else (prepare,)


def fits_x(prepare: Any) -> bool:
    """True if `prepare` has a `Fitted`."""
    return any(isinstance(step, Fitted) for step in steps_of(prepare))


def is_fitted(task: Task) -> bool:
    """True if the task has statistics."""
    return task.prepare_y is not None or fits_x(task.prepare)


def fit(task: Task, x: Any, y: Any, weights: Any) -> tuple[tuple[Any, ...], Any]:
    """Statistics of a training part: (those of each step of `prepare`, None for a function; those of `prepare_y`)."""
    statistics, values = [], x
    for step in steps_of(task.prepare):
        statistics.append(step.fit(values, y, weights) if isinstance(step, Fitted) else None)
        values = step.transform(statistics[-1], values) if isinstance(step, Fitted) else step(values)
    return tuple(statistics), None if task.prepare_y is None else task.prepare_y.fit(y, y, weights)


def prepared(task: Task, statistics: Any, x: Any) -> Any:
    """A batch as `apply` takes it; `statistics` as of `fit`, None if the task has none."""
    steps = steps_of(task.prepare)
    for step, own in zip(steps, [None] * len(steps) if statistics is None else statistics[0], strict=True):
        x = step.transform(own, x) if isinstance(step, Fitted) else step(x)
    return x


def prepared_y(task: Task, statistics: Any, y: Any) -> Any:
    """The y of the loss."""
    return y if task.prepare_y is None else task.prepare_y.transform(statistics[1], y)


def in_own_units(task: Task, statistics: Any, outputs: Any) -> Any:
    """Outputs in the unit of y."""
    if task.prepare_y is None or task.prepare_y.inverse is None:
        return outputs
    return task.prepare_y.inverse(statistics[1], outputs)


def optimizer_of(
    task: Task, hyperparameters: Hyperparameters, num_steps: NumSteps | None
) -> optax.GradientTransformationExtraArgs:
    """The member's optimizer: its `update` takes the loss as `value`, its state has no typed PRNG keys."""
    if num_steps is None or not takes_num_steps(task):
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
    """Lets `update` take `value=`, and passes it on only if the rule has a parameter for it.

    optax marks some rules as taking any extra arguments that do not, such as `optax.contrib.sam`.
    """
    rule = optax.with_extra_args_support(rule)
    kinds = {parameter.kind for parameter in _parameters(rule.update)}
    if inspect.Parameter.VAR_KEYWORD in kinds or accepted(rule.update, 3, ("value",)):
        return rule
    return optax.GradientTransformationExtraArgs(
        rule.init, lambda updates, state, params=None, **extra: rule.update(updates, state, params)
    )


def _without_keys(rule: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Keeps the rule's state without typed PRNG keys (`optax.add_noise` has one)."""

    def init(params: Params) -> optax.OptState:
        return without_keys(rule.init(params))

    def update(updates: optax.Updates, state: optax.OptState, params: Params | None = None, **extra: Any) -> Any:
        updates, new_state = rule.update(updates, with_keys(state), params, **extra)
        return updates, without_keys(new_state)

    return optax.GradientTransformationExtraArgs(init, update)
