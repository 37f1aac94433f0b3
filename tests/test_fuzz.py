"""Damaged files of a run: each is refused in one line that says which, or read; no other error, no hang, no memory.

The files are those of a real, tiny run and a tiny Fashion-MNIST. They are read in a process of their own, whose memory
can be limited and measured. With HW1JAX_LONG_TESTS=1 all 500 are read, else the first fifth of each kind.
"""

import gzip
import hashlib
import io
import json
import math
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.serialization
import matplotlib
import numpy as np
import pytest
from regression import STUDY

from hw1jax import cli, report, search, storage, trained
from hw1jax.data import fashion_mnist, regression
from hw1jax.report import plots

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
SHARE = 1.0 if "HW1JAX_LONG_TESTS" in os.environ else 0.2  # of the files that are read
SEED = 20
SLOW_SECONDS = 10  # of one file, on a busy machine
MIB = 2**20

# How many mutated files of each kind there are.
COUNTS = {
    "results.json": 80,
    "journal.log": 110,
    "model.msgpack": 80,
    "histories.npz": 100,
    "data.csv": 60,
    "train-images": 20,
    "train-images with its own checksum": 30,
    "train-images.gz": 20,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000 * SHARE + 100)]


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      path: where the mutated file lies.
      original: the content of the valid file.
      number: puts a huge, negative or undefined number into it.
      read: reads it as the program does, and asserts what must be true of anything that is read.
    """

    path: Path
    original: bytes
    number: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], None]


class Hang(BaseException):
    """A file took too long. No `except Exception` can take it for a damage."""


# Mutations.


def flip(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 9)):
        changed[place] ^= int(random.integers(1, 256))
    return bytes(changed)


def truncate(content: bytes, random: np.random.Generator) -> bytes:
    return content[: random.integers(1, len(content))]


def duplicate(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(len(content)))
    end = start + int(random.integers(1, 400))
    return content[:end] + content[start:]


def splice(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(len(content)))
    return content[:start] + random.bytes(random.integers(1, 16)) + content[start + int(random.integers(16)) :]


def empty(content: bytes, random: np.random.Generator) -> bytes:
    return b""


NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
ODD = (b"-1", b"0", b"NaN", b"-Infinity", b"1e999", b"1e308", b"4294967296", b"999999999999", b"9" * 30, b"9" * 400)


def number_in_text(content: bytes, random: np.random.Generator) -> bytes:
    found = list(NUMBER.finditer(content))
    start, end = found[random.integers(len(found))].span()
    return content[:start] + ODD[random.integers(len(ODD))] + content[end:]


def number_in_model(content: bytes, random: np.random.Generator) -> bytes:
    """A hyperparameter, or the first weight of a layer of one of the networks."""
    model = flax.serialization.msgpack_restore(content)
    odd = (-1, 0, 2**31, 2**40, 2**63, float("nan"), float("-inf"), 1e308)[random.integers(8)]
    values = model["hyperparameters"]
    name = ["learning_rate", "l2", "hidden_units", "weights"][random.integers(4)]
    if name == "weights":
        networks = [model, *model["folds"]]
        params = networks[random.integers(len(networks))]["params"]
        layers = sorted(params)
        layer = layers[random.integers(len(layers))]
        weights = params[layer]
        weights = np.append([np.float64(odd)], weights.ravel()[1:]).reshape(weights.shape)
        if random.integers(2):
            weights = np.clip(weights, -3e38, 3e38).astype(np.float32)
        params[layer] = weights
    elif name == "hidden_units":
        values[name][random.integers(len(values[name]))] = odd
    else:
        values[name] = odd
    return flax.serialization.msgpack_serialize(model)


def number_in_arrays(content: bytes, random: np.random.Generator) -> bytes:
    """A number in the header of an array, where the checksum of the zip file does not tell."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = sorted(members)[random.integers(len(members))]
    header, rest = members[name][:118], members[name][118:]  # 128 bytes, padded with blanks: they make room
    members[name] = number_in_text(header, random)[:128].ljust(128) + rest[10:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, member in members.items():
            file.writestr(name, member)
    return buffer.getvalue()


def number_in_idx(content: bytes, random: np.random.Generator) -> bytes:
    place = int(random.integers(4)) * 4
    return content[:place] + struct.pack(">I", [0, 1, 2**31 - 1, 2**32 - 1][random.integers(4)]) + content[place + 4 :]


def mutated(kind: Kind, number: int, label: str) -> tuple[str, bytes]:
    """The name of a mutation and what it makes of the file; the same at every call."""
    if label == "results.json" and number == 1:  # lengths that are believed fill the memory
        return "num_folds", re.sub(rb'"num_folds": \d+', b'"num_folds": 999999999999', kind.original)
    random = np.random.default_rng([SEED, list(COUNTS).index(label), number])
    ways = (empty, kind.number, flip, truncate, duplicate, splice, kind.number)
    way = ways[number] if number < len(ways) else ways[1 + number % (len(ways) - 1)]
    return way.__name__, way(kind.original, random)


# The files and what reads them, in the process that is measured.


def tiny_run(folder: Path) -> None:
    """A real run, as from the command line."""
    line = "--num-trials 3 --num-epochs 2 --hidden-units 2-3 2-3 --seed 1 --out"
    sys.argv = ["experiments/regression.py", *line.split(), str(folder)]
    try:
        cli.main(STUDY)
    except SystemExit as end:
        assert end.code == 0


def read_results(path: Path) -> None:
    assert report.write_report(path.parent, STUDY).is_file()


def read_journal(path: Path) -> None:
    opened = search.open_storage(path, STUDY, sampler="random", seed=0)
    assert opened.study_name == "regression"
    assert [trial.number for trial in opened.trials] == list(range(len(opened.trials)))


def read_model(path: Path) -> None:
    model = trained.load_model(path, STUDY)
    for ensemble in (False, True) if model.folds else (False,):
        assert model.predict(np.zeros((1, 1), np.float32), ensemble=ensemble).shape == (1, 1)


def read_histories(path: Path, originals: dict[str, np.ndarray]) -> None:
    """What a checksum protects is unchanged; the rest are arrays of numbers."""
    for name, array in storage.read_arrays(path).items():
        assert isinstance(array, np.ndarray)
        assert not array.dtype.hasobject
        if array.shape == originals[name].shape and array.dtype == originals[name].dtype:
            np.testing.assert_array_equal(array, originals[name])


def read_csv(path: Path) -> None:
    data = regression.from_csv(path, path)
    assert len(data.x_train) == len(data.y_train) > 0
    assert all(part.dtype == np.float32 and part.shape[1:] == (1,) and np.isfinite(part).all() for part in data[:4])


SHAPES = {"train-images": (6, 28, 28), "train-labels": (6,), "t10k-images": (3, 28, 28), "t10k-labels": (3,)}
BYTES = {
    name: fashion_mnist.Idx(name, shape, "").header + bytes(i * 7 % 251 for i in range(math.prod(shape)))
    for name, shape in SHAPES.items()
}


def idx_files(changed: bytes) -> fashion_mnist.Files:
    """The files with their checksums, that of the training images being the one of `changed`."""
    contents = BYTES | {"train-images": changed}
    return tuple(
        fashion_mnist.Idx(name, shape, hashlib.sha256(contents[name]).hexdigest()) for name, shape in SHAPES.items()
    )


def read_images(path: Path) -> None:
    """With the true checksum: nothing but the true images are read."""
    data = fashion_mnist.load(str(path.parent), files=idx_files(BYTES["train-images"]))
    assert data.x_train.tobytes() == BYTES["train-images"][16:]


def read_images_of_any_checksum(path: Path) -> None:
    """With the checksum of the damaged file: header and length are all that is left to look at."""
    data = fashion_mnist.load(str(path.parent), files=idx_files(path.read_bytes()))
    assert data.x_train.shape == SHAPES["train-images"]


def make_kinds(folder: Path) -> dict[str, Kind]:
    """All kinds, each with a folder in which nothing but its own file is mutated."""
    tiny_run(folder / "run")
    run = {name: (folder / "run" / name).read_bytes() for name in list(COUNTS)[:4]}
    arrays = storage.read_arrays(folder / "run" / "histories.npz")
    csv = b"input,label\n" + b"".join(b"%d.25,-%d.5e-1\n" % (i, i) for i in range(20))
    for name in ("plain", "own", "packed"):
        for file, content in BYTES.items():
            storage.write_bytes(folder / name / file, content)
    (folder / "packed" / "train-images").unlink()
    images = BYTES["train-images"]
    packed = gzip.compress(images, mtime=0)
    kinds = {
        "results.json": Kind(folder / "run" / "results.json", run["results.json"], number_in_text, read_results),
        "journal.log": Kind(folder / "journal" / "journal.log", run["journal.log"], number_in_text, read_journal),
        "model.msgpack": Kind(folder / "model" / "model.msgpack", run["model.msgpack"], number_in_model, read_model),
        "histories.npz": Kind(
            folder / "arrays" / "histories.npz",
            run["histories.npz"],
            number_in_arrays,
            lambda path: read_histories(path, arrays),
        ),
        "data.csv": Kind(folder / "csv" / "data.csv", csv, number_in_text, read_csv),
        "train-images": Kind(folder / "plain" / "train-images", images, number_in_idx, read_images),
        "train-images with its own checksum": Kind(
            folder / "own" / "train-images", images, number_in_idx, read_images_of_any_checksum
        ),
        "train-images.gz": Kind(folder / "packed" / "train-images.gz", packed, number_in_idx, read_images),
    }
    for kind in kinds.values():
        kind.path.parent.mkdir(exist_ok=True)
    return kinds


def attempt(kind: Kind) -> str:
    """Reads a file -> "read", "refused", or what is wrong."""
    try:
        kind.read(kind.path)
    except (ValueError, OSError) as error:
        message = str(error)
        if len(message.splitlines()) != 1:
            return f"{len(message.splitlines())} lines: {message!r}"
        # Two files of a run may contradict each other: then the message names its folder, or the other one.
        return "refused" if str(kind.path.parent) in message else f"names no file: {type(error).__name__}: {message}"
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def peak_memory() -> int:
    """The most memory that this process has used, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def hang(*_: object) -> None:
    raise Hang(f"not read after {SLOW_SECONDS} seconds")


def fuzz(folder: Path, share: float) -> None:
    """Reads this share of the mutated files of each kind, and writes outcomes.json."""
    plots.DOTS_PER_INCH = 20
    kinds = make_kinds(folder)
    for kind in kinds.values():  # the originals: all that is imported, compiled and drawn for the first time
        kind.path.write_bytes(kind.original)
        assert attempt(kind) == "read", (kind.path, attempt(kind))
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + 3072 * MIB,) * 2)  # for the machine's sake
    signal.set_wakeup_fd(-1)  # the command line's own watch over signals, which would take an alarm for Ctrl-C
    signal.signal(signal.SIGALRM, hang)
    outcomes = []
    for label, kind in kinds.items():
        for number in range(math.ceil(share * COUNTS[label])):
            way, content = mutated(kind, number, label)
            kind.path.write_bytes(content)
            memory, start = peak_memory(), time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, SLOW_SECONDS)
            outcome = attempt(kind)
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcomes.append(
                {
                    "kind": label,
                    "mutation": f"{label} {number}, {way}",
                    "outcome": outcome,
                    "seconds": time.monotonic() - start,
                    "mebibytes": peak_memory() - memory,
                }
            )
            if outcome not in ("read", "refused"):
                storage.write_bytes(folder / "failures" / f"{label} {number}", content)
        kind.path.write_bytes(kind.original)
    storage.write_json(folder / "outcomes.json", outcomes)


# The tests.


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each file. Those that were neither read nor refused are kept in the folder `failures`."""
    folder = tmp_path_factory.mktemp("fuzz")
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1] / "experiments")
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(SHARE)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1800 * SHARE,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "outcomes.json").read_text())


@LINUX
@pytest.mark.parametrize("kind", COUNTS)
def test_a_damaged_file_is_refused_in_one_line_that_names_it_or_read(outcomes, kind):
    mine = [o for o in outcomes if o["kind"] == kind]
    assert len(mine) == math.ceil(SHARE * COUNTS[kind])
    assert {o["mutation"]: o["outcome"] for o in mine if o["outcome"] not in ("read", "refused")} == {}
    assert any(o["outcome"] == "refused" for o in mine)


@LINUX
def test_no_damaged_file_takes_long_or_a_gibibyte(outcomes):
    assert {o["mutation"]: o["seconds"] for o in outcomes if o["seconds"] > SLOW_SECONDS} == {}
    assert sum(o["mebibytes"] for o in outcomes) < 1024, [o for o in outcomes if o["mebibytes"] > 100]


if __name__ == "__main__":
    fuzz(Path(sys.argv[1]), float(sys.argv[2]))
