"""The search: draws depend only on (seed, trial, name), brackets survive a stop, diverged trials."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from studies import TOY

from hw1jax import storage
from hw1jax.core import losses
from hw1jax.results import trials as trials_
from hw1jax.search import optuna_search, samplers, space_text
from hw1jax.search import space as space_
from hw1jax.search.samplers import PureRandomSampler
from hw1jax.search.space import Choice, Float, Int
from hw1jax.search.trial_score import scored

SPACE = {
    "channels": (Int(4, 6, width=True),),
    "hidden_units": (Int(10, 50, width=True), Int(10, 50, width=True)),
    "learning_rate": Float(1e-3, 1e-1, log=True),
    "l2": Float(1e-4, 1e-1, log=True),
    "optimizer": Choice("adam", "sgd", "rmsprop"),
}
STUDY = replace(TOY, name="regression", space=SPACE)
CLASSIFIER = replace(STUDY, name="classifier", metrics={"accuracy": losses.accuracy}, maximize="accuracy")
NAN, INF = float("nan"), float("inf")
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def scores_of(drawn):
    """A small objective that needs no network: best at a learning rate of 0.01, and different in each fold."""
    distance = abs(np.log10(drawn["learning_rate"]) + 2) + 0.01 * drawn["hidden_units"][0]
    return tuple(float(distance + 0.1 * fold) for fold in range(3))


def after(folds, num_epochs=1):
    """Values [fold, epoch] of a trial whose last ones these are."""
    return np.stack([np.array(folds, float)] * num_epochs, axis=1)


class Training:
    """Stands for the training of brackets, and remembers what it was called with."""

    def __init__(self, scores=scores_of, failing=(), with_scores=(NAN, 1.0, 2.0)):
        self.calls, self._scores, self._failed = [], scores, dict.fromkeys(failing, with_scores)

    def __call__(self, draws):
        self.calls.append(list(draws))
        return {n: {"loss": after(self._failed.get(n) or self._scores(drawn))} for n, drawn in draws.items()}


def with_accuracy(draws):
    """The better the loss, the lower the accuracy, so that it shows which of them counts."""
    values = {n: np.array([[5.0, score] for score in scores_of(drawn)]) for n, drawn in draws.items()}
    return {n: {"accuracy": loss / 100, "loss": loss} for n, loss in values.items()}


def halved(draws):
    """Training of a bracket in which the best third of the trials has nine epochs, the others three."""
    ranked = sorted(draws, key=lambda number: scores_of(draws[number]))
    lengths = {number: 9 if place < math.ceil(len(ranked) / 3) else 3 for place, number in enumerate(ranked)}
    return {n: {"loss": after(scores_of(draws[n]), lengths[n]) - 0.001 * np.arange(lengths[n])} for n in draws}


def open_storage(folder, seed=0, sampler="random", study=STUDY, **more):
    folder.mkdir(exist_ok=True)
    return optuna_search.open_storage(folder / "journal.log", study, sampler=sampler, seed=seed, **more)


def run(opened, train=None, num_trials=7, bracket_size=3, study=STUDY, num_epochs=1):
    brackets = [range(first, min(first + bracket_size, num_trials)) for first in range(0, num_trials, bracket_size)]
    return list(optuna_search.search(opened, study, train or Training(), brackets=brackets, num_epochs=num_epochs))


def all_of(brackets):
    return [trial for bracket in brackets for trial in bracket]


# Draws and reports.


@pytest.mark.parametrize("seed, bracket_size", [(0, 1), (0, 3), (1, 3), (2, 100)])
def test_trials_of_any_space_are_drawn_from_seed_number_and_name_alone_and_read_back(tmp_path, seed, bracket_size):
    space = SPACE | {
        "depth": Int(1, 3, static=True),
        "steps": Int(1, 1000, log=True),
        "offset": Int(-5, 5),
        "dropout": Float(0, 0.5),
        "momentum": (Float(0.1, 0.9), Float(1e-3, 1.0, log=True)),
        "size": Choice(16, 32, 64),
        "bias": Choice(True, False),
        "optimizer": space_text.narrowed(SPACE["optimizer"], among=("rmsprop", "sgd")),
    }
    study = replace(STUDY, space=space)
    train = Training()
    brackets = run(open_storage(tmp_path, seed, study=study), train, bracket_size=bracket_size, study=study)
    assert train.calls == [[trial.number for trial in bracket] for bracket in brackets]
    assert train.calls == [[*range(7)][first : first + bracket_size] for first in range(0, 7, bracket_size)]
    for trial in all_of(brackets):
        expected = space_.random_draw(space, seed, trial.number)
        assert repr(trial.draw) == repr(expected), "the types as well"
    assert run(open_storage(tmp_path, 5, study=study), bracket_size=bracket_size, study=study) == brackets


def test_the_order_of_asking_does_not_matter():
    opened = optuna.create_study(sampler=PureRandomSampler(0))
    for trial in reversed([opened.ask() for _ in range(5)]):
        trial.suggest_float("something_else", 1, 2, log=True)
        assert samplers.suggest(trial, STUDY) == space_.random_draw(SPACE, 0, trial.number)
    with pytest.raises(ValueError, match="no way to draw something"):
        PureRandomSampler(0).sample_independent(None, SimpleNamespace(number=0), "something", None)


def test_the_journal_holds_every_trial_for_any_other_program(tmp_path):
    trials = all_of(run(open_storage(tmp_path), Training(failing=[4])))
    for line in (tmp_path / "journal.log").read_text().splitlines():
        json.loads(line)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    opened = optuna.load_study(study_name="regression", storage=optuna.storages.JournalStorage(backend))
    assert opened.direction == optuna.study.StudyDirection.MINIMIZE
    for told, trial in zip(opened.trials, trials, strict=True):
        assert told.number == trial.number
        assert told.params == space_.flatten(trial.draw)
        assert list(told.params) == list(space_.columns(SPACE))
        for fold, score in enumerate(trial.scores["loss"]):
            np.testing.assert_equal(told.user_attrs[f"split{fold}_val_loss"], score)
        assert told.state == STATES[trial.state]
        assert told.value == (trial.mean("loss") if trial.state == "complete" else None)
    assert opened.best_trial.number == trials_.best(trials, STUDY).number


# Which trial is best; ties and ranks: test_results.py.


@pytest.mark.parametrize("with_scores", [(NAN, 1.0, 2.0), (0.1, 0.1, INF), (-INF, 0.1, 0.1), (INF, -INF, 0)])
def test_a_diverged_trial_fails_and_is_never_best(tmp_path, with_scores):
    opened = open_storage(tmp_path)
    trials = all_of(run(opened, Training(failing=[0, 5], with_scores=with_scores)))
    assert [trial.number for trial in trials if trial.state == "failed"] == [0, 5]
    assert [trial.state for trial in opened.trials] == [STATES[trial.state] for trial in trials]
    assert opened.trials[0].user_attrs["scores_loss"] == pytest.approx(with_scores, nan_ok=True)
    assert trials_.best(trials, STUDY).number == opened.best_trial.number not in (0, 5)


@pytest.mark.parametrize("study", [STUDY, CLASSIFIER])
def test_what_is_not_a_number_fails_a_trial_where_it_counts_and_fewer_epochs_prune_one(study):
    counts = "f" if study is CLASSIFIER else "c"
    for epochs, loss, accuracy, state in [(9, 2, 1, "c"), (9, NAN, 1, "f"), (9, 2, NAN, counts), (3, 2, 1, "p")]:
        values = {"loss": after((loss, 4), epochs), "accuracy": after((accuracy, 1), epochs)}
        trial = scored(7, {}, study, values, 9)
        assert (trial.number, trial.state[0], trial.epochs) == (7, state, epochs)
        np.testing.assert_equal([trial.mean("loss"), trial.std("loss")], [3, 1] if loss == 2 else [NAN, NAN])


def test_the_highest_is_best_where_a_metric_is_maximized_and_every_metric_is_kept_and_read_back(tmp_path):
    opened = open_storage(tmp_path, study=CLASSIFIER)
    brackets = run(opened, with_accuracy, study=CLASSIFIER, num_epochs=2)
    assert run(open_storage(tmp_path, study=CLASSIFIER), study=CLASSIFIER, num_epochs=2) == brackets
    trials = all_of(brackets)
    for told, trial in zip(opened.trials, trials, strict=True):
        assert list(trial.scores) == ["loss", "accuracy"], "as read back, whatever order training has them in"
        for name, folds in trial.scores.items():
            assert tuple(told.user_attrs[f"split{fold}_val_{name}"] for fold in range(3)) == folds
        assert told.intermediate_values == {1: pytest.approx(0.05), 2: told.value}  # of what counts
    best, *_, worst = sorted(trials, key=lambda trial: -trial.mean("accuracy"))
    assert opened.direction == optuna.study.StudyDirection.MAXIMIZE
    assert (opened.best_trial.number, opened.best_value) == (best.number, best.mean("accuracy"))
    assert trials_.best(trials, CLASSIFIER) == best
    assert trials_.best(trials, replace(CLASSIFIER, maximize=None)) == worst  # the lowest loss


# Stopping, going on, asking for more.


def test_more_trials_later_give_what_all_at_once_would_and_fewer_are_the_first_ones(tmp_path):
    at_once = run(open_storage(tmp_path / "once"), num_trials=9)
    for num_trials in (6, 9, 6, 2):
        assert all_of(run(open_storage(tmp_path), num_trials=num_trials)) == all_of(at_once)[:num_trials]
    assert len(open_storage(tmp_path).trials) == 9


def test_a_trial_that_has_a_score_keeps_it_when_its_bracket_is_filled_up(tmp_path):
    """The bracket runs again for the new trials; Optuna's values and the report of the old ones stay the same."""
    (before,) = run(open_storage(tmp_path), num_trials=2)
    opened = open_storage(tmp_path)
    (bracket,) = run(opened, Training(lambda _: (1.0, 2.0, 3.0)), num_trials=3)
    assert bracket[:2] == before and bracket[2].scores["loss"] == (1.0, 2.0, 3.0)
    assert [trial.value for trial in opened.trials] == [trial.mean("loss") for trial in bracket]


def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path):
    def stopped(draws):
        if 3 in draws:
            raise KeyboardInterrupt
        return Training()(draws)

    with pytest.raises(KeyboardInterrupt):
        run(open_storage(tmp_path), stopped)
    assert [trial.state for trial in open_storage(tmp_path).trials[3:]] == [TrialState.RUNNING] * 3
    opened = open_storage(tmp_path)
    assert run(opened) == run(open_storage(tmp_path / "whole"))
    assert [trial.state for trial in opened.trials] == [TrialState.COMPLETE] * 7


def test_trials_that_were_asked_but_not_drawn_are_drawn_then(tmp_path):
    opened = open_storage(tmp_path)
    opened.ask()
    opened.ask().suggest_int("channels_1", 4, 6)
    opened = open_storage(tmp_path)
    (bracket,) = run(opened, num_trials=3)
    assert [trial.draw for trial in bracket] == [space_.random_draw(SPACE, 0, number) for number in range(3)]
    assert len(opened.trials) == 3


def test_a_search_stopped_between_two_tellings_tells_the_rest(tmp_path):
    first = run(open_storage(tmp_path), num_trials=3)
    opened = open_storage(tmp_path)
    asked = [opened.ask() for _ in range(3)]
    scores = scores_of([samplers.suggest(trial, STUDY) for trial in asked][0])
    asked[0].set_user_attr("scores_loss", list(scores))
    asked[0].set_user_attr("epochs", 1)
    opened.tell(asked[0], float(np.mean(scores)))
    asked[1].set_user_attr("split0_val_loss", 123.0)  # stopped in the middle of this one
    opened = open_storage(tmp_path)
    brackets = run(opened, num_trials=6)
    assert brackets[:1] == first
    assert [trial.value for trial in opened.trials[3:]] == [trial.mean("loss") for trial in brackets[1]]
    assert opened.trials[4].user_attrs["split0_val_loss"] == brackets[1][1].scores["loss"][0]


@pytest.mark.parametrize("tail", ['{"op_code":5,"worker', '{"op_code":9}'])
def test_a_line_that_was_cut_off_does_not_spoil_the_journal(tmp_path, tail):
    """A process killed while it appends leaves a part of a line; the next append must not continue that line."""
    first = run(open_storage(tmp_path), num_trials=3)
    with open(tmp_path / "journal.log", "a") as journal:
        journal.write(tail)
    longer = run(open_storage(tmp_path), num_trials=6)
    assert longer[:1] == first
    assert run(open_storage(tmp_path), num_trials=6) == longer


@pytest.mark.parametrize(
    "content, told",
    [
        ("Dear diary,\nnothing happened.\n", ", line 1 is damaged"),
        ("{}\n{cut off\n{}\n", ", line 2 is damaged"),
        ("Dear diary", " is not a journal of Optuna"),
        ('{"op_code":0}\n', " is not a journal of Optuna"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_by_name_and_left_as_it_is(tmp_path, content, told):
    (tmp_path / "journal.log").write_text(content)
    with pytest.raises(ValueError, match=f"^[^\n]*journal.log{told}[^\n]*$"):
        open_storage(tmp_path)
    assert (tmp_path / "journal.log").read_text() == content


# What a folder's search was made with.

CONFIG = {
    "num_epochs": 20,
    "space": space_text.to_json({"units": (Int(10, 50, width=True), Int(3, 30)), "optimizer": Choice("adam", "sgd")}),
    "direction": "minimize",
    "data_sha256": "0" * 64,
    "plan": {"brackets": [{"num_trials": 3, "rungs": []}], "factor": None},
    "format": storage.FORMAT,
}


def begin(folder, config):
    """What counts of a search that begins, or goes on, with this configuration."""
    rest = {name: value for name, value in config.items() if name != "plan"}
    return optuna_search.begin(open_storage(folder), rest, folder, new_plan=lambda: config["plan"])


def with_space(**space):
    return {"space": CONFIG["space"] | space_text.to_json(space)}


def test_the_same_settings_begin_a_folder_again_and_get_the_stored_plan(tmp_path):
    stored = begin(tmp_path, CONFIG)
    assert stored == json.loads(json.dumps(CONFIG)) | {"plan_sha256": stored["plan_sha256"]}
    other_plan = CONFIG | {"plan": {"brackets": [{"num_trials": 8, "rungs": []}], "factor": None}}
    assert begin(tmp_path, other_plan) == stored
    with pytest.raises(ValueError, match="^[^\n]*regression[^\n]*out=[^\n]*$"):  # whose brackets aren't its own
        open_storage(tmp_path, study=replace(STUDY, name="fashion_mlp"))


@pytest.mark.parametrize(
    "before, change, message",
    [
        ({}, {"num_epochs": 30}, "num_epochs = 20, not 30"),
        ({}, {"data_sha256": "1" * 64}, "data_sha256 = 0000"),
        ({}, {"own_folds": "0123"}, "own_folds = None, not 0123"),
        ({"own_folds": "0123"}, {}, "own_folds = 0123, not None"),
        (
            {},
            with_space(units=(Int(10, 50),)),
            r"units = \[.* {'low': 3, 'high': 30}\], not \[{'low': 10, 'high': 50}\]",
        ),
        ({}, with_space(optimizer=Choice("adam")), r"optimizer = {.*'sgd'\]}, not {'among': \['adam'\]}"),
        ({}, with_space(rate=Float(0.1, 1.0, log=True)), "rate = None, not {'low': 0.1, 'high': 1.0, 'log': True}"),
    ],
)
def test_other_settings_are_refused_with_the_difference_and_what_to_do(tmp_path, before, change, message):
    stored = begin(tmp_path, CONFIG | before)
    with pytest.raises(ValueError, match=message) as caught:
        begin(tmp_path, CONFIG | change)
    assert str(tmp_path) in str(caught.value) and "out=" in str(caught.value) and "\n" not in str(caught.value)
    assert begin(tmp_path, CONFIG | before) == stored


def test_a_plan_that_is_not_the_one_that_was_stored_is_refused(tmp_path):
    begin(tmp_path, CONFIG)
    journal = tmp_path / "journal.log"
    journal.write_text(journal.read_text().replace('"num_trials":3', '"num_trials":4'))
    with pytest.raises(ValueError, match="journal.log is damaged: the plan"):
        begin(tmp_path, CONFIG)


@pytest.mark.parametrize("number", [None, 1, storage.FORMAT - 1, storage.FORMAT + 1])
def test_a_search_in_another_format_is_refused_in_one_line(tmp_path, number):
    """The first format had no number."""
    other = {name: value for name, value in CONFIG.items() if name != "format"} | ({"format": number} if number else {})
    begin(tmp_path, other)
    message = f"^[^\n]*has the format {number or 1}, this version [^\n]* another out=$"
    with pytest.raises(storage.FormatError, match=message):
        begin(tmp_path, CONFIG)


# Trials that are pruned.


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_of_fewer_epochs_is_pruned_and_counts_with_the_last_value_that_was_reported(tmp_path, sampler):
    def train(draws):
        return halved(draws) | ({0: {"loss": after((NAN, 1.0, 1.0), 3)}} if 0 in draws else {})

    common = {"num_trials": 12, "bracket_size": 6, "num_epochs": 9}
    opened = open_storage(tmp_path, sampler=sampler)
    brackets = run(opened, train, **common)
    assert run(open_storage(tmp_path, sampler=sampler), train, **common)[1:] == brackets[1:]
    failed, *trials = all_of(brackets)
    assert (failed.state, failed.epochs, opened.trials[0].state) == ("failed", 3, TrialState.FAIL)
    assert {(trial.state, trial.epochs) for trial in trials} == {("complete", 9), ("pruned", 3)}
    for told, trial in zip(opened.trials[1:], trials, strict=True):
        assert told.state == STATES[trial.state]
        assert max(told.intermediate_values) == trial.epochs
        assert told.value == pytest.approx(trial.mean("loss"))  # of a pruned one Optuna takes what was reported last
        assert told.intermediate_values[trial.epochs] == pytest.approx(trial.mean("loss"))


def test_a_pruned_trial_is_reported_no_more_often_than_a_complete_one_by_the_same_epoch(tmp_path):
    """A journal takes a third of a millisecond for each."""

    def train(draws):
        return {n: {"loss": after((1.0, 2.0), 1000 if n == 0 else 38)} for n in draws}

    opened = open_storage(tmp_path)
    run(opened, train, num_trials=2, num_epochs=1000)
    complete, pruned = (list(trial.intermediate_values) for trial in opened.trials)
    assert len(complete) == optuna_search.MOST_REPORTS and complete[-1] == 1000
    assert pruned == [epoch for epoch in complete if epoch < 38] + [38]


# The other sampler.


def highest(draws):
    return {n: {"loss": after((1.0,)), "accuracy": after((2 - scores_of(drawn)[0],))} for n, drawn in draws.items()}


@pytest.mark.parametrize(
    "train, study, num_epochs", [(Training(), STUDY, 1), (halved, STUDY, 9), (highest, CLASSIFIER, 1)]
)
def test_tpe_learns_from_bracket_to_bracket_within_the_ranges_and_repeats_no_trial(tmp_path, train, study, num_epochs):
    opened = open_storage(tmp_path, sampler="tpe", study=study)
    brackets = run(opened, train, num_trials=30, bracket_size=6, study=study, num_epochs=num_epochs)
    means = [np.mean([scores_of(trial.draw) for trial in bracket]) for bracket in brackets]
    assert np.mean(means[3:]) < np.mean(means[:2])
    drawn = [trial.draw for trial in all_of(brackets)]
    assert len({d["learning_rate"] for d in drawn}) == 30
    assert all(10 <= width <= 50 for d in drawn for width in d["hidden_units"])
    assert all(1e-3 <= d["learning_rate"] <= 1e-1 and 1e-4 <= d["l2"] <= 1e-1 for d in drawn)
    assert [trial.state for trial in opened.trials].count(TrialState.PRUNED) == (20 if train is halved else 0)


def test_tpe_draws_the_same_with_the_same_seed_past_diverged_trials_and_takes_up_running_ones(tmp_path):
    open_storage(tmp_path, sampler="tpe").ask()
    common, failing = {"num_trials": 12, "bracket_size": 4}, [0, 2, 4, 6]
    brackets = run(open_storage(tmp_path, sampler="tpe"), Training(failing=failing), **common)
    opened = open_storage(tmp_path, sampler="tpe")
    assert [n for n, trial in enumerate(opened.trials) if trial.state == TrialState.FAIL] == failing, "0 was running"
    assert [trial.state for trial in opened.trials].count(TrialState.COMPLETE) == 8 == len(opened.trials) - 4
    again = all_of(run(open_storage(tmp_path / "again", sampler="tpe"), Training(failing=failing), **common))
    assert [trial.draw for trial in again] == [trial.draw for trial in all_of(brackets)]
    other = all_of(run(open_storage(tmp_path / "other", seed=1, sampler="tpe"), **common))
    assert not {t.draw["learning_rate"] for t in other} & {t.draw["learning_rate"] for t in again}
