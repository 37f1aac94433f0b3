"""What a user's own function raises, told in one line: which function, with what it was called, and what may help."""

import functools
import re
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hw1jax import losses
from hw1jax.training import Task

LIBRARY = traceback.__file__.removesuffix("traceback.py")  # the folder of Python's own modules
STATIC = "in a Study a size, a range or an index is static=True, or width=True with the layers of hw1jax.models"


def told(function: Callable[..., Any], name: str, names: Sequence[str]) -> Callable[..., Any]:
    """The function, but what it raises is told in one line: its name, what it was called with, and what to do.

    Args:
      function: somebody's own.
      name: its name as an argument.
      names: those of its first arguments.
    """

    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        try:
            return function(*args, **more)
        except Exception as error:
            line = _why(error, function, name, dict(zip(names, args, strict=False)) | more)
            raise (TypeError if isinstance(error, TypeError) else ValueError)(line) from error

    return call


def told_task(task: Task) -> Task:
    """The task, but its functions tell in one line why they fail, or that they return what is no array."""

    def arrays(function: Callable[..., Any], name: str, names: Sequence[str]) -> Callable[..., Any]:
        function = told(function, name, names)

        @functools.wraps(function)
        def call(*args: Any, **more: Any) -> Any:
            made = function(*args, **more)
            for path, leaf in jax.tree.leaves_with_path(made):
                if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
                    where = jax.tree_util.keystr(path) or "it"
                    what = "a function" if callable(leaf) else f"a {type(leaf).__name__}"
                    way = ": of an Equinox module, return eqx.filter(net, eqx.is_array), and eqx.combine it in apply"
                    way = way if callable(leaf) else ": give jnp.asarray" if isinstance(leaf, int | float) else ""
                    raise TypeError(f"{name} returns {what} as {where}, where arrays are expected{way}")
            return made

        return call

    return task._replace(
        init=arrays(task.init, "init", ("key", "hyperparameters")),
        apply=arrays(task.apply, "apply", ("params", "x", "hyperparameters")),
        loss=told(task.loss, "loss", ("outputs", "y")),
        optimizer=_told_optimizer(task.optimizer),
        prepare=told(task.prepare, "prepare", ("x",)),
        metrics=tuple((name, told(metric, f"metric {name}", ("outputs", "y"))) for name, metric in task.metrics),
    )


def _told_optimizer(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but also the updates of what it returns tell in one line why they fail."""
    made_by = told(function, "optimizer", ("hyperparameters",))

    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        made = made_by(*args, **more)
        if not isinstance(made, optax.GradientTransformation):
            return made
        update = told(made.update, "the update of optimizer", ("updates", "state", "params"))
        return type(made)(told(made.init, "the init of optimizer", ("params",)), update)

    return call


def _why(error: Exception, function: Any, name: str, given: Mapping[str, Any]) -> str:
    """What a function's failure comes to, in one line."""
    text = " ".join(str(error).split())
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line)
              for frame, line in traceback.walk_tb(error.__traceback__)]  # fmt: skip
    own = [(file, line) for module, file, line in frames if not (
        module.startswith("hw1jax.") or "-packages" in file or file.startswith(LIBRARY))]  # fmt: skip
    place = " at {}:{}".format(re.split(r"[/\\]", own[-1][0])[-1], own[-1][1]) if own else ""
    found = re.search(r"values? of the arguments? (.*?)\.(?: |$)", text)
    what = found[1] if found else "a traced value"
    if isinstance(error, jax.errors.TracerBoolConversionError):
        static = ", or in a Study static=True" if what.startswith("hyperparameters") else ""
        return f"{name} decides by {what} in Python (if, and, or, not){place}, but it is traced: use jnp.where{static}"
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return f"{name} gives {what} to NumPy{place}, which can't take what is traced: use jax.numpy there"
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerIntegerConversionError) or (
        isinstance(error, TypeError) and re.search("concrete values of integer type|unhashable type: '.*Tracer'", text)
    ):
        return f"{name} needs {what} as a Python number{place}, but it is traced: leave out float(), int(); {STATIC}"
    if frames[-1][0] == losses.__name__ and isinstance(error, TypeError | ValueError):  # which say it in a line
        return text + of_shapes(None, *given.values())
    called = ", ".join(f"{key}: {_described(value)}" for key, value in given.items())
    text = textwrap.shorten(text, 300, placeholder=" ...").rstrip(".")
    return f"{name}({called}) fails{place}: {type(error).__name__}: {text}{_mend(error, function, name, given)}"


def _mend(error: Exception, function: Any, name: str, given: Mapping[str, Any]) -> str:
    """What may help where a function fails, if that can be said."""
    if name == "loss" or name.startswith("metric "):
        return of_shapes(None, *given.values())
    if all(hasattr(getattr(function, "__self__", None), part) for part in ("init", "apply")):
        own = {"init": "lambda key, h: net.init(key, x[:1])", "apply": "lambda params, x, h: net.apply(params, x)"}
        return f"; a method of a net doesn't take hyperparameters: give {own[name]}" if name in own else ""
    if name == "optimizer" and getattr(function, "__module__", "").startswith("optax"):
        return "; give lambda h: optax.adam(h['learning_rate']), say"
    whole = {str(a.dtype) for a in jax.tree.leaves(given.get("x")) if jnp.issubdtype(a.dtype, jnp.integer)}
    if whole and isinstance(error, TypeError):
        return f"; x is {', '.join(sorted(whole))}: make it floating-point there, as x / 255"
    return ""


def of_shapes(shape: tuple[int, ...] | None, outputs: Any = None, y: Any = None) -> str:
    """What may help where a loss or metric fails, or returns another shape than [batch], if that can be said."""
    o, y = getattr(outputs, "shape", None), getattr(y, "shape", None)
    if o and y and len(o) == 2 and o[1] == 1 and len(y) == 1:
        return ": y is [sample], outputs [batch, 1]; give y[:, None]"
    if o and y and y[1:] == (1,) and o != y:
        return f": y is [sample, 1], outputs [batch{''.join(f', {n}' for n in o[1:])}]; give y[:, 0]"
    if shape == ():
        return ": don't average over the batch"
    return ": average over the other axes, as .mean(axis=-1)" if shape and o and shape[:1] == o[:1] else ""


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + textwrap.shorten(", ".join(map(str, value)), 60, placeholder="..") + "}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
