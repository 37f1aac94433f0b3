"""Splits of the samples into folds, and the order of the training samples in each epoch.

Both are made on the host before any program runs: a permutation inside a compiled loop is a sort.
The order depends on (seed, fold, epoch) alone, so every trial of a fold sees the same batches. That pairs the
comparison between trials, and lets them share the gathered batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

PADDING = -1  # index of a padding example
DEFAULT_FOLDS = 3


class Fold(NamedTuple):
    """One split of the samples."""

    train: np.ndarray  # int [num_train], sample indices
    validation: np.ndarray  # int [num_validation], sample indices


def k_fold(num_samples: int, num_folds: int, seed: Sequence[int]) -> list[Fold]:
    """Shuffled k-fold partition: each sample is held out by exactly one fold; sizes differ by at most one.

    Raises:
      ValueError: fewer than 2 folds, or more folds than samples.
    """
    _check(num_samples, num_folds, seed)
    order = np.random.default_rng([*seed, 0]).permutation(num_samples)
    return _hold_out(np.arange(num_samples) % num_folds, order, num_folds)


def stratified_k_fold(labels: np.ndarray, num_folds: int, seed: Sequence[int]) -> list[Fold]:
    """As `k_fold`, and the folds' counts of each label (`labels`: [num_samples]) differ by at most one as well.

    Dealing the samples out like cards, sorted by label, gives both properties at once.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels must be one value a sample, got an array of shape {labels.shape}")
    _check(len(labels), num_folds, seed)
    order = np.random.default_rng([*seed, 0]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return _hold_out(np.arange(len(labels)) % num_folds, order, num_folds)


def _check(num_samples: int, num_folds: int, seed: Sequence[int]) -> None:
    if not isinstance(seed, Iterable):
        raise TypeError(f"seed= must be a tuple of whole numbers, such as ({seed},), got {type(seed).__name__}")
    if not 2 <= num_folds <= num_samples:
        raise ValueError(f"the number of folds must lie between 2 and the {num_samples} samples, got {num_folds}")


def _hold_out(fold_of_place: np.ndarray, order: np.ndarray, num_folds: int) -> list[Fold]:
    return [Fold(np.sort(order[fold_of_place != i]), np.sort(order[fold_of_place == i])) for i in range(num_folds)]


def check(folds: Sequence[Sequence[np.ndarray]], num_samples: int) -> list[Fold]:
    """Converts the user's splits to `Fold`s; raises a ValueError that names the first invalid one."""
    checked = []
    for i, fold in enumerate(folds):
        if not hasattr(fold, "__len__") or len(fold) != 2:
            raise ValueError(f"fold {i} must be a pair (training indices, validation indices)")
        for name, index in zip(Fold._fields, map(np.asarray, fold), strict=True):
            if index.ndim != 1 or index.size == 0 or not np.issubdtype(index.dtype, np.integer):
                raise ValueError(f"fold {i}: {name} indices must be a non-empty list of integers, got {index.dtype}")
            if index.min() < 0 or index.max() >= num_samples:
                raise ValueError(f"fold {i}: {name} indices must lie in 0..{num_samples - 1}")
        if np.intersect1d(fold[0], fold[1]).size:
            raise ValueError(f"fold {i}: the same sample is in its training and its validation part")
        checked.append(Fold(np.asarray(fold[0]), np.asarray(fold[1])))
    if not checked:
        raise ValueError("folds is empty")
    return checked


def num_steps(folds: Sequence[Fold], batch_size: int) -> int:
    """Steps an epoch of the fold with the most training samples, including a partial last batch."""
    return -(-max(len(fold.train) for fold in folds) // batch_size)


def minibatches(
    folds: Sequence[Fold], epochs: range, *, batch_size: int, seed: Sequence[int], first_fold: int = 0
) -> np.ndarray:
    """The order of the minibatches: int32 [fold, epoch, step, batch] of sample indices, padded with `PADDING`.

    Each fold's epoch is a fresh permutation of its training samples, a function of (seed, fold, epoch). `first_fold` is
    the number of the first of `folds` (the refit on all samples counts as fold k). Padding is at the end: an epoch's
    last batch may be short, and a fold with fewer samples than another may end with empty batches.
    """
    steps = num_steps(folds, batch_size)
    order = np.full((len(folds), len(epochs), steps * batch_size), PADDING, np.int32)
    for i, fold in enumerate(folds):
        for e, epoch in enumerate(epochs):
            rng = np.random.default_rng([*seed, 1, first_fold + i, epoch])
            order[i, e, : len(fold.train)] = rng.permutation(fold.train)
    return order.reshape(len(folds), len(epochs), steps, batch_size)


def pad_batches(parts: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Cuts each part's indices into batches: int32 [part, batch, batch_size], padded with `PADDING`."""
    num_batches = -(-max(map(len, parts)) // batch_size)
    cut = np.full((len(parts), num_batches * batch_size), PADDING, np.int32)
    for i, part in enumerate(parts):
        cut[i, : len(part)] = part
    return cut.reshape(len(parts), num_batches, batch_size)


def make_folds(
    x: Any,
    y: Any,
    *,
    num_folds: int = DEFAULT_FOLDS,
    seed: Sequence[int],
    folds: Any = None,
    groups: Any = None,
    stratify: bool | None = None,
) -> list[Fold]:
    """Returns the splits of a cross-validation: the user's (`check_cv`), or shuffled ones.

    They are stratified if `stratify` says so; by default, if y are classes (`are_classes`).

    Raises:
      ValueError: indices that are no split of the samples, or an argument without effect.
      TypeError: folds that are neither a list nor a splitter.
    """
    if folds is not None:
        if stratify:
            raise ValueError("stratify= has no effect on folds= of your own: leave it out")
        own = check_cv(folds, x, y, groups)
        if num_folds not in (DEFAULT_FOLDS, len(own)):
            raise ValueError(f"num_folds={num_folds} has no effect on the {len(own)} folds= of your own: leave it out")
        return own
    if groups is not None:
        raise ValueError("groups= have no effect without a splitter in folds=, such as scikit-learn's GroupKFold")
    num_samples = len(jax.tree.leaves(x)[0])
    if are_stratified(y, num_folds, folds, stratify):
        return stratified_k_fold(y, num_folds, seed)
    return k_fold(num_samples, num_folds, seed)


def are_stratified(y: Any, num_folds: int, folds: Any, stratify: bool | None) -> bool:
    """True if `make_folds` stratifies."""
    return folds is None and (are_classes(y, num_folds) if stratify is None else stratify)


def are_classes(y: Any, num_folds: int) -> bool:
    """True if y are integers or booleans [sample], with on average at least `num_folds` samples a value.

    Counts and other integers with more values are taken for the targets of a regression.
    """
    return isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iub" and (
        len(np.unique(y)) * num_folds <= len(y))  # fmt: skip


def rare_classes(y: Any, splits: Sequence[Fold], classes: Sequence[str] | None = None) -> str | None:
    """A warning that names classes of which some fold holds out no sample; None without any. `classes`: their names."""
    if not are_classes(y, len(splits)):
        return None
    missing = [value for value in np.unique(y) if not all((y[fold.validation] == value).any() for fold in splits)]
    if not missing:
        return None
    names = dict(enumerate(classes or ()))
    counts = ", ".join(f"{names.get(value, value)} ({np.count_nonzero(y == value)} samples)" for value in missing[:5])
    return f"some folds hold out no sample of class {counts}: their scores say nothing about it"


def held_out(predict: Callable[[int, Any], Any], splits: Sequence[Fold], x: Any) -> Iterator[Any]:
    """Outputs [sample, ...] of predict(fold's number, x) on the validation part of one fold after the other."""
    longest = max(len(fold.validation) for fold in splits)  # all parts are padded to it, so that one program serves
    for i, (_, index) in enumerate(splits):
        outputs = predict(i, jax.tree.map(lambda a: a[np.resize(index, longest)], x))  # noqa: B023
        yield jax.tree.map(lambda a: a[: len(index)], outputs)  # noqa: B023


def out_of_fold(splits: Sequence[Fold], outputs: Iterable[Any], num_samples: int) -> Any:
    """Puts the outputs of `held_out` together: [sample, ...], NaN if no fold held it out, the mean if several did."""
    indices = [fold.validation for fold in splits]
    count = np.bincount(np.concatenate(indices), minlength=num_samples)

    def put_together(*outputs: np.ndarray) -> np.ndarray:
        total = np.zeros((num_samples, *outputs[0].shape[1:]), np.result_type(outputs[0], np.float32))
        for index, values in zip(indices, outputs, strict=True):
            np.add.at(total, index, values)
        times = count.reshape(-1, *[1] * (total.ndim - 1))
        return np.where(times > 0, total / np.maximum(times, 1), np.nan).astype(total.dtype)

    return jax.tree.map(put_together, *outputs)


def check_cv(folds: Any, x: Any, y: Any, groups: Any = None) -> list[Fold]:
    """Converts the user's splits to `Fold`s: pairs (training indices, validation indices), or a scikit-learn splitter.

    A splitter gets the first array of each of x and y, and `groups` [sample].

    Raises:
      ValueError: indices that are no split of the samples, or groups without effect.
      TypeError: neither a list nor a splitter.
    """
    first_x, first_y = (jax.tree.leaves(tree)[0] for tree in (x, y))
    if hasattr(folds, "split") and not isinstance(folds, str | bytes | type):
        splitter, folds = folds, list(folds.split(first_x, first_y, groups))
        if groups is not None and not _heeds_groups(splitter, folds, first_x, first_y, groups):
            raise ValueError(
                f"groups= have no effect on {type(splitter).__name__}, which puts a group's samples into both parts of "
                "a fold: give a splitter that keeps groups together, such as GroupKFold"
            )
    elif isinstance(folds, str | bytes | type) or not isinstance(folds, Iterable):
        raise TypeError(
            f"folds= must be a list of (training indices, validation indices) or a splitter with a method split, got "
            f"{folds if isinstance(folds, type) else type(folds).__name__}; their number is num_folds="
        )
    elif groups is not None:
        raise ValueError("groups= have no effect on a list of folds=: leave them out, or give a splitter")
    return check(list(folds), len(first_x))


def _heeds_groups(splitter: Any, folds: Sequence[Any], x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> bool:
    """True if no group is in both parts of a fold, or the splits differ without the groups."""
    if not any(np.isin(groups[train], groups[validation]).any() for train, validation in folds):
        return True

    def same(others: Iterable[Any]) -> bool:
        pairs = zip(folds, others, strict=True)
        return all(np.array_equal(a, b) for own, other in pairs for a, b in zip(own, other, strict=True))

    try:
        return same(splitter.split(x, y, groups)) and not same(splitter.split(x, y))
    except (TypeError, ValueError):  # the splitter requires groups
        return True
