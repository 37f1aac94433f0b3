"""What a person reads while a study runs, quiet, plain and verbose."""

import re

import numpy as np
import pytest

from hw1jax.progress import ConsoleObserver
from hw1jax.search import TrialScore
from hw1jax.space import Draw

TRIALS = [
    TrialScore(0, Draw((), (3, 4), 0.01, 0.001, "adam"), (0.5, 0.7)),
    TrialScore(1, Draw((), (5, 6), 0.1, 0.001, "sgd"), (np.nan, 0.7)),
]


def lines(capsys, **options):
    observer = ConsoleObserver(**options)
    observer.start("Regression", 2, 3, 4)
    for epoch in range(1, 5):
        observer.epochs("trials 0-1", epoch, 4, np.array([[0.5, 0.7], [np.nan, 0.7]]))
    observer.note("out of memory")
    observer.trials(TRIALS)
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
    assert sum(", validation loss mean 0.6000, best 0.6000" in line for line in found) == 4
    assert any("trial 0: 0.6000 ± 0.1000, " in line and "adam" in line for line in found)
    assert any("trial 1: failed, " in line for line in found)


@pytest.mark.parametrize(("epoch", "left"), [(2, r", \d+ s left"), (4, r", 0 s left")])
def test_the_time_left_is_told(capsys, epoch, left):
    observer = ConsoleObserver(verbose=True)
    observer.start("Regression", 2, 3, 4)
    observer.epochs("trials 0-1", epoch, 4, None)
    assert re.search(left, capsys.readouterr().err)
