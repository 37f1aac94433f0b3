"""Data, parameters and outputs may be any tree, from any library: each member equals the plain loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
from plain import float64  # noqa: F401

from hw1jax import cross_validate, squared_error

RNG = np.random.default_rng(5)
NUM_SAMPLES = 24  # 16 train: the last batch is short
SETTINGS = {"key": jax.random.key(7), "num_folds": 3, "num_epochs": 2, "batch_size": 6}
RATES = {"learning_rate": np.array([2**-3, 2**-5])}


def optimizer(h, num_steps=None):
    return optax.sgd(h["learning_rate"], momentum=0.5)


def equals_the_plain_loop(init, apply, loss, x, y):
    net = plain.Net(
        lambda key, h: (init(key, h), None),
        lambda params, state, x, h, key, train: (apply(params, x, h), None),
        loss,
        optimizer,
    )
    found = cross_validate(init, apply, loss, optimizer, RATES, x, y, return_params=True, **SETTINGS)
    plain.assert_equal(found, plain.cross_validate(net, RATES, x, y, **SETTINGS))
    return found


class Targets(NamedTuple):
    mean: np.ndarray
    scale: np.ndarray


def test_members_with_a_dict_for_x_and_a_tuple_for_y_equal_the_plain_loop_and_predict_trees():
    x = {
        "image": RNG.integers(0, 256, (NUM_SAMPLES, 2, 2), dtype=np.uint8),
        "tokens": RNG.integers(0, 7, (NUM_SAMPLES, 5), dtype=np.int32),
        "table": RNG.normal(size=(NUM_SAMPLES, 3)),
    }
    y = Targets(RNG.normal(size=NUM_SAMPLES), RNG.uniform(size=NUM_SAMPLES))

    def init(key, h):
        return plain.exact(key, {"embedding": jnp.zeros((7, 2)), "weights": [jnp.zeros((n, 2)) for n in (4, 2, 3)]})

    def read(params, tokens):
        """A recurrent net's last state."""
        start = jnp.zeros((len(tokens), 2))
        words = params["embedding"][tokens.T]  # [place, example, feature]
        return jax.lax.scan(lambda state, word: (jnp.tanh(word + state[:, ::-1]), None), start, words)[0]

    def apply(params, x, h):
        image = x["image"].reshape(len(x["image"]), -1) / 255.0
        parts = image, read(params, x["tokens"]), x["table"]
        outputs = jnp.tanh(sum(part @ weights for part, weights in zip(parts, params["weights"], strict=True)))
        return {"mean": outputs[:, 0], "scale": outputs[:, 1]}

    def loss(outputs, y):
        return (outputs["mean"] - y.mean) ** 2 + (outputs["scale"] - y.scale) ** 2

    found = equals_the_plain_loop(init, apply, loss, x, y)
    out_of_fold, ensemble = found.out_of_fold(1), found.predict(x)
    assert {name: a.shape for name, a in out_of_fold.items()} == {"mean": (NUM_SAMPLES,), "scale": (NUM_SAMPLES,)}
    assert jax.tree.structure(ensemble) == jax.tree.structure(out_of_fold)
    losses = np.asarray(loss(out_of_fold, y))
    for f, fold in enumerate(found.folds):
        plain.assert_close(losses[fold.validation].mean(), found.val_loss[1, f, -1])


def test_members_of_equinox_equal_the_plain_loop():
    eqx = pytest.importorskip("equinox")
    like = eqx.nn.MLP(3, "scalar", 6, 1, jnp.tanh, key=jax.random.key(0))
    _, static = eqx.partition(like, eqx.is_inexact_array)
    x = RNG.normal(size=(NUM_SAMPLES, 3))

    def init(key, h):
        return plain.exact(key, eqx.filter(like, eqx.is_inexact_array))

    def apply(params, x, h):
        return jax.vmap(eqx.combine(params, static))(x)

    found = equals_the_plain_loop(init, apply, lambda outputs, y: (outputs - y) ** 2, x, np.sin(x).sum(axis=1))
    assert isinstance(found.params, eqx.nn.MLP)
    assert found.out_of_fold().shape == (NUM_SAMPLES,)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_are_taken_as_arrays(library):
    table = pytest.importorskip(library).DataFrame
    x, y = RNG.normal(size=(NUM_SAMPLES, 2)), RNG.normal(size=(NUM_SAMPLES, 1))

    def init(key, h):
        return {"w": jax.random.normal(key, (2, 1))}

    def apply(params, x, h):
        return (x["table"] if isinstance(x, dict) else x) @ params["w"]

    given = (x, y), (table(x), table(y)), (x, table(y)), ({"table": table(x)}, y)
    expected, *found = (
        cross_validate(init, apply, squared_error, optimizer, RATES, *data, **SETTINGS).val_loss for data in given
    )
    for each in found:
        np.testing.assert_array_equal(each, expected)
