"""Measures the speed of hw1jax and of its peers on the three studies, at equal work.

    python experiments/benchmark.py [--time-to-score | --overhead] [--studies STUDIES] [--peers-python PYTHON] [--help]

docs/speed.md defines what is timed. All forms read the same file (`peers.Work`): samples, folds, the order of all
minibatches, and the first trials of a search. Each form computes in float32 in its own processes.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
from homework import NUM_TRIALS
from peers import OPTUNA, STUDIES, Work, load_work

from hw1jax import environment, storage
from hw1jax.core import folds, population
from hw1jax.core.losses import squared_error
from hw1jax.core.tasks import Task
from hw1jax.data import Dataset
from hw1jax.report import drawing, plots
from hw1jax.search import brackets, executors, jobs, plan, space, space_text
from hw1jax.search.networks import Networks
from hw1jax.search.observer import Observer
from hw1jax.search.study import ProgramConfig, SearchConfig, Study
from hw1jax.search.study_data import load_data

SEED = 0
ALL, MANY, SEARCH = "folds x trials in parallel", "folds x 1,000 trials in parallel", "as a search trains them"
OURS, OURS_HALVING = "ours", "ours, halving"
HALVING = {"halving": 3, "averaging": 0.99}  # as homework.BETTER, without its ensemble
ENGINES = ("process pool", "Dask")
SPEED_WORK = {"regression": (100, 1000), "fashion_mlp": (60_000, 2), "fashion_cnn": (12_000, 2)}  # samples, epochs


def make_work(name: str, options: argparse.Namespace, size: tuple[int, int], seed: int = SEED) -> Work:
    """The work of a study; size: (number of samples, number of epochs)."""
    asked, (num_samples, num_epochs) = import_module(name).STUDY, size
    num_trials, num_folds = asked.num_trials, asked.num_folds
    if options.quick:
        num_samples, num_epochs, num_trials = min(num_samples, 600), max(2, num_epochs // 20), 3
    if options.synthetic and asked.classes:  # noise images, whose losses mean nothing
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 256, (60_000, 28, 28), np.uint8), rng.integers(0, 10, 60_000, np.int32)
    else:
        data = load_data(asked, {file: options.data_dir if file == "data_dir" else None for file in asked.inputs})
        x, y = data.x_train, data.y_train
    search_epochs = asked.num_epochs * len(x) // min(num_samples, len(x))
    x, y = x[:num_samples], y[:num_samples]
    splits = folds.k_fold(len(x), num_folds, (seed,))
    train_order = folds.minibatches(splits, range(num_epochs), batch_size=asked.batch_size, seed=(seed,))
    parts = [fold.validation for fold in splits]
    val_order = folds.pad_batches(parts, max(map(len, parts)))[:, 0]
    trials = [space_text.draw_to_json(space.random_draw(asked.space, seed, number)) for number in range(num_trials)]
    return Work(name, x, y, train_order, val_order, trials, search_epochs)


def in_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Calls a function of this file in a fresh process, without a compilation cache."""
    call = f"print(json.dumps(benchmark.{function.__name__}(*json.load(sys.stdin))))"
    command = [sys.executable, "-c", f"import benchmark, json, sys; {call}"]
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    given, environment = json.dumps(arguments), os.environ | own
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# The forms of hw1jax, each in its own process.


def train(form: str, work: Work, *, endless: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """Trains the work in rounds; in each, every program is called once.

    Yields the epochs of the round and the validation losses [trial, fold] after it.
    """
    asked = import_module(work.study).STUDY
    num_folds, num_epochs, _, batch_size = work.train_order.shape
    draws = {number: space_text.draw_from_json(asked.space, trial) for number, trial in enumerate(work.trials)}
    data, splits = Dataset(work.x, work.y, work.x[:0], work.y[:0]), folds.k_fold(len(work.x), num_folds, (SEED,))
    program = ProgramConfig() if form == SEARCH else ProgramConfig(widths="padded", members_per_program=sys.maxsize)
    searches = [SearchConfig(epochs, batch_size, num_folds, SEED) for epochs in (num_epochs, work.search_epochs)]
    networks, whole = (Networks(asked, search, data, splits) for search in searches)
    [rung] = plan.make_plan(whole, len(draws), program).rungs
    waiting = plan.jobs_of(networks, rung, draws)
    val_loss, calls = np.full((len(draws), num_folds), np.nan), {}
    per_call = networks.train_config(networks.widest).epochs_per_call
    num_threads = rung.num_side_by_side
    num_epochs = 10**9 if endless else num_epochs

    def advance(number: int, device: int) -> None:
        job = waiting[number]
        if number not in calls:
            members, trials = jobs.members_of(networks, job, device)
            state = jobs.new_state(networks, job, members, trials)
            calls[number] = population.resume(members, state, trials, first_epoch=0, last_epoch=num_epochs)
        val_loss[job.numbers] = next(calls[number]).val["loss"][: len(job.numbers), :, -1]

    for done in range(0, num_epochs, per_call):
        brackets.side_by_side(advance, len(waiting), num_threads, threading.Event())
        yield min(per_call, num_epochs - done), val_loss.copy()


def timed(rounds: Iterator[tuple[int, np.ndarray]], num_rounds: int, seconds: float) -> tuple[int, float]:
    """Trains at least `num_rounds` rounds for at least `seconds` -> (epochs, seconds)."""
    start, epochs = time.perf_counter(), []
    while len(epochs) < num_rounds or time.perf_counter() - start < seconds:
        epochs.append(next(rounds)[0])
    return sum(epochs), time.perf_counter() - start


def run_form(file: str, form: str, repeats: int, seconds: float) -> dict[str, Any]:
    """As `peers.run_peer`, for a form of hw1jax."""
    work = load_work(file)
    if form == MANY:
        work = work._replace(trials=[work.trials[n % len(work.trials)] for n in range(1000)])
    with jax.default_matmul_precision("float32"):
        if not repeats:
            *_, (_, losses) = train(form, work)
            return {"final_val_loss": losses.tolist()}
        rounds = train(form, work, endless=True)
        # Two rounds: the second may compile again, because the first changes the sharding.
        first_epochs, first_seconds = timed(rounds, 2, 0)
        spans = [timed(rounds, 1, seconds) for _ in range(repeats)]
    an_epoch = median(spent / epochs for epochs, spent in spans)
    samples = len(work.trials) * int((work.train_order[:, 0] >= 0).sum())  # per epoch
    return {
        "compile_seconds": max(0.0, first_seconds - first_epochs * an_epoch),
        "us_per_sample": [1e6 * spent / (epochs * samples) for epochs, spent in spans],
        "peak_rss_mb": peers.peak_rss_mb(),
    }


def search_ours(file: str, settings: dict[str, Any], seed: int, num_trials: int, started: float) -> dict[str, Any]:
    """As `peers.run_peer`, for the search of hw1jax."""
    from hw1jax import run_study  # the other forms don't need Optuna

    points = []

    class Watcher(Observer):
        def epochs(self, what, done, num_epochs, scores, search_done=None):
            if scores is not None:  # None in the refit
                means = scores.mean(axis=1)  # not finite if not trained yet, or diverged
                points.append((time.time() - started, float(np.min(means, initial=math.inf, where=np.isfinite(means)))))

    environment.use_all_cores()
    work = load_work(file)
    num_folds, num_epochs, _, batch_size = work.train_order.shape
    data = Dataset(work.x, work.y, work.x[:10], work.y[:10])  # the test set is not used
    study = replace(import_module(work.study).STUDY, data=data, inputs={})
    sizes = {"num_trials": num_trials, "num_folds": num_folds, "num_epochs": num_epochs, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_enable_compilation_cache", True)  # like a user's first search
        jax.config.update("jax_compilation_cache_dir", str(Path(folder, "compiled")))
        out = Path(folder, "out")
        results = run_study(study, **sizes, **settings, seed=seed, out=out, observer=Watcher())
    return peers.running_minimum(points, points[-1][0]) | {"epochs": int(results.trials["epochs"].sum())}


# Speed.


def measure_speed(name: str, options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Measures all forms one after the other, at the same work."""
    work = make_work(name, options, SPEED_WORK[name])
    peers.save_work(file, work)
    ours = [MANY, ALL] if name == "regression" else [ALL, SEARCH]  # the regression's search is one program
    search_samples = len(work.trials) * work.search_epochs * int((work.train_order[:, 0] >= 0).sum())

    def run(form: str, repeats: int) -> dict[str, Any]:
        if form in ours:
            return in_process(run_form, str(file), form, repeats, options.seconds)
        python = sys.executable if form == peers.NOTEBOOK else options.peers_python
        return peers.run_peer(python, file, form, repeats=repeats, seconds=options.seconds)

    rows = []
    for form in [*ours, *([] if options.no_peers else peers.PEERS)]:
        print(f"{time.strftime('%H:%M:%S')} {name}: {form}", file=sys.stderr)
        row = {"ours": form in ours, "name": form} | run(form, options.repeats)
        if "skipped" not in row:
            row["speed"] = median(row["us_per_sample"])
            row["search_seconds"] = 1e-6 * row["speed"] * search_samples
            if form in (ours[-1], peers.EAGER):
                row |= run(form, 0)  # adds the final losses
        rows.append(row)
    compare_losses([row for row in rows if "final_val_loss" in row])
    return {"samples": len(work.x), "epochs": work.train_order.shape[1], "trials": len(work.trials), "rows": rows}


def compare_losses(rows: list[dict[str, Any]]) -> None:
    """Replaces the final losses [trial][fold] of each row by their mean and the best trial's loss, as text."""
    losses = np.array([row.pop("final_val_loss") for row in rows], float)  # [row, trial, fold], NaN where diverged
    everywhere = np.isfinite(losses).all(axis=0)
    for row, own in zip(rows, losses, strict=True):
        best = np.nan_to_num(own.mean(axis=1), nan=np.inf).min()
        row["loss"] = f"{own[everywhere].mean():.4g}, best {best:.4g}"


def speed_table(name: str, result: dict[str, Any]) -> list[str]:
    rows = [row for row in result["rows"] if "skipped" not in row]
    strongest = min((row["speed"] for row in rows if not row["ours"]), default=math.nan)
    lines = [
        f"### {name} ({result['trials']} trials, {result['samples']:,} samples; loss after {result['epochs']} epochs)",
        "",
        "| | µs/sample (range) | compile s | search s | times strongest peer | peak MB | loss |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        shown = f"**{row['name']}**" if row["ours"] else row["name"]
        spread = f"{min(row['us_per_sample']):.3g}-{max(row['us_per_sample']):.3g}"
        lines.append(
            f"| {shown} | {row['speed']:.3g} ({spread}) | {row['compile_seconds']:.1f} | {row['search_seconds']:.3g} "
            f"| {strongest / row['speed']:.3g} | {row['peak_rss_mb']:.0f} | {row.get('loss', '-')} |"
        )
    return lines


def draw_speed(results: dict[str, Any], out: Path) -> None:
    """Writes speed.png, with a panel for each study."""
    studies = {name: [row for row in result["rows"] if "speed" in row] for name, result in results.items()}
    with drawing.style():
        figure, axes = drawing.figure(len(studies), height=2.0 * len(studies))
        for ax, (name, rows) in zip(axes[:, 0], studies.items(), strict=True):
            speeds = {row["name"]: row["speed"] for row in sorted(rows, key=lambda row: not row["ours"])}
            look = {"form": "{:.3g}".format, "hatched": {row["name"] for row in rows if not row["ours"]}}
            plots.bars(ax, speeds, title=name, label="µs per training sample, validation included", **look)
            ax.set_xscale("log")
        storage.write_bytes(out / "speed.png", drawing.png(figure))


# Time to a score.


def measure_score(name: str, options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Searches with each side and seed; Optuna is first because the others are timed until they reach its loss."""
    rows = []
    for seed in options.seeds:
        work = make_work(name, options, (sys.maxsize, import_module(name).STUDY.num_epochs), seed=seed)
        peers.save_work(file, work)
        num_trials, goal = {OURS_HALVING: 6 if options.quick else NUM_TRIALS[name]}, None
        for side in (OPTUNA, OURS, OURS_HALVING):
            print(f"{time.strftime('%H:%M:%S')} {name}: {side}, seed {seed}", file=sys.stderr)
            row = {"name": side, "seed": seed, "trials": num_trials.get(side, len(work.trials))}
            how = {"seed": seed, "trials": row["trials"], "started": time.time()}
            if side == OPTUNA:
                row |= peers.run_peer(options.peers_python, file, OPTUNA, **how)
                goal = row.get("loss", [goal])[-1]
            else:
                row |= in_process(search_ours, str(file), HALVING if side == OURS_HALVING else {}, *how.values())
            points = zip(row.get("seconds", []), row.get("loss", []), strict=True)
            if goal is not None:
                row["seconds_to_goal"] = next((seconds for seconds, loss in points if loss <= goal), None)
            rows.append(row)
    return {"rows": rows}


def score_table(name: str, result: dict[str, Any]) -> list[str]:
    """A row for each side, medians over the seeds; the last is "never" if half of them don't reach Optuna's loss.

    It is "-" if Optuna was skipped.
    """
    lines = [
        f"### {name}",
        "",
        "| | trials | trial-epochs | lowest validation loss (each seed) | s in all | s to Optuna's loss (seeds) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for side in (OURS, OURS_HALVING, OPTUNA):
        if rows := [row for row in result["rows"] if row["name"] == side and "skipped" not in row]:
            losses, reached = [row["loss"][-1] for row in rows], "-"
            if to_goal := [row["seconds_to_goal"] or math.inf for row in rows if "seconds_to_goal" in row]:
                reached = f"{median(to_goal):.3g} ({sum(map(math.isfinite, to_goal))} of {len(to_goal)})"
            lines.append(
                f"| {side if side == OPTUNA else f'**{side}**'} | {rows[0]['trials']} "
                f"| {median(row['epochs'] for row in rows):,.0f} | {median(losses):.4g} "
                f"({', '.join(f'{loss:.4g}' for loss in losses)}) | {median(row['seconds'][-1] for row in rows):.1f} "
                f"| {reached} |".replace("inf", "never")
            )
    return lines


# Overhead of executors.


def stretches(executor: Executor, num_numbers: int, repeats: int) -> tuple[list[np.ndarray], list[float]]:
    """(state of a job, seconds of each stretch beside training) of one trial with `num_numbers` parameters."""

    def apply(params: jax.Array, x: jax.Array, h: dict[str, jax.Array]) -> jax.Array:  # trains fast
        return x * jnp.mean(params)

    task = Task(lambda key, h: jnp.zeros(num_numbers), apply, squared_error, lambda h: optax.sgd(h["rate"]))
    x, rate = np.ones((64, 1), np.float32), space.Float(0.01, 0.1)
    asked = Study("numbers", task=lambda fixed: task, data=Dataset(x, x, x, x), space={"rate": rate})
    networks = Networks(asked, SearchConfig(repeats + 1, 64, 3, SEED), asked.data, folds.k_fold(64, 3, (SEED,)))
    [rung] = plan.make_plan(networks, 1, ProgramConfig(num_devices=1)).rungs
    [job] = plan.jobs_of(networks, rung, {0: {"rate": 0.05}})
    advance, state, seconds = executors.on_executor(executor, networks, lambda: False), None, []
    for epoch in range(repeats + 1):  # the first also sends the networks to the worker
        begin, until = time.perf_counter(), job._replace(rung=replace(rung, end_epoch=epoch + 1))
        stretch = advance(until, state, epoch, 0, lambda *_: None)
        seconds.append(time.perf_counter() - begin - stretch.seconds)
        state = stretch.state
    return state, seconds[1:]


def measure_overhead(name: str, options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Measures an engine with one worker on this machine, for a small and a large state."""
    rows = []
    with contextlib.ExitStack() as stack:
        if name == "Dask":
            from distributed import LocalCluster

            cluster = stack.enter_context(LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None))
            executor = stack.enter_context(executors.connected(cluster.scheduler_address))
        else:
            executor = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        for num_numbers in (100, 1_660_000):
            state, seconds = stretches(executor, num_numbers, options.repeats)
            rows.append({"name": name, "mb": sum(leaf.nbytes for leaf in state) / 1e6, "seconds": seconds})
    return {"rows": rows}


def overhead_table(name: str, result: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", "", "| state | training | s beside it (range) | of the training |", "|--:|--:|--:|--:|"]
    for row in result["rows"]:
        training = max(jobs.SECONDS, executors.SECONDS_PER_MB * row["mb"])
        beside = f"{median(row['seconds']):.3f} ({min(row['seconds']):.3f}-{max(row['seconds']):.3f})"
        lines.append(f"| {row['mb']:.3g} MB | {training:.0f} s | {beside} | {median(row['seconds']) / training:.2%} |")
    return lines


def report(results: dict[str, Any], table: Callable[..., list[str]], note: str) -> str:
    machine, packages = results["environment"], dict(results["environment"]["packages"])
    for row in (row for result in results["studies"].values() for row in result["rows"]):
        packages |= row.get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    start = f"{machine['date']}, {machine['device']}, {machine['cores']} cores, Python {machine['python']}, {versions}"
    lines = [f"{start}; {note}."]
    for name, result in results["studies"].items():
        skipped = {row["name"]: row["skipped"] for row in result["rows"] if "skipped" in row}
        lines += ["", *table(name, result)]
        lines += ["", *(f"- skipped: {who}: {reason}" for who, reason in skipped.items())] if skipped else []
    return "\n".join(lines) + "\n"


def measure(options: argparse.Namespace) -> None:
    """Measures each study, and writes MODE.json and MODE.md after each."""
    mode, measure_study, table = "benchmark", measure_speed, speed_table
    note = f"float32, {options.repeats} repeats of at least {options.seconds:g} s"
    if options.time_to_score:
        mode, measure_study, table = "time_to_score", measure_score, score_table
        note = f"medians of the seeds {', '.join(map(str, options.seeds))}; seconds since the process started"
    if options.overhead:
        mode, measure_study, table, options.studies = "executor_overhead", measure_overhead, overhead_table, ENGINES
        note = f"load average {os.getloadavg()[0]:.1f} at the start; medians of {options.repeats} stretches"
    results = {"environment": environment.describe(), "command": sys.argv, "studies": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.studies:
            results["studies"][name] = measure_study(name, options, Path(folder, f"{name}.npz"))
            storage.write_json(options.out / f"{mode}.json", results)
            storage.write_bytes(options.out / f"{mode}.md", report(results, table, note).encode())
            if mode == "benchmark":
                draw_speed(results["studies"], options.out)
    print(report(results, table, note))


def parse(args: Sequence[str]) -> argparse.Namespace:
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=show)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES, help="studies to measure")
    parser.add_argument("--out", type=Path, default=Path("runs", "benchmark"), help="results folder")
    parser.add_argument("--data-dir", type=Path, help="folder with the four Fashion-MNIST files")
    parser.add_argument("--synthetic", action="store_true", help="use noise as images instead of Fashion-MNIST")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with torch, scikit-learn, optuna")
    parser.add_argument("--no-peers", action="store_true", help="measure only hw1jax")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each form")
    parser.add_argument("--seconds", type=float, default=4.0, help="shortest duration of a measurement")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of --time-to-score")
    parser.add_argument("--quick", action="store_true", help="few trials and samples, one repeat: to check the tables")
    parser.add_argument("--time-to-score", action="store_true", help="time whole searches until they reach a loss")
    parser.add_argument("--overhead", action="store_true", help="measure the cost of executors beside training")
    options = parser.parse_args(args)
    if options.quick:
        options.repeats, options.seconds = 1, min(options.seconds, 0.3)
    return options


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: ends the children and removes the files
    options = parse(sys.argv[1:])
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cores or 1))  # as in the experiments; child processes inherit it
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leaves an accelerator's memory to the children
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # fails here rather than after minutes of measuring
        measure(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
