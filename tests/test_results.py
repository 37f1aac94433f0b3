"""What a run leaves comes back as it was; whatever else is in its files is refused in one line."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import finished
import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import regression
import toy
from hypothesis import given
from hypothesis import strategies as st
from small_models import DRAWS, examples, make_model, studied

from hw1jax import evaluation, results, space, storage, study
from hw1jax.data import sha256
from hw1jax.losses import accuracy
from hw1jax.results import load_results
from hw1jax.space import Choice, Float, Int
from hw1jax.study import Reference, TrialScore
from hw1jax.trained import Model, load_model, save_model

# Trials


def scores(number, *losses, right=None, state="complete", epochs=9):
    values = {"loss": losses} | ({} if right is None else {"accuracy": right})
    return TrialScore(number, {"l2": 0.1}, state, values, epochs)


CLASSIFIER = replace(toy.STUDY, metrics={"accuracy": accuracy}, space={"l2": Float(0, 1)})


def test_the_best_trial_has_the_lowest_mean_the_first_of_equals():
    trials = [scores(0, 3.0, 3.0), scores(1, 1.0, 3.0), scores(2, 3.0, 1.0), scores(3, 0.0, np.nan, state="failed")]
    assert results.best(trials, CLASSIFIER) is trials[1]
    assert results.ranks(trials, CLASSIFIER) == [3, 1, 1, None]
    assert results.best(trials[3:], CLASSIFIER) is None and results.best([], CLASSIFIER) is None


def test_where_a_metric_is_maximised_the_highest_mean_is_the_best():
    trials = [scores(0, 1.0, right=(0.5,)), scores(1, 2.0, right=(0.9,)), scores(2, 3.0, right=(0.7,))]
    highest, lowest = replace(CLASSIFIER, maximize="accuracy"), replace(CLASSIFIER, minimize="accuracy")
    assert results.best(trials, highest) is trials[1] and results.ranks(trials, highest) == [3, 1, 2]
    assert results.best(trials, lowest) is trials[0] and results.ranks(trials, lowest) == [1, 3, 2]
    assert results.best(trials, CLASSIFIER) is trials[0]


def test_trials_are_ranked_by_the_epochs_they_reached_then_by_their_score():
    trials = [
        scores(0, 0.1, state="pruned", epochs=1),
        scores(1, 9.0, epochs=9),
        scores(2, 0.2, state="pruned", epochs=3),
        scores(3, 0.1, state="failed", epochs=9),
        scores(4, 0.2, state="pruned", epochs=3),
        scores(5, 8.0, epochs=9),
        scores(6, 0.3, state="pruned", epochs=3),
    ]
    assert results.ranks(trials, CLASSIFIER) == [6, 2, 3, None, 3, 1, 5]
    assert results.best(trials, CLASSIFIER) is trials[5]
    assert results.best([t for t in trials if t.state != "complete"], CLASSIFIER) is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["complete", "pruned", "failed"]), st.integers(1, 8), st.integers(-3, 3)), max_size=12
    ),
    st.booleans(),
)
def test_ranks_order_all_that_was_scored_and_the_best_is_a_first(found, maximize):
    asked = replace(CLASSIFIER, maximize="accuracy" if maximize else None)
    trials = [
        scores(i, float(v), right=(float(v),), state=state, epochs=9 if state == "complete" else epochs)
        for i, (state, epochs, v) in enumerate(found)
    ]
    ranks = results.ranks(trials, asked)
    assert [rank is None for rank in ranks] == [trial.state == "failed" for trial in trials]
    ranked = [(rank, trial) for rank, trial in zip(ranks, trials, strict=True) if rank]
    for rank, trial in ranked:
        better = [
            other for _, other in ranked
            if other.epochs > trial.epochs
            or (other.epochs == trial.epochs
                and (other.mean(asked.score) > trial.mean(asked.score)) == maximize
                and other.mean(asked.score) != trial.mean(asked.score))
        ]  # fmt: skip
        assert rank == len(better) + 1
    best = results.best(trials, asked)
    assert (best is None) == all(trial.state != "complete" for trial in trials)
    assert best is None or ranks[best.number] == 1


def test_the_state_of_a_trial_is_what_it_says_not_what_its_numbers_look_like():
    trials = [scores(0, 1.0, state="failed"), scores(1, 2.0)]
    assert results.best(trials, CLASSIFIER) is trials[1] and results.ranks(trials, CLASSIFIER) == [None, 1]


def test_the_table_has_a_row_a_trial_and_says_when_one_diverged(tmp_path):
    ranked = replace(CLASSIFIER, maximize="accuracy", space={"units": (Int(1, 9), Int(1, 9)), "kind": Choice("a", "b")})
    draw = {"units": (3, 4), "kind": "b"}
    trials = [
        TrialScore(0, draw, "complete", {"loss": (1.0, 3.0), "accuracy": (0.5, 0.75)}, 3),
        TrialScore(1, draw, "failed", {"loss": (np.inf, 1.0), "accuracy": (0.5, 0.5)}, 3),
        TrialScore(2, draw, "pruned", {"loss": (0.5, 0.5), "accuracy": (1.0, 1.0)}, 1),
        TrialScore(3, draw, "failed", {"loss": (np.nan, 1.0), "accuracy": (0.5, 0.5)}, 2),
    ]
    losses = np.ones((4, 2, 3), np.float32)
    losses[2, :, 1:] = losses[3, :, 2:] = np.nan
    diverged = losses.copy()
    diverged[1, 0, 1:] = np.inf
    diverged[3, 0, 1:] = np.nan
    results.write_trials(tmp_path / "trials.csv", ranked, trials, losses, {"loss": diverged, "accuracy": losses})
    assert (tmp_path / "trials.csv").read_text().splitlines() == [
        "number,state,epochs,units_1,units_2,kind,split0_val_loss,split1_val_loss,mean_val_loss,std_val_loss,"
        "split0_val_accuracy,split1_val_accuracy,mean_val_accuracy,std_val_accuracy,rank,diverged_epoch",
        "0,complete,3,3,4,b,1.0,3.0,2.0,1.0,0.5,0.75,0.625,0.125,1,",
        "1,failed,3,3,4,b,inf,1.0,inf,nan,0.5,0.5,0.5,0.0,,2",
        "2,pruned,1,3,4,b,0.5,0.5,0.5,0.0,1.0,1.0,1.0,0.0,2,",
        "3,failed,2,3,4,b,nan,1.0,nan,nan,0.5,0.5,0.5,0.0,,2",
    ]


def test_the_score_on_the_test_set_has_means_of_metrics_and_what_belongs_to_classes():
    model = make_model("fashion_mlp")
    outputs, y = np.eye(10, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 2])
    found = results.score(model, outputs, y)
    assert found["accuracy"] == pytest.approx(2 / 3) and np.sum(found["confusion"]) == 3
    assert found["loss"] == pytest.approx(float(np.log(np.e + 9) - 2 / 3))

    def distance(outputs, y):
        return jnp.abs(jnp.argmax(outputs, axis=1) - y)

    measured = model._replace(study=replace(model.study, metrics={"distance": distance}))
    assert results.score(measured, outputs, y)["distance"] == pytest.approx(1 / 3)
    regression_model = make_model("regression")
    found = results.score(regression_model, np.float32([[1], [3]]), np.float32([[0], [0]]))
    assert found == {"loss": 5.0, "accuracy": None, "confusion": None}
    infinite = results.score(measured, np.full_like(outputs, np.inf), y)
    assert infinite == {"loss": None, "accuracy": None, "confusion": None, "distance": None}


def test_the_score_of_an_ensemble_is_the_entropy_and_accuracy_of_its_mean_probabilities():
    model = make_model("fashion_mlp", 3)
    x, y = examples("fashion_mlp"), np.arange(7)
    each = [model._replace(params=params).predict(x) for params, _ in model.folds]
    probabilities = np.mean([evaluation.softmax(own) for own in each], axis=0)
    found = results.score(model, model.predict(x, ensemble=True), y)
    assert found["loss"] == pytest.approx(-np.log(probabilities[y, y]).mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(probabilities.argmax(axis=1) == y))
    assert np.sum(found["confusion"]) == 7


def test_classes_that_no_output_stands_for_are_not_counted():
    model = make_model("fashion_mlp")
    assert results.score(model, np.zeros((2, 10), np.float32), np.array([0, 9]))["confusion"]
    fewer = model._replace(study=replace(model.study, classes=("a", "b")))
    assert results.score(fewer, np.zeros((2, 10), np.float32), np.array([0, 1]))["confusion"] is None


def test_a_reference_is_recorded_as_json_has_it():
    found = results.reference(
        replace(toy.STUDY, reference=Reference("someone", {"hidden_units": (3, 4)}, {"loss": 1.0}))
    )
    assert found == {"name": "someone", "params": {"hidden_units": [3, 4]}, "test": {"loss": 1.0}}
    assert results.reference(toy.STUDY) is None


# A refit beside its folds


@pytest.mark.parametrize(
    "refit, folds, far",
    [
        (0.46, [0.36, 0.37, 0.355], True),  # an optimizer's last epoch jumped
        (0.9, [0.1, 0.4, 0.3], True),  # more than twice the highest, however far apart they are
        (0.45, [0.1, 0.4, 0.3], False),
        (0.405, [0.4, 0.4001, 0.4002], False),  # close to each other by chance
        (0.45, [0.4, 0.4001, 0.4002], True),
        (0.1, [0.4, 0.41, 0.42], False),  # lower is no jump
        (0.43, [0.4], False),
        (0.9, [0.4], True),
        (-0.4, [-1.0, -1.1], True),  # a likelihood
        (-0.95, [-1.0, -1.1], False),
        (np.inf, [0.4, 0.5], True),
        (np.nan, [0.4, 0.5], True),
        (0.4, [0.4, np.nan], False),
        (0.4, [0.4, np.inf], False),
    ],
)
def test_a_refit_far_above_its_folds_is_told_in_a_sentence(refit, folds, far):
    found = results.refit_warning(refit, np.float32(folds))
    assert (found is not None) == far
    if found:
        assert f"{refit:.3g}" in found and f"{max(folds):.3g}" in found
        assert "\n" not in found and not found.endswith(".")


@pytest.mark.parametrize(
    ("test", "folds", "far"),
    [
        (2.3, (0.72, 0.8), True),  # at chance
        (1.5, (0.72, 0.8), False),
        (0.1, (0.72, 0.8), False),  # lower is better
        (-0.4, (-1.0, -1.1), False),  # a likelihood
        (0.1, (-1.0, -1.1), True),
        (None, (0.4,), False),  # a failure, told elsewhere
        (0.4, (0.4, np.inf), False),
    ],
)
def test_a_refit_that_fails_the_test_set_alone_is_told_in_a_sentence(test, folds, far):
    found = results.test_warning(test, folds)
    assert (found is not None) == far
    if found:
        assert f"{test:.3g}" in found and f"{max(folds):.3g}" in found
        assert "\n" not in found and not found.endswith(".")


positive = st.floats(1e-3, 1e3)


@given(st.lists(positive, min_size=2, max_size=10), st.floats(0, 1), st.floats(1e-3, 1e3))
def test_a_refit_between_its_folds_is_never_far_in_whatever_unit(folds, share, unit):
    inside = min(folds) + share * (max(folds) - min(folds))
    assert results.refit_warning(inside, folds) is None
    assert results.refit_warning(1.09 * max(folds), folds) is None, "nor one that is hardly above"
    assert results.refit_warning(2.01 * max(folds) * unit, [unit * fold for fold in folds]) is not None


# A folder of a search with halving, written by hand


RUNGS = [
    {"num_epochs": 2, "num_trials": 5, "went_on": 2, "failed": 1, "seconds": 1.5},
    {"num_epochs": 6, "num_trials": 2, "went_on": 0, "failed": 1, "seconds": 2.5},
]
STATES = ("pruned", "complete", "failed", "pruned", "failed")
EPOCHS = (2, 6, 2, 2, 6)
UNITS = {"hidden_units": (3, 2), "l2": 0.001, "optimizer": "adam"}
DRAWN = [UNITS | {"learning_rate": 0.01 * (1 + i)} for i in range(5)]


def halved(folder: Path, *, with_folds: bool = True, **changes) -> Path:
    """What a search of five trials leaves, of which one was trained to its end."""
    rng = np.random.default_rng(2)
    train_loss, val_loss = rng.uniform(1, 2, (2, 5, 3, 6)).astype(np.float32)
    for i, epochs in enumerate(EPOCHS):
        train_loss[i, :, epochs:] = val_loss[i, :, epochs:] = np.nan
    val_loss[2, 1, 1], val_loss[4, 2, 3:] = np.inf, np.nan
    trials = [
        TrialScore(i, DRAWN[i], state, {"loss": tuple(val_loss[i, :, epochs - 1].tolist())}, epochs)
        for i, (state, epochs) in enumerate(zip(STATES, EPOCHS, strict=True))
    ]
    shapes = study.parameter_shapes(Model(toy.STUDY, DRAWN[1], {}).task, study.one_trial(toy.STUDY, DRAWN[1]))
    networks = [jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes) for _ in range(4)]
    folds = tuple((params, None) for params in networks[1:]) if with_folds else ()
    model = Model(toy.STUDY, DRAWN[1], networks[0], None, folds)
    x, y = toy.DATA.x_test, toy.DATA.y_test
    together = model.predict(x, ensemble=True) if with_folds else None
    arrays = {"refit_number": np.array(1), "refit_train_loss": np.ones(6, np.float32)}
    arrays |= {"test_outputs": model.predict(x), "ensemble_outputs": together}
    config = {"num_trials": 5, "num_epochs": 6, "num_folds": 3, "batch_size": 20, "score": "loss"}
    config |= {"direction": "minimize", "data_sha256": sha256(toy.DATA), "precision": "float32"}
    config |= {"halving": 3, "first_rung": None, "brackets": False, "averaging": None}
    config |= {"space": space.to_json(toy.STUDY.space)}
    record = {
        "format": storage.FORMAT,
        "study": "toy",
        "title": "Toy",
        "command": "toy",
        "config": config,
        "environment": {},
        "best": results.summary(toy.STUDY, trials[1]),
        "refit": {"state": "complete", "failure": None, "train_loss": 1.0, "folds_train_loss": 1.5, "warning": None},
        "test": results.score(model, arrays["test_outputs"], y),
        "ensemble": results.score(model, together, y) if with_folds else None,
        "trials": {"complete": 1, "pruned": 2, "failed": 2},
        "rungs": RUNGS,
        "timing": {"total_seconds": 5.0},
    }
    results.write(folder, toy.STUDY, record | changes, trials, train_loss, {"loss": val_loss}, arrays, model)
    return folder


def test_a_search_with_pruned_trials_and_an_ensemble_comes_back(tmp_path):
    found = load_results(halved(tmp_path), toy.STUDY)
    trials = found.trials
    assert trials.states.tolist() == list(STATES) and trials.epochs.tolist() == list(EPOCHS)
    assert trials.epochs.dtype.kind == "i"
    assert trials.pruned.tolist() == [True, False, False, True, False]
    assert trials.complete.tolist() == [False, True, False, False, False]
    assert np.isnan(trials.ranks).tolist() == [False, False, True, False, True] and trials.ranks[1] == 1
    assert [row["diverged_epoch"] for row in trials.rows] == ["", "", "2", "", "4"]
    for i, epochs in enumerate(EPOCHS):
        ended = found.histories["val_loss"][i, :, epochs - 1]
        np.testing.assert_array_equal(ended, trials.folds["loss"][i].astype(np.float32))
        assert np.isnan(found.histories["train_loss"][i, :, epochs:]).all()
    assert found.best.number == 1 and found.row == 1
    assert found.record["rungs"] == RUNGS
    outputs = found.model.predict(found.data.x_test, ensemble=True)
    np.testing.assert_array_equal(outputs, found.histories["ensemble_outputs"])
    assert found.ensemble == results.score(found.model, outputs, found.data.y_test) != found.test


def test_what_a_halving_search_returns_counts_the_pruned_and_names_the_ensemble(tmp_path):
    found = load_results(halved(tmp_path), toy.STUDY)
    lines = repr(found).splitlines()
    far = found._replace(folder=Path("a" * 500))
    assert len(lines) < 8 and max(map(len, [*lines, *repr(far).splitlines()])) <= 100
    assert lines[0] == "Results(toy: 5 trials, 2 pruned, 2 failed"
    assert f"  ensemble of the folds: loss {found.ensemble['loss']:.4g}" in lines
    assert repr(found.trials).startswith("Trials(5, of which 1 are complete and 2 pruned: hidden_units_1, ")


def test_results_say_what_is_wrong_with_the_refit(tmp_path):
    found = load_results(halved(tmp_path), toy.STUDY)
    assert found.warning is None and "warning" not in repr(found)
    found.record["refit"]["warning"] = warning = results.test_warning(3.0, [1.0, 1.2, 0.8])
    lines = repr(found).splitlines()
    assert max(map(len, lines)) <= 100 and lines[-1].startswith("  folder: ")
    assert f"warning: {warning}" in " ".join(map(str.strip, lines)) and "warning: the refit" in found._repr_html_()


def test_results_without_an_ensemble_are_read_too(tmp_path):
    found = load_results(halved(tmp_path, with_folds=False), toy.STUDY)
    assert found.ensemble is None and not found.model.has_ensemble
    assert "ensemble" not in repr(found) and "ensemble_outputs" not in found.histories


def test_fold_models_that_are_not_finite_are_not_written(tmp_path):
    model = make_model("regression", 2)
    model = model._replace(folds=(model.folds[0], jax.tree.map(lambda a: a * np.nan, model.folds[1])))
    trial = TrialScore(0, DRAWN[0], "complete", {"loss": (1.0, 1.0)}, 2)
    losses = np.ones((1, 2, 2), np.float32)
    results.write(tmp_path, toy.STUDY, {}, [trial], losses, {"loss": losses}, {}, model)
    loaded = load_model(tmp_path / "model.msgpack", regression.STUDY)
    assert loaded.folds == () and loaded.is_finite


def test_a_kept_refit_has_the_models_of_its_folds(tmp_path):
    halved(tmp_path)
    trial = TrialScore(1, DRAWN[1], "complete", {"loss": (1.0, 1.0, 1.0)}, 6)
    model, train_loss = results.kept_refit(tmp_path, toy.STUDY, trial, 6)
    assert len(model.folds) == 3 and model.has_ensemble and train_loss.shape == (6,)
    assert results.kept_refit(tmp_path, toy.STUDY, trial, 7) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"ensemble": {}}, {"ensemble": []}, {"ensemble": {"loss": "low", "accuracy": None, "confusion": None}},
        {"rungs": []}, {"rungs": {}}, {"rungs": [3]}, {"rungs": RUNGS[:1]}, {"rungs": RUNGS[::-1]},
        {"rungs": [RUNGS[0], RUNGS[0], RUNGS[1]]}, {"rungs": [RUNGS[0] | {"num_epochs": 0}, RUNGS[1]]},
        {"rungs": [RUNGS[0] | {"went_on": 5}, RUNGS[1]]}, {"rungs": [RUNGS[0] | {"went_on": -1}, RUNGS[1]]},
        {"rungs": [RUNGS[0] | {"seconds": "long"}, RUNGS[1]]}, {"rungs": [RUNGS[0] | {"seconds": 1e300}, RUNGS[1]]},
        {"rungs": [{"num_epochs": 6}]},
        {"trials": {"complete": 1, "failed": 2}}, {"trials": {"complete": 1, "pruned": 3, "failed": 1}},
        {"refit": {"state": "complete", "failure": None}},
        {"refit": {"state": "complete", "failure": None, "train_loss": 1, "folds_train_loss": "x", "warning": None}},
        {"refit": {"state": "complete", "failure": None, "train_loss": 1, "folds_train_loss": 1, "warning": 3}},
        {"refit": {"state": "diverged", "failure": "it did", "train_loss": 1, "folds_train_loss": 1, "warning": None},
         "test": {"loss": None, "accuracy": None, "confusion": None}},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_whose_rungs_ensemble_or_counts_do_not_fit_is_refused(tmp_path, changes):
    halved(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        load_results(tmp_path, toy.STUDY)
    message = str(error.value)
    assert "\n" not in message and str(tmp_path) in message and "damaged" in message


@pytest.mark.parametrize("name, value", [("halving", "3"), ("first_rung", 1.5), ("brackets", None), ("averaging", 1)])
def test_a_configuration_whose_training_does_not_fit_is_refused(tmp_path, name, value):
    record = json.loads((halved(tmp_path) / "results.json").read_text())
    record["config"][name] = value
    storage.write_json(tmp_path / "results.json", record)
    with pytest.raises(ValueError, match=rf"results\.json is damaged .*'{name}' is"):
        load_results(tmp_path, toy.STUDY)
    del record["config"][name]
    storage.write_json(tmp_path / "results.json", record)
    with pytest.raises(ValueError, match=rf"results\.json is damaged .*has no '{name}'"):
        load_results(tmp_path, toy.STUDY)


@pytest.mark.parametrize(
    "old, new",
    [
        ("0,pruned,2,", "0,pruned,0,"), ("0,pruned,2,", "0,pruned,7,"), ("0,pruned,2,", "0,pruned,,"),
        ("0,pruned,2,", "0,lost,2,"), ("1,complete,6,", "1,complete,5,"), ("0,pruned,2,", "0,failed,2,"),
        ("state,epochs,", "state,time,"), ("1,complete,6,", "1,pruned,6,"),
    ],
)  # fmt: skip
def test_a_table_whose_states_or_epochs_do_not_fit_is_refused(tmp_path, old, new):
    table = halved(tmp_path) / "trials.csv"
    content = table.read_text()
    assert content.count(old) == 1
    table.write_text(content.replace(old, new))
    with pytest.raises(ValueError, match=r"^\S*trials\.csv is damaged .*$"):
        load_results(tmp_path, toy.STUDY)


@pytest.mark.parametrize("change", ["gone", "short", "other"])
def test_outputs_of_an_ensemble_that_do_not_fit_are_refused(tmp_path, change):
    path = halved(tmp_path) / "histories.npz"
    arrays = storage.read_arrays(path)
    outputs = arrays.pop("ensemble_outputs")
    wrong = {"gone": {}, "short": {"ensemble_outputs": outputs[1:]}, "other": {"ensemble_outputs": outputs[:, 0]}}
    storage.write_arrays(path, arrays | wrong[change])
    with pytest.raises(ValueError, match=r"^\S*histories\.npz is damaged \(.*ensemble_outputs.*$"):
        load_results(tmp_path, toy.STUDY)


@pytest.mark.parametrize("num_folds", [0, 2])
def test_an_ensemble_of_other_networks_than_the_folds_is_refused(tmp_path, num_folds):
    model = load_results(halved(tmp_path), toy.STUDY).model
    save_model(tmp_path / "model.msgpack", model._replace(folds=model.folds[:num_folds]))
    with pytest.raises(ValueError, match="is not the best model of the results.json beside it"):
        load_results(tmp_path, toy.STUDY)


def test_results_of_the_format_before_are_refused_in_a_line_that_says_what_to_do(tmp_path):
    halved(tmp_path)
    before, reads = storage.FORMAT - 1, storage.FORMAT
    finished.change(tmp_path, format=before)
    told = rf"^\S*results\.json has the format {before}, this version of hw1jax reads {reads}: .*out="
    with pytest.raises(ValueError, match=told):
        load_results(tmp_path, toy.STUDY)


# A folder


@pytest.fixture
def folder(tmp_path, tmp_path_factory):
    """A finished regression, to be damaged."""
    return finished.copy("regression", tmp_path_factory, tmp_path)


REGRESSION = finished.STUDIES["regression"]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_results_are_what_the_files_hold(folder):
    found = load_results(str(folder), REGRESSION)
    record, rows = record_of(folder), list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert found.record == record and found.trials.rows == rows and found.folder == folder
    assert found.best.number == record["best"]["number"] == found.trials.numbers[found.row]
    assert found.best.mean == record["best"]["mean_val_loss"] == found.trials.means["loss"][found.row]
    assert found.trials.ranks[found.row] == 1
    assert found.trials.states.tolist() == [row["state"] for row in rows] == ["failed", *["complete"] * 4]
    assert found.trials.complete.tolist() == [False, True, True, True, True]
    np.testing.assert_array_equal(found.histories["val_loss"][1:, :, -1], found.trials.folds["loss"][1:])
    assert found.test["loss"] == record["test"]["loss"] and found.failure is None
    assert {name: a.dtype.kind for name, a in found.trials.params.items()} == dict.fromkeys(
        ("hidden_units_1", "hidden_units_2", "hidden_units_3"), "i"
    ) | {"learning_rate": "f", "l2": "f", "optimizer": "U"}
    assert found.best.params == found.model.draw and found.num_folds == 3
    np.testing.assert_array_equal(found.model.predict(found.data.x_test), found.histories["test_outputs"])
    outputs = found.model.predict(found.data.x_test, ensemble=True)
    np.testing.assert_array_equal(outputs, found.histories["ensemble_outputs"])
    assert results.score(found.model, outputs, found.data.y_test) == found.ensemble == record["ensemble"]
    assert results.score(found.model, found.histories["test_outputs"], found.data.y_test) == found.test


@pytest.mark.slow
def test_a_halving_search_leaves_what_can_be_read(tmp_path, tmp_path_factory):
    found = load_results(finished.copy("halving", tmp_path_factory, tmp_path), finished.HALVING)
    rungs, trials = found.record["rungs"], found.trials
    assert trials.pruned.any() and found.record["config"]["halving"] == 2
    assert set(trials.epochs) == {rung["num_epochs"] for rung in rungs}
    assert [rung["num_trials"] for rung in rungs] == [np.sum(trials.epochs >= rung["num_epochs"]) for rung in rungs]
    last = (np.arange(9), slice(None), trials.epochs - 1)
    np.testing.assert_array_equal(found.histories["val_loss"][last], trials.folds["loss"].astype(np.float32))
    outputs = found.model.predict(found.data.x_test, ensemble=True)
    np.testing.assert_array_equal(outputs, found.histories["ensemble_outputs"])


@pytest.mark.slow
def test_what_a_run_returns_fits_a_screen(folder):
    found = load_results(folder, REGRESSION)
    lines = repr(found).splitlines()
    far = found._replace(folder=Path("a" * 500))
    assert len(lines) < 8 and max(map(len, [*lines, *repr(far).splitlines()])) <= 100
    assert "5 trials, 1 failed" in lines[0] and "ensemble of the folds: loss" in repr(found)
    assert f"loss {found.test['loss']:.4g}" in repr(found)
    assert "adam" in repr(found) or "sgd" in repr(found) or "rmsprop" in repr(found)
    assert len(repr(found.trials)) < 200


@pytest.mark.slow
def test_trials_are_a_table_as_others_take_it(folder):
    trials = load_results(folder, REGRESSION).trials
    frame = pandas.DataFrame(trials)
    pandas.testing.assert_frame_equal(frame, pandas.read_csv(folder / "trials.csv"), check_dtype=False)
    assert frame["hidden_units_1"].dtype == np.int64 and frame["learning_rate"].dtype == np.float64
    polars = pytest.importorskip("polars", reason="polars is not installed")
    assert polars.DataFrame(trials).columns == list(frame) == list(trials)
    assert set(trials.params) | {f"mean_val_{name}" for name in trials.means} < set(trials)
    assert {len(column) for column in trials.values()} == {5}


@pytest.mark.slow
def test_a_record_and_curves_are_read_without_the_study(folder):
    found = load_results(folder, REGRESSION)
    record, curves = results.read_curves(folder)
    assert record == found.record and set(curves) == {"train_loss", "val_loss"}
    np.testing.assert_array_equal(curves["val_loss"], found.histories["val_loss"][found.row])
    (folder / "trials.csv").write_text("number\n1\n")
    with pytest.raises(ValueError, match="histories.npz is damaged"):
        results.read_curves(folder)
    (folder / "results.json").unlink()
    with pytest.raises(ValueError, match="results.json is missing"):
        results.read_curves(folder)


@pytest.mark.slow
def test_exported_parameters_are_named_arrays_without_padding(folder):
    found = load_results(folder, REGRESSION)
    with np.load(found.export_parameters(folder / "own.npz")) as arrays:
        assert set(arrays) == {"dense1/weights", "dense2/weights", "dense3/weights", "output/weights"}
        for layer, parts in found.model.params.items():
            np.testing.assert_array_equal(arrays[f"{layer}/weights"], parts["weights"])
    with pytest.raises(ValueError, match="no parameters to export: it diverged"):
        record = found.record | {"refit": found.record["refit"] | {"failure": "it diverged"}}
        found._replace(model=None, record=record).export_parameters(folder / "none.npz")


def test_parameters_have_names_whatever_their_tree_is():
    parts = {"params": [{"a": np.zeros(2)}, np.ones(1)], "state": {"mean": np.ones(3)}}
    model = Model(studied("regression"), DRAWS["regression"], **parts)
    assert {name: array.shape for name, array in model.named_parameters().items()} == {
        "0/a": (2,), "1": (1,), "state/mean": (3,)}  # fmt: skip
    assert list(model._replace(params=np.ones(1), state=None).named_parameters()) == ["parameters"]
    with pytest.raises(ValueError, match="two have the same name"):
        model._replace(params={"state": {"mean": np.ones(3)}}).named_parameters()


@pytest.mark.slow
def test_the_ranges_and_the_score_are_those_of_the_run_whatever_the_study_says_by_now(folder):
    now = study.narrow(REGRESSION, hidden_units=(Int(100, 200, width=True),), l2=Float(0.5, 0.6, log=True))
    now = replace(now, metrics={"distance": lambda outputs, y: jnp.abs(outputs - y)[:, 0]}, maximize="distance")
    with pytest.raises(ValueError, match=r"results\.json is damaged \('best' has no 'mean_val_distance'\)"):
        load_results(folder, now)
    found = load_results(folder, replace(now, metrics={}, maximize=None))
    assert {name: str(r) for name, r in space.columns(found.study.space).items()} == {
        name: str(r) for name, r in space.columns(REGRESSION.space).items()
    }
    assert found.model.predict(found.data.x_test).shape == (100, 1)


@pytest.mark.slow
def test_results_of_another_study_are_not_read(folder):
    with pytest.raises(ValueError, match="holds results of the study 'regression', not toy"):
        load_results(folder, toy.STUDY)
    with pytest.raises(ValueError, match="unknown study 'regression'; there are toy"):
        results.study_of(folder, {"toy": toy.STUDY})
    assert results.study_of(folder, {"toy": toy.STUDY, "regression": REGRESSION}) is REGRESSION


@pytest.mark.slow
def test_a_folder_that_nobody_can_write_is_read(folder):
    (folder / ".results.lock").unlink(missing_ok=True)
    folder.chmod(0o555)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # as root may always write
        load_results(folder, REGRESSION)
    folder.chmod(0o755)
    assert not (folder / ".results.lock").exists()


DAMAGES = {
    "results.json": [
        b"", b"[]", b"{", b"\xff\xfe", b'{"study": "regression"}', b"[" * 100_000, b"null", b'{"study": 3}',
        b'{"format": %d}' % storage.FORMAT, b'{"format": %d, "study": "regression"}' % storage.FORMAT,
    ],
    "trials.csv": [b"", b"number,state\n1,complete\n", b"\xff", b'"'],
    "histories.npz": [b"", b"PK\x03\x04", b"not a zip"],
    "model.msgpack": [b"", b"x", b"\x80"],
}  # fmt: skip


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        load_results(folder, REGRESSION)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    for word in words:
        assert word in message


@pytest.mark.slow
@pytest.mark.parametrize("name, content", [(name, content) for name, all in DAMAGES.items() for content in all])
def test_a_damaged_file_is_named_in_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_missing_file_is_named_in_one_line(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


@pytest.mark.slow
def test_a_truncated_file_is_damaged(folder):
    for name in ("results.json", "trials.csv", "histories.npz", "model.msgpack"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])
        refused(folder, name)
        (folder / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"timing": {}}, {"best": {"number": 1}}, {"config": []}, {"test": {"loss": "low"}}, {"study": "poetry"},
        {"format": 3}, {"reference": {"name": "someone"}},
        {"reference": {"name": "someone", "params": {}, "test": {"loss": []}}},
        {"inputs": {"train_csv": 3}}, {"inputs": []}, {"test": {"loss": None, "accuracy": None, "confusion": None}},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused(folder, change):
    finished.change(folder, **change)
    refused(folder)


def set_to(*path: str, value) -> Callable[[dict], None]:
    """A change of what a record holds at a place."""

    def change(record: dict) -> None:
        *outer, last = path
        for name in outer:
            record = record[name]
        record[last] = value

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        set_to("best", "number", value=0),  # it has failed
        set_to("best", "number", value=10**400),
        set_to("best", "params", "l2", value="much"),
        set_to("best", "params", "hidden_units", value=3),
        set_to("best", "mean_val_loss", value=None),
        set_to("config", "num_folds", value=999_999_999_999),
        set_to("config", "num_folds", value=2),
        set_to("config", "precision", value="float8"),
        set_to("config", "score", value="accuracy"),
        set_to("config", "space", "l2", value={"low": 0.1, "high": 0.01}),
        set_to("config", "space", "l2", value={"low": 0, "high": 0.01}),
        set_to("config", "space", "l2", value={"low": 0.1, "high": 1e300}),
        set_to("config", "space", "l2", value={"low": 0.1}),
        set_to("config", "space", "optimizer", value={"among": ["lion"]}),
        set_to("config", "space", "optimizer", value={"among": 3}),
        set_to("config", "space", "hidden_units", value={"low": 1, "high": 2}),
        set_to("config", "space", "hidden_units", value=[{"low": 1.5, "high": 2}]),
        set_to("config", "space", value={}),
        set_to("timing", "total_seconds", value=1e300),
    ],
)
def test_a_record_with_a_wrong_value_is_refused(folder, change):
    record = record_of(folder)
    change(record)
    storage.write_json(folder / "results.json", record)
    refused(folder)


@pytest.mark.slow
def test_numbers_that_json_has_not_are_refused(folder):
    text = (folder / "results.json").read_text()
    for wrong in ("NaN", "Infinity", "-Infinity", "9" * 5000):
        (folder / "results.json").write_text(text.replace('"number": 3', f'"number": {wrong}'))
        refused(folder, "results.json is damaged")


@pytest.mark.slow
def test_a_large_loss_of_a_run_is_no_damage(folder):
    record = record_of(folder)
    record["test"]["loss"] = 1e30
    storage.write_json(folder / "results.json", record)
    assert load_results(folder, REGRESSION).test["loss"] == 1e30


@pytest.mark.slow
def test_histories_of_another_run_are_refused(folder):
    arrays = storage.read_arrays(folder / "histories.npz")
    for name, spoilt in (("val_loss", arrays["val_loss"][:-1]), ("test_outputs", arrays["test_outputs"][1:]),
                         ("curve_fold_outputs", arrays["curve_outputs"])):  # fmt: skip
        storage.write_arrays(folder / "histories.npz", arrays | {name: spoilt})
        refused(folder, "histories.npz is damaged", f"{name} has the shape")


@pytest.mark.slow
def test_a_model_of_another_run_is_refused(folder):
    model = load_results(folder, REGRESSION).model
    save_model(folder / "model.msgpack", model._replace(draw=model.draw | {"l2": 0.05}))
    refused(folder, "not the best model")


@pytest.mark.slow
def test_other_data_than_those_of_the_run_are_named(folder, tmp_path):
    data = regression.STUDY.data()
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        rows = "".join(f"{a!r},{b!r}\n" for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True))
        (tmp_path / f"{part}.csv").write_text("input,label\n" + rows)
    inputs = {"train_csv": str(tmp_path / "train.csv"), "test_csv": str(tmp_path / "test.csv")}
    finished.change(folder, inputs=inputs)
    assert not load_results(folder, REGRESSION).has_usual_data
    (tmp_path / "test.csv").write_text("input,label\n0,0\n")
    refused(folder, "other data than", "test.csv")
    finished.change(folder, inputs={"data_dir": "a folder that another version had"})
    load_results(folder, REGRESSION)


@pytest.mark.slow
def test_a_run_without_inputs_used_the_usual_data(folder):
    record = record_of(folder)
    del record["inputs"]
    storage.write_json(folder / "results.json", record)
    assert load_results(folder, REGRESSION).has_usual_data


@pytest.mark.slow
def test_a_refit_is_kept_only_if_it_is_of_this_trial_and_as_long(folder):
    found = load_results(folder, REGRESSION)
    trial = TrialScore(found.best.number, found.best.params, "complete", {"loss": (1.0,)})
    model, train_loss = results.kept_refit(folder, REGRESSION, trial, 4)
    np.testing.assert_array_equal(train_loss, found.histories["refit_train_loss"])
    assert model.draw == trial.draw
    assert results.kept_refit(folder, REGRESSION, trial, 5) is None
    assert results.kept_refit(folder, REGRESSION, trial._replace(number=1), 4) is None
    assert results.kept_refit(folder, REGRESSION, trial._replace(draw=trial.draw | {"l2": 0.05}), 4) is None
    (folder / "model.msgpack").write_bytes(b"x")
    assert results.kept_refit(folder, REGRESSION, trial, 4) is None


def test_a_record_that_cannot_be_read_is_none(tmp_path):
    assert results.read_record(tmp_path) == {}
    for content in ("{", "[]", '{"config": {}}', '{"config": {"num_trials": "many"}}', "[" * 100_000):
        (tmp_path / "results.json").write_text(content)
        assert results.read_record(tmp_path) == {}
    (tmp_path / "results.json").write_text('{"config": {"num_trials": 3}}')
    assert results.read_record(tmp_path)["config"]["num_trials"] == 3
