"""A model comes back from its file as it was; whatever else is in it is refused in one line, and never executed."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regression
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import DRAWS, STUDIES, examples, make_model

from hw1jax import evaluation, space, storage, study
from hw1jax.space import Choice
from hw1jax.trained import Model, load_model, save_model


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
