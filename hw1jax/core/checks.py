"""Checks of a user's task. Error messages are one line.

An exception of a user's function keeps its type, message and traceback, and gets a note (`in_function`).
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import ScheduleFreeState

from hw1jax.core import losses, probe, tasks
from hw1jax.core.array_checks import check_averaging
from hw1jax.core.probe import Alike
from hw1jax.core.tasks import Hyperparameters, NumSteps, Params, Task
from hw1jax.core.training import Data

NUM_EXAMPLES = 4  # evaluated one at a time and in a batch
NUM_LABELS = 1000  # evaluated at most
TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@contextmanager
def in_function(name: str, function: Callable[..., Any], **given: Any) -> Iterator[None]:
    """Adds a note to an exception of the user's `function`: its `name`, its arguments (`given`) and a hint."""
    try:
        yield
    except Exception as error:
        called = ", ".join(f"{key}: {_described(value)}" for key, value in given.items())
        error.add_note(f"in {name}, called with ({called}){_hint(error, name, tasks.original(function), given)}")
        raise


def note_of(error: BaseException) -> str | None:
    """Returns the note of `in_function`, or None if no user's function raised the error."""
    return next((note for note in getattr(error, "__notes__", ()) if note.startswith("in ")), None)


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + textwrap.shorten(", ".join(map(str, value)), 60, placeholder="..") + "}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__


def _hint(error: Exception, name: str, function: Any, given: Mapping[str, Any]) -> str:
    if isinstance(error, TRACED) or "Tracer" in str(error) or "concrete values" in str(error):
        return (
            ": a traced value is no Python number; use jax.numpy and jnp.where, without float(), int() and if. In a "
            "Study, declare it static=True, or a size as width=True with the layers of hw1jax.models"
        )
    if type(error).__name__ == "InvalidRngError" or "rngs" in str(error):  # of Flax
        return (
            ": dropout needs a key in training; give lambda params, x, h, key, train: net.apply(params, x, train, "
            'rngs={"dropout": key} if train else None), and deterministic=not train to the layer'
        )
    if "outputs" in given:
        return of_shapes(None, given["outputs"], given.get("y"))
    if all(hasattr(getattr(function, "__self__", None), part) for part in ("init", "apply")):  # a method of a network
        own = {"init": "lambda key, h: net.init(key, x[:1])", "apply": "lambda params, x, h: net.apply(params, x)"}
        return f": give {own[name]}" if name in own else ""
    if getattr(function, "__module__", "").startswith("optax"):
        return ": give lambda h: optax.adam(h['learning_rate']), say"
    if any(jnp.issubdtype(a.dtype, jnp.integer) for a in jax.tree.leaves(given.get("x"))):
        return ": x is of whole numbers; make it floating-point there, as x / 255"
    return ""


def of_shapes(shape: tuple[int, ...] | None, outputs: Any = None, y: Any = None) -> str:
    """Returns a hint for a loss or metric that fails or whose value isn't [batch]; "" if there is none."""
    o, y = getattr(outputs, "shape", None), getattr(y, "shape", None)
    if o and y and len(o) == 2 and o[1] == 1 and len(y) == 1:
        return ": y is [sample], outputs [batch, 1]; give y[:, None]"
    if o and y and y[1:] == (1,) and o != y:
        return f": y is [sample, 1], outputs [batch{''.join(f', {n}' for n in o[1:])}]; give y[:, 0]"
    if shape == ():
        return ": don't average over the batch"
    return ": average over the other axes, as .mean(axis=-1)" if shape and o and shape[:1] == o[:1] else ""


def check_task(
    task: Task, hyperparameters: Hyperparameters, data: Data, num_steps: tuple[int, ...] | None = None
) -> tuple[Params, Any]:
    """Checks by abstract evaluation that a task can be trained -> shapes of a member's (params, state).

    `hyperparameters` are one trial's; `data` has at least one sample, and one fold's statistics; `num_steps`: see
    `population.num_updates`.

    Raises:
      TypeError, ValueError: the task can't be trained, or its loss or a metric isn't one value an example.
    """
    _check_functions(task)
    check_prepare(task)
    if task.averaging is not None:
        check_averaging(task.averaging)
    x, y = (jax.tree.map(lambda a: a[:2], tree) for tree in (data.x, data.y))
    params, state = _check_init(task, hyperparameters)
    outputs = _check_apply(task, params, state, x, hyperparameters, data.statistics)
    _check_values(task, outputs, y, data.statistics)
    _check_optimizer(task, hyperparameters, params, num_steps)
    return params, state


def _check_init(task: Task, hyperparameters: Hyperparameters) -> tuple[Params, Any]:
    key = jax.random.key(0)

    def new_member(key: jax.Array, hyperparameters: Hyperparameters) -> tuple[Params, Any]:
        params, state = tasks.init_variables(task, key, hyperparameters)
        return _checked_arrays(params, "init"), _checked_arrays(state, "init")

    with in_function("init", task.init, key=key, hyperparameters=hyperparameters):
        params, state = jax.eval_shape(new_member, key, hyperparameters)
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = ", ".join(sorted(str(name) for name in params if name != "params"))
        raise ValueError(
            f"init returns {others} beside params, all of which would be trained: return (params, state), and let "
            "apply take state by name"
        )
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise ValueError("init returns no parameters")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = jax.tree_util.keystr(path) or "an array"
            raise ValueError(
                f"init returns {name} of {leaf.dtype}: parameters are trained, so all must be floating-point"
            )
    return params, state


def _check_apply(
    task: Task, params: Params, state: Any, x: Any, hyperparameters: Hyperparameters, statistics: Any
) -> Any:
    """Returns the shapes of the outputs in evaluation; x has not been prepared."""
    key, mask = jax.random.key(0), jnp.ones(len(jax.tree.leaves(x)[0]), bool)

    def in_training(params: Params, state: Any, x: Any, hyperparameters: Hyperparameters) -> Any:
        made = tasks.outputs_of(task, params, state, x, hyperparameters, mask=mask, key=key, train=True)
        return _checked_arrays(made[1], "apply")

    def in_evaluation(params: Params, state: Any, x: Any, hyperparameters: Hyperparameters) -> Any:
        return _checked_arrays(tasks.evaluated(task, params, state, x, hyperparameters, statistics), "apply")

    with in_function("prepare", task.prepare, x=x):
        prepared = jax.eval_shape(lambda x: tasks.prepared(task, statistics, x), x)
    with in_function("apply", task.apply, params=params, x=prepared, hyperparameters=hyperparameters):
        new_state = jax.eval_shape(in_training, params, state, prepared, hyperparameters)
        outputs = jax.eval_shape(in_evaluation, params, state, x, hyperparameters)
    _check_state(state, new_state)
    if not jax.tree.leaves(outputs):
        raise ValueError("apply returns no outputs: is there a return?")
    return outputs


def _check_values(task: Task, raw: Any, own_y: Any, statistics: Any) -> None:
    num_examples = len(jax.tree.leaves(own_y)[0])
    own, y_of_loss = raw, own_y
    if task.prepare_y is not None:
        with in_function("prepare_y", task.prepare_y.transform, outputs=raw, y=own_y):
            own = jax.eval_shape(lambda outputs: tasks.in_own_units(task, statistics, outputs), raw)
            y_of_loss = jax.eval_shape(lambda y: tasks.prepared_y(task, statistics, y), own_y)
    for name, function in (("loss", task.loss), *((f"metric {name}", function) for name, function in task.each)):
        outputs, y = (raw, y_of_loss) if name == "loss" else (own, own_y)
        with in_function(name, function, outputs=outputs, y=y):
            made = jax.eval_shape(function, outputs, y)
        shape = getattr(made, "shape", None)
        if shape != (num_examples,):
            got = f"shape {shape} for a batch of {num_examples}" if shape is not None else type(made).__name__
            raise ValueError(
                f"{name} must return one value an example, [batch], got {got}{of_shapes(shape, outputs, y)}"
            )
        if name == "loss" and not jnp.issubdtype(made.dtype, jnp.floating):
            raise TypeError(f"loss must return floating-point numbers, got {made.dtype}")
    weights = jax.ShapeDtypeStruct((num_examples,), jnp.result_type(float))
    for name, whole in task.wholes:
        with in_function(f"metrics[{name!r}]", whole, outputs=own, y=own_y, weights=weights):
            made = jax.eval_shape(whole, own, own_y, weights)
        if getattr(made, "shape", None) != ():
            got = f"shape {made.shape}" if hasattr(made, "shape") else type(made).__name__
            raise ValueError(f"metrics[{name!r}] must return one number for the whole held-out part, got {got}")


def _checked_arrays(made: Any, name: str) -> Any:
    """Returns `made`, the value of the function called `name`; raises a TypeError if a leaf is no array."""
    for path, leaf in jax.tree.leaves_with_path(made):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            where = jax.tree_util.keystr(path) or "it"
            what = "a function" if callable(leaf) else f"a {type(leaf).__name__}"
            way = ": of an Equinox module, return eqx.filter(net, eqx.is_array), and eqx.combine it in apply"
            way = way if callable(leaf) else ": give jnp.asarray" if isinstance(leaf, int | float) else ""
            raise TypeError(f"{name} returns {what} as {where}, where arrays are expected{way}")
    return made


def _check_functions(task: Task) -> None:
    functions = {"init": task.init, "apply": task.apply, "loss": task.loss}
    for name, function in (*functions.items(), *((f"metrics[{name!r}]", function) for name, function in task.metrics)):
        if not callable(function):
            raise TypeError(f"{name}= must be a function, got {type(function).__name__}")
        check_hashable(function, name)
    if task.eval_params is not None and not callable(task.eval_params):
        raise TypeError(f"eval_params= must be a function, got {type(task.eval_params).__name__}")
    if not callable(task.optimizer):
        raise TypeError(
            "optimizer= must be a function of the hyperparameters that returns an optax transformation, got "
            f"{type(task.optimizer).__name__}: give lambda h: optax.adam(h['learning_rate']), say"
        )
    check_hashable(task.optimizer, "optimizer")
    for name, function, num_given, optional in (
        ("apply", task.apply, 3, tasks.OPTIONAL),
        ("optimizer", task.optimizer, 1, ("num_steps",)),
    ):
        if unknown := [p for p in tasks.required(function, num_given) if p not in optional]:
            raise TypeError(f"{name} has an unknown parameter {unknown[0]}; it may have {', '.join(optional)}")
    names = [name for name, _ in task.metrics]
    if taken := sorted({name for name in names if name == "loss" or names.count(name) > 1}):
        raise ValueError(f"metrics= has {taken[0]!r}, which is the name of another value")


def check_prepare(task: Task) -> None:
    """Raises a TypeError or ValueError unless `prepare` and `prepare_y` are functions and `Fitted`s."""
    steps = tasks.steps_of(task.prepare)
    named = {"prepare" if len(steps) == 1 else f"prepare[{i}]": step for i, step in enumerate(steps)}
    if task.prepare_y is not None:
        named["prepare_y"] = task.prepare_y
        if not isinstance(task.prepare_y, tasks.Fitted):
            raise TypeError(f"prepare_y= must be a hw1jax.Fitted, got {type(tasks.original(task.prepare_y)).__name__}")
        if task.prepare_y.inverse is None:
            raise ValueError("prepare_y= needs an inverse: metrics and predictions are in the unit of y")
    for name, step in named.items():
        functions = step._asdict() if isinstance(step, tasks.Fitted) else {"": step}
        for part, function in functions.items():
            if not callable(function) and not (part == "inverse" and function is None):
                of = f"{part} of " if part else ""
                raise TypeError(f"{of}{name}= must be a function, got {type(function).__name__}")
            check_hashable(function, name)


def check_hashable(function: Any, name: str) -> None:
    """Raises a TypeError if the function is not hashable: compiled programs are looked up by it."""
    try:
        hash(tasks.original(function))
    except TypeError as error:
        raise TypeError(
            f"{name}= must be hashable, which {type(tasks.original(function)).__name__} is not: wrap it in a function, "
            "or make the class a dataclass with eq=False"
        ) from error


def _check_optimizer(task: Task, hyperparameters: Hyperparameters, params: Params, num_steps: Any) -> None:
    """Raises a TypeError or ValueError if an update fails or changes the structure or shapes of the parameters."""
    steps = None if num_steps is None else NumSteps(num_steps[:1])

    def update(hyperparameters: Hyperparameters, params: Params) -> tuple[Params, Params]:
        made = task.optimizer(hyperparameters, **({} if steps is None else {"num_steps": steps.numbers[0]}))
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise TypeError(f"optimizer must return an optax transformation, got {type(made).__name__}")
        rule = tasks.optimizer_of(task, hyperparameters, steps)
        opt_state = rule.init(params)
        value = jnp.zeros((), jnp.result_type(float))
        updates, new_state = rule.update(jax.tree.map(jnp.ones_like, params), opt_state, params, value=value)
        new_params = optax.apply_updates(params, updates)
        _check_eval_params(task, opt_state)
        new_state = tasks.with_keys(new_state)
        return new_params, new_params if task.eval_params is None else task.eval_params(new_state, new_params)

    with in_function("optimizer", task.optimizer, hyperparameters=hyperparameters):
        updated, final = jax.eval_shape(update, hyperparameters, params)
    for what, made in (("optimizer", updated), ("eval_params", final)):
        if jax.tree.structure(made) != jax.tree.structure(params) or [a.shape for a in jax.tree.leaves(made)] != [
            a.shape for a in jax.tree.leaves(params)
        ]:
            raise ValueError(f"{what} returns other parameters than there were")


def _check_eval_params(task: Task, opt_state: Any) -> None:
    """Raises a ValueError if the optimizer keeps its evaluation point in its state and the task doesn't use it."""
    if task.eval_params is not None and task.averaging is not None:
        raise ValueError("eval_params= and averaging= both say which parameters are evaluated: give one of them")
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, ScheduleFreeState))
    if task.eval_params is None and any(isinstance(part, ScheduleFreeState) for part in parts):
        raise ValueError(
            "optimizer trains at another point than it returns (schedule-free): give "
            "eval_params=optax.contrib.schedule_free_eval_params, or it would be scored at the training point"
        )


def _check_state(before: Any, after: Any) -> None:
    """Raises a ValueError if `apply` changes the structure, shapes or dtypes of the state that `init` returned."""

    def shapes(tree: Any) -> dict[str, str]:
        leaves = jax.tree.leaves_with_path(tree)
        return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    old, new = shapes(before), shapes(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"apply returns {new.get(name, 'nothing')} for state{name}, init {old.get(name, 'nothing')}: a state "
                "keeps its shapes"
            )
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError("apply returns its state as another kind of tree than init")


def check_examples(
    task: Task, key: jax.Array, hyperparameters: Hyperparameters, data: Data, num_steps: tuple[int, ...] | None = None
) -> None:
    """Raises a ValueError if the task mixes examples, padding has an effect, or the loss rejects a label of `y`."""
    num_samples = len(jax.tree.leaves(data.x)[0])
    some = np.linspace(0, num_samples - 1, min(NUM_EXAMPLES, num_samples)).astype(int)
    y = data.y
    _check_unit(task, y)
    if isinstance(y, np.ndarray) and y.size == num_samples and (y == y.flat[some[0]]).ravel()[some].all():
        some[-1] = np.argmax(y.ravel() != y.flat[some[0]])  # among equal labels, mixing them would not show
    few = Data(*(jax.tree.map(lambda a: a[some], tree) for tree in (data.x, data.y)), statistics=data.statistics)
    is_labels = isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iu" and task.prepare_y is None
    labels = np.unique(y) if is_labels else jax.tree.map(lambda a: a[:0], y)
    # Always the same number, so that one program serves; the lowest and the highest label are among them.
    count = min(NUM_LABELS, num_samples) if is_labels else 0
    tried = labels[np.linspace(0, len(labels) - 1, count).astype(int)] if is_labels else labels
    found = probe.try_out(task, num_steps, key, hyperparameters, few, tried)
    if not _equal(found.outputs):
        raise ValueError(
            "apply mixes examples: in evaluation an example's outputs change with the others of its batch. Statistics "
            "over a batch belong into state (see hw1jax.Task); or normalise over each example's own features "
            "(as LayerNorm or GroupNorm does)"
        )
    if found.padding is not None and not _equal(found.padding):
        raise ValueError(
            "apply lets padding into its statistics: short batches are filled up, and what fills them must not count. "
            "Let apply take mask by name, and give it to the layer, as nn.BatchNorm()(x, mask=mask[:, None])"
        )
    for name, values in (("loss", found.losses), *((f"metric {n}", v) for n, v in found.metrics.items())):
        if not _equal(values):
            shapes = jax.tree.map(lambda a: a.shape, few.y)
            raise ValueError(
                f"{name}{' or prepare_y' if name == 'loss' and task.prepare_y else ''} mixes examples: an example's "
                "value changes with the others of its batch. Compute it from the "
                f"example's own outputs and y alone (do shapes broadcast? {_shape(found.outputs)} outputs, y {shapes})"
                f"{of_shapes(None, found.outputs.together, few.y)}"
            )
    if not is_labels:
        return
    wrong = tried[~np.isfinite(np.asarray(found.of_labels)).any(axis=1)]
    if len(wrong):
        message = f"the loss of label {wrong[0]} of y is not finite"
        if task.loss is losses.cross_entropy:
            num_outputs = _shape(found.outputs)[-1]
            message = f"y has labels {labels[0]} to {labels[-1]}, {num_outputs} outputs take 0 to {num_outputs - 1}"
        raise ValueError(message)


def _check_unit(task: Task, y: Any) -> None:
    """Raises a ValueError if squared errors of y would be 0 in JAX's type."""
    is_squared = tasks.original(task.loss) is losses.squared_error and task.prepare_y is None
    if is_squared and isinstance(y, np.ndarray) and y.dtype.kind == "f":
        limits = jnp.finfo(jnp.promote_types(jax.dtypes.canonicalize_dtype(y.dtype), jnp.float32))  # as the loss
        deviation = np.std(y.astype(np.float64))
        if 0 < deviation**2 < limits.tiny / limits.eps:
            raise ValueError(
                f"y has a standard deviation of {deviation:.3g}, whose square is 0 in {limits.dtype}: give another "
                "unit, or prepare_y=hw1jax.standardize"
            )


def _shape(outputs: Alike) -> Any:
    shapes: Sequence[Any] = [np.shape(leaf) for leaf in jax.tree.leaves(outputs.together)]
    return shapes[0] if len(shapes) == 1 else shapes


def _equal(found: Alike) -> bool:
    """Returns True if both are equal up to rounding, relative to the largest value."""

    def same(together: jax.Array, alone: jax.Array) -> bool:
        if together.shape != alone.shape:
            return False
        tolerance = 0.0
        if jnp.issubdtype(together.dtype, jnp.inexact):  # preprocessing may be in float32 where outputs are in float64
            tolerance = max(float(jnp.finfo(dtype).eps) for dtype in (together.dtype, jnp.float32)) ** 0.5
        a, b = (np.asarray(v).astype(np.result_type(v.dtype, np.float32)) for v in (together, alone))
        largest = np.max(np.abs(a), where=np.isfinite(a), initial=0)
        return np.allclose(b, a, rtol=0, atol=tolerance * largest, equal_nan=True)

    return all(jax.tree.leaves(jax.tree.map(same, found.together, found.alone)))
