"""The measurement of the estimators: both sides do the same work."""

import json
import subprocess
import sys

import estimators
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import StratifiedKFold


@pytest.mark.parametrize("halving", [False, True])
def test_both_sides_search_the_same_space_on_the_same_folds_for_as_many_epochs(halving):
    x, y = load_iris(return_X_y=True)
    shared = {"cv": StratifiedKFold(3, shuffle=True, random_state=0), "random_state": 0}
    theirs = estimators.their_search(True, halving, 9, 9, **shared).set_params(n_jobs=1)
    with pytest.warns(match="Maximum iterations"):  # nothing stops early
        theirs.fit(x, y)
    ours = estimators.our_search(True, halving, 9, 9, **shared).fit(x, y)
    assert {f"net__{name}" for name in estimators.SPACE} == set(theirs.best_params_) - {"net__max_iter"}
    assert set(ours.best_params_) == set(estimators.SPACE) and theirs.n_splits_ == ours.n_splits_ == 3
    rungs = {1: 9, 3: 3, 9: 1} if halving else {9: 9}  # {epochs: trials}
    assert {n: np.sum(ours.cv_results_["n_resources"] >= n) for n in rungs} == rungs
    if halving:  # scikit-learn has a row for each rung of a trial
        assert {n: np.sum(theirs.cv_results_["n_resources"] == n) for n in rungs} == rungs
    assert theirs.best_estimator_["net"].n_iter_ == 9


@pytest.mark.slow
def test_the_file_has_each_search_of_each_data_set(tmp_path):
    flags = ["--quick", "--data", "diabetes", "--out", str(tmp_path)]
    subprocess.run([sys.executable, estimators.__file__, *flags], check=True, timeout=600)
    found = json.loads((tmp_path / "estimators.json").read_text())["data"]["diabetes"]
    forms = estimators.forms(halving=False, seed=0) + estimators.forms(halving=True, seed=0)
    assert found["samples"] == 442 and len(found["runs"]) == len(forms)
    for [run] in found["runs"].values():
        assert min(run["cpu_seconds"], run["seconds"]) > 0 and -1 < run["test_score"] < 1
