"""Outputs of the best trial's fold models on what they held out, in the results of a study."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax
from sklearn.model_selection import ShuffleSplit
from studies import LINE, TOY_DATA, finished_run

from hw1jax import Task, cross_entropy, k_fold, run_study, stratified_k_fold
from hw1jax.results import testing
from hw1jax.results.results import load_results

ONE = {"num_devices": 1, "widths": "padded"}  # as finished runs have it
X = TOY_DATA.x_train
CLASSES = replace(
    LINE,
    name="classes",
    task=lambda fixed: Task(
        init=lambda key, h: {"w": jnp.zeros((1, 3))},
        apply=lambda params, x, h: x @ params["w"],
        loss=cross_entropy,
        optimizer=lambda h: optax.sgd(h["learning_rate"]),
    ),
    data=TOY_DATA._replace(y_train=np.arange(61) % 3, y_test=np.arange(20) % 3),
    space={"learning_rate": LINE.space["learning_rate"]},
    num_trials=1,
)
OVERLAPPING = [(np.arange(30, 61), np.arange(0, 20)), (np.arange(0, 10), np.arange(15, 40))]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return load_results(finished_run("line", tmp_path_factory), LINE)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return run_study(CLASSES, out=tmp_path_factory.mktemp("classes"), **ONE)


def outputs_of(found, fold):
    """Of one of the line's fold models on all training samples, by hand."""
    slopes = found.model.folds[fold][0]["slopes"]
    return X * slopes[: found.best.params["units"]].sum()


def test_each_sample_has_the_output_of_the_fold_model_that_held_it_out(line):
    expected = np.full_like(X, np.nan)
    for i, fold in enumerate(k_fold(61, 3, (0,))):
        expected[fold.validation] = outputs_of(line, i)[fold.validation]
    assert len({float(np.sum(params["slopes"])) for params, _ in line.model.folds}) == 3
    np.testing.assert_allclose(line.out_of_fold, expected, rtol=1e-6)
    for fold, loss in zip(line.folds, line.trials.folds["loss"][line.row], strict=True):
        errors = (line.out_of_fold - TOY_DATA.y_train)[fold.validation]
        assert np.mean(errors**2) == pytest.approx(loss, rel=1e-5)


def test_the_folds_are_those_of_the_run_whatever_stratify_is_now(line, classes):
    for found, expected in zip(line.folds, k_fold(61, 3, (0,)), strict=True):
        np.testing.assert_array_equal(found.train, expected.train)
        np.testing.assert_array_equal(found.validation, expected.validation)
    for study in (CLASSES, replace(CLASSES, stratify=False)):
        expected = stratified_k_fold(CLASSES.data.y_train, 3, (0,))
        for found, other in zip(load_results(classes.folder, study).folds, expected, strict=True):
            np.testing.assert_array_equal(found.validation, other.validation)


def test_a_sample_that_no_fold_holds_out_is_nan_and_one_of_several_their_mean(tmp_path):
    found = run_study(replace(LINE, folds=OVERLAPPING), out=tmp_path, **ONE)
    first, second = outputs_of(found, 0), outputs_of(found, 1)
    expected = np.concatenate([first[:15], (first[15:20] + second[15:20]) / 2, second[20:40], X[40:] * np.nan])
    np.testing.assert_allclose(found.out_of_fold, expected, rtol=1e-6)
    assert not np.allclose(first, second)


def test_repeats_of_a_fold_are_averaged_and_listed(tmp_path):
    found = run_study(LINE, out=tmp_path, repeats=2, **ONE)
    assert [fold.validation.tolist() for fold in found.folds] == 2 * [
        f.validation.tolist() for f in k_fold(61, 3, (0,))
    ]
    mean = [(outputs_of(found, i) + outputs_of(found, i + 3)) / 2 for i in range(3)]
    for fold, expected in zip(found.folds, mean, strict=False):
        np.testing.assert_allclose(found.out_of_fold[fold.validation], expected[fold.validation], rtol=1e-6)


def test_outputs_that_are_not_kept_are_computed_and_the_same(line, tmp_path, monkeypatch):
    monkeypatch.setattr(testing, "LARGEST_KEPT", X.nbytes - 1)
    found = run_study(LINE, out=tmp_path, **ONE)
    assert "out_of_fold_outputs" not in found.histories and "out_of_fold_outputs" in line.histories
    np.testing.assert_array_equal(found.out_of_fold, line.out_of_fold)
    assert line.out_of_fold.dtype == np.float32
    with pytest.raises(ValueError, match="out_of_fold: .* has no fold models"):
        found._replace(model=None).out_of_fold  # noqa: B018


def test_trees_of_outputs_are_put_together_leaf_by_leaf(tmp_path, line):
    def task(fixed):
        task = LINE.task(fixed)
        both = lambda params, x, h: {"a": task.apply(params, x, h), "b": x[:, 0]}  # noqa: E731
        return task._replace(apply=both, loss=lambda outputs, y: task.loss(outputs["a"], y))

    found = run_study(replace(LINE, task=task), out=tmp_path, **ONE)
    assert not any(name.startswith("out_of_fold") for name in found.histories)
    np.testing.assert_allclose(found.out_of_fold["a"], line.out_of_fold, rtol=1e-5)
    np.testing.assert_array_equal(found.out_of_fold["b"], X[:, 0])


def test_a_splitter_that_splits_in_another_way_each_time_has_outputs_and_no_folds(tmp_path):
    splitter = ShuffleSplit(2, test_size=10)
    found = run_study(replace(LINE, folds=splitter), out=tmp_path, **ONE)
    assert np.isfinite(found.out_of_fold).sum() in range(10, 21)
    with pytest.raises(ValueError, match="^folds= are others than those of the run: .*, or give .* random_state$"):
        found.folds  # noqa: B018
    splitter.random_state = 0
    found = run_study(replace(LINE, folds=splitter), out=tmp_path, overwrite=True, **ONE)
    held_out = np.unique(np.concatenate([fold.validation for fold in found.folds]))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(found.out_of_fold[:, 0])), held_out)


def test_probabilities_are_the_softmax_where_the_loss_is_the_cross_entropy(classes, line):
    found = classes
    np.testing.assert_allclose(found.out_of_fold_probabilities, softmax(np.float64(found.out_of_fold), axis=1))
    losses = np.asarray(cross_entropy(found.out_of_fold, CLASSES.data.y_train))
    own = [losses[fold.validation].mean() for fold in found.folds]
    np.testing.assert_allclose(own, found.trials.folds["loss"][found.row], rtol=1e-5)
    with pytest.raises(ValueError, match="^out_of_fold_probabilities: the loss is not hw1jax.cross_entropy; use out"):
        line.out_of_fold_probabilities  # noqa: B018
