"""A member of a population equals the same network trained alone, at its own widths, in the plain way."""

import functools
import itertools

import fashion_cnn
import fashion_mlp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import regression

from hw1jax import population, space, training
from hw1jax.folds import PADDING, k_fold, minibatches
from hw1jax.layout import Layout
from hw1jax.population import Plan, Spec, Trials
from hw1jax.space import Int
from hw1jax.study import make_task, num_parameters, one_trial, parameter_shapes
from hw1jax.training import Data

ALL = (regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY)
LOSSES = {"regression": reference.squared_error, "fashion_mlp": reference.cross_entropy}
LOSSES["fashion_cnn"] = reference.cross_entropy
# A CPU's layouts and an accelerator's: chunks of 10 examples and members one by one, or all at once.
LAYOUTS = {"regression": [Layout()], "fashion_mlp": [Layout()], "fashion_cnn": [Layout(10, 20, True), Layout()]}
STUDIES = pytest.mark.parametrize("study", ALL, ids=lambda study: study.name)
DENSE_NET_SOON = pytest.mark.parametrize(
    "study", [pytest.param(s, id=s.name, marks=[] if s is fashion_mlp.STUDY else pytest.mark.slow) for s in ALL]
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def examples(study, num):
    rng = np.random.default_rng(7)
    if study.classes is None:
        x = rng.uniform(-5, 5, (num, 1))
        return x, np.sin(x)
    return rng.integers(0, 256, (num, 28, 28), dtype=np.uint8), rng.integers(0, 10, num)


def corners(study):
    """The narrowest and widest network, and each mixture of narrow and wide layers between; all three optimizers."""
    ranges = {name: (r.low, r.high) for name, r in space.columns(study.space).items() if isinstance(r, Int)}
    names = itertools.cycle(study.space["optimizer"].values)
    for widths in itertools.product(*ranges.values()):
        rest = {"learning_rate": 2**-7, "l2": 2**-7, "optimizer": next(names)}  # exact in float32
        yield space.unflatten(study.space, dict(zip(ranges, widths, strict=True)) | rest)


def in_float64(hyperparameters):
    return jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, hyperparameters)


def as_arrays(study, draws):
    return in_float64(space.as_arrays(study.space, draws))


def own_task(study, draw):
    return make_task(study, space.fixed(study.space, draw, widest=False))


def own_shapes(study, draw):
    return parameter_shapes(own_task(study, draw), one_trial(study, draw))


def widest_task(study):
    return make_task(study, space.fixed(study.space, space.widest(study.space), widest=True))


def assert_close(found, expected, tolerance):
    """|found - expected| <= tolerance * max(1, |expected|), on every leaf."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_less(np.abs(a - b), tolerance * np.maximum(1, np.abs(b)) + 1e-300),
        found,
        expected,
    )


def batch_of(task, study, num, layout):
    x, y = examples(study, num)
    index = jnp.concatenate([jnp.arange(num), jnp.full(-num % 20, PADDING)])
    return x, y, training.gather(task, Data(jnp.asarray(x), jnp.asarray(y)), index, layout.chunk_size or 20)


@pytest.mark.slow
@STUDIES
def test_loss_gradient_and_update_equal_the_plain_network_over_the_search_space(study):
    task = widest_task(study)
    layout = LAYOUTS[study.name][0]
    num = 16  # of 20: the batch is short, and its last chunk too
    x, y, batch = batch_of(task, study, num, layout)
    compute = jax.jit(lambda state, h: (training.loss_and_gradient(task, state.params, batch, h), one_step(state, h)))

    new = jax.jit(lambda h: training.init(task, jax.random.key(3), h))

    def one_step(state, h):
        return training.step(task, state, batch, h)[0].params

    def plain_step(rule):
        def step(params):
            value, gradient = jax.value_and_grad(lambda p: LOSSES[study.name](reference.forward(p, x), y))(params)
            updates, _ = rule.update(gradient, rule.init(params), params)
            return value, gradient, optax.apply_updates(params, updates)

        return step  # compiled as a whole, as operations one by one are compiled too, each of them

    for draw in corners(study):
        hyperparameters = in_float64(one_trial(study, draw))
        state = new(hyperparameters)
        ((total, _), gradient), updated = jax.tree.map(np.asarray, compute(state, hyperparameters))

        shapes = own_shapes(study, draw)
        small = reference.crop(jax.tree.map(np.asarray, state.params), shapes)
        rule = reference.optimizer(draw["optimizer"], draw["learning_rate"], draw["l2"])
        value, plain_gradient, plain = jax.tree.map(np.asarray, jax.jit(plain_step(rule))(small))
        assert_close(total / num, value, 1e-10)
        assert_close(jax.tree.map(lambda g: g / num, reference.crop(gradient, shapes)), plain_gradient, 1e-10)

        # Where a gradient is rounding alone, Adam's and RMSprop's first step is its sign times the learning rate.
        noise = jax.tree.map(lambda g: np.abs(g) < 1e-12, plain_gradient)
        shown = jax.tree.map(lambda a, b, n: np.where(n, b, a), reference.crop(updated, shapes), plain, noise)
        assert_close(shown, plain, 1e-10)


SEED, NUM_EPOCHS, BATCH_SIZE = 9, 17, 20  # epochs of 3 steps
FOLDS = k_fold(65, 3, (5,))  # of 43 and 44 samples: the last batch of an epoch is short


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "layout"), [(study, layout) for study in ALL for layout in LAYOUTS[study.name]],
    ids=lambda value: getattr(value, "name", "one by one" if getattr(value, "one_by_one", False) else "at once"),
)  # fmt: skip
def test_population_of_mixed_trials_follows_the_trajectories_of_networks_trained_alone(study, layout):
    draws = mixed_draws(study)
    spec = Spec(NUM_EPOCHS, BATCH_SIZE, (5,), epochs_per_call=1)
    data = Data(*examples(study, 65))
    placed = population.place(widest_task(study), Plan(4, 2, 1, layout), spec, data, FOLDS)
    trials = Trials(jax.random.key(SEED), np.arange(4), as_arrays(study, draws))
    steps = list(population.train(placed, trials))
    found = steps[-1].state.params

    for (t, draw), f in itertools.product(enumerate(draws), range(3)):
        plain, train_loss, val_loss = trained_alone(study.name, t, f)
        member = jax.tree.map(lambda a: a[t, f], found)  # noqa: B023
        assert_close(reference.crop(member, own_shapes(study, draw)), plain, 1e-9)
        assert_close(np.concatenate([s.train_loss[t, f] for s in steps]), train_loss, 1e-9)
        assert_close(steps[-1].val["loss"][t, f, -1], val_loss, 1e-9)


@functools.cache  # a study's layouts are compared with the same
def trained_alone(name, t, f):
    """A network of the population by itself: (parameters, loss of each epoch, validation loss at the end)."""
    [study] = [study for study in ALL if study.name == name]
    x, y = examples(study, 65)
    draw = mixed_draws(study)[t]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), t), f)
    alone = own_task(study, draw).init(key, in_float64(one_trial(study, draw)))
    order = minibatches(FOLDS, range(NUM_EPOCHS), batch_size=BATCH_SIZE, seed=(5,))[f]
    batches = [row[row != PADDING] for row in order.reshape(-1, BATCH_SIZE)]
    rule = reference.optimizer(draw["optimizer"], draw["learning_rate"], draw["l2"])
    plain, losses = reference.train(alone, LOSSES[name], rule, x, y, batches)
    sizes = np.array([len(batch) for batch in batches]).reshape(NUM_EPOCHS, -1)
    train_loss = (losses.reshape(NUM_EPOCHS, -1) * sizes).sum(1) / sizes.sum(1)
    held_out = FOLDS[f].validation
    return plain, train_loss, LOSSES[name](reference.forward(plain, x[held_out]), y[held_out])


def mixed_draws(study):
    return [replace_rate(draw, i) for i, draw in enumerate(list(corners(study))[1::2][:4])]


def replace_rate(draw, i):
    return draw | {"learning_rate": (2**-10, 2**-8, 2**-7, 2**-9)[i], "optimizer": ("adam", "sgd", "rmsprop")[i % 3]}


@DENSE_NET_SOON
def test_padded_parameters_stay_exactly_zero(study):
    task, draw = widest_task(study), next(corners(study))
    x, y = examples(study, 60)
    plan = Plan(1, 1, 1, LAYOUTS[study.name][0])
    trials = Trials(jax.random.key(0), np.arange(1), as_arrays(study, [draw]))
    placed = population.place(task, plan, Spec(2, 20, (0,)), Data(x, y), k_fold(60, 2, (0,)))
    state = list(population.train(placed, trials))[-1].state
    shapes = own_shapes(study, draw)

    def outside(leaf, shape):
        leaf = np.array(leaf)
        leaf[(slice(None), slice(None), *map(slice, shape.shape))] = 0
        return leaf

    for leaf in jax.tree.leaves(jax.tree.map(outside, state.params, shapes)):
        assert leaf.size and not leaf.any()


@pytest.mark.slow
@STUDIES
def test_initial_parameters_do_not_depend_on_the_padding(study):
    draw = space.widest(study.space) | {"hidden_units": tuple(23 for _ in study.space["hidden_units"])}
    hyperparameters = one_trial(study, draw)
    tasks = own_task(study, draw), widest_task(study)
    compiled = (jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 0}) for task in tasks)
    own, padded = (init(jax.random.key(1), hyperparameters) for init in compiled)
    shapes = own_shapes(study, draw)
    jax.tree.map(np.testing.assert_array_equal, reference.crop(padded, shapes), own)
    for leaf in jax.tree.leaves(own):
        fan_in = leaf.shape[1] - 1
        assert np.abs(leaf).max() <= 1 / fan_in**0.5
        assert np.abs(leaf).max() > 0.7 / fan_in**0.5


def test_parameter_counts_at_maximum_width_are_the_reports():
    assert [num_parameters(study, space.widest(study.space)) for study in ALL] == [4211, 43640, 25795]
