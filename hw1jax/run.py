"""The run of a study: search, refit of the best trial, one evaluation on a test set, results on disk."""

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hw1jax import environment, storage
from hw1jax.core import folds, metric_checks, population
from hw1jax.data import Dataset, sha256
from hw1jax.environment import Clock
from hw1jax.progress import default_observer
from hw1jax.results import evaluation, results, run_folder, trained_model
from hw1jax.results import trials as trials_
from hw1jax.results.results import Results
from hw1jax.results.trained_model import Model
from hw1jax.search import brackets, optuna_search, space_text, study, study_data
from hw1jax.search.brackets import Brackets
from hw1jax.search.networks import Networks
from hw1jax.search.observer import Observer
from hw1jax.search.plan import Bracket, SearchPlan, make_plan
from hw1jax.search.space import Draw
from hw1jax.search.study import RunConfig, Study
from hw1jax.search.trainer import Trainer
from hw1jax.search.trial_score import TrialScore
from hw1jax.storage import Folder, Memory

SCORED_AGAIN = 0.02  # relative tolerance between a network's loss in the search and alone, in any precision
CURVE_POINTS = 400  # of the fitted curve of a scalar regression


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
        seed -> sampler; `enqueue` is a list of hyperparameters, as in `results.best.params`, of the first trials.

    Returns:
      The results, read from the folder.

    Raises:
      ValueError, TypeError: an invalid study, setting or data, in one line (nothing has been written then); or all
        trials diverged.
      Exception: from a function of the study, with a note on its arguments.
    """
    config = study.run_config(study_, inputs=inputs, quick=quick, **settings)
    environment.use_all_cores(config.program.num_devices)
    run(config, observer or default_observer(), command="hw1jax.run_study", started=time.time(), executor=executor)
    return results.load_results(config.folder, config.study)


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
    environment.check_devices()
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(f"executor= must be a concurrent.futures.Executor, got {type(executor).__name__}")
    if executor is not None and config.program.num_devices is None:  # of a worker
        config = config._replace(program=replace(config.program, num_devices=1))
    with jax.default_matmul_precision(config.search.precision):
        networks = load(config)
        identity = _identity(config, networks)
        new = not (config.folder / "journal.log").exists() or config.output.overwrite
        made = make_plan(networks, config.num_trials, config.program) if new else None  # before anything is written
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
            plan, stop = _plan_of(identity, executor), stop or threading.Event()
            begun = _Run(config, networks, identity, plan, observer, Clock(), executor, stop)
            return _execute(begun, opened, command, started)


class Searched(NamedTuple):
    """A search in memory."""

    trials: list[TrialScore]
    best: TrialScore
    model: Model
    networks: Networks


def search(config: RunConfig, observer: Observer) -> Searched:
    """Searches and refits as `run`, in memory: it writes no file, and evaluates no test set.

    Raises:
      ValueError, TypeError: an invalid study or data; or all trials diverged.
    """
    environment.check_devices()
    with jax.default_matmul_precision(config.search.precision):
        networks, asked = load(config), config.study
        networks.check()
        plan, num_epochs = make_plan(networks, config.num_trials, config.program), config.search.num_epochs
        trainer = Brackets(Memory(), networks, plan, observer, threading.Event(), num_trials=config.num_trials)
        opened = optuna_search.open_storage(None, asked, config.search.sampler, config.search.seed, config.given)
        observer.start(asked, config.num_trials, len(networks.folds), num_epochs, trainer.work)
        numbers = [bracket.numbers for bracket in plan.of(config.num_trials)]
        brackets = optuna_search.search(opened, asked, trainer.train, brackets=numbers, num_epochs=num_epochs)
        trials = [trial for bracket in brackets for trial in bracket]
        best = trials_.best(trials, asked)
        if best is None:
            raise ValueError("every trial diverged; search smaller learning rates")
        params, state, _ = trainer.refit(best.number, best.draw)
        model = Model(asked, best.draw, params, state, trainer.fold_models(best.number, best.draw))
        return Searched(trials, best, model, networks)


def load(config: RunConfig) -> Networks:
    """Loads a run's data and folds -> its networks.

    Raises:
      ValueError, TypeError: invalid data or folds.
    """
    data = study_data.load_data(config.study, config.inputs)
    anew = replace(config.study, task=partial(config.study.task))  # what it uses may have changed since the last run
    return Networks(anew, config.search, data, study_data.splits_of(config.study, config.search, data))


class _Run(NamedTuple):
    """The objects that all steps of a run share."""

    config: RunConfig
    networks: Networks
    identity: dict[str, Any]
    plan: SearchPlan
    observer: Observer
    clock: Clock
    executor: Executor | None
    stop: threading.Event

    @property
    def folder(self) -> Path:
        return self.config.folder


def _execute(run: _Run, opened: Any, command: str, started: float) -> dict[str, Any]:
    """All steps of a run, under the folder's lock."""
    trainer = Brackets(
        Folder(run.folder / "brackets" / _digest(run.identity)),
        run.networks,
        run.plan,
        run.observer,
        run.stop,
        num_trials=run.config.num_trials,
        executor=run.executor,
    )
    trials = _search(run, opened, trainer)
    history = trainer.history()
    best = trials_.best(trials, run.config.study)
    if best is None:
        path = run.folder / "trials.csv"
        trials_.write_trials(path, run.config.study, trials, history.train_loss, history.val)
        who = "every trial" + (" of the last rung" if any(trial.state == "pruned" for trial in trials) else "")
        raise ValueError(f"{who} diverged, see {path}; search smaller learning rates")
    model, arrays = _trained(run, trainer, best)
    arrays |= _outputs(run, model)
    written = {
        "format": storage.FORMAT,
        "study": run.config.study.name,
        "title": run.config.study.shown,
        "command": command,
        "config": run.identity | {"num_trials": run.config.num_trials},
        "num_programs": len(trainer.programs),
        "splits": trainer.splits,
        "environment": environment.describe() | environment.numerics(),
        "inputs": {name: path and str(path) for name, path in run.config.inputs.items()},
        "trials": {state: sum(t.state == state for t in trials) for state in ("complete", "pruned", "failed")},
        "rungs": _rungs(trials, run.plan.of(run.config.num_trials), trainer.seconds),
        **_scores(run, model, best, arrays, history.train_loss[best.number, :, best.epochs - 1]),
        "timing": run.clock.seconds() | {"total_seconds": time.time() - started},
    }
    study_, data = run.config.study, run.networks.data
    some = data.x_test if data.has_test_set else data.x_train
    run_folder.write(run.folder, study_, written, trials, history.train_loss, history.val, arrays, model, some)
    run.observer.finish(written, run.folder)
    return written


def _search(run: _Run, opened: Any, trainer: Brackets) -> list[TrialScore]:
    """Trains all trials of the search, bracket by bracket."""
    asked, num_epochs = run.config.study, run.config.search.num_epochs
    if rare := folds.rare_classes(run.networks.data.y_train, run.networks.folds):
        run.observer.note(rare)
    if missing := metric_checks.in_words(run.networks.undefined):
        run.observer.note(missing)
    run.observer.start(asked, run.config.num_trials, len(run.networks.folds), num_epochs, trainer.work)
    if run.config.program.reproducible and jax.default_backend() != "cpu" and not environment.is_reproducible():
        run.observer.note("not reproducible: XLA_FLAGS must say so before JAX starts (environment.make_reproducible)")
    numbers = [bracket.numbers for bracket in run.plan.of(run.config.num_trials)]
    threads = max(rung.plan.num_devices if rung.own_widths else 1 for rung in run.plan.rungs)
    trials: list[TrialScore] = []
    with run.clock.measure("train_seconds", threads=threads):
        for bracket in optuna_search.search(opened, asked, trainer.train, brackets=numbers, num_epochs=num_epochs):
            storage.sync(run.folder / "journal.log")
            trainer.check(bracket)
            trials += bracket
            run.observer.trials(trials, asked)
    return trials


def _trained(run: _Run, trainer: Brackets, best: TrialScore) -> tuple[Model, dict[str, Any]]:
    """The best trial's model, and arrays of its refit for histories.npz."""
    params, state, arrays = None, None, {}
    with run.clock.measure("refit_seconds"):
        if run.config.output.refit:
            params, state, train_loss = trainer.refit(best.number, best.draw)
            arrays = {"refit_number": np.array(best.number), "refit_train_loss": train_loss}
        model = Model(run.config.study, best.draw, params, state, trainer.fold_models(best.number, best.draw))
        _check_fold_models(model, best, run.networks)
    return model, arrays


def _outputs(run: _Run, model: Model) -> dict[str, Any]:
    """The networks' outputs on the test set, if there is one, for histories.npz."""
    data, arrays = run.networks.data, {}
    if not data.has_test_set:
        return arrays
    run.observer.stage("testing")
    with run.clock.measure("test_seconds"):
        if model.has_refit:
            arrays["test_outputs"] = model.predict(data.x_test)
    if model.has_refit and len(curve_x := _curve_inputs(data, arrays["test_outputs"])):
        arrays |= {"curve_x": curve_x, "curve_outputs": model.predict(curve_x[:, None])[:, 0]}
        arrays["curve_fold_outputs"] = np.stack(model.fold_outputs(curve_x[:, None]))[:, :, 0]
    if model.is_finite and model.has_ensemble:
        arrays["ensemble_outputs"] = model.predict(data.x_test, ensemble=True)
    return arrays


def _scores(
    run: _Run, model: Model, best: TrialScore, arrays: Mapping[str, Any], train_loss: np.ndarray
) -> dict[str, Any]:
    """The scores in results.json; `train_loss` [fold] is the best trial's last."""
    y_test, test, ensemble, warning = run.networks.data.y_test, None, None, None
    if "test_outputs" in arrays:
        test = trained_model.score(model, arrays["test_outputs"], y_test)
    if "ensemble_outputs" in arrays:
        ensemble = trained_model.score(model, arrays["ensemble_outputs"], y_test)
    refit_loss = float(arrays["refit_train_loss"][-1]) if model.has_refit else np.nan
    if model.has_refit and model.is_finite:
        warning = evaluation.refit_warning(refit_loss, train_loss)
        warning = warning or evaluation.test_warning(test["loss"] if test else None, best.defined("loss"))
    return {
        "best": run_folder.summary(best),
        "refit": {
            "state": "skipped" if not model.has_refit else "complete" if model.is_finite else "diverged",
            "failure": _failure(model, test),
            "train_loss": run_folder.finite(refit_loss),
            "folds_train_loss": run_folder.finite(train_loss.mean()),
            "warning": warning,
        },
        "test": test,
        "ensemble": ensemble,
        "reference": run_folder.reference(run.config.study),
    }


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


def _check_fold_models(model: Model, best: TrialScore, networks: Networks) -> None:
    """Raises a ValueError unless the best trial's fold networks have the losses of the search.

    They may be cut out of wider networks, and are evaluated in another program.
    """
    data, losses = networks.data, best.defined("loss")
    for i, (fold, (params, state)) in enumerate(zip(networks.folds, model.folds, strict=True)):
        x, y, weights = jax.tree.map(lambda a: a[fold.validation], (data.x_train, data.y_train, data.weights))  # noqa: B023
        outputs = population.predict(model.task, params, model.hyperparameters, x, state=state)
        loss = float(np.average(np.asarray(model.task.loss(outputs, y), np.float64), weights=weights))
        if np.isfinite(loss) and not np.isclose(loss, losses[i], rtol=SCORED_AGAIN, atol=1e-5):
            raise ValueError(
                f"trial {best.number} has a validation loss of {losses[i]:.6g} in fold {i}, and the "
                f"network that is kept of it {loss:.6g}: it depends on more than parameters, state and inputs"
            )


def _failure(model: Model, test: dict[str, Any] | None) -> str | None:
    """The reason why there is no refitted model or its test loss isn't finite; None if nothing failed."""
    if not model.is_finite:
        return "the refit of the best trial diverged; search smaller learning rates"
    finite = test is None or test["loss"] is not None
    return None if finite else "the test loss is not finite: outputs or labels are too large"


def _rungs(
    trials: Sequence[TrialScore], brackets: Sequence[Bracket], seconds: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Counts of trials on each rung, by its last epoch, over all brackets.

    `seconds`: duration of the rungs, by the same epochs.
    """
    found: dict[int, dict[str, Any]] = {}
    for bracket in brackets:
        for end in bracket.ends:
            own = [trial for trial in trials if trial.number in bracket.numbers]
            on_it = [trial for trial in own if trial.epochs >= min(end, trial.draw.get("num_epochs", end))]
            counted = {
                "num_trials": len(on_it),
                "went_on": sum(trial.epochs > end for trial in on_it),
                "failed": sum(trial.epochs <= end and trial.state == "failed" for trial in on_it),
            }
            rung = found.setdefault(end, dict.fromkeys(counted, 0))
            rung |= {name: rung[name] + count for name, count in counted.items()}
    return [{"num_epochs": end, **found[end], "seconds": seconds.get(end, 0.0)} for end in sorted(found)]


def _identity(config: RunConfig, networks: Networks) -> dict[str, Any]:
    """All that the results depend on, except the plan and the number of trials; a folder has one.

    Raises:
      ValueError, TypeError: the networks can't be trained on the data.
    """
    asked, data, splits = config.study, networks.data, networks.folds
    own_folds = None if asked.folds is None else _digest([[part.tolist() for part in fold] for fold in splits])
    return (
        asdict(config.search)
        | config.given.identity
        | {
            "num_folds": len(splits),
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


def _digest(content: Any) -> str:
    """A short digest that keeps files of different configurations apart."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _curve_inputs(data: Dataset, outputs: Any) -> np.ndarray:
    """Inputs [point] of the curve of a scalar regression; empty for other data or outputs."""
    parts = (data.x_train, data.y_train, data.x_test, outputs)
    if not all(isinstance(a, np.ndarray) and a.shape[1:] == (1,) and a.dtype.kind == "f" for a in parts):
        return np.zeros(0, np.float32)
    both = np.concatenate([data.x_train, data.x_test])
    return np.linspace(both.min(), both.max(), CURVE_POINTS, dtype=np.float32)
