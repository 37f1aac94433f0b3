"""Killed or stopped searches resume and end bit for bit as without interruption.

Each process is killed once, and its search resumes in the process of the test. test_halving.py covers every moment at
which a file gets its name; test_run.py and test_search.py cover losses of the journal.
"""

import json
import os
import platform
import shutil
import signal
import time

import pytest
from processes import contents, finish, lasting, num_lines, one_line, start, wait_for
from small_run import ONE_DEVICE, Log, complete

pytestmark = pytest.mark.slow

HALVING = {"num_trials": 9, "num_epochs": 900, "halving": 3, "first_rung": 100}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(study, settings) -> (files, calls of the programs in the search, calls in the refit)."""
    found, folder = {}, tmp_path_factory.mktemp("undisturbed")

    def run(study, settings):
        out = folder / f"{study}-{len(settings)}"
        if out not in found:
            log = out.with_suffix(".log")
            complete(out, study, log=log, **ONE_DEVICE | settings)
            found[out] = lasting(out), num_lines(log), num_lines(log.with_suffix(".refit"))
        return found[out]

    return run


@pytest.mark.parametrize(
    ("study", "settings", "flags"),
    [
        pytest.param("deep", {}, [], id="within a call"),
        pytest.param("regression", HALVING, ["--kill-at", "rung 2 of 3"], id="on the second rung"),
        pytest.param("regression", {}, ["--kill-at", "refit"], id="in the refit"),
        pytest.param("regression", {}, ["--kill-at-record", 20], id="in the middle of a record"),
    ],
)
def test_killed_it_goes_on_to_the_same_end_and_trains_hardly_anything_twice(
    tmp_path, undisturbed, study, settings, flags
):
    expected, calls, refit_calls = undisturbed(study, settings)
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(out, "--study", study, "--settings", json.dumps(settings), "--log", log, *flags)
    if not flags:
        wait_for(lambda: num_lines(log) >= calls // 2, process)
        process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert num_lines(log) < calls or 0 < num_lines(log.with_suffix(".refit")) < refit_calls, "it was killed in training"
    complete(out, study, log=log, **ONE_DEVICE | settings)
    assert lasting(out) == expected
    assert not list(out.rglob("*.checkpoint"))
    assert num_lines(log) <= calls + 2  # each call is followed by a checkpoint: what is lost is one call, or two
    assert num_lines(log.with_suffix(".refit")) <= refit_calls + 1


def test_stopped_by_a_signal_it_says_so_ends_soon_and_goes_on(tmp_path, undisturbed):
    expected, calls, _ = undisturbed("regression", {})
    log = tmp_path / "log"
    process = start(tmp_path / "out", "--log", log)
    wait_for(lambda: num_lines(log), process)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    code, errors = finish(process)
    assert code == 128 + signal.SIGTERM
    assert errors.strip() == "stopping; the same command goes on from here"
    assert time.monotonic() - begin < 8
    assert num_lines(log) < calls, "it was stopped in training"
    assert not (tmp_path / "out" / "results.json").exists()
    complete(tmp_path / "out", log=log, **ONE_DEVICE)
    assert lasting(tmp_path / "out") == expected
    assert num_lines(log) <= calls + 1  # it had put down where it was


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, undisturbed):
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # it would fail as well, with a message
    process = start(tmp_path, "--largest-file", 20_000, env=environment)  # writing more fails, as on a full disk
    code, errors = finish(process)
    assert code == 2
    one_line(errors)
    assert not list(tmp_path.rglob(".*.npz.*"))  # no half file
    complete(tmp_path, **ONE_DEVICE)
    assert lasting(tmp_path) == undisturbed("regression", {})[0]


def test_a_second_process_on_a_folder_is_told_whose_it_is_and_the_first_goes_on(tmp_path, undisturbed):
    expected, calls, _ = undisturbed("deep", {})
    out, log = tmp_path / "out", tmp_path / "log"
    first = start(out, "--study", "deep", "--log", log)
    wait_for(lambda: num_lines(log), first)
    first.send_signal(signal.SIGSTOP)  # so that it changes nothing
    os.waitid(os.P_PID, first.pid, os.WSTOPPED)
    before = contents(out)
    second = start(out, "--study", "deep")
    code, errors = finish(second)
    assert contents(out) == before
    first.send_signal(signal.SIGCONT)
    assert code == 2
    one_line(errors)
    assert f"{out} is in use by process {first.pid} on {platform.node()} since 20" in errors
    assert finish(first)[0] == 0
    assert num_lines(log) == calls
    assert lasting(out) == expected


def test_a_folder_that_vanishes_is_told_by_its_name_or_made_again(tmp_path, monkeypatch):
    """In the process of the test it is an OSError, which a command prints in one line."""
    few, epochs = {"num_trials": 2, "num_epochs": 100} | ONE_DEVICE, Log.epochs

    def removing(*args):
        monkeypatch.setattr(Log, "epochs", epochs)
        shutil.rmtree(tmp_path / "out")
        epochs(*args)

    monkeypatch.setattr(Log, "epochs", removing)
    try:
        complete(tmp_path / "out", **few)
    except OSError as error:
        assert str(tmp_path / "out") in str(error)
    assert Log.epochs is epochs, "it was removed in training"
    complete(tmp_path / "out", **few)
    complete(tmp_path / "undisturbed", **few)
    assert lasting(tmp_path / "out") == lasting(tmp_path / "undisturbed")
