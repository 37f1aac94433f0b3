"""The search: draws that depend on nothing but (seed, trial, name), batches that survive a stop, diverged trials."""

import json
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hw1jax import search
from hw1jax.search import FloatRange, IntRange, PureRandomSampler, Space, TrialScore

SPACE = Space((IntRange(10, 50), IntRange(10, 50)), (IntRange(4, 6),))
NAMES = ["channels_1", "hidden_units_1", "hidden_units_2", "learning_rate", "l2", "optimizer"]
RATE = FloatDistribution(1e-3, 1e-1, log=True)
NAN, INF = float("nan"), float("inf")


def draw(seed, number, name, distribution):
    return PureRandomSampler(seed).sample_independent(None, SimpleNamespace(number=number), name, distribution)


def scores_of(drawn, num_folds=3):
    """A small objective that needs no network: best at a learning rate of 0.01, and different in each fold."""
    distance = abs(np.log10(drawn.learning_rate) + 2) + 0.01 * drawn.hidden_units[0]
    return tuple(float(distance + 0.1 * fold) for fold in range(num_folds))


class Training:
    """Stands for the training of batches, and remembers what it was called with."""

    def __init__(self, scores=scores_of):
        self.calls, self._scores = [], scores

    def __call__(self, draws):
        self.calls.append(list(draws))
        return {number: self._scores(drawn) for number, drawn in draws.items()}


def diverged(*numbers, with_scores=(NAN, 1.0, 2.0)):
    """Training in which these trials diverge."""

    def train(draws):
        return {n: with_scores if n in numbers else scores_of(drawn) for n, drawn in draws.items()}

    return train


def open_study(folder, seed=0, sampler="random", name="regression"):
    return search.open_study(folder / "journal.log", name, sampler=sampler, seed=seed)


def run(study, train=None, num_trials=7, batch_size=3, space=SPACE):
    return list(search.search(study, space, train or Training(), num_trials=num_trials, batch_size=batch_size))


def table(batches):
    return {trial.number: (trial.draw, trial.scores) for batch in batches for trial in batch}


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
    one, other = table(run(open_study(tmp_path, seed=0))), table(run(open_study(tmp_path / "a", seed=1)))
    assert all(one[n][0].learning_rate != other[n][0].learning_rate for n in one)


def test_the_order_of_asking_does_not_matter(tmp_path):
    batched = table(run(open_study(tmp_path), num_trials=5, batch_size=2))
    study = optuna.create_study(sampler=PureRandomSampler(0))
    for number, trial in enumerate([study.ask() for _ in range(5)]):
        trial.suggest_float("something_else", 1, 2, log=True)
        assert trial.suggest_float("learning_rate", *SPACE.learning_rate, log=True) == batched[number][0].learning_rate
        assert search.suggest(trial, SPACE) == batched[number][0]


def test_two_workers_on_one_journal_draw_what_one_would(tmp_path):
    (tmp_path / "alone").mkdir()
    alone = table(run(open_study(tmp_path / "alone"), num_trials=6))
    workers = [open_study(tmp_path) for _ in range(2)]
    for i in range(6):
        trial = workers[i % 2].ask()
        assert trial.number == i
        assert search.suggest(trial, SPACE) == alone[i][0]


def test_numbers_that_cant_be_drawn_are_named():
    with pytest.raises(ValueError, match="no way to draw something"):
        draw(0, 0, "something", None)


# Asking and telling.


def test_trial_n_is_in_batch_n_over_the_batch_size(tmp_path):
    train = Training()
    batches = run(open_study(tmp_path), train, num_trials=7, batch_size=3)
    assert train.calls == [[0, 1, 2], [3, 4, 5], [6]]
    assert [[trial.number for trial in batch] for batch in batches] == train.calls


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_no_draw(tmp_path, batch_size):
    expected = {number: draw(0, number, "learning_rate", RATE) for number in range(7)}
    batches = run(open_study(tmp_path), batch_size=batch_size)
    assert {number: row[0].learning_rate for number, row in table(batches).items()} == expected


def test_the_journal_holds_every_trial_for_any_other_program(tmp_path):
    batches = run(open_study(tmp_path), diverged(4))
    for line in (tmp_path / "journal.log").read_text().splitlines():
        json.loads(line)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.load_study(study_name="regression", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    trials = [trial for batch in batches for trial in batch]
    for told, trial in zip(study.trials, trials, strict=True):
        assert told.number == trial.number
        assert told.params == trial.draw.columns()
        assert list(told.params) == NAMES
        for fold, score in enumerate(trial.scores):
            np.testing.assert_equal(told.user_attrs[f"split{fold}_val_loss"], score)
        assert (told.state == TrialState.COMPLETE) == trial.complete
        assert told.value == (trial.mean if trial.complete else None)
    assert study.best_trial.number == search.best(trials).number


def test_a_draw_as_json_and_as_columns_says_the_same():
    drawn = search.Draw((4, 12), (38, 28), 0.008, 0.0001, "adam")
    assert json.loads(json.dumps(drawn.as_dict())) == drawn.as_dict()
    assert drawn.as_dict()["channels"] == [4, 12]
    widths = ["channels_1", "channels_2", "hidden_units_1", "hidden_units_2"]
    assert list(drawn.columns()) == [*widths, "learning_rate", "l2", "optimizer"]
    assert drawn.columns()["hidden_units_2"] == 28


def test_ranges_are_shown_as_flags_take_them():
    assert f"{IntRange(10, 50)} {FloatRange(1e-3, 0.1)}" == "10-50 0.001-0.1"


@pytest.mark.parametrize(
    "with_scores", [(NAN, 1.0, 2.0), (0.1, 0.1, INF), (-INF, 0.1, 0.1), (NAN, NAN, NAN), (INF, -INF, 0)]
)
def test_a_diverged_trial_fails_and_is_never_best(tmp_path, with_scores):
    study = open_study(tmp_path)
    batches = run(study, diverged(0, 5, with_scores=with_scores))
    trials = [trial for batch in batches for trial in batch]
    assert [trial.number for trial in trials if not trial.complete] == [0, 5]
    states = [trial.state for trial in study.trials]
    assert [n for n, state in enumerate(states) if state == TrialState.FAIL] == [0, 5]
    assert states.count(TrialState.COMPLETE) == 5
    assert study.trials[0].user_attrs["scores"] == pytest.approx(with_scores, nan_ok=True)
    assert search.best(trials).number == study.best_trial.number not in (0, 5)
    ranks = search.ranks(trials)
    assert ranks[0] is None
    assert sorted(rank for rank in ranks if rank) == [1, 2, 3, 4, 5]
    assert np.isnan(trials[0].std)


def test_no_trial_is_best_if_all_have_diverged(tmp_path):
    trials = [trial for batch in run(open_study(tmp_path), diverged(*range(7))) for trial in batch]
    assert search.best(trials) is None
    assert search.ranks(trials) == [None] * 7


def test_scores_ranks_and_the_best_by_hand():
    drawn = search.Draw((), (10,), 0.01, 0.01, "adam")
    table = [(1.0, 3.0), (1.0, 2.0), (2.0, 2.0), (INF, 0.0), (1.5, 1.5), (9.0, 9.0)]
    trials = [TrialScore(number, drawn, scores) for number, scores in enumerate(table)]
    assert [t.mean for t in trials[:3]] == [2.0, 1.5, 2.0]
    assert trials[0].std == 1.0
    assert search.ranks(trials) == [3, 1, 3, None, 1, 5]
    assert search.best(trials).number == 1  # the first of equals


# Stopping, going on, asking for more.


def test_finished_batches_are_not_trained_again(tmp_path):
    first = run(open_study(tmp_path), num_trials=6)
    train = Training()
    assert table(run(open_study(tmp_path), train, num_trials=6)) == table(first)
    assert train.calls == []
    assert len(open_study(tmp_path).trials) == 6


def test_more_trials_later_give_what_all_at_once_would(tmp_path):
    (tmp_path / "once").mkdir()
    at_once = table(run(open_study(tmp_path / "once"), num_trials=9))
    run(open_study(tmp_path), num_trials=6)
    train = Training()
    assert table(run(open_study(tmp_path), train, num_trials=9)) == at_once
    assert train.calls == [[6, 7, 8]]


def test_fewer_trials_later_are_the_first_ones(tmp_path):
    all_trials = table(run(open_study(tmp_path)))
    fewer = table(run(open_study(tmp_path), num_trials=2))
    assert fewer == {number: all_trials[number] for number in (0, 1)}


def test_a_trial_that_has_a_score_keeps_it_when_its_batch_is_filled_up(tmp_path):
    """Its batch has to run once more for the new trials; what Optuna was told and what is reported stay the same."""
    run(open_study(tmp_path), num_trials=2)
    study = open_study(tmp_path)
    (batch,) = run(study, Training(lambda drawn: (1.0, 2.0, 3.0)), num_trials=3)
    assert [trial.scores for trial in batch] == [scores_of(trial.draw) for trial in batch[:2]] + [(1.0, 2.0, 3.0)]
    assert [trial.value for trial in study.trials] == [trial.mean for trial in batch]


def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = table(run(open_study(tmp_path / "whole")))

    class Stopped(Training):
        def __call__(self, draws):
            if 3 in draws:
                raise KeyboardInterrupt
            return super().__call__(draws)

    with pytest.raises(KeyboardInterrupt):
        run(open_study(tmp_path), Stopped())
    assert [trial.state for trial in open_study(tmp_path).trials[3:]] == [TrialState.RUNNING] * 3
    train = Training()
    study = open_study(tmp_path)
    assert table(run(study, train)) == whole
    assert train.calls == [[3, 4, 5], [6]]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 7


@pytest.mark.parametrize("num_suggested", [0, 1])
def test_a_trial_that_was_asked_but_not_drawn_is_drawn_then(tmp_path, num_suggested):
    trial = open_study(tmp_path).ask()
    if num_suggested:
        trial.suggest_int("channels_1", 4, 6)
    study = open_study(tmp_path)
    (batch,) = run(study, num_trials=1)
    assert batch[0].draw == search.suggest(optuna.create_study(sampler=PureRandomSampler(0)).ask(), SPACE)
    assert len(study.trials) == 1


def test_a_search_stopped_between_two_tellings_tells_the_rest(tmp_path):
    first = table(run(open_study(tmp_path), num_trials=3))

    study = open_study(tmp_path)
    asked = [study.ask() for _ in range(3)]
    draws = [search.suggest(trial, SPACE) for trial in asked]
    asked[0].set_user_attr("scores", list(scores_of(draws[0])))
    study.tell(asked[0], float(np.mean(scores_of(draws[0]))))
    asked[1].set_user_attr("split0_val_loss", 123.0)  # stopped in the middle of this one

    study = open_study(tmp_path)
    batches = run(study, num_trials=6)
    assert table(batches[:1]) == first
    assert [trial.value for trial in study.trials[3:]] == [trial.mean for trial in batches[1]]
    assert study.trials[4].user_attrs["split0_val_loss"] == batches[1][1].scores[0]


def test_a_trial_that_another_process_has_begun_and_not_drawn_is_drawn_under_its_number(tmp_path):
    study, other = open_study(tmp_path), open_study(tmp_path)
    ask, asked = study.ask, []

    def ask_too_late():
        if not asked:
            asked.append(other.ask())
        return ask()

    study.ask = ask_too_late
    (tmp_path / "alone").mkdir()
    assert table(run(study)) == table(run(open_study(tmp_path / "alone")))


@pytest.mark.parametrize("tail", ['{"op_code":5,"worker', '{"op_code":9}'])
def test_a_line_that_was_cut_off_does_not_spoil_the_journal(tmp_path, tail):
    """A process killed while it appends leaves a part of a line; the next append must not continue that line."""
    first = table(run(open_study(tmp_path), num_trials=3))
    with open(tmp_path / "journal.log", "a") as journal:
        journal.write(tail)
    assert table(run(open_study(tmp_path), num_trials=6)).items() >= first.items()
    train = Training()
    assert len(table(run(open_study(tmp_path), train, num_trials=6))) == 6
    assert train.calls == []


def test_a_file_that_is_no_journal_is_refused_by_name(tmp_path):
    (tmp_path / "journal.log").write_text("Dear diary,\nnothing happened today.\n")
    with pytest.raises(ValueError, match="journal.log") as caught:
        open_study(tmp_path)
    assert "\n" not in str(caught.value)


# What a folder's search was made with.

CONFIG = {
    "num_epochs": 20,
    "batch_size": 20,
    "hidden_units": (IntRange(10, 50), IntRange(3, 30)),
    "learning_rate": FloatRange(1e-3, 1e-1),
    "optimizers": ("adam", "sgd"),
    "data_sha256": "0" * 64,
    "plan": {"slots": 3, "layout": {"chunk_size": None}},
}


def test_the_same_settings_claim_a_folder_again_and_get_the_stored_plan(tmp_path):
    stored = search.claim(open_study(tmp_path), CONFIG, tmp_path)
    assert stored == json.loads(json.dumps(CONFIG))
    other_plan = CONFIG | {"plan": {"slots": 8, "layout": {"chunk_size": 20}}}
    assert search.claim(open_study(tmp_path), other_plan, tmp_path) == stored
    assert search.claim(open_study(tmp_path), CONFIG, tmp_path)["plan"] == CONFIG["plan"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("num_epochs", 30, "num_epochs = 20, not 30"),
        ("batch_size", 10, "batch_size = 20, not 10"),
        ("hidden_units", (IntRange(10, 50),), r"hidden_units = \[\[10, 50\], \[3, 30\]\], not \[\[10, 50\]\]"),
        ("learning_rate", FloatRange(1e-3, 1.0), r"learning_rate = \[0.001, 0.1\], not \[0.001, 1.0\]"),
        ("optimizers", ("adam",), r"optimizers = \['adam', 'sgd'\], not \['adam'\]"),
        ("data_sha256", "1" * 64, "data_sha256 = 0000"),
        ("channels", (IntRange(4, 10),), r"channels = None, not \[\[4, 10\]\]"),
    ],
)
def test_other_settings_are_refused_with_the_difference_and_what_to_do(tmp_path, name, value, message):
    search.claim(open_study(tmp_path), CONFIG, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        search.claim(open_study(tmp_path), CONFIG | {name: value}, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "--out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert search.claim(open_study(tmp_path), CONFIG, tmp_path)["num_epochs"] == 20


def test_a_folder_of_another_study_is_refused(tmp_path):
    """Its batches would be taken for this study's own."""
    search.claim(open_study(tmp_path, name="regression"), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="regression.*--out") as caught:
        search.claim(open_study(tmp_path, name="fashion_mlp"), CONFIG, tmp_path)
    assert "\n" not in str(caught.value)


# The other sampler.


@pytest.fixture(scope="module")
def tpe_batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tpe")
    return folder, run(open_study(folder, sampler="tpe"), num_trials=30, batch_size=6)


def test_tpe_learns_from_batch_to_batch(tpe_batches):
    _, batches = tpe_batches
    means = [np.mean([trial.mean for trial in batch]) for batch in batches]
    assert all(trial.complete for batch in batches for trial in batch)
    assert np.mean(means[3:]) < np.mean(means[:2])


def test_tpe_stays_within_the_ranges_and_repeats_no_trial(tpe_batches):
    drawn = [trial.draw for batch in tpe_batches[1] for trial in batch]
    assert len({d.learning_rate for d in drawn}) == 30
    assert all(10 <= width <= 50 for d in drawn for width in d.hidden_units)
    assert all(1e-3 <= d.learning_rate <= 1e-1 and 1e-4 <= d.l2 <= 1e-1 for d in drawn)


def test_tpe_draws_the_same_with_the_same_seed_and_reads_back_what_is_done(tpe_batches, tmp_path):
    folder, batches = tpe_batches
    again = run(open_study(tmp_path, sampler="tpe"), num_trials=18, batch_size=6)
    assert table(again) == table(batches[:3])
    train = Training()
    assert table(run(open_study(folder, sampler="tpe"), train, num_trials=30, batch_size=6)) == table(batches)
    assert train.calls == []


def test_tpe_goes_on_past_diverged_trials_and_takes_up_running_ones(tmp_path):
    study = open_study(tmp_path, sampler="tpe")
    study.ask()
    batches = run(open_study(tmp_path, sampler="tpe"), diverged(*range(0, 14, 2)), num_trials=16, batch_size=4)
    assert sum(trial.complete for batch in batches for trial in batch) == 9
    study = open_study(tmp_path, sampler="tpe")
    failed = [trial.number for trial in study.trials if trial.state == TrialState.FAIL]
    complete = [trial.number for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert failed == list(range(0, 14, 2))  # trial 0 too, which was running: under its own number
    assert complete == [1, 3, 5, 7, 9, 11, 13, 14, 15]
    assert len(study.trials) == 16
