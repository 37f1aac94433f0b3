"""Files appear whole or not at all, are as readable as any other, and hold nothing that could execute."""

import errno
import gc
import json
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hw1jax import storage

WRITERS = {
    "bytes": lambda path, n: storage.write_bytes(path, bytes([n])),
    "json": lambda path, n: storage.write_json(path, {"n": n}),
    "arrays": lambda path, n: storage.write_arrays(path, {"n": np.full(3, n)}),
    "arrays as they are": lambda path, n: storage.write_arrays(path, {"n": np.full(3, n)}, compressed=False),
}


def fail(error):
    def failing(*args, **kwargs):
        raise error

    return failing


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, write):
    path = tmp_path / "new" / "folder" / "file"
    write(path, 1)
    first = path.read_bytes()
    write(path, 2)
    assert path.read_bytes() != first
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("what", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_write_that_fails_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch, write, what, error):
    path = tmp_path / "file"
    write(path, 1)
    old = path.read_bytes()
    monkeypatch.setattr(os, what, fail(error))
    with pytest.raises(type(error)):
        write(path, 2)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["file"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", fail(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        storage.write_bytes(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError) as caught:
        storage.write_bytes(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_the_whole_content_is_on_disk_before_the_file_takes_its_place(tmp_path, monkeypatch):
    seen, replace = [], os.replace

    def look_and_replace(source, target):
        seen.append((Path(source).read_bytes(), Path(source).parent, Path(target).read_bytes()))
        replace(source, target)

    path = tmp_path / "file"
    storage.write_bytes(path, b"old")
    monkeypatch.setattr(os, "replace", look_and_replace)
    storage.write_bytes(path, b"new" * 100_000)
    assert seen == [(b"new" * 100_000, tmp_path, b"old")]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_permissions_follow_the_umask_which_stays(tmp_path, write, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path / "file", 1)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_json_comes_back_and_ends_with_a_line_ending(tmp_path):
    content = {"a": [1, 2.5, None, True], "b": {"c": "ä ± \n"}}
    storage.write_json(tmp_path / "file", content)
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_numbers_that_are_not_finite_and_keeps_the_old_file(tmp_path, number):
    path = tmp_path / "file"
    storage.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(path, {"losses": [1.0, number]})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert os.listdir(tmp_path) == ["file"]


@given(
    st.dictionaries(
        st.text("abcdefghijklmnopqrstuvwxyz_0", min_size=1, max_size=12).filter(lambda name: name != "file"),
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.int32, np.uint8, bool]),
            hnp.array_shapes(min_dims=0, min_side=0),
        ),
        max_size=3,
    ),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_arrays_come_back_with_their_shapes_types_and_bits(tmp_path_factory, arrays, compressed):
    path = tmp_path_factory.getbasetemp() / "arrays.npz"
    storage.write_arrays(path, arrays, compressed=compressed)
    found = storage.read_arrays(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_arrays_are_compressed_unless_they_are_not_worth_it(tmp_path):
    for compressed in (True, False):
        storage.write_arrays(tmp_path / str(compressed), {"zeros": np.zeros(10_000)}, compressed=compressed)
    assert (tmp_path / "True").stat().st_size < 1000 and (tmp_path / "False").stat().st_size > 80_000


class Bomb:
    """Executes something when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_reading_refuses_pickled_objects_without_executing_them(tmp_path):
    marker = tmp_path / "executed"
    np.savez(tmp_path / "objects.npz", a=np.array([Bomb(marker)], object))
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Bomb(marker)))
    for name in ("objects.npz", "bare.npz"):
        with pytest.raises(ValueError):
            storage.read_arrays(tmp_path / name)
    assert not marker.exists()


def test_writing_refuses_objects(tmp_path):
    for compressed in (True, False):
        with pytest.raises(ValueError):
            storage.write_arrays(tmp_path / "file", {"a": np.array([{}, None], object)}, compressed=compressed)
    assert os.listdir(tmp_path) == []


def test_a_damaged_file_of_arrays_is_refused_by_name(tmp_path):
    """A disk that ran full elsewhere, an interrupted copy: what the user sees names the file."""
    path = tmp_path / "batch.npz"
    storage.write_arrays(path, {"val_loss": np.random.default_rng(0).normal(size=(4, 3, 50))})
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    for damaged in (b"", content[:100], content[:-10], b"not a zip file at all", flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="batch.npz") as caught:
            storage.read_arrays(path)
        assert "\n" not in str(caught.value)


def test_threads_that_read_at_once_find_nothing_damaged(tmp_path):
    """Whatever runs where garbage is collected, as a callback of JAX's does, and lets another thread in."""
    path, threshold = tmp_path / "arrays.npz", gc.get_threshold()
    storage.write_arrays(path, {f"leaf_{i}": np.zeros((3, 4)) for i in range(20)})

    def let_others_in(*_):
        time.sleep(1e-6)

    gc.callbacks.append(let_others_in)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(8) as threads:
            for arrays in threads.map(storage.read_arrays, [path] * 800):
                assert len(arrays) == 20
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(let_others_in)


def test_content_of_this_version_is_read_be_the_number_pythons_or_an_arrays():
    storage.check_format({"format": storage.FORMAT}, "x")
    storage.check_format({"format": np.array(storage.FORMAT)}, "x")


@pytest.mark.parametrize("content", [{}, {"format": 3}, {"format": np.array(storage.FORMAT + 1)}, {"format": "x" * 99}])
def test_content_of_another_version_is_refused_in_one_line_that_names_it(content):
    with pytest.raises(storage.FormatError) as caught:
        storage.check_format(content, "runs/x/results.json")
    text = str(caught.value)
    assert text.startswith(f"runs/x/results.json has the format {str(content.get('format', 1))[:20]}, this version of")
    assert text.endswith("or give another out=")
    assert len(text.splitlines()) == 1


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.read_arrays(tmp_path / "nothing.npz")


def test_a_lock_file_that_was_removed_meanwhile_is_not_taken_for_the_one_that_is_there(tmp_path):
    path, order = tmp_path / "folder" / ".lock", []
    waiting = threading.Event()

    def wait_for_it():
        waiting.set()
        with storage.lock(path):
            order.append(path.exists())

    thread = threading.Thread(target=wait_for_it)
    with pytest.raises(ValueError), storage.new_folder(path.parent, path):
        thread.start()
        waiting.wait()
        time.sleep(0.2)  # it waits for the file that goes now
        raise ValueError
    thread.join()
    assert order == [True]


def test_a_folder_that_is_not_empty_stays_when_the_beginning_fails(tmp_path):
    with pytest.raises(ValueError), storage.new_folder(tmp_path / "a" / "b", tmp_path / "a" / "b" / ".lock"):
        (tmp_path / "a" / "b" / "mine").write_text("")
        raise ValueError
    assert (tmp_path / "a" / "b" / "mine").exists()
