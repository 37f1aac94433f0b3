"""The results of a run, read from its folder and checked against its study."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hw1jax import formatting, storage
from hw1jax.core import folds as folds_
from hw1jax.core import selection, tracebacks
from hw1jax.core.folds import Fold
from hw1jax.core.tasks import Task
from hw1jax.data import Dataset, sha256
from hw1jax.results import evaluation, run_folder
from hw1jax.results.trained_model import Model, are_close, read_model
from hw1jax.results.trials import Trials, read_trials
from hw1jax.search import networks, space_text, study_data
from hw1jax.search import study as study_
from hw1jax.search.space import Draw
from hw1jax.search.study import SearchConfig, Study

MOST_ROWS = 8  # trials shown in a notebook


class Best(NamedTuple):
    """The best trial by the study's score."""

    number: int
    params: Draw
    mean: float  # mean and standard deviation of the score over the folds
    std: float


class Classified(NamedTuple):
    """Outputs of a classifier and what they are of."""

    outputs: Any  # float [example, class]
    x: Any
    y: Any  # int [example]
    names: Sequence[str]  # of the classes
    part: str  # of the data: "test" or "training"
    where: str  # the same in words
    whose: str  # a sentence on the networks, unless they are the refit
    weights: np.ndarray | None = None  # [example]

    @property
    def accuracy(self) -> float:
        """Share of the examples that are classified right, by weight."""
        return evaluation.accuracy(self.outputs, self.y, self.weights)


class Results(NamedTuple):
    """All results of a run, and its data."""

    study: Study  # with the ranges of the run
    folder: Path
    record: dict[str, Any]  # results.json
    trials: Trials
    histories: dict[str, np.ndarray]  # histories.npz
    model: Model | None  # None if the refit diverged; with refit=False it has the fold models alone
    data: Dataset

    @property
    def best(self) -> Best:
        """The best trial."""
        best, name = self.record["best"], self.study.score
        params = space_text.draw_from_json(self.study.space, best["params"])
        return Best(best["number"], params, best[f"mean_val_{name}"], best[f"std_val_{name}"])

    @property
    def task(self) -> Task:
        """The task of the best trial at its own widths."""
        return networks.own(self.study, self.best.params).task

    @property
    def test(self) -> dict[str, Any] | None:
        """ "loss" and metrics, by name, of the refitted best trial on the test set; None without either of them."""
        return self.record["test"]

    @property
    def ensemble(self) -> dict[str, Any] | None:
        """As `test`, of the ensemble of the best trial's fold networks."""
        return self.record["ensemble"]

    @property
    def search_ensemble(self) -> dict[str, Any] | None:
        """The ensemble of the whole search (`ensemble=`), or None.

        "trials": each one's "number", "weight" and "params"; "out_of_fold": its loss and metrics, a little optimistic,
        since it was chosen by them, beside "best_out_of_fold" of the best trial; "test": as `test`, or None.
        """
        return self.record.get("search_ensemble")

    @property
    def folds(self) -> list[Fold]:
        """Training and validation samples of each fold.

        Raises:
          ValueError: the study's own `folds` are others than those of the run.
        """
        config = self.record["config"]
        search = SearchConfig(
            **{field.name: config[field.name] for field in fields(SearchConfig) if field.name in config}
        )
        splits = study_data.splits_of(replace(self.study, stratify=config["stratify"]), search, self.data)
        if config["own_folds"] not in (None, run_folder.digest_of_folds(splits)):
            raise ValueError(
                "folds= are others than those of the run: restore them, or give the splitter a random_state"
            )
        return splits

    @property
    def out_of_fold(self) -> Any:
        """Outputs [sample, ...] on the training samples, each by the best trial's fold network that held it out.

        NaN if no fold did; the mean if several did. Outputs that histories.npz lacks are computed on each access.

        Raises:
          ValueError: the run has kept neither these outputs nor the fold networks; or as of `folds`.
        """
        if "out_of_fold_outputs" in self.histories:
            return self.histories["out_of_fold_outputs"]
        if self.model is None or not self.model.folds:
            raise ValueError(f"out_of_fold: {self.folder} has no fold models")
        splits, x = self.folds, self.data.x_train
        with jax.default_matmul_precision(self.record["config"]["precision"]):
            return folds_.out_of_fold(splits, self.model.held_out(splits, x), len(jax.tree.leaves(x)[0]))

    @property
    def out_of_fold_probabilities(self) -> np.ndarray:
        """Class probabilities, float64 [sample, class]: the softmax of `out_of_fold`.

        Raises:
          ValueError: the loss is not `hw1jax.cross_entropy`; or as of `out_of_fold`.
        """
        if not self.has_probabilities:
            raise ValueError("out_of_fold_probabilities: the loss is not hw1jax.cross_entropy; use out_of_fold")
        return evaluation.softmax(self.out_of_fold)

    @property
    def has_probabilities(self) -> bool:
        """True if the softmax of the outputs are probabilities: the loss is `hw1jax.cross_entropy`, or wraps it."""
        return selection.combines_probabilities(self.task.loss)

    @property
    def failure(self) -> str | None:
        """The reason why there is no refitted model or its test loss isn't finite; None if nothing failed."""
        return self.record["refit"]["failure"]

    @property
    def warning(self) -> str | None:
        """A warning that the refit is worse than its folds, or None."""
        return self.record["refit"]["warning"]

    @property
    def stopped(self) -> str | None:
        """Why the search has fewer trials than it was asked for, or None."""
        return self.record.get("stopped")

    @property
    def row(self) -> int:
        """The best trial's row in `trials`."""
        return int(np.flatnonzero(self.trials["number"] == self.record["best"]["number"])[0])

    @property
    def num_folds(self) -> int:
        """The networks of a trial: folds, times repeats."""
        return self.trials.folds["loss"].shape[1]

    @property
    def repeats(self) -> int:
        """The trainings on each fold."""
        return self.record["config"].get("repeats", 1)

    @property
    def has_usual_data(self) -> bool:
        """True if the data are the study's default, not the user's files."""
        return not any(self.record["inputs"].values())

    @property
    def has_classes(self) -> bool:
        """True if y are class indices, each class has an output, and there are names or few classes (`classified`)."""
        return self.classified is not None

    @property
    def classified(self) -> Classified | None:
        """A classification on the test set, or without one out of fold; None for anything else."""
        h, data = self.histories, self.data
        if data.has_test_set:
            outputs = h.get("test_outputs", h.get("ensemble_outputs"))
            whose = "" if "test_outputs" in h else "The ensemble of the fold models. "
            classified = Classified(outputs, data.x_test, data.y_test, (), "test", "on the test set", whose)
        else:
            whose = "Each training sample as classified by the best trial's fold model that held it out. "
            whose += "" if data.weights is None else "Each counts once here, whatever its weight. "
            outputs, x, y, weights = h.get("out_of_fold_outputs"), data.x_train, data.y_train, data.weights
            if outputs is not None and np.isnan(outputs).any():  # some were never held out
                rows = np.flatnonzero(np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1))
                outputs, x, y, weights = jax.tree.map(lambda a: a[rows], (outputs, x, y, weights))
            classified = Classified(outputs, x, y, (), "training", "out of fold", whose, weights)
        if outputs is None or not evaluation.are_classes(self.study.classes, outputs, classified.y):
            return None
        if np.isnan(outputs).any():  # of a refit that diverged
            return None
        names = evaluation.class_names(self.study.classes, outputs)
        return classified._replace(names=names) if names else None

    @property
    def has_curve(self) -> bool:
        """True if the network maps one number to one number."""
        outputs, x, y = self.histories.get("test_outputs"), self.data.x_test, self.data.y_test
        if outputs is None or "curve_x" not in self.histories:
            return False
        return np.shape(x) == np.shape(y) == outputs.shape == (len(outputs), 1)

    @property
    def optuna_study(self) -> Any:
        """The search as an `optuna.Study`, for `optuna.visualization` and the like: a copy in memory.

        Raises:
          ValueError: journal.log is missing or damaged.
        """
        from hw1jax.search import optuna_search  # late: results are read without Optuna

        return optuna_search.read_study(self.folder / "journal.log", self.study.name, len(self.trials.rows))

    def __repr__(self) -> str:
        best, name = self.best, self.study.score
        pruned, complete = int(self.trials.pruned.sum()), int(self.trials.complete.sum())
        repeats = f" x {self.repeats} repeats" if self.repeats > 1 else ""
        counts = [f"{len(self.trials.rows)} trials", *([f"{pruned} pruned"] if pruned else [])]
        lines = [
            f"Results({self.study.name}: {', '.join(counts)}, {len(self.trials.rows) - pruned - complete} failed",
            f"best: trial {best.number}, {space_text.in_words(best.params)}",
            f"validation {name}: {best.mean:.4g} ± {best.std:.4g} over {self.num_folds // self.repeats} folds{repeats}",
        ]
        if self.test:
            lines.append(f"test: {_in_words(self.test) or self.failure}")
        elif self.failure:
            lines.append(self.failure)
        if self.ensemble:
            lines.append(f"ensemble of the folds: {_in_words(self.ensemble)}")
        if chosen := self.search_ensemble:
            own, tested = _in_words(chosen["out_of_fold"]), chosen["test"] and f"; test: {_in_words(chosen['test'])}"
            who = f"ensemble of {formatting.trials(len(chosen['trials']))}"
            lines.append(f"{who}: out of fold {own}{tested or ''}")
        shown = [textwrap.shorten(line, 98, placeholder=" ..") for line in lines]
        notes = [self.stopped, self.warning and f"warning: {self.warning}"]
        shown += [line for note in filter(None, notes) for line in textwrap.wrap(note, 98)]
        return "\n  ".join([*shown, f"folder: {self.folder})"])

    def _repr_html_(self) -> str:
        """Scores and a table of the best trials."""
        trials, scores = self.trials, dict.fromkeys([self.study.score, "loss", *self.study.metrics])
        rows: list[list[Any]] = [["trial", "state", *(f"validation {name}" for name in scores), *trials.params]]
        for i in np.argsort(trials["rank"], kind="stable")[:MOST_ROWS]:
            numbers = [trials.means[name][i] for name in scores] + [trials.params[name][i] for name in trials.params]
            shown = [f"{value:.4g}" if isinstance(value, np.floating) else value for value in numbers]
            rows.append([trials["number"][i], trials["state"][i], *shown])
        cells = [[f"<td>{html.escape(str(value))}</td>" for value in row] for row in rows]
        table = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
        lines = [line.strip() for line in repr(self).removeprefix("Results(").splitlines()[:-1]]
        return f"<p>{'<br>'.join(map(html.escape, lines))}</p><table>{table}</table>"

    def export_parameters(self, path: Path | str) -> Path:
        """Writes the refitted model's parameters as an npz that `numpy.load(path)` reads; returns the path.

        Names are those of `Model.named_parameters`, as "dense1/weights"; arrays have the shapes and dtypes of training
        (bfloat16 becomes float32), without padding.

        Raises:
          ValueError: there is no refitted model.
        """
        if self.model is None or not self.model.has_refit:
            raise ValueError(f"no parameters to export: {self.failure or 'there is no refit (refit=False)'}")
        storage.write_arrays(Path(path), self.model.named_parameters())
        return Path(path)


def _in_words(tested: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in tested.items() if isinstance(value, int | float))


@tracebacks.short
def load_results(folder: Path | str, study: Study) -> Results:
    """Reads the results of a study's run, and its data.

    The study's ranges and ranking score may have changed since the run: those of the run count.

    Raises:
      ValueError: a file is missing or damaged, or the data or the study differ from those of the run; one line.
    """
    return read_results(Path(folder), study_.afresh(study))


def read_results(folder: Path, study: Study) -> Results:
    """As `load_results`, with the networks of a study that has been used already."""
    with storage.read_lock(folder):
        return _read(folder, study)


def _read(folder: Path, study: Study) -> Results:
    record = run_folder.read_record(folder)
    if record["study"] != study.name:
        raise ValueError(f"{folder} holds results of the study {record['study'][:60]!r}, not {study.name}")
    try:
        study = _as_searched(study, record)
        trials = read_trials(folder / "trials.csv", study)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} was run with another study {study.name} than it is now ({error})") from None
    path = folder / "model.msgpack"
    model = read_model(path, study) if record["refit"]["state"] != "diverged" and path.exists() else None
    inputs = record["inputs"]
    named = {name: Path(inputs[name]) for name in study.inputs if inputs.get(name)}
    data = study_data.load_data(study, {name: named.get(name) for name in study.inputs})
    if sha256(data) != record["config"]["data_sha256"]:
        what = ", ".join(map(str, named.values())) or "the study's data"
        raise ValueError(
            f"{folder} was run with other data than {what} is now: restore the data (a function in data= must give the "
            "same each time), or repeat the run"
        )
    histories = storage.read_arrays(folder / "histories.npz")
    if model and "test_outputs" in histories and not are_close(model.predict(data.x_test), histories["test_outputs"]):
        raise ValueError(
            f"{folder} was run with another network than the study's is now: restore it, or repeat the run"
        )
    return Results(study, folder, record, trials, histories, model, data)


def study_of(folder: Path, studies: Mapping[str, Study]) -> Study:
    """Returns the study whose results a folder holds; raises a ValueError if it is none of these."""
    with storage.read_lock(folder):
        name = run_folder.read_record(folder)["study"]
    if name not in studies:
        raise ValueError(f"{folder} holds results of an unknown study {name[:60]!r}; there are {', '.join(studies)}")
    return studies[name]


def _as_searched(study: Study, record: dict[str, Any]) -> Study:
    """The study with the ranges and the score of the run; raises a ValueError if they don't fit."""
    config, name = record["config"], record["config"]["score"]
    if name not in ("loss", *study.metrics):
        raise ValueError(f"ranked by {name}, which the study doesn't have")
    space_text.draw_from_json(study.space, record["best"]["params"])
    searched = replace(study, minimize=name, maximize=name if config["direction"] == "maximize" else None)
    return study_.narrow(searched, **space_text.from_json(study.space, config["space"]))
