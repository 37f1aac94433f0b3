"""Counts the programs that are compiled."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def counted() -> Iterator[list[str]]:
    """A list to which the name of each program that is compiled within is added."""
    names: list[str] = []

    def listen(event: str, _: float, **more: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(more.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
