"""Adam, SGD and RMSprop with coupled L2, as optax transformations.

Coupled: `l2 * parameter` is added to the gradient before the optimizer sees it, on every parameter, biases included.
This is what `torch.optim` calls `weight_decay`; `optax.adamw` decays the weights apart from the gradient instead.
Every scalar may be a traced array, so that trials with different values share one compiled program.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = ("adam", "sgd", "rmsprop")  # of `chosen_l2`

Scalar = float | jax.Array


def adam_l2(learning_rate: Scalar, l2: Scalar) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) with b1 = 0.9, b2 = 0.999, eps = 1e-8, and coupled L2."""
    return _with_l2(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), learning_rate, l2)


def sgd_l2(learning_rate: Scalar, l2: Scalar) -> optax.GradientTransformation:
    """Gradient descent without momentum, with coupled L2."""
    return _with_l2(optax.identity(), learning_rate, l2)


def rmsprop_l2(learning_rate: Scalar, l2: Scalar) -> optax.GradientTransformation:
    """RMSprop (Tieleman & Hinton 2012) with decay 0.99 and eps = 1e-8 outside the root, as in torch, and coupled L2."""
    return _with_l2(optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False), learning_rate, l2)


def _with_l2(rule: optax.GradientTransformation, learning_rate: Scalar, l2: Scalar) -> optax.GradientTransformation:
    def decay(gradients: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda g, p: g + _like(p, l2 * p), gradients, params)

    return optax.chain(optax.stateless(decay), rule, optax.scale_by_learning_rate(learning_rate))


def _like(leaf: jax.Array, value: jax.Array) -> jax.Array:
    """Casts to the leaf's dtype: wider scalars, as under x64, must not widen the parameters."""
    return value.astype(leaf.dtype)


class ChosenState(NamedTuple):
    num_updates: jax.Array  # int32 [], so far
    mean: optax.Updates  # like the parameters: decayed mean of the gradients
    square: optax.Updates  # like the parameters: decayed mean of their squares


def chosen_l2(
    optimizer: int | jax.Array, learning_rate: Scalar, l2: Scalar, *, names: Sequence[str] = OPTIMIZERS
) -> optax.GradientTransformation:
    """`adam_l2`, `sgd_l2` or `rmsprop_l2`, chosen by a number that may be traced.

    The three are one rule, step = mean / root of the mean square, with other constants: RMSprop keeps no memory in
    the mean and corrects no bias, SGD in addition divides by 1. So every member runs the same instructions, whichever
    optimizer it has, where a `lax.switch` under `vmap` would run all three.

    Args:
      optimizer: int [], an index into `names`: of a `Choice`, its place among the values.
      learning_rate: float [].
      l2: float [].
      names: of "adam", "sgd" and "rmsprop", the values of the `Choice` in their order.

    Raises:
      ValueError: a name is none of these.
    """
    if not names or set(names).difference(OPTIMIZERS):
        raise ValueError(f"names= must be of {', '.join(OPTIMIZERS)}, got {names!r}")
    if tuple(names) != OPTIMIZERS[: len(names)]:
        optimizer = jnp.asarray([OPTIMIZERS.index(name) for name in names])[optimizer]
    b1 = jnp.asarray((0.9, 0.0, 0.0))[optimizer]
    b2 = jnp.asarray((0.999, 0.0, 0.99))[optimizer]
    is_adam, is_sgd = jnp.asarray(optimizer) == 0, jnp.asarray(optimizer) == 1

    def init(params: optax.Params) -> ChosenState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ChosenState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ChosenState]:
        count = state.num_updates + 1
        mean_correction = jnp.where(is_adam, 1 - b1**count, 1)
        square_correction = jnp.where(is_adam, 1 - b2**count, 1)
        gradients = jax.tree.map(lambda g, p: _like(p, g + l2 * p), updates, params)
        mean = jax.tree.map(lambda m, g: _like(m, b1 * m + (1 - b1) * g), state.mean, gradients)
        square = jax.tree.map(lambda s, g: _like(s, b2 * s + (1 - b2) * g * g), state.square, gradients)

        def step(m: jax.Array, s: jax.Array) -> jax.Array:
            divisor = jnp.where(is_sgd, 1, jnp.sqrt(s / square_correction) + 1e-8)
            return _like(m, -learning_rate * (m / mean_correction) / divisor)

        return jax.tree.map(step, mean, square), ChosenState(count, mean, square)

    return optax.GradientTransformation(init, update)
