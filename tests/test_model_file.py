"""A model survives its file bit by bit; whatever else is in the file is refused by name, and never executed."""

import os
import pickle
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw1jax import model_file, studies
from hw1jax.model_file import Model, load_model, save_model
from hw1jax.space import Draw

DRAWS = {
    "regression": Draw((), (4, 3), 0.016, 0.0003, "adam"),
    "fashion_mlp": Draw((), (3, 5, 2), 0.002, 0.0001, "sgd"),
    "fashion_cnn": Draw((2, 3), (4, 3), 0.008, 0.0001, "rmsprop"),
}


def make_model(name: str) -> Model:
    """A small network of the study with random parameters."""
    rng = np.random.default_rng(0)
    shapes = studies.parameter_shapes(studies.by_name(name), DRAWS[name])
    return Model(name, DRAWS[name], jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes))


def examples(name: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    if name == "regression":
        return rng.uniform(-5, 5, (7, 1)).astype(np.float32)
    return rng.integers(256, size=(7, 28, 28), dtype=np.uint8)


def content_of(name: str = "regression") -> dict:
    """What a good file holds, to be spoilt."""
    model = make_model(name)
    return {
        "format": model_file.FORMAT,
        "study": name,
        "hyperparameters": model.draw.as_dict(),
        "params": model.params,
    }


def write(path: Path, content: dict) -> Path:
    path.write_bytes(flax.serialization.msgpack_serialize(content))
    return path


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a model of hw1jax")
    assert "\n" not in message, "a user's mistake is told in one line"
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", DRAWS)
def test_a_model_comes_back_as_it_was_and_predicts_the_same_bits(tmp_path, name):
    model = make_model(name)
    save_model(tmp_path / "model.msgpack", model)
    loaded = load_model(tmp_path / "model.msgpack")
    assert loaded.study == name
    assert loaded.draw == model.draw
    assert list(map(type, loaded.draw)) == list(map(type, model.draw))
    assert jax.tree.structure(loaded.params) == jax.tree.structure(model.params)
    for found, saved in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(model.params), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, saved)
    outputs = model.predict(examples(name))
    assert outputs.shape == (7, 1 if name == "regression" else 10)
    assert outputs.dtype == np.float32
    assert len(np.unique(outputs[:, 0])) > 1
    np.testing.assert_array_equal(loaded.predict(examples(name)), outputs)


def test_the_regressions_prediction_is_the_network_written_out(tmp_path):
    model, x = make_model("regression"), examples("regression")
    values = x.astype(np.float64)
    for layer in ("dense1", "dense2"):
        weights = model.params[layer]["weights"].T
        values = 1 / (1 + np.exp(-(values @ weights[1:] + weights[0])))
    weights = model.params["output"]["weights"].T
    np.testing.assert_allclose(model.predict(x), values @ weights[1:] + weights[0], rtol=1e-4, atol=1e-5)


def test_jax_arrays_are_saved_as_well_and_a_path_may_be_a_string(tmp_path):
    model = make_model("regression")
    save_model(tmp_path / "model.msgpack", model._replace(params=jax.tree.map(jax.numpy.asarray, model.params)))
    loaded = load_model(str(tmp_path / "model.msgpack"))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))


def test_the_same_model_makes_the_same_bytes(tmp_path):
    save_model(tmp_path / "a", make_model("fashion_cnn"))
    save_model(tmp_path / "b", make_model("fashion_cnn"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


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
    save_model(path, make_model("regression"))
    content = path.read_bytes()
    for length in range(0, len(content), 7):
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
    save_model(path, make_model("regression"))
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
        model = load_model(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} is not a model of hw1jax")
        assert "\n" not in str(error)
        return
    expected = studies.parameter_shapes(studies.by_name(model.study), model.draw)
    assert jax.tree.structure(model.params) == jax.tree.structure(expected)
    for leaf, shape in zip(jax.tree.leaves(model.params), jax.tree.leaves(expected), strict=True):
        assert leaf.shape == shape.shape
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("version", [0, 1, "2.0", None])
def test_another_format_is_refused_not_guessed_at(tmp_path, version):
    path = write(tmp_path / "model.msgpack", content_of() | {"format": version})
    assert_refused(path, f"format {version}, expected {model_file.FORMAT}")


def test_an_unknown_study_is_refused_and_the_known_ones_are_named(tmp_path):
    path = write(tmp_path / "model.msgpack", content_of() | {"study": "imagenet"})
    assert_refused(path, "unknown study 'imagenet'", "regression, fashion_mlp, fashion_cnn")


@pytest.mark.parametrize("missing", ["format", "study", "hyperparameters", "params"])
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
    return lambda params: {n: p for n, p in (params | changes).items() if p is not None}


W = np.zeros((4, 2), np.float32)  # the right shape of dense1


@pytest.mark.parametrize(
    "change",
    [
        spoil(dense1={"weights": W[:3]}),
        spoil(dense1={"weights": W.T}),
        spoil(dense1={"weights": W[None]}),
        spoil(dense1={"weights": W, "bias": W[0]}),
        spoil(dense1={"kernel": W}),
        spoil(dense1=W),
        spoil(dense1=None),
        spoil(dense3={"weights": W}),
        spoil(dense1={"weights": W.astype(np.float64)}),
        spoil(dense1={"weights": W.astype(np.int32)}),
        spoil(dense1={"weights": W.astype(np.complex64)}),
        spoil(dense1={"weights": W.tolist()}),
        spoil(dense1={"weights": "weights"}),
        lambda params: {},
        lambda params: None,
        lambda params: [params],
    ],
)
def test_parameters_that_dont_fit_the_network_are_refused(tmp_path, change):
    content = content_of()
    path = write(tmp_path / "model.msgpack", content | {"params": change(content["params"])})
    assert_refused(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(tmp_path, value):
    content = content_of("fashion_cnn")
    content["params"]["output"]["weights"][-1, -1] = value
    assert_refused(write(tmp_path / "model.msgpack", content), "not finite")


def test_a_missing_file_and_a_folder_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nothing.msgpack")
    with pytest.raises(IsADirectoryError):
        load_model(tmp_path)


def test_a_model_that_cant_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model.msgpack"
    save_model(path, make_model("regression"))

    def fail(*args):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        save_model(path, make_model("fashion_mlp"))
    assert os.listdir(tmp_path) == ["model.msgpack"]
    assert load_model(path).study == "regression"
