"""A classification shows its accuracy and confusion matrix, on the test set or out of fold, without being asked."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_iris
from sklearn.metrics import accuracy_score, confusion_matrix
from test_report import Page, blank  # noqa: F401

from hw1jax import Dataset, Float, Study, Task, cross_entropy, report, run_study, write_report
from hw1jax.results import evaluation
from hw1jax.results.trained_model import Model, score

IRIS_X, IRIS_Y = load_iris(return_X_y=True)
IRIS_X = np.float32((IRIS_X - IRIS_X.mean(axis=0)) / IRIS_X.std(axis=0))
TEST = np.arange(150) % 5 == 0
SPLIT = (IRIS_X[~TEST], IRIS_Y[~TEST], IRIS_X[TEST], IRIS_Y[TEST])


def linear(fixed):
    return Task(
        init=lambda key, h: {"w": jnp.zeros((4, 3))},
        apply=lambda params, x, h: x @ params["w"],
        loss=lambda outputs, y: cross_entropy(outputs, y),
        optimizer=lambda h: optax.sgd(h["rate"]),
    )


IRIS = Study("iris", task=linear, data=Dataset(*SPLIT), space={"rate": Float(0.01, 0.1)}, num_trials=2, num_epochs=3)


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    return run_study(IRIS, out=tmp_path_factory.mktemp("iris"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Without a test set, and with folds that hold out half of the samples."""
    half = [(np.arange(0, 150, 2), np.arange(1, 76, 2)), (np.arange(1, 150, 2), np.arange(0, 76, 2))]
    found = replace(IRIS, data=Dataset(IRIS_X, IRIS_Y), folds=half, stratify=None)
    return run_study(found, out=tmp_path_factory.mktemp("alone"))


def test_accuracy_and_confusion_on_the_test_set_need_neither_names_nor_a_metric(tested):
    predicted, y = tested.model.predict(SPLIT[2]).argmax(axis=1), SPLIT[3]
    assert tested.test["accuracy"] == pytest.approx(accuracy_score(y, predicted))
    assert tested.test["confusion"] == confusion_matrix(y, predicted).tolist()
    assert tested.ensemble["accuracy"] > 0.5 and tested.has_classes
    assert tested.classified.names == ("0", "1", "2") and tested.classified.where == "on the test set"
    assert f"accuracy {tested.test['accuracy']:.4g}" in repr(tested)


def test_the_page_has_the_confusion_matrix_with_indices_for_names(tested, blank):  # noqa: F811
    page = Page(write_report(tested.folder, IRIS))
    shown = {path.stem for path in (tested.folder / "figures").glob("*.png")}
    assert {"confusion", "precision_recall"} < shown and "could not be" not in page.text
    assert "calibration" not in shown, "only outputs of the cross entropy are known to be logits"
    assert "test accuracy" in page.text and "out of fold" not in page.text.lower()
    assert repr(tested.test["accuracy"]) in page.values
    (axes, *_) = report.confusion_matrix(tested).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    assert axes.get_title(loc="left") + axes.get_title() == "Confusion on the test set: % of each true class"


def test_without_a_test_set_both_are_shown_of_what_the_folds_held_out(alone, blank):  # noqa: F811
    held_out = np.arange(76)
    outputs = alone.out_of_fold
    assert np.isnan(outputs[76:]).all() and np.isfinite(outputs[:76]).all()
    np.testing.assert_array_equal(alone.classified.outputs, outputs[held_out])
    np.testing.assert_array_equal(alone.classified.y, IRIS_Y[held_out])
    predicted = outputs[held_out].argmax(axis=1)
    page = Page(write_report(alone.folder, alone.study))
    assert "Confusion matrix, out of fold" in page.text and "Test set" not in page.text
    right = accuracy_score(IRIS_Y[held_out], predicted)
    assert 0.4 < right < 1 and repr(right) in page.values and "accuracy out of fold" in page.text
    counts = confusion_matrix(IRIS_Y[held_out], predicted, labels=(0, 1, 2))
    for i, name in enumerate(("0", "1", "2")):
        recall = float(counts[i, i] / max(counts[i].sum(), 1))
        assert f"{name}{counts[i].sum()}" in page.text and repr(recall) in page.values
    (axes, *_) = report.confusion_matrix(alone).axes
    assert axes.get_title(loc="left") + axes.get_title() == "Confusion out of fold: % of each true class"
    assert alone.test is None and "could not be" not in page.text


def test_accuracy_out_of_fold_counts_weights_as_a_metric_does(alone):
    weights = np.where(np.arange(150) % 7 == 0, 0, 1 + IRIS_Y.astype(float))
    found = alone._replace(data=alone.data._replace(weights=weights)).classified
    known = accuracy_score(found.y, found.outputs.argmax(axis=1), sample_weight=weights[:76])
    assert found.accuracy == pytest.approx(known) and abs(known - alone.classified.accuracy) > 0.01
    assert found.whose.endswith("Each counts once here, whatever its weight. ")


def test_without_a_refit_the_confusion_is_the_ensembles(tmp_path, blank):  # noqa: F811
    found = run_study(IRIS, out=tmp_path, refit=False)
    assert found.ensemble["confusion"] == confusion_matrix(SPLIT[3], found.classified.outputs.argmax(axis=1)).tolist()
    assert "The ensemble of the fold models. Rows add up" in Page(write_report(tmp_path, IRIS)).text


@pytest.mark.parametrize(
    ("outputs", "y", "names", "are"),
    [
        (np.zeros((4, 3)), np.array([0, 1, 2, 0]), None, True),
        (np.zeros((4, 3)), np.array([0, 1, 2, 0]), ("a", "b", "c"), True),
        (np.zeros((4, 3)), np.array([0, 1, 2, 0]), ("a", "b"), False),
        (np.zeros((4, 1)), np.array([0, 0, 0, 0]), None, False),  # one class is none
        (np.zeros((4, 3)), np.array([0, 1, 3, 0]), None, False),  # no output for 3
        (np.zeros((4, 3)), np.array([0, 1, -1, 0]), None, False),
        (np.zeros((4, 3)), np.array([0.0, 1, 2, 0]), None, False),
        (np.zeros((4, 3)), np.array([[0], [1], [2], [0]]), None, False),
        (np.zeros((4, 2, 3)), np.array([0, 1, 2, 0]), None, False),
        ({"a": np.zeros((4, 3))}, np.array([0, 1, 2, 0]), None, False),
    ],
)
def test_classes_are_indices_with_an_output_each(outputs, y, names, are):
    assert evaluation.are_classes(names, outputs, y) == are


def test_many_classes_without_names_have_an_accuracy_and_no_confusion_matrix():
    outputs, y = np.eye(101, dtype=np.float32), np.arange(101)
    model = Model(replace(IRIS, classes=None), {"rate": 0.05}, {})
    found = score(model, outputs, y)
    assert found["accuracy"] == 1 and found["confusion"] is None
    named = model._replace(study=replace(IRIS, classes=tuple(map(str, y))))
    assert score(named, outputs, y)["confusion"] == np.eye(101, dtype=int).tolist()
    assert score(model, outputs[:100, :100], y[:100])["confusion"] is not None
