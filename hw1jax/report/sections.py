"""A page's sections: what a run has left, as figures and tables. A study may have its own beside them.

A section is a function of a run's results that returns an item (see `items`) or a list of them, in the page's order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from hw1jax import formatting
from hw1jax.report import html, plots, trial_plots
from hw1jax.report.html import Figure, Item, Markup, Panel, grid, table, words
from hw1jax.report.trials import end_of_scale, scores_of
from hw1jax.results import evaluation
from hw1jax.results.results import Results
from hw1jax.results.trials import where_defined
from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Int, Range

NUM_MISTAKES = 12  # misclassified images that are shown
MOST_CLASSES = 20  # whose pictures are shown
PARTS = {"training": "train", "validation": "val"}  # of a fold, with their names in histories.npz
Gaps = Sequence[tuple[float, float]]  # intervals of the inputs without training points


def hyperparameters(results: Results) -> Markup:
    """A table of the ranges and the best values, beside those of the reference."""
    reference, space = results.record["reference"], results.study.space
    best = space_.flatten(results.best.params, space)
    others = space_.flatten(reference["params"], space) if reference else {}
    rows = []
    for name, r in space_.columns(space).items():
        scale = "" if isinstance(r, Choice) or not r.log else ", log scale"
        values = [others.get(name, "-"), best[name]] if reference else [best[name]]
        rows.append([words(name), _in_words(r) + scale, *map(html.hyperparameter, values)])
    theirs = [f"{reference['name']}'s best"] if reference else []
    return table(["hyperparameter", "range", *theirs, "best of this run"], rows)


def repeats(results: Results) -> list[Item]:
    """How far the best trial's scores differ between folds and between repeats; nothing without repeats."""
    if results.repeats == 1:
        return []
    rows = []
    for name, values in results.trials.folds.items():
        each = values[results.row].reshape(results.repeats, -1)  # [repeat, fold]
        spreads = [html.spread(float(each.mean()), float(np.std(each.mean(axis=axis))), name) for axis in (0, 1)]
        rows.append([results.study.loss_name if name == "loss" else words(name), *spreads])
    between = ["between folds (means of the repeats)", "between repeats (means of the folds)"]
    return [table(["validation of the best trial", *between], rows)]


def _in_words(r: Range) -> str:
    step = f", step {r.step}" if isinstance(r, Int) and r.step != 1 else ""
    return str(r) if isinstance(r, Choice) else f"{r.low:g} - {r.high:g}{step}"


# The data


def data(results: Results) -> list[Item]:
    """The training and test data."""
    if results.has_classes and has_images(results):
        return [_classes(results)]
    if results.has_curve:
        return [points(results)]
    parts = {"training": results.data[:2]} | ({"test": results.data[2:4]} if results.data.has_test_set else {})
    rows = [[name, f"{len(jax.tree.leaves(x)[0]):,}", _arrays(x), _arrays(y)] for name, (x, y) in parts.items()]
    return [table(["part", "examples", "an example's x", "its y"], rows)]


def _arrays(tree: Any) -> str:
    """{"image": uint8 [28, 28], ..} in words, without the axis that counts examples."""
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    return ", ".join(f"{name} {leaf.dtype} {list(leaf.shape[1:]) or ''}".strip() for name, leaf in named)


def has_images(results: Results) -> bool:
    """True if the inputs are images: uint8, grey or in colours."""
    x = results.data.x_test if results.data.has_test_set else results.data.x_train
    return isinstance(x, np.ndarray) and x.dtype == np.uint8 and (x.ndim == 3 or x.shape[3:] in ((1,), (3,)))


def image(x: np.ndarray, i: int, title: str) -> Panel:
    """The i-th of images."""
    return partial(plots.image, pixels=x[i, :, :, 0] if x.shape[3:] == (1,) else x[i], title=title)


def first_of_each_class(y: np.ndarray, num_classes: int) -> dict[int, int]:
    """{class: index of its first example}, without the classes that `y` (int [example]) does not have."""
    return {c: int(np.flatnonzero(y == c)[0]) for c in range(num_classes) if np.any(y == c)}


def _classes(results: Results) -> Figure:
    names, (x, y, x_test, *_) = results.study.classes or (), results.data
    firsts = first_of_each_class(y, min(len(names), MOST_CLASSES))
    panels = [image(x, i, names[c]) for c, i in firsts.items()]
    counts = f"{len(x):,} training and {len(x_test):,} test images of {x.shape[1]} x {x.shape[2]} pixels"
    alt = f"A picture of each class: {', '.join(names[c] for c in firsts)}"
    draw = grid(panels, 5, height=1.5 * -(-len(panels) // 5))
    return Figure("classes", alt, f"The first training image of each class: {counts}.", draw)


def points(results: Results, gaps: Gaps = ()) -> Figure:
    """The points of a scalar regression. `gaps`: intervals of the usual data's inputs without training points."""
    gaps = _gaps(results, gaps)
    x_train, _, x_test, *_ = results.data
    caption = f"{len(x_train)} training points" + ("." if x_test is None else f" and {len(x_test)} test points.")
    if gaps:
        caption += " The shaded intervals hold no training input: there the fit has to guess."
    alt = f"Training {'points' if x_test is None else 'and test points'} of the regression in one plane"
    return Figure("data", alt, caption, grid([_draw_points(results, gaps)], 1, height=3.2))


def _draw_points(results: Results, gaps: Gaps) -> Panel:
    names = ("x_train", "y_train", "x_test", "y_test")[: 4 if results.data.has_test_set else 2]
    flat = {name: getattr(results.data, name)[:, 0] for name in names}
    return partial(plots.regression_data, gaps=gaps, **flat)


def _gaps(results: Results, gaps: Gaps) -> Gaps:
    """The gaps of the study's usual data; none for a user's own files, which may have others."""
    return gaps if results.has_usual_data else ()


def inside_gaps(x: np.ndarray, gaps: Gaps) -> np.ndarray:
    """Which inputs lie in one of the open intervals, bool of the shape of `x`."""
    inside = [(start < x) & (x < stop) for start, stop in gaps]
    return np.any(inside, axis=0) if inside else np.zeros(x.shape, bool)


# Learning


def learning(results: Results) -> list[Item]:
    """Losses and metrics by epoch, of the best trial and of all."""
    profile, every = learning_panels(results)
    refit = ", and its refit on all training data" if "refit_train_loss" in results.histories else ""
    num_trials, limit = len(results.trials.rows), end_of_scale(results, "loss")[1]
    last = float(best_curves(results, "val_loss").mean(axis=0)[-1])
    ends = " A ring ends the line of a pruned one." if results.trials.pruned.any() else ""
    beyond = f", and those that ended beyond {limit}," if limit else ""
    return [
        Figure(
            "learning_profile",
            f"Loss by epoch of the best trial, training and validation; validation ends at {last:.4g}",
            f"The best trial (number {results.best.number}): each fold thin, their mean bold{refit}. "
            "Training losses are means over an epoch while the network changes.",
            grid([profile], 1, height=3.2),
        ),
        Figure(
            "validation_curves",
            f"Validation loss by epoch of all {num_trials} trials, the best one marked",
            f"All trials of the search, the mean over the folds.{ends} Failed ones{beyond} don't count for the limits.",
            grid([every], 1, height=3.2),
        ),
        *(_metric_by_epoch(results, name) for name in results.study.metrics),
    ]


def best_curves(results: Results, name: str) -> np.ndarray:
    """A history of the best trial up to its last epoch, [fold, epoch]."""
    return results.histories[name][results.row][:, : results.trials["epochs"][results.row]]


def learning_panels(results: Results) -> list[Panel]:
    """Losses by epoch, of the best trial and of all."""
    folds = {part: best_curves(results, f"{key}_loss") for part, key in PARTS.items()}
    title, label = "Learning profile of the best trial", results.study.loss_name
    refit = results.histories.get("refit_train_loss")
    profile = partial(plots.learning_profile, folds=folds, refit=refit, title=title, label=label)
    return [profile, _curves(results, "loss", "Validation loss of all trials, mean over the folds", label)]


def _curves(results: Results, name: str, title: str, label: str) -> Panel:
    curves = where_defined(results.histories[f"val_{name}"]).mean(axis=1)  # [trial, epoch]
    look = {"title": title, "label": label, "is_loss": name == "loss"}
    return partial(trial_plots.trial_curves, curves=curves, scores=scores_of(results, name), **look)


def _metric_by_epoch(results: Results, name: str) -> Figure:
    values, label = where_defined(best_curves(results, f"val_{name}")[None])[0], words(name)
    panels = [
        partial(plots.learning_profile, folds={"validation": values}, title="Best trial", label=label),
        _curves(results, name, "All trials, mean over the folds", label),
    ]
    return Figure(
        f"{name}_by_epoch",
        f"Validation {label} by epoch of the best trial, which ends at {values[:, -1].mean():.4g}, and of all trials",
        f"{html.capital(label)} in validation: the best trial's folds with their mean, and all trials.",
        grid(panels, 2, height=3),
    )


# The test set


def test_set(results: Results) -> list[Item]:
    """The refitted best model and the ensemble of its fold models on the test set, or the one of them that there is."""
    if results.has_classes:
        return [scores(results), *_classification(results), _classes_table(results)]
    return fit(results) if results.has_curve else [scores(results)]


def scores(results: Results) -> Markup:
    """Loss and metrics on the test set, of the refit, of the ensemble and of the reference."""
    reference, names = results.record["reference"], {"loss": results.study.loss_name}
    both = {"refit": results.test, _ensemble(results): results.ensemble}
    tested = {name: test for name, test in both.items() if test}
    names |= {"accuracy": "accuracy"} if any(test["accuracy"] is not None for test in tested.values()) else {}
    names |= {name: words(name) for name in results.study.metrics}
    rows = [[shown, *(html.score(name, test[name]) for test in tested.values())] for name, shown in names.items()]
    if reference:
        rows = [[*row, html.theirs(name, reference["test"])] for row, name in zip(rows, names, strict=True)]
    return table(["on the test set", *tested, *([reference["name"]] if reference else [])], rows)


def _ensemble(results: Results) -> str:
    return f"ensemble of the {results.num_folds} fold models"


def errors_by_part(results: Results, gaps: Gaps, outputs: str = "test_outputs") -> dict[str, tuple[int, float]]:
    """A regression's test points and loss, of each part of the test set that has any; the last part is the whole.

    `outputs`: whose, by the name in histories.npz.
    """
    inside = inside_gaps(results.data.x_test[:, 0], gaps)
    losses = np.asarray(results.task.loss(results.histories[outputs], results.data.y_test))
    parts = {"inside the gaps": inside, "outside the gaps": ~inside} if inside.any() else {}
    parts["all test points"] = np.full(len(inside), True)
    return {name: (int(mask.sum()), float(losses[mask].mean())) for name, mask in parts.items() if mask.any()}


def fit(results: Results, gaps: Gaps = ()) -> list[Item]:
    """The curve that a scalar regression has learned, and its errors; `gaps` as of `points`.

    The scores alone without a refit.
    """
    if not results.has_curve:
        return [scores(results)]
    gaps = _gaps(results, gaps)
    h, loss_name = results.histories, results.study.loss_name
    folds = h["curve_fold_outputs"]  # [fold, point]
    spread = {"low": folds.min(axis=0), "high": folds.max(axis=0), "mean": folds.mean(axis=0)}
    curve = {"x": h["curve_x"], "y": h["curve_outputs"], **spread}

    def draw_fit(ax: plots.Axes) -> None:
        _draw_points(results, gaps)(ax)
        plots.fitted_curve(ax, **curve)

    x, residual = results.data.x_test[:, 0], (h["test_outputs"] - results.data.y_test)[:, 0]
    parts = errors_by_part(results, gaps)
    errors = {name: error for name, (_, error) in parts.items()}
    columns = {"refit": parts}
    if results.ensemble:
        columns[_ensemble(results)] = errors_by_part(results, gaps, "ensemble_outputs")
    panels = [partial(plots.residuals, x=x, residual=residual, inside=inside_gaps(x, gaps), gaps=gaps)]
    by_part = []
    if gaps:
        panels.append(
            partial(plots.bars, values=errors, title="By part of the test set", label=loss_name, form=formatting.number)
        )
        rows = [
            [name, count, *(html.number(errors[name][1]) for errors in columns.values())]
            for name, (count, _) in parts.items()
        ]
        by_part.append(table(["part of the test set", "points", *columns], rows, caption=html.capital(loss_name)))
    return [
        Figure(
            "fitted_curve",
            "The curve of the refitted best model over the data, with range and mean of its fold models",
            "The refitted best model, and range and mean of the models that its folds trained: where they part, the "
            "data do not decide.",
            grid([draw_fit], 1, height=3.6),
        ),
        Figure(
            "test_errors",
            "; ".join(f"{loss_name} of {name}: {error:.3g}" for name, error in errors.items()),
            "Errors of the refitted best model on the test points.",
            grid(panels, len(panels), height=2.8, width_ratios=[3, 2][: len(panels)]),
        ),
        scores(results),
        *by_part,
    ]


def _classification(results: Results) -> list[Item]:
    names, outputs, y = results.study.classes or (), results.histories["test_outputs"], results.data.y_test
    what = "images" if has_images(results) else "examples"
    confusion = evaluation.confusion_matrix(outputs, y)
    precision, recall = evaluation.precision_and_recall(confusion)
    true, predicted = evaluation.most_confused_pair(confusion)
    pair = f"{names[true]} that were taken for {names[predicted]}"
    count = f"{confusion[true, predicted]} of {confusion[true].sum()}"
    found = evaluation.calibration(outputs, y)
    error = f"expected calibration error ({len(found.right)} bins): {found.expected_error:.3f}"
    shares = partial(plots.confusion_matrix, shares=evaluation.normalise_rows(confusion), names=names)
    by_class = partial(plots.precision_and_recall, precision=precision, recall=recall, names=names)
    histogram = partial(plots.confidence_histogram, edges=found.edges, right=found.right, wrong=found.wrong)
    calibration = [
        partial(plots.reliability, confidence=found.confidence, accuracy=found.accuracy),
        partial(histogram, what=f"test {what}"),
    ]
    return [
        Figure(
            "confusion",
            f"Confusion matrix, a row a true class; the most frequent mistake: {pair}, {count}",
            f"Rows add up to 100 %. The most frequent mistake: {pair}, {count} {what}.",
            grid([shares], 1, height=5.2),
        ),
        Figure(
            "precision_recall",
            "Precision and recall of each class; the numbers are in the table below",
            f"Precision: the share of the {what} called so that are so. Recall: the share of the class that was found.",
            grid([by_class], 1, height=0.4 + 0.3 * len(names)),
        ),
        Figure(
            "calibration",
            f"Accuracy against confidence, and a histogram of confidences; {error}",
            f"Confidence is the probability of the predicted class; {error}.",
            grid(calibration, 2, height=3),
        ),
        *(_mistakes(results, true, predicted, pair) if has_images(results) else []),
    ]


def _mistakes(results: Results, true: int, predicted: int, pair: str) -> list[Item]:
    outputs, x, y = results.histories["test_outputs"], results.data.x_test, results.data.y_test
    mistakes = evaluation.misclassified(outputs, y, true, predicted)[:NUM_MISTAKES]
    if not len(mistakes):
        return []
    sure = evaluation.softmax(outputs[mistakes])[:, predicted]
    panels = [image(x, i, f"{share:.0%} sure") for i, share in zip(mistakes, sure, strict=True)]
    caption = f"The most confused pair, {pair}: the {len(panels)} mistakes that the network was surest of."
    draw = grid(panels, 6, height=0.2 + 1.3 * -(-len(panels) // 6), title=f"Test images of {pair}")
    return [Figure("mistakes", f"{len(panels)} test images of {pair}", caption, draw)]


def _classes_table(results: Results) -> Markup:
    confusion = evaluation.confusion_matrix(results.histories["test_outputs"], results.data.y_test)
    counts, (precision, recall) = confusion.sum(axis=1), evaluation.precision_and_recall(confusion)
    numbers = zip(results.study.classes or (), counts.tolist(), precision.tolist(), recall.tolist(), strict=True)
    rows = [[name, count, html.number(p), html.number(r)] for name, count, p, r in numbers]
    what = "images" if has_images(results) else "examples"
    return table(["class", f"test {what}", "precision", "recall"], rows)


# How it came about


def timing(results: Results) -> Figure:
    """A bar for each part of the run's time."""
    seconds = {name: value for name, value in results.record["timing"].items() if isinstance(value, int | float)}
    total = seconds.pop("total_seconds")
    names = {
        "compile_seconds": "compiling",
        "train_seconds": "search (training and validation)",
        "refit_seconds": "refit of the best trial",
        "test_seconds": "evaluation on the test set",
    }
    parts = {names.get(name, words(name)): value for name, value in seconds.items()}
    parts["the rest (start, data, files)"] = max(0.0, total - sum(parts.values()))
    title = f"{formatting.duration(total)} in all"
    bars = partial(plots.bars, values=parts, title=title, label="seconds", form=formatting.duration)
    alt = "; ".join(f"{name}: {formatting.duration(value)}" for name, value in parts.items())
    caption = "From the start of the process to results.json; figures and page come after."
    return Figure("time", alt, caption, grid([bars], 1, height=0.7 + 0.3 * len(parts)))


def repeat(results: Results) -> Markup:
    """The command, the settings, and on what it ran."""
    record, config = results.record, dict(results.record["config"])
    del config["space"]
    ranges = {name: ", ".join(map(_in_words, r)) for name, r in space_.ranges_of(results.study.space).items()}
    given = {name: value for name, value in record["inputs"].items() if value}
    settings = [[words(name), html.setting(value)] for name, value in (ranges | config | ranges | given).items()]
    environment = [[words(name), html.setting(value)] for name, value in record["environment"].items()]
    return Markup(
        f"<p>The command:</p><pre><code>{html.escape(record['command'])}</code></pre>"
        f"{table(['setting', 'value'], settings, caption='Settings')}"
        f"{table(['what', 'value'], environment, caption='Environment')}"
    )
