"""Callbacks see each trial once, stop a search, and fail as a user's functions do; a timeout ends a search early."""

import time

import numpy as np
import pytest
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from studies import LINE

import hw1jax as hw
from hw1jax import cli
from hw1jax.core import checks
from hw1jax.search.brackets import Brackets

FOUR_AT_A_TIME = {"sampler": "tpe", "num_epochs": 2, "widths": "padded", "num_devices": 1}


def searched(out, num_trials=10, **settings):
    return hw.run_study(LINE, out=out, num_trials=num_trials, **FOUR_AT_A_TIME | settings)


class Seen(list):
    def __call__(self, study, trial):
        self.append((trial.number, trial.state, trial.value, study.best_value, len(study.trials)))


def test_callbacks_get_each_trial_once_in_order_with_its_score(tmp_path):
    seen = Seen()
    results = searched(tmp_path, 6, callbacks=[seen])
    assert [number for number, *_ in seen] == list(range(6))
    assert {state for _, state, *_ in seen} == {TrialState.COMPLETE}
    losses = results.trials["mean_val_loss"]
    np.testing.assert_array_equal([value for _, _, value, *_ in seen], losses)
    np.testing.assert_array_equal([best for *_, best, _ in seen], np.minimum.accumulate(losses))
    assert [known for *_, known in seen] == [4] * 4 + [6] * 2, "those of its bracket have been drawn"
    searched(tmp_path, 6, callbacks=[seen])
    assert len(seen) == 6, "none is told again"
    searched(tmp_path, 9, callbacks=[seen])
    assert [number for number, *_ in seen] == list(range(9))


def test_an_exception_in_a_callback_ends_the_run_as_a_users_error_and_the_same_call_resumes(tmp_path, capsys):
    def fails(study, trial):
        if trial.number == 5 and failing:
            raise KeyError("no such run")

    failing, seen = True, Seen()
    with pytest.raises(KeyError) as caught:
        searched(tmp_path / "out", callbacks=[seen, fails])
    assert checks.note_of(caught.value) == "in callbacks, called with (study: SearchStudy, trial: FrozenTrial)"
    assert cli.is_mistake(caught.value) and not (tmp_path / "out" / "results.json").exists()
    assert [number for number, *_ in seen] == list(range(6))
    failing = False
    searched(tmp_path / "out", callbacks=[seen, fails])
    assert [number for number, *_ in seen] == list(range(10))
    whole = searched(tmp_path / "whole")
    assert (tmp_path / "out" / "trials.csv").read_bytes() == (whole.folder / "trials.csv").read_bytes()


def test_a_callback_stops_the_search_after_its_bracket_and_the_same_call_goes_on(tmp_path):
    whole = searched(tmp_path / "whole")
    stopped = searched(tmp_path / "out", callbacks=[MaxTrialsCallback(3)])
    assert stopped.record["config"]["num_trials"] == len(stopped.trials.rows) == 4
    assert stopped.stopped == "stopped by callbacks= after 4 of 10 trials"
    assert stopped.stopped in repr(stopped) and "stopped" not in repr(whole)
    page = hw.write_report(stopped.folder, LINE).read_text()
    assert f"The search was {stopped.stopped}." in page
    longer = searched(tmp_path / "out")
    assert longer.stopped is None
    assert (longer.folder / "trials.csv").read_bytes() == (whole.folder / "trials.csv").read_bytes()


def test_a_callback_that_enqueues_trials_is_told_how_to(tmp_path):
    with pytest.raises(ValueError, match="^a callback can't enqueue trials[^\n]*: see enqueue="):
        searched(tmp_path, callbacks=[lambda study, trial: study.enqueue_trial(trial.params)])


@pytest.mark.parametrize("callbacks", [print, [3], "print"])
def test_what_are_no_callbacks_is_told_in_one_line(tmp_path, callbacks):
    with pytest.raises(TypeError, match=r"^callbacks= must be a list of functions \(study, trial\)$"):
        searched(tmp_path / "out", callbacks=callbacks)
    assert not (tmp_path / "out").exists()


# A timeout.


@pytest.fixture
def slow(monkeypatch):
    """The first bracket trains in no time, later ones take five seconds each."""
    train, clock = Brackets.train, [0.0]

    def slowly(self, draws):
        clock[0] += 5 if min(draws) else 0
        return train(self, draws)

    monkeypatch.setattr(Brackets, "train", slowly)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_timeout_ends_the_search_after_its_bracket_and_the_same_call_goes_on(tmp_path, sampler, slow):
    """A random search would have one bracket. Draws are the same with and without the timeout."""
    whole = searched(tmp_path / "whole", sampler=sampler)
    for done in (8, 10):
        results = searched(tmp_path / "out", sampler=sampler, timeout=3)
        assert [len(results.trials.rows), results.record["config"]["num_trials"]] == [done] * 2
        assert results.stopped == (f"stopped by timeout= after {done} of 10 trials" if done < 10 else None)
        assert results.record["trials"] == {"complete": done, "pruned": 0, "failed": 0}
        assert results.record["rungs"][0]["num_trials"] == done
        assert len(results.histories["train_loss"]) == done
    for name, values in whole.trials.params.items():
        np.testing.assert_array_equal(results.trials.params[name], values)
    np.testing.assert_allclose(results.trials.folds["loss"], whole.trials.folds["loss"], rtol=1e-4)


def test_each_call_adds_a_bracket_however_short_its_timeout_is_and_none_loses_trials(tmp_path):
    for done in (4, 8, 10, 10):
        assert len(searched(tmp_path, timeout=1e-9).trials.rows) == done


def test_a_long_timeout_changes_nothing_and_no_timeout_no_plan(tmp_path):
    whole, patient = searched(tmp_path / "whole", 5), searched(tmp_path / "patient", 5, timeout=1000)
    assert patient.stopped is None
    assert (patient.folder / "trials.csv").read_bytes() == (whole.folder / "trials.csv").read_bytes()
    plans = [
        searched(tmp_path / str(timeout), 5, sampler="random", timeout=timeout).record["config"]["plan"]
        for timeout in (None, 1000)
    ]
    assert [plan["brackets"][0]["num_trials"] for plan in plans] == [5, 4]


@pytest.mark.parametrize("timeout", [0, -1, "60", float("nan")])
def test_what_is_no_time_is_told_in_one_line(tmp_path, timeout):
    with pytest.raises(ValueError, match=f"^timeout= must be a number of seconds above 0, got {timeout!r}$"):
        searched(tmp_path / "out", timeout=timeout)
    assert not (tmp_path / "out").exists()
