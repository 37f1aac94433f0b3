"""Workers that share a search through a PostgreSQL server, started here on the loopback."""

import contextlib
import glob
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import regression
from processes import complete, finish, lasting, one_line, start, wait_for

from hw1jax import search

pytestmark = pytest.mark.slow


BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [str(Path(shutil.which("initdb") or "/none").parent)]


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


def test_two_processes_share_a_search_through_a_database(tmp_path, server):
    complete(tmp_path / "alone", "--num-epochs", 200)
    both = [start(tmp_path / "out", "--num-epochs", 200, "--storage", server.url) for _ in range(2)]
    for process in both:
        code, errors = finish(process)
        assert code == 0, errors
    assert lasting(tmp_path / "out") == lasting(tmp_path / "alone")
    assert not (tmp_path / "out" / "journal.log").exists()


def test_folders_share_a_database_from_the_first_moment_on(tmp_path, server):
    """Their tables are made at once, and each search is its own; nor do other settings of another folder matter."""
    flags = ("--num-epochs", 50, "--num-trials", 3)
    numbers = {"a": 50, "b": 50, "c": 100}
    started = {
        name: start(tmp_path / name, *flags, "--num-epochs", n, "--storage", server.url) for name, n in numbers.items()
    }
    for process in started.values():
        code, errors = finish(process)
        assert (code, errors) == (0, "")
    assert lasting(tmp_path / "a") == lasting(tmp_path / "b")
    code, errors = finish(start(tmp_path / "a", *flags, "--num-epochs", 100, "--storage", server.url))
    assert code == 2
    assert "num_epochs = 50, not 100" in errors and "another --out" in errors
    complete(tmp_path / "d", *flags, "--num-epochs", 100, "--storage", server.url)  # what the message says works


def test_a_database_that_is_restarted_is_waited_for(tmp_path, server):
    flags = ("--num-epochs", 1000, "--storage", server.url, "--log", tmp_path / "log")
    complete(tmp_path / "alone", "--num-epochs", 1000)
    process = start(tmp_path / "out", *flags)
    wait_for((tmp_path / "log").exists, process)
    server.stop()
    time.sleep(3)
    server.start()
    code, errors = finish(process)
    assert code == 0, errors
    assert len(errors.strip().splitlines()) == 1
    assert "the database is away" in errors and "trying again for 60 s" in errors
    assert lasting(tmp_path / "out") == lasting(tmp_path / "alone")


def test_a_database_that_stays_away_ends_the_search_in_one_line_and_nothing_is_lost(tmp_path, server):
    flags = ("--num-epochs", 1000, "--storage", server.url, "--log", tmp_path / "log", "--database-seconds", 1)
    process = start(tmp_path / "out", *flags)
    wait_for((tmp_path / "log").exists, process)
    server.stop()
    code, errors = finish(process)
    assert code == 2
    note, error = errors.strip().splitlines()
    assert "trying again for 1 s" in note
    assert error.startswith("error: --storage: the database has been away for 1 s")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("brackets/*/*.npz")}
    assert kept
    server.start()
    complete(tmp_path / "out", *flags)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_search_that_an_earlier_version_left_in_a_database_is_refused_in_one_line(tmp_path, server):
    """A database held one search of a study once, under the study's own name, which the folder then has."""
    out = tmp_path / "out"
    out.mkdir()
    (out / search.NAME_FILE).write_text("regression\n")
    opened = search.open_storage(out / "journal.log", regression.STUDY, sampler="random", seed=0, url=server.url)
    assert opened.study_name == "regression"
    opened.set_user_attr("config", {"num_epochs": 50})  # the first format had no number
    opened._storage.remove_session()
    opened._storage._backend.engine.dispose()  # this process lives on: a connection left to it would warn later
    code, errors = finish(start(out, "--num-epochs", 50, "--num-trials", 3, "--storage", server.url))
    assert code == 2
    one_line(errors)
    assert "has the format 1, this version" in errors and "another --out" in errors


def test_a_database_that_is_not_there_is_told_in_one_line(tmp_path):
    code, errors = finish(start(tmp_path / "out", "--storage", "postgresql+nothing://127.0.0.1:1/none"))
    assert code == 2
    assert errors.startswith("error: --storage: the database doesn't open")
    assert len(errors.strip().splitlines()) == 1
