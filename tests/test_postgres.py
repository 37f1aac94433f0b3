"""Workers that share a search through a PostgreSQL server, started here on the loopback."""

import glob
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from processes import complete, finish, start
from test_recovery import lasting

pytestmark = pytest.mark.slow

BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [str(Path(shutil.which("initdb") or "/none").parent)]


@pytest.fixture
def server():
    """The URL of an empty database."""
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
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")


def test_two_processes_share_a_search_through_a_database(tmp_path, server):
    complete(tmp_path / "alone", "--num-epochs", 200)
    both = [start(tmp_path / "out", "--num-epochs", 200, "--storage", server) for _ in range(2)]
    for process in both:
        code, errors = finish(process)
        assert code == 0, errors
    assert lasting(tmp_path / "out") == lasting(tmp_path / "alone")
    assert not (tmp_path / "out" / "journal.log").exists()


def test_a_database_that_is_not_there_is_told_in_one_line(tmp_path):
    code, errors = finish(start(tmp_path / "out", "--storage", "postgresql+nothing://127.0.0.1:1/none"))
    assert code == 2
    assert errors.startswith("error: --storage: the database doesn't open")
    assert len(errors.strip().splitlines()) == 1
