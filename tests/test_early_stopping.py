"""Early stopping in a search: what a plain search's histories say of it, whatever the job, its kill, or its program."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest
import studies
from matplotlib.figure import Figure

from hw1jax import cli, cross_validate, roc_auc, run, run_study, write_comparison, write_report
from hw1jax.report import sections
from hw1jax.results import run_folder
from hw1jax.search import jobs
from hw1jax.search import study as study_
from hw1jax.search.observer import Observer
from hw1jax.search.space import Choice, Float, Int

TOY = replace(studies.TOY, name="stopping", num_trials=6, num_epochs=24, batch_size=41, epochs_per_call=3)
DEEP = replace(studies.DEEP, num_trials=5, num_epochs=16, epochs_per_call=2)
LINE = replace(studies.LINE, num_trials=4, num_epochs=12, epochs_per_call=3)
PADDED = {"num_devices": 1, "widths": "padded"}


def by_the_rule(scores, patience, num_epochs=None):
    """(best epoch, epochs until it stops) of a member whose scores [epoch] are the lower the better."""
    best, lowest = -1, np.inf
    for epoch, score in enumerate(scores[:num_epochs]):
        if epoch - best > patience:
            return best, epoch
        if score < lowest:
            best, lowest = epoch, score
    return best, len(scores[:num_epochs])


def assert_follows_the_rule(found, plain, patience, rows=None):
    """That scores, best epochs and histories are what the plain search's histories say, bit for bit."""
    name, sign = found.study.score, -1 if found.study.maximize else 1
    rows = range(len(found.trials["number"])) if rows is None else rows
    for row in rows:
        for fold in range(found.num_folds):
            best, stop = by_the_rule(sign * plain.histories[f"val_{name}"][row, fold], patience)
            assert found.trials[f"split{fold}_best_epoch"][row] == best + 1
            for key in ("loss", *found.study.metrics):
                expected = plain.histories[f"val_{key}"][row, fold]
                assert found.trials[f"split{fold}_val_{key}"][row] == expected[best]
                own = found.histories[f"val_{key}"][row, fold]
                np.testing.assert_array_equal(own[:stop], expected[:stop])
                assert np.isnan(own[stop:]).all()
            own, expected = found.histories["train_loss"][row, fold], plain.histories["train_loss"][row, fold]
            np.testing.assert_array_equal(own, np.where(np.arange(len(own)) < stop, expected, np.nan))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def plain(base):
    return run_study(TOY, out=base / "plain", **PADDED)


@pytest.fixture(scope="module")
def stopped(base):
    return run_study(TOY, out=base / "stopped", early_stopping=2, **PADDED)


def test_members_stop_and_their_best_epochs_count(plain, stopped):
    assert_follows_the_rule(stopped, plain, 2)
    epochs = np.stack([stopped.trials[f"split{i}_best_epoch"] for i in range(3)])
    assert epochs.min() == 1 and epochs.max() == 24 and len(np.unique(epochs)) > 5


def test_a_metric_that_is_maximized_decides_in_random_training_with_state_and_static_depths(tmp_path):
    usual = run_study(DEEP, out=tmp_path / "plain", num_devices=1)
    found = run_study(DEEP, out=tmp_path / "stopped", early_stopping=3, num_devices=1)
    assert_follows_the_rule(found, usual, 3)
    assert len(set(found.trials["depth"])) == 2 and np.isnan(found.histories["val_loss"]).any()


def test_the_refit_trains_for_the_mean_of_the_best_epochs_on_the_schedule_of_all(plain, stopped):
    best = stopped.best
    epochs = [stopped.trials[f"split{i}_best_epoch"][stopped.row] for i in range(3)]
    num_epochs = round(np.mean(epochs))
    assert stopped.record["refit"]["num_epochs"] == len(stopped.histories["refit_train_loss"]) == num_epochs < 24
    assert "num_epochs" not in plain.record["refit"]
    _, train_loss = run.refit(run.load(study_.run_config(TOY)), best.params, Observer())
    np.testing.assert_array_equal(stopped.histories["refit_train_loss"], train_loss[:num_epochs])


def test_the_networks_that_are_kept_are_those_of_the_best_epochs(stopped):
    folds = run.load(study_.run_config(TOY)).folds
    for i, fold in enumerate(folds):
        x, y = (a[fold.validation] for a in TOY.data[:2])
        loss = np.mean((stopped.model.fold_outputs(x)[i] - y) ** 2)
        np.testing.assert_allclose(loss, stopped.trials[f"split{i}_val_loss"][stopped.row], rtol=1e-5)


def test_networks_at_their_own_widths_stop_by_the_same_rule(tmp_path):
    usual = run_study(LINE, out=tmp_path / "plain", widths="exact", num_devices=1)
    found = run_study(LINE, out=tmp_path / "stopped", early_stopping=2, widths="exact", num_devices=1)
    assert_follows_the_rule(found, usual, 2)
    assert len(np.unique(found.trials["split0_best_epoch"])) > 1 and len(set(found.trials["units"])) > 1


def test_a_search_that_is_stopped_again_and_again_has_the_same_bytes(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SECONDS", 0)  # a checkpoint after each call

    class Stopping(Observer):
        def __init__(self):
            self.stop, self.calls = threading.Event(), 0

        def epochs(self, what, done, num_epochs, scores, search_done=None):
            self.calls += 1
            if self.calls == 4:
                self.stop.set()

    config = study_.run_config(TOY, out=tmp_path, early_stopping=2, **PADDED)
    times = 0
    while True:
        observer = Stopping()
        try:
            run.run(config, observer, command="", started=cli.STARTED, stop=observer.stop)
            break
        except jobs.Stopped:
            times += 1
    assert times >= 2
    assert (tmp_path / "trials.csv").read_bytes() == (stopped.folder / "trials.csv").read_bytes()
    again = run_study(TOY, out=tmp_path, early_stopping=2, **PADDED)
    for name in ("train_loss", "val_loss", "refit_train_loss"):
        np.testing.assert_array_equal(again.histories[name], stopped.histories[name])


def test_workers_of_an_executor_find_the_same(stopped, tmp_path):
    with ThreadPoolExecutor(1) as executor:
        found = run_study(TOY, out=tmp_path, early_stopping=2, executor=executor, **PADDED)
    assert (found.folder / "trials.csv").read_bytes() == (stopped.folder / "trials.csv").read_bytes()


def test_a_job_ends_when_all_its_members_have_stopped(tmp_path):
    """At a learning rate of 0 nothing improves after the first epoch."""
    asked = replace(LINE, num_epochs=1000, num_trials=3, space={**LINE.space, "learning_rate": Float(0.0, 0.0)})
    done = []

    class Counting(Observer):
        def epochs(self, what, epochs, num_epochs, scores, search_done=None):
            if what.startswith("trials"):
                done.append(epochs)

    found = run_study(asked, out=tmp_path, observer=Counting(), early_stopping=5, **PADDED)
    assert max(done) == 6  # calls have 3 epochs
    assert found.trials["state"].tolist() == ["complete"] * 3 and found.trials["epochs"].tolist() == [1000] * 3
    assert found.trials["split0_best_epoch"].tolist() == [1] * 3
    assert np.isfinite(found.histories["val_loss"]).sum() == 3 * 3 * 6


def test_halving_ranks_by_the_best_epochs_so_far(plain, tmp_path):
    settings = {"halving": 2, "first_rung": 6, "early_stopping": 2}
    found = run_study(TOY, out=tmp_path, **PADDED, **settings)
    left, ends = list(range(6)), [6, 12, 24]
    lasts = dict.fromkeys(left, 0)
    for end in ends:
        lasts |= dict.fromkeys(left, end)
        means = {}
        for row in left:
            losses = plain.histories["val_loss"][row]
            means[row] = np.mean([own[by_the_rule(own, 2, end)[0]] for own in losses.astype(float)])
            assert lasts[row] != found.trials["epochs"][row] or np.isclose(
                found.trials["mean_val_loss"][row], means[row], rtol=1e-4
            )
        left = sorted(sorted(left, key=means.__getitem__)[: -(-len(left) // 2)])
    assert found.trials["epochs"].tolist() == list(lasts.values())
    assert found.best.number == min(left)


def test_a_rung_whose_members_had_all_stopped_before_trains_nothing(tmp_path):
    asked = replace(LINE, num_epochs=24, space={**LINE.space, "learning_rate": Float(0.0, 0.0)})
    found = run_study(asked, out=tmp_path, halving=2, first_rung=6, early_stopping=3, **PADDED)
    assert np.isfinite(found.histories["val_loss"]).sum(axis=2).tolist() == [[4] * 3] * 4
    assert sorted(found.trials["epochs"].tolist()) == [6, 6, 12, 24]
    again = run_study(asked, out=tmp_path, halving=2, first_rung=6, early_stopping=3, **PADDED)
    assert again.best == found.best


def test_a_trial_without_a_finite_score_fails_and_one_that_diverges_later_keeps_its_best(tmp_path):
    space = {**LINE.space, "learning_rate": Float(1e-3, 1e8, log=True)}
    asked = replace(LINE, num_epochs=20, num_trials=8, space=space)
    usual = run_study(asked, out=tmp_path / "plain", **PADDED)
    found = run_study(asked, out=tmp_path / "stopped", early_stopping=2, **PADDED)
    ever = np.isfinite(usual.histories["val_loss"]).any(axis=2).all(axis=1)
    at_last = np.isfinite(usual.histories["val_loss"][:, :, -1]).all(axis=1)
    assert at_last.any() and (ever & ~at_last).any() and (~ever).any()
    np.testing.assert_array_equal(found.trials["state"], np.where(ever, "complete", "failed"))
    assert_follows_the_rule(found, usual, 2, np.flatnonzero(ever))


def test_it_is_cross_validations_early_stopping_on_the_same_folds_and_keys(tmp_path):
    """With whole batches, whose order doesn't matter; up to rounding."""
    asked = replace(studies.LINE, space={"learning_rate": Float(0.05, 0.3)}, task=one_unit, num_epochs=20, num_trials=4)
    settings = {"batch_size": 61, "early_stopping": 3, "num_devices": 1}
    found = run_study(asked, out=tmp_path, **settings)
    folds, task = run.load(study_.run_config(asked)).folds, one_unit({})
    rates = {"learning_rate": found.trials["learning_rate"].astype(np.float32)}
    expected = cross_validate(
        *task[:4], rates, *asked.data[:2], key=jax.random.key(0), folds=folds, num_epochs=20, batch_size=61,
        early_stopping=3,
    )  # fmt: skip
    epochs = np.stack([found.trials[f"split{i}_best_epoch"] for i in range(3)], axis=1)
    np.testing.assert_array_equal(epochs, expected.best_epoch + 1)
    assert len(np.unique(epochs)) > 2
    np.testing.assert_allclose(found.histories["val_loss"], expected.val_loss, rtol=1e-5)
    np.testing.assert_allclose(found.trials["mean_val_loss"], expected.scores.mean, rtol=1e-5)


def one_unit(fixed):
    """A line's slope times x; above a rate of about 1 it oscillates."""
    task = studies.line_task({"units": 1})
    return task._replace(
        init=lambda key, h: {"slopes": jax.random.normal(key, (1,))},
        apply=lambda params, x, h: x / 5 * params["slopes"][None],
    )


def test_numbers_of_epochs_in_the_space_stop_early_too(tmp_path):
    asked = replace(LINE, space={**LINE.space, "num_epochs": Int(6, 12, step=6, static=True)})
    usual = run_study(asked, out=tmp_path / "plain", **PADDED)
    found = run_study(asked, out=tmp_path / "stopped", early_stopping=2, **PADDED)
    for row, num_epochs in enumerate(usual.trials["num_epochs"]):
        for fold in range(3):
            best, stop = by_the_rule(usual.histories["val_loss"][row, fold, :num_epochs], 2)
            assert found.trials[f"split{fold}_best_epoch"][row] == best + 1
            assert np.isfinite(found.histories["val_loss"][row, fold]).sum() == stop


def test_only_a_search_with_early_stopping_has_its_columns_and_setting(plain, stopped):
    assert not any("best_epoch" in name for name in plain.trials)
    assert "early_stopping" not in plain.record["config"] and stopped.record["config"]["early_stopping"] == 2
    with pytest.raises(ValueError, match="holds a search with early_stopping = 2, not 3"):
        run_study(TOY, out=stopped.folder, early_stopping=3, **PADDED)


def test_folds_that_have_stopped_count_in_a_pages_means_with_their_scores(stopped):
    curves, own = sections.counting_curves(stopped, "val_loss"), stopped.histories["val_loss"]
    ended = np.isnan(own[:, :, -1])
    np.testing.assert_array_equal(curves[:, :, -1][ended], stopped.trials.folds["loss"][ended])
    assert ended.any() and np.isfinite(curves).all()
    np.testing.assert_array_equal(curves[np.isfinite(own)], own[np.isfinite(own)])
    ax = Figure().add_subplot()
    sections.learning_panels(stopped)[0](ax)
    (mean,) = (line.get_ydata() for line in ax.lines if line.get_label() == "validation, mean of 3 networks")
    np.testing.assert_array_equal(mean, curves[stopped.row].mean(axis=0)[: len(mean)])


def test_a_comparisons_curves_go_on_to_the_last_epoch_of_any_fold(stopped):
    _, curves = run_folder.read_curves(stopped.folder)
    own = stopped.histories["val_loss"][stopped.row]
    ends = np.isfinite(own).sum(axis=1)
    assert ends.min() < ends.max() == curves["val_loss"].shape[1], "folds of the best trial stop at several epochs"
    of_page = sections.counting_curves(stopped, "val_loss")[stopped.row]
    np.testing.assert_array_equal(curves["val_loss"], of_page[:, : ends.max()])
    has_stopped, scores = ends < ends.max(), stopped.trials.folds["loss"][stopped.row]
    np.testing.assert_array_equal(curves["val_loss"][has_stopped, -1], scores[has_stopped])
    assert np.isfinite(curves["train_loss"]).all()


def test_pages_show_a_search_with_early_stopping(stopped, plain, tmp_path):
    page = write_report(stopped.folder, TOY).read_text()
    assert "mean over its folds in their best epochs" in page
    assert "validation ends at " + f"{stopped.trials.means['loss'][stopped.row]:.4g}" in page
    both = write_comparison([stopped.folder, plain.folder], tmp_path / "both.html").read_text()
    assert "ends at nan" not in page + both and "could not be shown" not in page


def test_a_score_that_is_undefined_in_a_fold_is_refused_before_anything_is_written(tmp_path):
    zeros = np.flatnonzero(studies.DEEP_Y[:90] == 0)[:20]
    folds = [(np.setdiff1d(np.arange(90), zeros), zeros), (np.arange(45), np.arange(45, 90))]
    asked = replace(DEEP, metrics={"auc": roc_auc}, maximize="auc", folds=folds)
    with pytest.raises(ValueError, match="^early_stopping= needs auc in each fold"):
        run_study(asked, out=tmp_path / "out", early_stopping=2)
    assert not (tmp_path / "out").exists()


def test_the_flag_and_its_mistakes(tmp_path):
    assert cli.parse(TOY, None, ["--early-stopping", "7"])[0].search.early_stopping == 7
    for value, message in ((0, "must be at least 1, got 0"), (1.5, "must be a whole number, got 1.5")):
        with pytest.raises(ValueError, match="early_stopping= " + message):
            study_.run_config(TOY, early_stopping=value)
    with pytest.raises(ValueError, match="space: split0_best_epoch is the name of a column"):
        study_.run_config(study_.narrow(TOY, split0_best_epoch=Choice(1, 2)))
