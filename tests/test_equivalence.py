"""A member of a population equals the same network trained alone at its own widths."""

from functools import cache, partial

import chex
import fashion_cnn
import fashion_mlp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
import reference
import regression
from plain import float64  # noqa: F401

from hw1jax.core import population, training
from hw1jax.core.folds import PADDING, k_fold, minibatches
from hw1jax.core.layout import Layout
from hw1jax.core.population import Plan, TrainConfig, Trials
from hw1jax.core.training import Data
from hw1jax.search import space
from hw1jax.search.networks import own, padded
from hw1jax.search.space import Choice

ALL = {study.name: study for study in (regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY)}
LOSSES = {"regression": reference.squared_error, "fashion_mlp": reference.cross_entropy}
LOSSES["fashion_cnn"] = reference.cross_entropy
STUDIES = pytest.mark.parametrize("name", ALL)

# Folds train on 10 samples: the second of an epoch's two steps is short.
NUM_SAMPLES, BATCH_SIZE, NUM_EPOCHS, SEED = 15, 6, 25, 9
FOLDS = k_fold(NUM_SAMPLES, 3, (5,))
# All members at once, as accelerators have it; and members one by one, in microbatches of which one is short.
AT_ONCE, ONE_BY_ONE = Layout(), Layout(4, 3, sequential=True)

# Which end of its range a hyperparameter has: each pair of the three columns has all four pairs of ends.
ENDS = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
CHOSEN = ("adam", "sgd", "rmsprop", "adam")
STEADY_RATES = (2**-10, 2**-8, 2**-7, 2**-9)  # at .1 RMSprop is chaotic


def draws(name):
    """The narrowest network, the widest and two of narrow and wide layers, with learning rates and L2 as extreme."""
    ranges = {column: r for column, r in space.columns(ALL[name].space).items() if not isinstance(r, Choice)}
    for ends, optimizer in zip(ENDS, CHOSEN, strict=True):
        flat = {"optimizer": optimizer}
        for i, (column, r) in enumerate(ranges.items()):
            end = ends[{"learning_rate": 2, "l2": 0}.get(column, i % 2)]
            exact_in_float32 = float(np.float32((r.low, r.high)[end]))
            flat[column] = type(r.low)(exact_in_float32)
        yield space.unflatten(ALL[name].space, flat)


def steady(name):
    return [draw | {"learning_rate": rate} for draw, rate in zip(draws(name), STEADY_RATES, strict=True)]


def in_float64(hyperparameters):
    return jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, hyperparameters)


def as_arrays(name, drawn):
    return in_float64(space.as_arrays(ALL[name].space, list(drawn)))


def own_task(name, draw):
    return own(ALL[name], draw).task


def own_shapes(name, draw):
    return own(ALL[name], draw).shapes[0]


def widest_task(name):
    return padded(ALL[name], space.widest(ALL[name].space)).task


def examples(name):
    rng = np.random.default_rng(7)
    if ALL[name].classes is None:
        x = rng.uniform(-5, 5, (NUM_SAMPLES, 1))
        return x, np.sin(x)
    return rng.integers(0, 256, (NUM_SAMPLES, 28, 28), dtype=np.uint8), rng.integers(0, 10, NUM_SAMPLES)


def assert_close(found, expected, tolerance):
    jax.tree.map(lambda a, b: plain.assert_close(a, b, tolerance), found, expected)


def each_trial(tree, *fold):
    return tuple(jax.tree.map(lambda a: np.asarray(a)[t, *fold], tree) for t in range(len(ENDS)))  # noqa: B023


def crop_each(name, trees):
    """The networks' own parameters; those beyond are exactly 0."""
    own = []
    for params, draw in zip(trees, draws(name), strict=True):
        own.append(reference.crop(params, own_shapes(name, draw)))
        beyond = jax.tree.map(lambda all_, few: np.count_nonzero(all_) - np.count_nonzero(few), params, own[-1])
        assert set(jax.tree.leaves(beyond)) == {0}
    return tuple(own)


@cache
def population_of(name, layout=AT_ONCE):
    plan, config = Plan(4, 2, 2, layout), TrainConfig(NUM_EPOCHS, BATCH_SIZE, (5,))
    return population.make_population(widest_task(name), plan, config, Data(*examples(name)), FOLDS)


def trials(name, hyperparameters):
    return Trials(jax.random.key(SEED), np.arange(len(ENDS)), hyperparameters)


@cache
def initial(name):
    """The population's parameters, [trial, fold, ...]."""
    members = trials(name, as_arrays(name, steady(name)))
    return jax.tree.map(np.asarray, population.init(population_of(name), members).params)


@cache
def plain_step(name):
    """One step of the networks of all trials, each by itself: tuples of (params, state, loss, gradient)."""

    def alone(optimizer, params, state, h, x, y):
        rule = reference.optimizer(optimizer, h["learning_rate"], h["l2"])
        value, gradient = jax.value_and_grad(lambda p: LOSSES[name](reference.forward(p, x), y))(params)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, gradient

    @plain.compiled
    def step(networks, states, hyperparameters, x, y):
        members = zip(CHOSEN, networks, states, hyperparameters, strict=True)
        return tuple(zip(*(alone(*member, x, y) for member in members), strict=True))

    return step


def plain_states(networks):
    rules = [reference.optimizer(optimizer, 0.1, 0.1) for optimizer in CHOSEN]
    made = jax.eval_shape(lambda: tuple(rule.init(params) for rule, params in zip(rules, networks, strict=True)))
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), made)


@pytest.mark.parametrize("name", ["regression", "fashion_cnn"])
def test_initial_parameters_are_those_of_the_unpadded_network_for_the_key_of_trial_and_fold(name):
    t, f = 1, 2
    networks = crop_each(name, each_trial(initial(name), f))
    for leaf in jax.tree.leaves(networks):
        largest = np.abs(leaf).max() * (leaf.shape[1] - 1) ** 0.5
        assert largest <= 1
        assert largest > 0.7 or leaf.size < 10
    draw, key = steady(name)[t], jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), t), f)
    own = plain.compiled(own_task(name, draw).init)(key, each_trial(as_arrays(name, steady(name)))[t])
    chex.assert_trees_all_equal(networks[t], own)


@STUDIES
def test_loss_gradient_and_update_equal_the_plain_networks_over_the_search_space(name):
    kept = optax.GradientTransformation(lambda params: params, lambda gradient, state, params=None: (gradient,) * 2)
    given = widest_task(name)
    task = given._replace(optimizer=lambda h: optax.chain(kept, given.optimizer(h)))
    (x, y), hyperparameters = examples(name), as_arrays(name, draws(name))
    index = np.array([3, 1, 7, 11, PADDING, PADDING])  # the second microbatch is empty

    @plain.compiled
    def step(params, h):
        batch = training.gather(task, Data(jnp.asarray(x), jnp.asarray(y)), jnp.asarray(index), 3)
        new, total = training.step(task, training.State(params, task.optimizer(h).init(params)), batch, h)
        return new.params, total / 4, new.opt_state[0]

    before, trials = jax.tree.map(lambda a: a[:, 0], initial(name)), each_trial(hyperparameters)
    updated, losses, gradients = map(each_trial, jax.vmap(step)(before, hyperparameters))
    networks, real = crop_each(name, each_trial(before)), index[:4]
    expected, _, plain_losses, plain_gradients = plain_step(name)(
        networks, plain_states(networks), trials, x[real], y[real]
    )
    assert_close(losses, plain_losses, 1e-10)
    assert_close(crop_each(name, gradients), plain_gradients, 1e-10)
    # Where a gradient is rounding alone, Adam's and RMSprop's first step is its sign times the learning rate.
    noise = jax.tree.map(lambda g: np.abs(g) < 1e-12, plain_gradients)
    assert_close(jax.tree.map(np.where, noise, expected, crop_each(name, updated)), expected, 1e-10)


@cache
def trained(name, layout, diverging=None):
    """The population after each of its epochs; after the first few where a trial diverges."""
    hyperparameters = as_arrays(name, steady(name))
    if diverging is not None:
        hyperparameters["learning_rate"][diverging] = 1e300
    steps = population.train(population_of(name, layout), trials(name, hyperparameters))
    return [jax.tree.map(np.array, next(steps)) for _ in range(NUM_EPOCHS if diverging is None else 3)]


@cache
def trained_alone(name, f):
    """(parameters of each trial's network, training losses, validation losses) of a fold."""
    (x, y), hyperparameters = examples(name), each_trial(as_arrays(name, steady(name)))
    networks = crop_each(name, each_trial(initial(name), f))
    states, train_loss = plain_states(networks), np.zeros((len(ENDS), NUM_EPOCHS))
    order = minibatches(FOLDS, range(NUM_EPOCHS), batch_size=BATCH_SIZE, seed=(5,))[f]
    for e, s in np.ndindex(order.shape[:2]):
        index = order[e, s][order[e, s] != PADDING]
        networks, states, losses, _ = plain_step(name)(networks, states, hyperparameters, x[index], y[index])
        train_loss[:, e] += np.array(losses) * len(index) / len(FOLDS[f].train)
    held_out = FOLDS[f].validation
    return networks, train_loss, np.array(validate(name, networks, x[held_out], y[held_out]))


@partial(plain.compiled, static_argnums=0)
def validate(name, networks, x, y):
    return [LOSSES[name](reference.forward(params, x), y) for params in networks]


@pytest.mark.parametrize(
    ("name", "layout", "num_folds"),
    [
        ("regression", AT_ONCE, 3),
        ("fashion_mlp", AT_ONCE, 3),
        pytest.param("fashion_cnn", ONE_BY_ONE, 1, marks=pytest.mark.slow),
        pytest.param("fashion_cnn", AT_ONCE, 1, marks=pytest.mark.slow),
    ],
)
def test_a_population_follows_the_trajectories_of_networks_trained_alone_for_fifty_steps(name, layout, num_folds):
    steps = trained(name, layout)
    for f in range(num_folds):
        networks, train_loss, val_loss = trained_alone(name, f)
        own = crop_each(name, each_trial(steps[-1].state.params, f))
        assert_close(own, networks, 1e-9)
        assert_close(np.concatenate([step.train_loss[:, f] for step in steps], axis=1), train_loss, 1e-9)
        assert_close(steps[-1].val["loss"][:, f, -1], val_loss, 1e-9)


@pytest.mark.parametrize("name", ["regression", "fashion_mlp"])
def test_a_trial_that_diverges_changes_no_other_by_a_bit(name):
    for usual, found in zip(trained(name, AT_ONCE), trained(name, AT_ONCE, diverging=1), strict=False):
        assert not np.isfinite(found.train_loss[1]).any() or found.num_epochs == 1
        others = [jax.tree.map(lambda a: np.delete(a, 1, axis=0), step[1:4]) for step in (found, usual)]
        chex.assert_trees_all_equal(*others)


def test_parameter_counts_at_maximum_width_are_the_reports():
    assert [own(study, space.widest(study.space)).num_parameters for study in ALL.values()] == [4211, 43640, 25795]
