"""Losses and metrics, one value an example; the caller, which knows the padding, reduces them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array | np.ndarray


def squared_error(outputs: Array, y: Array) -> jax.Array:
    """Squared error of each example, averaged over its outputs.

    Args:
      outputs: float [batch, outputs], in the unit of `y`.
      y: float [batch, outputs].

    Returns:
      float [batch], in the unit of `y` squared; its mean over the batch is torch's `MSELoss`.

    Raises:
      ValueError: the shapes differ, or are not [batch, outputs].
    """
    if outputs.shape != y.shape or outputs.ndim < 2:
        raise ValueError(f"squared error takes y of the outputs' shape [batch, n], got {outputs.shape}, y {y.shape}")
    return jnp.mean(jnp.square(_wide(outputs) - y), axis=-1)


def cross_entropy(outputs: Array, y: Array) -> jax.Array:
    """Cross entropy in nats of each example between softmax(outputs) and the class index `y`.

    Args:
      outputs: float [batch, classes], unnormalised log-probabilities.
      y: int [batch], 0 to classes - 1.

    Returns:
      float [batch]; its mean over the batch is torch's `CrossEntropyLoss`. NaN where there is no class `y`.

    Raises:
      TypeError: `y` is not of an integer type.
      ValueError: `y` is not one class an example, or there is a single output.
    """
    _check_classes("cross entropy", outputs, y)
    if outputs.shape[-1] == 1:
        raise ValueError("cross entropy takes an output of each class, got one: give two, or optax's sigmoid loss")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"cross entropy takes classes as integers, got y of {y.dtype}: give y.astype(int)")
    y = y.astype(jnp.promote_types(y.dtype, jnp.int32))  # the number of classes may overflow y's dtype
    y = jnp.where(y < 0, outputs.shape[-1], y)  # -1 would be the last class; a class too high gives NaN
    return optax.losses.softmax_cross_entropy_with_integer_labels(_wide(outputs), y)


def _wide(values: Array) -> Array:
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def unit_of(largest: jax.Array) -> jax.Array:
    """The highest power of two up to the largest of some absolute values; 1 if that is 0 or not finite.

    In this unit their squares neither overflow nor become 0 in float32, and no bit of a value changes.
    """
    _, exponent = jnp.frexp(largest)
    return jnp.where((largest > 0) & jnp.isfinite(largest), jnp.ldexp(jnp.ones_like(largest), exponent - 1), 1)


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum of `values` where `mask` is True, both [batch]; a NaN elsewhere has no effect."""
    return jnp.sum(jnp.where(mask, values, 0))


def accuracy(outputs: Array, y: Array) -> jax.Array:
    """Float [batch]: 1 if the largest output ([batch, classes]) is that of the class `y` (int [batch]), else 0.

    A single output ([batch, 1]) is the log-odds of class 1 of two; NaN where y is neither 0 nor 1.
    """
    _check_classes("accuracy", outputs, y)
    if outputs.shape[-1] == 1:
        right = ((outputs[..., 0] > 0) == y).astype(jnp.result_type(float))
        return jnp.where((y == 0) | (y == 1), right, jnp.nan)
    return (jnp.argmax(outputs, axis=-1) == y).astype(jnp.result_type(float))


def _check_classes(name: str, outputs: Array, y: Array) -> None:
    if y.shape != outputs.shape[:-1]:
        one_hot = ", one-hot: give y.argmax(axis=-1)" if y.shape == outputs.shape else ""
        raise ValueError(f"{name} takes one class an example, got outputs {outputs.shape}, y {y.shape}{one_hot}")
