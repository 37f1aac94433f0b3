"""The optimizers equal torch's published update rules with L2 added to the gradient, written here in numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
from jax import lax

from hw1jax.core import optimizers

NUM_STEPS = 100
NAMES = optimizers.OPTIMIZERS
OURS = {"adam": optimizers.adam_l2, "sgd": optimizers.sgd_l2, "rmsprop": optimizers.rmsprop_l2}
CHOSEN = {f"chosen {name}": partial(optimizers.chosen_l2, i) for i, name in enumerate(NAMES)}
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


@pytest.mark.parametrize("name", [*NAMES, "chosen"])
def test_each_trial_of_a_program_has_torchs_rule_and_the_values_of_its_own_for_a_hundred_steps(name):
    names = NAMES if name == "chosen" else (name,)
    trials = [(own, *values) for values in VALUES for own in names]

    def run(params, noise, number, *values):
        optimizer = optimizers.chosen_l2(number, *values) if name == "chosen" else OURS[name](*values)

        def step(carry, noise):
            params, state = carry
            gradients = jax.tree.map(lambda p, n: 0.5 * p + n, params, noise)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return lax.scan(step, (params, optimizer.init(params)), noise)[1]

    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, problem())
        numbers = jnp.array([NAMES.index(own) for own, *_ in trials])
        values = (jnp.array(column) for column in list(zip(*trials, strict=True))[1:])
        together = plain.compiled(jax.vmap(partial(run, *given)))(numbers, *values)
    for i, trial in enumerate(trials):
        leaves = jax.tree.leaves_with_path(expected(*trial))
        for (path, leaf), found in zip(leaves, jax.tree.leaves(together), strict=True):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found[i], leaf, rtol=1e-9, atol=1e-9, err_msg=f"{trial} {path}")


@pytest.mark.parametrize("name", [*OURS, *CHOSEN])
def test_l2_is_coupled_at_every_parameter_biases_included_and_python_numbers_will_do(name):
    """Adam and RMSprop normalise the decay with the gradient: a first step's length doesn't depend on L2."""
    params = {"weights": jnp.full((2, 2), 3.0), "bias": jnp.full(2, -2.0), "scalar": jnp.array(4.0)}

    @plain.compiled
    def first_updates(params):
        optimizers = [(OURS | CHOSEN)[name](0.5, l2) for l2 in (0.25, 0.5)]
        still = jax.tree.map(jnp.zeros_like, params)
        return [optimizer.update(still, optimizer.init(params), params)[0] for optimizer in optimizers]

    for l2, updates in zip((0.25, 0.5), first_updates(params), strict=True):
        for update, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
            length = {"adam": np.sign(p), "sgd": l2 * p, "rmsprop": np.sign(p) / np.sqrt(1 - 0.99)}
            np.testing.assert_allclose(update, -0.5 * length[name.removeprefix("chosen ")], rtol=1e-5)


@pytest.mark.parametrize("name", [*OURS, *CHOSEN])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_trained_keeps_its_type_whatever_that_of_the_scalars(name, dtype):
    params = {"weights": jnp.ones((2, 2), dtype), "bias": jnp.ones(2, dtype)}

    def first_step(params, *scalars):
        optimizer = (OURS | CHOSEN)[name](*scalars)
        state = optimizer.init(params)
        updates, after = optimizer.update(params, state, params)
        if name in OURS:  # optax's last link lets a wide learning rate widen the update, not the parameters
            updates = optax.apply_updates(params, updates)
        return (params, state), (updates, after)

    with jax.enable_x64(True):
        before, now = jax.eval_shape(first_step, params, jnp.float64(0.1), jnp.float64(0.01))
    assert jax.tree.map(lambda leaf: leaf.dtype, now) == jax.tree.map(lambda leaf: leaf.dtype, before)
