"""The layout for each kind of device; rewritten convolutions and products compute the same."""

import chex
import fashion_cnn
import fashion_mlp
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
import regression
from jax import lax

from hw1jax.core import cost, layout, population
from hw1jax.core.folds import k_fold
from hw1jax.core.layout import Layout
from hw1jax.core.losses import cross_entropy
from hw1jax.core.population import Plan, TrainConfig, Trials
from hw1jax.core.tasks import Task
from hw1jax.core.training import Data
from hw1jax.search import space
from hw1jax.search.networks import padded

AT_ONCE, CPU_AT_ONCE = Layout(None, 500), Layout(None, 500, canonical=True)
CPU = {"regression": CPU_AT_ONCE, "fashion_mlp": CPU_AT_ONCE, "fashion_cnn": Layout(20, 20, True, True)}


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Conv(4, (3, 3))(x).reshape(len(x), -1))


class OneWayOrTheOther(nn.Module):
    """What is computed depends on the size of a batch, as in `hw1jax.layers.dense`."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2000)(x)
        return nn.Dense(3)(x if len(x) < 150 else jnp.maximum(x, 0) + 1)


class Wide(nn.Module):
    """Large parameters are no activations: transposed or cut, they are no larger in a larger batch."""

    @nn.compact
    def __call__(self, x):
        weights = self.param("weights", nn.initializers.zeros, (1000, 1000))  # 4 MB
        return jax.jit(lambda x, w: x @ (w.T + 1)[:5])(x, weights)


IMAGES, ROWS = np.zeros((30, 8, 8, 1), np.float32), np.zeros((30, 5), np.float32)


@pytest.mark.parametrize(
    ("net", "x", "batch_size", "platform", "expected"),
    [
        (ConvNet(), IMAGES, 20, "cpu", Layout(None, 500, sequential=True, canonical=True)),
        (nn.Dense(3), ROWS, 20, "cpu", CPU_AT_ONCE),
        (OneWayOrTheOther(), ROWS, 20, "cpu", CPU_AT_ONCE),
        (OneWayOrTheOther(), ROWS, 100, "cpu", Layout(50, 50, sequential=True, canonical=True)),
        (Wide(), ROWS, 20, "cpu", CPU_AT_ONCE),
        (ConvNet(), IMAGES, 20, "gpu", AT_ONCE),
        (nn.Dense(3), ROWS, 20, "tpu", AT_ONCE),
        (nn.Dense(3), ROWS, 400, "gpu", Layout(None, 800)),
    ],
)
def test_a_cpu_takes_convolutions_and_large_activations_one_by_one_and_an_accelerator_all_at_once(
    net, x, batch_size, platform, expected
):
    params = jax.eval_shape(net.init, jax.random.key(0), x[:1])
    assert layout.choose(lambda params, x, h: net.apply(params, x), params, x, None, batch_size, platform) == expected


@pytest.mark.parametrize("study", [regression.STUDY, fashion_mlp.STUDY, fashion_cnn.STUDY], ids=lambda s: s.name)
def test_each_study_has_the_layout_that_was_measured_for_it(study):
    widest = space.widest(study.space)
    network = padded(study, widest)
    task, one = network.task, network.hyperparameters
    x = np.zeros((1, 28, 28), np.uint8) if study.classes else np.zeros((1, 1), np.float32)

    def apply(params, x, hyperparameters):
        return task.apply(params, task.prepare(x), hyperparameters)

    for platform, expected in (("cpu", CPU[study.name]), ("gpu", AT_ONCE)):
        found = layout.choose(apply, network.shapes[0], x, one, study.batch_size, platform)
        assert found == expected


def test_a_batch_is_not_cut_where_what_is_drawn_or_averaged_belongs_to_all_of_it(monkeypatch):
    monkeypatch.setattr(layout, "CACHED_BYTES", 10_000)
    x, params = np.zeros((30, 1000), np.float32), np.zeros((1000, 100), np.float32)
    free, random, masked = (
        cost.choose_layout(Task(None, apply, None, None), params, None, x, None, batch_size=100)
        for apply in (
            lambda params, x, h: x @ params,
            lambda params, x, h, key: x @ params,
            lambda params, x, h, mask: x @ params,
        )
    )
    assert free.microbatch_size is not None
    assert free.microbatch_size < 100
    assert random == masked == free._replace(microbatch_size=None)


@pytest.mark.parametrize(
    ("numbers", "x", "kernel", "options"),
    [
        (("NHWC", "OHWI", "NWCH"), (2, 6, 7, 4), (8, 3, 2, 1), {"feature_group_count": 4}),
        (("NWC", "WIO", "CWN"), (4, 9, 3), (2, 3, 6), {"batch_group_count": 2, "padding": ((3, 0),)}),
        (("HCNW", "WOHI", "WCHN"), (6, 4, 2, 7), (2, 5, 3, 4), {"rhs_dilation": (2, 1)}),
        (("NHWC", "HWIO", "NHWC"), (2, 6, 7, 4), (3, 2, 4, 5), {}),
        (("NCHW", "OIHW", "NCHW"), (2, 4, 6, 7), (5, 4, 3, 2), {"padding": ((1, 0), (2, 1))}),
        (("CHWN", "IHWO", "HWNC"), (4, 6, 7, 2), (4, 3, 2, 5), {"window_strides": (2, 1)}),
        (("NCHW", "HWIO", "CWNH"), (2, 4, 6, 7), (3, 2, 2, 6), {"feature_group_count": 2}),
        (("NWC", "OWI", "NCW"), (2, 9, 3), (4, 3, 3), {"lhs_dilation": (2,), "padding": ((2, 2),)}),
    ],
)
def test_convolutions_in_canonical_form_equal_those_written(numbers, x, kernel, options):
    options = {"window_strides": (1,) * (len(x) - 2), "padding": "VALID"} | options

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)

    def both(x, kernel):
        return convolve(x, kernel), jax.grad(lambda *both: jnp.sum(jnp.sin(convolve(*both))), (0, 1))(x, kernel)

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        given = rng.normal(size=x), rng.normal(size=kernel)
        found, expected = (plain.compiled(f)(*given) for f in (layout.canonical(both), both))
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


def products(function, *args):
    """The `dimension_numbers` of a function's products."""
    equations = jax.make_jaxpr(function)(*args).jaxpr.eqns
    return [e.params["dimension_numbers"] for e in equations if e.primitive.name == "dot_general"]


NO_BATCH, ONE, TWO = ((), ()), ((0,), (0,)), ((0, 1), (0, 1))


@pytest.mark.parametrize(
    ("a", "b", "numbers", "expected"),
    [
        ((5, 3), (5, 4), (ONE, NO_BATCH), (((1,), (0,)), NO_BATCH)),
        ((5, 6, 3), (5, 6, 4), (TWO, NO_BATCH), (((1, 2), (0, 1)), NO_BATCH)),
        ((2, 5, 3), (2, 5, 4, 6), (((1,), (1,)), ONE), (((3,), (1,)), ONE)),
        ((2, 5, 6, 3, 2), (2, 5, 6, 4), (((1, 2), (1, 2)), ONE), (((2, 3), (1, 2)), ONE)),
        ((2, 3, 5, 3), (2, 3, 5, 4), (((2,), (2,)), TWO), (((3,), (2,)), TWO)),
        ((2, 3), (2, 4097), (ONE, NO_BATCH), None),  # a larger copy costs too much
        ((3, 5), (5, 4), (((1,), (0,)), NO_BATCH), None),
        ((3, 5), (4, 5), (((1,), (1,)), NO_BATCH), None),
        ((5, 3), (5,), (ONE, NO_BATCH), None),
        ((5, 3, 2), (5, 4, 2), (ONE, ((2,), (2,))), None),
        ((5, 6, 3), (6, 5, 4), (((0, 1), (1, 0)), NO_BATCH), None),
        ((3,), (4,), (((), ()), NO_BATCH), None),
    ],
)
def test_products_over_the_first_axes_contract_the_last_ones_of_a_copy_and_are_equal(a, b, numbers, expected):
    rng = np.random.default_rng(0)

    def product(a, b):
        return lax.dot_general(a, b, numbers)

    rewritten = layout.canonical(product, products=True)
    with jax.enable_x64(True):
        given = rng.normal(size=a), rng.normal(size=b)
        chex.assert_trees_all_close(rewritten(*given), product(*given), rtol=1e-12, atol=1e-12)
        assert products(rewritten, *given) == [numbers if expected is None else expected]
        assert products(layout.canonical(product), *given) == [numbers]


def test_products_keep_their_dtype_and_precision_and_those_of_integers_their_form():
    a, b = jnp.ones((5, 3), jnp.bfloat16), jnp.full((5, 4), 1 / 3, jnp.float32)
    precision = lax.Precision.HIGHEST, lax.Precision.DEFAULT

    def product(a, b):
        return lax.dot_general(a, b, (ONE, NO_BATCH), precision, preferred_element_type=jnp.float32)

    rewritten = layout.canonical(product, products=True)
    (found,) = [e for e in jax.make_jaxpr(rewritten)(a, b).jaxpr.eqns if e.primitive.name == "dot_general"]
    assert found.params["precision"] == precision[::-1], "as the arrays change places"
    assert [v.aval.dtype for v in found.invars] == [jnp.float32, jnp.bfloat16]
    assert rewritten(a, b).dtype == jnp.float32
    np.testing.assert_allclose(rewritten(a, b), product(a, b), rtol=1e-6)
    assert products(rewritten, a.astype(int), b.astype(int)) == [(ONE, NO_BATCH)]


class Tokens(nn.Module):
    """Dense layers on tokens, within a loop and with a remat too."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(6)(jnp.tanh(nn.Dense(7)(x[..., None])))
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, self.param("w", nn.initializers.normal(), (2, 6, 6)))
        return nn.Dense(3)(x.mean(1))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_step_with_rewritten_products_is_the_same_step(sequential):
    net, rng = Tokens(), np.random.default_rng(0)
    with jax.enable_x64(True):
        x, y = rng.normal(size=(30, 5)), rng.integers(0, 3, 30)
        task = Task(lambda key, h: net.init(key, x[:1]), lambda p, x, h: net.apply(p, x), cross_entropy, optax.adam)
        folds, config = k_fold(30, 3, (0,)), TrainConfig(3, 8, (0,), 3)
        trials = Trials(jax.random.key(0), np.arange(2), np.array([0.01, 0.02]))
        found, barriers = [], []
        for chosen in (Layout(None, 10, sequential, canonical) for canonical in (False, True)):
            members = population.make_population(task, Plan(2, 1, 2, chosen), config, Data(x, y), folds)
            text = population.lowered(members, trials.hyperparameters).as_text()
            barriers.append(text.count("optimization_barrier"))  # remat has some of its own
            (last,) = population.train(members, trials)
            found.append((last.state.params, last.train_loss, last.val))
    assert barriers[0] < barriers[1]
    chex.assert_trees_all_close(*found, rtol=1e-10, atol=1e-10)
