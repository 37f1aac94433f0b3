"""Any input is either valid or a mistake reported in one line; no other error, no file written."""

import contextlib
import io
import re

import numpy as np
import reproduce
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hw1jax import cli
from hw1jax.data import Dataset, regression

STUDY = st.sampled_from(list(reproduce.STUDIES.values()))

# Flags.

whole = st.one_of(st.integers(-2, 12), st.sampled_from([2**31, 2**32 - 1, 2**32, 2**64, 10**30])).map(str)
real = st.one_of(
    st.floats(1e-6, 1e3).map(repr),
    st.sampled_from(["0", "1", "1e-3", ".5", "-1", "nan", "inf", "1e999", "1e-999", "1E+2", "0x1", "1_0"]),
)
good_words = ("random", "tpe", "adam", "sgd", "rmsprop", "auto", "padded", "exact", "none", "None", "True", "False")
junk = st.one_of(
    st.sampled_from(["", " ", "-", "--", "=", "a=b", "10:50", "4-10,10-15", "\n", "\0", "٣-٩", "²-³", "9" * 5000, "ß"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
        lambda text: not text.strip("-").startswith("h")
    ),
)
value = st.one_of(
    whole,
    real,
    st.builds("{}-{}".format, whole, whole),
    st.builds("{}-{}".format, st.integers(1, 20), st.integers(10, 60)),
    st.builds("{}-{}".format, real, real),
    st.sampled_from(good_words),
    junk,
)
NAMES = {flag for study in reproduce.STUDIES.values() for flag in cli.flag_names(study).values()}
name = st.sampled_from([f"--{name}" for name in sorted(NAMES | {"bogus", "no-quick"})])
any_flag = st.builds(lambda flag, values: [flag, *values], name, st.lists(value, max_size=4))
ranges = st.lists(st.builds("{}-{}".format, st.integers(0, 20), st.integers(10, 60)), max_size=4)
likely_flag = st.one_of(  # so that many a line is right
    st.builds(lambda flag, number: [flag, str(number)], st.sampled_from(["--num-trials", "--seed"]), st.integers(0, 9)),
    st.builds(lambda flag, number: [f"{flag}={number}"], st.just("--num-folds"), st.integers(1, 5)),
    st.builds(lambda flag, all: [flag, *all], st.sampled_from(["--hidden-units", "--channels"]), ranges),
    st.builds(
        lambda flag, low, high: [flag, f"{low:g}-{high:g}"],
        st.sampled_from(["--learning-rate", "--l2"]),
        st.floats(0, 0.1),
        st.floats(0.01, 1),
    ),
    st.builds(lambda all: ["--optimizers", *all], st.lists(st.sampled_from(["adam", "sgd", "rmsprop"]), max_size=3)),
    st.sampled_from([["--quick"], ["--no-quick"], ["--sampler", "tpe"], ["--widths", "exact"], ["--out", "x"]]),
    st.builds(lambda number: ["--members-per-program", str(number)], st.integers(0, 9)),
    st.builds(lambda number: ["--halving", str(number)], st.integers(1, 9)),
    st.builds(lambda number: ["--halving", "3", "--first-rung", str(number)], st.integers(0, 30)),
    st.sampled_from([["--brackets"], ["--halving", "3", "--brackets"]]),
)
lines = st.one_of(st.lists(likely_flag, max_size=4), st.lists(any_flag, max_size=3))


def assert_valid(config):
    """What a run relies on, written down once more."""
    search, program, space = config.search, config.program, config.study.space
    assert min(config.num_trials, search.num_epochs, search.batch_size) >= 1
    assert search.num_folds >= 2
    assert 0 <= search.seed < 2**32
    assert search.sampler in ("random", "tpe")
    assert search.halving is None or search.halving >= 2
    assert search.first_rung is None or (search.halving and 1 <= search.first_rung <= search.num_epochs)
    assert search.halving or not search.brackets
    assert program.widths in ("auto", "padded", "exact")
    assert program.members_per_program is None or program.members_per_program >= search.num_folds
    for name in ("hidden_units", "channels"):
        assert space.get(name, ("none",))
        assert all(1 <= r.low <= r.high <= 10_000 and r.width for r in space.get(name, ()))
    for name in ("learning_rate", "l2"):
        assert 0 < space[name].low <= space[name].high < float("inf")
        assert space[name].log
    assert space["optimizer"].among
    assert set(space["optimizer"].among) <= set(space["optimizer"].values) == {"adam", "sgd", "rmsprop"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STUDY, lines)
def test_any_flags_are_valid_settings_or_a_mistake_told_in_one_line(study, flags):
    args, out, err = [arg for flag in flags for arg in flag], io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            config, _ = cli.parse(study, "", args)
    except SystemExit as end:  # tyro's own message
        assert end.code == 2
        assert (out.getvalue(), "Traceback" in err.getvalue()) == ("", False)
        assert err.getvalue()
        return
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        assert re.match(r"\w+=|a flag has an empty value", str(error))
        return
    assert config.study.name == study.name
    assert_valid(config)


# CSV files.

cell = st.one_of(
    st.floats(-100, 100).map(repr),
    st.sampled_from(
        ["", " ", "0", "-1", "+2", " 3 ", ".5", "1e3", "nan", "NaN", "inf", "-Infinity", "1e39", "1e999", "9" * 5000]
        + ["1_0", "0x10", "1,5", "two", '"', '""', "'1'", "٣", "½", "−1", "\0", "1\u2028", "=1+1", "\ufeff", "\t4"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
quoted = cell.map(lambda text: '"{}"'.format(text.replace('"', '""')))
number = st.one_of(st.floats(-1e3, 1e3).map(repr), st.integers(-9, 9).map(str), st.integers(-9, 9).map('"{}"'.format))
header = st.sampled_from(
    ["input,label"] * 6
    + ["label,input", "input;label", "Input,Label", "x,y", "input", "input,label,extra", "", "1,2", ' input , "label"']
    + ["\ufeffinput,label", '"input,label"', '"input\nlabel",', "ïnput,label"]
)
blank = st.sampled_from(["", " ", "\t", ","])
good_row = st.tuples(number, number).map(",".join)
odd_row = st.lists(st.one_of(cell, quoted, number), max_size=4).map(",".join)
good_text = st.builds(
    lambda rows, end: end.join(["input,label", *rows]), st.lists(good_row, min_size=1), st.sampled_from(["\n", "\r\n"])
)
odd_text = st.builds(
    lambda first, rows, end: end.join([first, *rows]),
    header,
    st.lists(st.one_of(good_row, good_row, odd_row, blank), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\x85"]),
)
csv_text = st.one_of(good_text, odd_text, st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
encoding = st.sampled_from(["utf-8"] * 8 + ["utf-16", "latin-1"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(csv_text, encoding, st.booleans())
def test_any_csv_is_data_or_a_mistake_told_in_one_line(tmp_path, text, encoding, is_test):
    odd, good = tmp_path / "odd ü.csv", tmp_path / "good.csv"
    odd.write_bytes(text.encode(encoding, errors="replace"))
    good.write_text("input,label\n1,2\n3,4\n5,6\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    try:
        data = regression.from_csv(*((good, odd) if is_test else (odd, good)))
    except ValueError as error:
        assert str(error).startswith(f"{odd}: ")
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < len(str(odd)) + 200
    else:
        assert isinstance(data, Dataset)
        for x, y in (data[:2], data[2:4]):
            assert x.shape == y.shape == (len(x), 1)
            assert len(x) >= 1
            assert x.dtype == y.dtype == np.float32
            assert np.isfinite(x).all()
            assert np.isfinite(y).all()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good_text)
def test_rows_of_two_numbers_are_always_data(tmp_path, text):
    path = tmp_path / "good.csv"
    path.write_bytes(text.encode())
    rows = [[float(cell.strip('"')) for cell in line.split(",")] for line in text.splitlines()[1:]]
    data = regression.from_csv(path, path)
    np.testing.assert_array_equal(np.hstack([data.x_test, data.y_test]), np.float32(rows), strict=True)
