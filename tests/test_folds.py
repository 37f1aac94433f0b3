"""Folds partition the samples; an epoch's minibatches hold exactly a fold's own training samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax import folds
from hw1jax.folds import PADDING, Fold

patient = settings(deadline=None)  # the machine may be busy
SEEDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2)
FOLDS_AND_SAMPLES = st.integers(2, 10).flatmap(lambda k: st.tuples(st.just(k), st.integers(k, 1000)))


@st.composite
def unequal_folds(draw):
    """One to four folds over 100 samples, with training parts of any size."""
    shuffled = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permuted(np.tile(np.arange(100), (4, 1)), axis=1)
    sizes = draw(st.lists(st.integers(1, 99), min_size=1, max_size=4))
    return [Fold(row[:size], row[size:]) for row, size in zip(shuffled, sizes, strict=False)]


def real(order):
    """The samples of one fold's epoch ([step, batch]), in order."""
    return order[order != PADDING]


def assert_partition(splits, num_samples, num_folds):
    assert len(splits) == num_folds
    np.testing.assert_array_equal(np.sort(np.concatenate([f.validation for f in splits])), np.arange(num_samples))
    for fold in splits:
        np.testing.assert_array_equal(np.sort(np.concatenate(fold)), np.arange(num_samples))
    sizes = [len(fold.validation) for fold in splits]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@patient
@given(FOLDS_AND_SAMPLES, SEEDS)
def test_folds_partition_the_samples_in_parts_that_differ_by_at_most_one(numbers, seed):
    num_folds, num_samples = numbers
    assert_partition(folds.k_fold(num_samples, num_folds, seed), num_samples, num_folds)


@patient
@given(FOLDS_AND_SAMPLES, SEEDS, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_stratified_folds_partition_and_differ_by_at_most_one_in_each_label(numbers, seed, num_labels, label_seed):
    num_folds, num_samples = numbers
    rng = np.random.default_rng(label_seed)
    labels = rng.choice(num_labels, num_samples, p=rng.dirichlet(np.full(num_labels, 0.5)))  # some are rare
    splits = folds.stratified_k_fold(labels, num_folds, seed)
    assert_partition(splits, num_samples, num_folds)
    counts = np.array([np.bincount(labels[fold.validation], minlength=num_labels) for fold in splits])
    assert np.all(counts.max(axis=0) - counts.min(axis=0) <= 1)


def test_stratified_folds_take_labels_of_any_kind():
    names = np.array(["cat", "dog", "cat", "dog", "cat", "cat"])
    for fold in folds.stratified_k_fold(names, 2, [0]):
        assert sorted(names[fold.validation]) == ["cat", "cat", "dog"]


@patient
@given(FOLDS_AND_SAMPLES, SEEDS)
def test_the_same_seed_gives_the_same_folds(numbers, seed):
    num_folds, num_samples = numbers
    labels = np.arange(num_samples) % 3
    for make in (lambda: folds.k_fold(num_samples, num_folds, seed), lambda: folds.stratified_k_fold(labels, 2, seed)):
        for one, other in zip(make(), make(), strict=True):
            np.testing.assert_array_equal(one.train, other.train)
            np.testing.assert_array_equal(one.validation, other.validation)


@pytest.mark.parametrize("seeds", [([0], [1]), ([0, 0], [0, 1]), ([0, 0], [1, 0]), ([2**31], [2**31 + 1])])
def test_another_seed_gives_other_folds_and_another_order(seeds):
    one, other = (folds.k_fold(60, 3, seed) for seed in seeds)
    assert any(np.any(a.validation != b.validation) for a, b in zip(one, other, strict=True))
    one, other = (folds.minibatches([Fold(np.arange(60), [])], range(2), batch_size=60, seed=seed) for seed in seeds)
    assert np.all(np.any(one != other, axis=-1))


@pytest.mark.parametrize("num_samples, num_folds", [(10, 1), (10, 0), (10, -1), (10, 11), (0, 2), (1, 2)])
def test_a_number_of_folds_that_cant_be_made_is_refused(num_samples, num_folds):
    with pytest.raises(ValueError, match=f"between 2 and the {num_samples} samples, got {num_folds}"):
        folds.k_fold(num_samples, num_folds, [0])
    with pytest.raises(ValueError, match=f"got {num_folds}"):
        folds.stratified_k_fold(np.zeros(num_samples, int), num_folds, [0])


def test_labels_that_are_not_one_a_sample_are_refused():
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
        num_train = len(fold.train)
        for order in epochs:
            np.testing.assert_array_equal(np.sort(order[:num_train]), np.sort(fold.train))
            assert np.all(order[num_train:] == PADDING)


@patient
@given(unequal_folds(), st.integers(1, 40), SEEDS)
def test_an_epochs_order_does_not_depend_on_which_epochs_are_made_with_it(splits, batch_size, seed):
    alone = folds.minibatches(splits, range(3, 6), batch_size=batch_size, seed=seed)
    among = folds.minibatches(splits, range(0, 11), batch_size=batch_size, seed=seed)
    np.testing.assert_array_equal(alone, among[:, 3:6])


@patient
@given(unequal_folds(), st.integers(1, 40), st.integers(1, 40), SEEDS)
def test_a_folds_order_does_not_depend_on_the_other_folds_nor_on_the_batch_size(splits, batch_size, other_size, seed):
    last = len(splits) - 1
    others = [Fold(np.arange(90), np.arange(90, 100))] * last
    one = folds.minibatches(splits, range(3), batch_size=batch_size, seed=seed)
    other = folds.minibatches([*others, splits[last]], range(3), batch_size=other_size, seed=seed)
    for epoch in range(3):
        np.testing.assert_array_equal(real(one[last, epoch]), real(other[last, epoch]))


@patient
@given(unequal_folds(), st.integers(1, 40), SEEDS)
def test_first_fold_is_the_number_of_the_first_fold(splits, batch_size, seed):
    together = folds.minibatches(splits, range(2), batch_size=batch_size, seed=seed)
    for i, fold in enumerate(splits):
        alone = folds.minibatches([fold], range(2), batch_size=batch_size, seed=seed, first_fold=i)
        for epoch in range(2):
            np.testing.assert_array_equal(real(alone[0, epoch]), real(together[i, epoch]))


def test_every_epoch_and_every_fold_has_an_order_of_its_own():
    splits = [Fold(np.arange(50), np.arange(50, 60))] * 3
    batches = folds.minibatches(splits, range(20), batch_size=50, seed=[0]).reshape(60, 50)
    assert len(np.unique(batches, axis=0)) == 60


def test_the_refit_has_another_order_than_the_folds():
    everything = [Fold(np.arange(50), np.arange(0))]
    as_fold = [folds.minibatches(everything, range(1), batch_size=50, seed=[0], first_fold=i) for i in range(4)]
    assert len({order.tobytes() for order in as_fold}) == 4


def test_the_last_batch_may_be_short():
    (epoch,) = folds.minibatches([Fold(np.arange(66), np.arange(66, 100))], range(1), batch_size=20, seed=[0])[0]
    assert np.sum(epoch != PADDING, axis=1).tolist() == [20, 20, 20, 6]


def test_a_shorter_fold_ends_with_empty_batches():
    splits = [Fold(np.arange(10), np.arange(10, 50)), Fold(np.arange(45), np.arange(45, 50))]
    batches = folds.minibatches(splits, range(1), batch_size=10, seed=[0])
    assert np.sum(batches != PADDING, axis=-1)[:, 0].tolist() == [[10, 0, 0, 0, 0], [10, 10, 10, 10, 5]]


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
def test_pieces_hold_each_part_in_order_with_padding_at_the_end(sizes, piece_size):
    parts = [1000 * i + np.arange(size) for i, size in enumerate(sizes)]
    pieces = folds.pieces(parts, piece_size)
    assert pieces.dtype == np.int32
    assert pieces.shape == (len(parts), int(np.ceil(max(sizes) / piece_size)), piece_size)
    for part, cut in zip(parts, pieces.reshape(len(parts), -1), strict=True):
        np.testing.assert_array_equal(cut[: len(part)], part)
        assert np.all(cut[len(part) :] == PADDING)


@pytest.mark.parametrize("num_samples, num_folds", [(10, 2), (11, 3)])
def test_good_splits_pass_the_check(num_samples, num_folds):
    splits = folds.k_fold(num_samples, num_folds, [0])
    for given_as in (splits, iter(splits), [(f.train.tolist(), f.validation.tolist()) for f in splits]):
        checked = folds.check(given_as, num_samples)
        assert all(isinstance(fold, Fold) for fold in checked)
        for fold, expected in zip(checked, splits, strict=True):
            np.testing.assert_array_equal(fold.train, expected.train)
            np.testing.assert_array_equal(fold.validation, expected.validation)


GOOD = ([0, 1, 2], [3, 4])


@pytest.mark.parametrize(
    "splits, message",
    [
        ([], "folds is empty"),
        ([GOOD, ([0, 1],)], "fold 1 must be a pair"),
        ([GOOD, ([0, 1], [2], [3])], "fold 1 must be a pair"),
        ([([], [3, 4])], "fold 0: train indices must be a non-empty list of integers"),
        ([([0, 1], [])], "fold 0: validation indices must be a non-empty list of integers"),
        ([GOOD, ([0.0, 1.0], [3])], "fold 1: train indices must be a non-empty list of integers"),
        ([([0, 1], ["a"])], "fold 0: validation indices must be a non-empty list of integers"),
        ([([True, False, True, False, False], [3])], "fold 0: train indices must be a non-empty list of integers"),
        ([([[0, 1]], [3])], "fold 0: train indices must be a non-empty list of integers"),
        ([(0, [3])], "fold 0: train indices must be a non-empty list of integers"),
        ([([0, 1], [5])], r"fold 0: validation indices must lie in 0\.\.4"),
        ([GOOD, ([-1, 1], [3])], r"fold 1: train indices must lie in 0\.\.4"),
        ([GOOD, ([0, 1, 3], [3, 4])], "fold 1: the same sample is in its training and its validation part"),
    ],
)
def test_a_bad_split_is_refused_by_its_number_and_in_one_line(splits, message):
    with pytest.raises(ValueError, match=message) as caught:
        folds.check(splits, 5)
    assert "\n" not in str(caught.value)


class Splitter:
    """What scikit-learn's splitters have, and no more; it tells what it was given."""

    def split(self, x, y=None, groups=None):
        self.given = x, y, groups
        for group in np.unique(groups):
            yield np.flatnonzero(groups != group), np.flatnonzero(groups == group)


def test_an_object_that_splits_gets_the_samples_and_their_groups():
    x, y, groups = np.zeros((6, 2)), np.arange(6), np.array(["a", "b", "a", "c", "b", "a"])
    splitter = Splitter()
    found = folds.given(splitter, x, y, groups)
    assert all(one is other for one, other in zip(splitter.given, (x, y, groups), strict=True))
    assert [fold.validation.tolist() for fold in found] == [[0, 2, 5], [1, 4], [3]]
    assert all(isinstance(fold, Fold) for fold in found)
    folds.given(splitter, {"b": x + 1, "a": x}, (y, y + 1), groups)  # of trees, the first array
    assert splitter.given[0] is not None and splitter.given[0].shape == (6, 2)
    assert splitter.given[1] is y


@pytest.mark.parametrize(
    "name", ["KFold", "StratifiedKFold", "GroupKFold", "RepeatedKFold", "LeaveOneGroupOut", "ShuffleSplit"]
)
def test_scikit_learns_splitters_are_taken(name):
    model_selection = pytest.importorskip("sklearn.model_selection")
    x, y, groups = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2, np.arange(30) // 3
    splitter, groups = getattr(model_selection, name)(), groups if "Group" in name else None
    found = folds.given(splitter, x, y, groups)
    assert len(found) == splitter.get_n_splits(x, y, groups)
    for fold in found:
        assert not np.intersect1d(fold.train, fold.validation).size
        if groups is not None:
            assert not np.intersect1d(groups[fold.train], groups[fold.validation]).size
        if name == "StratifiedKFold":
            assert y[fold.validation].mean() == 0.5


@pytest.mark.parametrize("wrong", [5, "k-fold", None])
def test_what_is_neither_splits_nor_splits_is_told_in_one_line(wrong):
    with pytest.raises(TypeError, match="^folds= must be a list of .* or a splitter .* their number is num_folds=$"):
        folds.given(wrong, np.zeros(5), np.zeros(5))


def test_given_splits_are_checked():
    with pytest.raises(ValueError, match="fold 1: the same sample"):
        folds.given([GOOD, ([0, 1], [1, 2])], np.zeros(5), np.zeros(5))
    (found,) = folds.given(iter([GOOD]), {"a": np.zeros(5)}, np.zeros(5))
    np.testing.assert_array_equal(found.train, GOOD[0])
