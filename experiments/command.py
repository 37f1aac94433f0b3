"""What all experiments share: flags become settings, all cores become devices, errors become exit codes."""

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from hw1jax import report, run, studies
from hw1jax.progress import ConsoleObserver
from hw1jax.search import FloatRange, IntRange
from hw1jax.studies import Settings, Study

# Until here a process has only imported: its wall time is the processor's.
STARTED = time.time() - time.process_time()

ranges = ConstructorRegistry()


def main(study: Study, description: str) -> None:
    """Runs a study with the flags of the command line."""
    settings = parse(study, description, sys.argv[1:])
    use_all_cores()
    with_exit_code(lambda: 0 if run_study(study, settings, STARTED) else 1)


def run_study(study: Study, settings: Settings, started: float) -> dict[str, Any]:
    """Runs a study, then draws its figures and page -> what `results.json` holds."""
    results = run.run(study, settings, ConsoleObserver(), command=command_line(), started=started)
    page = report.write(studies.folder(study, settings))
    print(f"Report: {page}")
    return results


def parse(study: Study, description: str, args: Sequence[str]) -> Settings:
    """Flags to settings; `--quick` changes the defaults, so that flags given beside it still count."""
    quick = [arg for arg in args if arg in ("--quick", "--no-quick")][-1:] == ["--quick"]  # the last one counts
    defaults = study.quick if quick else study.settings
    return tyro.cli(type(defaults), args=args, default=defaults, description=description, registry=ranges)


def use_all_cores() -> None:
    """On a CPU, a device for each core: XLA spreads members over devices better than one member over cores.

    To be called before JAX is first used. The compiled programs are kept in the user's cache folder, so that the
    same study compiles only once.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores or 1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "hw1jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def with_exit_code(work: Callable[[], int]) -> NoReturn:
    """Does the work and exits with its code, or 2 and one line for what the user can mend, or 130 for Ctrl-C."""
    try:
        code = work()
    except (ValueError, OSError) as error:
        sys.exit(report_error(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the batch of trials that it was at", file=sys.stderr)
        sys.exit(130)
    sys.exit(code)


def report_error(error: Exception) -> int:
    """Prints an error that the user can mend as one line, and returns the exit code for it."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def command_line() -> str:
    """The command that repeats this run, from the root of the checkout."""
    return shlex.join(["python", f"experiments/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def _range_rule(kind: type, number: str, convert: Callable[[str], Any]) -> None:
    """Lets a flag take LOW-HIGH."""
    pattern = re.compile(f"({number})-({number})")

    def from_text(texts: list[str]) -> Any:
        match = pattern.fullmatch(texts[0])
        if match is None:
            raise ValueError(f"expected LOW-HIGH, got {texts[0]!r}")
        return kind(*map(convert, match.groups()))

    @ranges.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type is not kind:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="LOW-HIGH",
            instance_from_str=from_text,
            is_instance=lambda value: isinstance(value, kind),
            str_from_instance=lambda value: [str(value)],
        )


_range_rule(IntRange, r"\d+", int)
_range_rule(FloatRange, r"\d*\.?\d+(?:[eE][+-]?\d+)?", float)
