"""The files that a run leaves in its folder, written and read here alone.

trials.csv      a row a trial
histories.npz   losses and metrics by epoch, NaN after a trial's last; outputs on the test set
model.msgpack   the refitted best trial and the networks of its folds; none where the refit diverged
results.json    the record: what was asked, the best trial, what it does on the test set, on what, how long
results.sha256  the digests of these, as `sha256sum` writes them; the last file of a run

Files that differ from their digests are not read: they are damaged, or of two runs. docs/results.md has every key and
column.
"""

import csv
import hashlib
import html
import io
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hw1jax import evaluation, networks, storage
from hw1jax import space as space_
from hw1jax import study as study_
from hw1jax.data import Dataset, sha256
from hw1jax.space import Draw
from hw1jax.study import Study, TrialScore
from hw1jax.trained import Model, are_close, by_path, load_model, save_model
from hw1jax.training import Task
from hw1jax.trials import Trials, read_trials

FILES = ("trials.csv", "histories.npz", "model.msgpack", "results.json")
DIGESTS = "results.sha256"
MOST_ROWS = 8  # of trials, in a notebook

# What trials are worth


def best(trials: Sequence[TrialScore], study: Study) -> TrialScore | None:
    """The complete trial with the best mean score (the first of equals); None if there is none."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return min(complete, key=lambda trial: study_.place(trial, study), default=None)


def ranks(trials: Sequence[TrialScore], study: Study) -> list[int | None]:
    """Rank of each trial as `study.place` has it, 1 the best, equals sharing a rank; None for a failed one."""
    places = [None if trial.state == "failed" else study_.place(trial, study) for trial in trials]
    in_order = sorted(place for place in places if place)
    return [place and in_order.index(place) + 1 for place in places]


NOT_LESS = 0.1  # of the folds' highest loss: a refit that is above by less is like them, however close they are


def refit_warning(refit_train_loss: float, folds_train_loss: Sequence[float] | np.ndarray) -> str | None:
    """That the refit has ended far above the folds (`is_far_above`), in a sentence; None if it has not.

    Args:
      refit_train_loss: its training loss in the last epoch.
      folds_train_loss: [fold], of the same hyperparameters.
    """
    if not is_far_above(refit_train_loss, folds_train_loss):
        return None
    return (
        f"the refit ended at a training loss of {refit_train_loss:.3g}, where the folds ended at "
        f"{np.mean(folds_train_loss):.3g} on average and {np.max(folds_train_loss):.3g} at most: its optimizer has "
        "jumped in the last epochs, or has not settled"
    )


def test_warning(test_loss: float | None, folds_val_loss: Sequence[float]) -> str | None:
    """That the refit's test loss is far above what its folds have found (`is_far_above`); None if it is not.

    A refit of few epochs can end at chance with a training loss like the folds', which is the mean over an epoch.
    """
    if test_loss is None or not is_far_above(test_loss, folds_val_loss):
        return None
    return (
        f"the refit's loss on the test set is {test_loss:.3g}, where its folds had {np.mean(folds_val_loss):.3g} on "
        f"average and {np.max(folds_val_loss):.3g} at most on what they held out: its training has not settled, or the "
        "test set is of another kind"
    )


def is_far_above(loss: float, folds_loss: Sequence[float] | np.ndarray) -> bool:
    """True if a loss is far above those of the folds; False where these aren't finite.

    It is more than five of their standard deviations above their mean, and at least a tenth above the highest, as a few
    folds can be close to each other by chance; or more than twice the highest.
    """
    folds = np.asarray(folds_loss, np.float64)
    if not np.isfinite(folds).all():
        return False
    highest = float(folds.max())
    spread = float(folds.std(ddof=1)) if len(folds) > 1 else np.inf
    beyond = max(highest + NOT_LESS * abs(highest), float(folds.mean()) + 5 * spread)
    return not loss <= min(beyond, highest + abs(highest))


def score(model: Model, outputs: Any, y: Any) -> dict[str, Any]:
    """Mean loss and metrics, by name, of a model's outputs [example, ...] on y.

    For class indices there are "accuracy" and "confusion", counts [true class][predicted class], as well. All is None
    where the loss is not finite; a metric that is not is None alone.
    """
    functions = {"loss": model.task.loss, **model.study.metrics}
    found: dict[str, Any] = {name: _mean(function(outputs, y)) for name, function in functions.items()}
    found = {name: value if np.isfinite(value) else None for name, value in found.items()}
    if found["loss"] is None:
        found = dict.fromkeys(found)
    elif _are_classes(model.study, outputs, y):
        found.setdefault("accuracy", evaluation.accuracy(outputs, y))
        found["confusion"] = evaluation.confusion_matrix(outputs, y).tolist()
    return {"loss": found["loss"], "accuracy": None, "confusion": None} | found


def _mean(values: Any) -> float:
    """Of one value an example, added up in float32 at least."""
    values = np.asarray(values)
    return float(np.mean(values, dtype=np.promote_types(values.dtype, np.float32)))


def _are_classes(study: Study, outputs: Any, y: Any) -> bool:
    """Whether y are class indices of the study's classes, and outputs a value for each class."""
    if not study.classes or not (isinstance(outputs, np.ndarray) and isinstance(y, np.ndarray)):
        return False
    if outputs.shape != (len(y), len(study.classes)) or y.ndim != 1 or y.dtype.kind not in "iu":
        return False
    return bool(np.all((y >= 0) & (y < len(study.classes))))


# Writing


def remove(folder: Path) -> None:
    """Removes the search and the results that a folder holds, and nothing else."""
    with storage.write_lock(folder):
        for name in (DIGESTS, *FILES, "report.html", "journal.log"):
            (folder / name).unlink(missing_ok=True)
        for name in ("brackets", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)


def summary(study: Study, trial: TrialScore) -> dict[str, Any]:
    """The best trial, as the record has it."""
    means = {f"mean_val_{name}": finite(trial.mean(name)) for name in trial.scores}
    stds = {f"std_val_{name}": finite(trial.std(name)) for name in trial.scores}
    return {"number": trial.number, "params": space_.draw_to_json(trial.draw)} | {
        name: value for pair in zip(means.items(), stds.items(), strict=True) for name, value in pair
    }


def reference(study: Study) -> dict[str, Any] | None:
    """What others have found, as the record has it."""
    found = study.reference
    if found is None:
        return None
    params = space_.draw_to_json(found.params)
    return {"name": found.name, "params": params, "test": dict(found.test), "data": found.data}


def write(
    folder: Path,
    study: Study,
    record: dict[str, Any],
    trials: Sequence[TrialScore],
    train_loss: np.ndarray,
    val: Mapping[str, np.ndarray],
    arrays: Mapping[str, Any],
    model: Model,
    x: Any = None,
) -> None:
    """Writes all files of a run, their digests last.

    Args:
      folder: where.
      study: whose run it was.
      record: for results.json.
      trials: all of them.
      train_loss: [trial, fold, epoch].
      val: "loss" and metrics by name, [trial, fold, epoch] each.
      arrays: what histories.npz has beside these.
      model: the refitted best one, with its fold models; those are left out where one isn't finite.
      x: examples, for the model's file.
    """
    histories = {"format": np.array(storage.FORMAT), "train_loss": train_loss}
    histories |= {f"val_{name}": values for name, values in val.items()}
    for name, tree in arrays.items():  # outputs may be a tree of arrays
        histories |= {name + path: array for path, array in by_path(tree).items()}
    with storage.write_lock(folder):
        write_trials(folder / "trials.csv", study, trials, train_loss, val)
        storage.write_arrays(folder / "histories.npz", histories)
        if model.is_finite:
            folds = model.folds if model.has_ensemble else ()
            save_model(folder / "model.msgpack", model._replace(folds=folds), x)
        else:
            (folder / "model.msgpack").unlink(missing_ok=True)  # the best model of fewer trials
        storage.write_json(folder / "results.json", record)
        write_digests(folder)


def write_digests(folder: Path) -> None:
    """Writes results.sha256 for the files of a run as they are: from here on they are read."""
    storage.write_bytes(folder / DIGESTS, "".join(f"{line}\n" for line in _digests(folder).values()).encode())


def _digests(folder: Path) -> dict[str, str]:
    """The lines of results.sha256 by file, for the files that are there."""
    contents = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    return {name: f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in contents.items()}


def write_trials(
    path: Path, study: Study, trials: Sequence[TrialScore], train_loss: np.ndarray, val: Mapping[str, np.ndarray]
) -> None:
    """trials.csv: a row a trial, in scikit-learn's words; a failed one says in which epoch it diverged.

    `train_loss` and each of `val`, "loss" and metrics by name, are [trial, fold, epoch]; what they hold after a trial's
    last epoch doesn't count.
    """
    text = io.StringIO()
    finite = np.isfinite(train_loss) & np.isfinite(val["loss"]) & np.isfinite(val[study.score])
    rows = []
    for trial, rank, own in zip(trials, ranks(trials, study), np.all(finite, axis=1), strict=True):
        row = {"number": trial.number, "state": trial.state, "epochs": trial.epochs} | space_.flatten(trial.draw)
        for name, folds in trial.scores.items():
            row |= {f"split{i}_val_{name}": value for i, value in enumerate(folds)}
            row |= {f"mean_val_{name}": trial.mean(name), f"std_val_{name}": trial.std(name)}
        diverged = 1 + int(np.argmin(own[: trial.epochs])) if trial.state == "failed" else ""
        rows.append(row | {"rank": rank, "diverged_epoch": diverged})
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(path, text.getvalue().encode())


def finite(value: float | np.floating) -> float | None:
    """A number as the record has it: JSON has none that isn't finite."""
    return float(value) if np.isfinite(value) else None


# What is there already


def read_record(folder: Path) -> dict[str, Any]:
    """The content of results.json.

    Raises:
      ValueError: no run has ended in the folder, or one of its files is damaged, missing or of another run; the message
        is one line that names the file.
    """
    for name in ("results.json", DIGESTS):
        if not (folder / name).exists():
            raise ValueError(f"{folder / name} is missing: name the folder of a finished run, or repeat the run")
    recorded = (folder / DIGESTS).read_text(encoding="utf-8", errors="replace").splitlines()
    now = _digests(folder)
    for name in FILES:
        before = next((line for line in recorded if line.endswith(f"  {name}")), None)
        if now.get(name) != before:
            what = "is missing" if name not in now else f"differs from its digest in {DIGESTS}"
            raise ValueError(f"{folder / name} {what}: repeat the run's command, which writes it again")
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    storage.check_format(record, folder / "results.json")
    return record


def ended(folder: Path) -> dict[str, Any]:
    """As `read_record`, but empty where no run has ended, or its files can't be trusted."""
    try:
        return read_record(folder)
    except ValueError:
        return {}


# Reading


class Best(NamedTuple):
    """The best trial, by the study's score."""

    number: int
    params: Draw
    mean: float  # of the score, over the folds
    std: float


class Results(NamedTuple):
    """All that a run has left on disk, checked, and its data."""

    study: Study  # as it was searched: its ranges are those of the run
    folder: Path
    record: dict[str, Any]  # results.json
    trials: Trials
    histories: dict[str, np.ndarray]  # histories.npz
    model: Model | None  # None where the refit diverged
    data: Dataset

    @property
    def best(self) -> Best:
        """The best trial."""
        found, name = self.record["best"], self.study.score
        params = space_.draw_from_json(self.study.space, found["params"])
        return Best(found["number"], params, found[f"mean_val_{name}"], found[f"std_val_{name}"])

    @property
    def task(self) -> Task:
        """The task of the best trial at its own widths."""
        return networks.own(self.study, self.best.params).task

    @property
    def test(self) -> dict[str, Any]:
        """The refitted best trial's "loss" and metrics on the test set, by name."""
        return self.record["test"]

    @property
    def ensemble(self) -> dict[str, Any] | None:
        """What the networks of the best trial's folds do together on the test set, as `test`; None without them."""
        return self.record["ensemble"]

    @property
    def failure(self) -> str | None:
        """Why there is no test loss, in a line; None if there is one."""
        return self.record["refit"]["failure"]

    @property
    def warning(self) -> str | None:
        """Why the refitted model is not what its folds are, in a line; None if it is like them."""
        return self.record["refit"]["warning"]

    @property
    def row(self) -> int:
        """The row of the best trial."""
        return int(np.flatnonzero(self.trials.numbers == self.record["best"]["number"])[0])

    @property
    def num_folds(self) -> int:
        """Folds of the cross-validation."""
        return self.trials.folds["loss"].shape[1]

    @property
    def has_usual_data(self) -> bool:
        """Whether the data are the study's own, and not a person's files."""
        return not any(self.record["inputs"].values())

    @property
    def has_classes(self) -> bool:
        """Whether the test set's labels are indices of the study's classes, and each class has an output."""
        return _are_classes(self.study, self.histories.get("test_outputs"), self.data.y_test)

    @property
    def has_curve(self) -> bool:
        """Whether one number is predicted from one number, so that the fit is a curve."""
        outputs, x, y = self.histories.get("test_outputs"), self.data.x_test, self.data.y_test
        if outputs is None or "curve_x" not in self.histories:
            return False
        return np.shape(x) == np.shape(y) == outputs.shape == (len(outputs), 1)

    def __repr__(self) -> str:
        best, name = self.best, self.study.score
        pruned, complete = int(self.trials.pruned.sum()), int(self.trials.complete.sum())
        counts = [f"{len(self.trials.rows)} trials", *([f"{pruned} pruned"] if pruned else [])]
        lines = [
            f"Results({self.study.name}: {', '.join(counts)}, {len(self.trials.rows) - pruned - complete} failed",
            f"best: trial {best.number}, {space_.in_words(best.params)}",
            f"validation {name}: {best.mean:.4g} ± {best.std:.4g} over {self.num_folds} folds",
            f"test: {_in_words(self.test) or self.failure}",
            *([f"ensemble of the folds: {_in_words(self.ensemble)}"] if self.ensemble else []),
        ]
        shown = [textwrap.shorten(line, 98, placeholder=" ..") for line in lines]
        shown += textwrap.wrap(f"warning: {self.warning}", 98) if self.warning else []
        return "\n  ".join([*shown, _cut(f"folder: {self.folder})", 98)])

    def _repr_html_(self) -> str:
        """The numbers that count, without the folder, and a table of the best trials."""
        trials, scores = self.trials, dict.fromkeys([self.study.score, "loss", *self.study.metrics])
        rows: list[list[Any]] = [["trial", "state", *(f"validation {name}" for name in scores), *trials.params]]
        for i in np.argsort(trials.ranks, kind="stable")[:MOST_ROWS]:
            numbers = [trials.means[name][i] for name in scores] + [trials.params[name][i] for name in trials.params]
            shown = [f"{value:.4g}" if isinstance(value, np.floating) else value for value in numbers]
            rows.append([trials.numbers[i], trials.states[i], *shown])
        cells = [[f"<td>{html.escape(str(value))}</td>" for value in row] for row in rows]
        table = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
        lines = [line.strip() for line in repr(self).removeprefix("Results(").splitlines()[:-1]]
        return f"<p>{'<br>'.join(map(html.escape, lines))}</p><table>{table}</table>"

    def export_parameters(self, path: Path | str) -> Path:
        """Writes the refitted best model's parameters as an npz that `numpy.load(path)` reads.

        Its names are `Model.named_parameters`'s, as "dense1/weights"; arrays have the shapes and dtypes of training
        (bfloat16, which numpy has not, becomes float32), without padding.

        Returns:
          The path.

        Raises:
          ValueError: there is no model, as the refit has diverged.
        """
        if self.model is None:
            raise ValueError(f"no parameters to export: {self.failure}")
        storage.write_arrays(Path(path), self.model.named_parameters())
        return Path(path)


def _cut(text: str, most: int) -> str:
    """A text without spaces, its middle left out where it is long."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}..{text[-(most // 2 - 1) :]}"


def _in_words(tested: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in tested.items() if isinstance(value, int | float))


def load_results(folder: Path | str, study: Study) -> Results:
    """Reads what a run of the study has left in a folder, and its data.

    Ranges of the study's space, and how its trials are ranked, may be others by now: those of the run count.

    Raises:
      ValueError: a file is missing or damaged, or the data or the study are not those of the run; the message is one
        line.
    """
    folder = Path(folder)
    with storage.read_lock(folder):
        return _read(folder, study)


def _read(folder: Path, study: Study) -> Results:
    record = read_record(folder)
    if record["study"] != study.name:
        raise ValueError(f"{folder} holds results of the study {record['study'][:60]!r}, not {study.name}")
    try:
        study = _as_searched(study, record)
        trials = read_trials(folder / "trials.csv", study)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} was run with another study {study.name} than it is now ({error})") from None
    model = None if record["refit"]["state"] == "diverged" else load_model(folder / "model.msgpack", study)
    inputs = record["inputs"]
    named = {name: Path(inputs[name]) for name in study.inputs if inputs.get(name)}
    data = study_.load_data(study, {name: named.get(name) for name in study.inputs})
    if sha256(data) != record["config"]["data_sha256"]:
        what = ", ".join(map(str, named.values())) or "the usual data"
        raise ValueError(f"{folder} was run with other data than {what} is now: restore the data, or repeat the run")
    histories = storage.read_arrays(folder / "histories.npz")
    if model and "test_outputs" in histories and not are_close(model.predict(data.x_test), histories["test_outputs"]):
        raise ValueError(
            f"{folder} was run with another network than the study's is now: restore it, or repeat the run"
        )
    return Results(study, folder, record, trials, histories, model, data)


def read_curves(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Of a run of whatever study: its record, and losses and metrics by epoch of its best trial.

    Returns:
      What results.json holds, and "train_loss", "val_loss" and "val_" + each metric by name: [fold, epoch].

    Raises:
      ValueError: a file is missing or damaged; the message is one line.
    """
    folder = Path(folder)
    with storage.read_lock(folder):
        record = read_record(folder)
        arrays = storage.read_arrays(folder / "histories.npz")
        with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
            row = [row["number"] for row in csv.DictReader(file)].index(str(record["best"]["number"]))
    names = ["train_loss", *(name for name in arrays if name.startswith("val_"))]
    return record, {name: arrays[name][row] for name in names}


def study_of(folder: Path, studies: Mapping[str, Study]) -> Study:
    """Whose results a folder holds; a ValueError of one line if it is none of these."""
    with storage.read_lock(folder):
        name = read_record(folder)["study"]
    if name not in studies:
        raise ValueError(f"{folder} holds results of an unknown study {name[:60]!r}; there are {', '.join(studies)}")
    return studies[name]


def _as_searched(study: Study, record: dict[str, Any]) -> Study:
    """The study with the ranges and the score of the run; a ValueError if it can't have them."""
    config, name = record["config"], record["config"]["score"]
    if name not in ("loss", *study.metrics):
        raise ValueError(f"ranked by {name}, which the study doesn't have")
    space_.draw_from_json(study.space, record["best"]["params"])
    searched = replace(study, minimize=name, maximize=name if config["direction"] == "maximize" else None)
    return study_.narrow(searched, **space_.from_json(study.space, config["space"]))
