"""The command line of a study: its space and its settings become flags, all cores devices, errors exit codes."""

import contextlib
import os
import select
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn, TypedDict, cast

import jax
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from hw1jax import environment, formatting, report, run
from hw1jax.core import checks
from hw1jax.progress import Progress
from hw1jax.search import executors, networks, space_text
from hw1jax.search import space as space_
from hw1jax.search import study as study_
from hw1jax.search.jobs import Stopped
from hw1jax.search.space import Choice, Float, Int, Range
from hw1jax.search.study import Order, Output, Program, Search, Study

# Until here a process has only imported: its wall time is the processor's.
STARTED = time.time() - time.process_time()

CHECKS = tuple(room.__name__ for room in (study_, space_, checks, networks))  # whose TypeErrors are a person's mistakes
SECONDS_TO_STOP = 2.5  # until a process that was asked to stop ends where it stands
heard: list[int] = []  # numbers of the signals so far


@dataclass(frozen=True)
class Flags:
    """What only the command line needs to know."""

    quiet: bool = False
    """Show the results alone."""
    verbose: bool = False
    """Show every trial, and a line each time that the program comes back."""
    executor: str | None = None
    """Train on the workers of a Dask scheduler (tcp://HOST:PORT, or its scheduler file) or of Ray (ray)."""


def main(study: Study, description: str | None = None, **settings: Study) -> NoReturn:
    """Runs a study with the flags of the command line, and ends the process.

    Args:
      study: what is run.
      description: what `--help` says above the flags; the study's title, if not given.
      **settings: other studies, each run instead where the flag of its name is given: `beyond=..` with `--beyond`. The
        defaults of all other flags are its own then.
    """

    def work() -> Any:
        for each in (study, *settings.values()):
            study_.check_study(each)
        order, flags = parse(study, description, sys.argv[1:], settings)
        use_all_cores(order.program.num_devices)
        if order.program.reproducible:
            environment.make_reproducible()
        return run_order(order, flags, STARTED, stop_on_signals())

    with_exit_code(work)


def run_order(order: Order, flags: Flags, started: float, stop: threading.Event) -> dict[str, Any]:
    """Carries an order out, then draws its figures and page -> what `results.json` holds.

    Raises:
      ValueError: there is no test loss, as the refit diverged; everything else has been written.
    """
    observer = Progress(quiet=flags.quiet, verbose=flags.verbose)
    try:
        with contextlib.nullcontext() if flags.executor is None else executors.connected(flags.executor) as executor:
            results = run.run(
                order, observer, command=environment.command_line(), started=started, stop=stop, executor=executor
            )
    finally:
        observer.close()
    page = report.write_report(order.folder, order.study)
    print(f"Report: {formatting.plain(str(page))}")
    if results["test"]["loss"] is None:
        raise ValueError(f"{order.study.shown}: {results['refit']['failure']}")
    return results


# Flags of a study


def parse(
    study: Study, description: str | None, args: Sequence[str], settings: Mapping[str, Study] = MappingProxyType({})
) -> tuple[Order, Flags]:
    """What the flags ask for: an order for `run.run`, and what only the command line needs to know.

    `--quick` changes the defaults, so that flags given beside it still count. The study has passed `check_study`.

    Raises:
      ValueError: a study that can't be searched with these flags; in one line.
      SystemExit: a flag that is none, or can't be read; tyro has said so.
    """
    if any(not arg or (arg.startswith("--") and arg.endswith("=")) for arg in args):  # a path would be this folder
        raise ValueError("a flag has an empty value: leave it out")
    study = chosen_setting(study, settings, args)
    quick = [arg for arg in args if arg in ("--quick", "--no-quick")][-1:] == ["--quick"]  # the last one counts
    default = study_.unchecked_order(study, quick=quick)
    groups = {"search": default.search, "program": default.program, "output": default.output, "other": Flags()}
    names, own = flag_names(study), {"help", *groups, *(field.name for field in fields(Flags))}
    for name in (*study.space, *study.inputs):
        if name in own or name.removeprefix("no_") in set(names) - {name}:
            raise ValueError(f"space: {name} is the name of another flag; give it another")
    if taken := (own | set(names)) & set(settings):
        raise ValueError(f"{min(taken)} is the name of another flag; give the setting another")
    flags: dict[str, tuple[Any, Any, str]] = {  # (type, default, help) by name
        **{name: (bool, False, f"Instead: {other.shown}.") for name, other in settings.items()},
        "num_trials": (int, default.num_trials, "Draws of hyperparameters."),
        **{name: (_kind(r), r, study.help.get(name) or _help(name, r)) for name, r in study.space.items()},
        **{name: (Path | None, None, text) for name, text in study.inputs.items()},
    }
    kinds = {n: Annotated[kind, tyro.conf.arg(name=names.get(n), help=text)] for n, (kind, _, text) in flags.items()}
    chosen: dict[str, Any] = tyro.cli(
        cast(Any, TypedDict)("Chosen", kinds | {name: type(group) for name, group in groups.items()}),
        args=args,
        default={name: value for name, (_, value, _) in flags.items()} | groups,
        description=description or study.shown,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if chosen["other"].quiet and chosen["other"].verbose:
        raise ValueError("quiet= and verbose= don't go together")
    asked = vars(chosen["search"]) | vars(chosen["program"]) | vars(chosen["output"])
    if study.folds is not None and asked["num_folds"] == default.search.num_folds:
        del asked["num_folds"]
    narrowed = replace(study, space={name: chosen[name] for name in study.space})
    inputs = {name: chosen[name] for name in study.inputs}
    return study_.order(narrowed, inputs=inputs, num_trials=chosen["num_trials"], **asked), chosen["other"]


def chosen_setting(study: Study, settings: Mapping[str, Study], args: Sequence[str]) -> Study:
    """The study itself, or the one of its other settings whose flag is given; of several, the last."""
    named = {f"--{name}": other for name, other in settings.items()} | {f"--no_{name}": study for name in settings}
    plain = [f"--{arg[2:].replace('-', '_')}" for arg in args if arg.startswith("--")]
    return next((named[arg] for arg in reversed(plain) if arg in named), study)


def flag_names(study: Study) -> dict[str, str]:
    """{"batch_size": "batch-size", "optimizer": "optimizers", ..}: each argument's flag, without its dashes.

    A choice's is in the plural, as it takes several values, unless that is another one's.
    """
    settings = [field.name for room in (Search, Program, Output, Flags) for field in fields(room)]
    names = ["num_trials", *settings, *study.space, *study.inputs]
    several = [name for name, r in study.space.items() if isinstance(r, Choice) and not name.endswith("s")]
    plurals = {name: f"{name}s" for name in several if f"{name}s" not in names}
    return {name: plurals.get(name, name).replace("_", "-") for name in names}


def _help(name: str, ranges: Any) -> str:
    """What is said of a hyperparameter of which the study says nothing."""
    if isinstance(ranges, Sequence):
        return f"Ranges of {name}, as many as layers."
    return f"Values of {name} to choose from." if isinstance(ranges, Choice) else f"Range of {name}."


def _kind(declared: Range | Sequence[Range]) -> Any:
    """The type of a hyperparameter's flag, whose values are ranges that narrow the declared ones."""
    if isinstance(declared, Choice):
        return _ranges(
            f"{{{','.join(map(str, declared.values))}}} ...", lambda texts: space_text.among(declared, texts)
        )
    if isinstance(declared, Sequence):
        word = "VALUE,VALUE ..." if isinstance(declared[0], Choice) else "LOW-HIGH ..."
        # Layers beyond those that are declared are as the last of them.
        return _ranges(
            word, lambda texts: tuple(map(space_text.from_text, chain(declared, repeat(declared[-1])), texts))
        )
    return _ranges("LOW-HIGH", lambda texts: space_text.from_text(declared, texts[0]))


def _ranges(metavar: str, convert: Callable[[list[str]], Any]) -> Any:
    """A type for tyro: convert(words on the command line) -> ranges."""
    nargs: Any = "*" if metavar.endswith("...") else 1
    return Annotated[Any, PrimitiveConstructorSpec(nargs, metavar, convert, lambda _: True, _texts)]


def _texts(ranges: Any) -> list[str]:
    """Ranges as they are given on the command line."""
    if isinstance(ranges, Choice):
        return list(map(str, ranges.among))
    if isinstance(ranges, Float | Int):
        return [str(ranges)]
    return [",".join(_texts(r)) for r in ranges]


# The process: its devices, its end.


def use_all_cores(most: int | None = None) -> None:
    """Before JAX is first used: a device for each core of a CPU, at least `most`, and a cache of compiled programs.

    XLA spreads members over devices better than one member over cores. More devices try out another machine's plan.
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


def stop_on_signals() -> threading.Event:
    """From here on Ctrl-C and SIGTERM set the event that is returned, so that training writes down where it is.

    Then the process ends with 130 or 143: when training has stopped (`with_exit_code`), after `SECONDS_TO_STOP`, or at
    a second signal. A thread waits for signals, as Python's own handlers run in the main thread alone, between two of
    its instructions, and that may be deep in a compiled program.
    """
    stop = threading.Event()
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_wait_for_signals, args=(receiving, stop), daemon=True).start()
    return stop


def _wait_for_signals(receiving: int, stop: threading.Event) -> None:
    heard.append(os.read(receiving, 1)[0])
    stop.set()
    with contextlib.suppress(OSError):  # a terminal that is gone
        print("\nstopping; the same command goes on from here", file=sys.stderr, flush=True)
    if select.select([receiving], [], [], SECONDS_TO_STOP)[0]:
        heard.append(os.read(receiving, 1)[0])
    end_at_once(128 + heard[-1])


def end_at_once(code: int) -> NoReturn:
    """Ends the process where it stands: files appear whole or not at all."""
    try:
        if sys.stderr.isatty():
            print("\x1b[?25h", end="", file=sys.stderr, flush=True)  # a progress bar has hidden the cursor
        sys.stdout.flush()
    finally:
        os._exit(code)


def with_exit_code(work: Callable[[], Any]) -> NoReturn:
    """Does the work and exits with its code, if it returns one, or with 2 and one line for what the user can mend.

    A signal that was heard before, by which training has stopped, ends the process with its own code.
    """
    result = None
    try:
        result = work()
    except Stopped:
        pass
    except Exception as error:
        if not is_mistake(error):
            raise
        sys.exit(report_error(error))
    if heard:
        end_at_once(128 + heard[0])
    signal.set_wakeup_fd(-1)  # the work is done: from here on a signal changes nothing
    sys.exit(result if isinstance(result, int) else 0)


def is_mistake(error: BaseException) -> bool:
    """True if an error is for a person to mend, so that it ends with exit code 2 and without our traceback.

    A TypeError is where one of the library's checks, or a function of the study's that is checked, has raised it; any
    other comes of wrong code, and its traceback says where.
    """
    if checks.note_of(error):
        return True
    if not isinstance(error, TypeError):
        return isinstance(error, ValueError | OSError | MemoryError)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"] in CHECKS


def report_error(error: Exception) -> int:
    """Prints an error that the user can mend, and returns the exit code for it.

    It is one line, or for what a function of the study's has raised: the innermost frame that is neither the package's,
    nor a library's, nor Python's, the error, the note.
    """
    if note := checks.note_of(error):
        error.__notes__ = [note]  # JAX has one as well, on what it has left out of the traceback
        others = (str(Path(__file__).parent), *sysconfig.get_paths().values())
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
        print(formatting.plain("".join(traceback.format_list(own[-1:]))), end="", file=sys.stderr)
        line = "".join(traceback.format_exception_only(error)).rstrip()
    elif isinstance(error, MemoryError):
        line = f"out of memory ({str(error) or 'of the host'}): give less data or smaller nets"
    elif isinstance(error, OSError) and error.filename:
        line = f"{error.filename}: {error.strerror}"
    else:
        line = " ".join(str(error).split())
    print(f"error: {formatting.plain(line)}", file=sys.stderr)
    return 2
