"""Importances find the hyperparameters that scores depend on, with scikit-learn and without, and are reproducible."""

import sys

import numpy as np
import pytest

from hw1jax.search.importances import importances
from hw1jax.search.space import Choice, Float, Int, random_draw

SPACE = {
    "rate": Float(1e-3, 1e-1, log=True),
    "units": (Int(2, 9), Int(3, 4)),
    "way": Choice("up", "down"),
    "factor": Choice(0.5, 1, 2),
}


def columns(num_trials):
    draws = [random_draw(SPACE, 0, i) for i in range(num_trials)]
    found = {name: np.array([draw[name] for draw in draws]) for name in ("rate", "way", "factor")}
    return found | {f"units_{k + 1}": np.array([draw["units"][k] for draw in draws]) for k in range(2)}


@pytest.mark.parametrize(
    "name, score",
    [
        ("rate", lambda c: np.log(c["rate"])),
        ("way", lambda c: 1.0 * (c["way"] == "up")),
        ("factor", lambda c: c["factor"]),
        ("units_1", lambda c: c["units_1"] ** 2.0),
    ],
)
def test_what_the_score_depends_on_explains_most_of_its_variance(name, score):
    params = columns(60)
    shares, method = importances(SPACE, params, score(params))
    assert method == "fANOVA"
    assert shares.keys() == params.keys() and next(iter(shares)) == name and shares[name] > 0.8
    assert sum(shares.values()) <= 1
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    if name == "way":
        assert importances(SPACE, params, score(params)).shares == shares


def test_what_only_two_explain_together_is_the_share_of_neither():
    params = columns(200)
    together = np.where((params["way"] == "up") == (params["rate"] > np.median(params["rate"])), 0.0, 1.0)
    assert sum(importances(SPACE, params, together).shares.values()) < 0.8


@pytest.mark.parametrize("maximize", [False, True])
def test_without_scikit_learn_what_the_best_quarter_has_in_common_is_important(monkeypatch, maximize):
    forest = sys.modules["optuna.importance._fanova._fanova"]
    monkeypatch.setattr(forest._imports, "_deferred", (ImportError("no sklearn"), "no sklearn"))
    params = columns(100)
    sign = -1 if maximize else 1
    score = sign * np.where(params["way"] == "up", 0.0, 10 + params["rate"])  # among the bad ones, the rate counts
    shares, method = importances(SPACE, params, score, maximize=maximize)
    assert method == "PED-ANOVA" and shares.keys() == params.keys() and sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "way" and shares["way"] > 0.6
    assert importances(SPACE, params, score, maximize=maximize).shares == shares
    other = importances(SPACE, params, score, maximize=not maximize).shares
    assert other["rate"] > 2 * shares["rate"], "the direction counts"


def test_equal_scores_and_few_trials_are_told():
    for scores in (np.ones(60), np.arange(49.0)):
        message = f"^importances need at least 50 trials with different scores, got {len(scores)}$"
        with pytest.raises(ValueError, match=message):
            importances(SPACE, columns(len(scores)), scores)
