"""The command line of a study: flags from its space and settings, devices, signals and exit codes."""

import contextlib
import gc
import os
import select
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn, TypedDict, cast

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from hw1jax import environment, formatting, report, run
from hw1jax.core import checks
from hw1jax.progress import Progress
from hw1jax.search import executors, networks, space_text, study_data
from hw1jax.search import space as space_
from hw1jax.search import study as study_
from hw1jax.search.jobs import Stopped
from hw1jax.search.space import Choice, Float, Int, Range
from hw1jax.search.study import Output, ProgramConfig, RunConfig, SearchConfig, Study

# So far the process has only imported modules, so its CPU time is its wall time.
STARTED = time.time() - time.process_time()

# Modules whose TypeErrors are user errors.
CHECKS = tuple(module.__name__ for module in (study_, study_data, space_, checks, networks))
SECONDS_TO_STOP = 2.5  # from a signal to the end of the process
heard: list[int] = []  # numbers of the received signals


@dataclass(frozen=True)
class Flags:
    """Flags of the command line alone."""

    quiet: bool = False
    """Show the results alone."""
    verbose: bool = False
    """Show every trial, and a line after each call of a program."""
    executor: str | None = None
    """Train on the workers of a Dask scheduler (tcp://HOST:PORT, or its scheduler file) or of Ray (ray)."""


def main(study: Study, description: str | None = None, **settings: Study) -> NoReturn:
    """Runs a study with the flags of the command line, and ends the process.

    Args:
      study: the study.
      description: the text above the flags in `--help`; default: the study's title.
      **settings: alternative studies, each run by the flag of its name: `beyond=..` by `--beyond`. Its settings are
        then the defaults of all other flags.
    """

    def work() -> Any:
        for each in (study, *settings.values()):
            study_.check_study(each)
        config, flags = parse(study, description, sys.argv[1:], settings)
        environment.use_all_cores(config.program.num_devices)
        if config.program.reproducible:
            environment.make_reproducible()
        gc.freeze()  # what is imported stays: no collection goes through it again
        return run_and_report(config, flags, STARTED, stop_on_signals())

    with_exit_code(work)


def run_and_report(config: RunConfig, flags: Flags, started: float, stop: threading.Event) -> dict[str, Any]:
    """Carries out a run, then writes its figures and page -> the content of `results.json`.

    Raises:
      ValueError: the refit diverged, or its test loss isn't finite; everything else has been written.
    """
    observer = Progress(quiet=flags.quiet, verbose=flags.verbose)
    try:
        with contextlib.nullcontext() if flags.executor is None else executors.connected(flags.executor) as executor:
            results = run.run(
                config, observer, command=environment.command_line(), started=started, stop=stop, executor=executor
            )
    finally:
        observer.close()
    try:
        page = report.write_report(config.folder, config.study)
        print(f"Report: {formatting.plain(str(page))}")
    except Exception as error:  # a full disk, or whatever a user's section raises: the search has ended well
        reason = formatting.plain(" ".join(f"{type(error).__name__}: {error}".split()))
        print(f"the report could not be written ({reason}); the results are in {config.folder}", file=sys.stderr)
    if results["refit"]["failure"]:
        raise ValueError(f"{config.study.shown}: {results['refit']['failure']}")
    return results


# Flags of a study


def parse(
    study: Study, description: str | None, args: Sequence[str], settings: Mapping[str, Study] = MappingProxyType({})
) -> tuple[RunConfig, Flags]:
    """Parses the flags -> settings for `run.run`, and flags of the command line alone.

    `--quick` changes the defaults, so that other flags still apply. The study has passed `check_study`.

    Raises:
      ValueError: invalid settings; one line.
      SystemExit: an invalid flag, reported by tyro.
    """
    if any(not arg or (arg.startswith("--") and arg.endswith("=")) for arg in args):  # Path("") is this folder
        raise ValueError("a flag has an empty value: leave it out")
    study = chosen_setting(study, settings, args)
    quick = [arg for arg in args if arg in ("--quick", "--no-quick")][-1:] == ["--quick"]  # the last one counts
    default = study_.unchecked_run_config(study, quick=quick)
    own_settings = {"num_folds"} if study.folds is not None else set()
    search = _without(default.search, own_settings | set(study.space) & set(study_.SETTINGS_IN_SPACE))
    groups = {"program": default.program, "output": default.output, "other": Flags()}
    sections = ("search", "hyperparameter", "data", *groups)  # of --help
    names, own = flag_names(study), {"help", "search", *groups, *(field.name for field in fields(Flags))}
    for name in (*study.space, *study.inputs):
        if name in own or name.removeprefix("no_") in set(names) - {name}:
            raise ValueError(f"space: {name} is the name of another flag; give it another")
    if taken := (own | set(names) | set(sections)) & set(settings):
        raise ValueError(f"{min(taken)} is the name of another flag; give the setting another")
    others = {name: (bool, False, f"Run this study instead: {other.shown}.") for name, other in settings.items()}
    num_trials = {"num_trials": (int, default.num_trials, "Number of trials, which have different hyperparameters.")}
    ranges = {name: (_kind(r), r, study.help.get(name) or _help(name, r)) for name, r in study.space.items()}
    files = {name: (Path | None, None, text) for name, text in study.inputs.items()}
    parts = {
        "search": _section(names, num_trials, "What the results depend on.", "search", settings=search),
        "hyperparameter": _section(names, ranges, "The ranges to search, instead of the study's."),
        "data": _section(names, files, "Files with other data than the study's."),
    } | {name: (type(group), group) for name, group in groups.items()}
    chosen_type, defaults = _section(names, others, "")
    chosen: dict[str, Any] = tyro.cli(
        cast(Any, TypedDict)("Chosen", chosen_type.__annotations__ | {name: kind for name, (kind, _) in parts.items()}),
        args=args,
        default=defaults | {name: value for name, (_, value) in parts.items()},
        description=formatting.plain(description or study.shown),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if chosen["other"].quiet and chosen["other"].verbose:
        raise ValueError("quiet= and verbose= don't go together")
    asked = vars(chosen["search"]["settings"]) | vars(chosen["program"]) | vars(chosen["output"])
    asked = {name: value for name, value in asked.items() if name not in own_settings | set(study.space)}
    asked["num_trials"] = chosen["search"]["num_trials"]
    narrowed = replace(study, space=chosen["hyperparameter"])
    return study_.run_config(narrowed, inputs=chosen["data"], **asked), chosen["other"]


def _section(
    names: Mapping[str, str], flags: Mapping[str, tuple[Any, Any, str]], about: str, title: str = "", **nested: Any
) -> tuple[Any, dict[str, Any]]:
    """(type, default) of a dict of flags, a section of `--help`; `flags` are (type, default, help) by name.

    `nested` are dataclasses, whose fields are in the section with this title.
    """
    kinds = {
        name: Annotated[kind, tyro.conf.arg(name=names.get(name), help=formatting.plain(text))]
        for name, (kind, _, text) in flags.items()
    }
    same = tyro.conf.arg(name=title, prefix_name=False)  # the prefix is the section's title
    kinds |= {name: Annotated[type(part), same] for name, part in nested.items()}
    made = cast(Any, TypedDict)("Section", kinds)
    made.__doc__ = about
    return made, {name: value for name, (_, value, _) in flags.items()} | nested


def _without(settings: SearchConfig, names: Collection[str]) -> SearchConfig:
    """The same settings with a type of which tyro shows no flags of these names."""
    hidden = [(name, tyro.conf.Suppress[tyro.conf.Fixed[int]]) for name in names]
    kind = make_dataclass("SearchConfig", hidden, bases=(SearchConfig,), frozen=True)
    kind.__doc__ = SearchConfig.__doc__
    return kind(**vars(settings)) if names else settings


def chosen_setting(study: Study, settings: Mapping[str, Study], args: Sequence[str]) -> Study:
    """The study, or the alternative whose flag is given; the last one counts."""
    named = {f"--{name}": other for name, other in settings.items()} | {f"--no_{name}": study for name in settings}
    plain = [f"--{arg[2:].replace('-', '_')}" for arg in args if arg.startswith("--")]
    return next((named[arg] for arg in reversed(plain) if arg in named), study)


def flag_names(study: Study) -> dict[str, str]:
    """{"batch_size": "batch-size", "optimizer": "optimizers", ..}: each argument's flag, without its dashes.

    A choice's flag is plural, since it takes several values, unless the plural is taken.
    """
    settings = [field.name for part in (SearchConfig, ProgramConfig, Output, Flags) for field in fields(part)]
    names = ["num_trials", *settings, *study.space, *study.inputs]
    several = [name for name, r in study.space.items() if isinstance(r, Choice) and not name.endswith("s")]
    plurals = {name: f"{name}s" for name in several if f"{name}s" not in names and name not in settings}
    return {name: plurals.get(name, name).replace("_", "-") for name in names}


def _help(name: str, ranges: Any) -> str:
    if isinstance(ranges, Sequence):
        return f"Range of {name} in each layer; as many ranges as layers."
    return f"Values of {name} to choose from." if isinstance(ranges, Choice) else f"Range of {name}."


def _kind(declared: Range | Sequence[Range]) -> Any:
    """The type of a hyperparameter's flag, whose values narrow the declared ranges."""
    if isinstance(declared, Choice):
        return _ranges(
            f"{{{','.join(map(str, declared.values))}}} ...", lambda texts: space_text.among(declared, texts)
        )
    if isinstance(declared, Sequence):
        word = "VALUE,VALUE ..." if isinstance(declared[0], Choice) else "LOW-HIGH ..."
        # Further layers have the last layer's range.
        return _ranges(
            word, lambda texts: tuple(map(space_text.from_text, chain(declared, repeat(declared[-1])), texts))
        )
    return _ranges("LOW-HIGH", lambda texts: space_text.from_text(declared, texts[0]))


def _ranges(metavar: str, convert: Callable[[list[str]], Any]) -> Any:
    """A type for tyro: convert(words on the command line) -> ranges."""
    nargs: Any = "*" if metavar.endswith("...") else 1

    def converted(texts: list[str]) -> Any:
        try:
            return convert(texts)
        except ValueError as error:
            raise ValueError(formatting.plain(str(error))) from None

    return Annotated[
        object, PrimitiveConstructorSpec(nargs, formatting.plain(metavar), converted, lambda _: True, _shown)
    ]


def _shown(ranges: Any) -> list[str]:
    """The default in `--help`."""
    return list(map(formatting.plain, _texts(ranges)))


def _texts(ranges: Any) -> list[str]:
    if isinstance(ranges, Choice):
        return list(map(str, ranges.among))
    if isinstance(ranges, Float | Int):
        return [str(ranges)]
    return [",".join(_texts(r)) for r in ranges]


# Signals and exit codes


def stop_on_signals() -> threading.Event:
    """Returns an event that Ctrl-C and SIGTERM set, so that training writes its checkpoints.

    Then the process ends with 130 or 143: when training has stopped (`with_exit_code`), after `SECONDS_TO_STOP`, or at
    a second signal. A thread waits for signals, since Python's handlers run between instructions of the main thread,
    which may be deep in a compiled program.
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
    with contextlib.suppress(OSError):  # the terminal is closed
        print("\nstopping; the same command goes on from here", file=sys.stderr, flush=True)
    if select.select([receiving], [], [], SECONDS_TO_STOP)[0]:
        heard.append(os.read(receiving, 1)[0])
    end_at_once(128 + heard[-1])


def end_at_once(code: int) -> NoReturn:
    """Ends the process immediately; files are whole at any moment."""
    try:
        if sys.stderr.isatty():
            print("\x1b[?25h", end="", file=sys.stderr, flush=True)  # show the cursor, which a progress bar hides
        sys.stdout.flush()
    finally:
        os._exit(code)


def with_exit_code(work: Callable[[], Any]) -> NoReturn:
    """Calls `work` and exits with its integer result, else 0; with 2 and one line for a user error.

    If a signal has stopped training, the process ends with the signal's exit code.
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
    signal.set_wakeup_fd(-1)  # the work is done: signals have no effect any more
    sys.exit(result if isinstance(result, int) else 0)


def is_mistake(error: BaseException) -> bool:
    """True for a user error, which ends with exit code 2 and without the package's traceback.

    A TypeError is one if the package's checks, or a checked function of the study, raised it; any other is a bug.
    """
    if checks.note_of(error):
        return True
    if not isinstance(error, TypeError):
        return isinstance(error, ValueError | OSError | MemoryError)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"] in CHECKS


def report_error(error: Exception) -> int:
    """Prints a user error; returns its exit code.

    It prints one line; for an error of the study's function also its innermost frame outside of libraries, and the
    note.
    """
    if note := checks.note_of(error):
        error.__notes__ = [note]  # without JAX's note on its filtered traceback
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
