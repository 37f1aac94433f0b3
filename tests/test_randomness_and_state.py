"""Random training and state that is not trained: a member equals the plain loop with the same keys."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
from compilations import counted
from plain import float64  # noqa: F401

from hw1jax import Task, cross_validate, squared_error
from hw1jax.core import layout, population, tasks
from hw1jax.core.folds import Fold, k_fold
from hw1jax.core.population import Plan, TrainConfig
from hw1jax.core.training import Data

KEY = jax.random.key(11)
RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 3))
Y = np.sin(X).sum(axis=1, keepdims=True)
# The first has three steps an epoch, the last short; the second one: its two empty batches must change nothing.
FOLDS = [Fold(np.arange(16), np.arange(16, 24)), Fold(np.arange(20, 24), np.arange(3, 11))]
RATES = np.array([2**-4, 2**-6, 2**-5])
SETTINGS = {"key": KEY, "num_epochs": 3, "batch_size": 6, "folds": FOLDS}
# Trials 0 and 2 have the same hyperparameters: they differ by what is drawn.
HYPERPARAMETERS = {"learning_rate": np.array([2**-4, 2**-6, 2**-4]), "dropout": np.array([0.25, 0.5, 0.25])}


class Net(nn.Module):
    """Flax's batch norm, and dropout before and after it: Flax's own, and one whose rate differs by trial."""

    drops: bool = True

    @nn.compact
    def __call__(self, x, rate, key, train, mask):
        x = nn.Dense(6)(x)
        x = nn.Dropout(0.25, deterministic=not (train and self.drops))(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x, mask=None if mask is None else mask[:, None])
        x = nn.tanh(x)
        if train and self.drops:
            x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
        return nn.Dense(1)(x)


def init(key, h):
    made = jax.eval_shape(lambda key: Net().init(key, X[:1], 0.5, None, False, None), key)
    return plain.exact(key, made["params"]), {"BatchNorm_0": {"mean": jnp.zeros(6), "var": jnp.ones(6)}}


def call(params, state, x, h, key, train, mask, drops=True):
    outputs, new = Net(drops).apply(
        {"params": params, "batch_stats": state}, x, h["dropout"], key, train, mask,
        rngs={"dropout": key} if key is not None else {}, mutable=["batch_stats"],
    )  # fmt: skip
    return outputs, new["batch_stats"]


def apply(params, x, h, key, state, train, mask):
    assert (key is None) == (not train), "evaluation draws nothing"
    return call(params, state, x, h, key, train, mask)


def without_mask(params, x, h, key, state, train):
    return call(params, state, x, h, key, train, None)


def without_mask_and_key(params, x, h, state, train):
    return call(params, state, x, h, None, train, None, drops=False)


def over_the_batch_in_evaluation(params, x, h, state, mask):
    return call(params, state, x, h, None, True, mask, drops=False)


def optimizer(h, num_steps):
    assert num_steps in (3 * 3, 3 * 1)  # epochs x batches of its own fold
    return optax.sgd(optax.cosine_decay_schedule(h["learning_rate"], num_steps), momentum=0.5)


GIVEN = {"init": init, "apply": apply, "loss": squared_error, "optimizer": optimizer, "x": X, "y": Y} | SETTINGS


def test_members_with_dropout_and_batch_norm_equal_the_plain_loop_whatever_fills_up_short_batches():
    def forward(params, state, x, h, key, train):
        return call(params, state, x, h, key, train, None)

    with counted() as compiled:
        found = cross_validate(**GIVEN, hyperparameters=HYPERPARAMETERS, averaging=0.5, return_params=True)
    for name in ("jit(_fit)", "jit(_init)", "jit(_make_training_keys)"):
        assert compiled.count(name) <= 1, "all members share it"  # none where they are kept from an earlier call
    net = plain.Net(init, forward, squared_error, optimizer)
    plain.assert_equal(found, plain.cross_validate(net, HYPERPARAMETERS, X, Y, averaging=0.5, **SETTINGS))
    # What predicts draws nothing, and has the statistics of its fold.
    np.testing.assert_array_equal(found.predict(X), found.predict(X))
    outputs = found.out_of_fold(0)[16:]
    plain.assert_close(np.mean((outputs - Y[16:]) ** 2), found.val_loss[0, 0, -1])
    halved = {name: values / 2 for name, values in HYPERPARAMETERS.items()}
    with counted() as compiled:
        other = cross_validate(**GIVEN, hyperparameters=halved, averaging=0.5, return_params=True)
    assert not compiled
    assert not np.isclose(other.val_loss, found.val_loss).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (without_mask, "^apply lets padding into its statistics: .* take mask by name"),
        (without_mask_and_key, "^apply lets padding into its statistics: .* take mask by name"),
        (over_the_batch_in_evaluation, "^apply mixes examples: in evaluation"),
    ],
)
def test_batch_norm_over_what_is_no_part_of_the_batch_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        cross_validate(**GIVEN | {"apply": wrong}, hyperparameters=HYPERPARAMETERS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["rbg", pytest.param("unsafe_rbg", marks=pytest.mark.slow)])
def test_other_kinds_of_keys_whose_draws_depend_on_the_batchs_size_are_no_obstacle(kind):
    def noisy(params, x, h, key):
        return x @ params["w"] + (0 if key is None else h * jax.random.normal(key, (len(x), 1)))

    noises, settings = np.array([0.25, 0.5]), SETTINGS | {"key": jax.random.key(0, impl=kind)}
    made = {"init": lambda key, h: {"w": jax.random.normal(key, (3, 1))}, "optimizer": lambda h: optax.sgd(0.125)}
    result = cross_validate(**GIVEN | settings | made | {"apply": noisy}, hyperparameters=noises)
    assert np.isfinite(result.val_loss).all()
    assert len(np.unique(result.val_loss)) == result.val_loss.size


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_accelerator_trains_all_members_at_once_whatever_they_draw_and_keep(platform):
    trials, folds = 5, k_fold(len(X), 3, (0,))
    hyperparameters = {name: np.resize(values, trials) for name, values in HYPERPARAMETERS.items()}
    one = jax.tree.map(lambda a: a[0], hyperparameters)
    task = Task(init, apply, squared_error, lambda h: optax.sgd(h["learning_rate"]))
    params, state = jax.eval_shape(init, KEY, one)

    def evaluated(params, x, rest):
        return tasks.evaluated(task, params, rest[0], x, rest[1])

    chosen = layout.choose(evaluated, params, X, (state, one), 6, platform)
    assert chosen.microbatch_size is None and not chosen.sequential
    members = population.make_population(
        task, Plan(trials, 1, trials, chosen), TrainConfig(2, 6, (0,), 2), Data(X, Y), folds
    )
    text = population.lowered(members, hyperparameters, platform).as_text()
    assert text.count("stablehlo.while") == 3  # over epochs, over steps, over batches of the validation part
    products = re.findall(r"dot_general.*-> tensor<([\dx]+)xf64>", text)
    assert len(products) == 2 + 3 + 2  # forward; backward, but for x; in evaluation
    for shape in products:
        assert {trials, 3} <= set(map(int, shape.split("x")[:3])), shape


def noisy(h):
    """Adam on a gradient with noise, whose typed key is in the optimizer's state."""
    return optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(5)), optax.adam(h["learning_rate"]))


def count_draws(params, x, h, state, train):
    """A network whose state is a typed key, split in each step, and a draw from it."""
    key, own = jax.random.split(state["key"])
    x = x + jnp.where(train, 0.1 * jax.random.normal(own, (1, x.shape[1])), 0)
    return jnp.tanh(x @ params), {"key": jnp.where(train, key, state["key"])}


def init_with_key(key, h):
    return plain.exact(key, jax.ShapeDtypeStruct((3, 1), float)), {"key": jax.random.key(2)}


@pytest.mark.parametrize("early_stopping", [None, 1])
def test_typed_keys_in_the_states_of_network_and_optimizer(early_stopping):
    def forward(params, state, x, h, key, train):
        return count_draws(params, x, h, state, train)

    net = plain.Net(init_with_key, forward, squared_error, lambda h, num_steps: noisy(h))
    settings = SETTINGS | {"early_stopping": early_stopping}
    found = cross_validate(init_with_key, count_draws, squared_error, noisy, {"learning_rate": RATES}, X, Y,
                           return_params=True, **settings)  # fmt: skip
    assert jnp.issubdtype(found.state["key"].dtype, jax.dtypes.prng_key)
    assert found.predict(X).shape == Y.shape
    expected = plain.cross_validate(net, {"learning_rate": RATES}, X, Y, **settings)
    plain.assert_equal(found, expected)
