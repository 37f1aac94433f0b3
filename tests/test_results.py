"""Results are read back unchanged; foreign files and files of two runs are refused in one line."""

import csv
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import polars
import pytest
import regression
from hypothesis import given
from hypothesis import strategies as st
from studies import EPOCHS, HALVING, LINE, STATES, TOY, change_record, examples, finished_run, make_model, write_run

from hw1jax import storage
from hw1jax.core.losses import accuracy
from hw1jax.results import evaluation, results, run_folder, trained_model
from hw1jax.results import trials as trials_
from hw1jax.results.results import load_results
from hw1jax.results.trained_model import load_model
from hw1jax.search import space, study
from hw1jax.search.space import Choice, Float, Int
from hw1jax.search.study import Reference
from hw1jax.search.trial_score import TrialScore

FILES = (*run_folder.FILES, run_folder.DIGESTS)
CLASSIFIER = replace(TOY, metrics={"accuracy": accuracy}, space={"l2": Float(0, 1)})


# Trials


def scores(number, *losses, right=None, state="complete", epochs=9):
    values = {"loss": losses} | ({} if right is None else {"accuracy": right})
    return TrialScore(number, {"l2": 0.1}, state, values, epochs)


TIED = [scores(0, 3.0, 3.0), scores(1, 1.0, 3.0), scores(2, 3.0, 1.0), scores(3, 0.0, np.nan, state="failed")]
RIGHT = [scores(0, 1.0, right=(0.5,)), scores(1, 2.0, right=(0.9,)), scores(2, 3.0, right=(0.7,))]
ON_RUNGS = [
    scores(0, 0.1, state="pruned", epochs=1),
    scores(1, 9.0),
    scores(2, 0.2, state="pruned", epochs=3),
    scores(3, 0.1, state="failed"),
    scores(4, 0.2, state="pruned", epochs=3),
    scores(5, 8.0),
    scores(6, 0.3, state="pruned", epochs=3),
]
LOOKS_FINE = [scores(0, 1.0, state="failed"), scores(1, 2.0)]


@pytest.mark.parametrize(
    "trials, ranked_by, ranks, best",
    [
        (TIED, {}, [3, 1, 1, None], 1),  # the lowest mean, the first of equals
        (TIED[3:], {}, [None], None),
        ([], {}, [], None),
        (RIGHT, {}, [1, 2, 3], 0),
        (RIGHT, {"maximize": "accuracy"}, [3, 1, 2], 1),
        (RIGHT, {"minimize": "accuracy"}, [1, 3, 2], 0),
        (ON_RUNGS, {}, [6, 2, 3, None, 3, 1, 5], 5),  # by the epochs they reached, then by their score
        (ON_RUNGS[:1] + ON_RUNGS[2:3], {}, [2, 1], None),
        (LOOKS_FINE, {}, [None, 1], 1),  # the recorded state counts, not the numbers
    ],
)
def test_trials_are_ranked_and_the_best_complete_one_is_found(trials, ranked_by, ranks, best):
    ranked = replace(CLASSIFIER, **ranked_by)
    assert trials_.ranks(trials, ranked) == ranks
    found = trials_.best(trials, ranked)
    assert (found and found.number) == best


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
    trials_.write_trials(tmp_path / "trials.csv", ranked, trials, losses, {"loss": diverged, "accuracy": losses})
    assert (tmp_path / "trials.csv").read_text().splitlines() == [
        "number,state,epochs,units_1,units_2,kind,split0_val_loss,split1_val_loss,mean_val_loss,std_val_loss,"
        "split0_val_accuracy,split1_val_accuracy,mean_val_accuracy,std_val_accuracy,rank,diverged_epoch",
        "0,complete,3,3,4,b,1.0,3.0,2.0,1.0,0.5,0.75,0.625,0.125,1,",
        "1,failed,3,3,4,b,inf,1.0,inf,nan,0.5,0.5,0.5,0.0,,2",
        "2,pruned,1,3,4,b,0.5,0.5,0.5,0.0,1.0,1.0,1.0,0.0,2,",
        "3,failed,2,3,4,b,nan,1.0,nan,nan,0.5,0.5,0.5,0.0,,2",
    ]


def test_a_spreadsheet_takes_every_choice_for_text_and_all_come_back(tmp_path):
    names = ("=1+1", "+a", "-a", "@a", "'a", "a", '"a,b"', "\ta")
    ranked, losses = replace(TOY, space={"kind": Choice(*names), "rate": Float(-1, 1)}), np.ones((len(names), 1, 1))
    trials = [
        TrialScore(i, {"kind": name, "rate": -0.5}, "complete", {"loss": (1.0,)}, 1) for i, name in enumerate(names)
    ]
    trials_.write_trials(tmp_path / "trials.csv", ranked, trials, losses, {"loss": losses})
    cells = [row["kind"] for row in csv.DictReader((tmp_path / "trials.csv").read_text().splitlines())]
    assert cells[:6] == ["'=1+1", "'+a", "'-a", "'@a", "''a", "a"]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in cells)
    found = trials_.read_trials(tmp_path / "trials.csv", ranked)
    assert found["kind"].tolist() == [row["kind"] for row in found.rows] == list(names)
    assert found.rows[0]["rate"] == "-0.5"


# Scores on the test set


def test_the_score_on_the_test_set_has_means_of_metrics_and_what_belongs_to_classes():
    model = make_model("fashion_mlp")
    outputs, y = np.eye(10, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 2])
    found = trained_model.score(model, outputs, y)
    assert found["accuracy"] == pytest.approx(2 / 3) and np.sum(found["confusion"]) == 3
    assert found["loss"] == pytest.approx(float(np.log(np.e + 9) - 2 / 3))
    fewer = model._replace(study=replace(model.study, classes=("a", "b")))
    assert trained_model.score(fewer, outputs, y)["confusion"] is None, "no output stands for them"

    def distance(outputs, y):
        return jnp.abs(jnp.argmax(outputs, axis=1) - y)

    measured = model._replace(study=replace(model.study, metrics={"distance": distance}))
    assert trained_model.score(measured, outputs, y)["distance"] == pytest.approx(1 / 3)
    infinite = trained_model.score(measured, np.full_like(outputs, np.inf), y)
    assert infinite == {"loss": None, "accuracy": None, "confusion": None, "distance": None}
    found = trained_model.score(make_model("regression"), np.float32([[1], [3]]), np.float32([[0], [0]]))
    assert found == {"loss": 5.0, "accuracy": None, "confusion": None}


def test_the_score_of_an_ensemble_is_the_entropy_and_accuracy_of_its_mean_probabilities():
    model, x, y = make_model("fashion_mlp", 3), examples("fashion_mlp"), np.arange(7)
    each = [model._replace(params=params).predict(x) for params, _ in model.folds]
    probabilities = np.mean([evaluation.softmax(own) for own in each], axis=0)
    found = trained_model.score(model, model.predict(x, ensemble=True), y)
    assert found["loss"] == pytest.approx(-np.log(probabilities[y, y]).mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(probabilities.argmax(axis=1) == y))
    assert np.sum(found["confusion"]) == 7


def test_a_reference_is_recorded_as_json_has_it():
    someone = Reference("someone", {"hidden_units": (3, 4)}, {"loss": 1.0})
    expected = {"name": "someone", "params": {"hidden_units": [3, 4]}, "test": {"loss": 1.0}, "data": ""}
    assert run_folder.reference(replace(TOY, reference=someone)) == expected
    assert run_folder.reference(TOY) is None


# A refit beside its folds


@pytest.mark.parametrize(
    "warning, refit, folds, far",
    [
        ("refit", 0.46, [0.36, 0.37, 0.355], True),  # an optimizer's last epoch jumped
        ("refit", 0.9, [0.1, 0.4, 0.3], True),  # more than twice the highest, however far apart they are
        ("refit", 0.45, [0.1, 0.4, 0.3], False),
        ("refit", 0.405, [0.4, 0.4001, 0.4002], False),  # close to each other by chance
        ("refit", 0.45, [0.4, 0.4001, 0.4002], True),
        ("refit", 0.1, [0.4, 0.41, 0.42], False),  # lower is no jump
        ("refit", 0.43, [0.4], False),
        ("refit", 0.9, [0.4], True),
        ("refit", -0.4, [-1.0, -1.1], True),  # a likelihood
        ("refit", -0.95, [-1.0, -1.1], False),
        ("refit", np.inf, [0.4, 0.5], True),
        ("refit", np.nan, [0.4, 0.5], True),
        ("refit", 0.4, [0.4, np.nan], False),
        ("refit", 0.4, [0.4, np.inf], False),
        ("test", 2.3, [0.72, 0.8], True),  # at chance
        ("test", 1.5, [0.72, 0.8], True),
        ("test", 0.519, [0.407, 0.415, 0.423], True),
        ("test", 0.43, [0.407, 0.415, 0.423], False),
        ("test", 0.1, [0.72, 0.8], False),  # lower is better
        ("test", -0.8, [-1.0, -1.1], False),
        ("test", 0.1, [-1.0, -1.1], True),
        ("test", None, [0.4], False),  # a failure, reported elsewhere
        ("test", 0.4, [0.4, np.inf], False),
    ],
)
def test_a_refit_far_above_its_folds_or_at_chance_on_the_test_set_is_told_in_a_sentence(warning, refit, folds, far):
    function = evaluation.refit_warning if warning == "refit" else evaluation.test_warning
    found = function(refit, np.float32(folds))
    assert (found is not None) == far
    if found:
        assert f"{refit:.3g}" in found and f"{max(folds):.3g}" in found
        assert "\n" not in found and not found.endswith(".")


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=10), st.floats(0, 1), st.floats(1e-3, 1e3))
def test_a_refit_between_its_folds_is_never_far_in_whatever_unit(folds, share, unit):
    inside = min(folds) + share * (max(folds) - min(folds))
    assert evaluation.refit_warning(inside, folds) is None
    assert evaluation.refit_warning(1.09 * max(folds), folds) is None, "nor one that is hardly above"
    assert evaluation.refit_warning(2.01 * max(folds) * unit, [unit * fold for fold in folds]) is not None


# A folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Of a search with pruned and failed trials and an ensemble; it is read only."""
    return write_run(tmp_path_factory.mktemp("written"), HALVING)


@pytest.fixture
def folder(written, tmp_path):
    """A copy to be changed."""
    for name in FILES:
        (tmp_path / name).write_bytes((written / name).read_bytes())
    return tmp_path


def record_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def as_written(folder, found):
    """That results are what the files hold, and that these fit together."""
    record, rows = record_of(folder), list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert found.record == record and found.trials.rows == rows and found.folder == folder
    trials, name = found.trials, found.study.score
    assert (
        found.best.number == record["best"]["number"] == trials["number"][found.row] and trials["rank"][found.row] == 1
    )
    assert found.best.mean == record["best"][f"mean_val_{name}"] == trials.means[name][found.row]
    assert found.best.std == record["best"][f"std_val_{name}"]
    assert found.best.params == found.model.draw and found.num_folds == 3 and found.failure is None
    assert trials["state"].tolist() == [row["state"] for row in rows]
    assert [record["trials"][state] for state in ("complete", "pruned")] == [trials.complete.sum(), trials.pruned.sum()]
    rungs = record["rungs"]
    assert [rung["num_trials"] for rung in rungs] == [np.sum(trials["epochs"] >= rung["num_epochs"]) for rung in rungs]
    last = (np.arange(len(rows)), slice(None), trials["epochs"] - 1)
    np.testing.assert_array_equal(found.histories["val_loss"][last], trials.folds["loss"].astype(np.float32))
    for ensemble, part in ((False, "test"), (True, "ensemble")):
        outputs = found.model.predict(found.data.x_test, ensemble=ensemble)
        np.testing.assert_array_equal(outputs, found.histories[f"{part}_outputs"])
        assert trained_model.score(found.model, outputs, found.data.y_test) == record[part] == getattr(found, part)


def test_results_are_what_the_files_hold(written, tmp_path_factory):
    real = finished_run("line", tmp_path_factory)
    as_written(real, load_results(str(real), LINE))
    by_hand, by_a_run = record_of(written), record_of(real)
    assert by_hand.keys() <= by_a_run.keys() and by_hand["config"].keys() <= by_a_run["config"].keys()
    found = load_results(written, HALVING)
    as_written(written, found)
    assert found.trials["state"].tolist() == list(STATES) and found.trials["epochs"].tolist() == list(EPOCHS)
    assert np.isnan(found.trials["rank"]).tolist() == [False, False, True, False, True]
    assert [row["diverged_epoch"] for row in found.trials.rows] == ["", "", "2", "", "4"]
    assert found.ensemble != found.test and found.has_usual_data and found.has_curve and not found.has_classes


def test_what_a_run_returns_fits_a_screen_and_says_what_is_wrong_with_the_refit(written):
    found = load_results(written, HALVING)
    lines = repr(found).splitlines()
    assert len(lines) < 8 and max(map(len, lines[:-1])) <= 100
    assert lines[0] == "Results(regression: 5 trials, 2 pruned, 2 failed"
    assert f"  test: loss {found.test['loss']:.4g}" in lines
    assert f"  ensemble of the folds: loss {found.ensemble['loss']:.4g}" in lines
    assert repr(found.trials).startswith("Trials(5, of which 1 are complete and 2 pruned: hidden_units_1, ")
    assert found.warning is None and "warning" not in repr(found) and len(repr(found.trials)) < 200
    found.record["refit"]["warning"] = warning = evaluation.test_warning(3.0, [1.0, 1.2, 0.8])
    lines = repr(found).splitlines()
    assert max(map(len, lines[:-1])) <= 100 and lines[-1].startswith("  folder: ")
    assert f"warning: {warning}" in " ".join(map(str.strip, lines))


def test_trials_are_a_table_as_others_take_it(written):
    trials = load_results(written, HALVING).trials
    frame = pandas.DataFrame(trials)
    pandas.testing.assert_frame_equal(frame, pandas.read_csv(written / "trials.csv"), check_dtype=False)
    assert polars.DataFrame(trials).columns == list(frame) == list(trials)
    assert {name: a.dtype.kind for name, a in trials.params.items()} == dict.fromkeys(
        ("hidden_units_1", "hidden_units_2", "hidden_units_3"), "i"
    ) | {"learning_rate": "f", "l2": "f", "optimizer": "U"}
    assert set(trials.params) | {f"mean_val_{name}" for name in trials.means} < set(trials)
    assert {len(column) for column in trials.values()} == {5} and trials["epochs"].dtype.kind == "i"


def test_a_record_and_curves_are_read_without_the_study(folder):
    found = load_results(folder, HALVING)
    record, curves = run_folder.read_curves(folder)
    assert record == found.record and set(curves) == {"train_loss", "val_loss"}
    np.testing.assert_array_equal(curves["val_loss"], found.histories["val_loss"][found.row])
    (folder / "trials.csv").write_text("number\n7\n")
    with pytest.raises(ValueError, match="trials.csv differs from its digest"):
        run_folder.read_curves(folder)
    (folder / "results.json").unlink()
    with pytest.raises(ValueError, match="results.json is missing"):
        run_folder.read_curves(folder)


def test_exported_parameters_are_named_arrays_without_padding(folder):
    found = load_results(folder, HALVING)
    with np.load(found.export_parameters(folder / "own.npz")) as arrays:
        assert set(arrays) == {"dense1/weights", "dense2/weights", "dense3/weights", "output/weights"}
        for layer, parts in found.model.params.items():
            np.testing.assert_array_equal(arrays[f"{layer}/weights"], parts["weights"])
    with pytest.raises(ValueError, match="no parameters to export: it diverged"):
        record = found.record | {"refit": found.record["refit"] | {"failure": "it diverged"}}
        found._replace(model=None, record=record).export_parameters(folder / "none.npz")


def test_without_an_ensemble_and_by_the_score_of_the_run_results_are_read_too(tmp_path):
    measured = replace(TOY, metrics={"distance": lambda outputs, y: jnp.abs(outputs - y)[:, 0]})
    for ranked in (replace(measured, maximize="distance"), replace(measured, minimize="distance")):
        folder = write_run(tmp_path / f"{ranked.maximize}", ranked, ("complete",) * 3, (2,) * 3, with_folds=False)
        found = load_results(folder, measured)
        assert (found.study.score, found.study.maximize) == ("distance", ranked.maximize)
        assert found.best.mean == found.record["best"]["mean_val_distance"] != found.record["best"]["mean_val_loss"]
        assert found.ensemble is None and not found.model.has_ensemble
        assert "ensemble of" not in repr(found) and "ensemble_outputs" not in found.histories


def test_fold_models_that_are_not_finite_are_not_written(tmp_path):
    model = make_model("regression", 2)
    model = model._replace(folds=(model.folds[0], jax.tree.map(lambda a: a * np.nan, model.folds[1])))
    trial, losses = TrialScore(0, model.draw, "complete", {"loss": (1.0, 1.0)}, 2), np.ones((1, 2, 2), np.float32)
    run_folder.write(tmp_path, model.study, {}, [trial], losses, {"loss": losses}, {}, model)
    loaded = load_model(tmp_path / "model.msgpack", regression.STUDY)
    assert loaded.folds == () and loaded.is_finite


def test_the_ranges_and_the_score_are_those_of_the_run_whatever_the_study_says_by_now(written):
    now = study.narrow(HALVING, hidden_units=(Int(100, 200, width=True),), l2=Float(0.5, 0.6, log=True))
    now = replace(now, metrics={"distance": lambda outputs, y: jnp.abs(outputs - y)[:, 0]}, maximize="distance")
    with pytest.raises(ValueError, match="was run with another study regression than it is now .*_val_distance"):
        load_results(written, now)
    found, ranges = load_results(written, replace(now, metrics={}, maximize=None)), space.columns(HALVING.space)
    assert {name: str(r) for name, r in space.columns(found.study.space).items()} == {
        name: str(r) for name, r in ranges.items()
    }
    assert found.model.predict(found.data.x_test).shape == (100, 1)


def test_results_of_another_study_are_not_read(written):
    with pytest.raises(ValueError, match="holds results of the study 'regression', not toy"):
        load_results(written, TOY)
    with pytest.raises(ValueError, match="results of an unknown study 'regression'; there are toy"):
        results.study_of(written, {"toy": TOY})
    assert results.study_of(written, {"toy": TOY, "regression": HALVING}) is HALVING


def test_a_folder_that_nobody_can_write_is_read(folder, monkeypatch):
    folder.chmod(0o555)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root may always write
    load_results(folder, HALVING)
    folder.chmod(0o755)
    assert not (folder / ".results.lock").exists()


def test_other_data_than_those_of_the_run_are_named(folder):
    data = regression.STUDY.data()
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        rows = "".join(f"{a!r},{b!r}\n" for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True))
        (folder / f"{part}.csv").write_text("input,label\n" + rows)
    change_record(folder, inputs={"train_csv": str(folder / "train.csv"), "test_csv": str(folder / "test.csv")})
    assert not load_results(folder, HALVING).has_usual_data
    (folder / "test.csv").write_text("input,label\n0,0\n")
    refused(folder, "other data than", "test.csv")
    change_record(folder, inputs={"data_dir": "a folder that another version had"})
    load_results(folder, HALVING)


# Damages


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        load_results(folder, HALVING)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_which_a_byte_is_another_or_that_is_cut_or_missing_is_named_in_one_line(folder, name):
    content = (folder / name).read_bytes()
    other = bytes(a ^ 1 if i == len(content) // 2 else a for i, a in enumerate(content))
    for damaged in (other, content[: len(content) * 2 // 3], b"", b"\xff\xfe", content + b"\0"):
        (folder / name).write_bytes(damaged)
        if name == run_folder.DIGESTS:  # whatever it has no line of is another file
            damaged[:-1] == content or refused(folder, "differs from its digest")
        else:
            refused(folder, f"{name} differs from its digest in results.sha256")
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


def test_files_of_two_runs_are_refused(folder, tmp_path_factory):
    other = write_run(tmp_path_factory.mktemp("other"), HALVING, STATES[:3], EPOCHS[:3])
    for name in FILES:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes((other / name).read_bytes())
        refused(folder, "differs from its digest in results.sha256")
        (folder / name).write_bytes(before)
    load_results(folder, HALVING)


def test_digests_are_as_sha256sum_writes_them(folder):
    lines = (folder / "results.sha256").read_text().splitlines()
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in run_folder.FILES]
    assert lines == [f"{digest}  {name}" for digest, name in zip(digests, run_folder.FILES, strict=True)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": storage.FORMAT - 1}, f"has the format {storage.FORMAT - 1}, this version of hw1jax reads"),
        ({"study": "poetry"}, "'poetry'"),
    ],
)
def test_a_run_of_another_version_or_study_is_refused(folder, changes, words):
    refused(change_record(folder, **changes), words)


def test_a_study_whose_network_is_another_by_now_is_refused(folder):
    arrays = storage.read_arrays(folder / "histories.npz")
    storage.write_arrays(folder / "histories.npz", arrays | {"test_outputs": arrays["test_outputs"] + 1})
    run_folder.write_digests(folder)
    refused(folder, "another network than the study's is now")
