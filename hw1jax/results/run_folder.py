"""The files of a run's folder: written here alone, and compared with their digests before they are read.

trials.csv      a row a trial
histories.npz   losses and metrics by epoch, NaN after a trial's last; outputs on the test set, if there is one
model.msgpack   the refitted best trial and its fold networks; missing if the refit diverged
results.json    the record: settings, best trial, test scores, environment, timing
results.sha256  digests of these files in `sha256sum`'s format; written last

A file that differs from its digest is damaged, or of another run, and isn't read. docs/results.md has every key and
column.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hw1jax import storage
from hw1jax.core.folds import Fold
from hw1jax.results.trained_model import Model, by_path, save_model
from hw1jax.results.trials import counting_curves, write_trials
from hw1jax.search import space_text
from hw1jax.search.plan import Bracket
from hw1jax.search.study import Study
from hw1jax.search.trial_score import TrialScore

FILES = ("trials.csv", "histories.npz", "model.msgpack", "results.json")
DIGESTS = "results.sha256"


def remove(folder: Path) -> None:
    """Removes a folder's search and results, and nothing else; without a search it removes nothing."""
    if not any((folder / name).exists() for name in ("journal.log", "brackets", DIGESTS)):
        return
    with storage.write_lock(folder):
        shutil.rmtree(folder / "brackets", ignore_errors=True)
        shutil.rmtree(folder / "figures", ignore_errors=True)
        for name in (*FILES, "report.html", DIGESTS, "journal.log"):
            (folder / name).unlink(missing_ok=True)


def summary(trial: TrialScore) -> dict[str, Any]:
    """The best trial's entry in the record."""
    means = {f"mean_val_{name}": finite(trial.mean(name)) for name in trial.scores}
    stds = {f"std_val_{name}": finite(trial.std(name)) for name in trial.scores}
    return {"number": trial.number, "params": space_text.draw_to_json(trial.draw)} | {
        name: value for pair in zip(means.items(), stds.items(), strict=True) for name, value in pair
    }


def rungs(
    trials: Sequence[TrialScore], brackets: Sequence[Bracket], seconds: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Counts of trials on each rung, by its last epoch, over all brackets.

    `seconds`: duration of the rungs, by the same epochs.
    """
    found: dict[int, dict[str, Any]] = {}
    for bracket in brackets:
        for end in bracket.ends:
            own = [trial for trial in trials if trial.number in bracket.numbers]
            on_it = [trial for trial in own if trial.epochs >= min(end, trial.draw.get("num_epochs", end))]
            counted = {
                "num_trials": len(on_it),
                "went_on": sum(trial.epochs > end for trial in on_it),
                "failed": sum(trial.epochs <= end and trial.state == "failed" for trial in on_it),
            }
            rung = found.setdefault(end, dict.fromkeys(counted, 0))
            rung |= {name: rung[name] + count for name, count in counted.items()}
    return [{"num_epochs": end, **found[end], "seconds": seconds.get(end, 0.0)} for end in sorted(found)]


def digest_of_folds(splits: Sequence[Fold]) -> str:
    """A digest of all indices, for the record's entry `own_folds`."""
    return storage.digest([[part.tolist() for part in fold] for fold in splits])


def reference(study: Study) -> dict[str, Any] | None:
    """The published results' entry in the record."""
    published = study.reference
    if published is None:
        return None
    params = space_text.draw_to_json(published.params)
    return {"name": published.name, "params": params, "test": dict(published.test), "data": published.data}


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

    `train_loss` and each of `val` are [trial, fold, epoch]; `arrays` are more of histories.npz; `x` are examples for
    the model's file, in which fold networks are dropped if one isn't finite.
    """
    histories = {"format": np.array(storage.FORMAT), "train_loss": train_loss}
    histories |= {f"val_{name}": values for name, values in val.items()}
    for name, tree in arrays.items():  # outputs can be trees
        histories |= {name + path: array for path, array in by_path(tree).items()}
    with storage.write_lock(folder):
        write_trials(folder / "trials.csv", study, trials, train_loss, val)
        storage.write_arrays(folder / "histories.npz", histories)
        folds = model.folds if model.has_ensemble else ()
        members = model.members if all(model.alone(member).has_ensemble for member in model.members) else ()
        if model.is_finite and (model.has_refit or folds):
            save_model(folder / "model.msgpack", model._replace(folds=folds, members=members), x)
        else:
            (folder / "model.msgpack").unlink(missing_ok=True)  # the best model of fewer trials
        storage.write_json(folder / "results.json", record)
        write_digests(folder)


def write_digests(folder: Path) -> None:
    """Writes results.sha256 for the files as they are."""
    storage.write_bytes(folder / DIGESTS, "".join(f"{line}\n" for line in _digests(folder).values()).encode())


def _digests(folder: Path) -> dict[str, str]:
    """The lines of results.sha256 by file, for existing files."""
    contents = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    return {name: f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in contents.items()}


def finite(value: float | np.floating) -> float | None:
    """The number, or None if it isn't finite: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def read_record(folder: Path) -> dict[str, Any]:
    """Reads results.json.

    Raises:
      ValueError: the run has not ended, or a file is damaged, missing or of another run; one line that names the file.
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


def read_curves(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads the record and the best trial's curves of any study's run.

    Returns:
      (content of results.json, {"train_loss", "val_loss", "val_" + metric: [fold, epoch]}). With early stopping, the
      best epoch of a fold goes on after it has stopped.

    Raises:
      ValueError: a file is missing or damaged; one line.
    """
    folder = Path(folder)
    with storage.read_lock(folder):
        record = read_record(folder)
        arrays = storage.read_arrays(folder / "histories.npz")
        with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    row = [row["number"] for row in rows].index(str(record["best"]["number"]))
    names = ["train_loss", *(name for name in arrays if name.startswith("val_"))]
    last = int(rows[row]["epochs"])
    curves = {name: arrays[name][row, :, :last] for name in names}
    if "early_stopping" in record["config"]:  # up to the last epoch of any fold
        end = np.flatnonzero(np.isfinite(curves["val_loss"]).any(axis=0))[-1] + 1
        best = np.array([[int(rows[row][f"split{i}_best_epoch"]) for i in range(len(curves["val_loss"]))]])
        curves = {name: counting_curves(own[None, :, :end], best, np.array([end]))[0] for name, own in curves.items()}
    return record, curves
