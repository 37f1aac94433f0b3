"""Small searches in processes of their own: started, waited for with a deadline, ended whatever becomes of the test."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).with_name("small_run.py")
STARTED: list[subprocess.Popen] = []  # by the test that runs


def start(out, *flags, **options) -> subprocess.Popen:
    """small_run.py with its results in the folder `out`; `options` are those of Popen."""
    command = [sys.executable, str(SCRIPT), str(out), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    STARTED.append(process)
    return process


def wait_for(condition: Callable[[], object], process: subprocess.Popen, deadline: float = 120) -> None:
    """Waits until the condition holds; an AssertionError if the process ends before it does, or at the deadline."""
    end = time.monotonic() + deadline
    while not condition():
        if process.poll() is not None and not condition():
            raise AssertionError(f"ended with {process.returncode} too early: {process.communicate()[1]}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"still waiting after {deadline} seconds: {process.communicate()[1]}")
        time.sleep(0.002)


def finish(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str]:
    """(exit code, what it said on standard error) once it has ended; a TimeoutExpired if it doesn't."""
    _, errors = process.communicate(timeout=timeout)
    return process.returncode, errors


def complete(out, *flags, **options) -> None:
    """A small run from its start to its end."""
    code, errors = finish(start(out, *flags, **options))
    assert code == 0, errors


def num_lines(log: Path) -> int:
    """Whole lines that a run has put into its log so far."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_started() -> None:
    """Ends what a test has left behind."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()
