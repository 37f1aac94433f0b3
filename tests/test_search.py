"""The search: draws that depend on nothing but (seed, trial, name), brackets that survive a stop, diverged trials."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hw1jax import losses, results, search, storage
from hw1jax import space as space_
from hw1jax.search import PureRandomSampler
from hw1jax.space import Choice, Float, Int
from hw1jax.study import Study, narrow, scored

SPACE = {
    "channels": (Int(4, 6, width=True),),
    "hidden_units": (Int(10, 50, width=True), Int(10, 50, width=True)),
    "learning_rate": Float(1e-3, 1e-1, log=True),
    "l2": Float(1e-4, 1e-1, log=True),
    "optimizer": Choice("adam", "sgd", "rmsprop"),
}
STUDY = Study("regression", task=toy.task, data=toy.DATA, space=SPACE)
CLASSIFIER = replace(STUDY, name="classifier", metrics={"accuracy": losses.accuracy}, maximize="accuracy")
NAMES = ["channels_1", "hidden_units_1", "hidden_units_2", "learning_rate", "l2", "optimizer"]
RATE = FloatDistribution(1e-3, 1e-1, log=True)
NAN, INF = float("nan"), float("inf")


def draw(seed, number, name, distribution):
    return PureRandomSampler(seed).sample_independent(None, SimpleNamespace(number=number), name, distribution)


def scores_of(drawn, num_folds=3):
    """A small objective that needs no network: best at a learning rate of 0.01, and different in each fold."""
    distance = abs(np.log10(drawn["learning_rate"]) + 2) + 0.01 * drawn["hidden_units"][0]
    return tuple(float(distance + 0.1 * fold) for fold in range(num_folds))


def after(folds, num_epochs=1):
    """Values [fold, epoch] of a trial whose last ones these are."""
    return np.stack([np.array(folds, float)] * num_epochs, axis=1)


class Training:
    """Stands for the training of brackets, and remembers what it was called with."""

    def __init__(self, scores=scores_of):
        self.calls, self._scores = [], scores

    def __call__(self, draws):
        self.calls.append(list(draws))
        return {number: {"loss": after(self._scores(drawn))} for number, drawn in draws.items()}


def diverged(*numbers, with_scores=(NAN, 1.0, 2.0)):
    """Training in which these trials diverge."""

    def train(draws):
        return {n: {"loss": after(with_scores if n in numbers else scores_of(drawn))} for n, drawn in draws.items()}

    return train


def open_storage(folder, seed=0, sampler="random", study=STUDY):
    return search.open_storage(folder / "journal.log", study, sampler=sampler, seed=seed)


def run(opened, train=None, num_trials=7, bracket_size=3, study=STUDY, num_epochs=1):
    brackets = [range(first, min(first + bracket_size, num_trials)) for first in range(0, num_trials, bracket_size)]
    return list(search.search(opened, study, train or Training(), brackets=brackets, num_epochs=num_epochs))


def table(brackets):
    return {trial.number: (trial.draw, trial.scores) for trial in all_of(brackets)}


def all_of(brackets):
    return [trial for bracket in brackets for trial in bracket]


# The sampler.


@given(st.integers(0, 2**40), st.integers(0, 10_000), st.sampled_from(NAMES))
@settings(max_examples=50, deadline=None)
def test_a_draw_is_a_pure_function_of_seed_trial_number_and_name(seed, number, name):
    sampler = PureRandomSampler(seed)
    trial = SimpleNamespace(number=number)
    for distribution in (RATE, IntDistribution(1, 10**6), CategoricalDistribution(list(range(1000)))):
        expected = draw(seed, number, name, distribution)
        sampler.sample_independent(None, SimpleNamespace(number=number + 1), "other", distribution)
        assert sampler.sample_independent(None, trial, name, distribution) == expected


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 60), st.floats(1e-6, 1.0), st.floats(1.0, 1e6), st.integers(0, 2**32 - 1))
def test_draws_stay_within_their_bounds(low, extra, float_low, factor, seed):
    value = draw(seed, 0, "units", IntDistribution(low, low + extra))
    assert isinstance(value, int)
    assert low <= value <= low + extra
    value = draw(seed, 0, "rate", FloatDistribution(float_low, float_low * factor, log=True))
    assert isinstance(value, float)
    assert float_low <= value <= float_low * factor


@pytest.mark.parametrize("value", [1e-3, 0.1, 0.016, 3e-5])
def test_a_range_of_one_number_gives_this_number(value):
    assert {draw(seed, 0, "l2", FloatDistribution(value, value, log=True)) for seed in range(20)} == {value}
    assert {draw(seed, 0, "units", IntDistribution(7, 7)) for seed in range(20)} == {7}


def test_both_bounds_of_whole_numbers_are_reached_and_all_are_alike_frequent():
    counts = np.bincount([draw(0, number, "units", IntDistribution(3, 7)) for number in range(3000)])
    assert counts[:3].tolist() == [0, 0, 0]
    assert len(counts) == 8
    assert np.all(np.abs(counts[3:] - 600) < 5 * np.sqrt(600))


def test_every_choice_is_alike_frequent():
    choices = ["adam", "sgd", "rmsprop"]
    drawn = [draw(0, number, "optimizer", CategoricalDistribution(choices)) for number in range(3000)]
    assert all(abs(drawn.count(choice) - 1000) < 5 * np.sqrt(1000) for choice in choices)


def test_a_choice_comes_back_as_it_was_given():
    choices = [1, 2.5, None, True, "adam"]
    drawn = [draw(0, number, "choice", CategoricalDistribution(choices)) for number in range(100)]
    assert {repr(choice) for choice in drawn} == {repr(choice) for choice in choices}


def test_learning_rates_are_uniform_on_a_logarithmic_scale():
    drawn = np.sort([draw(0, number, "learning_rate", RATE) for number in range(3000)])
    share = (np.log10(drawn) + 3) / 2
    assert np.max(np.abs(share - (np.arange(3000) + 0.5) / 3000)) < 1.95 / np.sqrt(3000)  # Kolmogorov-Smirnov, 0.1 %


def test_seeds_trials_and_names_draw_independently():
    drawn = np.log([[draw(seed, n, name, RATE) for n in range(300)] for seed in (0, 1) for name in ("a", "b")])
    assert np.all(np.abs(np.corrcoef(drawn) - np.eye(4)) < 0.25)
    assert np.all(np.abs([np.corrcoef(row[1:], row[:-1])[0, 1] for row in drawn]) < 0.25)


def test_two_seeds_give_different_trials(tmp_path):
    (tmp_path / "a").mkdir()
    one, other = table(run(open_storage(tmp_path, seed=0))), table(run(open_storage(tmp_path / "a", seed=1)))
    assert all(one[n][0]["learning_rate"] != other[n][0]["learning_rate"] for n in one)


def test_the_order_of_asking_does_not_matter(tmp_path):
    in_brackets = table(run(open_storage(tmp_path), num_trials=5, bracket_size=2))
    opened = optuna.create_study(sampler=PureRandomSampler(0))
    for number, trial in enumerate([opened.ask() for _ in range(5)]):
        drawn, _ = in_brackets[number]
        trial.suggest_float("something_else", 1, 2, log=True)
        assert trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True) == drawn["learning_rate"]
        assert search.suggest(trial, STUDY) == drawn


def test_two_workers_on_one_journal_draw_what_one_would(tmp_path):
    (tmp_path / "alone").mkdir()
    alone = table(run(open_storage(tmp_path / "alone"), num_trials=6))
    workers = [open_storage(tmp_path) for _ in range(2)]
    for i in range(6):
        trial = workers[i % 2].ask()
        assert trial.number == i
        assert search.suggest(trial, STUDY) == alone[i][0]


def test_numbers_that_cant_be_drawn_are_named():
    with pytest.raises(ValueError, match="no way to draw something"):
        draw(0, 0, "something", None)


# Asking and telling.


def test_trial_n_is_in_bracket_n_over_the_brackets_size(tmp_path):
    train = Training()
    brackets = run(open_storage(tmp_path), train, num_trials=7, bracket_size=3)
    assert train.calls == [[0, 1, 2], [3, 4, 5], [6]]
    assert [[trial.number for trial in bracket] for bracket in brackets] == train.calls


@pytest.mark.parametrize("bracket_size", [1, 2, 7, 100])
def test_the_size_of_the_brackets_changes_no_draw(tmp_path, bracket_size):
    expected = {number: draw(0, number, "learning_rate", RATE) for number in range(7)}
    brackets = run(open_storage(tmp_path), bracket_size=bracket_size)
    assert {number: row[0]["learning_rate"] for number, row in table(brackets).items()} == expected


def test_the_journal_holds_every_trial_for_any_other_program(tmp_path):
    brackets = run(open_storage(tmp_path), diverged(4))
    for line in (tmp_path / "journal.log").read_text().splitlines():
        json.loads(line)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    opened = optuna.load_study(study_name="regression", storage=optuna.storages.JournalStorage(backend))
    assert opened.direction == optuna.study.StudyDirection.MINIMIZE
    trials = all_of(brackets)
    for told, trial in zip(opened.trials, trials, strict=True):
        assert told.number == trial.number
        assert told.params == space_.flatten(trial.draw)
        assert list(told.params) == NAMES
        for fold, score in enumerate(trial.scores["loss"]):
            np.testing.assert_equal(told.user_attrs[f"split{fold}_val_loss"], score)
        assert (told.state == TrialState.COMPLETE) == (trial.state == "complete")
        assert told.value == (trial.mean("loss") if trial.state == "complete" else None)
    assert opened.best_trial.number == results.best(trials, STUDY).number


def test_a_draw_as_json_and_as_columns_says_the_same():
    space = SPACE | {"channels": (Int(4, 6), Int(10, 15))}
    drawn = {"channels": (4, 12), "hidden_units": (38, 28), "learning_rate": 0.008, "l2": 0.0001, "optimizer": "adam"}
    as_json = space_.draw_to_json(drawn)
    assert json.loads(json.dumps(as_json)) == as_json
    assert space_.draw_from_json(space, json.loads(json.dumps(as_json))) == drawn
    assert as_json["channels"] == [4, 12]
    flat, widths = space_.flatten(drawn), ["channels_1", "channels_2", "hidden_units_1", "hidden_units_2"]
    assert list(flat) == list(space_.columns(space)) == [*widths, "learning_rate", "l2", "optimizer"]
    assert flat["hidden_units_2"] == 28


def test_ranges_are_shown_as_flags_take_them():
    assert f"{Int(10, 50)} {Float(1e-3, 0.1)}" == "10-50 0.001-0.1"


@pytest.mark.parametrize(
    "with_scores", [(NAN, 1.0, 2.0), (0.1, 0.1, INF), (-INF, 0.1, 0.1), (NAN, NAN, NAN), (INF, -INF, 0)]
)
def test_a_diverged_trial_fails_and_is_never_best(tmp_path, with_scores):
    opened = open_storage(tmp_path)
    trials = all_of(run(opened, diverged(0, 5, with_scores=with_scores)))
    assert [trial.number for trial in trials if trial.state == "failed"] == [0, 5]
    states = [trial.state for trial in opened.trials]
    assert [n for n, state in enumerate(states) if state == TrialState.FAIL] == [0, 5]
    assert states.count(TrialState.COMPLETE) == 5
    assert opened.trials[0].user_attrs["scores_loss"] == pytest.approx(with_scores, nan_ok=True)
    assert results.best(trials, STUDY).number == opened.best_trial.number not in (0, 5)
    ranks = results.ranks(trials, STUDY)
    assert ranks[0] is None
    assert sorted(rank for rank in ranks if rank) == [1, 2, 3, 4, 5]
    assert np.isnan(trials[0].std("loss"))


def test_no_trial_is_best_if_all_have_diverged(tmp_path):
    trials = all_of(run(open_storage(tmp_path), diverged(*range(7))))
    assert results.best(trials, STUDY) is None
    assert results.ranks(trials, STUDY) == [None] * 7


def test_scores_ranks_and_the_best_by_hand():
    table = [(1.0, 3.0), (1.0, 2.0), (2.0, 2.0), (INF, 0.0), (1.5, 1.5), (9.0, 9.0)]
    trials = [scored(number, {}, STUDY, {"loss": after(scores)}, 1) for number, scores in enumerate(table)]
    assert [t.mean("loss") for t in trials[:3]] == [2.0, 1.5, 2.0]
    assert trials[0].std("loss") == 1.0
    assert results.ranks(trials, STUDY) == [3, 1, 3, None, 1, 5]
    assert results.best(trials, STUDY).number == 1  # the first of equals


# Metrics.


def with_accuracy(draws):
    """The better the loss, the lower the accuracy, so that it shows which of them counts."""
    losses_ = {n: np.array([[5.0, score] for score in scores_of(drawn)]) for n, drawn in draws.items()}
    return {n: {"accuracy": loss / 100, "loss": loss} for n, loss in losses_.items()}


def test_the_highest_is_best_where_a_metric_is_maximized(tmp_path):
    opened = open_storage(tmp_path, study=CLASSIFIER)
    trials = all_of(run(opened, with_accuracy, study=CLASSIFIER, num_epochs=2))
    assert opened.direction == optuna.study.StudyDirection.MAXIMIZE
    highest = max(trials, key=lambda trial: trial.mean("accuracy"))
    assert results.best(trials, CLASSIFIER) == highest
    assert opened.best_trial.number == highest.number
    assert opened.best_value == highest.mean("accuracy")
    in_order = sorted(trials, key=lambda trial: -trial.mean("accuracy"))
    ranks = results.ranks(trials, CLASSIFIER)
    assert [ranks[trial.number] for trial in in_order] == [1, 2, 3, 4, 5, 6, 7]
    assert results.best(trials, replace(CLASSIFIER, maximize=None)) == in_order[-1]  # the lowest loss


def test_of_equals_the_first_is_best_where_a_metric_is_maximized():
    trials = [
        scored(n, {}, CLASSIFIER, {"loss": after((1.0,)), "accuracy": after((value,))}, 1)
        for n, value in enumerate([0.5, 0.9, 0.9, 0.1])
    ]
    assert results.ranks(trials, CLASSIFIER) == [3, 1, 1, 4]
    assert results.best(trials, CLASSIFIER).number == 1


def test_every_metric_of_a_trial_is_kept_and_read_back(tmp_path):
    first = run(open_storage(tmp_path, study=CLASSIFIER), with_accuracy, study=CLASSIFIER, num_epochs=2)
    opened = open_storage(tmp_path, study=CLASSIFIER)
    assert table(run(opened, Training(), study=CLASSIFIER, num_epochs=2)) == table(first)
    for trial in all_of(first):
        assert list(trial.scores) == ["loss", "accuracy"], "as read back, whatever order training has them in"
    for told, trial in zip(opened.trials, all_of(first), strict=True):
        assert set(trial.scores) == {"loss", "accuracy"}
        for name, folds in trial.scores.items():
            assert tuple(told.user_attrs[f"split{fold}_val_{name}"] for fold in range(3)) == folds
        assert told.intermediate_values == {1: pytest.approx(0.05), 2: told.value}  # of what counts


def test_a_trial_whose_loss_is_not_a_number_fails_although_its_accuracy_is(tmp_path):
    def train(draws):
        last = {n: {"loss": (NAN if n == 2 else 1.0,) * 3, "accuracy": (0.5 + n / 100,) * 3} for n in draws}
        return {n: {name: after(folds) for name, folds in values.items()} for n, values in last.items()}

    opened = open_storage(tmp_path, study=CLASSIFIER)
    trials = all_of(run(opened, train, num_trials=3, study=CLASSIFIER))
    assert [trial.state for trial in trials] == ["complete", "complete", "failed"]
    assert [trial.state for trial in opened.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert results.best(trials, CLASSIFIER).number == 1
    assert results.ranks(trials, CLASSIFIER) == [2, 1, None]


def test_a_metric_that_is_not_a_number_fails_a_trial_only_where_it_counts():
    values = {"loss": after((1.0, 2.0)), "accuracy": after((NAN, 0.5))}
    assert scored(0, {}, CLASSIFIER, values, 1).state == "failed"
    assert scored(0, {}, replace(CLASSIFIER, maximize=None), values, 1).state == "complete"


# Spaces of any names.


def test_hyperparameters_of_any_name_and_kind_are_drawn_kept_and_read_back(tmp_path):
    space = {
        "depth": Int(1, 3, static=True),
        "steps": Int(1, 1000, log=True),
        "offset": Int(-5, 5),
        "dropout": Float(0, 0.5),
        "momentum": (Float(0.1, 0.9), Float(1e-3, 1.0, log=True)),
        "activation": Choice("relu", "tanh", static=True),
        "size": Choice(16, 32, 64),
        "bias": Choice(True, False),
    }
    study = replace(STUDY, space=space)

    def train(draws):
        return {number: {"loss": after((1.0, 2.0))} for number in draws}

    drawn = {n: row[0] for n, row in table(run(open_storage(tmp_path, study=study), train, study=study)).items()}
    again = {n: row[0] for n, row in table(run(open_storage(tmp_path, study=study), train, study=study)).items()}
    assert drawn == again == {number: space_.random_draw(space, 0, number) for number in range(7)}
    for values in drawn.values():
        assert [type(values[name]) for name in ("depth", "dropout", "activation", "size", "bias")] == [
            int,
            float,
            str,
            int,
            bool,
        ]
        assert -5 <= values["offset"] <= 5 and 1 <= values["steps"] <= 1000 and len(values["momentum"]) == 2


def test_a_narrowed_choice_draws_from_what_is_left_and_keeps_its_indices(tmp_path):
    study = narrow(STUDY, optimizer=space_.narrowed(SPACE["optimizer"], among=("rmsprop", "sgd")))
    drawn = [trial.draw for trial in all_of(run(open_storage(tmp_path, study=study), num_trials=20, study=study))]
    assert {one["optimizer"] for one in drawn} == {"rmsprop", "sgd"}
    expected = [("adam", "sgd", "rmsprop").index(one["optimizer"]) for one in drawn]
    assert space_.as_arrays(study.space, drawn)["optimizer"].tolist() == expected


# Stopping, going on, asking for more.


def test_finished_brackets_are_not_trained_again(tmp_path):
    first = run(open_storage(tmp_path), num_trials=6)
    train = Training()
    assert table(run(open_storage(tmp_path), train, num_trials=6)) == table(first)
    assert train.calls == []
    assert len(open_storage(tmp_path).trials) == 6


def test_more_trials_later_give_what_all_at_once_would(tmp_path):
    (tmp_path / "once").mkdir()
    at_once = table(run(open_storage(tmp_path / "once"), num_trials=9))
    run(open_storage(tmp_path), num_trials=6)
    train = Training()
    assert table(run(open_storage(tmp_path), train, num_trials=9)) == at_once
    assert train.calls == [[6, 7, 8]]


def test_fewer_trials_later_are_the_first_ones(tmp_path):
    all_trials = table(run(open_storage(tmp_path)))
    fewer = table(run(open_storage(tmp_path), num_trials=2))
    assert fewer == {number: all_trials[number] for number in (0, 1)}


def test_a_trial_that_has_a_score_keeps_it_when_its_bracket_is_filled_up(tmp_path):
    """Its bracket has to run once more for the new trials; what Optuna was told and what is reported stay the same."""
    run(open_storage(tmp_path), num_trials=2)
    opened = open_storage(tmp_path)
    (bracket,) = run(opened, Training(lambda drawn: (1.0, 2.0, 3.0)), num_trials=3)
    expected = [scores_of(trial.draw) for trial in bracket[:2]] + [(1.0, 2.0, 3.0)]
    assert [trial.scores["loss"] for trial in bracket] == expected
    assert [trial.value for trial in opened.trials] == [trial.mean("loss") for trial in bracket]


def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = table(run(open_storage(tmp_path / "whole")))

    class Stopped(Training):
        def __call__(self, draws):
            if 3 in draws:
                raise KeyboardInterrupt
            return super().__call__(draws)

    with pytest.raises(KeyboardInterrupt):
        run(open_storage(tmp_path), Stopped())
    assert [trial.state for trial in open_storage(tmp_path).trials[3:]] == [TrialState.RUNNING] * 3
    train = Training()
    opened = open_storage(tmp_path)
    assert table(run(opened, train)) == whole
    assert train.calls == [[3, 4, 5], [6]]
    assert [trial.state for trial in opened.trials] == [TrialState.COMPLETE] * 7


@pytest.mark.parametrize("num_suggested", [0, 1])
def test_a_trial_that_was_asked_but_not_drawn_is_drawn_then(tmp_path, num_suggested):
    trial = open_storage(tmp_path).ask()
    if num_suggested:
        trial.suggest_int("channels_1", 4, 6)
    opened = open_storage(tmp_path)
    (bracket,) = run(opened, num_trials=1)
    assert bracket[0].draw == search.suggest(optuna.create_study(sampler=PureRandomSampler(0)).ask(), STUDY)
    assert len(opened.trials) == 1


def test_a_search_stopped_between_two_tellings_tells_the_rest(tmp_path):
    first = table(run(open_storage(tmp_path), num_trials=3))

    opened = open_storage(tmp_path)
    asked = [opened.ask() for _ in range(3)]
    draws = [search.suggest(trial, STUDY) for trial in asked]
    asked[0].set_user_attr("scores_loss", list(scores_of(draws[0])))
    asked[0].set_user_attr("epochs", 1)
    opened.tell(asked[0], float(np.mean(scores_of(draws[0]))))
    asked[1].set_user_attr("split0_val_loss", 123.0)  # stopped in the middle of this one

    opened = open_storage(tmp_path)
    brackets = run(opened, num_trials=6)
    assert table(brackets[:1]) == first
    assert [trial.value for trial in opened.trials[3:]] == [trial.mean("loss") for trial in brackets[1]]
    assert opened.trials[4].user_attrs["split0_val_loss"] == brackets[1][1].scores["loss"][0]


def test_a_trial_that_another_process_has_begun_and_not_drawn_is_drawn_under_its_number(tmp_path):
    opened, other = open_storage(tmp_path), open_storage(tmp_path)
    ask, asked = opened.ask, []

    def ask_too_late():
        if not asked:
            asked.append(other.ask())
        return ask()

    opened.ask = ask_too_late
    (tmp_path / "alone").mkdir()
    assert table(run(opened)) == table(run(open_storage(tmp_path / "alone")))


@pytest.mark.parametrize("tail", ['{"op_code":5,"worker', '{"op_code":9}'])
def test_a_line_that_was_cut_off_does_not_spoil_the_journal(tmp_path, tail):
    """A process killed while it appends leaves a part of a line; the next append must not continue that line."""
    first = table(run(open_storage(tmp_path), num_trials=3))
    with open(tmp_path / "journal.log", "a") as journal:
        journal.write(tail)
    assert table(run(open_storage(tmp_path), num_trials=6)).items() >= first.items()
    train = Training()
    assert len(table(run(open_storage(tmp_path), train, num_trials=6))) == 6
    assert train.calls == []


def test_a_file_that_is_no_journal_is_refused_by_name(tmp_path):
    (tmp_path / "journal.log").write_text("Dear diary,\nnothing happened today.\n")
    with pytest.raises(ValueError, match="journal.log") as caught:
        open_storage(tmp_path)
    assert "\n" not in str(caught.value)


# What a folder's search was made with.

CONFIG = {
    "num_epochs": 20,
    "batch_size": 20,
    "space": space_.to_json(
        {
            "hidden_units": (Int(10, 50, width=True), Int(3, 30, width=True)),
            "learning_rate": Float(1e-3, 1e-1, log=True),
            "optimizer": Choice("adam", "sgd"),
        }
    ),
    "score": "loss",
    "direction": "minimize",
    "data_sha256": "0" * 64,
    "plan": {"brackets": [{"num_trials": 3, "rungs": []}], "factor": None},
    "format": storage.FORMAT,
}


def test_the_same_settings_begin_a_folder_again_and_get_the_stored_plan(tmp_path):
    stored = search.begin(open_storage(tmp_path), CONFIG, tmp_path)
    assert stored == json.loads(json.dumps(CONFIG))
    other_plan = CONFIG | {"plan": {"brackets": [{"num_trials": 8, "rungs": []}], "factor": None}}
    assert search.begin(open_storage(tmp_path), other_plan, tmp_path) == stored
    assert search.begin(open_storage(tmp_path), CONFIG, tmp_path)["plan"] == CONFIG["plan"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("num_epochs", 30, "num_epochs = 20, not 30"),
        ("batch_size", 10, "batch_size = 20, not 10"),
        ("data_sha256", "1" * 64, "data_sha256 = 0000"),
        ("score", "accuracy", "score = loss, not accuracy"),
        ("direction", "maximize", "direction = minimize, not maximize"),
        ("own_folds", "0123", "own_folds = None, not 0123"),
    ],
)
def test_other_settings_are_refused_with_the_difference_and_what_to_do(tmp_path, name, value, message):
    refused(tmp_path, CONFIG | {name: value}, message)


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "hidden_units",
            (Int(10, 50),),
            r"hidden_units = \[{'low': 10, 'high': 50}, {'low': 3, 'high': 30}\], not \[{'low': 10, 'high': 50}\]",
        ),
        (
            "learning_rate",
            Float(1e-3, 1.0, log=True),
            r"learning_rate = {'low': 0.001, 'high': 0.1, 'log': True}, not {'low': 0.001, 'high': 1.0, 'log': True}",
        ),
        ("learning_rate", Float(1e-3, 0.1), "learning_rate = .*, not {'low': 0.001, 'high': 0.1}"),
        ("optimizer", Choice("adam"), r"optimizer = {'among': \['adam', 'sgd'\]}, not {'among': \['adam'\]}"),
        ("channels", (Int(4, 10),), r"channels = None, not \[{'low': 4, 'high': 10}\]"),
    ],
)
def test_another_space_is_refused_with_the_difference_and_what_to_do(tmp_path, name, value, message):
    refused(tmp_path, CONFIG | {"space": CONFIG["space"] | space_.to_json({name: value})}, message)


def refused(folder, config, message):
    search.begin(open_storage(folder), CONFIG, folder)
    with pytest.raises(ValueError, match=message) as caught:
        search.begin(open_storage(folder), config, folder)
    assert str(folder) in str(caught.value)
    assert "out=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert search.begin(open_storage(folder), CONFIG, folder)["num_epochs"] == 20


@pytest.mark.parametrize("number", [None, 1, 2, 3, storage.FORMAT + 1])
def test_a_search_in_another_format_is_refused_in_one_line(tmp_path, number):
    """The first format had no number."""
    other = {name: value for name, value in CONFIG.items() if name != "format"} | ({"format": number} if number else {})
    search.begin(open_storage(tmp_path), other, tmp_path)
    with pytest.raises(
        storage.FormatError, match=f"has the format {number or 1}, this version .* another out="
    ) as caught:
        search.begin(open_storage(tmp_path), CONFIG, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_study_is_refused(tmp_path):
    """Its brackets would be taken for this study's own."""
    search.begin(open_storage(tmp_path), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="regression.*out=") as caught:
        search.begin(open_storage(tmp_path, study=replace(STUDY, name="fashion_mlp")), CONFIG, tmp_path)
    assert "\n" not in str(caught.value)


# Trials that are pruned.


def halved(draws):
    """Training of a bracket in which the best third of the trials has nine epochs, the others three."""
    ranked = sorted(draws, key=lambda number: scores_of(draws[number]))
    lengths = {number: 9 if place < math.ceil(len(ranked) / 3) else 3 for place, number in enumerate(ranked)}
    return {n: {"loss": after(scores_of(draws[n]), lengths[n]) - 0.001 * np.arange(lengths[n])} for n in draws}


def test_a_trial_of_fewer_epochs_is_pruned_and_counts_with_the_last_value_that_was_reported(tmp_path):
    opened = open_storage(tmp_path)
    trials = all_of(run(opened, halved, num_trials=6, bracket_size=6, num_epochs=9))
    assert [trial.state for trial in trials].count("complete") == 2
    assert {(trial.state, trial.epochs) for trial in trials} == {("complete", 9), ("pruned", 3)}
    for told, trial in zip(opened.trials, trials, strict=True):
        assert told.state == {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}[trial.state]
        assert max(told.intermediate_values) == trial.epochs
        assert told.value == pytest.approx(trial.mean("loss"))  # of a pruned one Optuna takes what was reported last
        assert told.intermediate_values[trial.epochs] == pytest.approx(trial.mean("loss"))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_states_and_epochs_are_read_back(tmp_path, sampler):
    common = {"num_trials": 12, "bracket_size": 6, "num_epochs": 9}
    first = run(open_storage(tmp_path, sampler=sampler), halved, **common)
    assert {trial.state for trial in all_of(first)} == {"complete", "pruned"}
    train = Training()
    assert run(open_storage(tmp_path, sampler=sampler), train, **common) == first
    assert train.calls == []


def test_the_best_is_complete_and_ranks_go_by_epochs_first():
    values = [(1, 0.1), (9, 0.9), (3, 0.5), (9, 0.3), (3, 0.2), (9, NAN), (3, NAN)]
    trials = [scored(n, {}, STUDY, {"loss": after((v,), epochs)}, 9) for n, (epochs, v) in enumerate(values)]
    assert [t.state for t in trials] == ["pruned", "complete", "pruned", "complete", "pruned", "failed", "failed"]
    assert [t.epochs for t in trials] == [epochs for epochs, _ in values]
    assert results.best(trials, STUDY).number == 3
    assert results.ranks(trials, STUDY) == [5, 2, 4, 1, 3, None, None]


def test_a_trial_that_diverges_on_a_rung_fails_with_the_epochs_that_it_had(tmp_path):
    def train(draws):
        return halved(draws) | {0: {"loss": after((NAN, 1.0, 1.0), 3)}}

    opened = open_storage(tmp_path)
    trials = all_of(run(opened, train, num_trials=6, bracket_size=6, num_epochs=9))
    assert (trials[0].state, trials[0].epochs) == ("failed", 3)
    assert opened.trials[0].state == TrialState.FAIL
    assert all_of(run(open_storage(tmp_path), train, num_trials=6, bracket_size=6, num_epochs=9))[1:] == trials[1:]


def test_a_pruned_trial_is_reported_no_more_often_than_a_complete_one_by_the_same_epoch(tmp_path):
    """A journal takes a third of a millisecond for each."""

    def train(draws):
        return {n: {"loss": after((1.0, 2.0), 1000 if n == 0 else 38)} for n in draws}

    opened = open_storage(tmp_path)
    run(opened, train, num_trials=2, num_epochs=1000)
    complete, pruned = (list(trial.intermediate_values) for trial in opened.trials)
    assert len(complete) == search.MOST_REPORTS and complete[-1] == 1000
    assert pruned == [epoch for epoch in complete if epoch < 38] + [38]


# The other sampler.


@pytest.fixture(scope="module")
def tpe_brackets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tpe")
    return folder, run(open_storage(folder, sampler="tpe"), num_trials=30, bracket_size=6)


def test_tpe_learns_from_bracket_to_bracket(tpe_brackets):
    _, brackets = tpe_brackets
    means = [np.mean([trial.mean("loss") for trial in bracket]) for bracket in brackets]
    assert all(trial.state == "complete" for trial in all_of(brackets))
    assert np.mean(means[3:]) < np.mean(means[:2])


def test_tpe_stays_within_the_ranges_and_repeats_no_trial(tpe_brackets):
    drawn = [trial.draw for trial in all_of(tpe_brackets[1])]
    assert len({d["learning_rate"] for d in drawn}) == 30
    assert all(10 <= width <= 50 for d in drawn for width in d["hidden_units"])
    assert all(1e-3 <= d["learning_rate"] <= 1e-1 and 1e-4 <= d["l2"] <= 1e-1 for d in drawn)


def test_tpe_draws_the_same_with_the_same_seed_and_reads_back_what_is_done(tpe_brackets, tmp_path):
    folder, brackets = tpe_brackets
    again = run(open_storage(tmp_path, sampler="tpe"), num_trials=18, bracket_size=6)
    assert table(again) == table(brackets[:3])
    train = Training()
    read_back = run(open_storage(folder, sampler="tpe"), train, num_trials=30, bracket_size=6)
    assert table(read_back) == table(brackets)
    assert train.calls == []


def test_tpe_goes_on_past_diverged_trials_and_takes_up_running_ones(tmp_path):
    open_storage(tmp_path, sampler="tpe").ask()
    train = diverged(*range(0, 14, 2))
    brackets = run(open_storage(tmp_path, sampler="tpe"), train, num_trials=16, bracket_size=4)
    assert sum(trial.state == "complete" for trial in all_of(brackets)) == 9
    opened = open_storage(tmp_path, sampler="tpe")
    failed = [trial.number for trial in opened.trials if trial.state == TrialState.FAIL]
    complete = [trial.number for trial in opened.trials if trial.state == TrialState.COMPLETE]
    assert failed == list(range(0, 14, 2))  # trial 0 too, which was running: under its own number
    assert complete == [1, 3, 5, 7, 9, 11, 13, 14, 15]
    assert len(opened.trials) == 16


def test_tpe_learns_from_pruned_trials(tmp_path):
    """Of each bracket it sees more of them than complete ones."""
    opened = open_storage(tmp_path, sampler="tpe")
    brackets = run(opened, halved, num_trials=30, bracket_size=6, num_epochs=9)
    means = [np.mean([scores_of(trial.draw) for trial in bracket]) for bracket in brackets]
    assert [trial.state for trial in opened.trials].count(TrialState.PRUNED) == 20
    assert np.mean(means[3:]) < np.mean(means[:2])


def test_tpe_looks_for_the_highest_where_a_metric_is_maximized(tmp_path):
    def train(draws):
        return {n: {"loss": after((1.0,)), "accuracy": after((2 - scores_of(drawn)[0],))} for n, drawn in draws.items()}

    opened = open_storage(tmp_path, sampler="tpe", study=CLASSIFIER)
    brackets = run(opened, train, num_trials=30, bracket_size=6, study=CLASSIFIER)
    means = [np.mean([trial.mean("accuracy") for trial in bracket]) for bracket in brackets]
    assert np.mean(means[3:]) > np.mean(means[:2])
