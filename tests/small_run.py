"""A small search in a process of its own, for tests that stop it: python tests/small_run.py OUT [--help]"""

import argparse
import os
import resource
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

import deep
import regression

from hw1jax import checkpoint, cli, record, report, run, search
from hw1jax.observer import Observer
from hw1jax.space import Int
from hw1jax.study import narrow, order

parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
parser.add_argument("--study", default="regression")
parser.add_argument("--num-trials", type=int, default=12)
parser.add_argument("--num-epochs", type=int, default=1000)
parser.add_argument("--widths", default="padded")
parser.add_argument("--storage")
parser.add_argument("--database-seconds", type=int, help="that a database may be away")
parser.add_argument("--log", type=Path, help="gets a line for each epoch of each trial that is trained")
parser.add_argument("--kill-at-rename", type=int, help="die just before the n-th file gets its name")
parser.add_argument("--kill-at-record", type=int, help="die in the middle of writing the n-th time to the journal")
parser.add_argument("--kill-in-refit", type=int, help="die after the n-th call of the refit's program")
parser.add_argument("--members-per-program", type=int, default=9)
parser.add_argument("--halving", type=int, help="the factor")
parser.add_argument("--first-rung", type=int)
parser.add_argument("--page", action="store_true", help="draw the page as well, as the experiments do")
parser.add_argument("--remove-folder", action="store_true", help="remove the folder once training has begun")
parser.add_argument("--largest-file", type=int, help="bytes, as if the disk were full then")
parser.add_argument("--distributed", action="store_true", help="this is one of several processes")
parser.add_argument("--coordinator", help="HOST:PORT")
parser.add_argument("--process-id", type=int)
parser.add_argument("--num-processes", type=int)
parser.add_argument("--join-timeout", type=int, default=60)
parser.add_argument("--batch-size", type=int, default=20)
parser.add_argument("--pretend-version", help="of jax")
parser.add_argument("--seconds-between-checkpoints", type=float, default=0)
options = parser.parse_args()

STUDIES = {
    "regression": narrow(regression.STUDY, hidden_units=(Int(3, 8, width=True), Int(3, 6, width=True))),
    "deep": replace(deep.STUDY, epochs_per_call=50),
}
STUDY = STUDIES[options.study]
FLAGS = cli.Flags(
    distributed=options.distributed,
    coordinator=options.coordinator,
    num_processes=options.num_processes,
    process_id=options.process_id,
    join_timeout=options.join_timeout,
)


class Log(Observer):
    """Keeps count of what is trained, and tells what the user should know."""

    def note(self, text):
        print(text, file=sys.stderr)

    def epochs(self, what, done, num_epochs, scores, search_done=None):
        if options.remove_folder:
            shutil.rmtree(options.out)
            options.remove_folder = False
        log = options.log and (options.log if what.startswith("trials") else options.log.with_suffix(".refit"))
        if log:
            with open(log, "a") as file:
                file.write(f"{what} {done}\n")
        if what.startswith("refit") and options.kill_in_refit is not None:
            options.kill_in_refit -= 1
            if options.kill_in_refit == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def die_at(number, owner, name, before):
    """Makes the number-th call of a function the process's last."""
    function, calls = getattr(owner, name), 0

    def counting(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            before(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, counting)


def half_a_record(backend, logs):
    with open(backend._file_path, "ab") as file:
        file.write(b'{"op_code": 1, "worker')


if options.kill_at_rename:
    die_at(options.kill_at_rename, os, "replace", lambda *_: None)
if options.kill_at_record:
    die_at(options.kill_at_record, search.Journal, "append_logs", half_a_record)
if options.pretend_version:
    record.version_of = lambda _: options.pretend_version
if options.largest_file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file, resource.RLIM_INFINITY))
if options.database_seconds is not None:
    search.SECONDS_WITHOUT_DATABASE = options.database_seconds
checkpoint.SECONDS_BETWEEN_CHECKPOINTS = options.seconds_between_checkpoints
cli.use_all_cores()
stop = cli.stop_on_signals()


def work():
    asked = order(
        STUDY,
        members_per_program=options.members_per_program,
        num_trials=options.num_trials,
        num_epochs=options.num_epochs,
        widths=options.widths,
        halving=options.halving,
        first_rung=options.first_rung,
        storage=options.storage,
        batch_size=options.batch_size,
        out=options.out,
    )
    results = run.run(asked, Log(), command="", started=cli.STARTED, stop=stop)
    if options.page:
        report.write_report(options.out, STUDY)
    return results


NAMES = cli.flag_names(STUDY)
cli.with_exit_code(lambda: cli.with_others(FLAGS, stop, work, NAMES), NAMES)
