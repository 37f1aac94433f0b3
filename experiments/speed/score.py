"""How soon a search finds what it finds: its best validation loss against the time since its process started.

    cd experiments; python -m speed.score --work FILE --side 'ours, halving' --started SECONDS --seed 0 --trials 150

writes lines of JSON while it searches: seconds since `--started` (the time at which its parent started it), the mean
over the folds of one trial's validation loss, the epochs that all trials together have been trained by then, and which
of its processes says so. `trace` makes of them the running minimum: the best seen so far.

Reading the data, imports and compiling are in the clock of every side. All sides read the same file (`peers.Work`) with
the samples, the folds and the first random draws of the space for the seed. A side ends where its search does, without
a refit.

- Ours is the search of the experiment itself (`hw1jax.run`), with an empty compilation cache; with halving its
  parameters are averaged too (`homework.HALVING`). It is told the losses after each call of its program: 50 epochs of
  the regression, one epoch of the image studies.
- Optuna prunes with HyperbandPruner on the mean over the folds: all folds of a trial advance epoch by epoch. Two
  processes share a journal. PyTorch trains in the strongest of the eager forms of peers.py, and sees the losses after
  each epoch; the mean is reported to Optuna at multiples of the least resource, as it can prune nowhere else and each
  report is written to the disk. The draws and the order of the minibatches are ours, and cost it nothing.
- scikit-learn's HalvingRandomSearchCV starts a candidate anew on each rung (its resource is `max_iter`), and tells a
  loss only at the end of a fit. Its MLP has no RMSprop: the candidates are the first draws without it. The order of
  minibatches and the initial parameters are its own. Its epochs are counted as it trains them, again on each rung.

Needs numpy alone; each side imports what it takes.
"""

import signal

if __name__ in ("__main__", "__mp_main__"):  # and in the processes that it starts
    # Ctrl-C ends it whatever it is at.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speed import peers

OURS, HALVING, OPTUNA, SKLEARN = SIDES = (
    "ours",
    "ours, halving",
    "Optuna + PyTorch eager, HyperbandPruner",
    "scikit-learn HalvingRandomSearchCV",
)
PEERS = (OPTUNA, SKLEARN)
FACTOR = 3  # of all that halve
LEAST_SECONDS = 0.1  # between lines that bring nothing better
# The fastest eager form of each study in the table of benchmark.md.
TRAINERS = {"regression": "Vmapped", "fashion_mlp": "Eager", "fashion_cnn": "ChannelsLast"}


def first_rung(num_epochs: int) -> int:
    """The least epochs of the peers' rungs: three times a third, as ours."""
    return max(1, num_epochs // FACTOR**3)


def list_sides(study: str) -> list[str]:
    """Who can search this study."""
    return [side for side in SIDES if side != SKLEARN or study != "fashion_cnn"]


class Trace(NamedTuple):
    """A search as it went, each time something better was found, and its end."""

    seconds: np.ndarray  # [point], since the process started
    loss: np.ndarray  # [point], the least mean over the folds of a trial's validation loss, of all seen so far
    epochs: int  # of all trials together, at the end

    def until(self, loss: float) -> float:
        """Seconds until the best loss was at most this; infinite if it never was."""
        reached = self.seconds[self.loss <= loss]
        return float(reached[0]) if len(reached) else math.inf


def trace(lines: Iterable[dict[str, Any]]) -> Trace:
    """What the lines of a side's processes tell together.

    Raises:
      ValueError: no loss is among them.
    """
    ordered, epochs = sorted(lines, key=lambda line: line["seconds"]), {}
    seconds, losses = [], []
    for line in ordered:
        epochs[line["process"]] = line["epochs"]
        loss = min([math.inf if line["loss"] is None else line["loss"], *losses[-1:]])
        if math.isfinite(loss) and (not losses or loss < losses[-1]):
            seconds.append(line["seconds"])
            losses.append(loss)
    if not losses:
        raise ValueError("it has told no loss")
    return Trace(np.array([*seconds, ordered[-1]["seconds"]]), np.array([*losses, losses[-1]]), sum(epochs.values()))


class Teller:
    """Writes a process's lines, each that brings something better and a few of the others."""

    def __init__(self, started: float, process: int = 0):
        self.started, self.process, self.best, self.last = started, process, math.inf, 0.0

    def tell(self, loss: float, epochs: int, *, last: bool = False) -> None:
        now = time.time() - self.started
        better = math.isfinite(loss) and loss < self.best
        if better or last or now - self.last >= LEAST_SECONDS:
            self.best, self.last = min(loss if better else math.inf, self.best), now
            write_line(self.line(now, loss, epochs))

    def line(self, seconds: float, loss: float, epochs: int) -> dict[str, Any]:
        finite = loss if math.isfinite(loss) else None
        return {"seconds": seconds, "loss": finite, "epochs": int(epochs), "process": self.process}


def write_line(line: dict[str, Any]) -> None:
    """As one write, so that lines of several processes don't mix."""
    os.write(sys.stdout.fileno(), (json.dumps(line) + "\n").encode())


def run_side(
    work_file: str | os.PathLike, side: str, *, seed: int, trials: int, python: str = sys.executable, **variables: str
) -> dict[str, Any]:
    """A side's search in a fresh process of the interpreter `python`.

    Returns:
      The lines of its `trace`, and `versions` of what it ran on; or why it can't run here as `skipped`.
    """
    here = str(Path(__file__).parents[1])
    found_here = (
        [here, *sys.path] if python == sys.executable else [here]
    )  # another interpreter has packages of its own
    command = [python, "-m", "speed.score", "--work", os.fspath(work_file), "--side", side]
    command += ["--seed", str(seed), "--trials", str(trials)]
    with tempfile.TemporaryDirectory() as cache:
        compiled = {"JAX_COMPILATION_CACHE_DIR": cache}  # an empty one
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(found_here)} | compiled | variables
        command += ["--started", repr(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    skipped = [line["skipped"] for line in lines if "skipped" in line]
    if done.returncode and not skipped:
        skipped = [f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"]
    if skipped:
        return {"skipped": skipped[0]}
    versions = {name: number for line in lines for name, number in line.get("versions", {}).items()}
    return {"lines": [line for line in lines if "seconds" in line], "versions": versions}


# Ours.


def search_ours(work: peers.Work, teller: Teller, *, seed: int, trials: int, **settings: Any) -> dict[str, str]:
    """The search of the study itself, up to its refit."""
    from dataclasses import replace
    from importlib import import_module

    from hw1jax import brackets, cli, observer, run, study
    from hw1jax.data import Dataset

    cli.use_all_cores()
    stop = threading.Event()

    class Watcher(observer.Observer):
        """Tells the best of the trials that train."""

        def start(
            self, study: study.Study, num_trials: int, num_folds: int, num_epochs: int, work: int | None = None
        ) -> None:
            self.work = num_trials * num_epochs if work is None else work

        def epochs(
            self,
            what: str,
            done: float,
            num_epochs: int,
            scores: np.ndarray | None,
            search_done: float | None = None,
        ) -> None:
            if scores is None or search_done is None:
                stop.set()  # the search is over, the refit isn't measured
                return
            means = scores.mean(axis=1)  # not finite: not trained yet, or diverged
            best = float(np.min(means, initial=math.inf, where=np.isfinite(means)))
            teller.tell(best, round(search_done * self.work), last=search_done >= 1)

    asked = import_module(work.study).STUDY
    num_folds, num_epochs, _, batch_size = work.train_order.shape
    sizes = {"num_trials": trials, "num_folds": num_folds, "num_epochs": num_epochs, "batch_size": batch_size}
    asked = replace(asked, data=Dataset(work.x, work.y, work.x[:10], work.y[:10]), inputs={})  # there is no test
    with tempfile.TemporaryDirectory() as folder:
        order = study.order(asked, **sizes, seed=seed, **settings, out=Path(folder, "out"))
        with contextlib.suppress(brackets.Stopped):
            run.run(order, Watcher(), command="", started=teller.started, stop=stop)
    return {}


# Optuna with PyTorch.


def search_optuna(options: argparse.Namespace) -> dict[str, str]:
    """Two processes of a thread each, which share a journal."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(1 << 32), MALLOC_TRIM_THRESHOLD_=str(1 << 33))  # as in peers.py
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for number in range(2):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, options, number, counter, str(Path(folder, "journal.log")))
            processes.append(context.Process(target=optuna_child, args=arguments, daemon=True))
            processes[-1].start()
            sender.close()
            pipes.append(receiver)
        try:
            answers = [pipe.recv() for pipe in pipes]
        except EOFError:
            raise peers.Skip("a process died: was there enough memory?") from None
        for process in processes:
            process.join()
    for answer in answers:
        if isinstance(answer, str):
            raise peers.Skip(answer)
    return answers[0]


def optuna_child(pipe, options: argparse.Namespace, number: int, counter, journal: str) -> None:
    """What a process runs; it sends its packages' versions, or the reason for not running as text."""
    try:
        pipe.send(optuna_trials(options, Teller(options.started, number), counter, journal))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def optuna_trials(options: argparse.Namespace, teller: Teller, counter, journal: str) -> dict[str, str]:
    """Trials that no process has yet, until there are none."""
    import optuna
    import torch

    peers.torch = torch
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work = peers.load_work(options.work)
    trainer_class, num_epochs = getattr(peers, TRAINERS[work.study]), work.train_order.shape[1]
    folds, resource = list(range(len(work.train_order))), first_rung(num_epochs)
    counts = (work.val_order >= 0).sum(1)
    data = trainer_class.prepare(work)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal)),
        study_name=f"seed {options.seed}",  # which decides the trials' brackets
        load_if_exists=True,
        pruner=optuna.pruners.HyperbandPruner(resource, num_epochs, FACTOR),
    )
    groups = [folds] if trainer_class.folds_together else [[fold] for fold in folds]
    trained, loss = 0, math.inf
    for _ in peers.take(counter, options.trials.__eq__):
        trial, state = study.ask(), optuna.trial.TrialState.COMPLETE
        trainers = [trainer_class(work, data, trial.number, group) for group in groups]
        for epoch in range(num_epochs):
            sums = []
            for trainer, group in zip(trainers, groups, strict=True):
                trainer.train(work.train_order[group, epoch])
                sums.append(peers.on_host(trainer.validate(work.val_order[group])))
            loss, trained = float(np.mean(np.concatenate(sums) / counts)), trained + 1
            teller.tell(loss, trained)
            if not math.isfinite(loss):
                state = optuna.trial.TrialState.FAIL
                break
            if (epoch + 1) % resource == 0:
                trial.report(loss, epoch + 1)
                if trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
        study.tell(trial, loss if state == optuna.trial.TrialState.COMPLETE else None, state)
    teller.tell(loss, trained, last=True)
    return {"torch": torch.__version__, "optuna": optuna.__version__}


# scikit-learn.


class Scored(NamedTuple):
    """What a fit has come to."""

    seconds: float  # since the start
    trial: int
    epochs: int
    loss: float


def score(file: str, started: float, batch_loss: Any, model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """scikit-learn's scorer: puts the loss down in a file as well, in whichever process it is."""
    loss = float(batch_loss(model, x, y))
    line = json.dumps([time.time() - started, model.random_state, model.max_iter, loss]) + "\n"
    with open(file, "ab", buffering=0) as lines:
        lines.write(line.encode())
    return -loss


def search_sklearn(options: argparse.Namespace, teller: Teller) -> dict[str, str]:
    """HalvingRandomSearchCV over the draws that it can train."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    os.environ["PYTHONWARNINGS"] = "ignore"  # in its processes: each fit that ends warns that it has not converged
    warnings.simplefilter("ignore")
    import sklearn
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingRandomSearchCV
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    work = peers.load_work(options.work)
    num_epochs, regression = work.train_order.shape[1], work.study == "regression"
    x, y = peers.ScikitLearn.prepare(work)
    trials = [n for n, trial in enumerate(work.trials) if trial["optimizer"] in peers.ScikitLearn.optimizers]
    settings = [peers.scikit_learn_settings(work, n) for n in trials[: num_epochs // first_rung(num_epochs)]]
    for n, setting in zip(trials, settings, strict=False):
        # `random_state` is the candidate's name, too. No fit may end before its last epoch.
        setting |= {"random_state": n, "shuffle": True, "tol": 0.0, "n_iter_no_change": 10**9}
    folds = [
        (np.sort(order[order >= 0]), part[part >= 0])
        for order, part in zip(work.train_order[:, 0], work.val_order, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scores")
        search = HalvingRandomSearchCV(
            (MLPRegressor if regression else MLPClassifier)(),
            [{name: [value] for name, value in setting.items()} for setting in settings],
            n_candidates=len(settings),
            factor=FACTOR,
            resource="max_iter",
            max_resources=num_epochs,
            min_resources="exhaust",  # so that the last rung is as long as can be
            scoring=partial(score, str(file), options.started, peers.scikit_learn_loss),
            cv=folds,
            refit=False,
            error_score=np.nan,
            random_state=options.seed,
            return_train_score=False,
            n_jobs=2,
        )
        search.fit(x, y)
        scored = [Scored(*json.loads(line)) for line in file.read_text().splitlines()]
    for line in means(scored, len(folds)):
        write_line(teller.line(*line))
    teller.tell(math.inf, sum(each.epochs for each in scored) // len(folds), last=True)
    return {"sklearn": sklearn.__version__}


def means(scored: Iterable[Scored], num_folds: int) -> Iterable[tuple[float, float, int]]:
    """(seconds, mean loss over the folds, epochs by then) whenever a trial's last fold has been scored on a rung."""
    folds: dict[tuple[int, int], list[float]] = {}
    epochs = 0
    for each in sorted(scored):
        of_trial = folds.setdefault((each.trial, each.epochs), [])
        of_trial.append(each.loss)
        if len(of_trial) == num_folds:
            epochs += each.epochs
            yield each.seconds, float(np.mean(of_trial)), epochs


def main() -> None:
    parser = argparse.ArgumentParser(description="Search once; prints lines of JSON.")
    parser.add_argument("--work", required=True, help="a file that peers.save_work wrote")
    parser.add_argument("--side", required=True, choices=SIDES)
    parser.add_argument("--started", required=True, type=float, help="time.time() at the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, required=True, help="as many (scikit-learn: as its rungs have room for)")
    options = parser.parse_args()
    teller = Teller(options.started)
    try:
        if options.side == OPTUNA:
            versions = search_optuna(options)
        elif options.side == SKLEARN:
            versions = search_sklearn(options, teller)
        else:
            import homework

            settings = homework.HALVING if options.side == HALVING else {}
            work = peers.load_work(options.work)
            versions = search_ours(work, teller, seed=options.seed, trials=options.trials, **settings)
        write_line({"versions": versions})
    except (ImportError, peers.Skip) as error:
        write_line({"skipped": str(error)})


if __name__ == "__main__":
    main()
