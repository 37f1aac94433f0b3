"""The progress that a user reads during a run: quiet, plain, verbose, and in a notebook."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studies import TOY

from hw1jax import progress
from hw1jax.core.losses import accuracy
from hw1jax.formatting import counts, duration, number, plain
from hw1jax.progress import Progress, default_observer, print_summary
from hw1jax.search.observer import Observer
from hw1jax.search.trial_score import TrialScore

STUDY = replace(TOY, title="Regression")
DRAW = {"hidden_units": (3, 4), "learning_rate": 0.01, "l2": 0.001, "optimizer": "adam"}
TRIALS = [
    TrialScore(0, DRAW, "complete", {"loss": (0.5, 0.7)}),
    TrialScore(1, DRAW | {"optimizer": "sgd"}, "failed", {"loss": (np.nan, 0.7)}),
]


def lines(capsys, study=STUDY, trials=TRIALS, **options):
    observer = Progress(**options)
    observer.start(study, 2, 3, 4)
    for epoch in range(1, 5):
        observer.epochs("trials 0-1", epoch, 4, np.array([[0.5, 0.7], [np.nan, 0.7], [0.8, 0.8]]))
    observer.note("out of memory")
    observer.trials(trials, study)
    observer.close()
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_log_gets_few_plain_lines_and_quiet_leaves_what_one_should_know(capsys):
    assert lines(capsys) == [
        "[Regression] Regression: 2 trials x 3 folds x 4 epochs",
        "[Regression] compiling and training the first epochs",
        "[Regression] out of memory",
        "[Regression] 2 trials done, 1 failed, best so far 0.6000 (trial 0)",
    ]
    assert lines(capsys, quiet=True) == ["[Regression] out of memory"]


def test_verbose_shows_every_call_and_every_trial(capsys):
    found = lines(capsys, verbose=True)
    words = "hidden_units 3 4, learning_rate 0.01, l2 0.001, optimizer"
    assert sum(", validation loss mean 0.7000, best 0.6000" in line for line in found) == 4
    assert f"[Regression] trial 0: 0.6000 ± 0.1000, {words} adam" in found
    assert f"[Regression] trial 1: failed, {words} sgd" in found


def test_verbose_shows_each_trial_once(capsys):
    observer = Progress(verbose=True)
    for _ in range(2):  # searches
        observer.start(STUDY, 2, 2, 4)
        observer.trials(TRIALS[:1], STUDY)
        observer.trials(TRIALS, STUDY)
        found = capsys.readouterr().err.splitlines()
        assert [line[:20] for line in found if "trial " in line[:20]] == [
            "[Regression] trial 0",
            "[Regression] trial 1",
        ]


def test_metrics_have_names_and_the_highest_is_the_best_where_it_is_maximised(capsys):
    study = replace(STUDY, metrics={"accuracy": accuracy}, maximize="accuracy")
    trials = [
        TrialScore(0, DRAW, "complete", {"loss": (0.5, 0.7), "accuracy": (0.5, 0.75)}),
        TrialScore(1, DRAW, "complete", {"loss": (5.0, 7.0), "accuracy": (0.75, 0.75)}),
    ]
    found = lines(capsys, study, trials, verbose=True)
    assert sum(", validation accuracy mean 0.7000, best 0.8000" in line for line in found) == 4
    assert any("trial 0: accuracy 0.6250 ± 0.1250, loss 0.6000 ± 0.1000, hidden" in line for line in found)
    assert found[-1] == "[Regression] 2 trials done, 0 failed, best accuracy so far 0.7500 (trial 1)"


def told(capsys, monkeypatch, calls):
    """The output for (seconds since the start, arguments of `epochs`), without the title."""
    observer = Progress(verbose=True)
    observer.start(STUDY, 2, 3, 4, 8)
    capsys.readouterr()
    for seconds, arguments in calls:
        monkeypatch.setattr("time.monotonic", lambda seconds=seconds: seconds)
        observer.epochs(*arguments)
    return [line.removeprefix("[Regression] ") for line in capsys.readouterr().err.splitlines()]


def test_the_time_left_is_that_of_the_whole_search(capsys, monkeypatch):
    calls = [
        (100, ("trials 0-1, rung 1 of 2", 1, 2, None, 0.25)),  # before, it has compiled
        (110, ("trials 0-1, rung 1 of 2", 2, 2, None, 0.5)),
        (120, ("trials 0-1, rung 2 of 2", 4, 4, None, 1)),
        (200, ("refit", 1, 4, None)),
        (230, ("refit", 2, 4, None)),
        (290, ("refit", 4, 4, None)),
    ]
    assert told(capsys, monkeypatch, calls) == [
        "25%: trials 0-1, rung 1 of 2, epoch 1/2",
        "50%: trials 0-1, rung 1 of 2, epoch 2/2, 20 s left",
        "100%: trials 0-1, rung 2 of 2, epoch 4/4, 0 s left",
        "refit, epoch 1/4",
        "refit, epoch 2/4, 1 min 0 s left",
        "refit, epoch 4/4, 0 s left",
    ]


def test_a_search_that_goes_on_counts_its_own_pace(capsys, monkeypatch):
    calls = [(50, ("trials 0-1", 3, 4, None, 0.75)), (60, ("trials 0-1", 3.2, 4, None, 0.8))]
    assert told(capsys, monkeypatch, calls)[-1].endswith(", 40 s left")


def test_pruned_trials_are_counted_and_halving_says_how_much_less_it_trains(capsys):
    pruned = TrialScore(2, DRAW, "pruned", {"loss": (0.1, 0.1)}, 2)
    found = lines(capsys, trials=[*TRIALS, pruned], verbose=True)
    assert found[-1] == "[Regression] 3 trials done, 1 pruned, 1 failed, best so far 0.6000 (trial 0)"
    assert any("trial 2: 0.1000 ± 0.0000, pruned after 2 epochs, " in line for line in found)
    observer = Progress()
    observer.start(STUDY, 60, 3, 1000, 8400)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.endswith("60 trials x 3 folds x 1000 epochs, of which halving trains 14%")


DURATIONS = {
    0: "0 s",
    4.24: "4.2 s",
    7.0: "7 s",
    9.97: "10 s",
    1417: "23 min 37 s",
    3599.6: "1 h 0 min",
    3900: "1 h 5 min",
}
NUMBERS = {0.1707: "0.171", 1.0: "1.000", 0.0: "0.000", 0.0123: "0.012", 0.00349: "0.0035", -0.00349: "-0.0035"}
NUMBERS |= {12_345_678.0: "1.235e+07", float("nan"): "nan", float("inf"): "inf"}


def test_durations_and_numbers_of_any_size_can_be_read():
    assert {seconds: duration(seconds) for seconds in DURATIONS} == DURATIONS
    assert {value: number(value) for value in NUMBERS} == NUMBERS
    assert [number(value, 4) for value in (0.00349, 0.000349, 3.5e-9)] == ["0.0035", "0.00035", "3.5e-09"]


def test_counts_name_what_was_pruned_where_anything_was():
    assert counts({"complete": 81, "pruned": 54, "failed": 2}) == "81 + 54 pruned + 2 failed"
    assert counts({"complete": 25, "pruned": 0, "failed": 0}) == "25 + 0 failed"


def record(title, test, *, reference=None, score="loss", ensemble=None, warning=None, **best):
    """What results.json holds, as far as the summary needs it."""
    return {
        "title": title,
        "config": {"score": score, "num_folds": 3},
        "best": {"mean_val_loss": 0.5, "std_val_loss": 0.25} | best,
        "test": {"loss": None, "accuracy": None, "confusion": None} | test,
        "ensemble": ensemble,
        "reference": reference,
        "refit": {"failure": None if "loss" in test else "the refit diverged", "warning": warning},
        "trials": {"complete": 3, "pruned": 0, "failed": 1},
        "timing": {"total_seconds": 12.3},
    }


def summary(capsys, *records):
    print_summary(records, Path("somewhere"))
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def test_the_summary_has_a_references_numbers_in_brackets(capsys):
    theirs = {"name": "the report", "params": {}, "test": {"loss": 0.27}, "data": "its own data"}
    found = summary(capsys, record("Mine", {"loss": 0.1707}, reference=theirs), record("Other", {"loss": 1.0}))
    assert found[0] == "Results, the report's in brackets"
    assert found[2] == "┃ study ┃ validation loss ┃ test loss ┃ trials ┃ time ┃"
    assert found[4] == "│ Mine │ 0.5000 ± 0.2500 │ 0.171 (0.27) │ 3 + 1 failed │ 12 s │"
    assert found[5] == "│ Other │ 0.5000 ± 0.2500 │ 1.000 │ 3 + 1 failed │ 12 s │"
    assert found[-2:] == ["Mine: the report's numbers are on its own data", "Files: somewhere"]


def test_the_summary_shows_small_losses_and_tells_what_is_wrong_with_a_refit(capsys):
    values = {"mean_val_loss": 0.00088, "std_val_loss": 0.00047, "ensemble": {"loss": 0.000349}}
    found = summary(capsys, record("Sine", {"loss": 0.00334}, warning="the refit has jumped", **values))
    assert found[4] == "│ Sine │ 0.00088 ± 0.00047 │ 0.0033 │ 3 + 1 failed │ 12 s │"
    assert "0.00035" in found[5]
    assert "Sine: the refit has jumped" in found


def test_the_summary_of_a_classifier_has_percentages_and_the_ensemble_below_the_refit(capsys):
    theirs, ensemble = (
        {"name": "the report", "test": {"loss": 0.3, "accuracy": 0.89}, "data": ""},
        {"loss": 0.2, "accuracy": 0.9},
    )
    net = record("Net", {"loss": 0.25, "accuracy": 0.8712}, reference=theirs, ensemble=ensemble)
    found = summary(capsys, net, record("Curve", {}))
    assert found[2] == "┃ study ┃ validation loss ┃ test loss ┃ accuracy ┃ trials ┃ time ┃"
    assert found[4].startswith("│ Net │ 0.5000 ± 0.2500 │ 0.250 (0.30) │ 87.1% (89%) │")
    assert found[5].startswith("│ ensemble of its 3 folds │ │ 0.200 │ 90.0% │")
    assert "│ none │ - │" in found[6]
    assert "Curve: the refit diverged" in found


def test_without_a_reference_the_summary_has_no_brackets_and_metrics_have_columns(capsys):
    values = {"mean_val_brier": 0.1, "std_val_brier": 0.01}
    found = summary(capsys, record("Mine", {"loss": 1.0, "brier": 0.125}, score="brier", **values))
    assert found[0] == "Results"
    assert found[2] == "┃ study ┃ validation loss ┃ validation brier ┃ test loss ┃ brier ┃ trials ┃ time ┃"
    assert found[4] == "│ Mine │ 0.5000 ± 0.2500 │ 0.1000 ± 0.0100 │ 1.000 │ 0.125 │ 3 + 1 failed │ 12 s │"


# Text of a user


HOSTILE = "Decay rate [/s] [red]x[/] :warning: \x1b[31m\x07"
SHOWN = r"Decay rate [/s] [red]x[/] :warning: \x1b[31m\x07"


def test_names_are_shown_as_they_are_on_a_console_whatever_markup_or_escapes_they_hold(capsys, monkeypatch):
    assert plain(HOSTILE) == SHOWN and plain("ä ✓\n") == "ä ✓\n" and plain("\udc80\u202e") == r"\udc80\u202e"
    found = lines(capsys, replace(STUDY, title=HOSTILE))
    assert found[0] == f"[{SHOWN}] {SHOWN}: 2 trials x 3 folds x 4 epochs"
    theirs = {"name": HOSTILE, "params": {}, "test": {"loss": 0.27}, "data": HOSTILE}
    monkeypatch.setenv("COLUMNS", "500")
    found = summary(capsys, record(HOSTILE, {"loss": 0.25}, reference=theirs, warning=HOSTILE))
    assert f"{SHOWN}: {SHOWN}'s numbers are on {SHOWN}" in found
    assert f"{SHOWN}: {SHOWN}" in found and "\x1b" not in "".join(found)


def test_a_terminals_bar_takes_names_for_text(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    monkeypatch.setenv("TERM", "xterm")
    observer = Progress()
    observer.start(replace(STUDY, title=HOSTILE), 2, 3, 4)
    observer.epochs(HOSTILE, 1, 4, None, 0.25)
    assert observer._bar is not None and observer._bar.tasks[0].description.startswith(SHOWN)
    observer._bar.refresh()
    observer.close()
    assert observer._bar is None


# Notebooks


class Kernel:
    """IPython, as a notebook's process has it."""

    kernel: int | None = 1

    @classmethod
    def get_ipython(cls):
        return cls


@pytest.fixture
def cell(monkeypatch):
    """The texts that a notebook's cell has shown, one list a place in its output: each update is an entry."""
    display = pytest.importorskip("IPython.display", reason="IPython is not installed")
    places = []

    class Handle:
        def update(self, content, raw):
            assert raw and content.keys() == {"text/plain"}
            places[-1].append(content["text/plain"].splitlines())

    def show(content, raw, display_id):
        assert display_id is True
        places.append([])
        handle = Handle()
        handle.update(content, raw)
        return handle

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0)
    return places


def observed(observer):
    observer.start(STUDY, 2, 3, 4)
    for epoch in (1, 4):
        observer.epochs("trials 0-1", epoch, 4, np.array([[0.5, 0.7], [np.nan, 0.7], [0.8, 0.8]]), epoch / 4)
    observer.trials(TRIALS, STUDY)
    observer.note("out of memory")
    observer.finish(record("Mine", {"loss": 1.0}), Path("somewhere"))
    observer.close()


def test_a_notebook_has_one_place_that_is_updated(cell, capsys):
    observed(Progress())
    observed(Progress())
    assert len(cell) == 2 and capsys.readouterr() == ("", "")
    first, quarter, *_, last = cell[0]
    assert first == ["Regression: 2 trials x 3 folds x 4 epochs", "compiling and training the first epochs"]
    assert quarter[1].startswith("[########                      ] trials 0-1, epoch 1/4, validation loss mean 0.7000")
    assert last == [first[0], "3 + 1 failed trials in 12 s", "out of memory"]


def test_a_verbose_notebook_keeps_every_trial_and_none_is_flooded(cell, monkeypatch):
    observed(Progress(verbose=True))
    assert any("trial 0: 0.6000 ± 0.1000, hidden_units 3 4" in line for line in cell[0][-1])
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 1000)
    observed(Progress())
    assert len(cell[1]) == 3  # the start, the note, the end


@pytest.mark.parametrize(("kernel", "kind"), [(None, Observer), (1, Progress)])
def test_a_kernels_runs_are_shown_and_others_are_not(monkeypatch, kernel, kind):
    monkeypatch.setitem(progress.sys.modules, "IPython", Kernel)
    monkeypatch.setattr(Kernel, "kernel", kernel)
    assert type(default_observer()) is kind
    monkeypatch.delitem(progress.sys.modules, "IPython")
    assert type(default_observer()) is Observer
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert type(default_observer()) is Progress, "a script on a terminal"
