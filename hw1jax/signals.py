"""Ctrl-C and SIGTERM, heard from the first lines of a program on: every experiment starts with

    from hw1jax import signals

    if __name__ == "__main__":
        signals.listen()

before the imports that take seconds; so this file imports nothing that takes time. Python's own handlers run in the
main thread alone, between two of its instructions. It may be deep in a compiled program then, or in an import, which
ends with a traceback or swallows the interrupt. A thread of its own hears signals whatever the main thread is at.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

SECONDS_TO_STOP = 2.5
stop = threading.Event()  # asks training to stop
stopped = threading.Event()  # training has put down where it was
at_end: list[Callable[[], object]] = []  # what else is done before a signal ends the process
_turn = threading.Lock()  # of who decides how the process ends: the signal or the end of its work
_listening = False
_can_stop = False  # there is a training to ask
_code: int | None = None  # the work is done, and the process about to end with this code


def listen() -> None:
    """From here on Ctrl-C and SIGTERM end the process, with 130 or 143: at once, or after `ask_first` soon."""
    global _listening
    if _listening:
        return
    _listening = True
    heard, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_hear, args=(heard,), daemon=True).start()


def ask_first() -> threading.Event:
    """From here on a signal sets the event that is returned, so that training puts down where it is.

    When it has (`stopped`), after `SECONDS_TO_STOP`, or at a second signal the process ends where it stands.
    """
    global _can_stop
    listen()
    _can_stop = True
    return stop


def finish(code: int) -> NoReturn:
    """Ends the process, whose work is done, with this code, or with that of a signal that was heard before."""
    global _code
    with _turn:
        if not stop.is_set():
            _code = code
            sys.exit(code)
    wait_for_end()


def wait_for_end() -> NoReturn:
    """Training has put down where it was: the signal that asked for it ends the process."""
    stopped.set()
    while True:
        threading.Event().wait()


def _hear(heard: int) -> None:
    number = os.read(heard, 1)[0]
    with _turn:
        if _code is not None:
            _end(_code)
        stop.set()
    if not _can_stop:
        _end(128 + number)
    with contextlib.suppress(Exception):  # a terminal that is gone
        print("\nstopping; the same command goes on from here", file=sys.stderr, flush=True)
    timer = threading.Timer(SECONDS_TO_STOP, _end, [128 + number])
    timer.daemon = True
    timer.start()
    threading.Thread(target=lambda: stopped.wait() and _end(128 + number), daemon=True).start()
    _end(128 + os.read(heard, 1)[0])


def _end(code: int) -> NoReturn:
    """Ends the process where it stands: files appear whole or not at all."""
    try:
        if sys.stderr.isatty():
            print("\x1b[?25h", end="", file=sys.stderr, flush=True)  # a progress bar has hidden the cursor
        sys.stdout.flush()
        for last in at_end:
            last()
    finally:
        os._exit(code)
