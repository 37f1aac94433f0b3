"""The run of a study: search, refit of the best trial, one look at the test set, results on disk."""

import csv
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hw1jax import environment, evaluation, folds, population, search, storage, studies
from hw1jax.batches import Batches, Trained
from hw1jax.clock import Clock
from hw1jax.data import Dataset, sha256
from hw1jax.folds import Fold
from hw1jax.model_file import Model, save_model
from hw1jax.planning import make_plan
from hw1jax.population import Plan, Problem, Spec
from hw1jax.progress import Observer
from hw1jax.search import Draw, TrialScore
from hw1jax.studies import Settings, Study
from hw1jax.training import Layout

CURVE_POINTS = 400  # where the fitted curve of a regression is drawn


def run(study: Study, settings: Settings, observer: Observer, *, command: str, started: float) -> dict[str, Any]:
    """Runs a study from its data to the files of its folder.

    Args:
      study: which.
      settings: the user's.
      observer: is told how it goes.
      command: how to repeat it, for the record.
      started: `time.time()` at the start of the process.

    Returns:
      What `results.json` holds.

    Raises:
      ValueError: settings or data that can't be run (nothing has been written then), or no trial that didn't diverge.
    """
    studies.check(study, settings)
    data = study.load(settings)
    splits = folds.k_fold(len(data.x_train), settings.num_folds, (settings.seed,))
    shortest = min(len(fold.train) for fold in splits)
    if settings.batch_size > shortest:
        raise ValueError(f"--batch-size {settings.batch_size} is more than a fold's {shortest} training samples")
    folder = studies.folder(study, settings)
    studies.check_folder(folder)
    clock = Clock()
    folder.mkdir(parents=True, exist_ok=True)
    optuna_study = search.open_study(folder / "journal.log", study.name, sampler=settings.sampler, seed=settings.seed)
    config = search.claim(optuna_study, _config(study, settings, data), folder)
    observer.start(study.title, settings.num_trials, settings.num_folds, settings.num_epochs)
    plan = Plan(**config["plan"] | {"layout": Layout(**config["plan"]["layout"])})
    problem = _problem(study, settings, plan, data, splits)
    curve_x = _curve_inputs(study, data)

    trials, histories = [], []
    with clock.measure("train_seconds", threads=plan.num_devices if plan.own_widths else 1):
        batches = Batches(folder / "batches" / _digest(config), study, problem, settings.seed, curve_x, observer)
        for batch in search.search(
            optuna_study,
            studies.space_of(settings),
            batches.train,
            num_trials=settings.num_trials,
            batch_size=plan.slots,
        ):
            trials += batch
            histories.append(batches.read(batch[0].number))
            observer.trials(trials)
    history = Trained(*(np.concatenate(part)[: len(trials)] for part in zip(*histories, strict=True)))
    _write_trials(folder / "trials.csv", trials)
    best = search.best(trials)
    if best is None:
        raise ValueError(f"every trial diverged, see {folder / 'trials.csv'}; give a lower --learning-rate range")

    with clock.measure("refit_seconds"):
        model, refit_train_loss = refit(study, settings, data, best.draw, observer)
    observer.stage("looking at the test set")
    with clock.measure("test_seconds"):
        test_outputs = model.predict(data.x_test)
    save_model(folder / "model.msgpack", model)
    arrays = history._asdict() | {"refit_train_loss": refit_train_loss, "test_outputs": test_outputs}
    if len(curve_x):
        arrays |= {"curve_x": curve_x, "curve_outputs": model.predict(curve_x[:, None])[:, 0]}
    storage.write_arrays(folder / "histories.npz", arrays)
    results = {
        "study": study.name,
        "title": study.title,
        "command": command,
        "config": config | {"num_trials": settings.num_trials},
        "num_programs": len(trials) if plan.own_widths else 1,
        "environment": environment.describe(),
        "inputs": {name: path and str(path) for name, path in studies.inputs(settings).items()},
        "best": {
            "number": best.number,
            "params": best.draw.as_dict(),
            "mean_val_loss": best.mean,
            "std_val_loss": best.std,
        },
        "test": score(study, test_outputs, data.y_test),
        "reported": {
            "params": study.reported.best.as_dict(),
            "test_loss": study.reported.test_loss,
            "test_accuracy": study.reported.test_accuracy,
        },
        "trials": {"complete": sum(t.complete for t in trials), "failed": sum(not t.complete for t in trials)},
        "timing": clock.seconds() | {"total_seconds": time.time() - started},
    }
    storage.write_json(folder / "results.json", results)
    observer.finish(results, folder)
    return results


def refit(study: Study, settings: Settings, data: Dataset, draw: Draw, observer: Observer) -> tuple[Model, np.ndarray]:
    """Trains one network with these hyperparameters on all training data -> (model, train_loss [epoch]).

    It is fold k of the cross-validation, at its own widths. Its initial parameters are those of trial number 0, so that
    hyperparameters which belong to no trial (the report's best) can be refitted as well.
    """
    everything = Fold(np.arange(len(data.x_train)), np.arange(0))
    problem = _problem(
        study, settings, Plan(slots=1, layout=study.layout), data, [everything], draw, first_fold=settings.num_folds
    )
    train_loss = []
    key, number = jax.random.key(settings.seed), np.zeros(1, int)
    for step in population.train(problem, key, number, studies.as_arrays([draw])):
        train_loss.append(step.train_loss[0, 0])
        observer.epochs("refit of the best trial", step.num_epochs, settings.num_epochs, None)
    params = jax.tree.map(lambda a: np.asarray(a[0, 0]), step.state.params)
    return Model(study.name, draw, params), np.concatenate(train_loss)


def score(study: Study, outputs: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Loss, and for a classifier accuracy and confusion matrix, of outputs [example, output] on y."""
    result = {"loss": float(np.mean(study.loss(outputs, y))), "accuracy": None, "confusion": None}
    if study.classes:
        result["accuracy"] = evaluation.accuracy(outputs, y)
        result["confusion"] = evaluation.confusion_matrix(outputs, y).tolist()
    return result


def _problem(
    study: Study,
    settings: Settings,
    plan: Plan,
    data: Dataset,
    splits: list[Fold],
    draw: Draw | None = None,
    first_fold: int = 0,
) -> Problem:
    """The study as a population of at most the space's widths, or of a draw's own."""
    widths = draw or studies.widest(settings)
    task = studies.make_task(study, widths.channels, widths.hidden_units)
    per_call = max(n for n in range(1, study.epochs_per_call + 1) if settings.num_epochs % n == 0)
    spec = Spec(settings.num_epochs, settings.batch_size, (settings.seed,), per_call, first_fold)
    return population.place(task, plan, spec, data.x_train, data.y_train, splits)


def _config(study: Study, settings: Settings, data: Dataset) -> dict[str, Any]:
    """All that the results depend on but the number of trials; a folder belongs to one such configuration."""
    chosen = asdict(settings)
    for name in ("num_trials", "out", "quick", "widths", "members_per_program", "data_dir", "train_csv", "test_csv"):
        chosen.pop(name, None)
    plan = make_plan(study, settings, data)
    return chosen | {"data_sha256": sha256(data), "plan": asdict(plan) | {"layout": plan.layout._asdict()}}


def _digest(config: dict[str, Any]) -> str:
    """A short name for a configuration: a batch trained under another one is not taken for this one's."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _curve_inputs(study: Study, data: Dataset) -> np.ndarray:
    if study.classes:
        return np.zeros(0, np.float32)
    both = np.concatenate([data.x_train, data.x_test])
    return np.linspace(both.min(), both.max(), CURVE_POINTS, dtype=np.float32)


def _write_trials(path: Path, trials: Sequence[TrialScore]) -> None:
    """trials.csv: a row a trial, in scikit-learn's words."""
    text = io.StringIO()
    rows = [
        {"number": trial.number, "state": "complete" if trial.complete else "failed"}
        | trial.draw.columns()
        | {f"split{i}_val_loss": value for i, value in enumerate(trial.scores)}
        | {"mean_val_loss": trial.mean, "std_val_loss": trial.std, "rank": rank}
        for trial, rank in zip(trials, search.ranks(trials), strict=True)
    ]
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(path, text.getvalue().encode())
