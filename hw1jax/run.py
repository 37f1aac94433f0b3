"""The run of a study: search, refit of the best trial, one look at the test set, results on disk."""

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, NamedTuple

import jax
import numpy as np

from hw1jax import environment, evaluation, folds, population, search, storage, studies
from hw1jax.data import Dataset
from hw1jax.folds import Fold
from hw1jax.model_file import Model, save_model
from hw1jax.population import Plan, Problem, Progress, Spec
from hw1jax.progress import Observer
from hw1jax.search import Draw, TrialScore
from hw1jax.studies import Settings, Study
from hw1jax.training import Layout, Task

MOST_SLOTS = 100  # trials a program: bounds the memory, and what a stopped search loses
FLOPS_A_SECOND, SHARE_SAVED, PROGRAM_SECONDS = 3e10, 0.4, 4  # a CPU core's; of own widths; to compile one
TPE_BATCHES = 5  # batches that a TPE search has at least
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


class Trained(NamedTuple):
    """A batch of trials after its last epoch."""

    train_loss: np.ndarray  # float32 [trial, fold, epoch]
    val_loss: np.ndarray  # float32 [trial, fold, epoch]
    curve_fold_outputs: np.ndarray  # float32 [trial, fold, point]: what a regression predicts along its inputs


class Batches:
    """Trains batches of trials, each kept as a file, so that none is trained twice."""

    def __init__(
        self, folder: Path, study: Study, problem: Problem, seed: int, curve_x: np.ndarray, observer: Observer
    ):
        self._folder, self._study, self._problem = folder, study, problem
        self._key, self._curve_x, self._observer = jax.random.key(seed), curve_x, observer

    def train(self, draws: dict[int, Draw]) -> dict[int, np.ndarray]:
        """{trial number: draw} -> {trial number: validation loss of each fold after the last epoch}."""
        path = self._path(min(draws))
        trained = self.read(min(draws)) if path.exists() else None
        if trained is None or len(trained.val_loss) < len(draws):
            trained = self._train(draws)
            storage.write_arrays(path, trained._asdict())
        return {number: trained.val_loss[i, :, -1] for i, number in enumerate(draws)}

    def read(self, first: int) -> Trained:
        """The batch whose first trial has this number."""
        return Trained(**storage.read_arrays(self._path(first)))

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:06d}.npz"

    def _train(self, draws: dict[int, Draw]) -> Trained:
        train = self._train_each if self._problem.plan.own_widths else self._train_together
        return train(list(draws), list(draws.values()))

    def _train_together(self, numbers: list[int], draws: list[Draw]) -> Trained:
        """All in one program, padded to the same widths."""
        num_trials, slots = len(numbers), self._problem.plan.slots
        filled = np.minimum(np.arange(slots), num_trials - 1)  # empty slots train the last trial once more
        hyperparameters = studies.as_arrays([draws[i] for i in filled])
        steps = []
        for step in population.train(self._problem, self._key, np.array(numbers)[filled], hyperparameters):
            steps.append(step)
            self._tell(numbers, step.num_epochs, step.val_loss[:num_trials, :, -1])
        trained = self._trained(self._problem.task, steps, hyperparameters)
        return Trained(*(part[:num_trials] for part in trained))

    def _train_each(self, numbers: list[int], draws: list[Draw]) -> Trained:
        """Each in a program of its own, at its own widths, the longest first."""
        order = sorted(range(len(draws)), key=lambda i: -studies.num_parameters(self._study, draws[i]))
        draws = [draws[i] for i in order]
        tasks = [studies.make_task(self._study, draw.channels, draw.hidden_units) for draw in draws]
        hyperparameters = studies.as_arrays(draws)
        steps: list[list[Progress]] = [[] for _ in draws]
        losses = np.full((len(draws), len(self._problem.folds)), np.nan)
        lock = Lock()

        def watch(place: int, step: Progress) -> None:
            with lock:
                steps[place].append(step)
                losses[place] = step.val_loss[0, :, -1]
                self._tell(numbers, sum(s[-1].num_epochs for s in steps if s) / len(draws), losses)

        population.train_each(self._problem, tasks, self._key, np.array(numbers)[order], hyperparameters, watch)
        parts = [
            self._trained(task, own, jax.tree.map(lambda a: a[i : i + 1], hyperparameters))  # noqa: B023
            for i, (task, own) in enumerate(zip(tasks, steps, strict=True))
        ]
        return Trained(*(np.concatenate(part)[np.argsort(order)] for part in zip(*parts, strict=True)))

    def _trained(self, task: Task, steps: list[Progress], hyperparameters: studies.Hyperparameters) -> Trained:
        train_loss, val_loss = (
            np.concatenate([getattr(s, name) for s in steps], axis=2) for name in ("train_loss", "val_loss")
        )
        curves = np.zeros((*val_loss.shape[:2], 0), np.float32)
        if len(self._curve_x):
            x = self._curve_x[:, None]
            curves = np.asarray(population.predict_all(task, steps[-1].state.params, hyperparameters, x)[..., 0])
        return Trained(train_loss, val_loss, curves)

    def _tell(self, numbers: list[int], num_epochs: float, val_loss: np.ndarray) -> None:
        what = f"trials {numbers[0]}-{numbers[-1]}"
        self._observer.epochs(what, num_epochs, self._problem.spec.num_epochs, val_loss)


def refit(study: Study, settings: Settings, data: Dataset, draw: Draw, observer: Observer) -> tuple[Model, np.ndarray]:
    """Trains one network with these hyperparameters on all training data -> (model, train_loss [epoch]).

    It is fold k of the cross-validation, at its own widths.
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
    for name in ("num_trials", "out", "quick", "widths", "data_dir", "train_csv", "test_csv"):
        chosen.pop(name, None)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(part) for part in data)).hexdigest()
    wanted = min(settings.num_trials, MOST_SLOTS)
    if settings.sampler == "tpe":  # it learns from one batch for the next, so there must be several
        wanted = -(-wanted // TPE_BATCHES)
    shapes = studies.parameter_shapes(study, studies.widest(settings))
    plan = population.make_plan(wanted, settings.num_folds, shapes, study.layout)
    if _own_widths_pay(study, settings, data, plan):
        plan = replace(plan, slots=wanted, trials_at_once=1, own_widths=True)
    return chosen | {"data_sha256": digest, "plan": asdict(plan) | {"layout": plan.layout._asdict()}}


def _digest(config: dict[str, Any]) -> str:
    """A short name for a configuration: a batch trained under another one is not taken for this one's."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _own_widths_pay(study: Study, settings: Settings, data: Dataset, plan: Plan) -> bool:
    """Whether programs at the trials' own widths save more than they take to compile; on accelerators, never."""
    if settings.widths != "auto" or jax.devices()[0].platform != "cpu":
        return settings.widths == "exact"
    widest = studies.widest(settings)
    task = studies.make_task(study, widest.channels, widest.hidden_units)
    flops = population.flops(
        task, data.x_train[:200], data.y_train[:200], jax.tree.map(lambda a: a[0], studies.as_arrays([widest]))
    )
    samples = plan.slots * (settings.num_folds - 1) * len(data.x_train) * settings.num_epochs
    saved = SHARE_SAVED * samples * flops / 200 / FLOPS_A_SECOND
    return saved > PROGRAM_SECONDS * plan.slots


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


class Clock:
    """Where the time goes: seconds of each part, and of compiling, which the parts leave out."""

    def __init__(self) -> None:
        self._seconds = {"compile_seconds": 0.0}
        self._compiling: dict[int, list[tuple[float, float]]] = {}  # {thread: [(begin, end)]}
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            begin = end - duration
            # A function traced within another is reported first, and again as a part of it.
            earlier = [span for span in self._compiling.get(get_ident(), []) if span[0] < begin]
            self._compiling[get_ident()] = [*earlier, (begin, end)]

    @contextmanager
    def measure(self, name: str, threads: int = 1) -> Iterator[None]:
        """Counts the time of the block as `name`; `threads` is how many threads compile in it at a time."""
        begin = time.perf_counter()
        self._compiling.clear()
        yield
        compiling = sum(end - begin for spans in self._compiling.values() for begin, end in spans) / threads
        self._seconds["compile_seconds"] += compiling
        self._seconds[name] = time.perf_counter() - begin - compiling

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and of compiling."""
        return dict(self._seconds)
