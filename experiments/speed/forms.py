"""Our side of the benchmark: hw1jax at a `peers.Work`, in five forms.

    cd experiments; python -m speed.forms --work FILE --form 'folds x trials in parallel' --repeats 5 --seconds 4

prints one line of JSON (`run_form` says what is in it), as peers.py does for a peer. `benchmark.py` starts them with a
device a core.

Plan, programs and threads are those of a search (`hw1jax.plan`, `hw1jax.brackets`): with `--widths padded` for all
trials in one program, by XLA's own convolutions as well for a CNN on an accelerator; and as the search lays them out
that the work is a part of. Two weaker forms have a program a trial, or a member, padded to the widest that the study
can draw.
"""

import argparse
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from speed import peers
from speed.peers import Work

if TYPE_CHECKING:  # they import JAX, which the benchmark does without until it needs it
    from hw1jax.data import Dataset
    from hw1jax.folds import Fold
    from hw1jax.plan import Job
    from hw1jax.population import Population, Progress
    from hw1jax.space import Draw
    from hw1jax.study import Study

SEED = 0
ONE_FOLD, FOLDS, ALL, SEARCH, LAX = FORMS = (
    "one fold after another",
    "folds in parallel",
    "folds x trials in parallel",
    "as a search trains them",
    "folds x trials, lax.conv",
)
WHOLE = "a whole search"
SIZES = {"cpu": (512, 1024, 2048), "gpu": (4096, 8192), "tpu": (4096, 8192)}  # of the matrix products
ENDLESS = 10**6  # times the work's epochs


def study_of(name: str) -> "Study":
    """What the experiment of this name searches."""
    return import_module(name).STUDY


def data_of(study: "Study", data_dir: Path | None, *, synthetic: bool) -> "Dataset":
    """The study's data, images from that folder if there is one; or noise instead of images."""
    from hw1jax.study import load_data

    if synthetic and study.classes:
        return noise_images()
    return load_data(study, {file: data_dir if file == "data_dir" else None for file in study.inputs})


def with_lax_convolutions(study: "Study") -> "Study":
    """The convolutional study, computed by XLA's own convolutions."""
    import fashion_cnn

    from hw1jax import layers

    def task(fixed: dict[str, Any]) -> Any:
        net = fashion_cnn.net_of(fixed)
        net = net.clone(first_conv_pool=layers.lax_conv_pool, conv_pool=layers.lax_conv_pool)

        def apply(params: Any, x: Any, h: Any) -> Any:
            return net.apply({"params": params}, x, *fashion_cnn.widths(h))

        return fashion_cnn.task(fixed)._replace(apply=apply)

    return replace(study, task=task)


def order_work(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    trials: list[dict[str, Any]],
    *,
    num_folds: int,
    num_epochs: int,
    batch_size: int,
    seed: int = SEED,
    search_epochs: int | None = None,
) -> Work:
    """The search of these trials on x and y, with the folds and the minibatches that hw1jax takes for the seed.

    `search_epochs`: see `Work`.
    """
    from hw1jax import folds

    splits = folds.k_fold(len(x), num_folds, (seed,))
    train_order = folds.minibatches(splits, range(num_epochs), batch_size=batch_size, seed=(seed,))
    parts = [fold.validation for fold in splits]
    val_order = folds.pieces(parts, max(map(len, parts)))[:, 0]
    return Work(name, x, y, train_order, val_order, trials, search_epochs)


def folds_of(work: Work) -> "list[Fold]":
    """The folds of a work that `order_work` made; a ValueError for another, as hw1jax takes other minibatches."""
    from hw1jax import folds

    splits = [
        folds.Fold(np.sort(train[train >= 0]), val[val >= 0])
        for train, val in zip(work.train_order[:, 0], work.val_order, strict=True)
    ]
    ours = folds.minibatches(splits, range(1), batch_size=work.train_order.shape[3], seed=(SEED,))
    if not np.array_equal(ours, work.train_order[:, :1]):
        raise ValueError("the minibatches of this work are not those of its folds: make it with order_work")
    return splits


def noise_images() -> "Dataset":
    """As many and as large as Fashion-MNIST's training images, where those can't be had; their losses say nothing."""
    from hw1jax.data import Dataset

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60_000, 28, 28), np.uint8), rng.integers(0, 10, 60_000, np.int32)
    return Dataset(x, y, x[:0], y[:0])


def say(*what: str) -> None:
    """Tells a person who waits."""
    print(f"[{time.strftime('%H:%M:%S')}]", *what, file=sys.stderr, flush=True)


# Our forms: rounds, in each of which every program advances by a call.


class Part(NamedTuple):
    """What one program trains."""

    job: "Job"
    fold: int | None  # of the job's trials; None: all folds
    own_widths: bool  # whether its program is hardly wider than its trial

    @property
    def members(self) -> tuple[list[int], slice]:
        """Which trials and folds of the work it trains."""
        return self.job.numbers, slice(None) if self.fold is None else slice(self.fold, self.fold + 1)


class Round(NamedTuple):
    """What a round has brought."""

    num_epochs: int  # by which all members have advanced
    val_loss: np.ndarray  # [trial, fold], after it


def lay_out(
    form: str, asked: "Study", work: Work, draws: "Mapping[int, Draw]", num_devices: int | None
) -> "tuple[list[Part], list[Population]]":
    """What the programs of a form train, and where, side by side."""
    from hw1jax import plan, population, space
    from hw1jax.data import Dataset
    from hw1jax.study import Program, Search

    num_folds, num_epochs, _, batch_size = work.train_order.shape
    search, splits = Search(num_epochs, batch_size, num_folds, SEED), folds_of(work)
    data, in_one = Dataset(work.x, work.y, work.x[:0], work.y[:0]), form in (ALL, LAX)
    program = Program(num_devices=num_devices)
    if in_one:  # however many trials there are
        program = Program(widths="padded", members_per_program=sys.maxsize, num_devices=num_devices)
    if form in (ONE_FOLD, FOLDS):
        program = Program(widths="exact", num_devices=num_devices)
    whole = replace(search, num_epochs=work.search_epochs or num_epochs)
    [rung] = plan.make_plan(asked, len(draws), whole, program, data, splits).rungs
    widest = space.fixed(asked.space, space.widest(asked.space), widest=True)
    wide = plan.make_population(asked, search, rung.program, data, splits, widest)
    jobs = plan.jobs_of(asked, rung, draws)
    if form in (ONE_FOLD, FOLDS):  # a program a trial, but the same for all
        jobs = [job._replace(fixed=widest) for job in jobs]
    each = range(num_folds) if form == ONE_FOLD else [None]
    parts = [Part(job, fold, form == SEARCH and rung.own_widths) for job in jobs for fold in each]
    return parts, population.one_trial_each(wide) if rung.own_widths else [wide]


def train(form: str, work: Work, *, num_devices: int | None = None, endless: bool = False) -> Iterator[Round]:
    """Trains the work round by round to its last epoch, or on and on; a ValueError as in `folds_of`."""
    import jax

    from hw1jax import brackets, population, space

    asked = with_lax_convolutions(study_of(work.study)) if form == LAX else study_of(work.study)
    draws = {number: space.draw_from_json(asked.space, trial) for number, trial in enumerate(work.trials)}
    parts, places = lay_out(form, asked, work, draws, num_devices)
    spec = places[0].spec
    if endless:
        spec = replace(spec, num_epochs=ENDLESS * spec.num_epochs)
        places = [place._replace(spec=spec) for place in places]
    key, val_loss = jax.random.key(SEED), np.full((len(draws), len(work.train_order)), np.nan)
    calls: dict[int, Iterator[Progress]] = {}  # of the parts that have begun, by their place in `parts`

    def advance(number: int, place: "Population") -> None:
        part = parts[number]
        if number not in calls:
            place = place if part.fold is None else of_fold(place, part.fold)
            members, trials, state = brackets.begin(asked, key, part.job, draws, place, own_widths=part.own_widths)
            calls[number] = population.resume(members, state, trials, first_epoch=0)
        val = next(calls[number]).val
        assert val is not None  # every fold has a validation part
        val_loss[part.members] = val["loss"][: len(part.job.numbers), :, -1]

    for done in range(0, spec.num_epochs, spec.epochs_per_call):
        brackets.side_by_side(advance, range(len(parts)), places, threading.Event())
        yield Round(min(spec.epochs_per_call, spec.num_epochs - done), val_loss.copy())


def of_fold(place: "Population", fold: int) -> "Population":
    """One fold of a population."""
    assert place.pieces is not None  # every fold has a validation part
    spec, this = replace(place.spec, first_fold=fold), slice(fold, fold + 1)
    return place._replace(spec=spec, folds=place.folds[this], pieces=place.pieces[this])


class Span(NamedTuple):
    """Some rounds on the clock."""

    num_epochs: int
    seconds: float


def timed(rounds: Iterator[Round], num_rounds: int, seconds: float) -> Span:
    """At least so many rounds, for at least so long."""
    start, epochs = time.perf_counter(), []
    while len(epochs) < num_rounds or time.perf_counter() - start < seconds:
        epochs.append(next(rounds).num_epochs)
    return Span(sum(epochs), time.perf_counter() - start)


def run_form(
    form: str, work: Work, *, repeats: int, seconds: float, full: bool, num_devices: int | None = None
) -> dict[str, Any]:
    """What `peers.run_peer` returns for a peer, for one of our forms, in this process."""
    import jax

    rounds = train(form, work, num_devices=num_devices, endless=not full)
    spans, compile_seconds, losses = [], None, None
    with jax.default_matmul_precision("float32"):
        if full:
            *_, last = rounds
            losses = [[finite(value) for value in of_trial] for of_trial in last.val_loss.tolist()]
        else:
            # Two rounds, as the second may compile again, for the sharding that the first has left.
            first = timed(rounds, 2, 0)
            spans = [timed(rounds, 1, seconds) for _ in range(repeats)]
            an_epoch = median(span.seconds / span.num_epochs for span in spans)
            compile_seconds = max(0.0, first.seconds - first.num_epochs * an_epoch)
    statistics = jax.devices()[0].memory_stats() or {}
    samples = len(work.trials) * int((work.train_order[:, 0] >= 0).sum())  # an epoch
    return {
        "form": form,
        "study": work.study,
        "compile_seconds": compile_seconds,
        "us_per_sample": [1e6 * span.seconds / (span.num_epochs * samples) for span in spans],
        "samples_timed": [span.num_epochs * samples for span in spans],
        "final_val_loss": losses,
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
    from hw1jax import run, study
    from hw1jax.observer import Observer
    from hw1jax.progress import ConsoleObserver

    regression = study_of("regression")
    seconds: dict[str, list[float]] = {"bar": [], "silent": []}
    for number in range(repeats + 1):
        for name, observer in (("bar", ConsoleObserver()), ("silent", Observer())):
            with tempfile.TemporaryDirectory() as folder:
                order = study.order(regression, num_epochs=200, out=Path(folder))
                results = run.run(order, observer, command="", started=time.time())
            if number:  # the first one compiles
                seconds[name].append(results["timing"]["train_seconds"])
    return {"ratio": median(seconds["bar"]) / median(seconds["silent"]), **seconds}


def whole_search(work: Work, num_trials: int, beside: Path) -> dict[str, Any]:
    """A search of so many trials on the work's samples, folds and epochs, in this process.

    `beside`: where its files are for a while; whoever stops the benchmark removes them with the work's.
    """
    from hw1jax import run, study
    from hw1jax.data import Dataset
    from hw1jax.observer import Observer

    num_folds, num_epochs, _, batch_size = work.train_order.shape
    few = slice(batch_size)  # of the samples, as a search wants a test set
    asked = replace(study_of(work.study), data=Dataset(work.x, work.y, work.x[few], work.y[few]))
    settings = {"num_trials": num_trials, "num_folds": num_folds, "num_epochs": num_epochs, "batch_size": batch_size}
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        order = study.order(asked, **settings, seed=SEED, out=Path(folder))
        results = run.run(order, Observer(), command="", started=time.time())
        files_mb = sum(file.stat().st_size for file in order.folder.rglob("*") if file.is_file()) / 2**20
    return {
        "train_seconds": results["timing"]["train_seconds"],
        "total_seconds": results["timing"]["total_seconds"],  # planning, the refit and the test set as well
        "num_programs": results["num_programs"],
        "samples": int((work.train_order >= 0).sum()) // num_folds,  # of all epochs, for a fold
        "peak_rss_mb": peers.peak_rss_mb(),
        "files_mb": files_mb,
    }


def operations_per_sample(work: Work) -> float:
    """Floating-point operations of loss and gradient, mean over the trials, each at its own widths."""
    from hw1jax import population, space, study
    from hw1jax.training import Data

    asked, size, total = study_of(work.study), work.train_order.shape[3], 0.0
    for trial in work.trials:
        draw = space.draw_from_json(asked.space, trial)
        task, one = study.make_task(asked, space.fixed(asked.space, draw, widest=False)), study.one_trial(asked, draw)
        counts = [population.flops(task, Data(work.x[:n], work.y[:n]), one) for n in (size, 2 * size)]
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
    if options.form == WHOLE:
        return whole_search(work, options.trials, Path(options.work).parent)
    if options.trials:  # the same trials again and again: the same mix of widths for any number
        work = work._replace(trials=[work.trials[n % len(work.trials)] for n in range(options.trials)])
    clock = {"repeats": options.repeats, "seconds": options.seconds, "full": options.full}
    return run_form(options.form, work, **clock, num_devices=options.num_devices)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one form; prints one line of JSON.")
    parser.add_argument("--form", required=True, choices=[*FORMS, WHOLE, "matrix products", "progress bar"])
    parser.add_argument("--work", help="a file that peers.save_work wrote")
    parser.add_argument("--trials", type=int, help="as many trials, the work's again and again")
    parser.add_argument("--num-devices", type=int, help="at most so many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="the least duration of a repeat")
    parser.add_argument("--full", action="store_true", help="the whole search, once")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
