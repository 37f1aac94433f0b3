"""Our side of the benchmark: hw1jax at a `peers.Work`, in five forms.

    python experiments/forms.py --work FILE --form 'folds x trials in parallel' --repeats 5 --seconds 4

prints one line of JSON (`run_form` says what is in it), as peers.py does for a peer. The forms differ in what one
program trains: a member, a trial's folds, or all trials (padded to the widest that the study can draw; for a CNN on an
accelerator by XLA's own convolutions as well); or a trial's folds at the trial's own widths. Each spreads over all
devices. `benchmark.py` starts them with a device a core.
"""

import signals

if __name__ == "__main__":
    signals.listen()  # before the imports that take seconds

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import peers
from peers import Work

SEED = 0
ONE_FOLD, FOLDS, ALL, OWN, LAX = FORMS = (
    "one fold after another",
    "folds in parallel",
    "folds x trials in parallel",
    "own widths",
    "folds x trials, lax.conv",
)
SIZES = {"cpu": (512, 1024, 2048), "gpu": (4096, 8192), "tpu": (4096, 8192)}  # of the matrix products
ENDLESS = 10**6  # calls of a program


def order_work(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    trials: list[dict[str, Any]],
    *,
    num_folds: int,
    num_epochs: int,
    batch_size: int,
) -> Work:
    """The search of these trials on x and y, with the folds and the minibatches that hw1jax takes for the seed."""
    from hw1jax import folds

    splits = folds.k_fold(len(x), num_folds, (SEED,))
    train_order = folds.minibatches(splits, range(num_epochs), batch_size=batch_size, seed=(SEED,))
    parts = [fold.validation for fold in splits]
    return Work(name, x, y, train_order, folds.pieces(parts, max(map(len, parts)))[:, 0], trials)


def draw_of(trial: dict[str, Any]) -> Any:
    """A trial of a work as `space.Draw`."""
    from hw1jax.space import Draw

    return Draw.from_dict({"channels": [], **trial})


# Our forms: iterators, each of which advances some members by some epochs on one device, or on all.


class Job(NamedTuple):
    device: int
    steps: Iterator[Any]  # of population.Progress
    trials: slice  # which of the work's trials and folds it trains
    folds: slice


def make_jobs(
    form: str, work: Work, num_epochs: int, epochs_per_call: int, num_devices: int | None = None
) -> list[Job]:
    """The work as programs: what trains together is one job; jobs of one device follow one another."""
    import jax

    from hw1jax import folds, planning, population, studies
    from hw1jax.data import Dataset
    from hw1jax.population import Plan, Spec

    study = studies.by_name(work.study)
    draws = [draw_of(trial) for trial in work.trials]
    wide = studies.widest(study.settings)
    key, batch_size = jax.random.key(SEED), work.train_order.shape[3]
    splits = [
        folds.Fold(np.sort(train[train >= 0]), val[val >= 0])
        for train, val in zip(work.train_order[:, 0], work.val_order, strict=True)
    ]
    ours = folds.minibatches(splits, range(1), batch_size=batch_size, seed=(SEED,))
    if not np.array_equal(ours, work.train_order[:, :1]):
        raise ValueError("the minibatches of this work are not those of its folds: make it with order_work")
    spec = Spec(num_epochs, batch_size, (SEED,), epochs_per_call)

    settings, data = replace(study.settings, batch_size=batch_size), Dataset(work.x, work.y, work.x, work.y)
    layout = planning.make_layout(study, settings, data)

    def place(plan: Plan, draw: Any) -> population.Problem:
        task = studies.make_task(study, draw.channels, draw.hidden_units, lax_convolutions=form == LAX)
        return population.place(task, plan, spec, work.x, work.y, splits)

    if form in (ALL, LAX):
        plan = population.make_plan(len(draws), len(splits), studies.parameter_shapes(study, wide), layout, num_devices)
        filled = np.minimum(np.arange(plan.slots), len(draws) - 1)  # empty slots train the last trial once more
        arrays = studies.as_arrays([draws[n] for n in filled])
        steps = population.train(place(plan, wide), key, filled, arrays)
        return [Job(0, steps, slice(0, len(draws)), slice(None))]

    devices = range(min(len(jax.devices()[:num_devices]), len(draws)))
    placed = [place(Plan(1, layout=layout, first_device=device), wide) for device in devices]
    jobs, load = [], [0] * len(devices)
    for n in sorted(range(len(draws)), key=lambda n: -studies.num_parameters(study, draws[n])):  # the longest first
        arrays, number = studies.as_arrays([draws[n]]), np.array([n])
        for i in range(len(splits)) if form == ONE_FOLD else [None]:
            device = int(np.argmin(load))
            problem, part = placed[device], slice(None) if i is None else slice(i, i + 1)
            load[device] += studies.num_parameters(study, draws[n]) if form == OWN else 1
            if i is not None:
                spec_i, pieces = replace(spec, first_fold=i), problem.pieces[part]
                problem = problem._replace(spec=spec_i, folds=splits[part], pieces=pieces)
            if form == OWN:  # as population.one_trial_each, but each trial keeps its device
                problem = problem._replace(task=studies.make_task(study, draws[n].channels, draws[n].hidden_units))
            jobs.append(Job(device, population.train(problem, key, number, arrays), slice(n, n + 1), part))
    return jobs


def advance(jobs: list[Job], losses: np.ndarray) -> None:
    """Every job by a call, one thread a device; puts the validation losses after it into losses [trial, fold]."""

    def on_device(device: int) -> None:
        for job in jobs:
            if job.device == device:
                val_loss = next(job.steps).val_loss
                losses[job.trials, job.folds] = val_loss[: job.trials.stop - job.trials.start, :, -1]

    devices = sorted({job.device for job in jobs})
    with ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(on_device, devices))


def run_form(
    form: str, work: Work, *, repeats: int, seconds: float, full: bool, num_devices: int | None = None
) -> dict[str, Any]:
    """What `peers.run_peer` returns for a peer, for one of our forms, in this process."""
    import jax

    from hw1jax import studies

    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")
    epochs = work.train_order.shape[1]
    per_call = max(n for n in range(1, studies.by_name(work.study).epochs_per_call + 1) if epochs % n == 0)
    calls = epochs // per_call
    jobs = make_jobs(form, work, per_call * (calls if full else ENDLESS), per_call, num_devices)
    losses = np.full((len(work.trials), len(work.train_order)), np.nan)
    samples_a_round = per_call * len(work.trials) * int((work.train_order[:, 0] >= 0).sum())

    def timed(num_rounds: int, least: float) -> tuple[int, float]:
        start, rounds = time.perf_counter(), 0
        while rounds < num_rounds or time.perf_counter() - start < least:
            advance(jobs, losses)
            rounds += 1
        return rounds, time.perf_counter() - start

    # Two calls, as the second may compile again, for the sharding that the first has left.
    first = timed(min(2, calls) if full else 2, 0)[1]
    if full and calls > 2:
        timed(calls - 2, 0)
    spans = [] if full else [timed(1, seconds) for _ in range(repeats)]
    statistics = jax.devices()[0].memory_stats() or {}
    return {
        "form": form,
        "study": work.study,
        "compile_seconds": None if full else max(0.0, first - 2 * median(span / rounds for rounds, span in spans)),
        "us_per_sample": [1e6 * span / (rounds * samples_a_round) for rounds, span in spans],
        "samples_timed": [rounds * samples_a_round for rounds, _ in spans],
        "final_val_loss": [[finite(v) for v in row] for row in losses.tolist()] if full else None,
        "peak_rss_mb": finite(peers.peak_rss_mb()),
        "device_peak_mb": statistics["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in statistics else None,
    }


def matrix_product_peak() -> dict[str, Any]:
    """The best rate of a float32 matrix product here, of a few sizes and ten tries each, in GFLOP/s."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_matmul_precision", "float32")
    rates = {}
    for size in SIZES[jax.default_backend()]:
        a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
        (a @ a).block_until_ready()
        best = math.inf
        for _ in range(10):
            start = time.perf_counter()
            (a @ a).block_until_ready()
            best = min(best, time.perf_counter() - start)
        rates[str(size)] = 2e-9 * size**3 / best
    return {"gflops": max(rates.values()), "by_size": rates}


def progress_ratio(repeats: int) -> dict[str, Any]:
    """Training seconds of the regression (200 epochs) with the progress bar drawn, and without."""
    from hw1jax import run, studies
    from hw1jax.progress import ConsoleObserver, Observer

    seconds: dict[str, list[float]] = {"bar": [], "silent": []}
    for number in range(repeats + 1):
        for name, observer in (("bar", ConsoleObserver()), ("silent", Observer())):
            with tempfile.TemporaryDirectory() as folder:
                settings = replace(studies.REGRESSION.settings, num_epochs=200, out=Path(folder))
                results = run.run(studies.REGRESSION, settings, observer, command="", started=time.time())
            if number:  # the first one compiles
                seconds[name].append(results["timing"]["train_seconds"])
    return {"ratio": median(seconds["bar"]) / median(seconds["silent"]), **seconds}


def operations_per_sample(work: Work) -> float:
    """Floating-point operations of loss and gradient, mean over the trials, each at its own widths."""
    import jax

    from hw1jax import population, studies

    study, total = studies.by_name(work.study), 0.0
    size = work.train_order.shape[3]
    for trial in work.trials:
        draw = draw_of(trial)
        task = studies.make_task(study, draw.channels, draw.hidden_units)
        one = jax.tree.map(lambda a: a[0], studies.as_arrays([draw]))
        counts = [population.flops(task, work.x[:n], work.y[:n], one) for n in (size, 2 * size)]
        total += (counts[1] - counts[0]) / size  # the difference leaves out the initial parameters
    return total / len(work.trials)


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say."""
    if options.form == "matrix products":
        return matrix_product_peak()
    if options.form == "progress bar":
        return progress_ratio(options.repeats)
    work = peers.load_work(options.work)
    if options.trials:  # the same trials again and again: the same mix of widths for any number
        work = work._replace(trials=[work.trials[n % len(work.trials)] for n in range(options.trials)])
    clock = {"repeats": options.repeats, "seconds": options.seconds, "full": options.full}
    return run_form(options.form, work, **clock, num_devices=options.num_devices)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one form; prints one line of JSON.")
    parser.add_argument("--form", required=True, choices=[*FORMS, "matrix products", "progress bar"])
    parser.add_argument("--work", help="a file that peers.save_work wrote")
    parser.add_argument("--trials", type=int, help="as many trials, the work's again and again")
    parser.add_argument("--num-devices", type=int, help="at most so many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="the least duration of a repeat")
    parser.add_argument("--full", action="store_true", help="the whole search, once")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
