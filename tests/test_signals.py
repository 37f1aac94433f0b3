"""Ctrl-C and SIGTERM end an experiment soon, with the right exit code, at any moment.

One process forks for each case, so Python and JAX start only once.
"""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says which signals a process has caught")

FORK = """
import json, os, signal, sys, time
from pathlib import Path

def case(work, *signals, seconds=20):
    '''[exit code, what was said on standard error, seconds after the last signal] of work() in a process of its own.

    Each of `signals` (function of the process's number that waits, signal) is sent to it.
    '''
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 2)
        os.close(read)
        code = 1
        try:
            work()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        import atexit
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    for wait, number in signals:
        wait(child)
        os.kill(child, number)
    begin = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - begin > seconds:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    with os.fdopen(read) as said:
        return os.waitstatus_to_exitcode(ended[1]), said.read(), time.monotonic() - begin

def until_it_listens(child):
    '''Until then Python itself starts.'''
    for _ in range(20_000):
        status = Path(f'/proc/{child}/status').read_text()
        if int(status.partition('SigCgt:')[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)

def after(seconds):
    return lambda child: (until_it_listens(child), time.sleep(seconds))
"""


def found_by(code):
    """What the code leaves in `found`, in a process that has imported nothing else."""
    script = f"{FORK}\n{code}\nprint(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ENDS = """
from hw1jax import cli

def script(work):
    cli.stop_on_signals()
    cli.with_exit_code(work)

def late():
    import atexit
    atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5)))
    script(lambda: None)

found = {
    'ends by itself': case(lambda: script(lambda: time.sleep(1)), (after(0.3), signal.SIGTERM)),
    'is done': case(late),
    'has failed': case(lambda: script(lambda: 1 // 0)),
    'does not stop': case(lambda: script(lambda: time.sleep(60)), (after(0.3), signal.SIGINT)),
    'is asked twice': case(lambda: script(lambda: time.sleep(60)), *[(after(0.3), signal.SIGINT)] * 2),
}
"""


def test_what_is_asked_to_stop_says_so_and_ends_with_its_code():
    found = found_by(ENDS)
    code, errors, _ = found["ends by itself"]  # and training is over
    assert (code, errors.strip()) == (143, "stopping; the same command goes on from here")
    assert found["is done"][:2] == [0, ""], "a signal after the work is done changes nothing"
    assert found["has failed"][0] == 1 and "ZeroDivisionError" in found["has failed"][1]
    code, errors, seconds = found["does not stop"]
    assert code == 130 and 1 < seconds < 5, errors
    code, errors, seconds = found["is asked twice"]
    assert code == 130 and seconds < 1, errors
