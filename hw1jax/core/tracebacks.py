"""Short tracebacks of the public functions: a mistake shows its line in the user's code.

JAX_TRACEBACK_FILTERING=off shows all frames, as it does those of JAX.
"""

import inspect
import linecache
import traceback
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import jax

from hw1jax.core import arguments, checks

HIDDEN = ("hw1jax", "jax", "jaxlib")  # packages whose frames are left out
MISTAKES = (ValueError, TypeError, ImportError, OSError)  # what this package raises itself

P = ParamSpec("P")
R = TypeVar("R")


def short(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose exceptions have no frames of this package and of JAX, and name the argument that is meant.

    That holds for exceptions of the user's functions (`checks.in_function`) and those that this package raises about
    arguments. Any other exception may be a fault of this package, and keeps its frames.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if not takes_any and (unknown := [name for name in kwargs if name not in parameters]):
                what = f"{function.__name__} has no argument {unknown[0]}"
                raise TypeError(what + arguments.meant(unknown[0], parameters))
            return function(*args, **kwargs)
        except Exception as error:
            config: Any = jax.config
            if config.jax_traceback_filtering != "off" and _is_called_by_user(error) and _is_mistake(error):
                _shorten(error)
            raise  # which adds no frame for this line

    return called


def _is_called_by_user(error: Exception) -> bool:
    """False if another function of the package has called the one that the error leaves."""
    caller = error.__traceback__ and error.__traceback__.tb_frame.f_back
    return caller is not None and _package(caller.f_globals) != "hw1jax"


def _is_mistake(error: Exception) -> bool:
    """True if a user's function, a `raise` of this package or the call raised the error; not a fault elsewhere."""
    if checks.note_of(error) is not None:
        return True
    if not isinstance(error, MISTAKES):
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    frame, line = frames[-1]
    statement = linecache.getline(frame.f_code.co_filename, line).split()
    return _package(frame.f_globals) == "hw1jax" and (len(frames) == 1 or statement[:1] == ["raise"])


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]


def _shorten(error: BaseException | None) -> None:
    """Removes the frames from the traceback of an error, of its cause and of its context."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = _without_hidden(error.__traceback__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _without_hidden(frames: TracebackType | None) -> TracebackType | None:
    kept = None
    while frames is not None and _package(frames.tb_frame.f_globals) in HIDDEN:
        frames = frames.tb_next
    if frames is not None:
        kept = TracebackType(_without_hidden(frames.tb_next), frames.tb_frame, frames.tb_lasti, frames.tb_lineno)
    return kept
