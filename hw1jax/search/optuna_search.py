"""Hyperparameter search: draws brackets of trials from Optuna, trains and reports them."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hw1jax import storage
from hw1jax.core import checks
from hw1jax.search.given import Given
from hw1jax.search.samplers import BracketSampler, PureRandomSampler, StoppableStudy, suggest
from hw1jax.search.space import Draw
from hw1jax.search.study import SETTINGS_IN_SPACE, Study
from hw1jax.search.trial_score import TrialScore, Values, scored

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook without ipywidgets
    import optuna
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState

NOTHING_GIVEN = Given()
MOST_REPORTS = 20  # intermediate values of a trial, for Optuna's plots


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


class SearchStudy(StoppableStudy):
    """The study of a search, which callbacks receive."""

    def enqueue_trial(self, *_: Any, **__: Any) -> None:
        raise ValueError(
            "a callback can't enqueue trials, since a resumed search must have the same ones: see enqueue="
        )


def open_storage(
    journal: Path | None, study: Study, sampler: str, seed: int, given: Given = NOTHING_GIVEN
) -> SearchStudy:
    """Opens the Optuna study in the journal file, or creates it (`optuna-dashboard` reads it too); None: in memory.

    `sampler` is "random", "tpe", or the name of the given one.

    Raises:
      ValueError: the file is damaged, is no journal, or holds another study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if study.maximize else "minimize"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kept = optuna.storages.InMemoryStorage() if journal is None else _open_journal(journal, study.name)
        optuna.create_study(storage=kept, study_name=study.name, direction=direction, load_if_exists=True)
        is_random, first = sampler == "random", given.enqueued
        chosen = PureRandomSampler(seed, first) if is_random else BracketSampler(seed, direction, given.sampler, first)
        return SearchStudy(study.name, kept, chosen)


def read_study(journal: Path, name: str, num_trials: int) -> optuna.Study:
    """Reads the first trials of a study into an Optuna study in memory; the journal isn't changed, whatever is done.

    Raises:
      ValueError: the file is missing or damaged, or holds another study.
    """
    if not journal.is_file():
        raise ValueError(f"{journal} is missing: the Optuna study is read from it")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kept = optuna.load_study(study_name=name, storage=_journal_storage(journal, name))
    copied = optuna.create_study(study_name=name, direction=kept.direction)
    for key, value in kept.user_attrs.items():
        copied.set_user_attr(key, value)
    copied.add_trials(kept.get_trials(deepcopy=False)[:num_trials])
    return copied


def _open_journal(journal: Path, name: str) -> BaseStorage:
    _repair(journal)
    return _journal_storage(journal, name)


def _journal_storage(journal: Path, name: str) -> BaseStorage:
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
    before, now = _compared(stored), _compared(wanted)
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key):
            if key == ("setting", "task_sha256"):
                raise ValueError(_another_task(folder, stored["task_versions"], wanted["task_versions"]))
            raise ValueError(
                f"{folder} holds a search with {key[1]} = {before.get(key)}, not {now.get(key)}: "
                "give the old settings to go on with it, or another out="
            )
    return stored


def _compared(config: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """What must not change of a configuration: {("space", name): range, ("setting", name): value}."""
    space = config.get("space", {})
    others = {"space", "plan", "plan_sha256", "format", "task_versions"}
    others |= set(SETTINGS_IN_SPACE) & set(space)  # the space's replace the settings
    settings = {("setting", name): value for name, value in config.items() if name not in others}
    return {("space", name): value for name, value in space.items()} | settings


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _another_task(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Error message for a folder with another task; other versions of libraries can change operations as well."""
    others = ", ".join(f"{name} {before[name]}, not {now[name]}" for name in now if before[name] != now[name])
    return (
        f"another network, loss or optimizer than the one that {folder} holds"
        f"{f', or the same in other versions ({others})' if others else ''}: give another out=, or overwrite=True"
    )


STATES: dict[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def search(
    opened: SearchStudy,
    study: Study,
    train: Callable[[dict[int, Draw]], Mapping[int, Values]],
    *,
    brackets: Iterable[range],
    num_epochs: int,
    callbacks: Sequence[Callable[..., Any]] = (),
) -> Iterator[list[TrialScore]]:
    """Draws brackets of trials, trains and reports them; yields the scores of each bracket, until `opened` is stopped.

    `train` maps {number: draw} to {number: values}, whose last epoch are the scores. `brackets` are the trial numbers
    of each bracket, from 0, so that a resumed search has the same brackets. Finished trials are trained as well (or
    read from their files), for their losses. Each of `callbacks` is called with (study, trial) after a trial is told.
    """
    for numbers in brackets:
        if isinstance(opened.sampler, BracketSampler) and not opened.stopped_by:
            opened.sampler.prepare(opened, study, numbers)
        if opened.stopped_by:
            return
        draws = {number: suggest(_ask(opened, number, study), study) for number in numbers}
        finished = _finished(opened, study, draws)
        values = train(draws)
        for number, draw in draws.items():
            if number not in finished:
                finished[number] = scored(number, draw, study, values[number], num_epochs)
                trial = _ask(opened, number, study)
                told = _tell(opened, study, trial, values[number], finished[number], num_epochs)
                for function in callbacks:
                    with checks.in_function("callbacks", function, study=opened, trial=told):
                        function(opened, told)
        yield [finished[number] for number in numbers]


def num_finished(opened: optuna.Study) -> int:
    """The number of trials that have a score, or have failed."""
    return sum(trial.state.is_finished() for trial in opened.get_trials(deepcopy=False))


def stopped(opened: SearchStudy, num_trials: int, wanted: int) -> str | None:
    """Why a search has fewer trials than were wanted, else None."""
    return f"stopped by {opened.stopped_by} after {num_trials} of {wanted} trials" if num_trials < wanted else None


def _ask(opened: optuna.Study, number: int, study: Study) -> Trial:
    """Returns the trial with this number, creating it if needed."""
    while len(opened.get_trials(deepcopy=False)) <= number:
        suggest(opened.ask(), study)
    return Trial(opened, opened.get_trials(deepcopy=False)[number]._trial_id)


def _finished(opened: optuna.Study, study: Study, draws: Mapping[int, Draw]) -> dict[int, TrialScore]:
    frozen = opened.get_trials(deepcopy=False)
    finished = {}
    for number, draw in draws.items():
        state, kept = frozen[number].state, frozen[number].user_attrs
        if state.is_finished():
            scores = {name: tuple(kept[f"scores_{name}"]) for name in ("loss", *study.metrics)}
            best_epochs = tuple(kept.get("best_epochs", ()))
            finished[number] = TrialScore(number, draw, STATES[state], scores, kept["epochs"], best_epochs)
    return finished


def _tell(
    opened: optuna.Study, study: Study, trial: Trial, values: Values, done: TrialScore, num_epochs: int
) -> FrozenTrial:
    with np.errstate(invalid="ignore"):  # inf - inf, in a diverged trial
        means = values[study.score].mean(axis=0)
    if done.best_epochs:  # the last report scores a pruned trial
        means[-1] = done.mean(study.score)
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
    if done.best_epochs:
        trial.set_user_attr("best_epochs", list(done.best_epochs))
    if done.state == "complete":
        return opened.tell(trial, done.mean(study.score))
    # Optuna scores a pruned trial by its last report.
    return opened.tell(trial, state=TrialState.PRUNED if done.state == "pruned" else TrialState.FAIL)
