"""The whole homework: the three studies in turn, each into its own folder, and one report page over all.

A study that fails doesn't stop the others; it is named at the end, and the exit code is then 1.

    python experiments/reproduce.py [--quick] [--out DIR] [--help]
"""

import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fashion_cnn
import fashion_mlp
import regression
import tyro

from hw1jax import cli, record, report, results, study
from hw1jax.progress import print_summary
from hw1jax.study import Order, Study

STUDIES = {s.name: s for s in (regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY)}
BEYOND = {name: module.BEYOND for name, module in zip(STUDIES, (regression, fashion_mlp, fashion_cnn), strict=True)}
SETTINGS = ("num_trials", "num_folds", "num_epochs", "batch_size", "seed", "sampler", "num_devices", "precision")


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


def order_of(asked: Study, options: Options, folder: Path) -> Order:
    """The study's own settings with the options that are given."""
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    inputs = {"data_dir": options.data_dir} if "data_dir" in asked.inputs else {}
    given |= {"reproducible": options.reproducible, "out": folder / asked.name}
    return study.order(asked, inputs=inputs, quick=options.quick, **given)


def reproduce(options: Options, stop: threading.Event) -> int:
    """Runs the studies and returns the exit code."""
    folder = options.out or (Path("runs", "quick") if options.quick else Path("runs"))
    flags = cli.Flags(quiet=options.quiet, verbose=options.verbose)
    # A mistake in the options is told before an hour of work, not after.
    orders = [order_of(asked, options, folder) for asked in STUDIES.values()]
    started, all_results, failures = cli.STARTED, [], {}
    for order in orders:
        try:
            all_results.append(cli.run_order(order, flags, started, stop))
        except (ValueError, OSError) as error:
            cli.report_error(error)
            failures[order.study.name] = str(error)
        rebuild(folder, failures)
        started = time.time()
    if all_results:
        print_summary(all_results, folder / "report.html")
    for name, error in failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 1 if failures else 0


def rebuild(folder: Path, failures: dict[str, str]) -> None:
    """The page over the studies that have ended so far."""
    done = [folder / name for name in STUDIES if (folder / name / "results.json").exists()]
    report.write_overview(folder, STUDIES, done, failures)


def report_only(folder: Path) -> int:
    """Rebuilds the figures and pages of a folder of studies, or of one study, from what is on disk."""
    runs = [path for path in (folder, *(folder / name for name in STUDIES)) if (path / "results.json").exists()]
    if not runs:
        raise ValueError(f"{folder} holds no results.json, nor does a study's folder in it: name the out= of a run")
    for path in runs:
        print(report.write_report(path, results.study_of(path, STUDIES)))
    if runs != [folder]:
        print(report.write_overview(folder, STUDIES, runs, {}))
    return 0


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    cli.use_all_cores(options.num_devices)
    if options.reproducible:
        record.make_reproducible()
    if (folder := options.report_only) is not None:
        cli.with_exit_code(lambda: report_only(folder))
    stop = cli.stop_on_signals()
    cli.with_exit_code(lambda: reproduce(options, stop))


if __name__ == "__main__":
    main()
