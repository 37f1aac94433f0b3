"""Files appear whole or not at all, have normal permissions and hold no executable data; locks exclude."""

import ast
import errno
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from processes import contents

from hw1jax import storage

WRITERS = {
    "bytes": lambda path, n: storage.write_bytes(path, bytes([n])),
    "json": lambda path, n: storage.write_json(path, {"n": n}),
    "arrays": lambda path, n: storage.write_arrays(path, {"n": np.full(3, n)}),
    "arrays as they are": lambda path, n: storage.write_arrays(path, {"n": np.full(3, n)}, compressed=False),
}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@each_writer
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, write):
    path = tmp_path / "new" / "folder" / "file"
    write(path, 1)
    first = path.read_bytes()
    write(path, 2)
    assert path.read_bytes() != first
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("what", ["replace", "fsync", "chmod"])
@each_writer
def test_a_write_that_fails_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch, write, what, error):
    write(tmp_path / "file", 1)
    old = (tmp_path / "file").read_bytes()
    monkeypatch.setattr(os, what, Mock(side_effect=error))
    for name in ("file", "a new one"):
        error.filename = None
        with pytest.raises(type(error)):
            write(tmp_path / name, 2)
        assert error.filename == (str(tmp_path / name) if isinstance(error, OSError) else None)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == old
    assert os.listdir(tmp_path) == ["file"]


def test_the_whole_content_is_on_disk_before_the_file_takes_its_place(tmp_path, monkeypatch):
    synced, replaced, fsync, replace = [], [], os.fsync, os.replace

    def look_and_sync(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def look_and_replace(source, target):
        replaced.append((list(synced), Path(source).read_bytes(), Path(source).parent, Path(target).read_bytes()))
        replace(source, target)

    path, content = tmp_path / "file", b"new"  # as short as stays in a buffer
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", look_and_sync)
    monkeypatch.setattr(os, "replace", look_and_replace)
    storage.write_bytes(path, content)
    assert replaced == [([len(content)], content, tmp_path, b"old")]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask_which_stays(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for name, write in WRITERS.items():
            write(tmp_path / name, 1)
            assert (tmp_path / name).stat().st_mode & 0o777 == mode
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_comes_back_and_numbers_that_are_not_finite_are_refused(tmp_path, number):
    path, content = tmp_path / "file", {"a": [1, 2.5, None, True], "b": {"c": "ä ± \n"}}
    storage.write_json(path, content)
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(path, {"losses": [1.0, number]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == content and text.endswith("}\n")
    assert os.listdir(tmp_path) == ["file"]


TYPES = st.sampled_from([np.float32, np.float64, np.int32, np.uint8, bool])
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_0", min_size=1, max_size=12).filter(lambda name: name != "file")


@given(
    st.dictionaries(NAMES, hnp.arrays(TYPES, hnp.array_shapes(min_dims=0, min_side=0)), max_size=3),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_arrays_come_back_with_their_shapes_types_and_bits(tmp_path_factory, arrays, compressed):
    path = tmp_path_factory.getbasetemp() / "arrays.npz"
    storage.write_arrays(path, arrays, compressed=compressed)
    found = storage.read_arrays(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_arrays_of_types_that_numpy_has_not_are_float32_in_the_file_and_restored_from_there(tmp_path):
    array = np.array([1.5, -3.0], jnp.bfloat16)
    storage.write_arrays(tmp_path / "file", {"a": array})
    found = storage.read_arrays(tmp_path / "file")["a"]
    np.testing.assert_array_equal(found, np.float32([1.5, -3.0]), strict=True)
    np.testing.assert_array_equal(storage.restored(found, array.dtype), array, strict=True)
    assert storage.restored(found, np.dtype(np.float16)).dtype == np.float32


def test_arrays_are_compressed_unless_they_are_not_worth_it(tmp_path):
    for compressed in (True, False):
        storage.write_arrays(tmp_path / "file", {"zeros": np.zeros(10_000)}, compressed=compressed)
        assert ((tmp_path / "file").stat().st_size < 1000) == compressed


@pytest.mark.parametrize("compressed", [True, False])
def test_objects_which_could_execute_something_are_neither_read_nor_written(tmp_path, compressed):
    array = np.array([{}, None], object)
    np.savez(tmp_path / "objects.npz", a=array)
    with pytest.raises(ValueError, match="objects.npz is damaged .*allow_pickle=False"):
        storage.read_arrays(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match="a holds Python objects"):
        storage.write_arrays(tmp_path / "file", {"a": array}, compressed=compressed)
    assert os.listdir(tmp_path) == ["objects.npz"]


def test_a_damaged_file_of_arrays_is_refused_by_name_and_a_missing_one_stays_missing(tmp_path):
    """A disk that ran full elsewhere, an interrupted copy: what the user sees names the file."""
    path = tmp_path / "batch.npz"
    with pytest.raises(FileNotFoundError):
        storage.read_arrays(path)
    storage.write_arrays(path, {"val_loss": np.random.default_rng(0).normal(size=(4, 3, 50))})
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    for damaged in (b"", content[:100], content[:-10], b"not a zip file at all", flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="batch.npz") as caught:
            storage.read_arrays(path)
        assert "\n" not in str(caught.value)


def test_no_two_threads_read_headers_of_arrays_at_once(tmp_path, monkeypatch):
    """Python 3.11's `ast`, by which numpy reads them, has one count of depth for all threads: a SystemError."""
    within, most, literal_eval = [], [], ast.literal_eval

    def let_others_in(text):  # as a callback of JAX's does where garbage is collected meanwhile
        within.append(text)
        most.append(len(within))
        time.sleep(0.001)
        within.pop()
        return literal_eval(text)

    storage.write_arrays(tmp_path / "file", {f"leaf_{i}": np.zeros((3, 4)) for i in range(10)})
    monkeypatch.setattr(ast, "literal_eval", let_others_in)
    with ThreadPoolExecutor(4) as threads:
        assert [len(arrays) for arrays in threads.map(storage.read_arrays, [tmp_path / "file"] * 8)] == [10] * 8
    assert most == [1] * 80


@pytest.mark.parametrize("content", [{}, {"format": 3}, {"format": np.array(storage.FORMAT + 1)}, {"format": "x" * 99}])
def test_content_of_another_version_is_refused_in_one_line_that_names_it(content):
    storage.check_format({"format": storage.FORMAT}, "x")
    storage.check_format({"format": np.array(storage.FORMAT)}, "x")
    with pytest.raises(storage.FormatError) as caught:
        storage.check_format(content, "runs/x/results.json")
    text = str(caught.value)
    assert text.startswith(f"runs/x/results.json has the format {str(content.get('format', 1))[:20]}, this version of")
    assert text.endswith("or give another out=")
    assert len(text.splitlines()) == 1


HOLD = """
import sys
from pathlib import Path
from hw1jax import storage

with storage.run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_belongs_to_one_run_and_another_is_told_in_one_line_whose_it_is(tmp_path):
    folder = tmp_path / "runs" / "one"
    with storage.run_lock(folder):
        (folder / "kept").write_text("something")
        before = contents(folder)
        for _ in range(2):  # also within one process
            with pytest.raises(ValueError) as caught, storage.run_lock(folder):
                raise AssertionError("two runs hold one folder")
            assert type(caught.value) is ValueError
            whose = f"process {os.getpid()} on {platform.node()} since 20\\d\\d-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d UTC"
            message = f"{re.escape(str(folder))} is in use by {whose}: wait for its end, or give another out="
            assert re.fullmatch(message, str(caught.value))
        assert contents(folder) == before
    with storage.run_lock(folder):
        assert (folder / "kept").read_text() == "something"


def test_a_killed_process_holds_no_folder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {process.pid} on"), storage.run_lock(tmp_path):
            raise AssertionError("two processes hold one folder")
    finally:
        process.kill()
        process.communicate()
    with storage.run_lock(tmp_path):
        assert (tmp_path / storage.RUN_LOCK).read_text().startswith(f"process {os.getpid()} on")


@pytest.mark.timeout(60)  # seconds: a thread that waits for a lock that is never freed waits for ever
@pytest.mark.parametrize(
    ("first", "second", "at_once"),
    [
        (storage.write_lock, storage.write_lock, False),
        (storage.write_lock, storage.read_lock, False),
        (storage.read_lock, storage.write_lock, False),
        (storage.read_lock, storage.read_lock, True),
    ],
)
def test_files_that_fit_each_other_are_written_by_one_at_a_time_while_nobody_reads(tmp_path, first, second, at_once):
    with storage.write_lock(tmp_path / "folder"):
        pass
    done = threading.Event()

    def wait_for_it():
        with second(tmp_path / "folder"):
            done.set()

    thread = threading.Thread(target=wait_for_it)
    with first(tmp_path / "folder"):
        thread.start()
        assert done.wait(0.2) == at_once
    thread.join()
    assert done.is_set()


def test_reading_writes_nothing(tmp_path):
    with storage.read_lock(tmp_path), storage.read_lock(tmp_path / "none"):
        assert os.listdir(tmp_path) == []
