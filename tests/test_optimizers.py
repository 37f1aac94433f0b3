"""The optimizers are torch's published update rules, with L2 added to the gradient, written out here in numpy."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from hw1jax import optimizers

NUM_STEPS = 100
NAMES = optimizers.OPTIMIZERS
OURS = {"adam": optimizers.adam_l2, "sgd": optimizers.sgd_l2, "rmsprop": optimizers.rmsprop_l2}
VALUES = [(0.01, 0.0), (0.01, 0.003), (0.002, 0.1)]  # learning rate, L2


def adam(p, gradient, learning_rate, l2):
    """torch.optim.Adam(lr=learning_rate, weight_decay=l2), as its documentation writes it."""
    m = v = 0.0
    for t in range(1, NUM_STEPS + 1):
        g = gradient(p, t - 1) + l2 * p
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        m_hat = m / (1 - 0.9**t)
        v_hat = v / (1 - 0.999**t)
        p = p - learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        yield p


def sgd(p, gradient, learning_rate, l2):
    """torch.optim.SGD(lr=learning_rate, weight_decay=l2)."""
    for t in range(1, NUM_STEPS + 1):
        g = gradient(p, t - 1) + l2 * p
        p = p - learning_rate * g
        yield p


def rmsprop(p, gradient, learning_rate, l2):
    """torch.optim.RMSprop(lr=learning_rate, weight_decay=l2), whose alpha is 0.99."""
    v = 0.0
    for t in range(1, NUM_STEPS + 1):
        g = gradient(p, t - 1) + l2 * p
        v = 0.99 * v + (1 - 0.99) * g**2
        p = p - learning_rate * g / (np.sqrt(v) + 1e-8)
        yield p


RULES = {"adam": adam, "sgd": sgd, "rmsprop": rmsprop}


def problem():
    """Parameters (weights, biases, a scalar, one nested), and the noise of their gradients at each step.

    The gradients of "tiny" are as small as eps: where eps stands decides its steps. Those of "still" are 0.
    """
    rng = np.random.default_rng(0)
    params = {
        "layer": {"weights": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
        "scalar": rng.normal(size=()),
        "tiny": 1e-7 * rng.normal(size=5),
        "still": np.zeros(2),
    }
    scale = {"layer": {"weights": 1.0, "bias": 10.0}, "scalar": 0.1, "tiny": 1e-8, "still": 0.0}
    noise = jax.tree.map(lambda p, s: s * rng.normal(size=(NUM_STEPS, *p.shape)), params, scale)
    return params, noise


def expected(name, learning_rate, l2):
    """The parameters after each step, by the rule: like the parameters with a leading [step] axis."""
    params, noise = problem()

    def run(p, noise):
        return np.stack(list(RULES[name](p, lambda p, t: 0.5 * p + noise[t], learning_rate, l2)))

    with np.errstate(invalid="raise"):
        return jax.tree.map(run, params, noise)


@lru_cache  # one compiled program for each optimizer, as other values are not another program
def program(make):
    """(params, noise, *scalars) -> the parameters after each step, by an optax transformation made of the scalars."""

    def run(params, noise, *scalars):
        optimizer = make(*scalars)

        def step(carry, noise):
            params, state = carry
            gradients = jax.tree.map(lambda p, n: 0.5 * p + n, params, noise)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return lax.scan(step, (params, optimizer.init(params)), noise)[1]

    return run, jax.jit(run)


def trajectory(make, *scalars):
    params, noise = jax.tree.map(jnp.asarray, problem())
    return program(make)[1](params, noise, *(jnp.asarray(s) for s in scalars))


def assert_trees_close(actual, desired, tolerance):
    for path, leaf in jax.tree.leaves_with_path(desired):
        found = dict(jax.tree.leaves_with_path(actual))[path]
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, leaf, rtol=tolerance, atol=tolerance, err_msg=str(path))


@pytest.mark.parametrize("learning_rate, l2", VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_is_torchs_rule_for_a_hundred_steps(name, learning_rate, l2):
    with jax.enable_x64(True):
        actual = trajectory(OURS[name], learning_rate, l2)
        assert_trees_close(actual, expected(name, learning_rate, l2), 1e-9)


@pytest.mark.parametrize("learning_rate, l2", VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_the_chosen_optimizer_is_torchs_rule_as_well(name, learning_rate, l2):
    with jax.enable_x64(True):
        actual = trajectory(optimizers.chosen_l2, NAMES.index(name), learning_rate, l2)
        assert_trees_close(actual, expected(name, learning_rate, l2), 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_chosen_optimizer_equals_the_one_of_that_name(name):
    with jax.enable_x64(True):
        chosen = trajectory(optimizers.chosen_l2, NAMES.index(name), 0.01, 0.003)
        assert_trees_close(chosen, trajectory(OURS[name], 0.01, 0.003), 1e-9)


def test_each_trial_of_a_program_has_the_optimizer_and_the_values_of_its_own():
    trials = [(name, *values) for values in VALUES for name in NAMES]
    numbers = np.array([NAMES.index(name) for name, *_ in trials])
    with jax.enable_x64(True):
        rates, l2s = (jnp.asarray(column, jnp.float64) for column in list(zip(*trials, strict=True))[1:])
        run, _ = program(optimizers.chosen_l2)
        together = jax.jit(jax.vmap(partial(run, *jax.tree.map(jnp.asarray, problem()))))(numbers, rates, l2s)
        for i, trial in enumerate(trials):
            assert_trees_close(jax.tree.map(lambda a, i=i: a[i], together), expected(*trial), 1e-9)


def test_other_values_are_not_another_program():
    traces = []
    params = {"weights": jnp.ones((2, 2))}

    @jax.jit
    def first_step(optimizer, learning_rate, l2):
        traces.append(1)
        made = optimizers.chosen_l2(optimizer, learning_rate, l2)
        named = [OURS[name](learning_rate, l2) for name in NAMES]
        return [o.update(params, o.init(params), params)[0] for o in (made, *named)]

    results = [first_step(np.int32(n), *map(np.float32, (r, l2))) for n, r, l2 in [(0, 0.1, 0.0), (1, 0.2, 0.5)]]
    assert len(traces) == 1
    assert not np.array_equal(results[0][1]["weights"], results[1][1]["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("make", [optimizers.sgd_l2, partial(optimizers.chosen_l2, 1)])
def test_l2_pulls_at_every_parameter_biases_included_and_python_numbers_will_do(make):
    params = {"weights": jnp.full((2, 2), 3.0), "bias": jnp.full(2, -2.0), "scalar": jnp.array(4.0)}
    optimizer = make(0.5, 0.25)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    for update, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(update, -0.5 * 0.25 * p)


@pytest.mark.parametrize("make", [optimizers.adam_l2, partial(optimizers.chosen_l2, 0)])
def test_l2_is_coupled(make):
    """Adam normalises the decay with the gradient: a first step is as long as the learning rate, whatever L2."""
    params = {"bias": jnp.array([1.0, -3.0])}
    for l2 in (0.01, 0.1):
        optimizer = make(0.5, l2)
        updates, _ = optimizer.update({"bias": jnp.zeros(2)}, optimizer.init(params), params)
        np.testing.assert_allclose(updates["bias"], [-0.5, 0.5], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [*OURS.values(), *(partial(optimizers.chosen_l2, n) for n in range(3))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_trained_keeps_its_type_whatever_that_of_the_scalars(make, dtype):
    with jax.enable_x64(True):
        params = {"weights": jnp.ones((2, 2), dtype), "bias": jnp.ones(2, dtype)}
        optimizer = make(jnp.float64(0.1), jnp.float64(0.01))
        state = optimizer.init(params)
        updates, after = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        if make in OURS.values():  # optax's last link lets a wide learning rate widen the update, not the parameters
            updates = optax.apply_updates(params, updates)
        for before, now in ((params, updates), (state, after)):
            assert jax.tree.map(lambda leaf: leaf.dtype, now) == jax.tree.map(lambda leaf: leaf.dtype, before)
