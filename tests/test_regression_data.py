"""The regression data: the embedded generator's promises, and CSV files good and bad."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax.data import Dataset, regression

GOOD = "input,label\n1.0,2.0\n-3.5,4e-1\n"
BAD = {
    "empty file": (b"", "row 1: expected the header input,label"),
    "blank lines alone": (b"\n\n\n", "row 1: expected the header input,label"),
    "no header": (b"1.0,2.0\n3.0,4.0\n", "row 1: expected the header input,label"),
    "another header": (b"x,y\n1.0,2.0\n", "row 1: expected the header input,label"),
    "columns exchanged": (b"label,input\n1.0,2.0\n", "row 1: expected the header input,label"),
    "no rows": (b"input,label\n", "row 2: expected at least one row"),
    "no rows, no line ending": (b"input,label", "row 2: expected at least one row"),
    "text": (b"input,label\n1.0,2.0\n1.0,two\n", "row 3: expected two finite"),
    "text below a blank line": (b"input,label\n\n1.0,two\n", "row 3: expected two finite"),
    "empty cell": (b"input,label\n1.0,\n", "row 2: expected two finite"),
    "empty cells": (b"input,label\n,\n", "row 2: expected two finite"),
    "NaN": (b"input,label\n1.0,nan\n", "row 2: expected two finite"),
    "infinity": (b"input,label\n-inf,1.0\n", "row 2: expected two finite"),
    "infinity written out": (b"input,label\n1.0,Infinity\n", "row 2: expected two finite"),
    "infinite in float32": (b"input,label\n1.0,1e39\n", "row 2: expected two finite"),
    "underscore": (b"input,label\n1_0,1.0\n", "row 2: expected two finite"),
    "one column": (b"input,label\n1.0\n", "row 2: expected two finite"),
    "one column throughout": (b"input\n1.0\n", "row 1: expected the header input,label"),
    "three columns": (b"input,label\n1.0,2.0,3.0\n", "row 2: expected two finite"),
    "semicolons": (b"input,label\n1.0;2.0\n", "row 2: expected two finite"),
    "decimal commas": (b"input,label\n1,0,2,0\n", "row 2: expected two finite"),
    "open quote": (b'input,label\n"1.0,2.0\n', "row 2: expected two finite"),
    "a giant cell": (b"input,label\n1.0," + b"9" * 200_000 + b"\n", "row 2: expected two"),
    "Latin-1": ("input,label\n1.0,2.0\n1.0,2.0 m²\n".encode("latin-1"), "row 3: expected UTF-8 text"),
    "UTF-16": (GOOD.encode("utf-16"), "row 1: expected UTF-8 text"),
    "NUL bytes": (b"input,label\n1.0,\x002.0\n", "row 2: expected two finite"),
    "NUL bytes alone": (b"\x00" * 100, "row 1: expected the header input,label"),
}


@pytest.fixture
def good_csv(tmp_path):
    path = tmp_path / "good.csv"
    path.write_text(GOOD)
    return path


def in_gaps(x):
    return np.any([(x > start) & (x < stop) for start, stop in regression.GAPS], axis=0)


def test_embedded_data_are_float32_columns():
    for values in regression.embedded()[:4]:
        assert values.shape == (100, 1) and values.dtype == np.float32 and np.isfinite(values).all()


def test_embedded_data_are_the_same_at_every_call():
    first, second = regression.embedded()[:4], regression.embedded()[:4]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_embedded_data_are_these_very_numbers():
    first_and_last = [values[[0, -1], 0] for values in regression.embedded()[:4]]
    expected = [[1.0597827, 4.4565063], [1.4855535, 4.916770], [-4.9741945, -3.4541156], [-2.9188709, 3.0959532]]
    np.testing.assert_allclose(first_and_last, expected, rtol=1e-6)


def test_embedded_data_neither_read_nor_change_numpys_global_state():
    expected = regression.embedded()[:4]
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    found = regression.embedded()[:4]
    assert np.array_equal(np.random.get_state()[1], before)
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_no_training_input_lies_in_a_gap():
    assert not in_gaps(regression.embedded().x_train).any()


def test_test_inputs_cover_the_gaps_and_the_whole_range():
    x = regression.embedded().x_test
    for start, stop in regression.GAPS:
        assert np.sum((x > start) & (x < stop)) >= 5
    assert np.histogram(x, bins=10, range=(-5, 5))[0].min() >= 3


def test_training_inputs_reach_every_part_between_the_gaps():
    x = regression.embedded().x_train
    for start, stop in [(-5, -3), (-1, 1.75), (3.1, 5)]:
        part = x[(x >= start) & (x <= stop)]
        assert len(part) >= 15 and np.ptp(part) > 0.8 * (stop - start)


def test_inputs_stay_in_their_range_and_labels_near_the_curve():
    x_train, y_train, x_test, y_test = regression.embedded()[:4]
    assert max(np.abs(x_train).max(), np.abs(x_test).max()) <= 5
    assert np.abs(y_train - regression.target(x_train)).max() < 4 * regression.TRAIN_NOISE
    assert np.abs(y_test - regression.target(x_test)).max() < 4 * regression.TEST_NOISE


def test_noise_has_its_mean_and_standard_deviation():
    """To three standard errors of 100 draws: 0.3 of the deviation for the mean, 0.21 of it for the deviation itself."""
    x_train, y_train, x_test, y_test = regression.embedded()[:4]
    for x, y, noise in [(x_train, y_train, 0.5), (x_test, y_test, 0.1)]:
        residual = y - regression.target(x)
        assert abs(residual.mean()) < 0.3 * noise
        assert abs(residual.std() - noise) < 0.21 * noise


def test_target_has_two_bumps_and_steep_ends():
    x = np.linspace(-5, 5, 10_001)
    y = regression.target(x)
    peaks = x[1:-1][(y[1:-1] > y[:-2]) & (y[1:-1] > y[2:])]
    np.testing.assert_allclose(peaks, [-2.2, 1.9], atol=0.1)
    np.testing.assert_allclose(y[[0, -1]], [-2.9, 7.0], atol=0.1)


def test_examples_come_in_random_order():
    x = regression.embedded().x_train[:, 0]
    assert abs(np.corrcoef(x, np.arange(100))[0, 1]) < 0.3


def test_load_gives_the_embedded_data_or_those_of_both_files(good_csv):
    for found, expected in (
        (regression.load(), regression.embedded()),
        (regression.load(good_csv, test_csv=good_csv), regression.from_csv(good_csv, good_csv)),
    ):
        assert all(np.array_equal(a, b) for a, b in zip(found[:4], expected[:4], strict=True))
        assert found.weights is None and found.groups is None


@pytest.mark.parametrize("name", ["train_csv", "test_csv"])
def test_one_file_without_the_other_is_refused_by_name(good_csv, name):
    with pytest.raises(ValueError, match="^train_csv= and test_csv= go together.*embedded data$"):
        regression.load(**{name: good_csv})


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.rstrip("\n"),
        GOOD + "\n\n  \n",
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        "\ufeff" + GOOD,
        GOOD.replace(",", " , "),
        '"input","label"\n"1.0","2.0"\n-3.5,.4\n',
    ],
    ids=["plain", "no last line ending", "blank lines at the end", "CRLF", "CR", "BOM", "spaces", "quotes"],
)
def test_good_csv_is_accepted_in_any_dress(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_bytes(text.encode())
    data = regression.from_csv(path, str(path))
    for x, y in [(data.x_train, data.y_train), (data.x_test, data.y_test)]:
        np.testing.assert_array_equal(x, np.float32([[1.0], [-3.5]]), strict=True)
        np.testing.assert_array_equal(y, np.float32([[2.0], [0.4]]), strict=True)


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_bad_csv_is_refused_in_one_line_with_file_and_row(tmp_path, good_csv, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    for files in [(path, good_csv), (good_csv, path)]:
        with pytest.raises(ValueError) as caught:
            regression.from_csv(*files)
        text = str(caught.value)
        assert text.startswith(f"{path}: {message}")
        assert len(text.splitlines()) == 1 and len(text) < len(str(path)) + 160


def test_missing_file_is_refused_by_name(tmp_path, good_csv):
    with pytest.raises(ValueError, match=r"nowhere\.csv: expected a CSV file.*No such file"):
        regression.from_csv(good_csv, tmp_path / "nowhere.csv")


def test_directory_is_refused_by_name(tmp_path, good_csv):
    with pytest.raises(ValueError, match="expected a CSV file.*Is a directory"):
        regression.from_csv(tmp_path, good_csv)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file_is_refused_by_name(good_csv):
    good_csv.chmod(0)
    with pytest.raises(ValueError, match=r"good\.csv: expected a CSV file.*Permission denied"):
        regression.from_csv(good_csv, good_csv)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_float32_numbers_survive_csv_exactly(tmp_path_factory, samples):
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    path.write_text("".join(["input,label\n", *(f"{x!r},{y!r}\n" for x, y in samples)]))
    data = regression.from_csv(path, path)
    expected = np.array(samples, np.float32)
    np.testing.assert_array_equal(np.hstack([data.x_train, data.y_train]), expected, strict=True)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", b"input,label\n", b"input,label\n1.0,2.0\n"]), st.binary(max_size=60))
def test_random_bytes_give_data_or_a_one_line_value_error(tmp_path_factory, start, end):
    path = tmp_path_factory.getbasetemp() / "random.csv"
    path.write_bytes(start + end)
    try:
        data = regression.from_csv(path, path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
    else:
        assert isinstance(data, Dataset) and all(np.isfinite(values).all() for values in data[:4])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='0123456789.,-+eEnaif_"\n\r \0\x1c٣', max_size=30))
def test_random_text_gives_data_or_a_one_line_value_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "random.csv"
    path.write_bytes(("input,label\n" + text).encode())
    try:
        data = regression.from_csv(path, path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: row ") and len(str(error).splitlines()) == 1
    else:
        assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in data[:4])
