"""Where the time of a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import jax


class Clock:
    """Where the time goes: seconds of each part, and of compiling, which the parts leave out."""

    def __init__(self) -> None:
        self._seconds = {"compile_seconds": 0.0}
        self._compiling: dict[int, list[tuple[float, float]]] = {}  # {thread: [(begin, end)]}
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            begin = end - duration_secs
            # A function traced within another is reported first, and again as a part of it.
            earlier = [span for span in self._compiling.get(get_ident(), []) if span[0] < begin]
            self._compiling[get_ident()] = [*earlier, (begin, end)]

    @contextmanager
    def measure(self, name: str, threads: int = 1) -> Iterator[None]:
        """Counts the time of the block as `name`; `threads` is how many threads compile in it at a time."""
        begin = time.perf_counter()
        self._compiling.clear()
        yield
        compiling = sum(end - begin for spans in self._compiling.values() for begin, end in spans) / threads
        self._seconds["compile_seconds"] += compiling
        self._seconds[name] = time.perf_counter() - begin - compiling

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and of compiling."""
        return dict(self._seconds)
