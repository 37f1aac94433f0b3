"""Two processes on this machine that run one program over the devices of both."""

import csv
import os
import socket
import time

import numpy as np
import pytest
from processes import complete, finish, start, wait_for

from hw1jax import storage

pytestmark = pytest.mark.slow


def start_both(out, log):
    """Two processes with a device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    flags = ("--coordinator", address, "--log", log)
    return [start(out, *flags, "--process-id", number, env=env) for number in range(2)]


def table(folder):
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    return [{name: value for name, value in row.items() if "loss" not in name and name != "rank"} for row in rows]


def first_epochs(folder):
    return storage.read_arrays(folder / "histories.npz")["train_loss"][..., :2]


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch):
    for process in start_both(tmp_path / "two", tmp_path / "log"):
        code, errors = finish(process)
        assert code == 0, errors
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    complete(tmp_path / "one")
    assert table(tmp_path / "two") == table(tmp_path / "one")
    np.testing.assert_allclose(first_epochs(tmp_path / "two"), first_epochs(tmp_path / "one"), rtol=1e-5)


def test_when_one_is_killed_the_other_ends_soon_and_the_search_goes_on(tmp_path):
    for victim in (0, 1):
        out, log = tmp_path / f"{victim}", tmp_path / f"{victim}.log"
        processes = start_both(out, log)
        wait_for(log.exists, processes[victim])
        processes[victim].kill()
        begin = time.monotonic()
        finish(processes[1 - victim])
        assert time.monotonic() - begin < 30
        finish(processes[victim])
        for process in start_both(out, log):
            code, errors = finish(process)
            assert code == 0, errors
        assert len(table(out)) == 12
