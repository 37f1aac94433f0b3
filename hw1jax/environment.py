"""The environment of a result: versions, device, commit, and the time of each step."""

import contextlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import get_ident
from typing import Any

import jax

PROGRAM_BYTES = 1 << 20  # more than a compiled program takes
PACKAGES = ("jax", "jaxlib", "flax", "optax", "optuna", "numpy")


def describe() -> dict[str, str | int | dict[str, str] | None]:
    """Date, versions, devices and git commit, for `results.json`."""
    devices = jax.devices()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "platform": devices[0].platform,
        "device": devices[0].device_kind if devices[0].platform != "cpu" else _processor(),
        "num_devices": len(devices),
        "cores": os.cpu_count(),
        "git_commit": _commit(),
    }


def numerics() -> dict[str, str | bool]:
    """This thread's numerical settings.

    XLA reads its flags once, when JAX starts: flags that were set later appear here without effect.
    """
    precision = "float32" if jax.default_backend() == "cpu" else matmul_precision()
    return {"matmul_precision": precision or "default", "reproducible": is_reproducible()}


def matmul_precision() -> str | None:
    """This thread's precision of matrix products; None: JAX's default."""
    config: Any = jax.config  # its stubs lack the attribute
    return config.jax_default_matmul_precision


def is_reproducible() -> bool:
    """True if XLA's flags make a GPU compute the same bits each time."""
    flags = [flag.lstrip("-").partition("=") for flag in os.environ.get("XLA_FLAGS", "").split()]
    given = {name: value for name, _, value in flags}
    on = given.get("xla_gpu_deterministic_ops", "false").lower() in ("", "true", "1")
    return on and given.get("xla_gpu_autotune_level") == "0"


def make_reproducible() -> None:
    """Sets XLA's flags so that a GPU computes the same bits each time; before JAX is first used."""
    flags = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


def version_of(package: str) -> str:
    """The installed version of a package, or "none"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, marked if it has changes; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def use_all_cores(most: int | None = None) -> None:
    """Configures JAX before its first use: one CPU device a core, at least `most`, and a compilation cache.

    XLA makes better use of one device a core than of all cores for one device. What the user has configured stays, and
    the devices stay if JAX has been used.
    """
    config: Any = jax.config  # its stubs lack the attributes
    if config.jax_num_cpu_devices < 0 and "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        with contextlib.suppress(RuntimeError):  # JAX has been used
            jax.config.update("jax_num_cpu_devices", max(cores or 1, most or 1))
    if config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME", "")  # its specification ignores relative paths
        with contextlib.suppress(RuntimeError):  # no cache for a user without a home
            cache = Path(cache if os.path.isabs(cache) else "~/.cache").expanduser() / "hw1jax" / "compiled"
            if _takes_files(cache):
                jax.config.update("jax_compilation_cache_dir", str(cache))
    if config.jax_persistent_cache_min_compile_time_secs == 1:  # JAX's default
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _takes_files(folder: Path) -> bool:
    """True if a program can be written to the folder; else warns, once instead of JAX's warning for each program."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROGRAM_BYTES))
            file.flush()
    except OSError as error:
        warnings.warn(f"{folder}: {error.strerror}; compiled programs are not kept for the next run", stacklevel=3)
        return False
    return True


def check_devices() -> None:
    """Raises a ValueError that names the environment variable with which JAX has no device, or compiles nothing."""
    config: Any = jax.config
    if config.jax_disable_jit:
        raise ValueError("JAX_DISABLE_JIT is set, and a study trains in compiled programs: unset it")
    try:
        jax.devices()
    except RuntimeError as error:
        for name in ("JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS"):
            if value := os.environ.get(name):
                reason = str(error).partition("\n")[0]
                raise ValueError(f"{name}={value}: JAX finds no such device ({reason})") from error
        raise


class Clock:
    """Seconds of each step, and of compilation, which the steps exclude.

    `before`: seconds from the start of the process to the first step.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._seconds = {"start_seconds": before, "compile_seconds": 0.0}
        self._compiling: dict[int, list[tuple[float, float]]] = {}  # {thread: [(begin, end)]}

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            begin = end - duration_secs
            # A function traced within another is reported first, and again as part of the outer one.
            earlier = [span for span in self._compiling.get(get_ident(), []) if span[0] < begin]
            self._compiling[get_ident()] = [*earlier, (begin, end)]

    @contextmanager
    def measure(self, name: str, threads: int = 1) -> Iterator[None]:
        """Records the time of the block as `name`; `threads` compile concurrently in it."""
        begin = time.perf_counter()
        self._compiling.clear()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        try:
            yield
        finally:  # one that stays is called for each program of the process, by each run that there ever was
            jax.monitoring.unregister_event_duration_listener(self._listen)
        compiling = sum(end - begin for spans in self._compiling.values() for begin, end in spans) / threads
        self._seconds["compile_seconds"] += compiling
        self._seconds[name] = time.perf_counter() - begin - compiling

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)


def command_line() -> str:
    """The command that repeats this run; a script of a checkout's experiments is relative to the checkout.

    `python -m hw1jax` has put its own command, with the study's module, first among the arguments.
    """
    root, script = Path(__file__).parents[1], Path(sys.argv[0]).absolute()
    shown = os.path.relpath(script, root if root / "experiments" in script.parents else None)
    start = shlex.split(sys.argv[0]) if sys.argv[0].startswith("python -m ") else ["python", shown]
    return shlex.join([*start, *sys.argv[1:]])
