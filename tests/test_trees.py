"""Data, parameters and outputs of any tree, from any library: each member equals the plain loop."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest

from hw1jax import cross_entropy, cross_validate, squared_error

RNG = np.random.default_rng(5)
NUM_SAMPLES = 24  # 16 train: the last batch is short
SETTINGS = {"key": jax.random.key(7), "num_folds": 3, "num_epochs": 3, "batch_size": 6}
RATES = {"learning_rate": np.array([2**-3, 2**-5])}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


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


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, image, table):
        return nn.Dense(2)(nn.tanh(jnp.concatenate([image.reshape(len(image), -1), table], axis=1)))


class Targets(NamedTuple):
    mean: np.ndarray
    scale: np.ndarray


def test_members_with_a_dict_for_x_and_a_tuple_for_y_equal_the_plain_loop_and_predict_trees():
    x = {"image": RNG.integers(0, 256, (NUM_SAMPLES, 2, 2), dtype=np.uint8), "table": RNG.normal(size=(NUM_SAMPLES, 3))}
    y = Targets(RNG.normal(size=NUM_SAMPLES), RNG.uniform(size=NUM_SAMPLES))
    net = TwoInputs()

    def call(params, x):
        return net.apply({"params": params}, x["image"] / 255.0, x["table"])

    def init(key, h):
        shapes = jax.eval_shape(net.init, key, jnp.zeros((1, 2, 2)), jnp.zeros((1, 3)))
        return plain.exact(key, shapes["params"])

    def apply(params, x, h):
        outputs = call(params, x)
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


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 4, param_dtype=float)(tokens)
        x = nn.RNN(nn.GRUCell(5, param_dtype=float))(x)
        return nn.Dense(3)(x[:, -1])


class Attending(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 4, param_dtype=float)(tokens)
        is_there = tokens != 0
        x = x + nn.MultiHeadDotProductAttention(2, param_dtype=float)(
            nn.LayerNorm(param_dtype=float)(x), mask=nn.make_attention_mask(is_there, is_there)
        )
        return nn.Dense(3)(jnp.mean(x, axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("module", [Recurrent, Attending])
def test_members_that_read_tokens_equal_the_plain_loop(module):
    net = module()
    tokens = RNG.integers(0, 7, (NUM_SAMPLES, 5), dtype=np.int32)

    def init(key, h):
        return plain.exact(key, jax.eval_shape(net.init, key, tokens[:1]))

    equals_the_plain_loop(
        init, lambda params, x, h: net.apply(params, x), cross_entropy, tokens, (tokens[:, 0] + tokens[:, 4]) % 3
    )


def test_members_of_equinox_equal_the_plain_loop():
    eqx = pytest.importorskip("equinox")
    like = eqx.nn.MLP(3, "scalar", 6, 2, jnp.tanh, key=jax.random.key(0))
    _, static = eqx.partition(like, eqx.is_inexact_array)
    x = RNG.normal(size=(NUM_SAMPLES, 3))

    def init(key, h):
        return plain.exact(key, eqx.filter(like, eqx.is_inexact_array))

    def apply(params, x, h):
        return jax.vmap(eqx.combine(params, static))(x)

    found = equals_the_plain_loop(init, apply, lambda outputs, y: (outputs - y) ** 2, x, np.sin(x).sum(axis=1))
    assert isinstance(found.params, eqx.nn.MLP)
    assert found.out_of_fold().shape == (NUM_SAMPLES,)


def linear(params, x, h):
    return x @ params["w"]


def linear_init(num_inputs, key, h):
    return plain.exact(key, {"w": jnp.zeros((num_inputs, 1))})


class Table:
    """What pandas' tables and columns have, and no more."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return self.values

    def __len__(self):
        return len(self.values)


def test_tables_of_pandas_are_taken_as_arrays():
    x, y = RNG.normal(size=(NUM_SAMPLES, 2)), RNG.normal(size=(NUM_SAMPLES, 1))
    functions = partial(linear_init, 2), linear, squared_error, optimizer
    expected = cross_validate(*functions, RATES, x, y, **SETTINGS)
    for given in ((Table(x), Table(y)), (x, Table(y))):
        np.testing.assert_array_equal(cross_validate(*functions, RATES, *given, **SETTINGS).val_loss, expected.val_loss)
    of_dict = cross_validate(
        functions[0], lambda params, x, h: linear(params, x["table"], h), *functions[2:], RATES, {"table": Table(x)}, y,
        **SETTINGS,
    )  # fmt: skip
    np.testing.assert_array_equal(of_dict.val_loss, expected.val_loss)


def test_pandas_itself_is_taken():
    pandas = pytest.importorskip("pandas")
    x, y = RNG.normal(size=(NUM_SAMPLES, 2)), RNG.normal(size=(NUM_SAMPLES, 1))
    functions = partial(linear_init, 2), linear, squared_error, optimizer
    expected = cross_validate(*functions, RATES, x, y, **SETTINGS)
    found = cross_validate(*functions, RATES, pandas.DataFrame(x), pandas.DataFrame(y), **SETTINGS)
    np.testing.assert_array_equal(found.val_loss, expected.val_loss)
