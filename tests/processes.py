"""Small searches in their own processes, with a deadline; they end with the test in any case."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hw1jax import storage

SCRIPT = Path(__file__).with_name("small_run.py")
STARTED: list[subprocess.Popen] = []  # by the test that runs


def start(out, *flags, **options) -> subprocess.Popen:
    """small_run.py with its results in the folder `out`; `options` are those of Popen."""
    command = [sys.executable, str(SCRIPT), str(out), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    STARTED.append(process)
    return process


def wait_for(condition: Callable[[], object], *processes: subprocess.Popen, deadline: float = 120) -> None:
    """Waits until the condition holds; an AssertionError if a process ends before it does, or at the deadline."""
    end = time.monotonic() + deadline
    while not condition():
        for process in processes:
            if process.poll() is not None and not condition():
                raise AssertionError(f"ended with {process.returncode} too early: {process.communicate()[1]}")
        assert time.monotonic() < end, f"still waiting after {deadline} seconds"
        time.sleep(0.002)


def finish(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str]:
    """Waits for the process -> (exit code, standard error); TimeoutExpired if it doesn't end."""
    _, errors = process.communicate(timeout=timeout)
    return process.returncode, errors


def num_lines(log: Path) -> int:
    """Whole lines that a run has put into its log so far."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def one_line(errors: str) -> None:
    """An error that the user can correct is one line."""
    assert errors.startswith("error: ")
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in errors


def lasting(folder: Path):
    """All that a run leaves but times and dates."""
    results = json.loads((folder / "results.json").read_text())
    del results["timing"], results["environment"]
    for rung in results["rungs"]:
        del rung["seconds"]
    arrays = storage.read_arrays(folder / "histories.npz")
    histories = {name: array.tobytes() for name, array in arrays.items()}
    model = folder / "model.msgpack"  # there is none where the refit diverged
    return results, (folder / "trials.csv").read_text(), histories, model.exists() and model.read_bytes()


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """{path: (when it was changed, bytes)} of a folder and all that is in it."""
    paths = [folder, *folder.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in paths}


def kill_started() -> None:
    """Ends what a test has left behind, and closes its pipes."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        if not process.stdout.closed:
            process.communicate()
