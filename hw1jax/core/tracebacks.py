"""Short tracebacks of the public functions: a mistake shows its line in the user's code.

JAX_TRACEBACK_FILTERING=off shows all frames, as it does those of JAX.
"""

import linecache
import traceback
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import jax

from hw1jax.core import checks

HIDDEN = ("hw1jax", "jax", "jaxlib")  # packages whose frames are left out
MISTAKES = (ValueError, TypeError, ImportError, OSError)  # what this package raises itself

P = ParamSpec("P")
R = TypeVar("R")


def short(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose exceptions have no frames of this package and of JAX.

    That holds for exceptions of the user's functions (`checks.in_function`) and those that this package raises about
    arguments. Any other exception may be a fault of this package, and keeps its frames.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            config: Any = jax.config
            is_mistake = checks.note_of(error) is not None or _is_raised_here(error)
            if is_mistake and config.jax_traceback_filtering != "off":
                _shorten(error)
            raise  # which adds no frame for this line

    return called


def _is_raised_here(error: Exception) -> bool:
    """True if a `raise` of this package raised the error, not a fault in another statement."""
    if not isinstance(error, MISTAKES):
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    statement = linecache.getline(frame.f_code.co_filename, line).split()
    return _package(frame.f_globals) == "hw1jax" and statement[:1] == ["raise"]


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
