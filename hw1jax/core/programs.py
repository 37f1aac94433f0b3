"""Compiled programs, cached by their lowered text, so that re-creating an equal task compiles nothing.

A notebook cell that runs again makes new functions, and a global, dict, class or imported file that they use may have
changed. No comparison of functions detects all of that; a trace does. So each task is traced, and compiled only if its
operations, with all constants, are new.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered, Traced

# Tasks in the cache (LRU), with all that their functions close over. As many as a search may have programs
# (`study.MOST_PROGRAMS`), so that all stay compiled from one bracket to the next.
KEPT_TASKS = 16
KEPT_PROGRAMS = 16  # of each function


def for_each_task(*static: int, **options: Any) -> Callable[[Callable[..., Any]], Callable[[Any], "Program"]]:
    """Decorator: f(task, *args) becomes f(task) -> Program(*args).

    `jax.jit` with a static task would keep every task, its programs and all that its functions close over.

    Args:
      static: positions among `args` of those that are no arrays.
      options: of `jax.jit`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[[Any], Program]:
        compiled = _Compiled()
        return lru_cache(KEPT_TASKS)(lambda task: Program(partial(function, task), compiled, static, options))

    return decorate


# For programs that run once: XLA's optimizations would take longer than the run.
quickly_for_each_task = partial(for_each_task, compiler_options={"xla_backend_optimization_level": 0})


def trace(function: Callable[..., Any], *args: Any) -> Traced:
    """Traces the function on arguments (shapes are enough); unused arguments are kept."""
    return jax.jit(function, keep_unused=True).trace(*args)


def evaluated(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) in one program, instead of one for each operation; not optimized, as it runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*args)


def key_parts(key: jax.Array) -> tuple[Any, np.ndarray]:
    """(implementation, key data) of a PRNG key, as programs take it: plain numbers can be shared by processes."""
    return jax.random.key_impl(key), np.asarray(jax.random.key_data(key))


class Program:
    """A function that is compiled when it is called, unless an equal one has been compiled."""

    def __init__(
        self, function: Callable[..., Any], compiled: "_Compiled", static: tuple[int, ...], options: dict[str, Any]
    ):
        # Unused arguments stay: without them, functions that use different arguments could look equal.
        self._function = jax.jit(function, static_argnums=static, keep_unused=True, **options)
        self._compiled, self._static, self._options = compiled, static, options
        self._found: dict[Any, Compiled] = {}

    def trace(self, *args: Any) -> Traced:
        return self._function.trace(*args)

    def __call__(self, *args: Any) -> Any:
        arrays = [arg for i, arg in enumerate(args) if i not in self._static]
        devices = tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arrays))
        traced = self.trace(*args)  # JAX caches it
        known = traced.jaxpr, devices
        if known not in self._found:
            self._found[known] = self._compiled(_Lowered(traced.lower(), (devices, repr(self._options))))
        return self._found[known](*arrays)


class _Lowered:
    """A lowered program; equal to another with the same text, devices and options."""

    def __init__(self, lowered: Lowered, more: Any):
        text = lowered.as_text()
        digest = hashlib.sha256(text.encode()).digest()
        self.lowered: Lowered | None = lowered
        self.key = (digest, lowered.in_tree, lowered.out_tree, more) if _says_all(text, lowered) else object()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Lowered) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _says_all(text: str, lowered: Lowered) -> bool:
    """Returns True if the text is the whole computation: no Python callbacks, no constants passed separately."""
    _, _, main = text.partition("@main(")
    num_arguments = main.partition("\n")[0].count("%arg")
    return "callback" not in text and num_arguments == lowered.in_tree.num_leaves


class _Compiled:
    """Compiles each program once, even if several threads request it at the same time; an LRU cache."""

    def __init__(self):
        self._compile = lru_cache(KEPT_PROGRAMS)(_compile)
        self._lock_of = lru_cache(KEPT_PROGRAMS)(lambda _: threading.Lock())
        self._lock = threading.Lock()

    def __call__(self, program: _Lowered) -> Compiled:
        with self._lock:
            own = self._lock_of(program)
        with own:
            return self._compile(program)


def _compile(program: _Lowered) -> Compiled:
    assert program.lowered is not None  # compiled once
    compiled, program.lowered = program.lowered.compile(), None  # the text may hold large constants
    return compiled
