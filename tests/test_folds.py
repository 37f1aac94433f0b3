"""Folds partition the samples; the minibatches of an epoch hold each training sample of the fold once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax.core import folds
from hw1jax.core.folds import PADDING, Fold

patient = settings(deadline=None, max_examples=50)  # the machine may be busy
SEEDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2)


@st.composite
def unequal_folds(draw):
    """One to four folds over 100 samples, with training parts of any size."""
    shuffled = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permuted(np.tile(np.arange(100), (4, 1)), axis=1)
    sizes = draw(st.lists(st.integers(1, 99), min_size=1, max_size=4))
    return [Fold(row[:size], row[size:]) for row, size in zip(shuffled, sizes, strict=False)]


def real(order):
    """The samples of a fold's epochs [epoch, step, batch], in order: a list for each epoch."""
    return [epoch[epoch != PADDING].tolist() for epoch in order]


def assert_equal_folds(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Fold)
        np.testing.assert_array_equal(one.train, other[0])
        np.testing.assert_array_equal(one.validation, other[1])


@patient
@given(
    st.integers(2, 10).flatmap(lambda k: st.tuples(st.just(k), st.integers(k, 1000))),
    SEEDS,
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_folds_partition_the_samples_in_parts_that_differ_by_at_most_one_and_stratified_ones_so_in_each_label(
    numbers, seed, num_labels, label_seed
):
    num_folds, num_samples = numbers
    rng = np.random.default_rng(label_seed)
    labels = rng.choice(num_labels, num_samples, p=rng.dirichlet(np.full(num_labels, 0.5)))  # some are rare
    names = np.array([f"class {label}" for label in labels])
    stratified = folds.stratified_k_fold(names, num_folds, seed)
    for splits in (folds.k_fold(num_samples, num_folds, seed), stratified):
        assert len(splits) == num_folds
        held_out = np.concatenate([fold.validation for fold in splits])
        np.testing.assert_array_equal(np.sort(held_out), np.arange(num_samples))
        for fold in splits:
            np.testing.assert_array_equal(np.sort(np.concatenate(fold)), np.arange(num_samples))
        sizes = [len(fold.validation) for fold in splits]
        assert max(sizes) - min(sizes) <= 1
    counts = np.array([np.bincount(labels[fold.validation], minlength=num_labels) for fold in stratified])
    assert np.all(np.ptp(counts, axis=0) <= 1)
    assert_equal_folds(folds.k_fold(num_samples, num_folds, seed), folds.k_fold(num_samples, num_folds, seed))
    assert_equal_folds(folds.stratified_k_fold(names, num_folds, seed), stratified)


@pytest.mark.parametrize("seeds", [([0], [1]), ([0, 0], [0, 1]), ([0, 0], [1, 0]), ([2**31], [2**31 + 1])])
def test_another_seed_gives_other_folds_and_another_order(seeds):
    labels = np.zeros(60, int)
    for made in ([folds.k_fold(60, 3, s) for s in seeds], [folds.stratified_k_fold(labels, 3, s) for s in seeds]):
        assert any(np.any(a.validation != b.validation) for a, b in zip(*made, strict=True))
    one, other = (folds.minibatches([Fold(np.arange(60), [])], range(2), batch_size=60, seed=seed) for seed in seeds)
    assert np.all(np.any(one != other, axis=-1))


@pytest.mark.parametrize("num_samples, num_folds", [(10, 1), (10, 0), (10, -1), (10, 11), (0, 2), (1, 2)])
def test_a_number_of_folds_that_cant_be_made_is_refused(num_samples, num_folds):
    with pytest.raises(ValueError, match=f"between 2 and the {num_samples} samples, got {num_folds}"):
        folds.k_fold(num_samples, num_folds, [0])
    with pytest.raises(ValueError, match=f"got {num_folds}"):
        folds.stratified_k_fold(np.zeros(num_samples, int), num_folds, [0])
    with pytest.raises(ValueError, match=r"one value a sample, got an array of shape \(6, 2\)"):
        folds.stratified_k_fold(np.zeros((6, 2)), 2, [0])


@patient
@given(unequal_folds(), st.integers(1, 120), st.integers(0, 3), st.integers(1, 3), SEEDS)
def test_each_epoch_holds_exactly_its_folds_training_samples_and_padding_only_at_the_end(
    splits, batch_size, first, num_epochs, seed
):
    batches = folds.minibatches(splits, range(first, first + num_epochs), batch_size=batch_size, seed=seed)
    longest = max(len(fold.train) for fold in splits)
    assert folds.num_steps(splits, batch_size) == int(np.ceil(longest / batch_size))
    assert batches.dtype == np.int32
    assert batches.shape == (len(splits), num_epochs, folds.num_steps(splits, batch_size), batch_size)
    for fold, epochs in zip(splits, batches.reshape(len(splits), num_epochs, -1), strict=True):
        for order in epochs:
            np.testing.assert_array_equal(np.sort(order[: len(fold.train)]), np.sort(fold.train))
            assert np.all(order[len(fold.train) :] == PADDING)


@patient
@given(unequal_folds(), st.integers(1, 40), st.integers(1, 40), SEEDS)
def test_an_order_depends_on_seed_fold_and_epoch_alone(splits, batch_size, other_size, seed):
    """Not on the epochs and folds that are made with it, nor on the batch size."""
    together = folds.minibatches(splits, range(6), batch_size=batch_size, seed=seed)
    some_epochs = folds.minibatches(splits, range(3, 6), batch_size=batch_size, seed=seed)
    np.testing.assert_array_equal(some_epochs, together[:, 3:])
    last = len(splits) - 1
    others = [Fold(np.arange(90), np.arange(90, 100))] * last
    among = folds.minibatches([*others, splits[last]], range(6), batch_size=other_size, seed=seed)
    assert real(among[last]) == real(together[last])
    for i, fold in enumerate(splits):
        alone = folds.minibatches([fold], range(6), batch_size=batch_size, seed=seed, first_fold=i)
        assert real(alone[0]) == real(together[i])


def test_every_epoch_and_every_fold_has_an_order_of_its_own_and_so_has_the_refit():
    splits = [Fold(np.arange(50), np.arange(50, 60))] * 3
    of_folds = folds.minibatches(splits, range(20), batch_size=50, seed=[0])
    of_the_refit = folds.minibatches(splits[:1], range(20), batch_size=50, seed=[0], first_fold=3)
    assert len(np.unique(np.concatenate([of_folds, of_the_refit]).reshape(80, 50), axis=0)) == 80


def test_the_last_batch_may_be_short_and_a_shorter_fold_ends_with_empty_batches():
    splits = [Fold(np.arange(26), np.arange(26, 50)), Fold(np.arange(66), np.arange(66, 70))]
    batches = folds.minibatches(splits, range(1), batch_size=20, seed=[0])
    assert np.sum(batches != PADDING, axis=-1)[:, 0].tolist() == [[20, 6, 0, 0], [20, 20, 20, 6]]


def test_numpys_global_generator_is_neither_used_nor_moved():
    labels = np.arange(40) % 4

    def everything():
        splits = folds.k_fold(40, 3, [5]) + folds.stratified_k_fold(labels, 3, [5])
        order = folds.minibatches(splits, range(2), batch_size=7, seed=[5])
        return np.concatenate([*map(np.concatenate, splits), order.ravel()])

    np.random.seed(1)
    first = everything()
    assert np.random.get_state()[2] == np.random.RandomState(1).get_state()[2]
    np.random.seed(2)
    np.testing.assert_array_equal(first, everything())


@patient
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 50))
def test_batches_hold_each_part_in_order_with_padding_at_the_end(sizes, batch_size):
    parts = [1000 * i + np.arange(size) for i, size in enumerate(sizes)]
    batches = folds.pad_batches(parts, batch_size)
    assert batches.dtype == np.int32
    assert batches.shape == (len(parts), int(np.ceil(max(sizes) / batch_size)), batch_size)
    for part, cut in zip(parts, batches.reshape(len(parts), -1), strict=True):
        np.testing.assert_array_equal(cut[: len(part)], part)
        assert np.all(cut[len(part) :] == PADDING)


GOOD = ([0, 1, 2], [3, 4])


@pytest.mark.parametrize(
    "splits, message",
    [
        ([], "folds is empty"),
        ([GOOD, ([0, 1],)], "fold 1 must be a pair"),
        ([5], "fold 0 must be a pair"),
        ([([], [3, 4])], "fold 0: train indices must be a non-empty list of integers"),
        ([GOOD, ([0.0, 1.0], [3])], "fold 1: train indices must be a non-empty list of integers"),
        ([([0, 1], ["a"])], "fold 0: validation indices must be a non-empty list of integers"),
        ([([True, False, True, False, False], [3])], "fold 0: train indices must be a non-empty list of integers"),
        ([(0, [3])], "fold 0: train indices must be a non-empty list of integers"),
        ([([0, 1], [5])], r"fold 0: validation indices must lie in 0\.\.4"),
        ([GOOD, ([-1, 1], [3])], r"fold 1: train indices must lie in 0\.\.4"),
        ([GOOD, ([0, 1, 3], [3, 4])], "fold 1: the same sample is in its training and its validation part"),
    ],
)
def test_a_bad_split_is_refused_by_its_number_and_in_one_line(splits, message):
    assert_equal_folds(folds.check_cv(iter([GOOD]), np.zeros(5), np.zeros(5)), [GOOD])
    for check in (lambda: folds.check(splits, 5), lambda: folds.check_cv(splits, np.zeros(5), np.zeros(5))):
        with pytest.raises(ValueError, match=message) as caught:
            check()
        assert "\n" not in str(caught.value)


class Splitter:
    """The interface of scikit-learn's splitters; records its arguments. test_study.py has scikit-learn's own."""

    def split(self, x, y=None, groups=None):
        self.given = x, y, groups
        for group in np.unique(groups):
            yield np.flatnonzero(groups != group), np.flatnonzero(groups == group)


def test_an_object_that_splits_gets_the_samples_and_their_groups():
    x, y, groups = np.zeros((6, 2)), np.arange(6), np.array(["a", "b", "a", "c", "b", "a"])
    splitter = Splitter()
    found = folds.check_cv(splitter, x, y, groups)
    assert all(one is other for one, other in zip(splitter.given, (x, y, groups), strict=True))
    assert [fold.validation.tolist() for fold in found] == [[0, 2, 5], [1, 4], [3]]
    assert all(isinstance(fold, Fold) for fold in found)
    folds.check_cv(splitter, {"b": x + 1, "a": x}, (y, y + 1), groups)  # of trees, the first array
    assert splitter.given[0] is x and splitter.given[1] is y


@pytest.mark.parametrize("wrong", [5, "k-fold", None, Splitter])
def test_what_is_neither_splits_nor_splits_is_told_in_one_line(wrong):
    with pytest.raises(TypeError, match="^folds= must be a list of .* or a splitter .* their number is num_folds=$"):
        folds.check_cv(wrong, np.zeros(5), np.zeros(5))
