"""The run of a study: search, refit of the best trial, one look at the test set, results on disk."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import wraps
from typing import Any, TypeVar

import jax
import numpy as np

from hw1jax import brackets, folds, plan, population, record, results, search, storage, study, training
from hw1jax import space as space_
from hw1jax.brackets import Brackets, Stopped, Trained
from hw1jax.checkpoint import Checkpoint, in_one
from hw1jax.data import Dataset, sha256
from hw1jax.folds import Fold
from hw1jax.notebook import usual_observer
from hw1jax.observer import Observer
from hw1jax.plan import Job, SearchPlan, Stretch
from hw1jax.population import Plan
from hw1jax.record import Clock
from hw1jax.results import Results
from hw1jax.space import Draw
from hw1jax.study import Order, Study, TrialScore
from hw1jax.trained import Model

SCORED_AGAIN = 0.02  # of a loss, between a network in its search and the same alone, in whatever precision
CURVE_POINTS = 400  # where the fitted curve of a scalar regression is drawn
Function = TypeVar("Function", bound=Callable[..., Any])


def run_study(
    study_: Study,
    *,
    quick: bool = False,
    inputs: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> Results:
    """Searches a study, refits its best trial, tests it once; goes on with what an earlier call has left in `out`.

    Args:
      study_: what is searched.
      quick: take the study's numbers for a small run.
      inputs: paths of the files that the study can read instead of its usual data, by name.
      observer: is told how it goes; if not given, a notebook shows it and nobody is told elsewhere.
      **settings: num_trials, and what `study.Search`, `study.Program` and `study.Output` have, by name; the study's
        own, if not given. `out` is the folder of the results.

    Returns:
      What the folder holds, read back.

    Raises:
      ValueError, TypeError: a study, settings or data that can't be run, in one line (nothing has been written then);
        or no trial that didn't diverge.
      Exception: whatever a function of the study raises, with a note on how it was called.
    """
    order = study.order(study_, inputs=inputs, quick=quick, **settings)
    run(order, observer or usual_observer(), command="hw1jax.run_study", started=time.time())
    return results.load_results(order.folder, order.study)


def _as_exactly_as_asked(function: Function) -> Function:
    """Computes in the precision of the search: the one place that applies what `config` records."""

    @wraps(function)
    def wrapped(order: Order, *args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(order.search.precision):
            return function(order, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


@_as_exactly_as_asked
def run(
    order: Order, observer: Observer, *, command: str, started: float, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Carries an order out, from the data to the files of its folder; goes on with one that was stopped.

    Args:
      order: from `study.order`.
      observer: is told how it goes.
      command: how to repeat it, for the record.
      started: `time.time()` at the start of the process.
      stop: training stops soon after it is set.

    Returns:
      What `results.json` holds, the test loss None where the refit diverged.

    Raises:
      ValueError, TypeError: a study or data that can't be run, or a folder that another run holds (nothing has been
        written then); or no trial that didn't diverge.
      brackets.Stopped: `stop` was set; the same call goes on from there.
    """
    asked = order.study
    data = study.load_data(asked, order.inputs)
    splits = study.splits_of(asked, order.search, data)
    task_digest = plan.check_networks(asked, order.search, data, splits)
    versions = {name: record.version_of(name) for name in ("jax", "flax", "optax")}
    config = _config(order, data, splits) | {"task_sha256": task_digest, "task_versions": versions}
    with storage.run_lock(order.folder):
        return _run_alone(order, data, splits, config, observer, command, started, stop or threading.Event())


def _run_alone(
    order: Order,
    data: Dataset,
    splits: list[Fold],
    config: dict[str, Any],
    observer: Observer,
    command: str,
    started: float,
    stop: threading.Event,
) -> dict[str, Any]:
    """As `run`, with checked data and the folder's lock."""
    asked, folder, clock = order.study, order.folder, Clock()
    if order.output.overwrite:
        results.remove(folder)
    journal = folder / "journal.log"
    opened = search.open_storage(journal, asked, sampler=order.search.sampler, seed=order.search.seed)
    config = search.begin(opened, config, folder)
    planned = _plan_of(config)
    stretches = planned.stretches(order.num_trials)
    wide = _wide(order, planned, data, splits)
    place = folder / "brackets" / _digest(config)
    trained = Brackets(place, asked, planned, wide, order.search.seed, observer, stop, num_trials=order.num_trials)
    if rare := folds.rare_classes(data.y_train, splits):
        observer.note(rare)
    observer.start(asked, order.num_trials, len(splits), order.search.num_epochs, trained.work)
    if order.program.reproducible and jax.default_backend() != "cpu" and not record.is_reproducible():
        observer.note("not reproducible: XLA_FLAGS must say so before JAX starts (record.make_reproducible)")
    trials: list[TrialScore] = []
    histories: list[Trained] = []
    threads = max(rung.program.num_devices if rung.own_widths else 1 for rung in planned.rungs)
    with clock.measure("train_seconds", threads=threads):
        for bracket in search.search(
            opened,
            asked,
            trained.train,
            brackets=[stretch.numbers for stretch in stretches],
            num_epochs=order.search.num_epochs,
        ):
            storage.sync(journal)
            trials = [*trials, *bracket]
            histories.append(trained.read({trial.number: trial.draw for trial in bracket}))
            observer.trials(trials, asked)
    history = brackets.joined(histories)
    best = results.best(trials, asked)
    if best is None:
        results.write_trials(folder / "trials.csv", asked, trials, history.train_loss, history.val)
        who = "every trial" + (" of the last rung" if any(trial.state == "pruned" for trial in trials) else "")
        raise ValueError(f"{who} diverged, see {folder / 'trials.csv'}; search smaller learning rates")

    with clock.measure("refit_seconds"):
        checkpoint = Checkpoint(place / f"refit-{best.number}.checkpoint")
        model, refit_train_loss = results.kept_refit(folder, asked, best) or refit(
            order, data, len(splits), best.draw, observer, checkpoint, stop
        )
        if not model.folds:
            its_bracket = next(stretch.numbers for stretch in stretches if best.number in stretch.numbers)
            draws = {trial.number: trial.draw for trial in trials if trial.number in its_bracket}
            model = model._replace(folds=trained.fold_models(best.number, draws))
            _check_fold_models(model, best, data, splits)
    observer.stage("looking at the test set")
    with clock.measure("test_seconds"):
        test_outputs = model.predict(data.x_test)
    arrays = {"refit_number": np.array(best.number), "refit_train_loss": refit_train_loss}
    arrays["test_outputs"] = test_outputs
    if len(curve_x := _curve_inputs(data, test_outputs)):
        arrays |= {"curve_x": curve_x, "curve_outputs": model.predict(curve_x[:, None])[:, 0]}
        arrays["curve_fold_outputs"] = np.stack(model.fold_outputs(curve_x[:, None]))[:, :, 0]
    test, ensemble = results.score(model, test_outputs, data.y_test), None
    if model.is_finite and model.has_ensemble:
        arrays["ensemble_outputs"] = model.predict(data.x_test, ensemble=True)
        ensemble = results.score(model, arrays["ensemble_outputs"], data.y_test)
    own = history.train_loss[[trial.number for trial in trials].index(best.number), :, -1]  # [fold]
    warning = None
    if model.is_finite:
        warning = results.refit_warning(float(refit_train_loss[-1]), own)
        warning = warning or results.test_warning(test["loss"], best.scores["loss"])
    written = {
        "format": storage.FORMAT,
        "study": asked.name,
        "title": asked.shown,
        "command": command,
        "config": config | {"num_trials": order.num_trials},
        "num_programs": len(trained.programs),
        "splits": trained.splits,
        "environment": record.describe() | record.numerics(),
        "inputs": {name: path and str(path) for name, path in order.inputs.items()},
        "best": results.summary(asked, best),
        "refit": {
            "state": "complete" if model.is_finite else "diverged",
            "failure": _failure(model, test),
            "train_loss": results.finite(refit_train_loss[-1]),
            "folds_train_loss": results.finite(own.mean()),
            "warning": warning,
        },
        "test": test,
        "ensemble": ensemble,
        "reference": results.reference(asked),
        "trials": {state: sum(t.state == state for t in trials) for state in ("complete", "pruned", "failed")},
        "rungs": _rungs(trials, stretches, trained.seconds),
        "timing": clock.seconds() | {"total_seconds": time.time() - started},
    }
    results.write(folder, asked, written, trials, history.train_loss, history.val, arrays, model, data.x_test)
    for left_over in place.glob("refit-*.checkpoint"):
        left_over.unlink(missing_ok=True)
    observer.finish(written, folder)
    return written


@_as_exactly_as_asked
def refit(
    order: Order,
    data: Dataset,
    num_folds: int,
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
      brackets.Stopped: `stop` was set.
    """
    asked, num_epochs = order.study, order.search.num_epochs
    everything = Fold(np.arange(len(jax.tree.leaves(data.x_train)[0])), np.arange(0))
    fixed = space_.fixed(asked.space, draw, widest=False)
    alone = Plan(slots=1, layout=plan.make_layout(asked, order.search, data))
    without_rungs = replace(order.search, halving=None)
    place = plan.make_population(asked, without_rungs, alone, data, [everything], fixed, first_fold=num_folds)
    key, job = jax.random.key(order.search.seed), Job(fixed, [0])
    members, trials, state = brackets.begin(asked, key, job, {0: draw}, place, own_widths=True)
    state, done, losses = checkpoint.read(state) if checkpoint else (state, 0, [])
    state = population.put(members, state)
    for step in population.resume(members, state, trials, first_epoch=done):
        state, done = step.state, step.num_epochs
        losses.append((step.train_loss, {}))  # nothing is held out
        observer.epochs("refit of the best trial", done, num_epochs, None)
        stopping = stop is not None and stop.is_set()
        if checkpoint and (stopping or (checkpoint.is_due() and done < num_epochs)):
            checkpoint.write(state, done, losses)
        if stopping:
            raise Stopped
    params, model_state = jax.tree.map(lambda a: np.asarray(a[0, 0]), population.final_variables(members.task, state))
    return Model(asked, draw, params, training.with_keys(model_state)), in_one(losses)[0][0, 0]


def _wide(order: Order, planned: SearchPlan, data: Dataset, splits: list[Fold]) -> population.Population:
    """The study's population of the widest networks; each job has its own task."""
    fixed = space_.fixed(order.study.space, space_.widest(order.study.space), widest=True)
    return plan.make_population(order.study, order.search, planned.rungs[0].program, data, splits, fixed)


def _plan_of(config: dict[str, Any]) -> SearchPlan:
    """The plan of a stored configuration.

    Raises:
      ValueError: it needs more devices than there are here.
    """
    planned = SearchPlan.from_json(config["plan"])
    num_devices = max(rung.program.num_devices for rung in planned.rungs)
    if any(r.program.num_devices > len(jax.devices()) and not r.own_widths for r in planned.rungs):
        raise ValueError(
            f"this search was begun on {num_devices} devices, here are {len(jax.devices())}: go on with it where "
            "there are as many (on a CPU, with JAX_NUM_CPU_DEVICES), or give another out="
        )
    return planned


def _check_fold_models(model: Model, best: TrialScore, data: Dataset, splits: list[Fold]) -> None:
    """Raises a ValueError unless the kept networks of the best trial score as they did in the search.

    They may be cut out of wider ones, and are evaluated in another program than the search's.
    """
    for i, (fold, (params, state)) in enumerate(zip(splits, model.folds, strict=True)):
        x, y, weights = jax.tree.map(lambda a: a[fold.validation], (data.x_train, data.y_train, data.weights))  # noqa: B023
        outputs = population.predict(model.task, params, model.hyperparameters, x, state=state)
        loss = float(np.average(np.asarray(model.task.loss(outputs, y), np.float64), weights=weights))
        if np.isfinite(loss) and not np.isclose(loss, best.scores["loss"][i], rtol=SCORED_AGAIN, atol=1e-5):
            raise ValueError(
                f"trial {best.number} has a validation loss of {best.scores['loss'][i]:.6g} in fold {i}, and the "
                f"network that is kept of it {loss:.6g}: it depends on more than parameters, state and inputs"
            )


def _failure(model: Model, test: dict[str, Any]) -> str | None:
    """Why there is no test loss, in a line; None if there is one."""
    if not model.is_finite:
        return "the refit of the best trial diverged; search smaller learning rates"
    return None if test["loss"] is not None else "the test loss is not finite: outputs or labels are too large"


def _rungs(
    trials: Sequence[TrialScore], stretches: Sequence[Stretch], seconds: Mapping[int, float]
) -> list[dict[str, Any]]:
    """What became of the trials on each rung, in the order of the epochs at which rungs end, of all brackets together.

    `seconds`: that the rungs took, by these epochs.
    """
    found: dict[int, dict[str, Any]] = {}
    for bracket, numbers in stretches:
        for end in (rung.num_epochs for rung in bracket.rungs):
            on_it = [trial for trial in trials if trial.number in numbers and trial.epochs >= end]
            counted = {
                "num_trials": len(on_it),
                "went_on": sum(trial.epochs > end for trial in on_it),
                "failed": sum(trial.epochs == end and trial.state == "failed" for trial in on_it),
            }
            rung = found.setdefault(end, dict.fromkeys(counted, 0))
            rung |= {name: rung[name] + count for name, count in counted.items()}
    return [{"num_epochs": end, **found[end], "seconds": seconds.get(end, 0.0)} for end in sorted(found)]


def _config(order: Order, data: Dataset, splits: list[Fold]) -> dict[str, Any]:
    """All that the results depend on but the task and the number of trials; a folder belongs to one configuration."""
    asked = order.study
    planned = plan.make_plan(asked, order.num_trials, order.search, order.program, data, splits)
    own_folds = None if asked.folds is None else _digest([[part.tolist() for part in fold] for fold in splits])
    return asdict(order.search) | {
        "num_folds": len(splits),
        "own_folds": own_folds,
        "space": space_.to_json(asked.space),
        "metrics": sorted(asked.metrics),
        "score": asked.score,
        "direction": "maximize" if asked.maximize else "minimize",
        "data_sha256": sha256(data),
        "stratify": folds.are_stratified(data.y_train, order.search.num_folds, asked.folds, asked.stratify),
        "plan": planned.to_json(),
        "format": storage.FORMAT,
    }


def _digest(content: Any) -> str:
    """A short name for a configuration: a bracket trained under another one is not taken for this one's."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _curve_inputs(data: Dataset, outputs: Any) -> np.ndarray:
    """Inputs [point] along which a scalar regression is drawn; none where data or outputs are something else."""
    parts = (data.x_train, data.y_train, data.x_test, outputs)
    if not all(isinstance(a, np.ndarray) and a.shape[1:] == (1,) and a.dtype.kind == "f" for a in parts):
        return np.zeros(0, np.float32)
    both = np.concatenate([data.x_train, data.x_test])
    return np.linspace(both.min(), both.max(), CURVE_POINTS, dtype=np.float32)
