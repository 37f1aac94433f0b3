"""Runs the three studies of the homework, each into its own folder, and writes one report page for all.

Each study runs three times: the report's best hyperparameters, halving with an ensemble, and the report's own search.
If one fails, the others still run; the failure is printed at the end and the exit code is 1.

    python experiments/reproduce.py [--quick] [--as-reported] [--out DIR] [--data-dir DIR] [--help]
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fashion_cnn
import fashion_mlp
import homework
import regression

from hw1jax import cli, environment, report
from hw1jax.progress import print_summary
from hw1jax.search.given import Given, enqueued
from hw1jax.search.study import RunConfig, Study

STUDIES = {s.name: s for s in (regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY)}
BEYOND = {name: module.BEYOND for name, module in zip(STUDIES, (regression, fashion_mlp, fashion_cnn), strict=True)}


def parse(args: Sequence[str]) -> tuple[Path, list[RunConfig], cli.Flags]:
    """The flags -> (folder of all results, config of each study, flags of the output)."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Each study also gets the other flags, such as --num-trials or --seed: see regression.py --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="small runs on the real data: three minutes in all")
    parser.add_argument("--as-reported", action="store_true", help="the report's best hyperparameters alone")
    parser.add_argument("--out", type=Path, help="results folder (default: runs; with --quick: runs/quick)")
    parser.add_argument("--data-dir", help="folder with the four Fashion-MNIST files, instead of fetching them")
    own, flags = parser.parse_known_args(args)
    folder = (own.out or Path("runs", *(["quick"] if own.quick else []))).expanduser()
    flags += ["--quick"] if own.quick else []
    configs = []
    for study in STUDIES.values():
        inputs = ["--data-dir", own.data_dir] if own.data_dir and "data_dir" in study.inputs else []
        for asked in homework.ways(study)[: 1 if own.as_reported else None]:
            config, shown = cli.parse(asked, None, [*flags, *inputs, "--out", str(folder / asked.name)])
            configs.append(as_reported(config, study) if asked.name == f"{study.name}_as_reported" else config)
    return folder, configs, shown


def as_reported(config: RunConfig, study: Study) -> RunConfig:
    """The config of a search whose only trial has the report's best hyperparameters."""
    params = [dict(study.reference.params)]
    search = replace(config.search, halving=None, first_rung=None, brackets=False, ensemble=None, sampler="random")
    asked = replace(config.study, space=study.space)
    return config._replace(
        study=asked, num_trials=1, search=search, given=Given(enqueued=enqueued(study.space, params))
    )


def last_search(folder: Path, study: Study) -> Study:
    """The last of a study's searches that has results; its own if none has."""
    return next((search for search in reversed(homework.ways(study)) if has_run(folder / search.name)), study)


def has_run(folder: Path) -> bool:
    """True if there are results."""
    return (folder / "results.json").exists()


def reproduce(folder: Path, configs: Sequence[RunConfig], output: cli.Flags, stop: threading.Event) -> int:
    """Runs the studies and returns the exit code."""
    started, all_results, failures = cli.STARTED, [], {}
    for config in configs:
        try:
            all_results.append(cli.run_and_report(config, output, started, stop))
        except (ValueError, OSError) as error:
            cli.report_error(error)
            failures[config.study.name] = str(error)
        shown = {search.name: search for search in (last_search(folder, study) for study in STUDIES.values())}
        report.write_overview(folder, shown, [folder / name for name in shown if has_run(folder / name)], failures)
        started = time.time()
    if all_results:
        print_summary(all_results, folder / "report.html")
    for name, error in failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 1 if failures else 0


def main() -> None:
    def work() -> int:
        folder, configs, shown = parse(sys.argv[1:])  # reports mistakes before an hour of work, not after
        environment.use_all_cores(configs[0].program.num_devices)
        if configs[0].program.reproducible:
            environment.make_reproducible()
        return reproduce(folder, configs, shown, cli.stop_on_signals())

    cli.with_exit_code(work)


if __name__ == "__main__":
    main()
