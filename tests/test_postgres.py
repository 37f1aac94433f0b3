"""A search that is kept in a PostgreSQL server, started here on the loopback."""

import contextlib
import gc
import glob
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import finish, lasting, start, wait_for
from small_run import ONE_DEVICE, Log, complete

from hw1jax import search

pytestmark = pytest.mark.slow

BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [str(Path(shutil.which("initdb") or "/none").parent)]


@pytest.fixture(autouse=True)
def connections_are_closed():
    """Optuna keeps a pool of connections, which end with it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Server(NamedTuple):
    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@pytest.fixture
def server():
    """An empty database."""
    if not Path(BINARIES[-1], "initdb").exists():
        pytest.skip("PostgreSQL is not installed")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        who = {}
        if os.geteuid() == 0:  # the server refuses to be root
            who = {"user": "postgres"}
            shutil.chown(folder, "postgres")

        def call(program, *flags):
            command = [Path(BINARIES[-1], program), *flags]
            subprocess.run(command, check=True, cwd=folder, capture_output=True, timeout=60, **who)

        data = f"{folder}/data"
        call("initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", data)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        call("pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield Server(
                f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres",
                lambda: call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"),
                lambda: call("pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start"),
            )
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # a test has stopped it
                call("pg_ctl", "-D", data, "-m", "immediate", "stop")


def test_a_database_that_is_restarted_is_waited_for(tmp_path, server):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(out, "--settings", json.dumps({"storage": server.url}), "--log", log)
    wait_for(log.exists, process)
    server.stop()
    time.sleep(3)
    server.start()
    code, errors = finish(process)
    assert code == 0, errors
    assert len(errors.strip().splitlines()) == 1
    assert "the database is away" in errors and "trying again for 60 s" in errors
    complete(tmp_path / "alone", **ONE_DEVICE)
    assert lasting(out) == lasting(tmp_path / "alone")
    assert not (out / "journal.log").exists()


def test_a_database_that_stays_away_ends_the_search_in_one_line_and_nothing_is_lost(tmp_path, server, monkeypatch):
    """In the test's own process, without a server from the end of the training on."""
    monkeypatch.setattr(search, "SECONDS_WITHOUT_DATABASE", 1)
    told, settings = Log.epochs, {"storage": server.url, "num_trials": 2, "num_epochs": 100} | ONE_DEVICE

    def stopping(*args):
        monkeypatch.setattr(Log, "epochs", told)
        server.stop()

    monkeypatch.setattr(Log, "epochs", stopping)
    with pytest.raises(ConnectionError, match="the database has been away for 1 s .* when it is back") as caught:
        complete(tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("brackets/*/*.npz")}
    assert kept
    server.start()
    complete(tmp_path / "out", **settings)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
