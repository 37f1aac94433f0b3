"""The command line of a study: its space and its settings become flags, all cores devices, errors exit codes."""

import ast
import contextlib
import inspect
import os
import re
import select
import shlex
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from itertools import chain, pairwise, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, NoReturn, TypedDict, cast

import jax
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from hw1jax import checks, record, report, run
from hw1jax import space as space_
from hw1jax import study as study_
from hw1jax.brackets import Stopped
from hw1jax.progress import ConsoleObserver
from hw1jax.space import Choice, Float, Int, Range
from hw1jax.study import Order, Output, Program, Search, Study

# Until here a process has only imported: its wall time is the processor's.
STARTED = time.time() - time.process_time()

CHECKS = tuple(room.__name__ for room in (study_, space_, checks))  # whose TypeErrors are a person's mistakes
SECONDS_TO_STOP = 2.5  # until a process that was asked to stop ends where it stands
heard: list[int] = []  # numbers of the signals so far
REAL = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?"


@dataclass(frozen=True)
class Flags:
    """What only the command line needs to know."""

    quiet: bool = False
    """Show the results alone."""
    verbose: bool = False
    """Show every trial, and a line each time that the program comes back."""

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise ValueError("quiet= and verbose= don't go together")


def main(study: Study, description: str | None = None, **settings: Study) -> NoReturn:
    """Runs a study with the flags of the command line, and ends the process.

    Args:
      study: what is run.
      description: what `--help` says above the flags; the study's title, if not given.
      **settings: other studies, each run instead where the flag of its name is given: `beyond=..` with `--beyond`. The
        defaults of all other flags are its own then.
    """
    try:
        for each in (study, *settings.values()):
            study_.check_study(each)
    except (TypeError, ValueError) as error:  # whoever wrote the study gave arguments, not flags
        sys.exit(report_error(error))

    def work() -> Any:
        order, flags = parse(study, description, sys.argv[1:], settings)
        use_all_cores(order.program.num_devices)
        if order.program.reproducible:
            record.make_reproducible()
        stop = stop_on_signals()
        return run_order(order, flags, STARTED, stop)

    with_exit_code(work)


def run_order(order: Order, flags: Flags, started: float, stop: threading.Event) -> dict[str, Any]:
    """Carries an order out, then draws its figures and page -> what `results.json` holds.

    Raises:
      ValueError: there is no test loss, as the refit diverged; everything else has been written.
    """
    observer = ConsoleObserver(quiet=flags.quiet, verbose=flags.verbose)
    try:
        results = run.run(order, observer, command=command_line(), started=started, stop=stop)
    finally:
        observer.close()
    page = report.write_report(order.folder, order.study)
    print(f"Report: {page}")
    if results["test"]["loss"] is None:
        raise ValueError(f"{order.study.shown}: {results['refit']['failure']}")
    return results


# Flags out of a study.


class _Flag(NamedTuple):
    name: str  # of the argument
    kind: Any  # its type, as tyro takes it
    default: Any
    help: str


def chosen_setting(study: Study, settings: Mapping[str, Study], args: Sequence[str]) -> Study:
    """The study itself, or the one of its other settings whose flag is given; of several, the last."""
    named = {f"--{name}": other for name, other in settings.items()} | {f"--no_{name}": study for name in settings}
    plain = [f"--{arg[2:].replace('-', '_')}" for arg in args if arg.startswith("--")]
    return next((named[arg] for arg in reversed(plain) if arg in named), study)


def parse(
    study: Study, description: str | None, args: Sequence[str], settings: Mapping[str, Study] = MappingProxyType({})
) -> tuple[Order, Flags]:
    """What the flags ask for: an order for `run.run`, and what only the command line needs to know.

    `--quick` changes the defaults, so that flags given beside it still count. The study has passed `check_study`.

    Raises:
      ValueError: a study that can't be searched with these flags; in one line.
      SystemExit: a flag that is none, or can't be read; tyro has said so.
    """
    quick = [arg for arg in args if arg in ("--quick", "--no-quick")][-1:] == ["--quick"]  # the last one counts
    study = chosen_setting(study, settings, args)
    flags, names = _flags_of(study, quick), flag_names(study)
    others = [_Flag(name, bool, False, f"Instead: {other.shown}.") for name, other in settings.items()]
    if taken := {"help", *names} & set(settings):
        raise ValueError(f"{min(taken)} is the name of another flag; give the setting another")
    flags, names = [*others, *flags], names | {flag.name: flag.name.replace("_", "-") for flag in others}
    kinds = {f.name: Annotated[f.kind, tyro.conf.arg(name=names[f.name], help=f.help)] for f in flags}
    chosen: dict[str, Any] = tyro.cli(
        cast(Any, TypedDict)("Chosen", kinds),
        args=args,
        default={f.name: f.default for f in flags},
        description=description or study.shown,
        registry=registry,
    )
    for name in settings:
        chosen.pop(name)
    narrowed = replace(study, space={name: chosen.pop(name) for name in study.space})
    inputs = {name: chosen.pop(name) for name in study.inputs}
    own = Flags(**{field.name: chosen.pop(field.name) for field in fields(Flags)})
    return study_.order(narrowed, inputs=inputs, **chosen), own


def flag_names(study: Study) -> dict[str, str]:
    """{"batch_size": "batch-size", "optimizer": "optimizers", ..}: each argument's flag, without its dashes.

    A choice's is in the plural, as it takes several values, unless that is another one's.
    """
    settings = [field.name for room in (Search, Program, Output, Flags) for field in fields(room)]
    names = ["num_trials", *settings, *study.space, *study.inputs]
    if study.folds is not None:
        names.remove("num_folds")  # it has folds of its own
    several = [name for name, r in study.space.items() if isinstance(r, Choice) and not name.endswith("s")]
    plurals = {name: f"{name}s" for name in several if f"{name}s" not in names}
    return {name: plurals.get(name, name).replace("_", "-") for name in names}


def _flags_of(study: Study, quick: bool) -> list[_Flag]:
    """All flags of a study, in the order of `--help`; a ValueError if two would have the same name."""
    names = ("num_trials", "num_epochs", "batch_size", "num_folds", "averaging")
    numbers = {name: getattr(study, name) for name in names}
    defaults = numbers | (dict(study.quick) if quick else {}) | {"quick": quick}
    defaults |= study_.halving_settings(study.halving)
    flags = [
        _Flag("num_trials", int, None, "Draws of hyperparameters."),
        *_settings(Search),
        *(_Flag(name, _kind(r), r, study.help.get(name) or _help(name, r)) for name, r in study.space.items()),
        *_settings(Program),
        *_settings(Output),
        *(_Flag(name, Path | None, None, text) for name, text in study.inputs.items()),
        *_settings(Flags),
    ]
    names = [flag.name for flag in flags]
    for name in (*study.space, *study.inputs):
        if names.count(name) > 1 or name == "help" or name.removeprefix("no_") in set(names) - {name}:
            raise ValueError(f"space: {name} is the name of another flag; give it another")
    known = flag_names(study)
    return [flag._replace(default=defaults.get(flag.name, flag.default)) for flag in flags if flag.name in known]


@cache
def _settings(room: type) -> list[_Flag]:
    """The fields of a dataclass; what is said below each one in the source is its help."""
    [source] = ast.parse(inspect.getsource(room)).body
    assert isinstance(source, ast.ClassDef)
    texts = {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(source.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    return [_Flag(f.name, f.type, None if f.default is MISSING else f.default, texts[f.name]) for f in fields(room)]


def _help(name: str, ranges: Any) -> str:
    """What is said of a hyperparameter of which the study says nothing."""
    if isinstance(ranges, Choice):
        return f"Values of {name} to choose from."
    several = isinstance(ranges, Sequence)
    scale = " (logarithmic)" if any(getattr(r, "log", False) for r in (ranges if several else [ranges])) else ""
    return f"Ranges of {name}{scale}, as many as layers." if several else f"Range of {name}{scale}."


# How flags are read.

registry = ConstructorRegistry()


def _kind(declared: Range | Sequence[Range]) -> Any:
    """The type of a hyperparameter's flag, whose values are ranges that narrow the declared ones."""
    if isinstance(declared, Choice):
        words = tuple(map(str, declared.values))
        return _spec(f"{{{','.join(words)}}}", lambda texts: _among(declared, texts), several=True, words=words)
    if isinstance(declared, Sequence):
        word = "VALUE,VALUE" if isinstance(declared[0], Choice) else "LOW-HIGH"
        # Layers beyond those that are declared are as the last of them.
        return _spec(word, lambda texts: tuple(map(_range, chain(declared, repeat(declared[-1])), texts)), several=True)
    return _spec("LOW-HIGH", lambda texts: _range(declared, texts[0]))


def _spec(
    word: str, convert: Callable[[list[str]], Any], *, several: bool = False, words: tuple[str, ...] | None = None
) -> Any:
    rule = PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"[{word} [{word} ...]]" if several else word,
        instance_from_str=convert,
        is_instance=lambda _: True,
        str_from_instance=_texts,
        choices=words,
    )
    return Annotated[Any, rule]


def _range(declared: Range, text: str) -> Range:
    """LOW-HIGH, or for a choice VALUE,VALUE, as the declared hyperparameter in this range."""
    if isinstance(declared, Choice):
        return _among(declared, text.split(","))
    number, convert = ("[0-9]+", int) if isinstance(declared, Int) else (REAL, float)
    positive = declared.log or (isinstance(declared, Int) and declared.width)
    number = number if positive else f"-?{number}"
    match = re.fullmatch(f"({number})-({number})", text)
    if match is None:
        raise ValueError(f"expected LOW-HIGH, got {text!r}")
    low, high = map(convert, match.groups())
    return space_.narrowed(declared, low, high)


def _among(declared: Choice, texts: Sequence[str]) -> Range:
    """The values that are written so; all that a choice declares stays, so that their indices do."""
    values = {str(value): value for value in declared.values}
    if wrong := [text for text in texts if text not in values]:
        raise ValueError(f"expected values of {', '.join(values)}, got {wrong[0]!r}")
    return space_.narrowed(declared, among=[values[text] for text in texts])


def _texts(ranges: Any) -> list[str]:
    """Ranges as they are given on the command line."""
    if isinstance(ranges, Choice):
        return list(map(str, ranges.among))
    if isinstance(ranges, Float | Int):
        return [str(ranges)]
    return [",".join(_texts(r)) for r in ranges]


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

    @registry.primitive_rule
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


_rule(int, "INT", _whole_number)
_rule(Path, "PATH", given_path)

# The process: its devices, its end.


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
    except MemoryError as error:
        where = str(error) or "of the host"
        sys.exit(report_error(MemoryError(f"out of memory ({where}): give less data or smaller nets")))
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
        return isinstance(error, ValueError | OSError)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"] in CHECKS


def report_error(error: Exception) -> int:
    """Prints an error that the user can mend, and returns the exit code for it.

    It is one line, or for what a function of the study's has raised: where in the user's files, the error, the note.
    """
    if note := checks.note_of(error):
        error.__notes__ = [note]  # JAX has one as well, on what it has left out of the traceback
        text = "".join(traceback.format_exception_only(error))
        print(f"{_last_own_frame(error)}error: {text}", end="", file=sys.stderr)
    else:
        print(f"error: {as_line(error)}", file=sys.stderr)
    return 2


def _last_own_frame(error: BaseException) -> str:
    """The innermost frame of a traceback that is neither the package's, nor an installed library's, nor Python's."""
    others = (str(Path(__file__).parent), *sysconfig.get_paths().values())
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return "".join(traceback.format_list(own[-1:]))


def as_line(error: BaseException) -> str:
    """The message of an error in one line."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def command_line() -> str:
    """The command that repeats this run.

    A script of a checkout's experiments is named from the checkout's root, any other from the working folder. A study
    that `python -m hw1jax` runs has that command, and its own module, for the first of the arguments.
    """
    script = Path(sys.argv[0]).absolute()
    above = (folder for folder in script.parents if folder / "experiments" in script.parents)
    root = next((folder for folder in above if (folder / "hw1jax" / "cli.py").exists()), None)
    is_module = sys.argv[0].startswith("python -m ")
    start = shlex.split(sys.argv[0]) if is_module else ["python", os.path.relpath(script, root)]
    return shlex.join([*start, *sys.argv[1:]])
