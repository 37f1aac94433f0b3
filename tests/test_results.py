"""What a run leaves comes back as it was; whatever else is in its files is refused in one line, and never executed."""

import csv
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fashion_cnn
import fashion_mlp
import finished
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import regression
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw1jax import evaluation, results, space, storage, study
from hw1jax.data import sha256
from hw1jax.losses import accuracy
from hw1jax.results import load_results
from hw1jax.space import Choice, Float, Int
from hw1jax.study import Reference, TrialScore
from hw1jax.trained import Model, load_model, save_model

STUDIES = {s.name: s for s in (regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY)}
DRAWS = {
    "regression": {"hidden_units": (4, 3), "learning_rate": 0.016, "l2": 0.0003, "optimizer": "adam"},
    "fashion_mlp": {"hidden_units": (3, 5, 2), "learning_rate": 0.002, "l2": 0.0001, "optimizer": "sgd"},
    "fashion_cnn": {
        "channels": (2, 3),
        "hidden_units": (4, 3),
        "learning_rate": 0.008,
        "l2": 0.0001,
        "optimizer": "rmsprop",
    },
}


def studied(name: str):
    """The study with as many hidden layers as its draw has."""
    asked = STUDIES[name]
    return study.narrow(asked, hidden_units=asked.space["hidden_units"][-1:] * len(DRAWS[name]["hidden_units"]))


def make_model(name: str, num_folds: int = 0) -> Model:
    """A small network of the study with random parameters, and fold models."""
    rng = np.random.default_rng(0)
    model = Model(studied(name), DRAWS[name], {})
    shapes = study.parameter_shapes(model.task, model.hyperparameters)
    networks = [
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes) for _ in range(1 + num_folds)
    ]
    return model._replace(params=networks[0], folds=tuple((params, None) for params in networks[1:]))


def examples(name: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    if name == "regression":
        return rng.uniform(-5, 5, (7, 1)).astype(np.float32)
    return rng.integers(256, size=(7, 28, 28), dtype=np.uint8)


def path_of(layer: str) -> str:
    """Of a layer's weights in the file."""
    return f"['{layer}']['weights']"


def content_of(name: str = "regression") -> dict:
    """What a good file holds, to be spoilt."""
    model = make_model(name, 2)
    refit, *folds = (
        {"params": {path_of(layer): parts["weights"] for layer, parts in params.items()}, "state": {}}
        for params in (model.params, *(params for params, _ in model.folds))
    )
    draw = space.draw_to_json(model.draw)
    return {"format": storage.FORMAT, "study": name, "hyperparameters": draw, **refit, "folds": folds}


def write(path: Path, content: dict) -> Path:
    path.write_bytes(flax.serialization.msgpack_serialize(content))
    return path


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_model(path, regression.STUDY)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a model of hw1jax")
    assert "\n" not in message, "a user's mistake is told in one line"
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", DRAWS)
def test_a_model_comes_back_as_it_was_and_predicts_the_same_bits(tmp_path, name):
    model = make_model(name)
    save_model(tmp_path / "model.msgpack", model)
    loaded = load_model(tmp_path / "model.msgpack", STUDIES[name])
    assert loaded.study.name == name
    assert loaded.draw == model.draw
    assert {n: type(v) for n, v in loaded.draw.items()} == {n: type(v) for n, v in model.draw.items()}
    assert jax.tree.structure(loaded.params) == jax.tree.structure(model.params)
    for found, saved in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(model.params), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, saved)
    outputs = model.predict(examples(name))
    assert outputs.shape == (7, 1 if name == "regression" else 10)
    assert outputs.dtype == np.float32
    assert len(np.unique(outputs[:, 0])) > 1
    np.testing.assert_array_equal(loaded.predict(examples(name)), outputs)


@pytest.mark.parametrize("name", DRAWS)
def test_the_models_of_the_folds_come_back_with_it_and_predict_together_the_same_bits(tmp_path, name):
    model, x = make_model(name, 3), examples(name)
    save_model(tmp_path / "model.msgpack", model)
    loaded = load_model(tmp_path / "model.msgpack", STUDIES[name])
    assert len(loaded.folds) == 3 and loaded.has_ensemble
    assert jax.tree.structure(loaded.folds) == jax.tree.structure(model.folds)
    for found, saved in zip(jax.tree.leaves(loaded.folds), jax.tree.leaves(model.folds), strict=True):
        np.testing.assert_array_equal(found, saved)
    outputs = model.predict(x, ensemble=True)
    np.testing.assert_array_equal(loaded.predict(x, ensemble=True), outputs)
    each = [model._replace(params=params, state=state).predict(x) for params, state in model.folds]
    if name == "regression":
        np.testing.assert_allclose(outputs, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)
    else:
        probabilities = np.mean([evaluation.softmax(own) for own in each], axis=0)
        np.testing.assert_allclose(np.exp(outputs), probabilities, rtol=1e-4, atol=1e-6)
    assert outputs.dtype == each[0].dtype and outputs.shape == each[0].shape
    np.testing.assert_array_equal(model.predict(x), model._replace(folds=()).predict(x), "the refit stays itself")


def test_a_model_without_fold_models_has_no_ensemble(tmp_path):
    model = make_model("regression")
    save_model(tmp_path / "model.msgpack", model)
    for lonely in (model, load_model(tmp_path / "model.msgpack", regression.STUDY)):
        assert not lonely.has_ensemble and lonely.folds == ()
        with pytest.raises(ValueError, match="ensemble=True: this model has no fold models"):
            lonely.predict(examples("regression"), ensemble=True)


def test_fold_models_that_are_not_finite_are_no_ensemble_and_the_model_is_none_the_worse():
    model = make_model("regression", 2)
    spoilt = jax.tree.map(lambda a: a * np.inf, model.folds[1])
    model = model._replace(folds=(model.folds[0], spoilt))
    assert model.is_finite and not model.has_ensemble


def test_the_regressions_prediction_is_the_network_written_out():
    model, x = make_model("regression"), examples("regression")
    values = x.astype(np.float64)
    for layer in ("dense1", "dense2"):
        weights = model.params[layer]["weights"].T
        values = 1 / (1 + np.exp(-(values @ weights[1:] + weights[0])))
    weights = model.params["output"]["weights"].T
    np.testing.assert_allclose(model.predict(x), values @ weights[1:] + weights[0], rtol=1e-4, atol=1e-5)


def test_jax_arrays_are_saved_as_well_and_a_path_may_be_a_string(tmp_path):
    model = make_model("regression")
    save_model(tmp_path / "model.msgpack", model._replace(params=jax.tree.map(jnp.asarray, model.params)))
    loaded = load_model(str(tmp_path / "model.msgpack"), regression.STUDY)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))


def test_the_same_model_makes_the_same_bytes(tmp_path):
    save_model(tmp_path / "a", make_model("fashion_cnn", 2))
    save_model(tmp_path / "b", make_model("fashion_cnn", 2))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def layers_and_counts(fixed):
    """Parameters that are a list of tuples, and state that counts: as people without a library write nets."""

    def init(key, h):
        return [(jnp.ones((1, 2)), jnp.zeros(2)), (jnp.ones((2, 1)) * h["scale"],)], {"seen": jnp.zeros((), jnp.int32)}

    def apply(params, x, h, state):
        (w, b), (v,) = params
        return jnp.tanh(x @ w + b[None]) @ v + state["seen"], {"seen": state["seen"] + 1}

    return toy.task({"hidden_units": (2,)})._replace(init=init, apply=apply)


def test_parameters_may_be_any_tree_and_state_comes_back_too(tmp_path):
    own = replace(toy.STUDY, task=layers_and_counts, space={"scale": Choice(1, 2), "wide": Choice(True, False)})
    params = [(np.float32([[1, -2]]), np.zeros(2, np.float32)), (np.float32([[3], [4]]),)]
    fold = (jax.tree.map(lambda a: a + 1, params), {"seen": np.array(4, np.int32)})
    model = Model(own, {"scale": 2, "wide": False}, params, {"seen": np.array(7, np.int32)}, (fold, fold))
    save_model(tmp_path / "model.msgpack", model)
    loaded = load_model(tmp_path / "model.msgpack", own)
    assert jax.tree.structure(loaded[2:]) == jax.tree.structure(model[2:])
    assert loaded.state["seen"] == 7 and loaded.state["seen"].dtype == np.int32
    assert [state["seen"] for _, state in loaded.folds] == [4, 4]
    x = np.float32([[0.5], [-1]])
    np.testing.assert_allclose(loaded.predict(x), np.tanh(x @ params[0][0]) @ params[1][0] + 7, rtol=1e-6)


def test_a_model_with_a_state_that_is_not_finite_has_diverged():
    model = make_model("regression")
    assert model.is_finite and not model._replace(state={"mean": np.array([np.nan])}).is_finite


def test_a_model_says_what_it_is_in_a_line():
    assert repr(make_model("regression")) == (
        "Model(regression: 27 parameters, hidden_units 4 3, learning_rate 0.016, l2 0.0003, optimizer adam)"
    )
    assert repr(make_model("regression", 3)).endswith("optimizer adam; 3 fold models)")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not a model", b"\xff" * 100, b"\x91" * 100_000, b"\x81\xa6format" * 50_000, b"\xc1", b"{}"],
    ids=["empty", "zero", "text", "ones", "deep list", "deep map", "reserved", "JSON"],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "model.msgpack"
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("value", [None, 1, [], {}, "model", {"format": 1}], ids=str)
def test_messagepack_of_something_else_is_refused(tmp_path, value):
    assert_refused(write(tmp_path / "model.msgpack", value))


class Bomb:
    """Executes something when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_executed(tmp_path, protocol):
    path = tmp_path / "model.msgpack"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "executed"), protocol))
    assert_refused(path)
    content = content_of()
    write(path, content | {"params": pickle.dumps(Bomb(tmp_path / "executed"), protocol)})
    assert_refused(path)
    assert os.listdir(tmp_path) == ["model.msgpack"]


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "model.msgpack"
    save_model(path, make_model("regression", 2))
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        assert_refused(path)


def test_something_after_the_model_is_refused(tmp_path):
    path = tmp_path / "model.msgpack"
    save_model(path, make_model("regression"))
    path.write_bytes(path.read_bytes() + b"\x00")
    assert_refused(path)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "model.msgpack"
    save_model(path, make_model("regression", 2))
    return path.read_bytes()


@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 2), st.binary(max_size=4)), min_size=1, max_size=3
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_file_is_refused_or_is_a_whole_model(good_bytes, tmp_path, mutations):
    """Overwritten, removed and inserted bytes: a ValueError that names the file, and never anything else."""
    content = good_bytes
    for place, num_removed, new in mutations:
        at = int(place * len(content))
        content = content[:at] + new + content[at + (len(new) if num_removed == 0 else num_removed) :]
    path = tmp_path / "model.msgpack"
    path.write_bytes(content)
    try:
        model = load_model(path, regression.STUDY)
    except ValueError as error:
        assert str(error).startswith(f"{path} is not a model of hw1jax")
        assert "\n" not in str(error)
        return
    expected = study.parameter_shapes(model.task, model.hyperparameters)
    for params in (model.params, *(params for params, _ in model.folds)):
        assert jax.tree.structure(params) == jax.tree.structure(expected)
        for leaf, shape in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            assert leaf.shape == shape.shape
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("version", [0, 1, 2, 3, "2.0", None])
def test_another_format_is_refused_not_guessed_at(tmp_path, version):
    path = write(tmp_path / "model.msgpack", content_of() | {"format": version})
    assert_refused(path, f"format {version}, expected {storage.FORMAT}")


def test_a_model_of_another_study_is_refused(tmp_path):
    path = write(tmp_path / "model.msgpack", content_of() | {"study": "imagenet"})
    assert_refused(path, "'imagenet'", "'regression'")


@pytest.mark.parametrize("missing", ["format", "study", "hyperparameters", "params", "state", "folds"])
def test_a_missing_part_is_refused(tmp_path, missing):
    content = content_of()
    del content[missing]
    assert_refused(write(tmp_path / "model.msgpack", content))


@pytest.mark.parametrize(
    "name, value",
    [
        ("hidden_units", [4, 4]),
        ("hidden_units", [4]),
        ("hidden_units", []),
        ("hidden_units", [-4, 3]),
        ("hidden_units", [4.5e300, 3]),
        ("hidden_units", [10**15, 3]),
        ("hidden_units", None),
        ("channels", [4]),
        ("channels", [2, 3, 4, 5, 6]),
        ("learning_rate", "fast"),
        ("learning_rate", None),
        ("l2", []),
        ("optimizer", "lion"),
        ("optimizer", 0),
    ],
)
def test_hyperparameters_that_dont_fit_are_refused(tmp_path, name, value):
    content = content_of()
    content["hyperparameters"][name] = value
    assert_refused(write(tmp_path / "model.msgpack", content))


def spoil(**changes):
    """A change of the parameters, by layer: another array, or None for a layer that is missing."""
    changed = {path_of(name): value for name, value in changes.items()}
    return lambda params: {n: p for n, p in (params | changed).items() if p is not None}


W = np.zeros((4, 2), np.float32)  # the right shape of dense1


@pytest.mark.parametrize(
    "change",
    [
        spoil(dense1=W[:3]),
        spoil(dense1=W.T),
        spoil(dense1=W[None]),
        spoil(dense1=None),
        spoil(dense3=W),
        spoil(dense1=W.astype(np.float64)),
        spoil(dense1=W.astype(np.int32)),
        spoil(dense1=W.astype(np.complex64)),
        spoil(dense1=W.tolist()),
        spoil(dense1={"weights": W}),
        spoil(dense1="weights"),
        lambda params: params | {"['dense1']['bias']": W[0]},
        lambda params: {},
        lambda params: None,
        lambda params: [params],
    ],
)
def test_parameters_that_dont_fit_the_network_are_refused(tmp_path, change):
    content = content_of()
    path = write(tmp_path / "model.msgpack", content | {"params": change(content["params"])})
    assert_refused(path)
    first, second = content["folds"]
    spoilt = second | {"params": change(second["params"])}
    assert_refused(write(path, content | {"folds": [first, spoilt]}))


@pytest.mark.parametrize("folds", [None, {}, "", 3, [None], [3], [[]], [{}], ["params"]], ids=str)
def test_fold_models_that_are_none_are_refused(tmp_path, folds):
    assert_refused(write(tmp_path / "model.msgpack", content_of() | {"folds": folds}))


def test_state_that_the_network_does_not_have_is_refused(tmp_path):
    assert_refused(write(tmp_path / "model.msgpack", content_of() | {"state": {"['mean']": W}}), "expected {}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(tmp_path, value):
    content = content_of()
    content["params"][path_of("output")][-1, -1] = value
    assert_refused(write(tmp_path / "model.msgpack", content), "not finite")
    content = content_of()
    content["folds"][1]["params"][path_of("output")][-1, -1] = value
    assert_refused(write(tmp_path / "model.msgpack", content), "not finite")


def test_a_missing_file_and_a_folder_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nothing.msgpack", regression.STUDY)
    with pytest.raises(IsADirectoryError):
        load_model(tmp_path, regression.STUDY)


def test_a_model_that_cant_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model.msgpack"
    save_model(path, make_model("regression"))

    def fail(*args):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        save_model(path, make_model("fashion_mlp"))
    assert os.listdir(tmp_path) == ["model.msgpack"]
    assert load_model(path, regression.STUDY).study.name == "regression"


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
