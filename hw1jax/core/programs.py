"""Compiled programs, known by what they compute: a task written anew finds those of the task that it equals.

A notebook's cell that runs again makes new functions, and what they look at may have changed in the meantime: a global,
a dict, a class, an imported file. No comparison of functions sees all of that; JAX does, as it traces them. So each
task is traced, and if what it comes to has been compiled before, with all constants, nothing is compiled.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered, Traced

# Whose functions are kept, with all that they close over; those of the task not used for longest go. As many as static
# hyperparameters may ask for (`study.MOST_PROGRAMS`), so that a search has them all from one bracket to the next.
KEPT_TASKS = 16
KEPT_PROGRAMS = 16  # of each function


def for_each_task(*static: int, **options: Any) -> Callable[[Callable[..., Any]], Callable[[Any], "Program"]]:
    """Makes a function of (task, ...) one of a task that gives a `Program` of the rest.

    `jax.jit` with the task as a static argument would keep each task that there ever was, with its programs and all
    that its functions close over.

    Args:
      static: which of the rest are no arrays, by position.
      options: of `jax.jit`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[[Any], Program]:
        compiled = _Compiled()
        return lru_cache(KEPT_TASKS)(lambda task: Program(partial(function, task), compiled, static, options))

    return decorate


# For what runs once, for a moment: compiling it with care would take longer than anything else that a study compiles.
quickly_for_each_task = partial(for_each_task, compiler_options={"xla_backend_optimization_level": 0})


def trace(function: Callable[..., Any], *args: Any) -> Traced:
    """The function as operations on these arguments, of which shapes are enough; unused ones are among them."""
    return jax.jit(function, keep_unused=True).trace(*args)


def key_parts(key: jax.Array) -> tuple[Any, np.ndarray]:
    """(kind, numbers) of a PRNG key, as programs take it: numbers may be held by all processes."""
    return jax.random.key_impl(key), np.asarray(jax.random.key_data(key))


class Program:
    """A function that is compiled when it is called, unless one that computes the same has been."""

    def __init__(
        self,
        function: Callable[..., Any],
        compiled: "_Compiled",
        static: tuple[int, ...],
        options: dict[str, Any],
    ):
        # Unused arguments stay: what is left of two functions could be the same, though they use different ones.
        self._function = jax.jit(function, static_argnums=static, keep_unused=True, **options)
        self._compiled, self._static, self._options = compiled, static, options
        self._found: dict[Any, Compiled] = {}

    def trace(self, *args: Any) -> Traced:
        """The function as operations on these arguments."""
        return self._function.trace(*args)

    def __call__(self, *args: Any) -> Any:
        arrays = [arg for i, arg in enumerate(args) if i not in self._static]
        devices = tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arrays))
        traced = self.trace(*args)  # JAX finds it again, where it has traced arguments of this kind
        known = traced.jaxpr, devices
        if known not in self._found:
            self._found[known] = self._compiled(_Lowered(traced.lower(), (devices, repr(self._options))))
        return self._found[known](*arrays)


class _Lowered:
    """A program that is not compiled yet; it equals another that computes the same for the same devices."""

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
    """Whether the text has all that is computed: no calls back into Python, no constants that are passed beside it."""
    _, _, main = text.partition("@main(")
    num_arguments = main.partition("\n")[0].count("%arg")
    return "callback" not in text and num_arguments == lowered.in_tree.num_leaves


class _Compiled:
    """Compiles programs, each once, however many threads ask for it at a time; keeps those used last."""

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
    assert program.lowered is not None  # it is looked up once
    compiled, program.lowered = program.lowered.compile(), None  # the text may hold large constants
    return compiled
