"""Atomic writes: files appear whole or not at all. Locks of a run's folder."""

import contextlib
import fcntl
import fnmatch
import hashlib
import io
import json
import os
import platform
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 8  # of results.json, histories.npz, model.msgpack and a search's configuration with its plan
RUN_LOCK, RESULTS_LOCK = ".lock", ".results.lock"  # files of a run's folder

# numpy parses an array's header with Python's `ast`, whose recursion counter all threads share (in 3.11): a garbage
# collection meanwhile runs JAX's callback, which can switch threads, and the counts don't match (a SystemError).
_one_reader = threading.Lock()


class FormatError(ValueError):
    """A file of another version, in an unknown format."""


def check_format(content: Mapping[str, Any], name: object) -> None:
    """Raises a FormatError of one line unless this version reads the format of `content`."""
    version = np.asarray(content.get("format", 1)).tolist()  # the first format had no number
    if version != FORMAT:
        raise FormatError(
            f"{name} has the format {str(version)[:20]}, this version of hw1jax reads {FORMAT}: go on with the version "
            "that wrote it, or give another out="
        )


def digest(content: Any) -> str:
    """A short digest of what JSON can hold, which keeps files of different configurations apart."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment `path` holds the old content or the new, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # the error of a full disk has no name
        raise


def sync(path: Path) -> None:
    """Waits until a file's content is on the disk; does nothing if there is no file."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; refuses numbers that are not finite, which other programs can't read."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> None:
    """Writes arrays by name as an npz; refuses object arrays, which need pickle.

    Dtypes that numpy lacks, such as bfloat16, become float32. Compression takes longer than the rest, and doesn't pay
    for a file that is read once.
    """
    named: dict[str, Any] = {}
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, not numbers")
        named[name] = array.astype(np.float32) if _is_foreign(np.asarray(array).dtype) else array
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **named)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of `write_arrays`; refuses object arrays, which could execute code.

    Raises:
      ValueError: the file is damaged, or of another kind; the message names it.
    """
    try:
        # From memory: np.load doesn't close a file that is no zip.
        with _one_reader, np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError:
        raise
    except Exception as error:  # any error of zip, zlib or the arrays' headers: the file is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}): remove it and run the same command again") from error


def restored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Converts an array from a file back to a dtype that files lack."""
    return array.astype(dtype) if _is_foreign(dtype) and array.dtype == np.float32 else array


def _is_foreign(dtype: np.dtype) -> bool:
    return dtype.isbuiltin == 2


class Folder:
    """Arrays in the files of a folder."""

    def __init__(self, path: Path):
        self._path = path

    def path(self, name: str) -> Path:
        """The path of a file, which need not exist."""
        return self._path / name

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def read(self, name: str) -> dict[str, np.ndarray]:
        """As `read_arrays`; raises a FileNotFoundError without the file."""
        return read_arrays(self.path(name))

    def write(self, name: str, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> None:
        """As `write_arrays`."""
        write_arrays(self.path(name), arrays, compressed=compressed)

    def names(self, pattern: str) -> list[str]:
        """The names that match a pattern such as `*.checkpoint`."""
        return [path.name for path in self._path.glob(pattern)]

    def remove(self, pattern: str) -> None:
        """Removes what matches a pattern."""
        for name in self.names(pattern):
            self.path(name).unlink(missing_ok=True)


class Memory(Folder):
    """Arrays by name in memory, for a search without files."""

    def __init__(self) -> None:
        super().__init__(Path("memory"))
        self._arrays: dict[str, dict[str, np.ndarray]] = {}

    def exists(self, name: str) -> bool:
        return name in self._arrays

    def read(self, name: str) -> dict[str, np.ndarray]:
        return dict(self._arrays[name])

    def write(self, name: str, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> None:
        self._arrays[name] = dict(arrays)

    def names(self, pattern: str) -> list[str]:
        return fnmatch.filter(self._arrays, pattern)

    def remove(self, pattern: str) -> None:
        for name in self.names(pattern):
            del self._arrays[name]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Creates a run's folder, if needed, and locks it until the block ends.

    The operating system frees the lock when the process ends, however it ends.

    Raises:
      ValueError: another run, in any process, holds the lock; the message names it. Nothing is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / RUN_LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another run"  # it has not written its name yet
            raise ValueError(f"{folder} is in use by {holder}: wait for its end, or give another out=") from None
        file.truncate(0)
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        file.write(f"process {os.getpid()} on {platform.node()} since {now}")
        file.flush()
        yield


def write_lock(folder: Path) -> AbstractContextManager[None]:
    """Exclusive lock for writing files that belong together; waits for readers."""
    folder.mkdir(parents=True, exist_ok=True)
    return _locked(folder / RESULTS_LOCK, "ab", fcntl.LOCK_EX)


def read_lock(folder: Path) -> AbstractContextManager[None]:
    """Shared lock for reading files that belong together; waits for the run that writes them. Creates no file."""
    path = folder / RESULTS_LOCK
    return _locked(path, "rb", fcntl.LOCK_SH) if os.access(path, os.R_OK) else nullcontext()


@contextmanager
def _locked(path: Path, mode: str, kind: int) -> Iterator[None]:
    with open(path, mode) as file:
        fcntl.flock(file, kind)
        yield
