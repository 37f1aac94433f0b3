"""What all experiments share: flags become settings, all cores become devices, errors become exit codes."""

import contextlib
import os
import re
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import signals
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from hw1jax import environment, hosts, report, run, search, studies
from hw1jax.batches import Stopped
from hw1jax.progress import ConsoleObserver
from hw1jax.space import FloatRange, IntRange
from hw1jax.studies import Settings, Study

# Until here a process has only imported: its wall time is the processor's.
STARTED = time.time() - time.process_time()

ranges = ConstructorRegistry()
SECONDS_TO_NOTICE = 5  # that another process has died, once training with it has failed
ending = threading.Lock()  # whoever gets it ends the process


def main(study: Study, description: str) -> None:
    """Runs a study with the flags of the command line."""
    settings = parse(study, description, sys.argv[1:])
    use_all_cores(settings.num_devices)
    if settings.reproducible:
        environment.make_reproducible()
    stop = stop_on_signals()
    with_exit_code(lambda: with_others(settings, stop, lambda: run_study(study, settings, STARTED, stop)))


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


def with_others(settings: Settings, stop: threading.Event, work: Callable[[], Any]) -> Any:
    """Does the work, as one of several processes if the flags say so: then all of them end when one does, with a line.

    Before JAX is first used. What JAX itself does at the end of a process, or when another one has died, it does with
    stack dumps: so this process ends here, unless it was stopped.

    Raises:
      ValueError: flags that go with --distributed alone.
      Stopped: by a signal.
    """
    if not settings.distributed:
        if {settings.coordinator, settings.num_processes, settings.process_id} != {None}:
            raise ValueError("--coordinator, --num-processes and --process-id go with --distributed")
        return work()
    try:
        if not hosts.join(
            settings.coordinator,
            settings.num_processes,
            settings.process_id,
            versions=environment.versions(),
            timeout=settings.join_timeout,
            stop=stop,
            end=end_with_error,
        ):
            raise Stopped
        work()
    except Stopped:
        hosts.leave("another process was stopped: the same command goes on from here")
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, hosts.LostError):
            time.sleep(SECONDS_TO_NOTICE)  # who has died, and that this process is to end, another thread knows
        line = as_line(error)
        hosts.leave(line)
        end_with_error(line)
    except BaseException as error:
        traceback.print_exc()
        hosts.leave(f"another process has failed: {as_line(error)}")
        end_at_once(1)
    hosts.leave()
    end_at_once(0)


def end_with_error(line: str) -> NoReturn:
    """Ends the process from whichever thread, with a line and exit code 2."""
    ending.acquire()
    print(f"error: {line}", file=sys.stderr)
    end_at_once(2)


def end_at_once(code: int) -> NoReturn:
    """Ends the process where it stands: files appear whole or not at all."""
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr, flush=True)  # the bar has hidden the cursor
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    print(f"error: {as_line(error)}", file=sys.stderr)
    return 2


def as_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def command_line() -> str:
    """The command that repeats this run, from the root of the checkout; without the password of a database."""
    args = []
    for before, arg in zip(sys.argv, sys.argv[1:], strict=False):
        flag, equals, value = arg.partition("=")
        if before == "--storage":
            arg = search.shown_url(arg) or "URL"
        elif equals and flag == "--storage":
            arg = f"{flag}={search.shown_url(value) or 'URL'}"
        args.append(arg)
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
