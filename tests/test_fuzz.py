"""Damaged files of a run are read, or refused in one line that names the file; no other error, no hang, no memory.

The damaged files are those of a tiny real run and a tiny Fashion-MNIST, always the same. HW1JAX_LONG_TESTS=1 tests ten
times as many of each kind.
"""

import gzip
import hashlib
import io
import math
import os
import re
import resource
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import flax.serialization
import jax
import numpy as np
import pytest
import studies
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax import load_model, load_results, storage
from hw1jax.data import fashion_mnist, regression
from hw1jax.search import optuna_search

STUDY = studies.LINE
TIMES = 10 if "HW1JAX_LONG_TESTS" in os.environ else 1
NUM_FILES = 50  # of each kind
SLOW_SECONDS = 10  # of one file, on a busy machine
MORE_MEMORY = 3 << 30  # bytes of address space that reading may take
ODD = (b"-1", b"0", b"NaN", b"-Infinity", b"1e999", b"1e308", b"4294967296", b"999999999999", b"9" * 400)
SHAPES = {"train-images": (6, 28, 28), "train-labels": (6,), "t10k-images": (3, 28, 28), "t10k-labels": (3,)}
IDX = {
    name: fashion_mnist.Idx(name, shape, "").header + bytes(i * 7 % 251 for i in range(math.prod(shape)))
    for name, shape in SHAPES.items()
}


class Kind(NamedTuple):
    """A kind of file."""

    path: str
    number: Callable  # puts a huge, negative or undefined number into it: (draw, content) -> content
    read: Callable  # reads it as the program does, and asserts what must be true of anything that is read


# Damages: functions of (hypothesis' draw, content).


def flip(draw, content):
    changed = bytearray(content)
    for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        changed[place] ^= draw(st.integers(1, 255))
    return bytes(changed)


def splice(draw, content):
    """Something is left out, repeated or put in, or the end is missing."""
    start = draw(st.integers(0, len(content)))
    near = st.integers(max(0, start - 400), min(len(content), start + 16))
    end = draw(st.just(len(content)) | near)
    return content[:start] + draw(st.binary(max_size=16)) + content[end:]


def number_in_text(draw, content):
    start, end = draw(st.sampled_from([m.span() for m in re.finditer(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", content)]))
    return content[:start] + draw(st.sampled_from(ODD)) + content[end:]


def number_in_model(draw, content):
    """A hyperparameter, or the first weight of one of the networks."""
    model = flax.serialization.msgpack_restore(content)
    odd = draw(st.sampled_from((-1, 0, 2**31, 2**63, float("nan"), float("-inf"), 1e308)))
    name = draw(st.sampled_from(["learning_rate", "units", "params"]))
    if name == "params":
        params = draw(st.sampled_from([model, *model["folds"]]))["params"]
        [(place, before)] = params.items()
        weights = np.append([np.float64(odd)], before[1:])
        params[place] = np.float32(np.clip(weights, -3e38, 3e38)) if draw(st.booleans()) else weights
    else:
        model["hyperparameters"][name] = odd
    return flax.serialization.msgpack_serialize(model)


def number_in_arrays(draw, content):
    """A number in the header of an array, damaged without an error in the zip file's checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    header, rest = members[name][:118], members[name][118:]  # 128 bytes, padded with blanks: they make room
    members[name] = number_in_text(draw, header)[:128].ljust(128) + rest[10:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, member in members.items():
            file.writestr(name, member)
    return buffer.getvalue()


def number_in_idx(draw, content):
    place = 4 * draw(st.integers(0, 3))
    return content[:place] + draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1])).to_bytes(4) + content[place + 4 :]


# What reads the files.


def read_results(path):
    assert load_results(path.parent, STUDY).trials.rows


def read_journal(path):
    opened = optuna_search.open_storage(path, STUDY, sampler="random", seed=0)
    assert opened.study_name == "line"
    assert [trial.number for trial in opened.trials] == list(range(len(opened.trials)))


def read_model(path):
    model = load_model(path, STUDY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves([model.params, model.folds]))
    for ensemble in (False, True) if model.folds else (False,):
        assert model.predict(np.zeros((1, 1), np.float32), ensemble=ensemble).shape == (1, 1)


def read_arrays(path):
    arrays = storage.read_arrays(path)
    assert all(isinstance(array, np.ndarray) and not array.dtype.hasobject for array in arrays.values())


def read_csv(path):
    data = regression.from_csv(path, path)
    assert len(data.x_train) == len(data.y_train) > 0
    assert all(part.dtype == np.float32 and part.shape[1:] == (1,) and np.isfinite(part).all() for part in data[:4])


def load_images(path, images):
    """The images, whose checksum is that of `images`."""
    contents = IDX | {"train-images": images}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    files = tuple(fashion_mnist.Idx(name, shape, sums[name]) for name, shape in SHAPES.items())
    return fashion_mnist.load(str(path.parent), files=files).x_train


def read_images(path):
    """Nothing but the true images are read."""
    assert load_images(path, IDX["train-images"]).tobytes() == IDX["train-images"][16:]


def read_images_of_any_checksum(path):
    """Only header and length are left to check."""
    assert load_images(path, path.read_bytes()).shape == SHAPES["train-images"]


KINDS = {
    "results.sha256": Kind("line/results.sha256", number_in_text, read_results),
    "journal.log": Kind("line/journal.log", number_in_text, read_journal),
    "model.msgpack": Kind("line/model.msgpack", number_in_model, read_model),
    "histories.npz": Kind("line/histories.npz", number_in_arrays, read_arrays),
    "data.csv": Kind("csv/data.csv", number_in_text, read_csv),
    "train-images": Kind("plain/train-images", number_in_idx, read_images),
    "train-images of any checksum": Kind("own/train-images", number_in_idx, read_images_of_any_checksum),
    "train-images.gz": Kind("packed/train-images.gz", number_in_idx, read_images),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With valid files of all kinds."""
    folder = tmp_path_factory.mktemp("fuzz")
    studies.finished_copy("line", tmp_path_factory, folder)
    storage.write_bytes(folder / "csv" / "data.csv", b"input,label\n" + b"1.25,-3.5e-1\n" * 20)
    for name in ("plain", "own", "packed"):
        for file, content in IDX.items():
            storage.write_bytes(folder / name / file, content)
    (folder / "packed" / "train-images").unlink()
    storage.write_bytes(folder / "packed" / "train-images.gz", gzip.compress(IDX["train-images"], mtime=0))
    return folder


@contextmanager
def limits():
    """Of time and memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, hard))
    begin = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - begin < SLOW_SECONDS


def attempt(kind, folder, content):
    """Reads a file -> "read", or "refused" in one line that names it; any other error is raised."""
    path = folder / kind.path
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        with limits():
            kind.read(path)
        return "read"
    except (ValueError, OSError) as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        # Two files of a run may contradict each other: then the message names its folder, or the other one.
        assert str(path.parent) in message, message
        return "refused"
    finally:
        path.write_bytes(original)


@pytest.mark.timeout(100 * TIMES)
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_in_one_line_that_names_it_or_read(folder, name):
    kind, outcomes = KINDS[name], Counter()
    original = (folder / kind.path).read_bytes()
    assert attempt(kind, folder, original) == "read"
    damages = st.composite(lambda draw: draw(st.sampled_from([kind.number, splice, flip]))(draw, original))

    @settings(max_examples=TIMES * NUM_FILES, derandomize=True, deadline=None, database=None)
    @given(damages() | st.just(b""))
    def read(content):
        outcomes[attempt(kind, folder, content)] += 1

    read()
    assert outcomes["refused"] > 0
    assert outcomes.total() >= NUM_FILES / 2
