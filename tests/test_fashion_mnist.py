"""The Fashion-MNIST loader on small fakes: damaged files, cache, order of the sources, TFDS and apt-get."""

import functools
import gzip
import hashlib
import http.server
import logging
import math
import runpy
import socket
import sys
import threading
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax.data import Dataset, fashion_mnist
from hw1jax.data.fashion_mnist import DataError, Idx, Source, load

SHAPES = {"train-images": (6, 28, 28), "train-labels": (6,), "t10k-images": (3, 28, 28), "t10k-labels": (3,)}
PIXELS = np.random.default_rng(0).integers(0, 256, 6 * 28 * 28, np.uint8)
BYTES = {
    name: Idx(name, shape, "").header + PIXELS[: math.prod(shape)].tobytes()[:: 1 if "images" in name else -1]
    for name, shape in SHAPES.items()
}
PACKED = {f"{name}.gz": gzip.compress(data) for name, data in BYTES.items()}
FILES = tuple(Idx(name, shape, hashlib.sha256(BYTES[name]).hexdigest()) for name, shape in SHAPES.items())
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = SHAPES


def write(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def assert_is_the_fake(data):
    assert isinstance(data, Dataset)
    for values, name, dtype in zip(data[:4], SHAPES, [np.uint8, np.int32, np.uint8, np.int32], strict=True):
        raw = np.frombuffer(BYTES[name][-math.prod(SHAPES[name]) :], np.uint8)
        np.testing.assert_array_equal(values, raw.reshape(SHAPES[name]).astype(dtype), strict=True)
        assert values.flags.writeable


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of a cache of our own, not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HW1JAX_DATA_DIR", raising=False)
    return tmp_path / "cache" / "hw1jax" / "fashion-mnist"


def test_the_table_has_the_published_sizes_and_sources_stand_in_the_documented_order():
    sizes = [len(file.header) + math.prod(file.shape) for file in fashion_mnist.FILES]
    assert sizes == [47_040_016, 60_008, 7_840_016, 10_008]
    assert len(fashion_mnist.CLASSES) == 10
    assert [(source.fetch, source.keep) for source in fashion_mnist.SOURCES] == [
        (fashion_mnist.from_cache, False),
        (fashion_mnist.from_debian_folder, False),
        (fashion_mnist.from_tfds, True),
        (fashion_mnist.from_apt, True),
    ]


def test_real_data_are_complete_and_balanced():
    try:
        data = load(sources=fashion_mnist.SOURCES[:2])
    except DataError as error:
        pytest.skip(f"not on this machine without a network: {' '.join(str(error).split())}")
    assert data.x_train.shape == (60000, 28, 28) and data.x_test.shape == (10000, 28, 28)
    assert np.bincount(data.y_train).tolist() == [6000] * 10 and np.bincount(data.y_test).tolist() == [1000] * 10
    assert data.y_test[:5].tolist() == [9, 2, 1, 1, 6]
    np.testing.assert_allclose([data.x_train.mean(), data.x_test.mean()], [72.940352, 73.146562], rtol=1e-6)


# A folder of the user's own


@pytest.mark.parametrize("packed, ending", [(False, ""), (True, ".gz"), (False, ".gz")])
def test_data_dir_is_read_plain_or_gzipped_by_its_content_and_not_by_its_ending(tmp_path, cache, packed, ending):
    contents = {f"{name}{ending}": gzip.compress(data) if packed else data for name, data in BYTES.items()}
    folder = write(tmp_path / "mine", contents)
    before = snapshot(folder)
    folder.chmod(0o555)
    assert_is_the_fake(load(str(folder), files=FILES))
    folder.chmod(0o755)
    assert snapshot(folder) == before and not cache.exists(), "it is never written"


def edited(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


IDX = BYTES[IMAGES]
DAMAGE = {
    "empty": b"",
    "header alone": IDX[:16],
    "truncated": IDX[:-1],
    "longer": IDX + b"\0",
    "edited at the end": edited(IDX, len(IDX) - 1),
    "edited magic": edited(IDX, 2),
    "web page": b"<!DOCTYPE html><html>Sign in to the network</html>",
    "gzip, empty": gzip.compress(b""),
    "gzip, truncated": gzip.compress(IDX)[:-9],
    "gzip, bad block": gzip.compress(IDX)[:10] + b"\xff" * 50,
    "gzip, edited checksum": edited(gzip.compress(IDX), len(gzip.compress(IDX)) - 6),
    "gzip, junk behind": gzip.compress(IDX) + b"junk",
    "gzip, of a truncated file": gzip.compress(IDX[:-1]),
    "gzip, of an edited file": gzip.compress(edited(IDX, 99)),
    "gzip, bomb": gzip.compress(IDX + bytes(20_000_000), 1),
    "zlib": zlib.compress(IDX),
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file_in_data_dir_is_refused_by_name(tmp_path, data):
    for ending in ("", ".gz"):
        folder = write(tmp_path / f"folder{ending}", BYTES | {IMAGES: data})
        (folder / IMAGES).rename(folder / f"{IMAGES}{ending}")
        before = snapshot(folder)
        with pytest.raises(DataError) as caught:
            load(str(folder), files=FILES)
        message = str(caught.value)
        assert message.startswith(f"{folder / IMAGES}{ending} ") and len(message.splitlines()) == 1
        assert "data_dir= or HW1JAX_DATA_DIR must name a folder with the files train-images" in message
        assert snapshot(folder) == before


def test_gzip_bomb_takes_no_memory(tmp_path):
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(DAMAGE["gzip, bomb"])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="too many bytes: expected 4,720"):
            fashion_mnist.read_file(path, FILES[0])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


PLACES = st.tuples(st.integers(0, len(IDX) - 1), st.integers(1, 255))
EDITED = PLACES.map(lambda edit: IDX[: edit[0]] + bytes([IDX[edit[0]] ^ edit[1]]) + IDX[edit[0] + 1 :])
STARTS = st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08", gzip.compress(IDX)[:30], IDX[:4]])


@settings(max_examples=100, deadline=None)
@given(EDITED | st.tuples(STARTS, st.binary(max_size=60)).map(b"".join))
def test_any_edited_byte_and_any_random_ones_are_refused_as_a_data_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / IMAGES
    path.write_bytes(content)
    with pytest.raises(DataError, match=IMAGES):
        fashion_mnist.read_file(path, FILES[0])


@pytest.mark.parametrize(
    "name, other", [(IMAGES, LABELS), (LABELS, TEST_LABELS), (TEST_IMAGES, IMAGES), (TEST_LABELS, LABELS)]
)
def test_a_file_that_is_missing_or_has_anothers_content_is_named(tmp_path, name, other):
    write(tmp_path, BYTES | {name: BYTES[other]})
    with pytest.raises(DataError, match=f"{name} is not an IDX file of"):
        load(str(tmp_path), files=FILES)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{tmp_path} has no file {name} or {name}.gz; data_dir="):
        load(str(tmp_path), files=FILES)


def test_environment_names_the_data_dir_and_the_argument_overrules_it(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine", BYTES)
    for variable, argument in [(str(tmp_path / "mine"), None), ("~/mine", None), ("~/nowhere", "~/mine")]:
        monkeypatch.setenv("HW1JAX_DATA_DIR", variable)
        assert_is_the_fake(load(argument, files=FILES, sources=()))
    monkeypatch.setenv("HW1JAX_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(DataError, match="nowhere has no file"):
        load(tmp_path / "nowhere", files=FILES, sources=(source("a", [], contents=BYTES),))
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.setenv("HW1JAX_DATA_DIR", "")  # counts as unset
    assert_is_the_fake(load(files=FILES, sources=(source("a", [], contents=BYTES),)))


# The search, and our own cache


def source(name, calls, *, contents=None, keep=False):
    """A source that has `contents`, or else fails; every call is noted in `calls`."""

    def fetch(files):
        calls.append(name)
        if contents is None:
            raise RuntimeError(f"{name}\nis down")
        return contents

    return Source(name, fetch, keep)


CACHE = fashion_mnist.SOURCES[0]


def test_first_source_that_has_the_data_is_the_last_one_asked(cache, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", write(tmp_path / "debian", PACKED))
    sources = (source("a", calls), fashion_mnist.SOURCES[1], source("c", calls, contents=BYTES))
    assert_is_the_fake(load(files=FILES, sources=sources))
    assert calls == ["a"]
    assert not cache.exists(), "only what was fetched from afar is cached"


def test_what_was_fetched_from_afar_is_cached_and_not_fetched_again(cache):
    calls = []
    for _ in range(3):
        assert_is_the_fake(load(files=FILES, sources=(CACHE, source("far", calls, contents=BYTES, keep=True))))
    assert calls == ["far"]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == BYTES


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file_in_the_cache_is_fetched_again_with_a_word(cache, caplog, data):
    write(cache, BYTES | {IMAGES: data})
    assert_is_the_fake(load(files=FILES, sources=(CACHE, source("far", [], contents=BYTES, keep=True))))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name.startswith("hw1jax")
    assert record.message.startswith(str(cache / IMAGES)) and record.message.endswith("fetching it again")
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == BYTES


@pytest.mark.parametrize("writable", [True, False])
def test_half_filled_cache_is_completed_without_a_word_and_an_unwritable_one_stops_nothing(cache, caplog, writable):
    if writable:
        write(cache, {IMAGES: BYTES[IMAGES]})
    else:
        cache.parent.parent.write_text("a file where the folder should be")
    assert_is_the_fake(load(files=FILES, sources=(CACHE, source("far", [], contents=BYTES, keep=True))))
    assert not caplog.records if writable else "can't be cached" in caplog.text
    assert not writable or len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("value", ["relative/cache", ""])
def test_relative_cache_home_is_ignored(tmp_path, monkeypatch, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert fashion_mnist.cache_folder() == tmp_path / ".cache" / "hw1jax" / "fashion-mnist"


def test_interrupted_write_leaves_old_files_whole_and_no_litter(cache):
    write(cache, dict.fromkeys(BYTES, b"old"))
    with pytest.raises(TypeError):
        fashion_mnist.store({IMAGES: b"new", LABELS: None}, cache)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == dict.fromkeys(BYTES, b"old") | {IMAGES: b"new"}


def test_readers_never_meet_a_half_written_file(cache):
    write(cache, BYTES)
    writers = [threading.Thread(target=lambda: [fashion_mnist.store(BYTES, cache) for _ in range(10)]) for _ in "abc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert fashion_mnist.read_folder(cache, FILES) == BYTES
    assert {path.name for path in cache.iterdir()} == set(BYTES)


def test_when_every_source_fails_each_is_listed_with_its_reason_and_the_remedies(cache):
    calls = []
    with pytest.raises(DataError) as caught:
        load(files=FILES, sources=(CACHE, *(source(name, calls) for name in "abc")))
    assert isinstance(caught.value, ValueError) and calls == ["a", "b", "c"]
    first, *reasons, remedy = str(caught.value).splitlines()
    assert "any source" in first
    assert reasons[0].startswith("  own cache: ") and str(cache) in reasons[0]
    assert reasons[1:] == ["  a: a is down", "  b: b is down", "  c: c is down"]
    assert all(word in remedy for word in ["data_dir=", "HW1JAX_DATA_DIR", "dataset-fashion-mnist", *SHAPES])


# TFDS, from a server on this machine


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(folder, its URL)."""
    monkeypatch.setenv("no_proxy", "*")
    folder = write(tmp_path / "server", PACKED)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_tfds_fetches_the_files_in_silence_without_tensorflow_unless_they_are_damaged_or_missing(server, capfd):
    folder, url = server
    assert fashion_mnist.from_tfds(FILES, url=url) == BYTES
    assert "tensorflow" not in sys.modules
    write(folder, {f"{IMAGES}.gz": gzip.compress(DAMAGE["edited at the end"])})
    with pytest.raises(DataError, match="was edited"):
        fashion_mnist.from_tfds(FILES, url=url)
    (folder / f"{IMAGES}.gz").unlink()
    with pytest.raises(Exception, match="404"):
        fashion_mnist.from_tfds(FILES, url=url)
    assert capfd.readouterr() == ("", "")


def test_silence_holds_back_logs_and_warnings_and_leaves_no_trace(monkeypatch, caplog):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a program that has set up no logging
    other = logging.getLogger("urllib3")
    monkeypatch.setattr(other, "handlers", [caplog.handler])
    with fashion_mnist._silence():
        other.error("retrying")
        logging.warning("would set up the root logger")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    assert not logging.root.handlers
    other.error("heard again")
    assert caplog.messages == ["heard again"]


@pytest.mark.parametrize("listening", [True, False], ids=["a host that never answers", "a host that refuses"])
def test_dead_network_is_given_up_at_once(monkeypatch, listening):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fashion_mnist, "TIMEOUT_SECONDS", 0.2)
    with socket.socket() as host:
        host.bind(("127.0.0.1", 0))
        if listening:
            host.listen()
        start = time.perf_counter()
        with pytest.raises(OSError):
            fashion_mnist.from_tfds(FILES, url=f"http://127.0.0.1:{host.getsockname()[1]}/")
        assert time.perf_counter() - start < 2


def test_tfds_is_imported_by_those_alone_who_fetch_with_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # as if it were not installed
    runpy.run_path(fashion_mnist.__file__)


# apt-get, played by shell scripts that note how they were called

PRIVATE = 'case "$*" in *Dir::State::lists=*) test -d lists/partial || exit 100;; esac'  # as apt-get wants it
FOUND = 'cp "$DEB" .'
MISSING = "echo 'W: some warning' >&2; echo 'E: Unable to locate package dataset-fashion-mnist' >&2; exit 100"
STALE = "echo 'E: Failed to fetch the package: 404 Not Found' >&2; exit 100"
DEAD = "echo 'E: Failed to fetch the package: Temporary failure resolving the host' >&2; exit 100"
PRIVATELY = ["download", "update", "download", "-x"]
PLAYS = {  # what `apt-get download` does first, then with lists of its own, what `update` does, all calls, the error
    "all there": (FOUND, DEAD, DEAD, ["download", "-x"], None),
    "no lists": (MISSING, FOUND, "exit 0", PRIVATELY, None),
    "stale lists": (STALE, FOUND, "exit 0", PRIVATELY, None),
    "some list can't be had": (MISSING, FOUND, DEAD, PRIVATELY, None),
    "no network": (DEAD, FOUND, FOUND, ["download"], "^E: Failed to fetch .*: Temporary failure resolving the host$"),
    "no apt-get": (None, None, None, [], "there is no program apt-get here"),
    "private lists don't help": (MISSING, MISSING, DEAD, PRIVATELY[:3], "^E: Unable to locate .*; E: Failed to fetch"),
}


@pytest.mark.parametrize("first, then, update, expected, error", PLAYS.values(), ids=PLAYS)
def test_apt_downloads_and_unpacks_the_package_without_installing_it(
    tmp_path, monkeypatch, first, then, update, expected, error
):
    write(tmp_path / "package" / "usr" / "share" / "datasets" / "fashion-mnist", PACKED)
    write(tmp_path, {"fake.deb": b"", "calls": b""})
    play = f'case "$*" in *update) {update};; *Dir::State::lists=*) {then};; *) {first};; esac'
    unpack = f'test "$1" = -x && test -f "$2" && cp -r {tmp_path / "package"} "$3"'
    for name, body in (("apt-get", f"{PRIVATE}\n{play}"), ("dpkg-deb", unpack)) if first else ():
        text = f'#!/bin/sh\necho "{name} $@" >> {tmp_path / "calls"}\n{body}\n'
        (write(tmp_path / "bin", {name: text.encode()}) / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{':/usr/bin:/bin' if first else ''}")
    monkeypatch.setenv("DEB", str(tmp_path / "fake.deb"))
    if error is None:
        assert fashion_mnist.from_apt(FILES) == BYTES
    else:
        with pytest.raises(DataError, match=error):
            fashion_mnist.from_apt(FILES)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    verbs = {"download", "update", "-x"}
    assert [word for call in calls for word in call if word in verbs] == expected
    assert all(any("Dir::Cache=" in word for word in call) for call in calls[1:3] if call[0] == "apt-get")
    assert not any("install" in call for call in calls)
