"""Two processes on this machine that run one program over the devices of both. Every wait has an end."""

import json
import os
import queue
import socket
import threading
import time

import numpy as np
import pytest
from processes import finish, num_lines, one_line, start, wait_for
from small_run import complete

from hw1jax import hosts, storage

pytestmark = pytest.mark.slow

SETTINGS = {"num_trials": 4, "num_epochs": 600, "halving": 2, "first_rung": 300}


def start_both(out, log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    flags = ("--settings", json.dumps(SETTINGS), "--log", log, "--coordinator", address)
    return [start(out, *flags, "--process-id", number, env=environment) for number in range(2)]


def test_one_is_killed_the_other_ends_at_once_and_started_again_they_find_what_one_process_finds(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    first, second = start_both(out, log)
    wait_for(lambda: num_lines(log) >= 3, first, second)
    second.kill()
    begin = time.monotonic()
    code, errors = finish(first, 30)
    finish(second)
    assert code == 2 and time.monotonic() - begin < 5
    one_line(errors)
    assert "process 1 has died" in errors
    assert not (out / "results.json").exists()
    before = num_lines(log)
    for process in start_both(out, log):
        code, errors = finish(process)
        assert code == 0, errors

    found = json.loads((out / "results.json").read_text())
    alone = complete(tmp_path / "one", log=tmp_path / "one.log", **SETTINGS)  # on two devices as well
    assert before >= 3
    assert num_lines(log) <= num_lines(tmp_path / "one.log") + 2, "it has gone on from where it was"
    assert found["num_programs"] == alone["num_programs"]
    assert found["config"]["plan"]["brackets"][0]["rungs"][0]["program"]["num_devices"] == 2
    losses = [storage.read_arrays(tmp_path / name / "histories.npz")["train_loss"] for name in ("out", "one")]
    np.testing.assert_allclose(losses[0][..., :2], losses[1][..., :2], rtol=1e-5)


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "needs --coordinator as well"),
        (("localhost:1234", None, None), "needs --num-processes and --process-id as well"),
        (("localhost:1234", 2, 2), "--process-id 2 is none of 0 to 1"),
        (("localhost:http", 2, 0), "is no HOST:PORT"),
        ((None, None, None), "doesn't find the other processes by itself: give --coordinator"),
        (("localhost:1234", 2, 0, 0), "--join-timeout 0 is no time"),
        (("nowhere.invalid:1234", 2, 1), "process 0 doesn't answer at nowhere.invalid:1234"),
    ],
)
def test_what_is_missing_to_find_the_others_is_said(given, message):
    coordinator, num_processes, process_id, timeout = (*given, 0.3)[:4]
    with pytest.raises(ValueError, match=message) as caught:
        stop = threading.Event()
        hosts.join(coordinator, num_processes, process_id, versions={}, timeout=timeout, stop=stop, end=print)
    assert "\n" not in str(caught.value)
