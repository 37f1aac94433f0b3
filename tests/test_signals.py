"""Ctrl-C and SIGTERM end an experiment soon and with their own exit code, whatever it is at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SPEED = ["speed/forms.py", "speed/peers.py", "speed/score.py"]
SCRIPTS = [*sorted(path.name for path in EXPERIMENTS.glob("*.py")), *SPEED]
SCRIPTS.remove("homework.py")  # what three of them share; nobody starts it
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc says which signals a process has caught")


def start(*command, **options):
    """Python in a process whose folder is the scripts'."""
    paths = {"PYTHONPATH": os.pathsep.join([str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | paths,
        **options,
    )


def wait_until_it_listens(process):
    """Until then Python itself starts."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)
    pytest.fail("it never listened")


@linux
@pytest.mark.parametrize("seconds", [0, 0.05, 0.2, 0.5, 1, 2])
@pytest.mark.parametrize("name", ["regression", "reproduce"])
def test_an_interrupt_while_it_starts_ends_it_at_once_without_a_traceback(name, seconds, tmp_path):
    process = start(EXPERIMENTS / f"{name}.py", "--out", tmp_path / "out")
    wait_until_it_listens(process)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - begin < 4  # three seconds, and one for a busy machine
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_listens_before_it_imports_anything_heavy(name, tmp_path):
    code = (
        "import runpy, sys\n"
        "class Door:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('numpy', 'jax', 'tyro', 'rich', 'PIL', 'optuna'):\n"
        "            import signal\n"
        "            ours = sys.modules.get('hw1jax.signals')\n"
        "            is_left_to_the_system = signal.getsignal(signal.SIGINT) is signal.SIG_DFL\n"
        "            sys.exit(0 if ours and ours._listening or is_left_to_the_system else 1)\n"
        "sys.meta_path.insert(0, Door())\n"
        f"runpy.run_path({str(EXPERIMENTS / name)!r}, run_name='__main__')\n"
    )
    process = start("-c", code, cwd=tmp_path)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors


def program(*lines):
    """An experiment that does nothing but these lines."""
    start = ["from hw1jax import signals", "signals.listen()", "import atexit, os, time", "from hw1jax import cli"]
    return "\n".join([*start, "cli.stop_on_signals()", *lines])


def test_what_ends_by_itself_after_it_has_been_asked_to_stop_says_the_same_with_its_code():
    work = "lambda: (print('refit', flush=True), time.sleep(1))"  # and training is over
    process = start("-c", program(f"cli.with_exit_code({work})"))
    assert process.stdout.readline() == "refit\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert errors.strip() == "stopping; the same command goes on from here"


def test_a_signal_after_the_work_is_done_changes_nothing():
    late = "atexit.register(lambda: (os.kill(os.getpid(), 15), time.sleep(5)))"
    process = start("-c", program(late, "cli.with_exit_code(lambda: None)"))
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_work_that_does_not_stop_is_ended():
    process = start("-c", program("cli.with_exit_code(lambda: (print('deep', flush=True), time.sleep(60)))"))
    assert process.stdout.readline() == "deep\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - begin < 5
