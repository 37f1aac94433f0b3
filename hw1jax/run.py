"""The run of a study: search, refit of the best trial, one evaluation on a test set, results on disk."""

import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hw1jax import environment, storage
from hw1jax.core import folds, metric_checks, tasks, tracebacks
from hw1jax.data import sha256
from hw1jax.environment import Clock
from hw1jax.progress import default_observer
from hw1jax.results import ensembles, evaluation, results, run_folder, testing
from hw1jax.results import trials as trials_
from hw1jax.results.ensembles import Chosen
from hw1jax.results.results import Results
from hw1jax.results.trained_model import Model
from hw1jax.search import brackets, optuna_search, space_text, study, study_data
from hw1jax.search.brackets import Brackets
from hw1jax.search.networks import Networks
from hw1jax.search.observer import Observer
from hw1jax.search.plan import SearchPlan, make_plan
from hw1jax.search.space import Draw
from hw1jax.search.study import RunConfig, Study
from hw1jax.search.trainer import Trained, Trainer
from hw1jax.search.trial_score import TrialScore
from hw1jax.storage import Folder, Memory


@tracebacks.short
def run_study(
    study_: Study,
    *,
    quick: bool = False,
    inputs: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    executor: Executor | None = None,
    **settings: Any,
) -> Results:
    """Searches a study, refits its best trial and tests it once; resumes the run in `out` if there is one.

    If JAX hasn't been used yet, it uses all cores, and keeps compiled programs in a cache (`use_all_cores`).
    `refit=False` omits the refit; a later call without it adds the refit alone. A study without a test set has no test.

    Args:
      study_: the study.
      quick: use the study's settings for a small run.
      inputs: paths of the study's optional data files, by name.
      observer: receives the progress; default: a progress display on a terminal and in a notebook, nothing elsewhere.
      executor: any `concurrent.futures.Executor`, such as Dask's `client.get_executor(pure=False)`, whose workers
        train; `workers=` splits the jobs for as many. Default: this process's devices.
      **settings: num_trials, and the fields of `study.SearchConfig`, `study.ProgramConfig` and `study.Output`; default:
        the study's own. `out` is the folder of the results. `sampler` may also be a sampler of Optuna's, or a function
        seed -> sampler; `enqueue` is a list of hyperparameters, as in `results.best.params`, of the first trials;
        `callbacks` are functions (study, trial) as of Optuna's `optimize`, called after each trial.

    Returns:
      The results, read from the folder.

    Raises:
      ValueError, TypeError: an invalid study, setting or data, in one line (nothing has been written then); or all
        trials diverged.
      Exception: from a function of the study, with a note on its arguments.
    """
    config = study.run_config(study_, inputs=inputs, quick=quick, **settings)
    environment.use_all_cores(config.program.num_devices)
    how = observer or default_observer(), "hw1jax.run_study", time.time(), threading.Event(), executor
    _, searched = _in_folder(config, *how)
    return results.read_results(config.folder, searched.networks.study)


def run(
    config: RunConfig,
    observer: Observer,
    *,
    command: str,
    started: float,
    stop: threading.Event | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Carries out a run, from the data to the files of its folder; resumes one that was stopped.

    Training stops soon after `stop` is set. The workers of `executor` train; by default, this process's devices.
    `command` is recorded; `started` is `time.time()` at the start of the process.

    Returns:
      The content of `results.json`.

    Raises:
      ValueError, TypeError: an invalid study or data, or another run uses the folder (nothing has been written then);
        or all trials diverged.
      ConnectionError: the executor has lost its workers; the same call resumes.
      jobs.Stopped: `stop` was set; the same call resumes.
    """
    return _in_folder(config, observer, command, started, stop or threading.Event(), executor)[0]


class Searched(NamedTuple):
    """The outcome of a search."""

    networks: Networks
    trials: list[TrialScore]
    history: Trained
    best: TrialScore
    model: Model
    arrays: dict[str, np.ndarray]  # of the refit, for histories.npz
    chosen: Chosen | None = None  # the ensemble of the search

    @property
    def folds_train_loss(self) -> np.ndarray:
        """Float [fold]: the last training losses of the best trial."""
        number, last = self.best.number, self.best.last_epochs
        return self.history.train_loss[number][np.arange(len(last)), last - 1]

    @property
    def refit_problem(self) -> str | None:
        """Why not to predict with the refit, or None."""
        if not self.model.has_refit:
            return None
        if not self.model.is_finite:
            return "the refit of the best trial diverged"
        return evaluation.refit_warning(float(self.arrays["refit_train_loss"][-1]), self.folds_train_loss)


def search(config: RunConfig, observer: Observer, *, check: bool = True) -> Searched:
    """Searches and refits without a test set; without `out`, in memory: it writes no file.

    `check=False` leaves out the checks of the task on the data, for a network that is known to pass them.

    Raises:
      ValueError, TypeError: an invalid study or data; or all trials diverged.
    """
    if config.output.out is not None:
        return _in_folder(config, observer, "hw1jax.run.search", time.time(), threading.Event(), None)[1]
    environment.check_devices()
    with jax.default_matmul_precision(config.search.precision):
        networks = load(config)
        if check:
            networks.check()
        plan = make_plan(networks, config.num_trials, config.program)
        opened = optuna_search.open_storage(None, config.study, config.search.sampler, config.search.seed, config.given)
        begun = _Run(config, networks, {}, plan, observer, Clock(), None, threading.Event())
        return _searched(begun, opened, _trainer(begun, Memory()))


def _in_folder(
    config: RunConfig,
    observer: Observer,
    command: str,
    started: float,
    stop: threading.Event,
    executor: Executor | None,
) -> tuple[dict[str, Any], Searched]:
    """`run` -> (the content of results.json, the search)."""
    environment.check_devices()
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(f"executor= must be a concurrent.futures.Executor, got {type(executor).__name__}")
    if executor is not None and config.program.num_devices is None:  # of a worker
        config = config._replace(program=replace(config.program, num_devices=1))
    clock = Clock(max(0.0, time.time() - started))
    with jax.default_matmul_precision(config.search.precision):
        with clock.measure("check_seconds"):
            networks = load(config)
            identity = _identity(config, networks)
            new = not (config.folder / "journal.log").exists() or config.output.overwrite
            made = make_plan(networks, config.num_trials, config.program) if new else None  # nothing is written yet
        with storage.run_lock(config.folder):
            if config.output.overwrite:
                run_folder.remove(config.folder)
            opened = optuna_search.open_storage(
                config.folder / "journal.log", config.study, config.search.sampler, config.search.seed, config.given
            )
            identity = optuna_search.begin(
                opened,
                identity,
                config.folder,
                new_plan=lambda: (made or make_plan(networks, config.num_trials, config.program)).to_json(),
            )
            parts, planned = config.folder / "brackets" / storage.digest(identity), _plan_of(identity, executor)
            begun = _Run(config, networks, identity, planned, observer, clock, executor, stop, parts.exists())
            trainer = _trainer(begun, Folder(parts))
            searched = _searched(begun, opened, trainer)
            return _write(begun, opened, trainer, searched, command, started), searched


def load(config: RunConfig) -> Networks:
    """Loads a run's data and folds -> its networks.

    Raises:
      ValueError, TypeError: invalid data or folds.
    """
    data = study_data.load_data(config.study, config.inputs)
    splits = study_data.splits_of(config.study, config.search, data)
    return Networks(study.afresh(config.study), config.search, data, splits)


class _Run(NamedTuple):
    """The objects that all steps of a run share."""

    config: RunConfig
    networks: Networks
    identity: dict[str, Any]  # empty for a search in memory
    plan: SearchPlan
    observer: Observer
    clock: Clock
    executor: Executor | None
    stop: threading.Event
    resumed: bool = False  # the folder had some of the search already

    @property
    def folder(self) -> Path:
        return self.config.folder

    @property
    def in_memory(self) -> bool:
        """True for a search without a folder. There may be many in a process, whose refits then share a program."""
        return not self.identity


def _trainer(run: _Run, files: Folder) -> Brackets:
    num_trials = run.config.num_trials
    return Brackets(files, run.networks, run.plan, run.observer, run.stop, num_trials=num_trials, executor=run.executor)


def _searched(run: _Run, opened: Any, trainer: Brackets) -> Searched:
    """Trains all trials, and refits the best one."""
    trials, asked = _search(run, opened, trainer), run.config.study
    history, best = trainer.history(), trials_.best(trials, asked)
    if best is None:
        where = ""
        if not run.in_memory and not (run.folder / "results.json").exists():  # of a longer search
            path = run.folder / "trials.csv"
            trials_.write_trials(path, asked, trials, history.train_loss, history.val)
            where = f", see {path}"
        who = "every trial" + (" of the last rung" if any(trial.state == "pruned" for trial in trials) else "")
        raise ValueError(f"{who} diverged{where}; search smaller learning rates")
    model, arrays = _trained(run, trainer, best)
    chosen, most = None, run.config.search.ensemble
    if most is not None:
        run.observer.stage("choosing an ensemble of the search")
        with run.clock.measure("ensemble_seconds"):
            chosen = ensembles.choose(run.networks, trainer, trials, best, most, refit=run.config.output.refit)
        model = model._replace(members=chosen.members)
    return Searched(run.networks, trials, history, best, model, arrays, chosen)


def _write(
    run: _Run, opened: Any, trainer: Brackets, searched: Searched, command: str, started: float
) -> dict[str, Any]:
    """Evaluates the test set and writes all files of the folder -> the content of results.json."""
    _, trials, history, best, model, _, chosen = searched
    study_, data, arrays = run.config.study, run.networks.data, searched.arrays
    if data.has_test_set:
        run.observer.stage("testing")
        with run.clock.measure("test_seconds"):
            arrays = arrays | testing.outputs(model, data)
    written = {
        "format": storage.FORMAT,
        "study": study_.name,
        "title": study_.shown,
        "command": command,
        "config": run.identity | {"num_trials": len(trials)},
        "stopped": optuna_search.stopped(opened, len(trials), run.config.num_trials),
        "num_programs": len(trainer.programs),
        "splits": trainer.splits,
        "environment": environment.describe() | environment.numerics(),
        "inputs": {name: path and str(path) for name, path in run.config.inputs.items()},
        "trials": {state: sum(t.state == state for t in trials) for state in ("complete", "pruned", "failed")},
        "rungs": run_folder.rungs(trials, run.plan.of(len(trials)), trainer.seconds),
        "best": run_folder.summary(best),
        **testing.scores(model, data.y_test, best, arrays, searched.folds_train_loss),
        **({"search_ensemble": testing.of_search(chosen, model, data.y_test, arrays)} if chosen else {}),
        "reference": run_folder.reference(study_),
        "timing": run.clock.seconds() | {"total_seconds": time.time() - started, "resumed": run.resumed},
    }
    some = data.x_test if data.has_test_set else data.x_train
    run_folder.write(run.folder, study_, written, trials, history.train_loss, history.val, arrays, model, some)
    run.observer.finish(written, run.folder)
    return written


def _search(run: _Run, opened: Any, trainer: Brackets) -> list[TrialScore]:
    """Trains all trials of the search, bracket by bracket."""
    asked, num_epochs = run.config.study, run.config.search.num_epochs
    if rare := folds.rare_classes(run.networks.data.y_train, run.networks.folds, asked.classes):
        run.observer.note(rare)
    if missing := metric_checks.in_words(run.networks.undefined):
        run.observer.note(missing)
    run.observer.start(asked, run.config.num_trials, len(run.networks.folds), num_epochs, trainer.work)
    if run.config.program.reproducible and jax.default_backend() != "cpu" and not environment.is_reproducible():
        run.observer.note("not reproducible: XLA_FLAGS must say so before JAX starts (environment.make_reproducible)")
    numbers = [bracket.numbers for bracket in run.plan.of(run.config.num_trials)]
    threads = max(rung.num_side_by_side for rung in run.plan.rungs)
    trials: list[TrialScore] = []
    num_known, end = optuna_search.num_finished(opened), time.monotonic() + (run.config.program.timeout or math.inf)
    more = {"num_epochs": num_epochs, "callbacks": run.config.given.callbacks}
    with run.clock.measure("train_seconds", threads=threads):
        for bracket in optuna_search.search(opened, asked, trainer.train, brackets=numbers, **more):
            if not run.in_memory:
                storage.sync(run.folder / "journal.log")
            trainer.check(bracket)
            trials += bracket
            run.observer.trials(trials, asked)
            if len(trials) > num_known and time.monotonic() > end:  # each call adds trials
                opened.stop("timeout=")
    return trials


def _trained(run: _Run, trainer: Brackets, best: TrialScore) -> tuple[Model, dict[str, Any]]:
    """The best trial's model, and arrays of its refit and of its fold models for histories.npz."""
    params, state, arrays = None, None, {}
    with run.clock.measure("refit_seconds"):
        if run.config.output.refit:
            padded = run.in_memory and not any(rung.own_widths for rung in run.plan.rungs)
            how = {"num_epochs": best.refit_epochs, "padded": padded}
            params, state, train_loss = trainer.refit(best.number, best.draw, **how)
            arrays = {"refit_number": np.array(best.number), "refit_train_loss": train_loss}
        model = Model(run.networks.study, best.draw, params, state, trainer.fold_models(best.number, best.draw))
        if not model.has_refit and tasks.is_fitted(model.task):  # the unit of the test loss is that of a refit
            model = model._replace(state=tasks.Fit(None, run.networks.statistics_of_all(model.task)))
        if not run.in_memory:
            arrays |= testing.out_of_fold(model, best, run.networks)
    return model, arrays


def refit(networks: Networks, draw: Draw, observer: Observer) -> tuple[Model, np.ndarray]:
    """Trains any hyperparameters on all training data, without leaving files -> (model, train_loss [epoch])."""
    with jax.default_matmul_precision(networks.search.precision):
        trainer = Trainer(Memory(), networks.for_refit())
        params, state, train_loss = brackets.refit(trainer, "refit", draw, observer)
    return Model(networks.study, draw, params, state), train_loss


def _plan_of(identity: dict[str, Any], executor: Executor | None) -> SearchPlan:
    """Reads the plan from a stored configuration.

    Raises:
      ValueError: this process trains, and has fewer devices than the plan.
    """
    planned = SearchPlan.from_json(identity["plan"])
    needed = [rung.plan.num_devices for rung in planned.rungs if not rung.own_widths]
    if executor is None and max(needed, default=0) > len(jax.devices()):
        raise ValueError(
            f"this search was begun on {max(needed)} devices, here are {len(jax.devices())}: go on with it where "
            "there are as many (on a CPU, with JAX_NUM_CPU_DEVICES), or give another out="
        )
    return planned


def _identity(config: RunConfig, networks: Networks) -> dict[str, Any]:
    """All that the results depend on, except the plan and the number of trials; a folder has one.

    Raises:
      ValueError, TypeError: the networks can't be trained on the data.
    """
    asked, data, splits = config.study, networks.data, networks.folds
    own_folds = None if asked.folds is None else run_folder.digest_of_folds(splits)
    return (
        config.search.recorded()
        | config.given.identity
        | {
            "num_folds": len(splits) // config.search.repeats,
            "own_folds": own_folds,
            "space": space_text.to_json(asked.space),
            "metrics": sorted(asked.metrics),
            "score": asked.score,
            "direction": "maximize" if asked.maximize else "minimize",
            "data_sha256": sha256(data),
            "stratify": folds.are_stratified(data.y_train, config.search.num_folds, asked.folds, asked.stratify),
            "task_sha256": networks.check(),
            "task_versions": {name: environment.version_of(name) for name in ("jax", "flax", "optax")},
            "format": storage.FORMAT,
        }
    )
