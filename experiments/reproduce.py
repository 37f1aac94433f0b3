"""The whole homework: the three studies in turn, each into its own folder, and one report page over all.

A study that fails doesn't stop the others; it is named at the end, and the exit code is then 1.

    python experiments/reproduce.py [--quick] [--out DIR] [--help]
"""

import signals

if __name__ == "__main__":
    signals.listen()  # before the imports that take seconds

import sys
import threading
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import command
import tyro

from hw1jax import environment, report, studies
from hw1jax.progress import print_summary
from hw1jax.studies import Settings, Study


@dataclass(frozen=True)
class Options:
    """What applies to all three studies; what is not given is each study's own default."""

    out: Path | None = None
    """Folder of the results, a folder a study in it; runs, or runs/quick with --quick, if not given."""
    quick: bool = False
    """Small runs on the real data: two minutes in all."""
    num_trials: int | None = None
    """Draws of hyperparameters, for each study."""
    num_folds: int | None = None
    """Folds of the cross-validation."""
    num_epochs: int | None = None
    """Passes over the training data, for each study."""
    batch_size: int | None = None
    """Samples a step, for each study."""
    seed: int | None = None
    """Of folds, minibatches, draws and initial parameters."""
    sampler: Literal["random", "tpe"] | None = None
    """How hyperparameters are drawn."""
    data_dir: Path | None = None
    """Folder with the four Fashion-MNIST files, instead of fetching them."""
    num_devices: int | None = None
    """Devices to use (on a CPU, cores); all, if not given."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Of matrix products on a GPU or TPU; a CPU computes in float32."""
    reproducible: bool = False
    """On a GPU, the same bits each time: slower."""
    quiet: bool = False
    """Show the results alone."""
    verbose: bool = False
    """Show every trial, and a line each time that a program comes back."""
    report_only: Path | None = None
    """Only rebuild the figures and pages of this folder from what is on disk."""


def settings_of(study: Study, options: Options, folder: Path) -> Settings:
    """The study's defaults with the options that are given and that it knows."""
    defaults = study.quick if options.quick else study.settings
    known = {f.name for f in fields(defaults)}
    given = {name: value for name, value in vars(options).items() if value is not None and name in known}
    return replace(defaults, **given | {"out": folder / study.name})


def reproduce(options: Options, stop: threading.Event) -> int:
    """Runs the studies and returns the exit code."""
    folder = options.out or (Path("runs", "quick") if options.quick else Path("runs"))
    studies.check_folder(folder)
    for study in studies.STUDIES:  # a mistake in the flags is told before an hour of work, not after
        studies.check(study, settings_of(study, options, folder))
    started, all_results, failures = command.STARTED, [], {}
    for study in studies.STUDIES:
        settings = settings_of(study, options, folder)
        try:
            all_results.append(command.run_study(study, settings, started, stop))
        except (ValueError, OSError) as error:
            command.report_error(error)
            failures[study.name] = str(error)
        rebuild(folder, failures)
        started = time.time()
    if all_results:
        print_summary(all_results, folder / "report.html")
    for name, error in failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 1 if failures else 0


def rebuild(folder: Path, failures: dict[str, str]) -> None:
    """The page over the studies that have ended so far."""
    done = [folder / study.name for study in studies.STUDIES if (folder / study.name / "results.json").exists()]
    report.write_overview(folder, done, failures)


def report_only(folder: Path) -> int:
    """Rebuilds the figures and pages of a folder of studies, or of one study, from what is on disk."""
    runs = [path for path in (folder, *(folder / s.name for s in studies.STUDIES)) if (path / "results.json").exists()]
    if not runs:
        raise ValueError(f"{folder} holds no results.json, nor does a study's folder in it: name the --out of a run")
    for path in runs:
        print(report.write(path))
    if runs != [folder]:
        print(report.write_overview(folder, runs, {}))
    return 0


def main() -> None:
    options = tyro.cli(Options, description=__doc__, registry=command.ranges)
    command.use_all_cores(options.num_devices)
    if options.reproducible:
        environment.make_reproducible()
    if options.report_only is not None:
        command.with_exit_code(lambda: report_only(options.report_only))
    stop = command.stop_on_signals()
    command.with_exit_code(lambda: reproduce(options, stop))


if __name__ == "__main__":
    main()
