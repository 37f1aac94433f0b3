"""What a person reads while a study runs, quiet, plain and verbose."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy

from hw1jax.losses import accuracy
from hw1jax.progress import ConsoleObserver, print_summary
from hw1jax.study import TrialScore

STUDY = replace(toy.STUDY, title="Regression")
DRAW = {"hidden_units": (3, 4), "learning_rate": 0.01, "l2": 0.001, "optimizer": "adam"}
TRIALS = [
    TrialScore(0, DRAW, "complete", {"loss": (0.5, 0.7)}),
    TrialScore(1, DRAW | {"optimizer": "sgd"}, "failed", {"loss": (np.nan, 0.7)}),
]


def lines(capsys, study=STUDY, trials=TRIALS, **options):
    observer = ConsoleObserver(**options)
    observer.start(study, 2, 3, 4)
    for epoch in range(1, 5):
        observer.epochs("trials 0-1", epoch, 4, np.array([[0.5, 0.7], [np.nan, 0.7], [0.8, 0.8]]))
    observer.note("out of memory")
    observer.trials(trials, study)
    observer.close()
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_log_gets_few_plain_lines(capsys):
    assert lines(capsys) == [
        "[Regression] Regression: 2 trials x 3 folds x 4 epochs",
        "[Regression] compiling and training the first epochs",
        "[Regression] out of memory",
        "[Regression] 2 trials done, 1 failed, best so far 0.6000 (trial 0)",
    ]


def test_quiet_leaves_what_one_should_know(capsys):
    assert lines(capsys, quiet=True) == ["[Regression] out of memory"]


def test_verbose_shows_every_call_and_every_trial(capsys):
    found = lines(capsys, verbose=True)
    assert sum(", validation loss mean 0.7000, best 0.6000" in line for line in found) == 4
    assert (
        "[Regression] trial 0: 0.6000 ± 0.1000, hidden_units 3 4, learning_rate 0.01, l2 0.001, optimizer adam" in found
    )
    assert any("trial 1: failed, " in line and "sgd" in line for line in found)


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


@pytest.mark.parametrize(("epoch", "left"), [(2, r", \d+ s left"), (4, r", 0 s left")])
def test_the_time_left_is_told(capsys, epoch, left):
    observer = ConsoleObserver(verbose=True)
    observer.start(STUDY, 2, 3, 4)
    observer.epochs("trials 0-1", epoch, 4, None)
    assert re.search(left, capsys.readouterr().err)


def record(title, test, *, reference=None, score="loss", **best):
    """What results.json holds, as far as the summary needs it."""
    return {
        "title": title,
        "config": {"score": score},
        "best": {"mean_val_loss": 0.5, "std_val_loss": 0.25} | best,
        "test": {"loss": None, "accuracy": None, "confusion": None} | test,
        "reference": reference,
        "refit": {"failure": None if "loss" in test else "the refit diverged"},
        "trials": {"complete": 3, "failed": 1},
        "timing": {"total_seconds": 12.3},
    }


def summary(capsys, *records):
    print_summary(records, Path("somewhere"))
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def test_the_summary_has_a_references_numbers_in_brackets(capsys):
    theirs = {"name": "the report", "params": {}, "test": {"loss": 0.27}}
    found = summary(capsys, record("Mine", {"loss": 0.1707}, reference=theirs), record("Other", {"loss": 1.0}))
    assert found[0] == "Results, the report's in brackets"
    assert found[2] == "┃ study ┃ validation loss ┃ test loss ┃ trials ┃ seconds ┃"
    assert found[4] == "│ Mine │ 0.5000 ± 0.2500 │ 0.171 (0.27) │ 3 + 1 failed │ 12 │"
    assert found[5] == "│ Other │ 0.5000 ± 0.2500 │ 1.000 │ 3 + 1 failed │ 12 │"
    assert found[-1] == "Files: somewhere"


def test_the_summary_of_a_classifier_has_percentages(capsys):
    theirs = {"name": "the report", "params": {}, "test": {"loss": 0.3, "accuracy": 0.89}}
    found = summary(capsys, record("Net", {"loss": 0.25, "accuracy": 0.8712}, reference=theirs), record("Curve", {}))
    assert "accuracy" in found[2]
    assert "│ 0.250 (0.30) │ 87.1% (89%) │" in found[4]
    assert "│ none │ - │" in found[5]
    assert "Curve: the refit diverged" in found


def test_without_a_reference_the_summary_has_no_brackets_and_metrics_have_columns(capsys):
    values = {"mean_val_brier": 0.1, "std_val_brier": 0.01}
    found = summary(capsys, record("Mine", {"loss": 1.0, "brier": 0.125}, score="brier", **values))
    assert found[0] == "Results"
    assert found[2] == "┃ study ┃ validation loss ┃ validation brier ┃ test loss ┃ brier ┃ trials ┃ seconds ┃"
    assert found[4] == "│ Mine │ 0.5000 ± 0.2500 │ 0.1000 ± 0.0100 │ 1.000 │ 0.125 │ 3 + 1 failed │ 12 │"
