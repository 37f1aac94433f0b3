"""Files that appear whole or not at all: written beside their place, then renamed into it. Locks that die with us."""

import contextlib
import fcntl
import io
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

# Of results.json, histories.npz, model.msgpack and a search's configuration with its plan.
FORMAT = 7

# numpy reads an array's header with Python's `ast`, whose count of depth all threads share (in 3.11): if garbage is
# collected in its middle, JAX's callback lets another thread at it, and the counts don't match (a SystemError).
_one_reader = threading.Lock()


class FormatError(ValueError):
    """Something was written by another version, in a format that this one doesn't know."""


def check_format(content: Mapping[str, Any], name: object) -> None:
    """Raises a FormatError of one line unless what `name` holds is of a format that this version reads."""
    found = np.asarray(content.get("format", 1)).tolist()  # the first format had no number
    if found != FORMAT:
        raise FormatError(
            f"{name} has the format {str(found)[:20]}, this version of hw1jax reads {FORMAT}: go on with the version "
            "that wrote it, or give another out="
        )


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
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private, a result is not
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk is told without a name
        raise


def sync(path: Path) -> None:
    """Waits until what was written to a file, by whomever, is on the disk; nothing if there is none."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; numbers that are not finite are refused, as no other program could read them."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> None:
    """Writes arrays by name as an npz. Objects, which only pickle could write, are refused.

    Numbers of types that numpy has not itself, as bfloat16, become float32: as bytes alone they would come back.
    Compressing takes longer than the rest: a file that is read once and removed is better off without.
    """
    named: dict[str, Any] = {}  # no name is one of the function's own options
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, not numbers")
        named[name] = array.astype(np.float32) if _is_foreign(np.asarray(array).dtype) else array
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **named)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote. Objects, which could execute code, are refused.

    Raises:
      ValueError: the file is damaged, or something else; the message names it.
    """
    try:
        # From memory: on a file that is no zip, np.load leaves the file open.
        with _one_reader, np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError:
        raise
    except Exception as error:  # whatever zip, zlib or the headers of arrays choke on, the file is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}): remove it and run the same command again") from error


def restored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array from a file in the type that it had, if that was one that files don't know; else as it is."""
    return array.astype(dtype) if _is_foreign(dtype) and array.dtype == np.float32 else array


def _is_foreign(dtype: np.dtype) -> bool:
    return dtype.isbuiltin == 2


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the lock file at `path`, waiting for it. The operating system frees it when its process ends, however."""
    while True:
        with _open_lock(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still_there(path, file):
                continue  # whoever held it has removed it: others lock another file of that name
            yield
            return


def results_lock(folder: Path) -> AbstractContextManager:
    """Held by whoever writes a run's results, or reads files that must fit each other.

    Several processes with other numbers of trials may share a folder; where nobody can write, there is no lock.
    """
    shared = folder.is_dir() and os.access(folder, os.W_OK)
    return lock(folder / ".results.lock") if shared else nullcontext()


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """As `lock`, without waiting: yields False if somebody holds it, be it another thread of this process."""
    with _open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_still_there(path: Path, file: io.BufferedWriter) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def new_folder(path: Path, lock_file: Path) -> Iterator[None]:
    """Makes a folder and holds the lock file in it; if the block fails, what it made is gone again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    with lock(lock_file):
        try:
            yield
        except BaseException:
            if list(path.iterdir()) == [lock_file]:
                lock_file.unlink()
                with contextlib.suppress(OSError):  # somebody else's files are in it by now
                    for folder in made:
                        folder.rmdir()
            raise


def _open_lock(path: Path) -> io.BufferedWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "ab")
