"""Metrics of a whole held-out part: no mean of one value an example, but a function of all examples together.

Each is equal to scikit-learn's or scipy's, takes weights, and doesn't change with examples of weight 0. It is NaN where
y alone leaves it undefined, as the area under the ROC curve of a single class.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hw1jax.core.losses import Array, unit_of
from hw1jax.core.tasks import Whole
from hw1jax.core.training import in_float32

LARGEST = 2.0**50  # an error in the unit of y's deviation; its square is finite in float32


def whole(function: Callable[[Any, Any, Any], Any]) -> Whole:
    """A metric of a whole held-out part, for `metrics=`: `metrics={"auc": hw.whole(f)}`.

    Args:
      function: (outputs [n, ...], y [n, ...], weights float [n]) -> scalar, of `jax.numpy`. Examples of weight 0 must
        not change it: they fill up batches. Without weights of the samples, all others have weight 1. NaN in a fold
        whatever the outputs are: the metric is undefined there, and the fold doesn't count in its mean.
    """
    return Whole(function)


# Of classes. `outputs` are logits: float [n, class], or [n] or [n, 1] for two classes; `y` int or bool [n].


@whole
def roc_auc(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Area under the ROC curve, of more than two classes the mean over one-vs-rest; NaN if a class has no example.

    Outputs float [n, class], or [n] or [n, 1] for two classes, before softmax; y int or bool [n]. scikit-learn's
    `roc_auc_score(multi_class="ovr")`.
    """
    return _one_vs_rest(_area_under_roc, outputs, y, weights)


@whole
def average_precision(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Average precision, of more than two classes the mean over one-vs-rest; NaN if a class has no example.

    Arguments as of `roc_auc`. scikit-learn's `average_precision_score`.
    """
    return _one_vs_rest(_average_precision, outputs, y, weights)


@whole
def f1(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """F1 score of class 1 of two; NaN if it has no example.

    Arguments as of `roc_auc`. scikit-learn's `f1_score`.
    """
    hits, predicted, true = _counts(outputs, y, weights)
    if len(true) != 2:
        raise ValueError(f"f1 takes two classes, got outputs {outputs.shape}: give f1_macro, say")
    return jnp.where(true[1] > 0, _f1(hits, predicted, true)[1], jnp.nan)


@whole
def f1_macro(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Mean over the classes of their F1 scores, without those that are neither in y nor predicted.

    Arguments as of `roc_auc`. scikit-learn's `f1_score(average="macro")`.
    """
    hits, predicted, true = _counts(outputs, y, weights)
    there = predicted + true > 0
    return jnp.sum(jnp.where(there, _f1(hits, predicted, true), 0)) / jnp.sum(there)


@whole
def f1_micro(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """F1 score of all decisions together, which is the accuracy.

    Arguments as of `roc_auc`. scikit-learn's `f1_score(average="micro")`.
    """
    hits, _, true = _counts(outputs, y, weights)
    return jnp.sum(hits) / jnp.sum(true)


@whole
def f1_weighted(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Mean over the classes of their F1 scores, weighted by their shares of y.

    Arguments as of `roc_auc`. scikit-learn's `f1_score(average="weighted")`.
    """
    hits, predicted, true = _counts(outputs, y, weights)
    return jnp.sum(_f1(hits, predicted, true) * true) / jnp.sum(true)


@whole
def balanced_accuracy(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Mean over the classes of y of the share that is predicted right.

    Arguments as of `roc_auc`. scikit-learn's `balanced_accuracy_score`.
    """
    hits, _, true = _counts(outputs, y, weights)
    return jnp.sum(_ratio(hits, true)) / jnp.sum(true > 0)


def _one_vs_rest(area: Callable[[Any, Any, Any], jax.Array], outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Mean over the classes of area(scores [n], weights [n] of the class, weights [n] of the rest)."""
    logits = _logits(outputs, y)
    if logits.shape[1] <= 2:
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        known = _are_classes(y, weights, 2) | jnp.all((jnp.abs(y) == 1) | (weights == 0))  # 0 and 1, or -1 and 1
        return jnp.where(known, area(scores, *_of_class(y == 1, weights)), jnp.nan)
    classes = jnp.arange(logits.shape[1])

    def one(k: jax.Array) -> jax.Array:
        # The logarithm of the odds is in the order of softmax, and doesn't round to equal values near 1.
        others = jnp.where(classes[None] == k, -jnp.inf, logits)
        return area(logits[:, k] - jax.nn.logsumexp(others, axis=1), *_of_class(y == k, weights))

    return jnp.where(_are_classes(y, weights, len(classes)), jnp.mean(lax.map(one, classes)), jnp.nan)


def _are_classes(y: Array, weights: Array, num_classes: int) -> jax.Array:
    """Whether y are indices of classes, where they count; else every score would be that of other classes."""
    y = jnp.asarray(y)
    y = y.astype(jnp.promote_types(y.dtype, jnp.int32))  # the number of classes may overflow y's dtype
    return jnp.all(((y >= 0) & (y < num_classes)) | (weights == 0))


def _logits(outputs: Array, y: Array) -> jax.Array:
    logits = jnp.asarray(outputs if outputs.ndim > 1 else outputs[:, None])
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        raise ValueError(f"takes outputs [n, class] and y [n], one class an example, got {outputs.shape}, y {y.shape}")
    return in_float32(logits)


def _of_class(is_class: Array, weights: Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(is_class, weights, 0), jnp.where(is_class, 0, weights)


def _area_under_roc(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """The share of pairs in which the positive example has the higher score; ties count half. NaN without pairs."""
    ordered, positive, negative = lax.sort((scores, positive, negative), num_keys=1)
    below, up_to = _sums_of_ties(ordered, negative)
    # In two steps, as the product of the sums may overflow.
    share = jnp.sum(positive * ((below + up_to) / 2 / jnp.sum(negative)))
    return share / jnp.sum(positive)


def _average_precision(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """The mean over the positive examples of the precision at their score's threshold."""
    ordered, positive, negative = lax.sort((-scores, positive, negative), num_keys=1)
    found, wrong = _sums_of_ties(ordered, positive)[1], _sums_of_ties(ordered, negative)[1]
    return jnp.sum(positive * _ratio(found, found + wrong)) / jnp.sum(positive)


def _sums_of_ties(ordered: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sums of the values at lower keys, at lower and equal keys), [n] each; `ordered` keys, values at least 0."""
    sums = jnp.cumsum(values)
    differ, edge = ordered[1:] != ordered[:-1], jnp.ones(1, bool)
    begins, ends = jnp.concatenate([edge, differ]), jnp.concatenate([differ, edge])
    before = jnp.concatenate([jnp.zeros(1, sums.dtype), sums[:-1]])
    below = lax.cummax(jnp.where(begins, before, 0))
    return below, lax.cummin(jnp.where(ends, sums, jnp.inf), reverse=True)


def _counts(outputs: Array, y: Array, weights: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights (rightly predicted, predicted, true) of each class, [class] each."""
    logits = _logits(outputs, y)
    if logits.shape[1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
    classes = jnp.arange(logits.shape[1])
    predicted, true = (k[:, None] == classes[None] for k in (jnp.argmax(logits, axis=1), jnp.asarray(y, classes.dtype)))

    known = _are_classes(y, weights, len(classes))

    def total(chosen: jax.Array) -> jax.Array:
        return jnp.where(known, jnp.sum(jnp.where(chosen, weights[:, None], 0), axis=0), jnp.nan)

    return total(predicted & true), total(predicted), total(true)


def _f1(hits: jax.Array, predicted: jax.Array, true: jax.Array) -> jax.Array:
    return _ratio(2 * hits, predicted + true)


def _ratio(part: jax.Array, total: jax.Array) -> jax.Array:
    """part / total; 0 where the total is 0."""
    return jnp.where(total > 0, part / jnp.where(total > 0, total, 1), 0)


# Of numbers. `outputs` and `y` are float [n] or [n, output], in the same unit.


@whole
def r2(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Coefficient of determination, the mean over the outputs; NaN of a single example.

    Outputs and y: float [n, output] or [n]. scikit-learn's `r2_score`: of a constant y it is 1 if all outputs are
    right, else 0.
    """
    outputs, y = _columns(outputs, y)
    left, centred = outputs - y, _centred(y, weights)
    unit = unit_of(_largest(centred, weights))[None]
    errors = jnp.where(jnp.isfinite(left), jnp.clip(left / unit, -LARGEST, LARGEST), left)
    squared, variance = (_mean(jnp.square(values), weights) for values in (errors, centred / unit))
    each = jnp.where(variance > 0, 1 - squared / jnp.where(variance > 0, variance, 1), _largest(left, weights) == 0)
    return jnp.where(jnp.sum(weights > 0) > 1, jnp.mean(each), jnp.nan)


@whole
def rmse(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Root of the mean squared error, the mean over the outputs.

    Arguments as of `r2`. scikit-learn's `root_mean_squared_error`.
    """
    outputs, y = _columns(outputs, y)
    unit = unit_of(_largest(outputs - y, weights))
    return jnp.mean(jnp.sqrt(_mean(jnp.square((outputs - y) / unit[None]), weights)) * unit)


@whole
def spearman(outputs: Array, y: Array, weights: Array) -> jax.Array:
    """Spearman's rank correlation, the mean over the outputs; NaN if y or the outputs are constant.

    Arguments as of `r2`. scipy's `spearmanr`; an example of weight 2 counts as two examples.
    """
    outputs, y = _columns(outputs, y)

    def of_column(column: tuple[jax.Array, jax.Array]) -> jax.Array:
        ordered, own, others = lax.sort((column[0], column[1], jnp.asarray(weights)), num_keys=1)
        ranks = _ranks(ordered, others)
        ordered, ranks, own_weights = lax.sort((own, ranks, others), num_keys=1)
        a, b = (_centred(r[:, None], own_weights)[:, 0] for r in (ranks, _ranks(ordered, own_weights)))
        a, b = (r / jnp.max(jnp.abs(r)) for r in (a, b))  # squares of ranks may be large
        moments = [jnp.sum(own_weights * product) for product in (a * b, a * a, b * b)]
        return moments[0] / jnp.sqrt(moments[1] * moments[2])

    return jnp.mean(lax.map(of_column, (outputs.T, y.T)))


def _columns(outputs: Array, y: Array) -> tuple[jax.Array, jax.Array]:
    """Both as [n, output]."""
    if outputs.shape != y.shape or outputs.ndim not in (1, 2):
        raise ValueError(f"takes y of the outputs' shape [n, output] or [n], got {outputs.shape}, y {y.shape}")
    outputs, y = (in_float32(a if a.ndim == 2 else a[:, None]) for a in (jnp.asarray(outputs), jnp.asarray(y)))
    return outputs, y.astype(outputs.dtype)


def _mean(values: jax.Array, weights: Array) -> jax.Array:
    """Weighted mean over the examples, [output]."""
    return jnp.sum(values * weights[:, None], axis=0) / jnp.sum(weights)


def _largest(values: jax.Array, weights: Array) -> jax.Array:
    """The largest absolute value of the examples that count, [output]."""
    return jnp.max(jnp.where(weights[:, None] > 0, jnp.abs(values), 0), axis=0)


def _centred(values: jax.Array, weights: Array) -> jax.Array:
    """The values without their weighted mean; exactly 0 for constant ones."""
    from_one = values - values[jnp.argmax(weights)][None]  # large values that differ little lose nothing
    return from_one - _mean(from_one, weights)[None]


def _ranks(ordered: jax.Array, weights: jax.Array) -> jax.Array:
    """Ranks of ordered values; ties share the mean of theirs."""
    below, up_to = _sums_of_ties(ordered, weights)
    return (below + up_to) / 2
