"""The Optuna study of a run's results, for Optuna's own tools."""

import warnings

import matplotlib
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from studies import DEEP, HALVING, finished_copy, finished_run

from hw1jax import load_results
from hw1jax.search import space

matplotlib.use("agg")
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@pytest.mark.parametrize("name, study", [("halving", HALVING), ("deep", DEEP)])
def test_it_has_every_trial_of_the_table(name, study, tmp_path_factory):
    results = load_results(finished_run(name, tmp_path_factory), study)
    journal = (results.folder / "journal.log").read_bytes()
    read = results.optuna_study
    assert (read.study_name, read.direction.name) == (name if name == "deep" else "regression", _way(study))
    for trial, row, mean in zip(read.trials, results.trials.rows, results.trials.means[study.score], strict=True):
        assert (str(trial.number), STATES[trial.state]) == (row["number"], row["state"])
        if trial.state != TrialState.FAIL:  # a pruned trial has the last value that was reported, in float32
            assert trial.value == (mean if trial.state == TrialState.COMPLETE else pytest.approx(mean, rel=1e-6))
    assert space.unflatten(study.space, read.best_params) == results.best.params
    assert (read.best_trial.number, read.best_value) == (results.best.number, results.best.mean)
    read.set_user_attr("note", "mine")
    read.add_trial(read.trials[0])
    assert (results.folder / "journal.log").read_bytes() == journal and "note" not in results.optuna_study.user_attrs


def _way(study):
    return "MAXIMIZE" if study.maximize else "MINIMIZE"


def test_optuna_draws_it(tmp_path_factory):
    study = load_results(finished_run("deep", tmp_path_factory), DEEP).optuna_study
    draw = optuna.visualization.matplotlib
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these are experimental, say Optuna and matplotlib
        bars = draw.plot_param_importances(study)
        history = draw.plot_optimization_history(study)
    assert {text.get_text() for text in bars.get_yticklabels()} == set(DEEP.space)
    np.testing.assert_array_equal(history.collections[0].get_offsets()[:, 1], [trial.value for trial in study.trials])


def test_a_missing_journal_is_told_in_one_line_and_a_cut_line_is_left_alone(tmp_path_factory, tmp_path):
    results = load_results(finished_copy("deep", tmp_path_factory, tmp_path), DEEP)
    journal = results.folder / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 1, "worker')  # as another run writes it now
    content = journal.read_bytes()
    assert len(results.optuna_study.trials) == 9 and journal.read_bytes() == content
    journal.unlink()
    with pytest.raises(ValueError, match=r"^[^\n]*journal\.log is missing: the Optuna study is read from it$"):
        results.optuna_study  # noqa: B018
    assert not journal.exists()
