"""Hyperparameter search: draws brackets of trials from Optuna, trains and reports them. The only module with Optuna."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hw1jax import storage
from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Draw, Float, Int, Range, Space
from hw1jax.search.study import Study
from hw1jax.search.trial_score import TrialScore, Values, scored

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook without ipywidgets
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState

FOREST_SEED = 0  # importances are a function of the trials alone
MOST_REPORTS = 20  # intermediate values of a trial, for Optuna's plots


class PureRandomSampler(optuna.samplers.BaseSampler):
    """Random search in which a draw is a pure function of (seed, trial number, parameter name).

    Optuna's `RandomSampler` has a generator: after a resume it repeats its first draws.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        match param_distribution:
            case IntDistribution(low=low, high=high, log=log, step=step):
                values: Range = Int(low, high, log, step=step)
            case FloatDistribution(low=low, high=high, log=log):
                values = Float(low, high, log)
            case CategoricalDistribution(choices=choices):
                values = Choice(*choices)
            case _:
                raise ValueError(f"no way to draw {param_name} from {param_distribution}")
        return space_.sample(values, self._seed, trial.number, param_name)


class BracketSampler(PureRandomSampler):
    """Any Optuna sampler, with draws that depend on (seed, scores of earlier brackets) alone.

    Samplers have a generator and other state that a resumed search has lost. So before each bracket a new sampler,
    seeded by the bracket's first trial number, draws all of its trials in a copy of the study that has only the trials
    before them. Searches that were killed, extended or left alone give the same trials.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int):
        super().__init__(seed)
        self._make, self._drawn = make, {}

    def prepare(self, opened: optuna.Study, study: Study, numbers: range) -> None:
        """Draws the trials of a bracket; all trials before it have scores."""
        words = hashlib.sha256(f"{self._seed} {numbers.start}".encode()).digest()
        sampler = self._make(int.from_bytes(words[:4]))
        copy = optuna.create_study(sampler=sampler, direction=opened.direction)
        copy.add_trials(opened.get_trials(deepcopy=False)[: numbers.start])
        for number in numbers:
            trial = copy.ask()
            suggest(trial, study)
            self._drawn[number] = trial.params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._drawn[trial.number][param_name]


class Journal(JournalFileBackend):
    """Optuna's journal, without its lock and without an fsync for each record.

    The folder's lock excludes other runs; Optuna's locks are files that a killed process leaves behind, and the next
    one waits 30 s for them. A killed process loses no record, and records that a crashed machine loses are written
    again from the trials' files: one `storage.sync` for many records is enough. A trial has three dozen.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with open(self._file_path, "ab") as file:
            file.write(lines.encode())


def open_storage(journal: Path | None, study: Study, *, sampler: str, seed: int) -> optuna.Study:
    """Opens the Optuna study in the journal file, or creates it (`optuna-dashboard` reads it too); None: in memory.

    Raises:
      ValueError: the file is damaged, is no journal, or holds another study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        chosen = PureRandomSampler(seed)
        if sampler == "tpe":
            chosen = BracketSampler(lambda seed: optuna.samplers.TPESampler(seed=seed), seed)
        return optuna.create_study(
            storage=None if journal is None else _open_journal(journal, study.name),
            study_name=study.name,
            sampler=chosen,
            direction="maximize" if study.maximize else "minimize",
            load_if_exists=True,
        )


def _open_journal(journal: Path, name: str) -> BaseStorage:
    _repair(journal)
    try:
        kept = JournalStorage(Journal(str(journal)))
        others = [other for other in optuna.get_all_study_names(kept) if other != name]
    except OSError:
        raise
    except Exception as error:  # any error of Optuna's parser: the file is not a journal
        raise ValueError(f"{journal} is not a journal of Optuna ({error!r}): give another out=") from error
    if others:
        raise ValueError(f"{journal.parent} holds the study {others[0]}, not {name}: give another out=")
    return kept


def _repair(journal: Path) -> None:
    """Truncates a partial last line, left by a killed process, which the next append would continue.

    Raises:
      ValueError: an earlier line is damaged; the file is unchanged.
    """
    if not journal.is_file():
        return
    content = journal.read_bytes()
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            raise ValueError(f"{journal}, line {number} is damaged: give another out=, or overwrite=True")
    if rest and (lines or rest.startswith(b"{")):
        os.truncate(journal, len(content) - len(rest))
    elif rest:
        raise ValueError(f"{journal} is not a journal of Optuna: give another out=")


def begin(
    opened: optuna.Study, config: dict[str, Any], folder: Path, new_plan: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Stores the configuration of a new search, or compares it with the stored one, and returns the stored one.

    `config` is all that the results depend on, except the plan; `new_plan` makes the plan of a new search, as JSON.

    Raises:
      ValueError: the settings differ (the message names the first difference), or the format does.
    """
    stored = opened.user_attrs.get("config")
    if stored is None:
        plan = new_plan()
        opened.set_user_attr("config", config | {"plan": plan, "plan_sha256": _digest(plan)})
        return opened.user_attrs["config"]
    storage.check_format(stored, f"the search in {folder}")
    if _digest(stored.get("plan")) != stored.get("plan_sha256"):
        raise ValueError(f"{folder / 'journal.log'} is damaged: the plan of its search has another digest than its own")
    wanted = json.loads(json.dumps(config))
    flat, flat_wanted = ({**c.pop("space", {}), **c} for c in (dict(stored), dict(wanted)))
    for name in [*flat_wanted, *(name for name in flat if name not in flat_wanted)]:
        if name not in ("plan", "plan_sha256", "format", "task_versions") and flat_wanted.get(name) != flat.get(name):
            if name == "task_sha256":
                raise ValueError(_another_task(folder, stored["task_versions"], wanted["task_versions"]))
            raise ValueError(
                f"{folder} holds a search with {name} = {flat.get(name)}, not {flat_wanted.get(name)}: "
                "give the old settings to go on with it, or another out="
            )
    return stored


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _another_task(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Error message for a folder with another task; other versions of libraries can change operations as well."""
    others = ", ".join(f"{name} {before[name]}, not {now[name]}" for name in now if before[name] != now[name])
    return (
        f"another network, loss or optimizer than the one that {folder} holds"
        f"{f', or the same in other versions ({others})' if others else ''}: give another out=, or overwrite=True"
    )


def suggest(trial: Trial, study: Study) -> Draw:
    """Draws a trial's hyperparameters; for a known trial, reads them back."""

    def choose(name: str, values: Range) -> Any:
        if isinstance(values, Int):
            return trial.suggest_int(name, values.low, values.high, log=values.log, step=values.step)
        if isinstance(values, Float):
            return trial.suggest_float(name, values.low, values.high, log=values.log)
        known = {_categorical(value): value for value in values.among}
        return known[trial.suggest_categorical(name, list(known))]

    return space_.draw(study.space, choose)


STATES: dict[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def search(
    opened: optuna.Study,
    study: Study,
    train: Callable[[dict[int, Draw]], Mapping[int, Values]],
    *,
    brackets: Iterable[range],
    num_epochs: int,
) -> Iterator[list[TrialScore]]:
    """Draws brackets of trials, trains and reports them; yields the scores of each bracket.

    `train` maps {number: draw} to {number: values}, whose last epoch are the scores. `brackets` are the trial numbers
    of each bracket, from 0, so that a resumed search has the same brackets. Finished trials are trained as well (or
    read from their files), for their losses.
    """
    for numbers in brackets:
        if isinstance(opened.sampler, BracketSampler):
            opened.sampler.prepare(opened, study, numbers)
        draws = {number: suggest(_ask(opened, number, study), study) for number in numbers}
        finished = _finished(opened, study, draws)
        values = train(draws)
        for number, draw in draws.items():
            if number not in finished:
                finished[number] = scored(number, draw, study, values[number], num_epochs)
                _tell(opened, study, _ask(opened, number, study), values[number], finished[number], num_epochs)
        yield [finished[number] for number in numbers]


def _ask(opened: optuna.Study, number: int, study: Study) -> Trial:
    """Returns the trial with this number, creating it if needed."""
    while len(opened.get_trials(deepcopy=False)) <= number:
        suggest(opened.ask(), study)
    return Trial(opened, opened.get_trials(deepcopy=False)[number]._trial_id)


def _finished(opened: optuna.Study, study: Study, draws: Mapping[int, Draw]) -> dict[int, TrialScore]:
    frozen = opened.get_trials(deepcopy=False)
    found = {}
    for number, draw in draws.items():
        state, kept = frozen[number].state, frozen[number].user_attrs
        if state.is_finished():
            scores = {name: tuple(kept[f"scores_{name}"]) for name in ("loss", *study.metrics)}
            found[number] = TrialScore(number, draw, STATES[state], scores, kept["epochs"])
    return found


def _tell(opened: optuna.Study, study: Study, trial: Trial, values: Values, done: TrialScore, num_epochs: int) -> None:
    with np.errstate(invalid="ignore"):  # inf - inf, in a diverged trial
        means = values[study.score].mean(axis=0)
    reported = opened.get_trials(deepcopy=False)[trial.number].intermediate_values  # before an interruption
    steps = np.linspace(1, num_epochs, min(num_epochs, MOST_REPORTS)).astype(int)
    for epoch in sorted({*steps[steps < len(means)].tolist(), len(means)}):  # few, since each is a record
        if np.isfinite(means[epoch - 1]) and epoch not in reported:
            trial.report(float(means[epoch - 1]), step=epoch)
    for name, folds in done.scores.items():  # before `tell`: a finished trial can't change
        for i, value in enumerate(folds if done.state != "pruned" else []):  # pruned trials are many
            trial.set_user_attr(f"split{i}_val_{name}", value)
        trial.set_user_attr(f"scores_{name}", list(folds))
    trial.set_user_attr("epochs", done.epochs)
    if done.state == "complete":
        opened.tell(trial, done.mean(study.score))
    else:  # Optuna scores a pruned trial by its last report
        opened.tell(trial, state=TrialState.PRUNED if done.state == "pruned" else TrialState.FAIL)


def importances(space: Space, params: Mapping[str, Sequence[Any] | np.ndarray], scores: np.ndarray) -> dict[str, float]:
    """Share of the variance of scores (float [trial]) that each hyperparameter alone explains, the largest first.

    Functional ANOVA on a random forest (Hutter, Hoos and Leyton-Brown 2014); rough for a few dozen trials. `params` has
    the columns of the space, [trial] each; the shares {column: share} sum to 1.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: fewer than two trials, or all scores are equal.
    """
    if len(scores) < 2 or np.ptp(scores) == 0:
        raise ValueError("importances need at least two trials with different scores")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = space_.columns(space)
    kinds = {name: _distribution(r) for name, r in ranges.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        opened = optuna.create_study()
        for i, score in enumerate(np.asarray(scores, np.float64).tolist()):
            values = {name: _value(r, space_.plain(params[name][i])) for name, r in ranges.items()}
            opened.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, value=score))
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=FOREST_SEED)
            return optuna.importance.get_param_importances(opened, evaluator=evaluator)
        except ImportError:
            raise ImportError("importances need scikit-learn: pip install scikit-learn") from None
        except RuntimeError as error:  # the forest has no split
            raise ValueError("importances: too few trials, or too similar ones") from error


def _distribution(r: Range) -> BaseDistribution:
    if isinstance(r, Choice):
        return CategoricalDistribution([str(value) for value in r.values])
    if isinstance(r, Int):
        return IntDistribution(r.low, r.high, r.log, r.step)
    return FloatDistribution(r.low, r.high, r.log)


def _categorical(value: Any) -> Any:
    """A choice's value as Optuna's storages hold it: a tuple as text."""
    return str(value) if isinstance(value, tuple) else value


def _value(r: Range, value: Any) -> Any:
    """Returns the value for `_distribution`: numbers of a choice may have another type, as 1.0 for 1."""
    if not isinstance(r, Choice):
        return value
    return next(str(known) for known in r.values if known == value and isinstance(known, str) == isinstance(value, str))
