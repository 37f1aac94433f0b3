"""A member of a population equals the same network trained alone, at its own widths, in the plain way."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from hw1jax import population, studies, training
from hw1jax.folds import PADDING, k_fold, minibatches
from hw1jax.layout import Layout
from hw1jax.population import Plan, Spec
from hw1jax.space import Draw

LOSSES = {"regression": reference.squared_error, "fashion_mlp": reference.cross_entropy}
LOSSES["fashion_cnn"] = reference.cross_entropy
# A CPU's layouts and an accelerator's: chunks of 10 examples and members one by one, or all at once.
LAYOUTS = {"regression": [Layout()], "fashion_mlp": [Layout()], "fashion_cnn": [Layout(10, 20, True), Layout()]}
STUDIES = pytest.mark.parametrize("study", studies.STUDIES, ids=lambda study: study.name)
DENSE_NET_SOON = pytest.mark.parametrize(
    "study",
    [pytest.param(s, id=s.name, marks=[] if s is studies.FASHION_MLP else pytest.mark.slow) for s in studies.STUDIES],
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
    space = studies.space_of(study.settings)
    ranges = space.channels + space.hidden_units
    names = itertools.cycle(space.optimizers)
    for widths in itertools.product(*ranges):
        split = len(space.channels)
        yield Draw(widths[:split], widths[split:], 2**-7, 2**-7, next(names))  # exact in float32


def as_arrays(draws):
    return jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, studies.as_arrays(draws))


def widest_task(study):
    widest = studies.widest(study.settings)
    return studies.make_task(study, widest.channels, widest.hidden_units)


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
    return x, y, training.gather(task, training.Data(jnp.asarray(x), jnp.asarray(y)), index, layout.chunk_size or 20)


@pytest.mark.slow
@STUDIES
def test_loss_gradient_and_update_equal_the_plain_network_over_the_search_space(study):
    task = widest_task(study)
    layout = LAYOUTS[study.name][0]
    num = 16  # of 20: the batch is short, and its last chunk too
    x, y, batch = batch_of(task, study, num, layout)
    compute = jax.jit(lambda state, h: (training.loss_and_gradient(task, state.params, batch, h), one_step(state, h)))

    def one_step(state, h):
        return training.step(task, state, batch, h)[0].params

    for draw in corners(study):
        hyperparameters = jax.tree.map(lambda a: a[0], as_arrays([draw]))
        state = training.init(task, jax.random.key(3), hyperparameters)
        (total, gradient), updated = compute(state, hyperparameters)

        shapes = studies.parameter_shapes(study, draw)
        small = reference.crop(state.params, shapes)
        loss = LOSSES[study.name]
        value, plain_gradient = jax.jit(jax.value_and_grad(lambda p: loss(reference.forward(p, x), y)))(small)  # noqa: B023
        assert_close(total / num, value, 1e-10)
        assert_close(jax.tree.map(lambda g: g / num, reference.crop(gradient, shapes)), plain_gradient, 1e-10)

        rule = reference.optimizer(draw.optimizer, draw.learning_rate, draw.l2)
        plain = optax.apply_updates(small, rule.update(plain_gradient, rule.init(small), small)[0])
        # Where a gradient is rounding alone, Adam's and RMSprop's first step is its sign times the learning rate.
        noise = jax.tree.map(lambda g: np.abs(g) < 1e-12, plain_gradient)
        shown = jax.tree.map(lambda a, b, n: np.where(n, b, a), reference.crop(updated, shapes), plain, noise)
        assert_close(shown, plain, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "layout"), [(study, layout) for study in studies.STUDIES for layout in LAYOUTS[study.name]],
    ids=lambda value: getattr(value, "name", "one by one" if getattr(value, "one_by_one", False) else "at once"),
)  # fmt: skip
def test_population_of_mixed_trials_follows_the_trajectories_of_networks_trained_alone(study, layout):
    draws = [replace_rate(draw, i) for i, draw in enumerate(list(corners(study))[1::2][:4])]
    task = widest_task(study)
    num, batch_size = 65, 20  # folds of 43 and 44 samples: the last batch of an epoch is short
    x, y = examples(study, num)
    folds = k_fold(num, 3, (5,))
    num_epochs = 17  # of 3 steps
    spec = Spec(num_epochs, batch_size, (5,), epochs_per_call=1)
    problem = population.place(task, Plan(4, 2, 1, layout), spec, x, y, folds)
    key = jax.random.key(9)
    steps = list(population.train(problem, key, np.arange(4), as_arrays(draws)))
    found = steps[-1].state.params

    order = minibatches(folds, range(num_epochs), batch_size=batch_size, seed=(5,))
    for (t, draw), f in itertools.product(enumerate(draws), range(3)):
        shapes = studies.parameter_shapes(study, draw)
        own = studies.make_task(study, draw.channels, draw.hidden_units)
        hyperparameters = jax.tree.map(lambda a: a[0], as_arrays([draw]))
        alone = own.init(jax.random.fold_in(jax.random.fold_in(key, t), f), hyperparameters)
        batches = [row[row != PADDING] for row in order[f].reshape(-1, batch_size)]
        rule = reference.optimizer(draw.optimizer, draw.learning_rate, draw.l2)
        plain, losses = reference.train(alone, LOSSES[study.name], rule, x, y, batches)
        assert_close(reference.crop(jax.tree.map(lambda a: a[t, f], found), shapes), plain, 1e-9)  # noqa: B023

        sizes = np.array([len(batch) for batch in batches]).reshape(num_epochs, -1)
        epochs = (losses.reshape(num_epochs, -1) * sizes).sum(1) / sizes.sum(1)
        assert_close(np.concatenate([s.train_loss[t, f] for s in steps]), epochs, 1e-9)
        held_out = folds[f].validation
        value = LOSSES[study.name](reference.forward(plain, x[held_out]), y[held_out])
        assert_close(steps[-1].val_loss[t, f, -1], value, 1e-9)


def replace_rate(draw: Draw, i: int) -> Draw:
    return draw._replace(learning_rate=(2**-10, 2**-8, 2**-7, 2**-9)[i], optimizer=("adam", "sgd", "rmsprop")[i % 3])


@DENSE_NET_SOON
def test_padded_parameters_stay_exactly_zero(study):
    task, draw = widest_task(study), next(corners(study))
    x, y = examples(study, 60)
    problem = population.place(
        task, Plan(1, 1, 1, LAYOUTS[study.name][0]), Spec(2, 20, (0,)), x, y, k_fold(60, 2, (0,))
    )
    state = list(population.train(problem, jax.random.key(0), np.arange(1), as_arrays([draw])))[-1].state
    shapes = studies.parameter_shapes(study, draw)

    def outside(leaf, shape):
        leaf = np.array(leaf)
        leaf[(slice(None), slice(None), *map(slice, shape.shape))] = 0
        return leaf

    for leaf in jax.tree.leaves(jax.tree.map(outside, state.params, shapes)):
        assert leaf.size and not leaf.any()


@pytest.mark.slow
@STUDIES
def test_initial_parameters_do_not_depend_on_the_padding(study):
    draw = studies.widest(study.quick)._replace(hidden_units=tuple(23 for _ in study.settings.hidden_units))
    hyperparameters = jax.tree.map(lambda a: a[0], studies.as_arrays([draw]))
    tasks = studies.make_task(study, draw.channels, draw.hidden_units), widest_task(study)
    compiled = (jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 0}) for task in tasks)
    own, padded = (init(jax.random.key(1), hyperparameters) for init in compiled)
    shapes = studies.parameter_shapes(study, draw)
    jax.tree.map(np.testing.assert_array_equal, reference.crop(padded, shapes), own)
    for leaf in jax.tree.leaves(own):
        fan_in = leaf.shape[1] - 1
        assert np.abs(leaf).max() <= 1 / fan_in**0.5
        assert np.abs(leaf).max() > 0.7 / fan_in**0.5


def test_parameter_counts_at_maximum_width_are_the_reports():
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(studies.parameter_shapes(s, studies.widest(s.settings))))
        for s in studies.STUDIES
    ]
    assert counts == [4211, 43640, 25795]


@pytest.mark.slow
def test_members_of_a_population_differ():
    study = studies.REGRESSION
    x, y = examples(study, 60)
    problem = population.place(widest_task(study), Plan(2), Spec(1, 20, (0,)), x, y, k_fold(60, 3, (0,)))
    draws = [studies.widest(study.settings)] * 2  # the same hyperparameters, so only the keys differ
    (end,) = population.train(problem, jax.random.key(0), np.arange(2), as_arrays(draws))
    assert len(np.unique(end.val_loss)) == 6
