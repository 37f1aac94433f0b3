"""A model is read back unchanged from its file; anything else in the file is refused and never executed."""

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
from studies import DRAWS, HOMEWORK, TOY, examples, make_model, toy_task

from hw1jax import storage
from hw1jax.results import evaluation
from hw1jax.results.trained_model import Model, load_model, save_model
from hw1jax.search.space import Choice

MODEL = "model.msgpack"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a regression's model with two fold models."""
    path = tmp_path_factory.mktemp("good") / MODEL
    save_model(path, make_model("regression", 2))
    return path.read_bytes()


@pytest.fixture
def content(good):
    """What a good file holds, to be spoilt."""
    return flax.serialization.msgpack_restore(good)


def refused(path: Path, content, *words: str) -> None:
    """That a file with this content (bytes, or what MessagePack holds) is refused in one line with these words."""
    path.write_bytes(content if isinstance(content, bytes) else flax.serialization.msgpack_serialize(content))
    with pytest.raises(ValueError) as caught:
        load_model(path, regression.STUDY)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a model of hw1jax")
    assert "\n" not in message, "a user's mistake is told in one line"
    for word in words:
        assert word in message


def assert_same(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", DRAWS)
def test_a_model_and_those_of_its_folds_come_back_and_predict_the_same_bits(tmp_path, name):
    model, x = make_model(name, 3), examples(name)
    save_model(tmp_path / MODEL, model)
    loaded = load_model(tmp_path / MODEL, HOMEWORK[name])
    assert loaded.study.name == name and loaded.has_ensemble and loaded.draw == model.draw
    assert {n: type(v) for n, v in loaded.draw.items()} == {n: type(v) for n, v in model.draw.items()}
    assert_same(loaded[2:], model[2:])
    outputs, together = model.predict(x), model.predict(x, ensemble=True)
    assert outputs.shape == together.shape == (7, 1 if name == "regression" else 10)
    assert outputs.dtype == together.dtype == np.float32 and len(np.unique(outputs[:, 0])) > 1
    np.testing.assert_array_equal(loaded.predict(x), outputs)
    np.testing.assert_array_equal(loaded.predict(x, ensemble=True), together)
    each = [model._replace(params=params, folds=()).predict(x) for params, _ in model.folds]
    np.testing.assert_array_equal(model.fold_outputs(x), each)
    if name == "regression":
        np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)
    else:
        probabilities = np.mean([evaluation.softmax(own) for own in each], axis=0)
        np.testing.assert_allclose(np.exp(together), probabilities, rtol=1e-4, atol=1e-6)


def test_a_model_without_fold_models_has_no_ensemble(tmp_path):
    model = make_model("regression")
    save_model(tmp_path / MODEL, model)
    for lonely in (model, load_model(str(tmp_path / MODEL), regression.STUDY)):
        assert not lonely.has_ensemble and lonely.folds == ()
        with pytest.raises(ValueError, match="ensemble=True: this model has no fold models"):
            lonely.predict(examples("regression"), ensemble=True)


def test_fold_models_and_states_that_are_not_finite_count_for_their_own_part():
    model = make_model("regression", 2)
    assert model.is_finite and not model._replace(state={"mean": np.array([np.nan])}).is_finite
    spoilt = model._replace(folds=(model.folds[0], jax.tree.map(lambda a: a * np.inf, model.folds[1])))
    assert spoilt.is_finite and not spoilt.has_ensemble


def test_the_regressions_prediction_is_the_network_written_out():
    model, x = make_model("regression"), examples("regression")
    values = x.astype(np.float64)
    for layer in ("dense1", "dense2"):
        weights = model.params[layer]["weights"].T
        values = 1 / (1 + np.exp(-(values @ weights[1:] + weights[0])))
    weights = model.params["output"]["weights"].T
    np.testing.assert_allclose(model.predict(x), values @ weights[1:] + weights[0], rtol=1e-4, atol=1e-5)


def test_jax_arrays_make_the_same_bytes(tmp_path):
    model = make_model("fashion_cnn", 2)
    save_model(tmp_path / "a", model)
    save_model(tmp_path / "b", model._replace(params=jax.tree.map(jnp.asarray, model.params)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def layers_and_counts(fixed):
    """Parameters that are a list of tuples, and state that counts: as people without a library write nets."""

    def init(key, h):
        return [(jnp.ones((1, 2)), jnp.zeros(2)), (jnp.ones((2, 1)) * h["scale"],)], {"seen": jnp.zeros((), jnp.int32)}

    def apply(params, x, h, state):
        (w, b), (v,) = params
        return jnp.tanh(x @ w + b[None]) @ v + state["seen"], {"seen": state["seen"] + 1}

    return toy_task({"hidden_units": (2,)})._replace(init=init, apply=apply)


def test_parameters_may_be_any_tree_and_state_comes_back_too(tmp_path):
    own = replace(TOY, task=layers_and_counts, space={"scale": Choice(1, 2), "wide": Choice(True, False)})
    params = [(np.float32([[1, -2]]), np.zeros(2, np.float32)), (np.float32([[3], [4]]),)]
    fold = (jax.tree.map(lambda a: a + 1, params), {"seen": np.array(4, np.int32)})
    model = Model(own, {"scale": 2, "wide": False}, params, {"seen": np.array(7, np.int32)}, (fold, fold))
    save_model(tmp_path / MODEL, model)
    loaded = load_model(tmp_path / MODEL, own)
    assert_same(loaded[2:], model[2:])
    x = np.float32([[0.5], [-1]])
    np.testing.assert_allclose(loaded.predict(x), np.tanh(x @ params[0][0]) @ params[1][0] + 7, rtol=1e-6)


def test_a_model_says_what_it_is_in_a_line():
    assert repr(make_model("regression")) == (
        "Model(regression: 27 parameters, hidden_units 4 3, learning_rate 0.016, l2 0.0003, optimizer adam)"
    )
    assert repr(make_model("regression", 3)).endswith("optimizer adam; 3 fold models)")


def test_parameters_have_names_whatever_their_tree_is():
    parts = {"params": [{"a": np.zeros(2)}, np.ones(1)], "state": {"mean": np.ones(3)}}
    model = make_model("regression")._replace(**parts)
    shapes = {name: array.shape for name, array in model.named_parameters().items()}
    assert shapes == {"0/a": (2,), "1": (1,), "state/mean": (3,)}
    assert list(model._replace(params=np.ones(1), state=None).named_parameters()) == ["parameters"]
    with pytest.raises(ValueError, match="two have the same name"):
        model._replace(params={"state": {"mean": np.ones(3)}}).named_parameters()


class Bomb:
    """Executes something when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_file_of_something_else_is_refused_and_not_executed(tmp_path, good, content):
    path = tmp_path / MODEL
    for other in (b"", b"not a model", b"\x91" * 100_000, b"\x81\xa6format" * 50_000, b"\xc1", b"{}", good + b"\x00"):
        refused(path, other)
    for length in range(0, len(good), 101):
        refused(path, good[:length])
    for other in (None, 1, [], {}, {"format": 1}):
        refused(path, other)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickled = pickle.dumps(Bomb(tmp_path / "executed"), protocol)
        refused(path, pickled)
        refused(path, content | {"params": pickled})
    assert os.listdir(tmp_path) == [MODEL]


@pytest.mark.parametrize("missing", ["format", "study", "hyperparameters", "params", "state", "folds"])
def test_a_missing_part_is_refused(tmp_path, content, missing):
    del content[missing]
    refused(tmp_path / MODEL, content)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"format": storage.FORMAT - 1}, (f"format {storage.FORMAT - 1}, expected {storage.FORMAT}",)),
        ({"format": "2.0"}, ("format 2.0",)),
        ({"study": "imagenet"}, ("'imagenet'", "'regression'")),
        ({"state": {"['mean']": np.zeros(2, np.float32)}}, ("expected {}",)),
        *(({"folds": folds}, ()) for folds in (None, {}, "", 3, [None], [[]], [{}], ["params"])),
    ],
    ids=str,
)
def test_a_part_that_does_not_fit_is_refused(tmp_path, content, changes, words):
    refused(tmp_path / MODEL, content | changes, *words)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("hidden_units", units) for units in ([4, 4], [4], [], [-4, 3], [4.5e300, 3], [10**15, 3], None)),
        ("channels", [4]),
        ("learning_rate", "fast"),
        ("learning_rate", None),
        ("l2", []),
        ("optimizer", "lion"),
        ("optimizer", 0),
    ],
)
def test_hyperparameters_that_dont_fit_are_refused(tmp_path, content, name, value):
    content["hyperparameters"][name] = value
    refused(tmp_path / MODEL, content)


FIRST, LAST = "['dense1']['weights']", "['output']['weights']"
W = np.zeros((4, 2), np.float32)  # the right shape of the first


@pytest.mark.parametrize(
    "change",
    [
        {FIRST: W[:3]},
        {FIRST: W.T},
        {FIRST: None},
        {"['dense3']['weights']": W},
        {FIRST: W.astype(np.float64)},
        {FIRST: W.astype(np.int32)},
        {FIRST: W.tolist()},
        {FIRST: {"weights": W}},
        {"['dense1']['bias']": W[0]},
        {LAST: np.float32([[0, 1, 2, np.nan]])},
        {LAST: np.float32([[0, 1, 2, -np.inf]])},
        None,
    ],
)
def test_parameters_that_dont_fit_the_network_or_are_not_finite_are_refused(tmp_path, content, change):
    changed = change and {name: array for name, array in (content["params"] | change).items() if array is not None}
    words = ["not finite"] if change and LAST in change else []
    refused(tmp_path / MODEL, content | {"params": changed}, *words)
    first, second = content["folds"]
    refused(tmp_path / MODEL, content | {"folds": [first, second | {"params": changed}]}, *words)


def test_a_missing_file_and_a_folder_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nothing.msgpack", regression.STUDY)
    with pytest.raises(IsADirectoryError):
        load_model(tmp_path, regression.STUDY)


def test_a_model_that_cant_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    save_model(tmp_path / MODEL, make_model("regression"))

    def fail(*_):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        save_model(tmp_path / MODEL, make_model("fashion_mlp"))
    assert os.listdir(tmp_path) == [MODEL]
    assert load_model(tmp_path / MODEL, regression.STUDY).study.name == "regression"
