"""What is random in training, and state that is not trained: a member equals the plain loop with the same keys."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest

from hw1jax import Task, cross_validate, layout, population, squared_error, training
from hw1jax.folds import Fold, k_fold
from hw1jax.population import Plan, Spec
from hw1jax.training import Data

KEY = jax.random.key(11)
RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 3))
Y = np.sin(X).sum(axis=1, keepdims=True)
SETTINGS = {"key": KEY, "num_folds": 3, "num_epochs": 4, "batch_size": 6}  # 16 train: the last batch is short
HYPERPARAMETERS = {"learning_rate": np.array([2**-4, 2**-6]), "dropout": np.array([0.25, 0.5])}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Dropping(nn.Module):
    """Flax's own dropout, of a rate that is fixed, and one of a rate that differs by trial."""

    @nn.compact
    def __call__(self, x, rate, key, train):
        x = nn.tanh(nn.Dense(8)(x))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = nn.tanh(nn.Dense(6)(x))
        if train:
            x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
        return nn.Dense(1)(x)


class Normalising(nn.Module):
    """Flax's own batch norm; with or without dropout before it, whose rows must not reach the statistics either."""

    drops: bool = False

    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.Dense(8, use_bias=False)(x)  # its gradient would be rounding alone, which Adam makes a step of
        if self.drops:
            x = nn.Dropout(0.25, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x, mask=None if mask is None else mask[:, None])
        return nn.Dense(1)(nn.tanh(x))


def optimizer(h, num_steps=None):
    return optax.adam(h["learning_rate"])


def dropping_init(key, h):
    made = jax.eval_shape(partial(Dropping().init, train=False), key, X[:1], 0.0, None)
    return plain.exact(key, made["params"])


def dropping_apply(params, x, h, key):
    rngs = {} if key is None else {"dropout": key}
    return Dropping().apply({"params": params}, x, h["dropout"], key, key is not None, rngs=rngs)


def normalising_init(key, h, drops=False):
    made = jax.eval_shape(partial(Normalising(drops).init, train=False, mask=None), key, X[:1])
    params, stats = plain.exact(key, made["params"]), made["batch_stats"]["BatchNorm_0"]
    return params, {"BatchNorm_0": {"mean": jnp.zeros(stats["mean"].shape), "var": jnp.ones(stats["var"].shape)}}


def normalising_apply(params, x, h, state, train, mask, key=None, drops=False):
    rngs = {} if key is None else {"dropout": key}
    outputs, new = Normalising(drops).apply(
        {"params": params, "batch_stats": state}, x, train, mask, rngs=rngs, mutable=["batch_stats"]
    )
    return outputs, new["batch_stats"]


@pytest.mark.slow
def test_members_with_flax_dropout_equal_the_plain_loop():
    net = plain.Net(
        lambda key, h: (dropping_init(key, h), None),
        lambda params, state, x, h, key, train: (dropping_apply(params, x, h, key), None),
        squared_error,
        optimizer,
    )
    found = cross_validate(
        dropping_init, dropping_apply, squared_error, optimizer, HYPERPARAMETERS, X, Y, return_params=True, **SETTINGS
    )
    plain.assert_equal(found, plain.cross_validate(net, HYPERPARAMETERS, X, Y, **SETTINGS))


@pytest.mark.parametrize(
    "drops",
    [pytest.param(False, id="batch norm", marks=pytest.mark.slow), pytest.param(True, id="dropout and batch norm")],
)
def test_members_with_flax_batch_norm_equal_the_plain_loop_whatever_fills_up_short_batches(drops):
    def forward(params, state, x, h, key, train):
        return normalising_apply(params, x, h, state, train, None, key if train else None, drops)

    def apply(params, x, h, state, train, mask):
        return normalising_apply(params, x, h, state, train, mask)

    def apply_and_drop(params, x, h, key, state, train, mask):
        return normalising_apply(params, x, h, state, train, mask, key, drops=True)

    init = partial(normalising_init, drops=drops)
    chosen = apply_and_drop if drops else apply
    net = plain.Net(init, forward, squared_error, optimizer)
    found = cross_validate(
        init, chosen, squared_error, optimizer, HYPERPARAMETERS, X, Y, return_params=True, **SETTINGS
    )
    plain.assert_equal(found, plain.cross_validate(net, HYPERPARAMETERS, X, Y, **SETTINGS))


def both_init(key, h):
    return normalising_init(key, h, drops=True)


def both(params, x, h, key, state, train, mask):
    return normalising_apply(params, x, h, state, train, mask, key, drops=True)


GIVEN = {"init": both_init, "apply": both, "loss": squared_error, "optimizer": optimizer, "x": X, "y": Y} | SETTINGS


@pytest.mark.slow
def test_members_in_company_equal_members_alone_and_all_differ():
    five = {name: np.resize(values, 5) for name, values in HYPERPARAMETERS.items()}
    together = cross_validate(**GIVEN, hyperparameters=five)
    alone = cross_validate(**GIVEN, hyperparameters={name: values[:1] for name, values in five.items()})
    plain.assert_close(together.val_loss[:1], alone.val_loss)
    one_fold = cross_validate(
        **GIVEN, hyperparameters={name: values[:1] for name, values in five.items()}, folds=together.folds[:1]
    )
    plain.assert_close(together.val_loss[:1, :1], one_fold.val_loss)
    assert (
        len(np.unique(together.val_loss)) == together.val_loss.size
    )  # trials 0, 2 and 4 have the same hyperparameters


@pytest.mark.slow
def test_another_key_draws_something_else_and_the_same_key_the_same():
    fixed = GIVEN | {"folds": [(np.arange(16), np.arange(16, 24))], "init": lambda key, h: both_init(KEY, h)}
    given = fixed | {"batch_size": 16, "hyperparameters": HYPERPARAMETERS}
    one, same, other = (cross_validate(**given | {"key": jax.random.key(n)}).val_loss for n in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.isclose(one, other).any()  # full batches and the same start: only what is dropped differs


@pytest.mark.slow
def test_evaluation_draws_nothing():
    def apply(params, x, h, key, train):
        assert (key is None) == (not train)
        return dropping_apply(params, x, h, key)

    result = cross_validate(
        **GIVEN | {"init": dropping_init, "apply": apply}, hyperparameters=HYPERPARAMETERS, return_params=True
    )
    np.testing.assert_array_equal(result.predict(X), result.predict(X))
    outputs = result.out_of_fold(0)
    for f, fold in enumerate(result.folds):
        plain.assert_close(np.mean((outputs - Y)[fold.validation] ** 2), result.val_loss[0, f, -1])


@pytest.mark.parametrize("drops", [False, True], ids=["batch norm", "dropout and batch norm"])
def test_batch_norm_without_a_mask_is_refused(drops):
    def apply(params, x, h, state, train):
        return normalising_apply(params, x, h, state, train, None)

    def apply_and_drop(params, x, h, key, state, train):
        return normalising_apply(params, x, h, state, train, None, key, drops=True)

    given = GIVEN | {"init": partial(normalising_init, drops=drops), "apply": apply_and_drop if drops else apply}
    with pytest.raises(ValueError, match="^apply lets padding into its statistics: .* take mask by name") as error:
        cross_validate(**given, hyperparameters=HYPERPARAMETERS)
    assert "\n" not in str(error.value)


def test_batch_norm_that_normalises_over_the_batch_in_evaluation_is_refused():
    def apply(params, x, h, state, mask):
        return normalising_apply(params, x, h, state, True, mask)

    with pytest.raises(ValueError, match="^apply mixes examples: in evaluation"):
        cross_validate(**GIVEN | {"init": normalising_init, "apply": apply}, hyperparameters=HYPERPARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_other_kinds_of_keys_whose_draws_depend_on_the_batchs_size_are_no_obstacle(kind):
    given = GIVEN | {"key": jax.random.key(0, impl=kind)}
    result = cross_validate(**given, hyperparameters=HYPERPARAMETERS)
    assert np.isfinite(result.val_loss).all()


@pytest.mark.slow
def test_a_fold_that_ends_with_empty_batches_keeps_its_statistics():
    # The first has three steps an epoch, the second one: its empty batches must change nothing.
    splits = [(np.arange(16), np.arange(16, 24)), (np.arange(5), np.arange(5, 24))]
    together = cross_validate(**GIVEN | {"folds": splits}, hyperparameters=HYPERPARAMETERS, return_params=True)
    assert np.isfinite(together.train_loss).all()
    net = plain.Net(
        both_init,
        lambda params, state, x, h, key, train: both(params, x, h, key if train else None, state, train, None),
        squared_error,
        optimizer,
    )
    settings = {name: value for name, value in SETTINGS.items() if name != "num_folds"}
    folds = [Fold(*split) for split in splits]
    plain.assert_equal(together, plain.cross_validate(net, HYPERPARAMETERS, X, Y, folds=folds, **settings))


@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.slow)])
def test_an_accelerator_trains_all_members_at_once_whatever_they_draw_and_keep(platform):
    trials, folds = 5, k_fold(len(X), 3, (0,))
    hyperparameters = {name: np.resize(values, trials) for name, values in HYPERPARAMETERS.items()}
    one = jax.tree.map(lambda a: a[0], hyperparameters)
    task = Task(both_init, both, squared_error, optimizer)
    params, state = jax.eval_shape(both_init, KEY, one)

    def evaluated(params, x, rest):
        return training.evaluated(task, params, rest[0], x, rest[1])

    chosen = layout.choose(evaluated, params, X, (state, one), 6, platform)
    assert chosen.chunk_size is None and not chosen.one_by_one
    members = population.place(task, Plan(trials, 1, trials, chosen), Spec(2, 6, (0,), 2), Data(X, Y), folds)
    text = population.lowered(members, hyperparameters, platform).as_text()
    assert text.count("stablehlo.while") == 3  # over epochs, over steps, over pieces of the validation part
    products = re.findall(r"dot_general.*-> tensor<([\dx]+)xf64>", text)
    assert len(products) == 2 + 3 + 2  # forward; backward, but for x; in evaluation
    for shape in products:
        assert {trials, 3} <= set(map(int, shape.split("x")[:3])), shape
