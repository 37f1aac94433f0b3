"""A study without a test set, and a run without a refit: the rest of the results is the same."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from processes import lasting
from studies import LINE, TOY, TOY_DATA, finished_run
from test_report import Page, blank  # noqa: F401
from test_run import CLASSES

from hw1jax import Dataset, report, run_study, storage, write_comparison, write_report
from hw1jax.progress import print_summary
from hw1jax.report import sections, write_overview
from hw1jax.results.results import load_results
from hw1jax.results.trained_model import load_model
from hw1jax.search import brackets
from hw1jax.search.brackets import Brackets

ONE = {"num_devices": 1, "widths": "padded"}  # as finished runs have it
ALONE = Dataset(TOY_DATA.x_train, TOY_DATA.y_train)
CURVE = replace(LINE, data=ALONE, sections={"Data": [sections.points], "Test set": [sections.fit]})
NO_TEST, NO_REFIT, NEITHER = "no test set", "no refit", "neither"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Results by what they lack; they are read only."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        NO_TEST: run_study(CURVE, out=folder / NO_TEST, **ONE),
        NO_REFIT: run_study(LINE, out=folder / NO_REFIT, refit=False, **ONE),
        NEITHER: run_study(CURVE, out=folder / NEITHER, refit=False, **ONE),
    }


def read_by_column(folder):
    return (folder / "trials.csv").read_text()


@pytest.mark.parametrize("lacks", [NO_TEST, NO_REFIT, NEITHER])
def test_the_trials_and_the_fold_models_are_those_of_the_whole_run(runs, lacks, tmp_path_factory):
    whole, found = load_results(finished_run("line", tmp_path_factory), LINE), runs[lacks]
    assert read_by_column(found.folder) == read_by_column(whole.folder)
    np.testing.assert_array_equal(found.model.fold_outputs(TOY_DATA.x_test), whole.model.fold_outputs(TOY_DATA.x_test))
    assert found.ensemble == (whole.ensemble if lacks == NO_REFIT else None)
    assert found.test is None and found.failure is None and found.warning is None
    assert found.record["test"] is None and not found.has_curve and not found.has_classes
    outputs = {name for name in found.histories if "output" in name or name.startswith(("curve", "refit"))}
    expected = {NO_TEST: {"refit_number", "refit_train_loss"}, NO_REFIT: {"ensemble_outputs"}, NEITHER: set()}
    assert outputs == {"out_of_fold_outputs"} | expected[lacks]
    assert ("test_seconds" in found.record["timing"]) == (lacks == NO_REFIT)


def test_without_a_test_set_the_refit_is_the_same_and_its_file_keeps_training_examples(runs, tmp_path_factory):
    whole, found = load_results(finished_run("line", tmp_path_factory), LINE), runs[NO_TEST]
    np.testing.assert_array_equal(found.model.predict(TOY_DATA.x_test), whole.model.predict(TOY_DATA.x_test))
    assert found.record["refit"] == whole.record["refit"]

    def doubled(fixed):
        task = LINE.task(fixed)
        return task._replace(apply=lambda params, x, h: 2 * task.apply(params, x, h))

    for lacks in (NO_TEST, NO_REFIT, NEITHER):
        with pytest.raises(ValueError, match="of another network than the study's is now"):
            load_model(runs[lacks].folder / "model.msgpack", replace(LINE, task=doubled))


def test_without_a_refit_the_ensemble_predicts_and_what_needs_the_refit_says_so(runs, tmp_path):
    found, x = runs[NO_REFIT], TOY_DATA.x_test
    outputs = found.model.predict(x, ensemble=True)
    np.testing.assert_allclose(outputs, np.mean(found.model.fold_outputs(x), axis=0), rtol=1e-6)
    assert found.ensemble["loss"] == pytest.approx(np.mean((outputs - TOY_DATA.y_test) ** 2), rel=1e-6)
    assert found.record["refit"]["state"] == "skipped" and found.record["refit"]["train_loss"] is None
    assert repr(found.model).endswith("3 fold models without a refit)")
    with pytest.raises(
        ValueError, match=r"^ensemble=False: there is no refit \(refit=False\); give ensemble=True, or "
    ):
        found.model.predict(x)
    with pytest.raises(ValueError, match="no parameters to export: there is no refit"):
        found.export_parameters(tmp_path / "none.npz")


@pytest.mark.parametrize("data", [TOY_DATA, ALONE], ids=["with a test set", "without"])
def test_a_later_run_adds_the_refit_alone(data, tmp_path, monkeypatch):
    trained, study = [], replace(LINE, data=data)
    train = brackets.Trainer.train

    def noting(self, job, *args, **options):
        trained.append(job.name)
        made = train(self, job, *args, **options)
        if job.name in self.read:
            trained.remove(job.name)
        return made

    monkeypatch.setattr(brackets.Trainer, "train", noting)
    first = run_study(study, out=tmp_path / "twice", refit=False, **ONE)
    assert first.model.params is None and trained and not any(name.startswith("refit") for name in trained)
    trained.clear()
    found = run_study(study, out=tmp_path / "twice", **ONE)
    assert trained == [f"refit-{found.best.number}"]
    run_study(study, out=tmp_path / "once", **ONE)
    assert lasting(tmp_path / "twice") == lasting(tmp_path / "once")
    assert run_study(study, out=tmp_path / "twice", refit=False, **ONE).record["test"] is None


def test_fold_models_that_are_not_finite_and_no_refit_leave_no_model(tmp_path, monkeypatch):
    fold_models = Brackets.fold_models
    spoilt = lambda *args: jax.tree.map(lambda a: a * np.nan, fold_models(*args))  # noqa: E731
    monkeypatch.setattr(Brackets, "fold_models", spoilt)
    found = run_study(LINE, out=tmp_path, refit=False, **ONE)
    assert found.model is None and found.ensemble is None and found.failure is None
    assert not (tmp_path / "model.msgpack").exists()


def test_a_refit_that_diverges_without_a_test_set_is_a_failure(tmp_path, monkeypatch, blank):  # noqa: F811
    refit = Brackets.refit
    monkeypatch.setattr(Brackets, "refit", lambda *args, **how: jax.tree.map(lambda a: a * np.nan, refit(*args, **how)))
    found = run_study(CURVE, out=tmp_path, **ONE)
    assert found.model is None and found.test is None
    assert found.failure == "the refit of the best trial diverged; search smaller learning rates"
    assert f"  {found.failure}\n" in repr(found)
    assert f"No model: {found.failure}." in Page(write_report(tmp_path, CURVE)).text


@pytest.mark.parametrize("lacks", [NO_TEST, NO_REFIT, NEITHER])
def test_the_page_has_what_there_is_and_nothing_that_is_empty(runs, lacks, blank):  # noqa: F811
    found = runs[lacks]
    page = Page(write_report(found.folder, CURVE if lacks != NO_REFIT else LINE))
    for word in ("could not be", "none", "No test loss", "nan"):
        assert not re.search(rf"\b{word}\b", page.text), word
    assert ("Test set" in page.text) == (lacks == NO_REFIT) == ("ensemble’s test loss" in page.text)
    assert "validationmean" not in page.text and page.text.count("looked at the test set") == (lacks == NO_REFIT)
    assert ("trained again on all training data" in page.text) == (lacks == NO_TEST)
    assert ("Inside the network" in page.text) == (lacks == NO_TEST) == ("its refit" in page.text)
    figures = {path.stem for path in (found.folder / "figures").glob("*.png")}
    assert "fitted_curve" not in figures and ("weights" in figures) == (lacks == NO_TEST)
    assert {"learning_profile", "trial_scores"} < figures and ("data" in figures) == (lacks != NO_REFIT)
    with pytest.raises(ValueError, match="fitted_curve: only where"):
        report.fitted_curve(found)


def test_classes_and_data_of_the_page_need_no_test_set(tmp_path, blank):  # noqa: F811
    alone = replace(CLASSES, data=CLASSES.data._replace(x_test=None, y_test=None))
    found = run_study(alone, out=tmp_path, **ONE)
    page = Page(write_report(tmp_path, alone))
    assert "could not be" not in page.text and "training61float32 [1]int64" in page.text
    assert "test" not in page.text.partition("How to repeat it")[0].lower()
    assert "test" not in repr(found).replace(str(tmp_path), "")


def test_runs_with_and_without_a_test_are_shown_side_by_side(runs, tmp_path, tmp_path_factory, blank, capsys):  # noqa: F811
    whole = load_results(finished_run("line", tmp_path_factory), LINE)
    for results in ([whole, *runs.values()], list(runs.values()), [runs[NEITHER], runs[NO_TEST]]):
        page = Page(write_comparison([found.folder for found in results], tmp_path / "page.html"))
        print_summary([found.record for found in results], tmp_path)
        printed = capsys.readouterr().out
        has_test, has_ensemble = whole in results, runs[NO_REFIT] in results
        assert ("test loss" in page.text) == has_test and ("ensemble's loss" in page.text) == has_ensemble
        assert page.values.count(repr(whole.test["loss"])) == has_test
        assert page.values.count(repr(whole.ensemble["loss"])) == has_test + has_ensemble
        assert ("test loss" in printed) == has_ensemble and "none" not in printed + page.text
        assert printed.count("ensemble of its 3") == has_test + has_ensemble
    overview = write_overview(tmp_path, {"line": CURVE}, [runs[NO_TEST].folder], {})
    assert "test loss" not in Page(overview).text and "could not be" not in Page(overview).text


def test_a_search_with_tests_of_another_count_has_another_folder(tmp_path):
    run_study(CURVE, out=tmp_path, **ONE)
    with pytest.raises(ValueError, match="data_sha256"):
        run_study(LINE, out=tmp_path, **ONE)
    assert storage.read_arrays(tmp_path / "histories.npz")["val_loss"].shape == (3, 3, 2)
    assert TOY.data.has_test_set and not ALONE.has_test_set
