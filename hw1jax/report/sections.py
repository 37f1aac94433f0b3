"""A page's sections: what a run has left, as pictures and tables. A study may have its own beside them.

A section is a function of a run's results that returns an item (see `items`) or a list of them, in the page's order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from hw1jax import evaluation, lines
from hw1jax import space as space_
from hw1jax.report import items, plots
from hw1jax.report.items import Cell, Item, Markup, Picture, grid, table, words
from hw1jax.results import Results
from hw1jax.space import Choice, Float, Range

NUM_MISTAKES = 12  # misclassified images that are shown
MOST_CLASSES = 20  # whose pictures are shown
LEARNED, OFF_SCALE = 0.95, 5  # of a constant's loss: a trial below has learned something; one beyond is not drawn
LEAST_TRIALS = 10  # that importances and parallel coordinates need: fewer say nothing
Gaps = Sequence[tuple[float, float]]  # intervals of the inputs without training points


def hyperparameters(results: Results) -> Markup:
    """Ranges and best values, the reference's beside them."""
    reference, best = results.record.get("reference"), space_.flatten(results.best.params)
    others = space_.flatten(reference["params"]) if reference else {}
    rows = []
    for name, r in space_.columns(results.study.space).items():
        scale = "" if isinstance(r, Choice) or not r.log else ", log scale"
        values = [others.get(name), best[name]] if reference else [best[name]]
        rows.append([words(name), _in_words(r) + scale, *map(items.hyperparameter, values)])
    theirs = [f"{reference['name']}'s best"] if reference else []
    return table(["hyperparameter", "range", *theirs, "best of this run"], rows)


def _in_words(r: Range) -> str:
    if isinstance(r, Choice):
        return str(r)
    return f"{r.low:g} - {r.high:g}" if isinstance(r, Float) else f"{r.low} - {r.high}"


# The data


def data(results: Results) -> list[Item]:
    """What the network learned from."""
    if results.has_classes and has_images(results):
        return [_classes(results)]
    if results.has_curve:
        return [points(results)]
    parts = {"training": results.data[:2], "test": results.data[2:4]}
    rows = [[name, f"{len(jax.tree.leaves(x)[0]):,}", _arrays(x), _arrays(y)] for name, (x, y) in parts.items()]
    return [table(["part", "examples", "an example's x", "its y"], rows)]


def _arrays(tree: Any) -> str:
    """{"image": uint8 [28, 28], ..} in words, without the axis that counts examples."""
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    return ", ".join(f"{name} {leaf.dtype} {list(leaf.shape[1:]) or ''}".strip() for name, leaf in named)


def has_images(results: Results) -> bool:
    """Whether the inputs are pictures: uint8, grey or in colours."""
    x = results.data.x_test
    return isinstance(x, np.ndarray) and x.dtype == np.uint8 and (x.ndim == 3 or x.shape[3:] in ((1,), (3,)))


def picture(x: np.ndarray, i: int, title: str) -> Cell:
    """The i-th of images."""
    return partial(plots.image, pixels=x[i, :, :, 0] if x.shape[3:] == (1,) else x[i], title=title)


def first_of_each_class(y: np.ndarray, num_classes: int) -> dict[int, int]:
    """{class: index of its first example}, without the classes that `y` (int [example]) does not have."""
    return {c: int(np.flatnonzero(y == c)[0]) for c in range(num_classes) if np.any(y == c)}


def _classes(results: Results) -> Picture:
    names, (x, y, x_test, *_) = results.study.classes or (), results.data
    firsts = first_of_each_class(y, min(len(names), MOST_CLASSES))
    cells = [picture(x, i, names[c]) for c, i in firsts.items()]
    counts = f"{len(x):,} training and {len(x_test):,} test images of {x.shape[1]} x {x.shape[2]} pixels"
    alt = f"A picture of each class: {', '.join(names[c] for c in firsts)}"
    draw = grid(cells, 5, height=1.5 * -(-len(cells) // 5))
    return Picture("classes", alt, f"The first training image of each class: {counts}.", draw)


def points(results: Results, gaps: Gaps = ()) -> Picture:
    """The points of a scalar regression. `gaps`: intervals of the usual data's inputs without training points."""
    gaps = _gaps(results, gaps)
    x_train, _, x_test, *_ = results.data
    caption = f"{len(x_train)} noisy training points and {len(x_test)} test points."
    if gaps:
        caption += " The shaded intervals hold no training input: there the fit has to guess."
    alt = "Training and test points of the regression in one plane"
    return Picture("data", alt, caption, grid([_draw_points(results, gaps)], 1, height=3.2))


def _draw_points(results: Results, gaps: Gaps) -> Cell:
    flat = {name: getattr(results.data, name)[:, 0] for name in ("x_train", "y_train", "x_test", "y_test")}
    return partial(plots.regression_data, gaps=gaps, **flat)


def _gaps(results: Results, gaps: Gaps) -> Gaps:
    """Those that are known; a person's own files may have others."""
    return gaps if results.has_usual_data else ()


def inside_gaps(x: np.ndarray, gaps: Gaps) -> np.ndarray:
    """Which inputs lie in one of the open intervals, bool of the shape of `x`."""
    inside = [(start < x) & (x < stop) for start, stop in gaps]
    return np.any(inside, axis=0) if inside else np.zeros(x.shape, bool)


# Learning


def learning(results: Results) -> list[Item]:
    """Losses and metrics by epoch, of the best trial and of all."""
    profile, every = learning_cells(results)
    h, row = results.histories, results.row
    num_trials, limit = len(results.trials.rows), _limit(results, "loss")[1]
    last = float(h["val_loss"][row].mean(axis=0)[-1])
    ends = " A ring ends the line of a pruned one." if results.trials.pruned.any() else ""
    beyond = f", and those that ended beyond {limit}," if limit else ""
    return [
        Picture(
            "learning_profile",
            f"Loss by epoch of the best trial, training and validation; validation ends at {last:.4g}",
            f"The best trial (number {results.best.number}): each fold thin, their mean bold, and its refit "
            "on all training data. Training losses are means over an epoch while the network changes.",
            grid([profile], 1, height=3.2),
        ),
        Picture(
            "validation_curves",
            f"Validation loss by epoch of all {num_trials} trials, the best one marked",
            f"All trials of the search, the mean over the folds.{ends} Failed ones{beyond} don't count for the limits.",
            grid([every], 1, height=3.2),
        ),
        *(_metric_by_epoch(results, name) for name in results.study.metrics),
    ]


def learning_cells(results: Results) -> list[Cell]:
    """Losses by epoch, of the best trial and of all."""
    h, row, loss_name = results.histories, results.row, results.study.loss_name
    train, val = h["train_loss"][row], h["val_loss"][row]
    means = {"train_mean": train.mean(axis=0), "val_mean": val.mean(axis=0), "refit": h["refit_train_loss"]}
    marked = {"on_scale": _on_scale(results, "loss"), "pruned": results.trials.pruned, "best": row}
    curves = h["val_loss"].mean(axis=1)  # [trial, epoch]
    return [
        partial(plots.learning_profile, train=train, val=val, loss_name=loss_name, **means),
        partial(plots.validation_curves, curves=curves, loss_name=loss_name, **marked),
    ]


def _metric_by_epoch(results: Results, name: str) -> Picture:
    values, row = results.histories[f"val_{name}"], results.row  # [trial, fold, epoch]
    curves, label = values.mean(axis=1), words(name)
    marked = {"on_scale": _on_scale(results, name), "pruned": results.trials.pruned, "best": row}
    cells = [
        partial(plots.metric_profile, val=values[row], mean=curves[row], name=label),
        partial(plots.metric_curves, curves=curves, name=label, **marked),
    ]
    return Picture(
        f"{name}_by_epoch",
        f"Validation {label} by epoch of the best trial, which ends at {curves[row, -1]:.4g}, and of all trials",
        f"{_capital(label)} in validation: the best trial's folds with their mean, and all trials.",
        grid(cells, 2, height=3),
    )


# The test set


def test_set(results: Results) -> list[Item]:
    """What the refitted best model does on the test set, and the networks of its folds together."""
    if results.has_classes:
        return [scores(results), *_classification(results), _classes_table(results)]
    return fit(results) if results.has_curve else [scores(results)]


def scores(results: Results) -> Markup:
    """Loss and metrics on the test set, of the refit, of the ensemble and of the reference."""
    reference, names = results.record.get("reference"), {"loss": results.study.loss_name}
    names |= {"accuracy": "accuracy"} if results.test["accuracy"] is not None else {}
    names |= {name: words(name) for name in results.study.metrics}
    tested = {"refit": results.test}
    if results.ensemble:
        tested[_ensemble(results)] = results.ensemble
    rows = [[shown, *(items.score(name, test[name]) for test in tested.values())] for name, shown in names.items()]
    if reference:
        rows = [[*row, items.theirs(name, reference["test"])] for row, name in zip(rows, names, strict=True)]
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
    """The curve that a scalar regression has learned, and its errors; `gaps` as of `points`."""
    gaps = _gaps(results, gaps)
    h, loss_name = results.histories, results.study.loss_name
    folds = h["curve_fold_outputs"][results.row]  # [fold, point]
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
    cells = [
        partial(plots.residuals, x=x, residual=residual, inside=inside_gaps(x, gaps), gaps=gaps),
        partial(plots.bars, values=errors, title="By part of the test set", label=loss_name),
    ]
    return [
        Picture(
            "fitted_curve",
            "The curve of the refitted best model over the data, with range and mean of its fold models",
            "The refitted best model, and range and mean of the models that its folds trained: where they part, the "
            "data do not decide.",
            grid([draw_fit], 1, height=3.6),
        ),
        Picture(
            "test_errors",
            "; ".join(f"{loss_name} of {name}: {error:.3g}" for name, error in errors.items()),
            "Errors of the refitted best model on the test points.",
            grid(cells, 2, height=2.8, width_ratios=[3, 2]),
        ),
        scores(results),
        table(
            ["part of the test set", "points", *columns],
            [
                [name, count, *(items.number(errors[name][1]) for errors in columns.values())]
                for name, (count, _) in parts.items()
            ],
            caption=_capital(loss_name),
        ),
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
        Picture(
            "confusion",
            f"Confusion matrix, a row a true class; the most frequent mistake: {pair}, {count}",
            f"Rows add up to 100 %. The most frequent mistake: {pair}, {count} {what}.",
            grid([shares], 1, height=5.2),
        ),
        Picture(
            "precision_recall",
            "Precision and recall of each class; the numbers are in the table below",
            f"Precision: the share of the {what} called so that are so. Recall: the share of the class that was found.",
            grid([by_class], 1, height=0.4 + 0.3 * len(names)),
        ),
        Picture(
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
    cells = [picture(x, i, f"{share:.0%} sure") for i, share in zip(mistakes, sure, strict=True)]
    caption = f"The most confused pair, {pair}: the {len(cells)} mistakes that the network was surest of."
    draw = grid(cells, 6, height=0.2 + 1.3 * -(-len(cells) // 6), title=f"Test images of {pair}")
    return [Picture("mistakes", f"{len(cells)} test images of {pair}", caption, draw)]


def _classes_table(results: Results) -> Markup:
    confusion = evaluation.confusion_matrix(results.histories["test_outputs"], results.data.y_test)
    counts, (precision, recall) = confusion.sum(axis=1), evaluation.precision_and_recall(confusion)
    numbers = zip(results.study.classes or (), counts.tolist(), precision.tolist(), recall.tolist(), strict=True)
    rows = [[name, count, items.number(p), items.number(r)] for name, count, p, r in numbers]
    what = "images" if has_images(results) else "examples"
    return table(["class", f"test {what}", "precision", "recall"], rows)


# All trials


def search(results: Results) -> list[Item]:
    """The rungs of a search that has several, the scores of all trials, what they depend on, and the table."""
    trials, study, constant = results.trials, results.study, _constant(results)
    on_scale, (_, limit) = _on_scale(results, study.score), _limit(results, study.score)
    means, name = trials.means[study.score], score_name(results)
    scored = trials.complete | trials.pruned
    learned = np.full(len(means), True) if constant is None else trials.means["loss"] < LEARNED * constant
    num_failed, num_off = int(np.sum(~scored)), int(np.sum(scored & ~on_scale))
    num_hollow = int(np.sum(on_scale & ~learned))
    notes = f" Crosses: {num_failed} failed" if num_failed or num_off else ""
    notes += f", {num_off} beyond {limit}." if num_off else "." if notes else ""
    hollow = f" Hollow: {num_hollow} learned no more than a constant." if num_hollow else ""
    small, triangles = (" Small: pruned.", " Triangles: pruned.") if trials.pruned.any() else ("", "")
    idle = "" if constant is None else _idle(trials.states[scored & ~learned], int(scored.sum()), constant)
    constant = constant if study.score == "loss" else None
    order = np.argsort(trials.ranks, kind="stable")  # failed ones, of rank NaN, come last
    ordered = {"numbers": trials.numbers, "folds": trials.folds[study.score], "means": means, "on_scale": on_scale}
    ordered |= {"pruned": trials.pruned, "epochs": trials.epochs}
    ordered = {part: values[order] for part, values in ordered.items()}
    high_is_good = bool(study.maximize)
    every = partial(plots.trial_scores, constant=constant, name=name, high_is_good=high_is_good, **ordered)
    dashed = "" if constant is None else f" The dashed line is the loss of the best constant, {constant:.3g}."
    shared = {"scores": means, "on_scale": on_scale, "pruned": trials.pruned, "best": results.row}
    shared |= {"high_is_good": high_is_good}
    slices = [_slice(results, column, learned=learned, **shared) for column in trials.params]
    num_columns = 3 if len(slices) in (3, 5, 6) else min(4, len(slices))
    height = 0.4 + 1.7 * -(-len(slices) // num_columns)
    return [
        *_rungs(results),
        Picture(
            "trial_scores",
            f"Validation {words(study.score)} of each of {len(order)} trials with its folds; {num_failed} failed",
            f"The score of a trial is the mean over its folds after its last epoch.{dashed}{idle}{notes}",
            grid([every], 1, height=3),
        ),
        Picture(
            "slices",
            f"Score against each of the hyperparameters {', '.join(map(words, trials.params))}",
            f"Each hyperparameter against the score; dark is good, ringed the best.{triangles}{notes}{hollow}",
            grid(slices, num_columns, height=height, label=f"validation {name}", sharey=True),
        ),
        *_plane(results, small + notes, shared),
        _trials_table(results),
    ]


def _idle(states: np.ndarray, num_scored: int, constant: float) -> str:
    """How many trials never learned, from their states, of those that have a score."""
    num_pruned = int(np.sum(states == "pruned"))
    early = f" ({num_pruned} of them had few epochs: they were pruned)" if num_pruned else ""
    which = f"{len(states)} of {num_scored} trials never learned{early}" if len(states) else "All trials learned"
    side = "not below" if len(states) else "below"
    return f" {which}: their loss is {side} {LEARNED:.0%} of the best constant's, {constant:.3g}."


def _rungs(results: Results) -> list[Item]:
    """What became of the trials on each rung, and how long it took; nothing where there is one rung alone."""
    found, last = results.record["rungs"], results.record["config"]["num_epochs"]
    if len(found) < 2:
        return []
    names = [f"to epoch {rung['num_epochs']}" for rung in found]
    failed = np.array([rung["failed"] for rung in found])
    there = np.array([rung["num_trials"] for rung in found])
    went_on = np.array([
        rung["num_trials"] - rung["failed"] if rung["num_epochs"] == last else rung["went_on"] for rung in found
    ])  # fmt: skip
    pruned, seconds = there - went_on - failed, [rung["seconds"] for rung in found]
    total = sum(seconds)
    rows = [
        [i + 1, name, *(items.number(int(n), "{}") for n in counts), items.duration(s), f"{s / max(total, 1e-9):.0%}"]
        for i, (name, *counts, s) in enumerate(zip(names, there, went_on, pruned, failed, seconds, strict=True))
    ]
    cells: list[Cell] = [
        partial(plots.rungs, names=names, went_on=went_on, pruned=pruned, failed=failed),
        partial(
            plots.bars,
            values=dict(zip(names, seconds, strict=True)),
            title=f"Time of each rung: {lines.duration(total)} in all",
            label="seconds",
            form=lines.duration,
        ),
    ]
    alt = "; ".join(
        f"{name}: {a} trials, {b} went on, {c} pruned, {d} failed, {lines.duration(s)}"
        for name, a, b, c, d, s in zip(names, there, went_on, pruned, failed, seconds, strict=True)
    )
    return [
        Picture(
            "rungs",
            alt,
            "Rungs of the search: at the end of each, the best trials went on and the others were pruned. "
            "The time is that of all of it, compiling included.",
            grid(cells, 2, height=0.8 + 0.32 * len(found), width_ratios=[3, 2]),
        ),
        table(["rung", "trained", "trials", "went on or to the end", "pruned", "failed", "time", "share"], rows),
    ]


def score_name(results: Results) -> str:
    """What trials are ranked by, as tables and axes call it."""
    study = results.study
    return study.loss_name if study.score == "loss" else words(study.score)


def _slice(results: Results, column: str, **options: Any) -> Cell:
    r = space_.columns(results.study.space)[column]
    drawn = partial(plots.hyperparameter_slice, name=words(column), **options)
    if isinstance(r, Choice):
        return partial(drawn, values=_texts(results, column), choices=list(map(str, r.among)))
    return partial(drawn, values=results.trials.params[column], choices=(r.low, r.high), log=r.log)


def _texts(results: Results, column: str) -> np.ndarray:
    return np.array([row[column] for row in results.trials.rows])


def _plane(results: Results, notes: str, shared: dict[str, Any]) -> list[Item]:
    """The first two hyperparameters on logarithmic scales, together; nothing where there are fewer."""
    columns = space_.columns(results.study.space)
    logs = {name: r for name, r in columns.items() if isinstance(r, Float) and r.log}
    if len(logs) < 2:
        return []
    (x, x_range), (y, y_range) = list(logs.items())[:2]
    marked = next((name for name, r in columns.items() if isinstance(r, Choice) and r.is_named), None)
    plane = partial(
        plots.score_plane,
        x=results.trials.params[x],
        y=results.trials.params[y],
        names=["trial"] * len(results.trials.rows) if marked is None else _texts(results, marked),
        x_range=(x_range.low, x_range.high),
        y_range=(y_range.low, y_range.high),
        title=f"{_capital(words(x))} and {words(y)} of all trials, coloured by score",
        labels=(items.label(x), items.label(y), f"validation {score_name(results)}"),
        **shared,
    )
    marker = f", a marker for each {words(marked)}" if marked else ""
    together = f"{words(x)}, {words(y)} and {words(marked)}" if marked else f"{words(x)} and {words(y)}"
    return [
        Picture(
            f"{x}_{y}",
            f"{_capital(items.label(x))} and {items.label(y)} of all trials, coloured by score{marker}",
            f"What usually matters most, together: {together}.{notes}",
            grid([plane], 1, height=3.4),
        )
    ]


def parallel_coordinates(results: Results) -> Picture:
    """Each trial a line through its hyperparameters to its score."""
    trials, study = results.trials, results.study
    shown = _on_scale(results, study.score)
    means = trials.means[study.score][shown]
    places, ticks = [], []
    for name, r in space_.columns(study.space).items():
        values = _texts(results, name) if isinstance(r, Choice) else trials.params[name]
        at, marks = _axis(r, values[shown])
        places.append(at)
        ticks.append(marks)
    is_log = not study.maximize and means.min() > 0 and means.max() >= 4 * means.min()
    at, marks = _axis(Float(float(means.min()), float(means.max()), log=bool(is_log)), means)
    dashed = " Dashed: pruned." if trials.pruned[shown].any() else ""
    off = f" {np.sum(~shown)} failed or off the scale are left out." if not shown.all() else ""
    draw = partial(
        plots.parallel_coordinates,
        places=np.stack([*places, at], axis=1),
        scores=means,
        pruned=trials.pruned[shown],
        best=int(np.sum(shown[: results.row])),
        names=[*map(words, trials.params), f"validation {words(study.score)}"],
        ticks=[*ticks, marks],
        label=f"validation {score_name(results)}",
        high_is_good=bool(study.maximize),
    )
    return Picture(
        "parallel_coordinates",
        f"Each of {len(means)} trials a line through {', '.join(map(words, trials.params))} to its score",
        f"Each trial a line from hyperparameter to hyperparameter, and to its score; dark is good, the thick line is "
        f"the best trial.{dashed}{off}",
        grid([draw], 1, height=3.4),
    )


def _axis(r: Range, values: np.ndarray) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """(where values go between 0 and 1 on an axis of what could be drawn, its marks)."""
    if isinstance(r, Choice):
        names = list(dict.fromkeys([*map(str, r.among), *values.tolist()]))
        return np.array([(names.index(v) + 0.5) / len(names) for v in values.tolist()]), [
            ((i + 0.5) / len(names), name) for i, name in enumerate(names)
        ]
    low, high = (np.log(r.low), np.log(r.high)) if r.log else (r.low, r.high)

    def place(value: Any) -> Any:
        return ((np.log(value) if r.log else value) - low) / (high - low) if high > low else 0 * value + 0.5

    if r.log:
        inner = [10.0**k for k in range(int(np.ceil(np.log10(r.low))), int(np.floor(np.log10(r.high))) + 1)]
        inner = [value for value in inner if 0.12 < place(value) < 0.88]
    else:
        inner = [r.low + (r.high - r.low) / 2] if isinstance(r, Float) else [(r.low + r.high) // 2]
    marks = dict.fromkeys([r.low, *inner, r.high])
    return place(values), [(float(place(value)), f"{value:.3g}") for value in marks]


def importances(results: Results) -> Picture:
    """The share of the score's variance that each hyperparameter explains, of the complete trials on the scale.

    Raises:
      ImportError, ValueError: as of `search.importances`.
    """
    from hw1jax.search import importances as shares_of  # late: it brings Optuna, without which a study's file is read

    trials, study = results.trials, results.study
    counted = trials.complete & _on_scale(results, study.score)
    params = {name: values[counted] for name, values in trials.params.items()}
    shares = shares_of(study.space, params, trials.means[study.score][counted])
    named = {words(name): share for name, share in shares.items()}
    count = f"{np.sum(counted)} complete trials"
    draw = partial(
        plots.bars,
        values=named,
        title="Importance of hyperparameters",
        label="share of the variance",
        form="{:.0%}".format,
    )
    return Picture(
        "importances",
        "; ".join(f"{name}: {share:.0%}" for name, share in named.items()),
        f"The share of the score's variance over the space that each hyperparameter explains by itself (fANOVA, "
        f"Hutter et al. 2014), from {count}: rough, if these are few.",
        grid([draw], 1, height=0.8 + 0.28 * len(named)),
    )


def what_matters(results: Results) -> list[Item]:
    """What makes trials good, where there are enough of them to tell: parallel coordinates and importances."""
    trials, on_scale = results.trials, _on_scale(results, results.study.score)
    found: list[Item] = []
    if np.sum(on_scale) >= LEAST_TRIALS:
        found.append(parallel_coordinates(results))
    if np.sum(trials.complete & on_scale) >= LEAST_TRIALS:
        try:
            found.append(importances(results))
        except ImportError as error:
            found.append(f"No importances of hyperparameters: {error}.")
        except ValueError:  # trials that are all alike
            pass
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _constant(results: Results) -> float | None:
    """The loss of the best network that ignores its input, where that is known."""
    return (
        None if results.data.weights is not None else evaluation.constant_loss(results.task.loss, results.data.y_train)
    )


def _limit(results: Results, name: str) -> tuple[float, str]:
    """(the largest value that fits into one figure with the others, what that is); (infinity, "") for most metrics."""
    constant = _constant(results)
    if name == "loss" and constant is not None:
        return OFF_SCALE * constant, f"{OFF_SCALE} times a constant's loss"
    median = float(np.median(results.trials.means[name][results.trials.complete | results.trials.pruned]))
    low_is_good = name == "loss" or (name == results.study.score and not results.study.maximize)
    return (OFF_SCALE * median, f"{OFF_SCALE} times the median") if low_is_good and median > 0 else (np.inf, "")


def _on_scale(results: Results, name: str) -> np.ndarray:
    """The trials that fit into one figure, bool [trial]: neither failed nor far off, and always the best."""
    scored = results.trials.complete | results.trials.pruned
    on_scale = scored & (results.trials.means[name] <= _limit(results, name)[0])
    on_scale[results.row] = True
    return on_scale


def _trials_table(results: Results) -> Markup:
    """All trials, hyperparameters of several layers in a cell, and so the scores of all folds."""
    trials, study = results.trials, results.study
    names = [study.score, *(name for name in ("loss", *study.metrics) if name != study.score)]
    headings = ["rank", "trial", "state", *map(words, study.space)]
    for name in names:
        shown = study.loss_name if name == "loss" and not study.metrics else words(name)
        headings += [f"validation {shown}", "of each fold"]
    rows = []
    for i in np.argsort(trials.ranks, kind="stable"):
        values = {name: trials.params[name][i].item() for name in trials.params}
        rank = "-" if np.isnan(trials.ranks[i]) else items.number(int(trials.ranks[i]), "{}")
        cells: list[Any] = [rank, items.number(int(trials.numbers[i]), "{}"), _state(results, i)]
        for value in space_.unflatten(study.space, values).values():
            cells.append(_together([items.hyperparameter(v) for v in (value if isinstance(value, tuple) else [value])]))
        for name in names:
            mean, folds = float(trials.means[name][i]), trials.folds[name][i].tolist()
            cells.append(items.spread(mean, float(np.std(folds)) if np.isfinite(mean) else np.nan, name))
            cells.append(_together([items.score(name, value) for value in folds]))
        bold = [Markup(f"<strong>{items.cell(value)}</strong>") for value in cells]
        rows.append(bold if i == results.row else cells)
    return table(headings, rows, caption="All trials, the best first")


def _together(cells: Sequence[Any]) -> Markup:
    return Markup(" ".join(map(items.cell, cells)))


def _state(results: Results, i: int) -> Markup:
    """What has become of a trial, and after how many epochs where not after all."""
    trials = results.trials
    if trials.states[i] == "pruned":
        return Markup(f"pruned after {items.number(int(trials.epochs[i]), '{}')}")
    epoch = trials.rows[i]["diverged_epoch"]
    in_epoch = f" in epoch {items.number(int(epoch), '{}')}" if epoch.isdigit() else ""
    return Markup(f"{items.escape(str(trials.states[i]))}{in_epoch}")


# How it came about


def timing(results: Results) -> Picture:
    """Where the time went."""
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
    title = f"{lines.duration(total)} in all"
    bars = partial(plots.bars, values=parts, title=title, label="seconds", form=lines.duration)
    alt = "; ".join(f"{name}: {lines.duration(value)}" for name, value in parts.items())
    caption = "From the start of the process to results.json; figures and page come after."
    return Picture("time", alt, caption, grid([bars], 1, height=0.7 + 0.3 * len(parts)))


def repeat(results: Results) -> Markup:
    """The command, the settings, and on what it ran."""
    record, config = results.record, dict(results.record["config"])
    del config["space"]
    ranges = {name: ", ".join(map(_in_words, r)) for name, r in space_.ranges_of(results.study.space).items()}
    given = {name: value for name, value in record.get("inputs", {}).items() if value}
    settings = [[words(name), _setting(value)] for name, value in (ranges | config | given).items()]
    environment = [[words(name), _setting(value)] for name, value in record["environment"].items()]
    return Markup(
        f"<p>The command:</p><pre><code>{items.escape(record['command'])}</code></pre>"
        f"{table(['setting', 'value'], settings, caption='Settings')}"
        f"{table(['what', 'value'], environment, caption='Environment')}"
    )


def _setting(value: Any) -> str:
    """A setting as a line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{words(name)} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "-" if value is None else str(value)
