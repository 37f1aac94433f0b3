"""Losses and metrics, one value an example: reductions belong to whoever knows which examples are real."""

import jax
import jax.numpy as jnp
import optax


def squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Squared error of each example, averaged over its outputs.

    Args:
      outputs: float [batch, outputs], in the unit of `y`.
      y: float [batch, outputs].

    Returns:
      float [batch], in the unit of `y` squared; its mean over the batch is torch's `MSELoss`.
    """
    return jnp.mean(jnp.square(outputs - y), axis=-1)


def cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Cross entropy in nats of each example between softmax(outputs) and the class index `y`.

    Args:
      outputs: float [batch, classes], unnormalised log-probabilities.
      y: int [batch].

    Returns:
      float [batch]; its mean over the batch is torch's `CrossEntropyLoss`.
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y)


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum of `values` where `mask` holds (both [batch]); what is masked out can't leak, not even as NaN."""
    return jnp.sum(jnp.where(mask, values, 0))
