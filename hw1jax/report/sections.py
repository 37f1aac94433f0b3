"""A page's sections: what a run has left, as figures and tables. A study may have its own beside them.

A section is a function of a run's results that returns an item (see `items`) or a list of them, in the page's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from hw1jax import formatting
from hw1jax.report import html, plots, trial_plots
from hw1jax.report.classes import classification, has_images, pictures
from hw1jax.report.html import Figure, Item, Markup, Panel, grid, table, words
from hw1jax.report.trials import end_of_scale, scores_of
from hw1jax.results import trials as trials_
from hw1jax.results.results import Results
from hw1jax.results.trials import where_defined
from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Int, Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        each = each[:, ~np.isnan(each).all(axis=0)]  # undefined there
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
    classified = results.classified
    if classified and has_images(results):
        return [pictures(results, classified)]
    if results.has_curve:
        return [points(results)]
    parts = {"training": results.data[:2]} | ({"test": results.data[2:4]} if results.data.has_test_set else {})
    rows = [[name, f"{len(jax.tree.leaves(x)[0]):,}", _arrays(x), _arrays(y)] for name, (x, y) in parts.items()]
    return [table(["part", "examples", "an example's x", "its y"], rows)]


def _arrays(tree: Any) -> str:
    """{"image": uint8 [28, 28], ..} in words, without the axis that counts examples."""
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    return ", ".join(f"{name} {leaf.dtype} {list(leaf.shape[1:]) or ''}".strip() for name, leaf in named)


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
    last = float(results.trials.means["loss"][results.row])
    ends = " A ring ends the line of a pruned one." if results.trials.pruned.any() else ""
    stopped = ""
    if "early_stopping" in results.record["config"]:
        stopped = "A fold that has stopped counts in the means with its best epoch. "
    beyond = f", and those that ended beyond {limit}," if limit else ""
    return [
        Figure(
            "learning_profile",
            f"Loss by epoch of the best trial, training and validation; validation ends at {last:.4g}",
            f"The best trial (number {results.best.number}): each fold thin, their mean bold{refit}. {stopped}"
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
    """A history of the best trial up to its last epoch, [fold, epoch]; NaN where a fold stopped before others."""
    values = results.histories[name][results.row][:, : results.trials["epochs"][results.row]]
    if "early_stopping" not in results.record["config"]:
        return values
    return values[:, : np.flatnonzero(np.isfinite(values).any(axis=0))[-1] + 1]


def counting_curves(results: Results, name: str) -> np.ndarray:
    """A history of all trials, [trial, fold, epoch], in which the best epoch of a fold goes on after it has stopped."""
    values, trials = results.histories[name], results.trials
    if "early_stopping" not in results.record["config"]:
        return values
    best = np.stack([trials[f"split{i}_best_epoch"] for i in range(values.shape[1])], axis=1).astype(int)
    return trials_.counting_curves(values, best, trials["epochs"])


def learning_panels(results: Results) -> list[Panel]:
    """Losses by epoch, of the best trial and of all."""
    folds = {part: best_curves(results, f"{key}_loss") for part, key in PARTS.items()}
    means = {part: counting_curves(results, f"{key}_loss")[results.row].mean(axis=0) for part, key in PARTS.items()}
    title, label = "Learning profile of the best trial", results.study.loss_name
    refit = results.histories.get("refit_train_loss")
    profile = partial(plots.learning_profile, folds=folds, means=means, refit=refit, title=title, label=label)
    return [profile, _curves(results, "loss", "Validation loss of all trials, mean over the folds", label)]


def _curves(results: Results, name: str, title: str, label: str) -> Panel:
    curves = where_defined(counting_curves(results, f"val_{name}")).mean(axis=1)  # [trial, epoch]
    look = {"title": title, "label": label, "is_loss": name == "loss"}
    return partial(trial_plots.trial_curves, curves=curves, scores=scores_of(results, name), **look)


def _metric_by_epoch(results: Results, name: str) -> Figure:
    values, label = where_defined(best_curves(results, f"val_{name}")[None])[0], words(name)
    last = results.trials.means[name][results.row]
    means = {"validation": where_defined(counting_curves(results, f"val_{name}"))[results.row].mean(axis=0)}
    panels = [
        partial(plots.learning_profile, folds={"validation": values}, means=means, title="Best trial", label=label),
        _curves(results, name, "All trials, mean over the folds", label),
    ]
    return Figure(
        f"{name}_by_epoch",
        f"Validation {label} by epoch of the best trial, which ends at {last:.4g}, and of all trials",
        f"{html.capital(label)} in validation: the best trial's folds with their mean, and all trials.",
        grid(panels, 2, height=3),
    )


# The test set


def test_set(results: Results) -> list[Item]:
    """The refitted best model and the ensemble of its fold models on the test set, or the one of them that there is."""
    return fit(results) if results.has_curve else [scores(results), *classification(results)]


def scores(results: Results) -> Markup:
    """Loss and metrics on the test set, of the refit, of the ensemble and of the reference."""
    reference, names = results.record["reference"], {"loss": results.study.loss_name}
    both = {"refit": results.test, _ensemble(results): results.ensemble}
    if chosen := results.search_ensemble:
        both |= {f"ensemble of {formatting.trials(len(chosen['trials']))}": chosen["test"]}
    tested = {name: test for name, test in both.items() if test}
    names |= {"accuracy": "accuracy"} if any(test["accuracy"] is not None for test in tested.values()) else {}
    names |= {name: words(name) for name in results.study.metrics}
    rows = [[shown, *(html.score(name, test[name]) for test in tested.values())] for name, shown in names.items()]
    if reference:
        rows = [[*row, html.theirs(name, reference["test"])] for row, name in zip(rows, names, strict=True)]
    return table(["on the test set", *tested, *([reference["name"]] if reference else [])], rows)


def _ensemble(results: Results) -> str:
    return f"ensemble of the {results.num_folds} fold models"


def search_ensemble(results: Results) -> list[Item]:
    """The trials of the search's ensemble with their weights, and its scores out of fold; nothing without one."""
    chosen, trials = results.search_ensemble, results.trials
    if chosen is None:
        return []
    score, rows = results.study.score, []
    for own in chosen["trials"]:
        row = int(np.flatnonzero(trials["number"] == own["number"])[0])
        mean, std = (float(trials[f"{part}_val_{score}"][row]) for part in ("mean", "std"))
        rows.append([own["number"], html.number(own["weight"], "{:.0%}"), html.spread(mean, std, score)])
    names = {"loss": results.study.loss_name} | {name: words(name) for name in results.study.metrics}
    whose = {
        f"ensemble of {formatting.trials(len(rows))}": chosen["out_of_fold"],
        f"trial {results.best.number} alone": chosen["best_out_of_fold"],
    }
    scored = [[shown, *(html.score(name, own[name]) for own in whose.values())] for name, shown in names.items()]
    text = (
        "Chosen greedily, with replacement, by what the trials' fold models predict out of fold: the scores there are "
        "a little optimistic. The test set took no part. A trial predicts half with its refit on all training data, "
        "half with its fold models; without a refit, with these alone."
    )
    return [
        table(["trial", "weight", f"validation {words(score)}"], rows),
        table(["out of fold", *whose], scored),
        text,
    ]


def errors_by_part(results: Results, gaps: Gaps, outputs: str = "test_outputs") -> dict[str, tuple[int, float]]:
    """A regression's test points and loss, of each part of the test set that has any; the last part is the whole.

    `outputs`: whose, by the name in histories.npz.
    """
    inside = inside_gaps(results.data.x_test[:, 0], gaps)
    loss = results.task.loss if results.model is None else results.model.losses
    losses = np.asarray(loss(results.histories[outputs], results.data.y_test))
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

    def draw_fit(ax: Axes) -> None:
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


# How it came about


def timing(results: Results) -> Figure:
    """A bar for each part of the run's time."""
    seconds = {name: value for name, value in results.record["timing"].items() if name.endswith("seconds")}
    total = seconds.pop("total_seconds")
    names = {
        "start_seconds": "start (imports)",
        "check_seconds": "data, checks and plan",
        "compile_seconds": "compiling",
        "train_seconds": "search (training and validation)",
        "refit_seconds": "refit of the best trial",
        "ensemble_seconds": "choice of the ensemble",
        "test_seconds": "evaluation on the test set",
    }
    parts = {names.get(name, words(name)): value for name, value in seconds.items()}
    parts["the rest (files)"] = max(0.0, total - sum(parts.values()))
    title = f"{formatting.duration(total)} in all"
    bars = partial(plots.bars, values=parts, title=title, label="seconds", form=formatting.duration)
    alt = "; ".join(f"{name}: {formatting.duration(value)}" for name, value in parts.items())
    begin = "From when the run was resumed" if results.record["timing"].get("resumed") else "From the start"
    caption = f"{begin} to results.json; figures and page come after."
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
