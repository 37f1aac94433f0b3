"""The Fashion-MNIST loader on small fakes: damaged files, the cache, the order of the sources, TFDS and apt-get."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import logging
import math
import socket
import subprocess
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
FILES = tuple(Idx(name, shape, hashlib.sha256(BYTES[name]).hexdigest()) for name, shape in SHAPES.items())
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = SHAPES


def write(folder, contents, *, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
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


def test_table_has_the_published_sizes():
    sizes = [len(file.header) + math.prod(file.shape) for file in fashion_mnist.FILES]
    assert sizes == [47_040_016, 60_008, 7_840_016, 10_008]
    assert len(fashion_mnist.CLASSES) == 10


def test_real_data_are_complete_and_balanced():
    try:
        data = load(sources=fashion_mnist.SOURCES[:2])
    except DataError as error:
        pytest.skip(f"not on this machine without a network: {' '.join(str(error).split())}")
    assert [(values.shape, values.dtype.name) for values in data[:4]] == [
        ((60000, 28, 28), "uint8"),
        ((60000,), "int32"),
        ((10000, 28, 28), "uint8"),
        ((10000,), "int32"),
    ]
    assert np.bincount(data.y_train).tolist() == [6000] * 10 and np.bincount(data.y_test).tolist() == [1000] * 10
    assert data.y_test[:5].tolist() == [9, 2, 1, 1, 6]
    np.testing.assert_allclose([data.x_train.mean(), data.x_test.mean()], [72.940352, 73.146562], rtol=1e-6)


# A folder of the user's own


@pytest.mark.parametrize("packed", [False, True])
def test_data_dir_is_read_plain_or_gzipped(tmp_path, packed):
    assert_is_the_fake(load(str(write(tmp_path, BYTES, packed=packed)), files=FILES))


def test_file_is_known_by_its_content_and_not_by_its_ending(tmp_path):
    write(tmp_path, {f"{name}.gz": data for name, data in BYTES.items()})
    assert_is_the_fake(load(str(tmp_path), files=FILES))


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
    "edited dimension": edited(IDX, 15),
    "labels for images": BYTES[LABELS],
    "test for training": BYTES[TEST_IMAGES],
    "web page": b"<!DOCTYPE html><html>Sign in to the network</html>",
    "gzip, empty": gzip.compress(b""),
    "gzip, truncated": gzip.compress(IDX)[:-9],
    "gzip, header alone": gzip.compress(IDX)[:5],
    "gzip, bad block": gzip.compress(IDX)[:10] + b"\xff" * 50,
    "gzip, edited": edited(gzip.compress(IDX), 2000),
    "gzip, edited checksum": edited(gzip.compress(IDX), len(gzip.compress(IDX)) - 6),
    "gzip, junk behind": gzip.compress(IDX) + b"junk",
    "gzip, of a truncated file": gzip.compress(IDX[:-1]),
    "gzip, of an edited file": gzip.compress(edited(IDX, 99)),
    "gzip, twice": gzip.compress(gzip.compress(IDX)),
    "gzip, bomb": gzip.compress(IDX + bytes(20_000_000), 1),
    "zlib": zlib.compress(IDX),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file_in_data_dir_is_refused_by_name(tmp_path, data, ending):
    write(tmp_path, BYTES)
    (tmp_path / IMAGES).unlink()
    (tmp_path / (IMAGES + ending)).write_bytes(data)
    before = snapshot(tmp_path)
    with pytest.raises(DataError) as caught:
        load(str(tmp_path), files=FILES)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / IMAGES}{ending} ") and len(message.splitlines()) == 1
    assert "data_dir= or HW1JAX_DATA_DIR must name a folder with the files train-images" in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("one, other", [(IMAGES, LABELS), (IMAGES, TEST_IMAGES), (TEST_LABELS, LABELS)])
def test_exchanged_files_are_refused_by_name(tmp_path, one, other):
    write(tmp_path, BYTES | {one: BYTES[other], other: BYTES[one]})
    with pytest.raises(DataError, match=f"({one}|{other}) is not an IDX file of"):
        load(str(tmp_path), files=FILES)


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


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(IDX) - 1), st.integers(1, 255))
def test_any_edited_byte_is_found(tmp_path_factory, place, change):
    path = tmp_path_factory.getbasetemp() / IMAGES
    path.write_bytes(IDX[:place] + bytes([IDX[place] ^ change]) + IDX[place + 1 :])
    with pytest.raises(DataError, match=IMAGES):
        fashion_mnist.read_file(path, FILES[0])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08", gzip.compress(IDX)[:30], IDX[:4]]), st.binary(max_size=60))
def test_random_bytes_are_refused_as_a_data_error(tmp_path_factory, start, end):
    path = tmp_path_factory.getbasetemp() / f"{IMAGES}.gz"
    path.write_bytes(start + end)
    with pytest.raises(DataError, match=IMAGES):
        fashion_mnist.read_file(path, FILES[0])


@pytest.mark.parametrize("name", SHAPES)
def test_missing_file_in_data_dir_is_named(tmp_path, name):
    write(tmp_path, BYTES)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{tmp_path} has no file {name} or {name}.gz; data_dir="):
        load(str(tmp_path), files=FILES)


def test_missing_data_dir_is_refused_without_trying_anything_else(tmp_path, cache):
    write(cache, BYTES)
    with pytest.raises(DataError, match="nowhere has no file"):
        load(str(tmp_path / "nowhere"), files=FILES)
    assert not (tmp_path / "nowhere").exists()


def test_data_dir_is_never_written(tmp_path, cache):
    folder = write(tmp_path / "mine", BYTES, packed=True)
    before = snapshot(folder)
    folder.chmod(0o555)
    assert_is_the_fake(load(str(folder), files=FILES))
    folder.chmod(0o755)
    assert snapshot(folder) == before and not cache.exists()


def test_environment_names_the_data_dir_and_the_argument_overrules_it(tmp_path, cache, monkeypatch):
    folder = write(tmp_path / "mine", BYTES)
    monkeypatch.setenv("HW1JAX_DATA_DIR", str(folder))
    assert_is_the_fake(load(files=FILES, sources=()))
    with pytest.raises(DataError, match="nowhere has no file"):
        load(str(tmp_path / "nowhere"), files=FILES)
    monkeypatch.setenv("HW1JAX_DATA_DIR", str(tmp_path / "nowhere"))
    assert_is_the_fake(load(str(folder), files=FILES))


def test_tilde_in_data_dir_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine", BYTES)
    assert_is_the_fake(load("~/mine", files=FILES))


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


def test_sources_stand_in_the_documented_order():
    functions = [source.fetch for source in fashion_mnist.SOURCES]
    assert functions == [
        fashion_mnist.from_cache,
        fashion_mnist.from_debian_folder,
        fashion_mnist.from_tfds,
        fashion_mnist.from_apt,
    ]
    assert [source.keep for source in fashion_mnist.SOURCES] == [False, False, True, True]


def test_first_source_that_has_the_data_is_the_last_one_asked(cache):
    calls = []
    sources = (source("a", calls), source("b", calls, contents=BYTES), source("c", calls, contents=BYTES))
    assert_is_the_fake(load(files=FILES, sources=sources))
    assert calls == ["a", "b"]


def test_empty_environment_variable_counts_as_unset(cache, monkeypatch):
    monkeypatch.setenv("HW1JAX_DATA_DIR", "")
    assert_is_the_fake(load(files=FILES, sources=(source("a", [], contents=BYTES),)))


def test_only_what_was_fetched_from_afar_is_cached(cache):
    load(files=FILES, sources=(source("near", [], contents=BYTES),))
    assert not cache.exists()
    load(files=FILES, sources=(source("far", [], contents=BYTES, keep=True),))
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == BYTES


def test_cached_files_are_not_fetched_again(cache):
    calls = []
    for _ in range(3):
        assert_is_the_fake(load(files=FILES, sources=(CACHE, source("far", calls, contents=BYTES, keep=True))))
    assert calls == ["far"]


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file_in_the_cache_is_fetched_again_with_a_word(cache, caplog, data):
    write(cache, BYTES | {IMAGES: data})
    assert_is_the_fake(load(files=FILES, sources=(CACHE, source("far", [], contents=BYTES, keep=True))))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name.startswith("hw1jax")
    assert record.message.startswith(str(cache / IMAGES)) and record.message.endswith("fetching it again")
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == BYTES


def test_half_filled_cache_is_completed_without_a_word(cache, caplog):
    write(cache, {IMAGES: BYTES[IMAGES]})
    assert_is_the_fake(load(files=FILES, sources=(CACHE, source("far", [], contents=BYTES, keep=True))))
    assert not caplog.records and len(list(cache.iterdir())) == 4


def test_unwritable_cache_stops_nothing(cache, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert_is_the_fake(load(files=FILES, sources=(CACHE, source("far", [], contents=BYTES, keep=True))))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "can't be cached" in caplog.text


def test_relative_cache_home_is_ignored(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ["relative/cache", ""]:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert fashion_mnist.cache_folder() == tmp_path / ".cache" / "hw1jax" / "fashion-mnist"


def test_interrupted_write_leaves_old_files_whole_and_no_litter(cache):
    write(cache, dict.fromkeys(BYTES, b"old"))
    with pytest.raises(TypeError):
        fashion_mnist.store({IMAGES: b"new", LABELS: None}, cache)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == dict.fromkeys(BYTES, b"old") | {IMAGES: b"new"}


def test_readers_never_meet_a_half_written_file(cache):
    write(cache, BYTES)
    writers = [threading.Thread(target=lambda: [fashion_mnist.store(BYTES, cache) for _ in range(40)]) for _ in "abc"]
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
def serve(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with contextlib.ExitStack() as stack:

        def start(folder):
            handler = functools.partial(Quiet, directory=folder)
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/"

        yield start


def test_tfds_fetches_the_files_in_silence_without_tensorflow(tmp_path, serve, capfd):
    url = serve(write(tmp_path / "server", BYTES, packed=True))
    assert fashion_mnist.from_tfds(FILES, url=url) == BYTES
    assert capfd.readouterr() == ("", "") and "tensorflow" not in sys.modules


def test_silence_holds_back_logs_and_warnings_and_leaves_no_trace(monkeypatch, caplog):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a program that has set up no logging
    with fashion_mnist._silence():
        logging.getLogger("urllib3").addHandler(caplog.handler)
        logging.getLogger("urllib3").error("retrying")
        logging.warning("would set up the root logger")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    assert not logging.root.handlers and not caplog.records
    logging.getLogger("urllib3").error("heard again")
    logging.getLogger("urllib3").removeHandler(caplog.handler)
    assert caplog.messages == ["heard again"]


def test_tfds_download_of_damaged_or_missing_files_fails(tmp_path, serve, capfd):
    folder = write(tmp_path / "server", BYTES | {IMAGES: DAMAGE["edited at the end"]}, packed=True)
    url = serve(folder)
    with pytest.raises(DataError, match="was edited"):
        fashion_mnist.from_tfds(FILES, url=url)
    (folder / f"{IMAGES}.gz").unlink()
    with pytest.raises(Exception, match="404"):
        fashion_mnist.from_tfds(FILES, url=url)
    assert capfd.readouterr() == ("", "")


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


# apt-get, played by shell scripts that note how they were called

FOUND = 'echo "$@" | grep -q {needs} && cp "$DEB" . && exit 0; {fails}'
PRIVATE = 'case "$*" in *Dir::State::lists=*) test -d lists/partial || exit 100;; esac'  # as apt-get wants it
MISSING = "echo 'W: some warning' >&2; echo 'E: Unable to locate package dataset-fashion-mnist' >&2; exit 100"
DEAD = "echo 'E: Failed to fetch the package: Temporary failure resolving the host' >&2; exit 100"


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """A function that sets what `apt-get download` and `update` do, and returns another one that tells the calls."""
    write(tmp_path / "package" / "usr" / "share" / "datasets" / "fashion-mnist", BYTES, packed=True)
    (tmp_path / "fake.deb").touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("DEB", str(tmp_path / "fake.deb"))

    def script(name, body):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path / "calls"}\n{body}\n')
        (programs / name).chmod(0o755)

    def play(download, *, update="exit 0"):
        script("apt-get", f'{PRIVATE}\ncase "$*" in *update) {update};; esac\n{download}')
        script("dpkg-deb", f'test "$1" = -x && test -f "$2" && cp -r {tmp_path / "package"} "$3"')
        return lambda: [line.split() for line in (tmp_path / "calls").read_text().splitlines()]

    return play


def test_apt_downloads_and_unpacks_the_package_without_installing_it(debian):
    calls = debian(FOUND.format(needs="download", fails="exit 1"))
    assert fashion_mnist.from_apt(FILES) == BYTES
    assert [call[0] for call in calls()] == ["apt-get", "dpkg-deb"]
    assert not any("install" in call for call in calls())


@pytest.mark.parametrize("update", ["exit 0", DEAD], ids=["all lists found", "some list missing"])
def test_apt_makes_private_lists_where_the_systems_are_missing(debian, update):
    calls = debian(FOUND.format(needs="Dir::State::lists", fails=MISSING), update=update)
    assert fashion_mnist.from_apt(FILES) == BYTES
    verbs = [next(word for word in call if word in ("download", "update", "-x")) for call in calls()]
    assert verbs == ["download", "update", "download", "-x"]
    assert all(any("Dir::Cache=" in word for word in call) for call in calls()[1:3])


def test_apt_gives_up_a_dead_network_at_once_with_its_reason(debian):
    calls = debian(DEAD)
    with pytest.raises(DataError, match="^E: Failed to fetch the package: Temporary failure resolving the host$"):
        fashion_mnist.from_apt(FILES)
    assert len(calls()) == 1


def test_apt_tells_why_private_lists_did_not_help(debian):
    debian(MISSING, update=DEAD)
    with pytest.raises(DataError, match="^E: Unable to locate package .*; E: Failed to fetch"):
        fashion_mnist.from_apt(FILES)


def test_system_without_apt_is_said_to_have_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="there is no program apt-get here"):
        fashion_mnist.from_apt(FILES)


def test_importing_the_loader_does_not_import_tfds():
    code = "import sys, hw1jax.data.fashion_mnist; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
