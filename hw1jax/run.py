"""The run of a study: search, refit of the best trial, one look at the test set, results on disk."""

import csv
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from hw1jax import environment, evaluation, folds, hosts, population, search, storage, studies
from hw1jax.batches import Batches, Checkpoint, Stopped, Trained, follow
from hw1jax.clock import Clock
from hw1jax.data import Dataset, sha256
from hw1jax.folds import Fold
from hw1jax.layout import Layout
from hw1jax.model_file import Model, load_model, save_model
from hw1jax.planning import make_layout, make_plan, make_problem
from hw1jax.population import Plan
from hw1jax.progress import Observer
from hw1jax.search import TrialScore
from hw1jax.space import Draw
from hw1jax.studies import Settings, Study

CURVE_POINTS = 400  # where the fitted curve of a regression is drawn
# The settings that belong to a search's identity; the plan and the data's digest stand for others.
IDENTITY = ("num_epochs", "batch_size", "hidden_units", "num_folds", "seed", "sampler", "learning_rate", "l2")
IDENTITY += ("optimizers", "precision", "channels")
Function = TypeVar("Function", bound=Callable[..., Any])


def _as_exactly_as_asked(function: Function) -> Function:
    """Computes in the precision of the settings: the one place that applies what `config` records."""

    @wraps(function)
    def wrapped(study: Study, settings: Settings, *args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(settings.precision):
            return function(study, settings, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


@_as_exactly_as_asked
def run(
    study: Study,
    settings: Settings,
    observer: Observer,
    *,
    command: str,
    started: float,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Runs a study from its data to the files of its folder, or goes on with it, or shares it with other processes.

    Args:
      study: which.
      settings: the user's.
      observer: is told how it goes.
      command: how to repeat it, for the record.
      started: `time.time()` at the start of the process.
      stop: training stops soon after it is set.

    Returns:
      What `results.json` holds, the test loss None where the refit diverged; nothing in the processes that only help
      process 0 (see `hosts`).

    Raises:
      ValueError: settings or data that can't be run (nothing has been written then), or no trial that didn't diverge.
      batches.Stopped: `stop` was set; the same call goes on from there.
    """
    studies.check(study, settings)
    data = study.load(settings)
    splits = folds.k_fold(len(data.x_train), settings.num_folds, (settings.seed,))
    shortest = min(len(fold.train) for fold in splits)
    if settings.batch_size > shortest:
        raise ValueError(f"--batch-size {settings.batch_size} is more than a fold's {shortest} training samples")
    folder = studies.folder(study, settings)
    studies.check_folder(folder)
    config = _config(study, settings, data, splits)
    hosts.agree(config | {"devices of this process": jax.local_device_count()})
    if hosts.follows():
        return _follow(study, settings, data, splits)
    clock = Clock()
    alone = partial(storage.lock, folder / ".search.lock")
    with hosts.leading():
        with storage.new_folder(folder, folder / ".search.lock"):
            optuna_study = search.open_study(
                folder / "journal.log",
                study.name,
                sampler=settings.sampler,
                seed=settings.seed,
                url=settings.storage,
            )
            config = search.claim(optuna_study, config, folder)
            before = _results(folder)
        observer.start(study.title, settings.num_trials, settings.num_folds, settings.num_epochs)
        if settings.reproducible and jax.default_backend() != "cpu" and not environment.is_reproducible():
            observer.note("not reproducible: XLA_FLAGS must say so before JAX starts (environment.make_reproducible)")
        plan = _plan_of(config)
        hosts.tell(config)
        problem = make_problem(study, settings, plan, data, splits)
        curve_x = _curve_inputs(study, data)

        trials: list[TrialScore] = []
        histories: dict[int, Trained] = {}  # by each batch's first trial
        place = folder / "batches" / _digest(config)
        stop = stop or threading.Event()
        batches = Batches(place, study, problem, settings.seed, curve_x, observer, stop)
        with clock.measure("train_seconds", threads=plan.num_devices if plan.own_widths else 1):
            for batch in search.search(
                optuna_study,
                studies.space_of(settings),
                batches.train,
                num_trials=settings.num_trials,
                batch_size=plan.slots,
                alone=alone,
                note=observer.note,
            ):
                trials = sorted([*trials, *batch])
                histories[batch[0].number] = batches.read({trial.number: trial.draw for trial in batch})
                observer.trials(trials)
    in_order = [histories[first] for first in sorted(histories)]
    history = Trained(*(np.concatenate(part) for part in zip(*in_order, strict=True)))
    best = search.best(trials)
    if best is None:
        with storage.results_lock(folder):
            _write_trials(folder / "trials.csv", trials, history)
        raise ValueError(f"every trial diverged, see {folder / 'trials.csv'}; give a lower --learning-rate range")

    with storage.lock(folder / ".refit.lock"):  # the first of several processes trains, the others find the model
        now = _results(folder)
        if now != before and now and (more := now["config"]["num_trials"]) > settings.num_trials:
            observer.note(f"a search of {more} trials has ended in {folder} meanwhile: its results stay")
            observer.finish(now, folder)
            return now
        with clock.measure("refit_seconds"):
            checkpoint = Checkpoint(place / f"refit-{best.number}.checkpoint")
            model, refit_train_loss = _kept_refit(study, settings, folder, best) or refit(
                study, settings, data, best.draw, observer, checkpoint, stop
            )
        observer.stage("looking at the test set")
        with clock.measure("test_seconds"):
            test_outputs = model.predict(data.x_test)
        arrays = {"format": np.array(storage.FORMAT)} | history._asdict()
        arrays |= {"refit_number": np.array(best.number), "refit_train_loss": refit_train_loss}
        arrays["test_outputs"] = test_outputs
        if len(curve_x):
            arrays |= {"curve_x": curve_x, "curve_outputs": model.predict(curve_x[:, None])[:, 0]}
        test = score(study, test_outputs, data.y_test)
        results = {
            "format": storage.FORMAT,
            "study": study.name,
            "title": study.title,
            "command": command,
            "config": config | {"num_trials": settings.num_trials},
            "num_programs": len(trials) if plan.own_widths else 1,
            "halvings": batches.halvings,
            "environment": environment.describe() | environment.numerics(),
            "inputs": {name: path and str(path) for name, path in studies.inputs(settings).items()},
            "best": {
                "number": best.number,
                "params": best.draw.as_dict(),
                "mean_val_loss": best.mean,
                "std_val_loss": best.std,
            },
            "refit": {"state": "complete" if model.is_finite else "diverged", "failure": _failure(model, test)},
            "test": test,
            "reported": {
                "params": study.reported.best.as_dict(),
                "test_loss": study.reported.test_loss,
                "test_accuracy": study.reported.test_accuracy,
            },
            "trials": {"complete": sum(t.complete for t in trials), "failed": sum(not t.complete for t in trials)},
            "timing": clock.seconds() | {"total_seconds": time.time() - started},
        }
        with storage.results_lock(folder):
            _write_trials(folder / "trials.csv", trials, history)
            storage.write_arrays(folder / "histories.npz", arrays)
            if model.is_finite:
                save_model(folder / "model.msgpack", model)  # after the histories: where it is, they are
            else:
                (folder / "model.msgpack").unlink(missing_ok=True)  # the best model of fewer trials
            storage.write_json(folder / "results.json", results)
        for left_over in place.glob("refit-*.checkpoint"):
            left_over.unlink(missing_ok=True)
    observer.finish(results, folder)
    return results


def _follow(study: Study, settings: Settings, data: Dataset, splits: list[Fold]) -> dict[str, Any]:
    """What the processes other than 0 do: their part of the search. They write nothing, and return nothing."""
    if config := hosts.hear():
        problem = make_problem(study, settings, _plan_of(config), data, splits)
        follow(study, problem, settings.seed, _curve_inputs(study, data))
    return {}


def _plan_of(config: dict[str, Any]) -> Plan:
    """The plan of a stored configuration.

    Raises:
      ValueError: it needs more devices than there are here.
    """
    plan = Plan(**config["plan"] | {"layout": Layout(**config["plan"]["layout"])})
    if plan.num_devices > len(jax.devices()) and not plan.own_widths:
        raise ValueError(
            f"this search was begun on {plan.num_devices} devices, here are {len(jax.devices())}: go on with it where "
            "there are as many (on a CPU, with JAX_NUM_CPU_DEVICES), or give another --out"
        )
    if hosts.are_several() and (plan.own_widths or plan.num_devices < len(jax.devices())):
        raise ValueError(
            "several processes train one program on all their devices: give --widths padded, no --num-devices, and "
            "trials enough for all devices"
        )
    return plan


def _results(folder: Path) -> dict[str, Any]:
    """What results.json holds; nothing if there is none, or none that can be read."""
    try:
        results = json.loads((folder / "results.json").read_text())
        return results if isinstance(results["config"]["num_trials"], int) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _kept_refit(study: Study, settings: Settings, folder: Path, best: TrialScore) -> tuple[Model, np.ndarray] | None:
    """What an earlier run of the same search has refitted, if it was this trial."""
    try:
        model = load_model(folder / "model.msgpack")
        arrays = storage.read_arrays(folder / "histories.npz")
        train_loss = arrays["refit_train_loss"]
    except (FileNotFoundError, KeyError, ValueError):
        return None  # none yet, or damaged: it is made anew
    # A process that was killed between the two files may have left those of two trials.
    numbers = model.study, model.draw, int(arrays.get("refit_number", best.number))
    same = numbers == (study.name, best.draw, best.number) and train_loss.shape == (settings.num_epochs,)
    return (model, train_loss) if same else None


@_as_exactly_as_asked
def refit(
    study: Study,
    settings: Settings,
    data: Dataset,
    draw: Draw,
    observer: Observer,
    checkpoint: Checkpoint | None = None,
    stop: threading.Event | None = None,
) -> tuple[Model, np.ndarray]:
    """Trains one network with these hyperparameters on all training data -> (model, train_loss [epoch]).

    It is fold k of the cross-validation, at its own widths. Its initial parameters are those of trial number 0, so that
    hyperparameters which belong to no trial (the report's best) can be refitted as well. With a checkpoint it goes on
    where an earlier call has put down its state, which it does now and then, and when `stop` is set.

    Raises:
      batches.Stopped: `stop` was set.
    """
    everything = Fold(np.arange(len(data.x_train)), np.arange(0))
    problem = make_problem(
        study,
        settings,
        Plan(slots=1, layout=make_layout(study, settings, data)),
        data,
        [everything],
        draw,
        first_fold=settings.num_folds,
    )
    hyperparameters = studies.as_arrays([draw])
    state = population.start(problem, jax.random.key(settings.seed), np.zeros(1, int), hyperparameters)
    state, done, losses = checkpoint.read(state) if checkpoint else (state, 0, [])
    state = population.put(problem, state)
    for step in population.resume(problem, state, hyperparameters, first_epoch=done):
        state, done = step.state, step.num_epochs
        losses.append((step.train_loss, np.full_like(step.train_loss, np.nan)))  # nothing is held out
        observer.epochs("refit of the best trial", done, settings.num_epochs, None)
        stopping = stop is not None and stop.is_set()
        if checkpoint and (stopping or (checkpoint.is_due() and done < settings.num_epochs)):
            checkpoint.write(state, done, losses)
        if stopping:
            raise Stopped
    params = jax.tree.map(lambda a: np.asarray(a[0, 0]), state.params)
    return Model(study.name, draw, params), np.concatenate([train_loss[0, 0] for train_loss, _ in losses])


def score(study: Study, outputs: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Loss, and for a classifier accuracy and confusion matrix, of outputs [example, output] on y.

    Everything is None where the loss is not finite.
    """
    loss = float(np.mean(study.loss(outputs, y)))
    result = {"loss": loss if np.isfinite(loss) else None, "accuracy": None, "confusion": None}
    if study.classes and np.isfinite(loss):
        result["accuracy"] = evaluation.accuracy(outputs, y)
        result["confusion"] = evaluation.confusion_matrix(outputs, y).tolist()
    return result


def _failure(model: Model, test: dict[str, Any]) -> str | None:
    """Why there is no test loss, in a line; None if there is one."""
    if not model.is_finite:
        return "the refit of the best trial diverged; give a lower --learning-rate range"
    return None if test["loss"] is not None else "the test loss is not finite: outputs or labels are too large"


def _config(study: Study, settings: Settings, data: Dataset, splits: list[Fold]) -> dict[str, Any]:
    """All that the results depend on but the number of trials; a folder belongs to one such configuration."""
    chosen = {name: value for name, value in asdict(settings).items() if name in IDENTITY}
    plan = make_plan(study, settings, data, splits)
    stands_for = {"data_sha256": sha256(data), "plan": asdict(plan) | {"layout": plan.layout._asdict()}}
    return chosen | stands_for | {"format": storage.FORMAT}


def _digest(config: dict[str, Any]) -> str:
    """A short name for a configuration: a batch trained under another one is not taken for this one's."""
    config = {name: value for name, value in config.items() if name != "format"}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _curve_inputs(study: Study, data: Dataset) -> np.ndarray:
    if study.classes:
        return np.zeros(0, np.float32)
    both = np.concatenate([data.x_train, data.x_test])
    return np.linspace(both.min(), both.max(), CURVE_POINTS, dtype=np.float32)


def _write_trials(path: Path, trials: Sequence[TrialScore], history: Trained) -> None:
    """trials.csv: a row a trial, in scikit-learn's words; a failed one says in which epoch it diverged."""
    text = io.StringIO()
    finite = np.all(np.isfinite(history.train_loss + history.val_loss), axis=1)  # [trial, epoch]
    rows = [
        {"number": trial.number, "state": "complete" if trial.complete else "failed"}
        | trial.draw.columns()
        | {f"split{i}_val_loss": value for i, value in enumerate(trial.scores)}
        | {"mean_val_loss": trial.mean, "std_val_loss": trial.std, "rank": rank}
        | {"diverged_epoch": "" if trial.complete else 1 + int(np.argmin(own))}
        for trial, rank, own in zip(trials, search.ranks(trials), finite, strict=True)
    ]
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(path, text.getvalue().encode())
