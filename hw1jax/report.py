"""The page that a run leaves behind, `report.html` in one self-contained file, and figures/*.png."""

import base64
import csv
import hashlib
import html
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hw1jax import evaluation, inspection, plots, storage, studies
from hw1jax.data import Dataset, regression
from hw1jax.model_file import Model, load_model
from hw1jax.studies import Study

PROFILE_INPUTS = (-2.0, 0.0, 2.0)  # where the homework report shows the regression's activations
TEST_IMAGE = 0  # the test image whose activations are shown
NUM_MISTAKES = 12  # misclassified images that are shown
LEARNED = 0.95  # a trial has learned something if its score is below this share of a constant's loss


class Trials(NamedTuple):
    """trials.csv."""

    rows: list[dict[str, str]]  # as they stand in the file
    numbers: np.ndarray  # int [trial]
    complete: np.ndarray  # bool [trial]; False for failed ones
    folds: np.ndarray  # float [trial, fold], validation loss after the last epoch
    means: np.ndarray  # float [trial]
    ranks: np.ndarray  # float [trial], 1 for the best; NaN for failed ones
    params: dict[str, np.ndarray]  # float [trial], or str for the optimizer


class Run(NamedTuple):
    """All that a run has left on disk, checked, and its data."""

    study: Study
    results: dict[str, Any]  # results.json
    trials: Trials
    histories: dict[str, np.ndarray]  # histories.npz
    model: Model
    data: Dataset
    gaps: tuple[tuple[float, float], ...]  # of the regression's training inputs

    @property
    def best(self) -> int:
        """The row of the best trial."""
        return int(np.flatnonzero(self.trials.numbers == self.results["best"]["number"])[0])


class Picture(NamedTuple):
    """A figure of the page.

    Attributes:
      name: of its file.
      alt: what it shows, in words, for those who can't see it.
      caption: the text below it.
      draw: makes it.
    """

    name: str
    alt: str
    caption: str
    draw: Callable[[], plots.Figure]


class Markup(str):
    """Text that is HTML already; any other is escaped."""


Section = tuple[str, list[Picture | Markup]]  # heading, content


def write(folder: Path) -> Path:
    """Draws the figures of a run and writes its page, from what is on disk alone.

    Args:
      folder: with results.json, trials.csv, histories.npz and model.msgpack of a finished run.

    Returns:
      The path of report.html.

    Raises:
      ValueError: a file is missing or damaged, or the data are not those of the run; the message is one line.
    """
    run = read_run(folder)
    sections = _sections(run)
    pngs = {}
    for _, items in sections:
        for picture in items:
            if isinstance(picture, Picture):
                with plots.style():
                    pngs[picture.name] = plots.png(picture.draw())
                storage.write_bytes(folder / "figures" / f"{picture.name}.png", pngs[picture.name])
    path = folder / "report.html"
    body = _study_html(run, sections, pngs, level=1)
    storage.write_bytes(path, _page(run.results["title"], body).encode())
    return path


def write_overview(folder: Path, run_folders: Sequence[Path], failures: dict[str, str]) -> Path:
    """Writes one page over several studies.

    Figures that `write` has drawn are taken as they are; a run without them is drawn first.

    Args:
      folder: of the page.
      run_folders: of the runs that have ended.
      failures: {study name: why it failed}. Studies that neither ended nor failed are said not to have run yet.

    Returns:
      The path of report.html.
    """
    titles = {study.name: study.title for study in studies.STUDIES}
    shown: dict[str, tuple[dict[str, Any], Markup]] = {}
    problems = dict(failures)
    for run_folder in run_folders:
        try:
            run = read_run(run_folder)
            sections = _sections(run)
            pngs = _read_pngs(run_folder, sections)
        except ValueError as error:
            problems.setdefault(run_folder.name, str(error))
            continue
        titles[run.study.name] = run.results["title"]
        shown[run.study.name] = run.results, _study_html(run, sections, pngs, level=2)
    parts, links = [], []
    for name in [*titles, *(name for name in problems if name not in titles)]:
        title = titles.get(name, name)
        links.append(f'<li><a href="#{_e(name)}">{_e(title)}</a></li>')
        if name in problems:
            note = f"<strong>{_e(title)} failed.</strong> {_e(problems[name])}"
        else:
            note = "" if name in shown else "This study has not run yet."
        if name not in shown:
            parts.append(f'<h2 id="{_e(name)}">{_e(title)}</h2>')
        if note:
            parts.append(f'<p class="notice">{note}</p>')
        if name in shown:
            parts.append(shown[name][1])
    headlines = _headlines([results for results, _ in shown.values()]) if shown else ""
    body = f"<h1>hw1jax: results</h1><nav><ul>{''.join(links)}</ul></nav>{headlines}{''.join(parts)}"
    body += _differences()
    path = folder / "report.html"
    storage.write_bytes(path, _page("hw1jax: results", body).encode())
    return path


def _read_pngs(folder: Path, sections: list[Section]) -> dict[str, bytes]:
    names = [item.name for _, items in sections for item in items if isinstance(item, Picture)]
    paths = {name: folder / "figures" / f"{name}.png" for name in names}
    ended = (folder / "results.json").stat().st_mtime
    if not all(path.exists() and path.stat().st_mtime >= ended for path in paths.values()):
        write(folder)
    return {name: path.read_bytes() for name, path in paths.items()}


# Reading a run


def read_run(folder: Path) -> Run:
    """Reads and checks what a run has left on disk, and its data.

    Raises:
      ValueError: a file is missing or damaged, or the data are not those of the run; the message is one line.
    """
    results = _read_results(folder / "results.json")
    study = studies.by_name(results["study"])
    trials = _read_trials(folder / "trials.csv", results)
    path = folder / "model.msgpack"
    try:
        model = load_model(path)
    except FileNotFoundError:
        raise _missing(path) from None
    if model.study != study.name:
        raise ValueError(f"{path} is of the study {model.study}, results.json beside it of {study.name}")
    inputs = results.get("inputs") or {}
    known = {field.name for field in fields(study.settings)}
    named = {name: Path(value) for name, value in inputs.items() if value and name in known}
    data = study.load(replace(study.settings, **named))
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(part) for part in data)).hexdigest()
    if digest != results["config"].get("data_sha256", digest):
        raise ValueError(f"{folder}: its data have changed since it ran ({named or 'embedded'}); run the study again")
    histories = _read_histories(folder / "histories.npz", study, trials, len(data.x_test))
    gaps = () if study.classes or named else regression.GAPS
    return Run(study, results, trials, histories, model, data, gaps)


_NUMBER = (int, float)
_EXPECTED = {
    "study": str,
    "title": str,
    "command": str,
    "config": {
        **dict.fromkeys(("num_trials", "num_epochs", "num_folds", "batch_size"), int),
        **dict.fromkeys(("hidden_units", "learning_rate", "l2", "optimizers"), list),
    },
    "environment": dict,
    "best": {"number": int, "params": dict, "mean_val_loss": _NUMBER, "std_val_loss": _NUMBER},
    "test": {"loss": _NUMBER, "accuracy": (*_NUMBER, type(None)), "confusion": (list, type(None))},
    "reported": {"params": dict, "test_loss": _NUMBER, "test_accuracy": (*_NUMBER, type(None))},
    "trials": {"complete": int, "failed": int},
    "timing": {"total_seconds": _NUMBER},
}


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        _check(results, _EXPECTED, "the file")
        if set(_choices(results["config"])) != set(_columns(results["best"]["params"])):
            raise ValueError("config and best.params name other hyperparameters")
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    return results


def _check(value: Any, expected: Any, name: str) -> None:
    """Raises a ValueError unless a value is of a type, or a dict that has at least these entries."""
    if not isinstance(expected, dict):
        if not isinstance(value, expected):
            raise ValueError(f"{name} is {type(value).__name__}")
        return
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {type(value).__name__}, not an object")
    for key, inner in expected.items():
        if key not in value:
            raise ValueError(f"{name} has no {key!r}")
        _check(value[key], inner, repr(key))


def _read_trials(path: Path, results: dict[str, Any]) -> Trials:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        splits = [f"split{i}_val_loss" for i in range(results["config"]["num_folds"])]
        params = _columns(results["best"]["params"])
        trials = Trials(
            rows,
            np.array([int(row["number"]) for row in rows]),
            np.array([row["state"] == "complete" for row in rows]),
            np.array([[float(row[split] or "nan") for split in splits] for row in rows]),
            np.array([float(row["mean_val_loss"] or "nan") for row in rows]),
            np.array([float(row["rank"] or "nan") for row in rows]),
            {name: np.array([row[name] for row in rows], str if name == "optimizer" else float) for name in params},
        )
        if results["best"]["number"] not in trials.numbers[trials.complete]:
            raise ValueError(f"no complete trial {results['best']['number']}, the best of results.json")
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise _damaged(path, error) from None
    return trials


def _read_histories(path: Path, study: Study, trials: Trials, num_test: int) -> dict[str, np.ndarray]:
    try:
        arrays = storage.read_arrays(path)
        num_epochs, num_outputs = len(arrays["refit_train_loss"]), len(study.classes or "1")
        losses = (*trials.folds.shape, num_epochs)
        expected = {"train_loss": losses, "val_loss": losses, "test_outputs": (num_test, num_outputs)}
        if not study.classes:
            num_points = len(arrays["curve_x"])
            expected |= {"curve_outputs": (num_points,), "curve_fold_outputs": (*trials.folds.shape, num_points)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has the shape {arrays[name].shape}, expected {shape}")
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from None
    return arrays


def _missing(path: Path) -> ValueError:
    return ValueError(f"{path} is missing: name the folder of a finished run, or repeat the run")


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is damaged ({reason}): repeat the run's command, which writes it again")


# What a study's page shows


def _sections(run: Run) -> list[Section]:
    """Headings, tables and figures of a study, in the order of the page."""
    sections = [
        ("Hyperparameters", [_hyperparameters(run.results)]),
        ("Data", _data_pictures(run)),
        ("Learning", _learning_pictures(run)),
        ("Test set", _classifier_pictures(run) if run.study.classes else _regression_pictures(run)),
        ("All trials", [*_trial_pictures(run), _trials_table(run)]),
        ("Inside the network", _network_pictures(run)),
        ("Where the time went", [_time_picture(run)]),
        ("How to repeat it", [_repeat(run.results)]),
    ]
    return sections


def _data_pictures(run: Run) -> list[Picture]:
    if run.study.classes:
        names = run.study.classes
        firsts = inspection.first_of_each_class(run.data.y_train, len(names))

        def draw_classes() -> plots.Figure:
            figure, axes = plots.figure(2, 5, height=3.0)
            for ax, (c, index) in zip(axes.flat, firsts.items(), strict=False):
                plots.image(ax, run.data.x_train[index], title=names[c])
            return figure

        caption = f"The first training image of each class: {len(run.data.x_train):,} training and "
        caption += f"{len(run.data.x_test):,} test images of 28 x 28 pixels."
        return [Picture("classes", f"Ten clothing pictures: {', '.join(names)}", caption, draw_classes)]

    def draw_data() -> plots.Figure:
        figure, axes = plots.figure(height=3.2)
        plots.regression_data(axes[0, 0], *_flat(run.data), gaps=run.gaps)
        return figure

    caption = f"{len(run.data.x_train)} noisy training points and {len(run.data.x_test)} test points."
    if run.gaps:
        caption += " The shaded intervals hold no training input: there the fit has to guess."
    return [Picture("data", "Training and test points of the regression in one plane", caption, draw_data)]


def _learning_pictures(run: Run) -> list[Picture]:
    h, best = run.histories, run.best

    def draw_profile() -> plots.Figure:
        figure, axes = plots.figure(height=3.2)
        train, val = h["train_loss"][best], h["val_loss"][best]
        means = train.mean(axis=0), val.mean(axis=0)
        plots.learning_profile(axes[0, 0], train, val, *means, h["refit_train_loss"], loss_name=run.study.loss_name)
        return figure

    def draw_curves() -> plots.Figure:
        figure, axes = plots.figure(height=3.2)
        curves = h["val_loss"].mean(axis=1)
        plots.validation_curves(axes[0, 0], curves, run.trials.complete, best, loss_name=run.study.loss_name)
        return figure

    score = f"{run.results['best']['mean_val_loss']:.4g}"
    return [
        Picture(
            "learning_profile",
            f"Loss by epoch of the best trial: training and validation of each fold, ending at {score} on validation",
            f"The best trial (number {run.results['best']['number']}): each fold thin, their mean bold, and its refit "
            "on all training data. Training losses are means over an epoch while the network changes.",
            draw_profile,
        ),
        Picture(
            "validation_curves",
            f"Validation loss by epoch of all {len(run.trials.rows)} trials, the best one marked",
            "Every trial of the search, the mean over its folds. The limits come from the trials that did not fail.",
            draw_curves,
        ),
    ]


def _regression_pictures(run: Run) -> list[Picture | Markup]:
    h = run.histories
    x, residual = run.data.x_test[:, 0], (h["test_outputs"] - run.data.y_test)[:, 0]
    inside = inspection.inside_gaps(x, run.gaps)
    losses = np.asarray(run.study.loss(h["test_outputs"], run.data.y_test))
    parts = {"inside the gaps": inside, "outside the gaps": ~inside, "all test points": np.ones(len(x), bool)}
    parts = {name: mask for name, mask in parts.items() if mask.any() and (run.gaps or mask.all())}
    errors = {name: float(losses[mask].mean()) for name, mask in parts.items()}
    parts_counts = {name: int(mask.sum()) for name, mask in parts.items()}

    def draw_fit() -> plots.Figure:
        figure, axes = plots.figure(height=3.6)
        plots.regression_data(axes[0, 0], *_flat(run.data), gaps=run.gaps)
        fold_curves = h["curve_fold_outputs"][run.best]
        low, high = fold_curves.min(axis=0), fold_curves.max(axis=0)
        plots.fitted_curve(axes[0, 0], h["curve_x"], h["curve_outputs"], low, high)
        return figure

    def draw_errors() -> plots.Figure:
        figure, axes = plots.figure(1, 2, height=2.8, width_ratios=[3, 2])
        plots.residuals(axes[0, 0], x, residual, inside, gaps=run.gaps)
        plots.bars(axes[0, 1], errors, title="By part of the test set", label=run.study.loss_name, decimals=3)
        return figure

    rows = [[name, parts_counts[name], _number(error)] for name, error in errors.items()]
    return [
        Picture(
            "fitted_curve",
            "The curve of the refitted best model over the data, with the range of its fold models as a band",
            "The refitted best model, and the range of the models that its folds trained: where they part, the data "
            "do not decide.",
            draw_fit,
        ),
        Picture(
            "test_errors",
            "; ".join(f"{run.study.loss_name} {name}: {error:.3g}" for name, error in errors.items()),
            "Errors of the refitted best model on the test points.",
            draw_errors,
        ),
        _table(["part of the test set", "points", run.study.loss_name], rows),
    ]


def _classifier_pictures(run: Run) -> list[Picture | Markup]:
    names, outputs, y = run.study.classes, run.histories["test_outputs"], run.data.y_test
    confusion = evaluation.confusion_matrix(outputs, y)
    precision, recall = evaluation.precision_and_recall(confusion)
    true, predicted = inspection.most_confused_pair(confusion)
    mistakes = inspection.misclassified(outputs, y, true, predicted)
    confidence = evaluation.softmax(outputs).max(axis=1)
    calibration = inspection.calibration(outputs, y)
    pair = f"{names[true]} that were taken for {names[predicted]}"

    def draw_confusion() -> plots.Figure:
        figure, axes = plots.figure(height=5.2)
        plots.confusion_matrix(axes[0, 0], evaluation.normalise_rows(confusion), names)
        return figure

    def draw_classes() -> plots.Figure:
        figure, axes = plots.figure(height=3.4)
        plots.precision_and_recall(axes[0, 0], precision, recall, names)
        return figure

    def draw_calibration() -> plots.Figure:
        figure, axes = plots.figure(1, 2, height=3.0)
        plots.reliability(axes[0, 0], calibration.confidence, calibration.accuracy)
        plots.confidence_histogram(axes[0, 1], calibration.edges, calibration.right, calibration.wrong)
        return figure

    def draw_mistakes() -> plots.Figure:
        figure, axes = plots.figure(2, NUM_MISTAKES // 2, height=2.8)
        figure.suptitle(f"Test images of {pair}", x=0.01, ha="left")
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, index in zip(axes.flat, mistakes, strict=False):
            plots.image(ax, run.data.x_test[index], title=f"{confidence[index]:.0%} sure")
        return figure

    rows = [[names[c], int(confusion[c].sum()), _number(precision[c]), _number(recall[c])] for c in range(len(names))]
    content = [
        Picture(
            "confusion",
            f"Confusion matrix, a row a true class; most often wrong: {pair}, {confusion[true, predicted]} images",
            f"Rows add up to 100 %. The most frequent mistake: {pair}, {confusion[true, predicted]} of "
            f"{confusion[true].sum()} images.",
            draw_confusion,
        ),
        Picture(
            "precision_recall",
            "Precision and recall of each class; the numbers are in the table below",
            "Precision: the share of the images called so that are so. Recall: the share of the class that was found.",
            draw_classes,
        ),
        Picture(
            "calibration",
            f"Reliability diagram and confidences; expected calibration error {calibration.expected_error:.3f}",
            "Confidence is the probability of the predicted class. Expected calibration error (10 bins): "
            f"{calibration.expected_error:.3f}.",
            draw_calibration,
        ),
    ]
    if len(mistakes):
        content.append(
            Picture(
                "mistakes",
                f"Test images of the most confused pair: {pair}",
                f"The most confused pair, {pair}: the {min(NUM_MISTAKES, len(mistakes))} of {len(mistakes)} mistakes "
                "that the network was surest of.",
                draw_mistakes,
            )
        )
    content.append(_table(["class", "test images", "precision", "recall"], rows))
    return content


def _trial_pictures(run: Run) -> list[Picture]:
    trials, best, study = run.trials, run.best, run.study
    constant = inspection.constant_loss(run.data.y_train, len(study.classes) if study.classes else None)
    learned = trials.means < LEARNED * constant
    names, choices = {name: _words(name) for name in run.model.draw.columns()}, _choices(run.results["config"])
    order = np.argsort(trials.ranks, kind="stable")  # failed ones, of rank NaN, come last
    num_failed, num_hollow = int(np.sum(~trials.complete)), int(np.sum(trials.complete & ~learned))

    def draw_scores() -> plots.Figure:
        figure, axes = plots.figure(height=3.0)
        plots.trial_scores(
            axes[0, 0],
            trials.numbers[order],
            trials.folds[order],
            trials.means[order],
            trials.complete[order],
            constant=constant,
            loss_name=study.loss_name,
        )
        return figure

    def draw_slices() -> plots.Figure:
        num_columns = 3 if len(names) in (3, 5, 6) else 4
        num_rows = -(-len(names) // num_columns)
        figure, axes = plots.figure(num_rows, num_columns, height=0.4 + 1.7 * num_rows, sharey=True)
        for ax in axes.flat[len(names) :]:
            ax.remove()
        for ax, (name, words) in zip(axes.flat, names.items(), strict=False):
            plots.hyperparameter_slice(
                ax,
                trials.params[name],
                trials.means,
                trials.complete,
                learned,
                best,
                name=words,
                choices=choices[name],
            )
        figure.supylabel(f"validation {study.loss_name}")
        return figure

    def draw_plane() -> plots.Figure:
        figure, axes = plots.figure(height=3.4)
        plots.score_plane(
            axes[0, 0],
            trials.params["learning_rate"],
            trials.params["l2"],
            trials.means,
            trials.complete,
            trials.params["optimizer"],
            best,
            x_range=choices["learning_rate"],
            y_range=choices["l2"],
            labels=("learning rate", "L2 coefficient", f"validation {study.loss_name}"),
        )
        return figure

    states = [f"{num_failed} failed (crosses at the top edge)."] if num_failed else []
    states += [f"{num_hollow} learned no more than a constant (hollow)."] if num_hollow else []
    state = " ".join(states)
    return [
        Picture(
            "trial_scores",
            f"Validation loss of each of {len(order)} trials with its folds; {num_failed} failed",
            f"The score of a trial is the mean over its folds after the last epoch. The dashed line is the loss "
            f"of the best constant, {constant:.3g}." + (f" {num_failed} failed." if num_failed else ""),
            draw_scores,
        ),
        Picture(
            "slices",
            f"Score against each of the hyperparameters {', '.join(names.values())}",
            f"Each hyperparameter against the score; dark is good, the ring is the best trial. {state}",
            draw_slices,
        ),
        Picture(
            "learning_rate_l2",
            "Learning rate and L2 coefficient of all trials, coloured by score, a marker an optimizer",
            "What usually matters most, together: learning rate, L2 and optimizer.",
            draw_plane,
        ),
    ]


def _network_pictures(run: Run) -> list[Picture]:
    weights, biases = inspection.weights(run.model), inspection.biases(run.model)

    def draw_weights() -> plots.Figure:
        num_rows = -(-len(weights) // 2)
        figure, axes = plots.figure(num_rows, 2, height=0.2 + 1.9 * num_rows)
        for ax in axes.flat[len(weights) :]:
            ax.remove()
        for ax, (name, values) in zip(axes.flat, weights.items(), strict=False):
            plots.weight_histogram(ax, values, biases[name], layer=_layer(name))
        return figure

    pictures = [
        Picture(
            "weights",
            f"Histograms of the weights of the layers {', '.join(map(_layer, weights))}",
            "Weights of each layer of the refitted best model; ticks below the axis are its biases.",
            draw_weights,
        )
    ]
    if run.model.draw.channels:
        pictures += _convolution_pictures(run)
    elif not run.study.classes:
        pictures.append(_activation_picture(run))
    return pictures


def _activation_picture(run: Run) -> Picture:
    found = inspection.activations(run.model, np.array(PROFILE_INPUTS, np.float32)[:, None])
    hidden = [name for name in found if name != "output"]

    def draw() -> plots.Figure:
        figure, axes = plots.figure(len(hidden), len(PROFILE_INPUTS), height=0.4 + 1.4 * len(hidden), sharey=True)
        for row, name in zip(axes, hidden, strict=True):
            row[0].set_ylabel(f"{_layer(name)}\nactivation")
            for i, (ax, x) in enumerate(zip(row, PROFILE_INPUTS, strict=True)):
                plots.activation_profile(ax, found[name][i], title=f"x = {x:g}" if name == hidden[0] else "")
        for ax in axes[-1]:
            ax.set_xlabel("unit")
        return figure

    inputs = ", ".join(f"{x:g}" for x in PROFILE_INPUTS)
    alt = f"Activation of every hidden unit for the inputs {inputs}"
    return Picture("activations", alt, f"{alt}: a row a layer, a column an input.", draw)


def _convolution_pictures(run: Run) -> list[Picture]:
    pixels, name = run.data.x_test[TEST_IMAGE], run.study.classes[run.data.y_test[TEST_IMAGE]]
    found = inspection.activations(run.model, pixels[None])
    fields = inspection.receptive_fields(run.model)

    def draw_maps() -> plots.Figure:
        heights = [0.4 + 0.95 * -(-len(found[layer][0]) // 5) for layer in fields]
        figure, axes = plots.figure(len(fields), 2, height=sum(heights), width_ratios=[1, 4.5], height_ratios=heights)
        for i, layer in enumerate(fields):
            maps = found[layer][0]
            size = " x ".join(map(str, maps.shape[1:]))
            plots.feature_maps(axes[i, 1], maps, title=f"{_layer(layer)}: {len(maps)} channels of {size}")
            axes[i, 0].set_axis_off()
        plots.image(axes[0, 0], pixels, title=f"test image {TEST_IMAGE}:\n{name}")
        return figure

    def draw_fields(layer: str) -> plots.Figure:
        num_channels, num_inputs, *size = fields[layer].shape
        figure, axes = plots.figure(height=1.1 + 5.0 * num_inputs / num_channels)
        shape = " x ".join(map(str, size))
        plots.receptive_fields(axes[0, 0], fields[layer], title=f"{_layer(layer)}: kernels of {shape} pixels")
        return figure

    def field_picture(layer: str) -> Picture:
        num_channels, num_inputs, *_ = fields[layer].shape
        shape = f"{num_inputs} x {num_channels}"
        return Picture(
            f"receptive_fields_{layer}",
            f"Receptive fields of {_layer(layer)}: a grid of {shape} kernels, input channels by channels",
            f"Receptive fields of {_layer(layer)}: a column a channel, a row an input channel ({shape}). Red weights "
            "are positive, blue negative.",
            lambda: draw_fields(layer),
        )

    return [
        *map(field_picture, fields),
        Picture(
            "feature_maps",
            f"Activations of every channel of the convolutions for a test image, {name}",
            f"What the convolutions make of a test image ({name}): activations after ReLU and before pooling.",
            draw_maps,
        ),
    ]


def _time_picture(run: Run) -> Picture:
    timing = {name: value for name, value in run.results["timing"].items() if isinstance(value, _NUMBER)}
    total = timing.pop("total_seconds")
    names = {
        "compile_seconds": "compiling",
        "train_seconds": "search (training and validation)",
        "refit_seconds": "refit of the best trial",
        "test_seconds": "test set",
    }
    parts = {names.get(name, _words(name)): float(seconds) for name, seconds in timing.items()}
    parts["the rest (start, data, files)"] = max(0.0, total - sum(parts.values()))

    def draw() -> plots.Figure:
        figure, axes = plots.figure(height=0.7 + 0.3 * len(parts))
        plots.bars(axes[0, 0], parts, title=f"{total:.1f} seconds in all", label="seconds", decimals=1)
        return figure

    alt = "; ".join(f"{name}: {seconds:.1f} s" for name, seconds in parts.items())
    return Picture("time", alt, "From the start of the process to results.json; figures and page come after.", draw)


def _flat(data: Dataset) -> list[np.ndarray]:
    """x_train, y_train, x_test, y_test of a regression, [example] each."""
    return [part[:, 0] for part in data]


# Tables


def _headlines(all_results: Iterable[dict[str, Any]]) -> Markup:
    """The numbers that count, a row a study, the report's beside them."""
    rows = []
    for r in all_results:
        accuracy, reported = r["test"]["accuracy"], r["reported"]["test_accuracy"]
        rows.append(
            [
                r["title"],
                _number(r["test"]["loss"]),
                _number(r["reported"]["test_loss"]),
                "-" if accuracy is None else _number(accuracy, "{:.1%}"),
                "-" if reported is None else _number(reported, "{:.0%}"),
                Markup(f"{_number(r['best']['mean_val_loss'])} ± {_number(r['best']['std_val_loss'])}"),
                Markup(f"{_number(r['trials']['complete'], '{}')} + {_number(r['trials']['failed'], '{}')} failed"),
                _number(r["timing"]["total_seconds"], "{:.0f} s"),
            ]
        )
    headings = ["study", "test loss", "report's test loss", "accuracy", "report's accuracy"]
    return _table([*headings, "validation loss", "trials", "time"], rows)


def _cards(results: dict[str, Any], loss_name: str) -> Markup:
    """The numbers that count, of one study, the report's beside them."""
    best, test, reported = results["best"], results["test"], results["reported"]
    cards = [
        ("test loss", _number(test["loss"]), f"{loss_name}; the report: {_number(reported['test_loss'], '{:.2f}')}")
    ]
    if test["accuracy"] is not None:
        beside = (
            "" if reported["test_accuracy"] is None else f"the report: {_number(reported['test_accuracy'], '{:.0%}')}"
        )
        cards.append(("test accuracy", _number(test["accuracy"], "{:.1%}"), beside))
    spread = f"± {_number(best['std_val_loss'])} over the folds, trial {_number(best['number'], '{}')}"
    cards.append(("validation loss", _number(best["mean_val_loss"]), spread))
    counts = [_number(results["trials"][name], "{}") for name in ("complete", "failed")]
    cards.append(("trials", counts[0], f"complete, {counts[1]} failed"))
    cards.append(("time", _number(results["timing"]["total_seconds"], "{:.0f} s"), "from start to results"))
    items = (f"<div><dt>{name}</dt><dd>{number}<small>{beside}</small></dd></div>" for name, number, beside in cards)
    return Markup(f'<dl class="cards">{"".join(items)}</dl>')


def _hyperparameters(results: dict[str, Any]) -> Markup:
    """Ranges and best values, the report's beside them."""
    best, reported = (_columns(results[name]["params"]) for name in ("best", "reported"))
    choices, rows = _choices(results["config"]), []
    for name, value in best.items():
        among = ", ".join(choices[name]) if name == "optimizer" else "{:g} - {:g}".format(*choices[name])
        if name in ("learning_rate", "l2"):
            among += ", logarithmic"
        rows.append([_words(name), among, _value(reported.get(name)), _value(value)])
    return _table(["hyperparameter", "range", "the report's best", "best of this run"], rows)


def _choices(config: dict[str, Any]) -> dict[str, Any]:
    """What could be drawn, by the names of trials.csv: (low, high), or the optimizers' names."""
    space = {name: config[name] for name in ("channels", "hidden_units") if name in config}
    ranges = _columns(space) | {name: config[name] for name in ("learning_rate", "l2")}
    return ranges | {"optimizer": config["optimizers"]}


def _columns(params: dict[str, Any]) -> dict[str, Any]:
    """A draw's values by the names of trials.csv."""
    columns = {}
    for name, value in params.items():
        columns |= {f"{name}_{i + 1}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
    return columns


def _trials_table(run: Run) -> Markup:
    rows = []
    for i in np.argsort(run.trials.ranks, kind="stable"):
        cells = [_value(_parsed(text)) for text in run.trials.rows[i].values()]
        rows.append([Markup(f"<strong>{_cell(cell)}</strong>") for cell in cells] if i == run.best else cells)
    return _table([_words(name) for name in run.trials.rows[0]], rows, caption="All trials, the best first")


def _repeat(results: dict[str, Any]) -> Markup:
    """The command, the settings, and on what it ran."""
    config = {_words(name): _setting(value) for name, value in results["config"].items()}
    inputs = {_words(name): value for name, value in (results.get("inputs") or {}).items() if value}
    environment = {_words(name): _setting(value) for name, value in results["environment"].items()}
    settings, environment = (list(map(list, pairs.items())) for pairs in (config | inputs, environment))
    return Markup(
        f"<p>From the root of the checkout:</p><pre><code>{_e(results['command'])}</code></pre>"
        f"{_table(['setting', 'value'], settings, caption='Settings')}"
        f"{_table(['what', 'value'], environment, caption='Environment')}"
    )


def _smaller(run: Run) -> str:
    """Says how the run differs from the report's amount of work; empty where it does not."""
    config, usual = run.results["config"], run.study.settings
    names = ("num_trials", "num_folds", "num_epochs", "batch_size")
    other = [f"{_words(n)} {config[n]} instead of {getattr(usual, n)}" for n in names if config[n] != getattr(usual, n)]
    return f"Not the report's amount of work: {', '.join(other)}." if other else ""


def _differences() -> Markup:
    return Markup(
        '<h2 id="differences">Where the report and this project differ</h2><ul>'
        "<li>The report prints a sum of squares for what is a mean; losses here are means over the examples.</li>"
        "<li>Its tables list activations on the rows of the inputs; here an activation follows a hidden layer.</li>"
        "<li>Its learning profiles plot the test loss of each epoch. Here the test set is looked at once, by the "
        "refitted best trial; profiles show the training and validation losses of the best trial's folds and the "
        "refit's training loss.</li>"
        "<li>Its table of the convolutional net names no pooling, but its activation profile of the second convolution "
        "is 11 x 11, which only 2 x 2 max-pooling after each convolution gives (28, 27, 13, 11, 5).</li></ul>"
    )


# HTML


def _study_html(run: Run, sections: list[Section], pngs: dict[str, bytes], *, level: int) -> Markup:
    """A study's part of a page, its title a heading of this level."""
    name, parts = run.study.name, []
    anchors = {heading: f"{name}-{heading.lower().replace(' ', '-')}" for heading, _ in sections}
    links = "".join(f'<li><a href="#{anchor}">{_e(heading)}</a></li>' for heading, anchor in anchors.items())
    parts.append(f'<h{level} id="{name}">{_e(run.results["title"])}</h{level}>')
    if smaller := _smaller(run):
        parts.append(f'<p class="notice">{_e(smaller)}</p>')
    parts.append(_cards(run.results, run.study.loss_name))
    parts.append(f"<nav><ul>{links}</ul></nav>")
    for heading, items in sections:
        parts.append(f'<h{level + 1} id="{anchors[heading]}">{_e(heading)}</h{level + 1}><div class="items">')
        for item in items:
            html = _image(item, pngs[item.name]) if isinstance(item, Picture) else f"<div>{item}</div>"
            parts.append(html)
        parts.append("</div>")
    if level == 1:
        parts.append(_differences())
    return Markup("".join(parts))


def _image(picture: Picture, png: bytes) -> str:
    width, height = struct.unpack(">2I", png[16:24])  # of the PNG's header
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{_e(picture.alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_e(picture.caption)}</figcaption></figure>"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "") -> Markup:
    head = "".join(f'<th scope="col">{_e(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    above = f"<caption>{_e(caption)}</caption>" if caption else ""
    kind = "pairs" if len(headings) == 2 else "grid"
    return Markup(
        f'<div class="scroll" tabindex="0"><table class="{kind}">{above}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, Markup) else _e(str(value))


def _number(value: float, form: str = "{:.3f}") -> Markup:
    """A number as people read it, and exactly for programs."""
    return Markup(f'<data value="{_e(repr(value))}">{_e(form.format(value))}</data>')


def _value(value: Any) -> Any:
    if value is None:
        return "-"
    return _number(value, "{:.4g}") if isinstance(value, float) else value


def _parsed(text: str) -> Any:
    """A cell of trials.csv as a float where it is one that is not whole."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


def _setting(value: Any) -> str:
    """A setting as a line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{_words(name)} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        ranges = all(isinstance(inner, list) for inner in value)
        numbers = all(isinstance(inner, int | float) for inner in value)
        return (", " if ranges or not numbers else " - ").join(map(_setting, value))
    return "-" if value is None else str(value)


def _words(name: str) -> str:
    """num_epochs -> epochs, learning_rate -> learning rate."""
    return {"l2": "L2"}.get(name, name.removeprefix("num_").replace("_", " "))


def _layer(name: str) -> str:
    """conv1 -> convolution 1, dense2 -> hidden layer 2, output -> output layer."""
    if name == "output":
        return "output layer"
    return name.replace("conv", "convolution ").replace("dense", "hidden layer ")


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{_e(title)}</title><style>{_STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


_STYLE = """
:root { --ink: #1b1d21; --soft: #5b616b; --paper: #fff; --card: #f4f5f7; --line: #d9dce1; --link: #0a58a8;
  --notice: #fff4e0; --edge: #d98200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --soft: #a3a9b4; --paper: #15171b; --card: #1f2227;
  --line: #363b44; --link: #7ab8ff; --notice: #33270f; --edge: #d98200; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 100rem; margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 3rem) 4rem; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.2; margin: 2rem 0 .75rem; }
h1 { font-size: 1.9rem; margin-top: 1rem; }
h2 { font-size: 1.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; margin-top: 3rem; }
p, li, figcaption { max-width: 46rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 1rem 0; }
.items { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1.25rem; }
.items > div { min-width: 0; grid-column: 1 / -1; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr)); gap: .75rem;
  margin: 1rem 0; max-width: 80rem; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
.cards dt { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.25; }
.cards small { display: block; color: var(--soft); font-size: .85rem; font-weight: 400; }
figure { margin: 0; min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem; align-self: start; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .9rem; padding: .5rem .2rem 0; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem; overflow-x: auto; }
.notice { background: var(--notice); border-left: 4px solid var(--edge); padding: .6rem .9rem; white-space: pre-wrap; }
caption { text-align: left; font-weight: 600; padding: .6rem 0 .2rem; }
.grid th, .grid td { white-space: nowrap; }
.pairs td { overflow-wrap: anywhere; }
.pairs td:first-child { overflow-wrap: normal; }
@media print { :root { --ink: #000; --soft: #333; --paper: #fff; --card: #fff; --line: #bbb; --link: #000;
  --notice: #fff; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  .items { display: block; } figure { break-inside: avoid; margin: 0 0 1rem; max-width: 6.5in; border: 0; padding: 0; }
  h2, h3, h4 { break-after: avoid; } tr { break-inside: avoid; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding-right: .4rem; } .grid th { white-space: normal; }
  .cards { grid-template-columns: repeat(5, 1fr); } .cards dd { font-size: 1.2rem; } }
"""
