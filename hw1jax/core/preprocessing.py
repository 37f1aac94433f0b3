"""Preprocessing for tables of numbers, fitted on each fold's training part: `standardize`, `impute_mean`, `quantiles`.

Each is a `Fitted` of arrays float or int [n, ...], or trees of them, and equal to a transformer of scikit-learn.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from hw1jax.core.losses import unit_of
from hw1jax.core.tasks import Fitted
from hw1jax.core.training import in_float32

NUM_QUANTILES = 100
EDGE = 1e-7  # as scikit-learn's: closer to the lowest or highest quantile counts as it
FARTHEST = 5.199337582290661  # the normal quantile of 1 - EDGE

Column = dict[str, jax.Array]  # statistics of one array


def _of_each(
    fit: Callable[[jax.Array, jax.Array], Column],
    transform: Callable[[Column, jax.Array], jax.Array],
    inverse: Callable[[Column, jax.Array], jax.Array] | None = None,
) -> Fitted:
    """A `Fitted` of trees from functions of one array [n, ...] in float32 at least."""

    def fit_all(values: Any, y: Any, weights: jax.Array) -> tuple[Column, ...]:
        return tuple(fit(in_float32(jnp.asarray(leaf)), weights) for leaf in jax.tree.leaves(values))

    def of_all(function: Callable[[Column, jax.Array], jax.Array]) -> Callable[[Any, Any], Any]:
        def apply(statistics: tuple[Column, ...], values: Any) -> Any:
            leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, values))
            return tree.unflatten([function(own, in_float32(a)) for own, a in zip(statistics, leaves, strict=True)])

        return apply

    return Fitted(fit_all, of_all(transform), None if inverse is None else of_all(inverse))


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean over the examples of what isn't NaN; NaN if nothing is."""
    counts = jnp.where(jnp.isnan(values), 0, _over(values, weights))
    first = values[jnp.argmax(counts, axis=0), *jnp.indices(values.shape[1:], sparse=True)]
    from_first = jnp.where(counts > 0, values - first[None], 0)  # large values that differ little lose nothing
    return first + jnp.sum(counts * from_first, axis=0) / jnp.sum(counts, axis=0)


def _over(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weights [n] in the shape of the values [n, ...]."""
    return jnp.broadcast_to(weights.reshape(-1, *[1] * (values.ndim - 1)), values.shape).astype(values.dtype)


def _fit_standardize(values: jax.Array, weights: jax.Array) -> Column:
    mean = _mean(values, weights)
    highest, lowest = (
        extreme(values, axis=0, where=~jnp.isnan(values) & (_over(values, weights) > 0), initial=initial)
        for extreme, initial in ((jnp.max, -jnp.inf), (jnp.min, jnp.inf))
    )
    unit = unit_of(jnp.maximum(highest - mean, mean - lowest))
    scale = jnp.sqrt(_mean(jnp.square((values - mean[None]) / unit[None]), weights)) * unit
    return {"mean": mean, "scale": jnp.where(highest > lowest, scale, 1)}


def _row(statistic: jax.Array) -> jax.Array:
    """A statistic of columns with an axis for the examples; a number is that of any array."""
    return statistic[None] if statistic.ndim else statistic


standardize = _of_each(
    _fit_standardize,
    lambda own, values: (values - _row(own["mean"])) / _row(own["scale"]),
    lambda own, outputs: outputs * _row(own["scale"]) + _row(own["mean"]),
)
"""Mean 0 and standard deviation 1 of each column, as scikit-learn's `StandardScaler`; for `prepare` and `prepare_y`.

Constant columns become 0. NaN stays NaN and doesn't count.
"""

impute_mean = _of_each(
    lambda values, weights: {"mean": _mean(values, weights)},
    lambda own, values: jnp.where(jnp.isnan(values), _row(own["mean"]), values),
)
"""The mean of its column instead of NaN, as scikit-learn's `SimpleImputer`."""


def _places(last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The place of each quantile among ordered values: whole numbers and what is left, in 99ths, [quantile, ...] each.

    `last`: int, the last place. In whole numbers, as ties must not be missed by rounding.
    """
    number, between = jnp.arange(NUM_QUANTILES).reshape(-1, *[1] * last.ndim), NUM_QUANTILES - 1
    rest = number * (last[None] % between)  # the product of number and last may overflow
    return number * (last[None] // between) + rest // between, rest % between


def _fit_quantiles(values: jax.Array, weights: jax.Array) -> Column:
    counted = ~jnp.isnan(values) & (_over(values, weights) > 0)
    ordered = jnp.sort(jnp.where(counted, values, jnp.inf), axis=0)
    last = jnp.sum(counted, axis=0) - 1
    below, rest = _places(last)
    low, high = (jnp.take_along_axis(ordered, jnp.minimum(i, last[None]), axis=0) for i in (below, below + 1))
    share = rest.astype(values.dtype) / (NUM_QUANTILES - 1)
    return {"quantiles": jnp.where(rest > 0, low + share * (high - low), low)}


def _to_normal(own: Column, values: jax.Array) -> jax.Array:
    quantiles, last = own["quantiles"], NUM_QUANTILES - 1
    # By comparing all: a binary search takes XLA much longer to compile. [n, ..., quantile] each.
    ordered, each = jnp.moveaxis(quantiles, 0, -1)[None], values[..., None]
    lower, lower_or_equal = (jnp.sum(compared, axis=-1) for compared in (ordered < each, ordered <= each))
    i = jnp.clip(lower_or_equal, 1, last)
    low, high = (jnp.take_along_axis(quantiles, k, axis=0) for k in (i - 1, i))
    width = jnp.where(high > low, high - low, 1)
    # Among equal quantiles, the middle of their places. From both ends, since a share near 1 is rounded.
    is_one, middle = lower_or_equal > lower, (lower + lower_or_equal - 1) / 2
    below = jnp.where(is_one, middle, i - 1 + (values - low) / width) / last
    above = jnp.where(is_one, last - middle, last - i + (high - values) / width) / last
    tail = ndtri(jnp.clip(jnp.minimum(below, above), 0, 1))
    normal = jnp.clip(jnp.where(below < 0.5, tail, -tail), -FARTHEST, FARTHEST)
    normal = jnp.where(values + EDGE > quantiles[-1:], FARTHEST, normal)
    normal = jnp.where(values - EDGE < quantiles[:1], -FARTHEST, normal)
    return jnp.where(jnp.isnan(values), values, normal)


def _from_normal(own: Column, outputs: jax.Array) -> jax.Array:
    quantiles, place = own["quantiles"], ndtr(outputs) * (NUM_QUANTILES - 1)
    i = jnp.clip(jnp.floor(place).astype(int), 0, NUM_QUANTILES - 2)
    low, high = (jnp.take_along_axis(quantiles, k, axis=0) for k in (i, i + 1))
    return low + (place - i) * (high - low)


quantiles = _of_each(_fit_quantiles, _to_normal, _from_normal)
"""Each column to a normal distribution by its quantiles; for `prepare` and `prepare_y`.

As scikit-learn's `QuantileTransformer(n_quantiles=100, output_distribution="normal", subsample=None)`, for training
parts of at least 100 samples. Samples of weight 0 don't count, all others count alike. NaN stays NaN.
"""
