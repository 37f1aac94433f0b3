"""Two processes on this machine that run one program over the devices of both. Every wait has an end."""

import contextlib
import csv
import json
import os
import queue
import signal
import socket
import threading
import time

import numpy as np
import pytest
from processes import complete, finish, lasting, num_lines, one_line, start, wait_for

from hw1jax import hosts, storage

SECONDS_TO_START = 100  # at most, on a busy machine
NUM_CALLS = 20  # of the program in the small search

pytestmark = pytest.mark.slow


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_one(out, address, number, *flags, **env):
    """One of two processes, with a device."""
    common = ("--distributed", "--coordinator", address, "--num-processes", 2, "--process-id", number)
    return start(out, *common, *flags, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | env)


def start_both(out, log, *flags):
    address = free_address()
    return [start_one(out, address, number, "--log", log, *flags) for number in range(2)]


def seconds_to_end(process, seconds=30):
    """(exit code, what it has said, how long it took from now)"""
    begin = time.monotonic()
    code, errors = finish(process, seconds)
    return code, errors, time.monotonic() - begin


def table(folder):
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if "loss" not in name and name != "rank"} for row in rows]


def first_epochs(folder):
    return storage.read_arrays(folder / "histories.npz")["train_loss"][..., :2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder of a search by two processes, calls of the program)"""
    folder = tmp_path_factory.mktemp("undisturbed")
    processes = start_both(folder / "two", folder / "log")
    for process in processes:
        code, errors = finish(process)
        assert code == 0, errors
    return folder / "two", num_lines(folder / "log")


def goes_on(out, log, undisturbed):
    """Started again, both end as if nothing had happened, bit for bit, and train hardly anything twice."""
    processes = start_both(out, log)
    for process in processes:
        code, errors = finish(process)
        assert code == 0, errors
    folder, calls = undisturbed
    assert lasting(out) == lasting(folder)
    assert num_lines(log) <= calls + 2  # a call that was not put down, of either process's death


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    complete(tmp_path / "one")
    assert table(undisturbed[0]) == table(tmp_path / "one")
    np.testing.assert_allclose(first_epochs(undisturbed[0]), first_epochs(tmp_path / "one"), rtol=1e-5)


def test_two_processes_share_each_program_of_static_hyperparameters(tmp_path, monkeypatch):
    """And what is random in training, and state that is not trained."""
    flags = ("--study", "deep", "--num-trials", 12, "--num-epochs", 100, "--members-per-program", 18)
    for process in start_both(tmp_path / "two", tmp_path / "log", *flags):
        code, errors = finish(process)
        assert code == 0, errors
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    complete(tmp_path / "one", *flags)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["num_programs"] == 3
    np.testing.assert_allclose(first_epochs(tmp_path / "two"), first_epochs(tmp_path / "one"), rtol=1e-5)


def test_two_processes_halve_a_search_as_one_does_and_go_on_from_any_rung(tmp_path, monkeypatch):
    """The state of those who go on is in process 0's files, and is shared with the other."""
    flags = ("--num-epochs", 27, "--halving", 3, "--members-per-program", 36)

    def both(out, log):
        return start_both(tmp_path / out, tmp_path / log, *flags)

    for process in both("two", "log"):
        code, errors = finish(process)
        assert code == 0, errors
    calls = num_lines(tmp_path / "log")
    assert {row["epochs"] for row in table(tmp_path / "two")} == {"1", "3", "9", "27"}
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    complete(tmp_path / "one", *flags)
    assert table(tmp_path / "two") == table(tmp_path / "one")
    np.testing.assert_allclose(first_epochs(tmp_path / "two"), first_epochs(tmp_path / "one"), rtol=1e-5)
    for seen in (1, calls - 1):
        processes = both("out", "out.log")
        wait_for(lambda: num_lines(tmp_path / "out.log") >= seen, *processes)  # noqa: B023
        processes[1].kill()
        code, errors, _ = seconds_to_end(processes[0])
        finish(processes[1])
        assert code == 0 or "process 1 has died" in errors
    for process in both("out", "out.log"):
        code, errors = finish(process)
        assert code == 0, errors
    assert lasting(tmp_path / "out") == lasting(tmp_path / "two")


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_at_once_with_a_line_and_the_search_goes_on(tmp_path, undisturbed, victim):
    out, log = tmp_path / "out", tmp_path / "log"
    processes = start_both(out, log)
    wait_for(lambda: num_lines(log) >= 3, *processes)
    processes[victim].kill()
    code, errors, seconds = seconds_to_end(processes[1 - victim])
    finish(processes[victim])
    print(f"process {1 - victim} ended {seconds:.2f} s after the death of process {victim}")
    assert code == 2
    one_line(errors)
    assert f"process {victim} has died" in errors
    assert seconds < 5
    goes_on(out, log, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_process_0_puts_down_where_both_are(tmp_path, undisturbed, number):
    out, log = tmp_path / "out", tmp_path / "log"
    processes = start_both(out, log, "--seconds-between-checkpoints", 1000)
    wait_for(lambda: num_lines(log) >= 3, *processes)
    processes[0].send_signal(number)
    code, errors, seconds = seconds_to_end(processes[0])
    other_code, other_errors, other_seconds = seconds_to_end(processes[1])
    print(f"ended {seconds:.2f} s after the signal, the other {other_seconds:.2f} s later")
    assert code == 128 + number
    assert errors.strip() == "stopping; the same command goes on from here"
    assert other_code == 2
    one_line(other_errors)
    assert "was stopped" in other_errors
    assert seconds + other_seconds < 8
    assert list(out.glob("brackets/*/*.checkpoint"))
    goes_on(out, log, undisturbed)


def test_a_process_with_other_settings_ends_all_and_nothing_is_written(tmp_path):
    address = free_address()
    first = start_one(tmp_path / "out", address, 0)
    processes = [first, start_one(tmp_path / "out", address, 1, "--batch-size", 10)]
    for process in processes:
        code, errors = finish(process)
        assert code == 2
        one_line(errors)
        assert "process 1 has batch_size = 10, process 0 has 20" in errors
    assert not (tmp_path / "out").exists()


def test_a_process_with_another_jax_ends_all_before_jax_begins(tmp_path):
    address = free_address()
    first = start_one(tmp_path / "out", address, 0)
    processes = [first, start_one(tmp_path / "out", address, 1, "--pretend-version", "0.1.2")]
    for process in processes:
        code, errors = finish(process)
        assert code == 2
        one_line(errors)
        assert "process 1 has flax = 0.1.2" in errors


def test_a_mistake_that_one_alone_sees_ends_all_with_its_line(tmp_path):
    address = free_address()
    second = start_one(tmp_path / "out", address, 1)
    processes = [start_one(tmp_path / "out", address, 0, "--batch-size", 1000), second]
    for process in processes:
        code, errors = finish(process)
        assert code == 2
        one_line(errors)
        assert "--batch-size 1000 is more than" in errors


@pytest.mark.parametrize("number", [0, 1])
def test_a_partner_that_never_comes_is_told_in_a_line(tmp_path, number):
    processes = [start_one(tmp_path, free_address(), number, "--join-timeout", 2)]
    code, errors = finish(processes[0])
    assert code == 2
    one_line(errors)
    assert f"process {1 - number} d" in errors
    assert "within 2 s (--join-timeout)" in errors


@pytest.mark.parametrize("number", [0, 1])
def test_ctrl_c_is_heard_while_waiting_for_a_partner(tmp_path, number):
    with contextlib.ExitStack() as links:
        silent = links.enter_context(socket.create_server(("127.0.0.1", 0)))  # takes the greeting and says nothing
        silent.settimeout(SECONDS_TO_START)
        address = f"127.0.0.1:{silent.getsockname()[1]}" if number else free_address()
        processes = [start_one(tmp_path, address, number)]
        if number:
            links.enter_context(silent.accept()[0])
        else:
            wait_for(lambda: listens(address), *processes)
        processes[0].send_signal(signal.SIGINT)
        code, errors, seconds = seconds_to_end(processes[0])
    print(f"ended {seconds:.2f} s after Ctrl-C")
    assert code == 130
    assert errors.strip() == "stopping; the same command goes on from here"
    assert seconds < 3


def listens(address):
    host, port = address.split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def test_a_partner_that_dies_while_others_are_awaited_ends_the_wait(tmp_path):
    address = free_address()
    host, port = address.split(":")
    processes = [start_one(tmp_path, address, 0, "--num-processes", 3)]
    wait_for(lambda: listens(address), *processes)
    with socket.create_connection((host, int(port))) as link:
        link.sendall(json.dumps({"process": 1, "num_processes": 3}).encode() + b"\n")
        time.sleep(0.5)
    code, errors, seconds = seconds_to_end(processes[0])
    assert code == 2
    one_line(errors)
    assert "process 1 has died" in errors
    assert seconds < 3


def test_on_a_cluster_that_jax_knows_no_flags_are_needed(tmp_path):
    for job in range(4096):  # whose number makes the port
        with contextlib.suppress(OSError), socket.create_server(("", 61440 + job)):
            break
    cluster = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    env = os.environ | cluster | {"JAX_NUM_CPU_DEVICES": "1"}
    flags = (tmp_path, "--distributed", "--num-trials", 2, "--num-epochs", 2)
    ours = [env | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(2)]
    processes = [start(*flags, env=env) for env in ours]
    for process in processes:
        code, errors = finish(process)
        assert code == 0, errors
    assert len(table(tmp_path)) == 2


@pytest.mark.parametrize("silent", [False, True])
def test_a_process_that_says_nothing_any_more_is_taken_for_dead(monkeypatch, silent):
    monkeypatch.setattr(hosts, "SECONDS_OF_SILENCE", 0.5)
    monkeypatch.setattr(hosts, "SECONDS_BETWEEN_SIGNS", 1000 if silent else 0.1)
    monkeypatch.setattr(hosts, "_peers", {})
    ends, said = queue.SimpleQueue(), "process 1 has been silent for 0.5 s"
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as one, server.accept()[0] as other:
        for number, link in enumerate([one, other]):
            hosts._meet(hosts._Peer(number, link), ends.put)
        time.sleep(1.5)
        assert any(said in ends.get(timeout=1) for _ in range(2)) if silent else ends.empty()
        hosts.leave("the test is over")


def join(coordinator, num_processes, process_id, timeout=0.3):
    stop = threading.Event()
    return hosts.join(coordinator, num_processes, process_id, versions={}, timeout=timeout, stop=stop, end=print)


@pytest.mark.parametrize(
    "given, message",
    [
        ((None, 2, 0), "needs --coordinator as well"),
        (("localhost:1234", None, 0), "needs --num-processes as well"),
        (("localhost:1234", None, None), "needs --num-processes and --process-id as well"),
        (("localhost:1234", 2, 2), "--process-id 2 is none of 0 to 1"),
        (("localhost:1234", 2, -1), "--process-id -1 is none of 0 to 1"),
        (("localhost", 2, 0), "localhost is no HOST:PORT"),
        (("localhost:http", 2, 0), "is no HOST:PORT"),
        (("localhost:65536", 2, 0), "is no HOST:PORT"),
        ((None, None, None), "doesn't find the other processes by itself: give --coordinator"),
        (("localhost:1234", 2, 0, 0), "--join-timeout 0 is no time"),
        (("nowhere.invalid:1234", 2, 1), "process 0 doesn't answer at nowhere.invalid:1234"),
    ],
)
def test_what_is_missing_to_find_the_others_is_said(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        join(*given)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("", 0)) as taken, pytest.raises(ValueError, match="can't listen on port"):
        join(f"localhost:{taken.getsockname()[1]}", 2, 0)
