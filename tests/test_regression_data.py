"""The regression data: the embedded generator, and valid and invalid CSV files."""

import errno
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax.data import Dataset, regression

GOOD = "input,label\n1.0,2.0\n-3.5,4e-1\n"
BAD = {
    "empty file": (b"", "row 1: expected the header input,label"),
    "another header": (b"x,y\n1.0,2.0\n", "row 1: expected the header input,label"),
    "columns exchanged": (b"label,input\n1.0,2.0\n", "row 1: expected the header input,label"),
    "text below a blank line": (b"input,label\n\n1.0,two\n", "row 3: expected two finite"),
    "empty cells": (b"input,label\n,\n", "row 2: expected two finite"),
    "NaN": (b"input,label\n1.0,nan\n", "row 2: expected two finite"),
    "infinite in float32": (b"input,label\n1.0,1e39\n", "row 2: expected two finite"),
    "underscore": (b"input,label\n1_0,1.0\n", "row 2: expected two finite"),
    "one column": (b"input,label\n1.0\n", "row 2: expected two finite"),
    "three columns": (b"input,label\n1.0,2.0,3.0\n", "row 2: expected two finite"),
    "decimal commas": (b"input,label\n1,0,2,0\n", "row 2: expected two finite"),
    "open quote": (b'input,label\n"1.0,2.0\n', "row 2: expected two finite"),
    "a giant cell": (b"input,label\n1.0," + b"9" * 200_000 + b"\n", "row 2: expected two"),
    "Latin-1": ("input,label\n1.0,2.0\n1.0,2.0 m²\n".encode("latin-1"), "row 3: expected UTF-8 text"),
    "UTF-16": (GOOD.encode("utf-16"), "row 1: expected UTF-8 text"),
    "NUL bytes": (b"input,label\n1.0,\x002.0\n", "row 2: expected two finite"),
}


@pytest.fixture
def good_csv(tmp_path):
    path = tmp_path / "good.csv"
    path.write_text(GOOD)
    return path


def test_embedded_data_are_these_very_float32_columns_whatever_numpys_global_state_which_stays():
    data = regression.embedded()[:4]
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    for values, again in zip(data, regression.embedded()[:4], strict=True):
        assert values.shape == (100, 1) and values.dtype == np.float32
        np.testing.assert_array_equal(values, again)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    expected = [[1.0597827, 4.4565063], [1.4855535, 4.916770], [-4.9741945, -3.4541156], [-2.9188709, 3.0959532]]
    np.testing.assert_allclose([values[[0, -1], 0] for values in data], expected, rtol=1e-6)


def test_training_inputs_reach_every_part_but_the_gaps_and_test_inputs_all_of_the_range():
    x_train, _, x_test, _ = regression.embedded()[:4]
    for start, stop in regression.GAPS:
        assert not np.any((x_train > start) & (x_train < stop))
        assert np.sum((x_test > start) & (x_test < stop)) >= 5
    for start, stop in [(-5, -3), (-1, 1.75), (3.1, 5)]:
        part = x_train[(x_train >= start) & (x_train <= stop)]
        assert len(part) >= 15 and np.ptp(part) > 0.8 * (stop - start)
    assert np.histogram(x_test, bins=10, range=(-5, 5))[0].min() >= 3
    assert max(np.abs(x_train).max(), np.abs(x_test).max()) <= 5
    assert abs(np.corrcoef(x_train[:, 0], np.arange(100))[0, 1]) < 0.3  # in random order


def test_labels_are_near_the_curve_which_has_two_bumps_and_steep_ends():
    """To three standard errors of 100 draws: 0.21 of the noise's standard deviation."""
    x_train, y_train, x_test, y_test = regression.embedded()[:4]
    for x, y, noise in [(x_train, y_train, 0.5), (x_test, y_test, 0.1)]:
        assert abs(np.std(y - regression.target(x)) - noise) < 0.21 * noise
    x = np.linspace(-5, 5, 10_001)
    y = regression.target(x)
    peaks = x[1:-1][(y[1:-1] > y[:-2]) & (y[1:-1] > y[2:])]
    np.testing.assert_allclose([*peaks, y[0], y[-1]], [-2.2, 1.9, -2.9, 7.0], atol=0.1)


def test_load_gives_the_embedded_data_or_those_of_both_files(tmp_path, good_csv):
    for found, expected in zip(regression.load()[:4], regression.embedded()[:4], strict=True):
        np.testing.assert_array_equal(found, expected)
    (tmp_path / "test.csv").write_text("input,label\n7,8\n")
    found = regression.load(good_csv, test_csv=tmp_path / "test.csv")
    assert [values.tolist() for values in found[:4]] == [[[1], [-3.5]], [[2], [np.float32(0.4)]], [[7]], [[8]]]
    assert found.weights is None and found.groups is None


@pytest.mark.parametrize("name", ["train_csv", "test_csv"])
def test_one_file_without_the_other_is_refused_by_name(good_csv, name):
    with pytest.raises(ValueError, match="^train_csv= and test_csv= go together.*embedded data$"):
        regression.load(**{name: good_csv})


DRESSES = {
    "plain": GOOD,
    "no last line ending": GOOD.rstrip("\n"),
    "blank lines at the end": GOOD + "\n\n  \n",
    "CRLF": GOOD.replace("\n", "\r\n"),
    "CR": GOOD.replace("\n", "\r"),
    "BOM": "\ufeff" + GOOD,
    "spaces": GOOD.replace(",", " , "),
    "quotes": '"input","label"\n"1.0","2.0"\n-3.5,.4\n',
}


@pytest.mark.parametrize("text", DRESSES.values(), ids=DRESSES)
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


def test_a_file_that_cant_be_read_is_refused_by_name(tmp_path, good_csv, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere\.csv: expected a CSV file.*No such file"):
        regression.from_csv(good_csv, tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=f"{tmp_path}: expected a CSV file.*Is a directory"):
        regression.from_csv(tmp_path, good_csv)
    error = PermissionError(errno.EACCES, "Permission denied")  # as chmod doesn't keep root from reading
    monkeypatch.setattr(regression, "open", Mock(side_effect=error), raising=False)
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


STARTS = st.sampled_from([b"", b"input,label\n", b"input,label\n1.0,2.0\n"])
LIKE_NUMBERS = st.text(alphabet='0123456789.,-+eEnaif_"\n\r \0\x1c٣', max_size=30).map(str.encode)


@settings(max_examples=200, deadline=None)
@given(STARTS, st.binary(max_size=60) | LIKE_NUMBERS)
def test_random_bytes_give_data_or_a_one_line_value_error(tmp_path_factory, start, end):
    path = tmp_path_factory.getbasetemp() / "random.csv"
    path.write_bytes(start + end)
    try:
        data = regression.from_csv(path, path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: row ") and len(str(error).splitlines()) == 1
    else:
        assert isinstance(data, Dataset)
        assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in data[:4])
