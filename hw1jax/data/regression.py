"""Data of the regression study: noisy samples of a scalar function, embedded or from the user's CSV files."""

import csv
import io
import math
import os

import numpy as np

from hw1jax.data import Dataset

LOW, HIGH = -5.0, 5.0  # the inputs' range
GAPS = ((-3.0, -1.0), (1.75, 3.1))  # open intervals without training inputs
NUM_TRAIN = NUM_TEST = 100
TRAIN_NOISE, TEST_NOISE = 0.5, 0.1  # standard deviations
SEED = 2021  # of the data, whatever a run's seed is

HEADER = ["input", "label"]
LARGEST = float(np.finfo(np.float32).max)


def target(x: np.ndarray) -> np.ndarray:
    """The curve without noise, elementwise: 2.05 - 1.46 x + 0.098 x^3 + 2.9 exp(-(x - 2)^2).

    Two bumps, near -2.2 and 1.9, and steep ends: about -2.9 at -5 and 7.0 at 5.
    """
    return 2.05 - 1.46 * x + 0.098 * x**3 + 2.9 * np.exp(-((x - 2) ** 2))


def load(train_csv: str | os.PathLike[str] | None = None, test_csv: str | os.PathLike[str] | None = None) -> Dataset:
    """Returns the embedded data, or those of two CSV files; raises a ValueError for one file alone."""
    if train_csv is None and test_csv is None:
        return embedded()
    if train_csv is None or test_csv is None:
        raise ValueError("train_csv= and test_csv= go together: give both, or neither for the embedded data")
    return from_csv(train_csv, test_csv)


def embedded() -> Dataset:
    """100 training and 100 test samples of `target`, the same at every call; float32 [100, 1] each, in random order.

    Training inputs are uniform on [-5, 5] outside `GAPS`, test inputs uniform on all of [-5, 5]; the noise is normal,
    with standard deviation 0.5 on the training labels and 0.1 on the test labels.
    """
    random = np.random.RandomState(SEED)  # numpy guarantees its stream
    x = random.uniform(LOW, HIGH, 10 * NUM_TRAIN)
    x_train = x[np.all([(x <= start) | (x >= stop) for start, stop in GAPS], axis=0)][:NUM_TRAIN]
    x_test = random.uniform(LOW, HIGH, NUM_TEST)
    y_train = target(x_train) + TRAIN_NOISE * random.standard_normal(NUM_TRAIN)
    y_test = target(x_test) + TEST_NOISE * random.standard_normal(NUM_TEST)
    return Dataset(*(values.astype(np.float32)[:, None] for values in (x_train, y_train, x_test, y_test)))


def from_csv(train_csv: str | os.PathLike[str], test_csv: str | os.PathLike[str]) -> Dataset:
    """Samples from two UTF-8 CSV files with the header `input,label` and two numbers a row; float32 [row, 1] each.

    Blank lines, a byte-order mark and any line ending are accepted. Raises ValueError, in one line that names the file,
    the row (the header is row 1) and what is expected there, for a file that can't be read or holds anything else.
    """
    return Dataset(*_read(train_csv), *_read(test_csv))


def _read(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and labels of one file, float32 [row, 1] each."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: expected a CSV file with the header input,label: {error.strerror}") from None
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: row {row}: expected UTF-8 text") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    filled = ((rows.line_num, row) for row in rows if len(row) > 1 or "".join(row).strip())
    try:
        line, header = next(filled, (1, []))
        if [cell.strip() for cell in header] != HEADER:
            raise ValueError(f"{path}: row {line}: expected the header input,label, found {_shown(header)}")
        samples = [_sample(row, f"{path}: row {line}") for line, row in filled]
    except csv.Error as error:
        raise ValueError(f"{path}: row {rows.line_num}: expected two numbers, input,label: {error}") from None
    if not samples:
        raise ValueError(f"{path}: row {line + 1}: expected at least one row of two numbers, input,label, found none")
    x, y = np.array(samples, np.float32).T  # [row] each
    return x[:, None], y[:, None]


def _sample(row: list[str], place: str) -> tuple[float, float]:
    try:
        x, y = (float(cell) for cell in row)
    except ValueError:  # a cell that is no number, or not two of them
        x = y = math.nan
    if not (abs(x) <= LARGEST and abs(y) <= LARGEST) or "_" in "".join(row):  # false for NaN; float("1_0") is 10
        raise ValueError(f"{place}: expected two finite float32 numbers, input,label, found {_shown(row)}")
    return x, y


def _shown(row: list[str]) -> str:
    """A row as one short line."""
    text = ascii(",".join(row)) if row else "nothing"
    return text if len(text) <= 60 else text[:60] + "..."
