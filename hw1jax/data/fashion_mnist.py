"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), downloaded, verified and cached, as numpy arrays.

TFDS downloads the original files; if only Debian's mirrors can be reached, apt-get does. Every byte is checked against
the table `FILES`, whatever its source.
"""

import contextlib
import gzip
import hashlib
import logging
import math
import os
import shutil
import struct
import subprocess
import tempfile
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hw1jax import storage
from hw1jax.data import Dataset

IMAGE_SIZE = 28  # rows and columns of pixels
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # the original files; TFDS knows their checksums
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TIMEOUT_SECONDS = 5  # for a host's answer

log = logging.getLogger(__name__)


class DataError(ValueError):
    """Fashion-MNIST is damaged or missing; the message names the place and the remedy."""


class Idx(NamedTuple):
    """An IDX file of unsigned bytes, decompressed."""

    name: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def header(self) -> bytes:
        """Two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension as a big-endian uint32."""
        return struct.pack(f">HBB{len(self.shape)}I", 0, 8, len(self.shape), *self.shape)


Files = tuple[Idx, Idx, Idx, Idx]  # training images and labels, test images and labels
Contents = dict[str, bytes]  # by file name, decompressed and verified

FILES: Files = (
    Idx("train-images-idx3-ubyte", (60000, 28, 28), "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    Idx("train-labels-idx1-ubyte", (60000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    Idx("t10k-images-idx3-ubyte", (10000, 28, 28), "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    Idx("t10k-labels-idx1-ubyte", (10000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)


def read_file(path: Path, file: Idx) -> bytes:
    """Reads `file`, gzipped or not, from `path`; raises a DataError that names the path if its bytes differ."""
    num_bytes = len(file.header) + math.prod(file.shape)
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        try:  # one byte too many shows a longer file, without decompressing a gzip bomb
            data = (gzip.GzipFile(fileobj=stream) if is_gzip else stream).read(num_bytes + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is a damaged gzip file: {error}") from None
    if not data.startswith(file.header):
        raise DataError(f"{path} is not an IDX file of {' x '.join(map(str, file.shape))} bytes, gzipped or not")
    if len(data) != num_bytes:
        raise DataError(f"{path} has too {'many' if len(data) > num_bytes else 'few'} bytes: expected {num_bytes:,}")
    if (sha256 := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise DataError(f"{path} was edited, or is of another data set: sha256 {sha256}, expected {file.sha256}")
    return data


def read_folder(folder: Path, files: Files = FILES) -> Contents:
    """Reads all four files of a folder, plain IDX or with the ending .gz. Raises OSError or DataError."""
    contents = {}
    for file in files:
        path = next(filter(Path.is_file, (folder / file.name, folder / f"{file.name}.gz")), None)
        if path is None:
            raise FileNotFoundError(f"{folder} has no file {file.name} or {file.name}.gz")
        contents[file.name] = read_file(path, file)
    return contents


def cache_folder() -> Path:
    """The package's cache. Raises RuntimeError if the user has no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else "~/.cache").expanduser() / "hw1jax" / "fashion-mnist"


def store(contents: Contents, folder: Path) -> None:
    """Writes the files into a folder; each appears whole or not at all."""
    for name, data in contents.items():
        storage.write_bytes(folder / name, data)


def from_cache(files: Files) -> Contents:
    """Reads the package's cache."""
    try:
        return read_folder(cache_folder(), files)
    except DataError as error:
        log.warning("%s; fetching it again", error)
        raise


def from_debian_folder(files: Files) -> Contents:
    """Reads the files that Debian's package installs."""
    return read_folder(DEBIAN_FOLDER, files)


def from_tfds(files: Files, *, url: str = URL) -> Contents:
    """Downloads with TFDS' manager, which verifies TFDS' checksums and needs no TensorFlow."""
    with urllib.request.urlopen(f"{url}{files[-1].name}.gz", timeout=TIMEOUT_SECONDS) as response:
        response.read(1)  # an unreachable host fails at once here; TFDS would retry for minutes
    with _silence(), tempfile.TemporaryDirectory() as folder:
        import tensorflow_datasets as tfds  # takes half a second, and is seldom needed

        tfds.disable_progress_bar()
        manager = tfds.download.DownloadManager(download_dir=folder)
        # one at a time: after a failure, nothing writes to the folder while it is removed
        return {file.name: read_file(Path(manager.download(f"{url}{file.name}.gz")), file) for file in files}


def from_apt(files: Files) -> Contents:
    """Downloads Debian's package, as any user, and unpacks it in a temporary folder without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        apt = ["apt-get", "-o", "Acquire::Retries=0", "-o", f"Acquire::http::Timeout={TIMEOUT_SECONDS}"]
        apt += ["-o", "APT::Sandbox::User=root"]  # else the user _apt could not write to root's folder
        errors = [_run(*apt, "download", DEBIAN_PACKAGE, folder=folder)]
        if "Unable to locate" in errors[0] or "404" in errors[0]:  # the system's package lists are missing or stale
            Path(folder, "lists", "partial").mkdir(parents=True)
            apt += ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
            errors += [_run(*apt, "-o", "APT::Update::Error-Mode=any", "update", folder=folder)]  # may fail in part
            errors += [_run(*apt, "download", DEBIAN_PACKAGE, folder=folder)]
        if not errors[-1]:
            errors += [_run("dpkg-deb", "-x", *map(str, Path(folder).glob("*.deb")), "unpacked", folder=folder)]
        if errors[-1]:
            raise DataError("; ".join(dict.fromkeys(filter(None, errors))))
        return read_folder(Path(folder, "unpacked", *DEBIAN_FOLDER.parts[1:]), files)


class Source(NamedTuple):
    """A source of the files. `fetch` returns verified bytes or raises any exception; `keep`: cache them."""

    name: str
    fetch: Callable[[Files], Contents]
    keep: bool


SOURCES = (
    Source("own cache", from_cache, keep=False),
    Source("Debian's folder", from_debian_folder, keep=False),
    Source(f"TFDS ({URL})", from_tfds, keep=True),
    Source("Debian's package", from_apt, keep=True),
)


def load(data_dir: str | Path | None = None, *, sources: tuple[Source, ...] = SOURCES, files: Files = FILES) -> Dataset:
    """Fashion-MNIST: x uint8 [60000, 28, 28] and [10000, 28, 28], 0 to 255; y int32 [60000] and [10000], 0 to 9.

    `data_dir`, or else the environment variable HW1JAX_DATA_DIR, names a folder with the four IDX files, gzipped or
    not, which is then the only source, and is never written. Without either, the first of `sources` that has the data.

    Raises:
      DataError: a file is damaged, or no source has the data; the message says what to do.
    """
    folder = os.environ.get("HW1JAX_DATA_DIR") or None if data_dir is None else data_dir
    contents = _search(sources, files) if folder is None else _read_strictly(folder, files)
    x_train, y_train, x_test, y_test = (
        np.frombuffer(contents[file.name], np.uint8, offset=len(file.header)).reshape(file.shape) for file in files
    )
    return Dataset(x_train.copy(), y_train.astype(np.int32), x_test.copy(), y_test.astype(np.int32))  # all writable


def _read_strictly(folder: str | Path, files: Files) -> Contents:
    try:
        return read_folder(Path(os.path.expanduser(folder)), files)
    except (OSError, DataError) as error:
        raise DataError(f"{error}; data_dir= or HW1JAX_DATA_DIR must name a folder with {_wanted(files)}") from None


def _search(sources: tuple[Source, ...], files: Files) -> Contents:
    failures = []
    for source in sources:
        try:
            log.info("looking for Fashion-MNIST: %s", source.name)
            contents = source.fetch(files)
        except Exception as error:  # after any error, perhaps deep in TFDS, the next source is tried
            failures.append(f"\n  {source.name}: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        if source.keep:
            try:
                store(contents, cache_folder())
            except (OSError, RuntimeError) as error:
                log.warning("Fashion-MNIST can't be cached, and will be fetched again next time: %s", error)
        return contents
    raise DataError(
        f"Fashion-MNIST could not be had from any source:{''.join(failures)}\n"
        f"Connect to a network, or install the Debian package {DEBIAN_PACKAGE}, or pass as data_dir= (or set "
        f"HW1JAX_DATA_DIR to) a folder with {_wanted(files)}, from https://github.com/zalandoresearch/fashion-mnist"
    )


def _wanted(files: Files) -> str:
    return f"the files {', '.join(file.name for file in files)}, plain or .gz"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides TFDS' warnings and logs, and keeps absl, its logger, from configuring the root logger."""
    disabled, null = logging.root.manager.disable, logging.NullHandler()
    logging.disable()
    logging.root.addHandler(null)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.root.removeHandler(null)
        logging.disable(disabled)


def _run(*command: str, folder: str) -> str:
    """Runs a program in a folder; returns its first error, or ""."""
    if not shutil.which(command[0]):
        return f"there is no program {command[0]} here"
    env = os.environ | {"LC_ALL": "C", "RES_OPTIONS": "timeout:2 attempts:1"}  # for a dead name server
    done = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb:"))]
    return (errors or [f"{command[0]} ended with exit code {done.returncode}"])[0] if done.returncode else ""
