"""Cross-validation with plain Python loops: one member after another, batches of real samples only.

It shares with the package only the order of samples and the derivation of keys.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hw1jax.core.folds import PADDING, k_fold, minibatches
from hw1jax.core.population import TRAINING

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it runs a few times


@pytest.fixture(autouse=True)
def float64():
    """Of each file that imports it. Programs are compiled without care, in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


class Net(NamedTuple):
    """A network and how it is trained, without a word of padding."""

    init: Callable[..., Any]  # (key, hyperparameters) -> (params, state)
    forward: Callable[..., Any]  # (params, state, x, hyperparameters, key, train) -> (outputs, state)
    loss: Callable[..., Any]  # (outputs, y) -> [batch]
    optimizer: Callable[..., optax.GradientTransformation]  # (hyperparameters, number of steps)


class Found(NamedTuple):
    """As `cross_validate` returns them, [trial, fold, ...]; NaN after a member has stopped."""

    train_loss: np.ndarray
    val_loss: np.ndarray
    params: dict[tuple[int, int], Any]  # by (trial, fold), of the best epoch where some count
    state: dict[tuple[int, int], Any]
    epoch: np.ndarray


def cross_validate(
    net,
    hyperparameters,
    x,
    y,
    *,
    key,
    num_folds=3,
    num_epochs,
    batch_size,
    weights=None,
    early_stopping=None,
    folds=None,
    averaging=None,
) -> Found:
    """Trains the members; the options are those of `hw1jax.cross_validate`, with weights as an array."""
    num_samples = len(jax.tree.leaves(y)[0])
    weights = np.ones(num_samples) if weights is None else weights
    seed = tuple(int(word) for word in jax.random.key_data(key))
    folds = folds or k_fold(num_samples, num_folds, seed)
    order = minibatches(folds, range(num_epochs), batch_size=batch_size, seed=seed)

    def at(index):
        return *(jax.tree.map(lambda a: jnp.asarray(a[index]), tree) for tree in (x, y)), jnp.asarray(weights[index])

    def objective(params, state, batch, h, key):
        outputs, new_state = net.forward(params, state, batch[0], h, key, True)
        return jnp.sum(batch[2] * net.loss(outputs, batch[1])) / jnp.sum(batch[2]), new_state

    @partial(compiled, static_argnums=0)
    def step(num_steps, params, opt_state, state, batch, h, key):
        (value, state), gradient = jax.value_and_grad(objective, has_aux=True)(params, state, batch, h, key)
        rule = optax.with_extra_args_support(net.optimizer(h, num_steps))
        updates, opt_state = rule.update(gradient, opt_state, params, value=value)
        return optax.apply_updates(params, updates), opt_state, state, value

    @compiled
    def validate(params, state, batch, h):
        outputs, _ = net.forward(params, state, batch[0], h, None, False)
        return jnp.sum(batch[2] * net.loss(outputs, batch[1])) / jnp.sum(batch[2])

    @partial(compiled, static_argnums=0)
    def init(num_steps, key, h):
        params, state = net.init(key, h)
        return params, state, net.optimizer(h, num_steps).init(params)

    num_trials = len(jax.tree.leaves(hyperparameters)[0])
    found = Found(
        *np.full((2, num_trials, len(folds), num_epochs), np.nan), {}, {}, np.full((num_trials, len(folds)), -1)
    )
    for t, f in np.ndindex(found.epoch.shape):
        h = jax.tree.map(lambda a: a[t], hyperparameters)  # noqa: B023
        num_steps = num_epochs * -(-len(folds[f].train) // batch_size)
        params, state, opt_state = init(num_steps, jax.random.fold_in(jax.random.fold_in(key, t), f), h)
        random = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, TRAINING), t), f)
        lowest, since, average, num_updates = np.inf, 0, params, 0
        for e in range(num_epochs):
            totals = []
            for s, padded in enumerate(order[f, e]):
                index = padded[padded != PADDING]
                if not weights[index].any():
                    continue
                step_key = jax.random.fold_in(jax.random.fold_in(random, e), s)
                params, opt_state, state, value = step(num_steps, params, opt_state, state, at(index), h, step_key)
                decay = min(np.float32(averaging or 0), np.float32(1 + num_updates) / np.float32(10 + num_updates))
                average = jax.tree.map(
                    lambda a, p: decay * np.asarray(a) + (1 - decay) * np.asarray(p),  # noqa: B023
                    average,
                    params,
                )
                num_updates += 1
                totals.append((float(value) * weights[index].sum(), weights[index].sum()))
            found.train_loss[t, f, e] = np.divide(*np.sum(totals, axis=0))
            found.val_loss[t, f, e] = validate(average, state, at(folds[f].validation), h)
            since += 1
            if early_stopping is None or found.val_loss[t, f, e] < lowest:
                lowest, since, found.epoch[t, f] = found.val_loss[t, f, e], 0, e
                found.params[t, f], found.state[t, f] = average, state
            if since == early_stopping:
                break
    return found


def exact(key, tree):
    """Parameters of these shapes that are multiples of 1/64, which no way to compile rounds."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    drawn = jnp.split((jax.random.bits(key, (ends[-1],), np.uint8) >> 2).astype(float) / 64 - 0.5, ends[:-1])
    return jax.tree.unflatten(structure, [d.reshape(leaf.shape) for d, leaf in zip(drawn, leaves, strict=True)])


def assert_close(found, expected, tolerance=1e-10):
    """|found - expected| <= tolerance * max(1, |expected|), and NaN in the same places."""
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    error = np.nan_to_num(np.abs(found - expected) / np.maximum(1, np.abs(expected)))
    assert error.max(initial=0) <= tolerance, f"{error.max()} > {tolerance}"


def numbers(leaf):
    """An array's numbers; those of typed PRNG keys."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def assert_equal(result, expected: Found, tolerance=1e-10):
    """That a `CrossValidation` has the losses, parameters and states of the plain way, and that its members differ."""
    assert_close(result.train_loss, expected.train_loss, tolerance)
    assert_close(result.val_loss, expected.val_loss, tolerance)
    for member in expected.params:
        for found, plain in ((result.params, expected.params), (result.state, expected.state)):
            own = jax.tree.map(lambda a: a[member], found)  # noqa: B023
            jax.tree.map(lambda a, b: assert_close(numbers(a), numbers(b), tolerance), own, plain[member])
    last = expected.val_loss[:, :, 0]
    assert len(np.unique(last)) == last.size
