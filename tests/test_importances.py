"""Importances find the hyperparameters that scores depend on, are reproducible, and name their requirements."""

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
    shares = importances(SPACE, params, score(params))
    assert shares.keys() == params.keys() and next(iter(shares)) == name and shares[name] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    if name == "way":
        assert importances(SPACE, params, score(params)) == shares


def test_equal_scores_a_single_trial_and_no_scikit_learn_are_told(monkeypatch):
    for scores in (np.ones(5), np.ones(1)):
        with pytest.raises(ValueError, match="at least two trials with different scores"):
            importances(SPACE, columns(len(scores)), scores)
    forest = sys.modules["optuna.importance._fanova._fanova"]
    monkeypatch.setattr(forest._imports, "_deferred", (ImportError("no sklearn"), "no sklearn"))
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        importances(SPACE, columns(3), np.arange(3.0))
