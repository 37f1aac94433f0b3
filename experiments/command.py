"""What all experiments share: flags become settings, all cores become devices, errors become exit codes."""

import contextlib
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import signals
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from hw1jax import report, run, studies
from hw1jax.batches import Stopped
from hw1jax.progress import ConsoleObserver
from hw1jax.space import FloatRange, IntRange
from hw1jax.studies import Settings, Study

# Until here a process has only imported: its wall time is the processor's.
STARTED = time.time() - time.process_time()

ranges = ConstructorRegistry()
SECONDS_TO_NOTICE = 10  # that another process has died


def main(study: Study, description: str) -> None:
    """Runs a study with the flags of the command line."""
    settings = parse(study, description, sys.argv[1:])
    use_all_cores(settings.num_devices)
    set_precision(settings.precision, reproducible=settings.reproducible)
    join(settings)
    stop = stop_on_signals()
    with_exit_code(lambda: run_study(study, settings, STARTED, stop))


def run_study(study: Study, settings: Settings, started: float, stop: threading.Event) -> dict[str, Any]:
    """Runs a study, then draws its figures and page -> what `results.json` holds.

    Raises:
      ValueError: there is no test loss, as the refit diverged; everything else has been written.
    """
    observer = ConsoleObserver(quiet=settings.quiet, verbose=settings.verbose)
    try:
        results = run.run(study, settings, observer, command=command_line(), started=started, stop=stop)
    finally:
        observer.close()
    if not results:
        return results
    page = report.write(studies.folder(study, settings))
    print(f"Report: {page}")
    if results["test"]["loss"] is None:
        raise ValueError(f"{study.title}: {results['refit']['failure']}")
    return results


def parse(study: Study, description: str, args: Sequence[str]) -> Settings:
    """Flags to settings; `--quick` changes the defaults, so that flags given beside it still count."""
    quick = [arg for arg in args if arg in ("--quick", "--no-quick")][-1:] == ["--quick"]  # the last one counts
    defaults = study.quick if quick else study.settings
    return tyro.cli(type(defaults), args=args, default=defaults, description=description, registry=ranges)


def use_all_cores(most: int | None = None) -> None:
    """On a CPU, a device for each core: XLA spreads members over devices better than one member over cores.

    `most`: more devices than cores are made where they are asked for, to try out a plan for another machine.

    To be called before JAX is first used. The compiled programs are kept in the user's cache folder, so that the
    same study compiles only once.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", max(cores or 1, most or 1))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored, says its specification
        with contextlib.suppress(RuntimeError):  # a user without a home compiles anew each time
            cache = Path(cache if os.path.isabs(cache) else "~/.cache").expanduser()
            jax.config.update("jax_compilation_cache_dir", str(cache / "hw1jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def set_precision(precision: str, *, reproducible: bool) -> None:
    """How exactly an accelerator computes; before JAX is first used."""
    jax.config.update("jax_default_matmul_precision", precision)
    if reproducible:
        flags = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def join(settings: Settings) -> None:
    """Makes this process one of several, if the flags say so; before JAX is first used."""
    if settings.distributed:
        jax.distributed.initialize(
            settings.coordinator,
            settings.num_processes,
            settings.process_id,
            heartbeat_timeout_seconds=SECONDS_TO_NOTICE,
            shutdown_timeout_seconds=SECONDS_TO_NOTICE,
        )


def stop_on_signals() -> threading.Event:
    """From here on Ctrl-C and SIGTERM ask training to stop, see `signals` -> the event that does."""
    return signals.ask_first()


def with_exit_code(work: Callable[[], Any]) -> NoReturn:
    """Does the work and exits with its code, if it returns one, or with 2 and one line for what the user can mend."""
    try:
        result = work()
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
    except MemoryError as error:
        where = str(error) or "of the host"
        sys.exit(report_error(MemoryError(f"out of memory ({where}): give less data or smaller nets")))
    except Stopped:
        signals.wait_for_end()
    signals.finish(result if isinstance(result, int) else 0)


def report_error(error: Exception) -> int:
    """Prints an error that the user can mend as one line, and returns the exit code for it."""
    if isinstance(error, OSError) and error.filename:
        error = f"{error.filename}: {error.strerror}"
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def command_line() -> str:
    """The command that repeats this run, from the root of the checkout; without the password of a database."""
    args = [re.sub(r"(://[^/:@]*):[^/@]*@", r"\1@", arg) for arg in sys.argv[1:]]
    return shlex.join(["python", f"experiments/{Path(sys.argv[0]).name}", *args])


def _range_rule(kind: type, number: str, convert: Callable[[str], Any]) -> None:
    """Lets a flag take LOW-HIGH."""
    pattern = re.compile(f"({number})-({number})")

    def from_text(text: str) -> Any:
        match = pattern.fullmatch(text)
        if match is None:
            raise ValueError(f"expected LOW-HIGH, got {text!r}")
        return kind(*map(convert, match.groups()))

    _rule(kind, "LOW-HIGH", from_text)


def given_path(text: str) -> Path:
    """A path as a shell would take it, ~ included; a ValueError if it is empty or there is no such home."""
    if not text:
        raise ValueError("expected a path, got nothing")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {error}") from None


def _whole_number(text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]+", text):  # `int` takes the digits of all scripts, and underscores
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(text)


def _rule(kind: type, metavar: str, convert: Callable[[str], Any]) -> None:
    """How flags of this type are read."""

    @ranges.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type is not kind:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda texts: convert(texts[0]),
            is_instance=lambda value: isinstance(value, kind) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )


_range_rule(IntRange, "[0-9]+", int)
_range_rule(FloatRange, r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?", float)
_rule(int, "INT", _whole_number)
_rule(Path, "PATH", given_path)
