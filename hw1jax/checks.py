"""What a user gives, checked before it is trusted: data, hyperparameters, a task. A mistake is told in one line."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hw1jax import failures, losses, probe, training
from hw1jax.folds import Fold
from hw1jax.probe import Alike
from hw1jax.training import Data, Hyperparameters, Params, Task

NUM_EXAMPLES = 4  # tried alone and together
NUM_LABELS = 1000  # tried at most
NUMBERS = "biufcV"  # kinds of numpy's types; V: bfloat16 and its like


def as_arrays(tree: Any, name: str) -> Any:
    """A tree of arrays, or of what numpy takes for arrays (pandas' tables and columns too), as numpy arrays.

    Raises:
      TypeError: lists, which are trees of their own, or what holds no numbers.
      ValueError: values that are not finite, or a dict or tuple without any.
    """
    if not isinstance(tree, np.ndarray | jax.Array) and hasattr(tree, "to_numpy"):
        table = np.asarray(tree.to_numpy())
        for column in getattr(tree, "columns", ()) if table.dtype.kind not in NUMBERS else ():
            _numbers(tree[column].to_numpy(), f"{name}[{column!r}]")
        return _numbers(table, f"{name}=")
    if isinstance(tree, list) or _is_tuple_of_scalars(tree):
        raise TypeError(f"{name}= must be an array, or a dict or tuple of arrays, not a list: give np.asarray({name})")
    if isinstance(tree, Mapping | tuple) and not tree:
        raise ValueError(f"{name}= is empty")
    if isinstance(tree, Mapping):
        return {key: as_arrays(value, f"{name}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [as_arrays(value, f"{name}[{i}]") for i, value in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if tree is not None and jax.tree.structure(tree) != jax.tree.structure(0):  # somebody's own kind of tree
        return jax.tree.map(lambda leaf: _numbers(leaf, f"{name}="), tree)
    return _numbers(tree, f"{name}=")


def _is_tuple_of_scalars(tree: Any) -> bool:
    return isinstance(tree, tuple) and any(isinstance(value, bool | int | float | np.generic) for value in tree)


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except Exception as error:  # another library's array, on a device of its own, say
        raise TypeError(f"{name} can't be made an array by np.asarray: {textwrap.shorten(str(error), 300)}") from error
    if array.dtype.kind not in NUMBERS:
        kinds = sorted({type(value).__name__ for value in array.flat}) if array.dtype.kind == "O" else ()
        what = f"an array of {array.dtype}" + (f" ({', '.join(kinds)})" if kinds else "")
        dense = ": give its .toarray()" if hasattr(values, "toarray") else ""
        raise TypeError(f"{name} must be numbers, got {what}{dense}")
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        count = np.count_nonzero(~np.isfinite(array))
        raise ValueError(f"{name} must be finite, got {count} of {array.size} values that are NaN or infinite")
    return array


def check_outside(*trees: Any) -> None:
    """A TypeError where JAX is tracing, or one of the trees is traced: programs of its own are compiled here."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((jnp.zeros(()), *trees))):
        raise TypeError(
            "cross_validate can't be called within jax.jit, vmap or grad: it compiles a program itself; call it outside"
        )


def common_length(tree: Any, name: str, axis: str) -> int:
    """The length of the leading axis that all arrays of a tree share; a ValueError if they don't."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) != 1 or not shapes[0][0]:
        raise ValueError(f"{name} must have the same leading {axis} axis, at least 1 long, got shapes {shapes}")
    return shapes[0][0]


def check_number(value: Any, name: str) -> None:
    """Raises a ValueError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}= must be a whole number, at least 1, got {value!r}")


def check_averaging(decay: Any) -> None:
    """Raises a ValueError if something is no decay of a moving average."""
    if not (isinstance(decay, float) and 0 < decay < 1):
        raise ValueError(f"averaging= is a decay, above 0 and below 1; got {decay!r}")


def check_key(key: Any) -> None:
    """Raises a TypeError unless it is one PRNG key."""
    try:
        is_one = jax.random.fold_in(key, 0).shape == key.shape
    except (TypeError, ValueError, AttributeError):
        is_one = False
    if not is_one:
        raise TypeError(f"key= must be a PRNG key, such as jax.random.key(0), got {type(key).__name__}")


def check_calls(num_folds: Any, folds: Any, metrics: Any, progress: Any) -> None:
    """Raises a TypeError where an argument of `cross_validate` stands in another's place, or is of another kind."""
    if folds is None and (isinstance(num_folds, bool) or not isinstance(num_folds, int | np.integer)):
        where = ": splits are given as folds=" if hasattr(num_folds, "split") or isinstance(num_folds, Sequence) else ""
        raise TypeError(f"num_folds= must be a whole number, got {type(num_folds).__name__}{where}")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics= must be a dict of functions by name, got {type(metrics).__name__}")
    if not isinstance(progress, bool | None) and not callable(progress):
        raise TypeError(f"progress= must be True, False or a function, got {type(progress).__name__}")


def check_weights(weights: np.ndarray | None, folds: Sequence[Fold] = ()) -> None:
    """Raises a ValueError unless weights are one number of at least 0 a sample, and not all 0 in a part of a fold."""
    if weights is None:
        return
    if weights.ndim != 1 or not (weights >= 0).all() or not np.isfinite(weights).all() or not weights.any():
        raise ValueError(f"weights= must be one number of at least 0 a sample, not all 0, got shape {weights.shape}")
    for i, fold in enumerate(folds):
        for part, index in fold._asdict().items():
            if len(index) and not weights[index].any():
                raise ValueError(f"weights= are all 0 in the {part} part of fold {i}")


def check_hyperparameters(hyperparameters: Any) -> Any:
    """A tree of arrays with a leading trial axis, of a tree of arrays or of lists, a value a trial.

    Raises:
      TypeError, ValueError: what is no such thing; the message says which entry.
    """
    if isinstance(hyperparameters, list) and any(isinstance(value, Mapping) for value in hyperparameters):
        raise TypeError("hyperparameters= must be a dict of lists, one value a trial each, not a list of dicts")
    paths, structure = jax.tree.flatten_with_path(hyperparameters, is_leaf=_is_list_of_values)
    arrays = {f"hyperparameters{jax.tree_util.keystr(path)}": value for path, value in paths}
    for name, value in arrays.items():
        try:
            arrays[name] = np.asarray(value)
        except ValueError:
            raise ValueError(f"{name} is a list of lists of several lengths") from None
        if arrays[name].dtype.kind in "US" or (
            arrays[name].dtype.kind == "O" and all(map(callable, arrays[name].flat))
        ):
            what = "functions" if arrays[name].dtype.kind == "O" else "names"
            raise TypeError(f"{name} must be numbers, got {what}: give the index of each in a list of them")
        arrays[name] = _numbers(arrays[name], name)
    if not arrays:
        raise ValueError("hyperparameters= is empty: give at least one array, [trial]")
    lengths = [array.shape[:1] for array in arrays.values()]
    usual = max(lengths, key=lengths.count)
    for name, length in zip(arrays, lengths, strict=True):
        if not length or not length[0] or length != usual:
            has = "one value" if not length else f"{length[0]} values"
            others = f", others {usual[0]}" if usual and usual != length else ""
            raise ValueError(f"{name} has {has}{others}: give one a trial, on a leading trial axis")
    return jax.tree.unflatten(structure, arrays.values())


def _is_list_of_values(tree: Any) -> bool:
    """Whether it stands for an array, and not for several hyperparameters."""
    if isinstance(tree, list):
        return not any(isinstance(value, np.ndarray | jax.Array) and value.ndim for value in tree)
    return _is_tuple_of_scalars(tree) and not hasattr(tree, "_fields")


def check_task(
    task: Task, hyperparameters: Hyperparameters, data: Data, num_steps: int | None = None
) -> tuple[Params, Any]:
    """Shapes of a member's (params, state), of a task that can be trained and whose values are one an example.

    Args:
      task: what is to be trained.
      hyperparameters: one trial's.
      data: samples, at least one.
      num_steps: for an optimizer that asks for it; it isn't looked at without.

    Raises:
      TypeError, ValueError: what can't be trained.
    """
    _check_functions(task)
    if task.averaging is not None:
        check_averaging(task.averaging)
    task, key = failures.told_task(task), jax.random.key(0)
    params, state = jax.eval_shape(
        lambda key, hyperparameters: training.init_variables(task, key, hyperparameters), key, hyperparameters
    )
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
    x, y = (jax.tree.map(lambda a: a[:2], tree) for tree in (data.x, data.y))
    num_examples = len(jax.tree.leaves(y)[0])

    def in_training(params: Params, state: Any, x: Any, hyperparameters: Hyperparameters) -> Any:
        mask = jnp.ones(num_examples, bool)
        return training.outputs_of(
            task, params, state, task.prepare(x), hyperparameters, mask=mask, key=key, train=True
        )[1]

    _check_state(state, jax.eval_shape(in_training, params, state, x, hyperparameters))
    outputs = jax.eval_shape(
        lambda params, state, x, hyperparameters: training.evaluated(task, params, state, x, hyperparameters),
        params, state, x, hyperparameters,
    )  # fmt: skip
    if not jax.tree.leaves(outputs):
        raise ValueError("apply returns no outputs: is there a return?")
    for name, function in (("loss", task.loss), *((f"metric {name}", function) for name, function in task.metrics)):
        made = jax.eval_shape(function, outputs, y)
        shape = getattr(made, "shape", None)
        if shape != (num_examples,):
            got = f"shape {shape} for a batch of {num_examples}" if shape is not None else type(made).__name__
            raise ValueError(
                f"{name} must return one value an example, [batch], got {got}{failures.of_shapes(shape, outputs, y)}"
            )
        if name == "loss" and not jnp.issubdtype(made.dtype, jnp.floating):
            raise TypeError(f"loss must return floating-point numbers, got {made.dtype}")
    if num_steps is not None or not training.wants_num_steps(task):
        jax.eval_shape(
            lambda hyperparameters, params: _optimizer(task, hyperparameters, num_steps).init(params),
            hyperparameters, params,
        )  # fmt: skip
    return params, state


def _check_functions(task: Task) -> None:
    functions = {"init": task.init, "apply": task.apply, "loss": task.loss}
    for name, function in (*functions.items(), *((f"metrics[{name!r}]", function) for name, function in task.metrics)):
        if not callable(function):
            raise TypeError(f"{name}= must be a function, got {type(function).__name__}")
        check_hashable(function, name)
    if not callable(task.optimizer):
        raise TypeError(
            "optimizer= must be a function of the hyperparameters that returns an optax transformation, got "
            f"{type(task.optimizer).__name__}: give lambda h: optax.adam(h['learning_rate']), say"
        )
    check_hashable(task.optimizer, "optimizer")
    for name, function, num_given, may_ask in (
        ("apply", task.apply, 3, training.MAY_ASK),
        ("optimizer", task.optimizer, 1, ("num_steps",)),
    ):
        if unknown := [asked for asked in training.required(function, num_given) if asked not in may_ask]:
            raise TypeError(f"{name} asks for {unknown[0]}, which nobody gives it; it may ask for {', '.join(may_ask)}")
    names = [name for name, _ in task.metrics]
    if taken := sorted({name for name in names if name == "loss" or names.count(name) > 1}):
        raise ValueError(f"metrics= has {taken[0]!r}, which is the name of another value")


def check_hashable(function: Any, name: str) -> None:
    """Raises a TypeError if the function can't be looked up, as its programs are."""
    try:
        hash(function)
    except TypeError as error:
        raise TypeError(
            f"{name}= must be hashable, which {type(function).__name__} is not: wrap it in a function, or make the "
            "class a dataclass with eq=False"
        ) from error


def _optimizer(task: Task, hyperparameters: Hyperparameters, num_steps: int | None) -> Any:
    made = task.optimizer(hyperparameters, **({} if num_steps is None else {"num_steps": num_steps}))
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise TypeError(f"optimizer must return an optax transformation, got {type(made).__name__}")
    return made


def _check_state(before: Any, after: Any) -> None:
    """A ValueError where `apply` changes the shapes of the state that `init` gave it."""

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
    task: Task, key: jax.Array, hyperparameters: Hyperparameters, data: Data, num_steps: int | None = None
) -> None:
    """A ValueError where examples are mixed, padding is let in, or `y` has a label that the loss doesn't take."""
    num_samples = len(jax.tree.leaves(data.x)[0])
    some = np.linspace(0, num_samples - 1, min(NUM_EXAMPLES, num_samples)).astype(int)
    y = data.y
    if isinstance(y, np.ndarray) and y.size == num_samples and (y == y.flat[some[0]]).ravel()[some].all():
        some[-1] = np.argmax(y.ravel() != y.flat[some[0]])  # where all were the same, mixing labels would show nothing
    few = Data(*(jax.tree.map(lambda a: a[some], tree) for tree in (data.x, data.y)))
    is_labels = isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iu"
    labels = np.unique(y) if is_labels else jax.tree.map(lambda a: a[:0], y)
    # As many whatever the labels: another number would be another program. The lowest and the highest are among them.
    count = min(NUM_LABELS, num_samples) if is_labels else 0
    tried = labels[np.linspace(0, len(labels) - 1, count).astype(int)] if is_labels else labels
    found = probe.try_out(task, num_steps, key, hyperparameters, few, tried)
    if not _equal(found.outputs):
        raise ValueError(
            "apply mixes examples: in evaluation an example's outputs change with the others of its batch. Statistics "
            "over a batch belong into state (see hw1jax.training.Task); or normalise over each example's own features "
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
                f"{name} mixes examples: an example's value changes with the others of its batch. Compute it from the "
                f"example's own outputs and y alone (do shapes broadcast? {_shape(found.outputs)} outputs, y {shapes})"
                f"{failures.of_shapes(None, found.outputs.together, few.y)}"
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


def _shape(outputs: Alike) -> Any:
    """Of the outputs of the few examples: one shape, or those of all leaves."""
    shapes: Sequence[Any] = [np.shape(leaf) for leaf in jax.tree.leaves(outputs.together)]
    return shapes[0] if len(shapes) == 1 else shapes


def _equal(found: Alike) -> bool:
    """Whether both are the same but for rounding, measured by the largest value."""

    def same(together: jax.Array, alone: jax.Array) -> bool:
        if together.shape != alone.shape:
            return False
        tolerance = float(jnp.finfo(together.dtype).eps) ** 0.5 if jnp.issubdtype(together.dtype, jnp.inexact) else 0
        a, b = (np.asarray(v).astype(np.result_type(v.dtype, np.float32)) for v in (together, alone))
        largest = np.max(np.abs(a), where=np.isfinite(a), initial=0)
        return np.allclose(b, a, rtol=0, atol=tolerance * largest, equal_nan=True)

    return all(jax.tree.leaves(jax.tree.map(same, found.together, found.alone)))
