"""A small search for tests that stop its process: python tests/small_run.py OUT [--help]

Tests also import it to resume what such a process left.
"""

import argparse
import json
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

import regression
import studies

from hw1jax import cli, environment, run
from hw1jax.search import jobs, optuna_search
from hw1jax.search.observer import Observer
from hw1jax.search.space import Int
from hw1jax.search.study import narrow, run_config

STUDIES = {
    "regression": narrow(regression.STUDY, hidden_units=(Int(3, 8, width=True), Int(3, 6, width=True))),
    "deep": replace(studies.DEEP, epochs_per_call=50),
}
USUAL = {"num_trials": 12, "num_epochs": 1000, "batch_size": 20, "widths": "padded"}
ONE_DEVICE = {"num_devices": 1}


class Log(Observer):
    """Writes a line for each call of a program, in another file for the refit; kills itself at a given call."""

    def __init__(self, log=None, kill_at=None):
        self._log, self._kill_at, self._seen = log, kill_at, 0

    def note(self, text):
        print(text, file=sys.stderr)

    def epochs(self, what, done, num_epochs, scores, search_done=None):
        if self._log:
            with open(self._log if what.startswith("trials") else self._log.with_suffix(".refit"), "a") as file:
                file.write(f"{what} {done}\n")
        self._seen += bool(self._kill_at) and self._kill_at in what
        if self._seen == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def complete(out, study="regression", *, log=None, kill_at=None, stop=None, **settings):
    """The search from where it is to its end."""
    asked = run_config(STUDIES[study], out=out, **USUAL | settings)
    return run.run(asked, Log(log, kill_at), command="", started=cli.STARTED, stop=stop)


def die_in_the_middle_of_a_record(number):
    """Of the journal, the number-th that is written."""
    write, written = optuna_search.Journal.append_logs, 0

    def dying(self, logs):
        nonlocal written
        written += 1
        if written == number:
            with open(self._file_path, "ab") as file:
                file.write(b'{"op_code": 1, "worker')
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, logs)

    optuna_search.Journal.append_logs = dying


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", default="regression")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--log", type=Path, help="gets a line for each call of a program")
    parser.add_argument("--kill-at", help="die after the third call of what is called so")
    parser.add_argument("--kill-at-record", type=int, help="die in the middle of writing the n-th time to the journal")
    parser.add_argument("--largest-file", type=int, help="bytes, as if the disk were full then")
    options = parser.parse_args()
    if options.kill_at_record:
        die_in_the_middle_of_a_record(options.kill_at_record)
    if options.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file, resource.RLIM_INFINITY))
    jobs.SECONDS = 0
    settings = options.settings | ONE_DEVICE
    environment.use_all_cores()
    stop = cli.stop_on_signals()

    def work():
        complete(options.out, options.study, log=options.log, kill_at=options.kill_at, stop=stop, **settings)

    cli.with_exit_code(work)


if __name__ == "__main__":
    main()
