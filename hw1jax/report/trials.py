"""A search's trials, as figures and a table: rungs, scores, and what they depend on."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from hw1jax import formatting
from hw1jax.report import html, plots, trial_plots
from hw1jax.report.html import Figure, Item, Markup, Panel, grid, table, words
from hw1jax.report.trial_plots import Scores
from hw1jax.results import evaluation
from hw1jax.results.results import Results
from hw1jax.results.trials import where_defined
from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Float, Range

LEARNED, OFF_SCALE = 0.95, 5  # of a constant's loss: a trial below has learned something; one beyond is not drawn
LEAST_TRIALS = 10  # that parallel coordinates need: fewer say nothing


def all_trials(results: Results) -> list[Item]:
    """The rungs of a search that has several, the scores of all trials, what they depend on, and the table."""
    trials, study, constant, scores = results.trials, results.study, _constant(results), scores_of(results)
    scored = trials.complete | trials.pruned
    learned = np.full(len(scored), True) if constant is None else trials.means["loss"] < LEARNED * constant
    num_failed, num_off = int(np.sum(~scored)), int(np.sum(scored & ~scores.on_scale))
    num_hollow = int(np.sum(scores.on_scale & ~learned))
    notes = f" Crosses: {num_failed} failed" if num_failed or num_off else ""
    notes += f", {num_off} beyond {end_of_scale(results, study.score)[1]}." if num_off else "." if notes else ""
    hollow = f" Hollow: {num_hollow} learned no more than a constant." if num_hollow else ""
    small, triangles = (" Small: pruned.", " Triangles: pruned.") if trials.pruned.any() else ("", "")
    idle = "" if constant is None else _idle(trials["state"][scored & ~learned], int(scored.sum()), constant)
    when = "in their best epochs" if "early_stopping" in results.record["config"] else "after its last epoch"
    constant = constant if study.score == "loss" else None
    dashed = "" if constant is None else f" The dashed line is the loss of the best constant, {constant:.3g}."
    every = partial(
        trial_plots.trial_scores,
        scores=scores,
        order=np.argsort(trials["rank"], kind="stable"),  # failed ones, of rank NaN, come last
        folds=where_defined(trials.folds[study.score]),
        numbers=trials["number"],
        epochs=trials["epochs"],
        constant=constant,
    )
    slices = [_slice(results, column, scores, learned) for column in trials.params]
    num_columns = 3 if len(slices) in (3, 5, 6) else min(4, len(slices))
    height = 0.4 + 1.7 * -(-len(slices) // num_columns)
    return [
        *_rungs(results),
        Figure(
            "trial_scores",
            f"Validation {words(study.score)} of each of {len(scored)} trials with its folds; {num_failed} failed",
            f"The score of a trial is the mean over its folds {when}.{dashed}{idle}{notes}",
            grid([every], 1, height=3),
        ),
        Figure(
            "slices",
            f"Score against each of the hyperparameters {', '.join(map(words, trials.params))}",
            f"Each hyperparameter against the score; dark is good, ringed the best.{triangles}{notes}{hollow}",
            grid(slices, num_columns, height=height, label=scores.label, sharey=True),
        ),
        *_plane(results, scores, small + notes),
        _trials_table(results),
    ]


def scores_of(results: Results, name: str | None = None) -> Scores:
    """The scores of all trials by the loss or a metric of this name; by what they are ranked by, if not given."""
    trials, study, name = results.trials, results.study, name or results.study.score
    label = f"validation {study.loss_name if name == 'loss' else words(name)}"
    high_is_good = bool(study.maximize) and name == study.score
    return Scores(trials.means[name], on_one_scale(results, name), trials.pruned, results.row, label, high_is_good)


def _idle(states: np.ndarray, num_scored: int, constant: float) -> str:
    """A sentence on the trials with a score that never learned; `states` are the states of those."""
    num_pruned = int(np.sum(states == "pruned"))
    early = f" ({num_pruned} of them had few epochs: they were pruned)" if num_pruned else ""
    which = f"{len(states)} of {num_scored} trials never learned{early}" if len(states) else "All trials learned"
    side = "not below" if len(states) else "below"
    return f" {which}: their loss is {side} {LEARNED:.0%} of the best constant's, {constant:.3g}."


def _rungs(results: Results) -> list[Item]:
    """The trials and the time of each rung, as a figure and a table; empty if there is only one rung."""
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
        [i + 1, name, *(html.number(int(n), "{}") for n in counts), html.duration(s), f"{s / max(total, 1e-9):.0%}"]
        for i, (name, *counts, s) in enumerate(zip(names, there, went_on, pruned, failed, seconds, strict=True))
    ]
    panels: list[Panel] = [
        partial(trial_plots.rungs, names=names, went_on=went_on, pruned=pruned, failed=failed),
        partial(
            plots.bars,
            values=dict(zip(names, seconds, strict=True)),
            title=f"Time of each rung: {formatting.duration(total)} in all",
            label="seconds",
            form=formatting.duration,
        ),
    ]
    alt = "; ".join(
        f"{name}: {a} trials, {b} went on, {c} pruned, {d} failed, {formatting.duration(s)}"
        for name, a, b, c, d, s in zip(names, there, went_on, pruned, failed, seconds, strict=True)
    )
    return [
        Figure(
            "rungs",
            alt,
            "Rungs of the search: at the end of each, the best trials went on and the others were pruned. "
            "The time is that of all of it, compiling included.",
            grid(panels, 2, height=0.8 + 0.32 * len(found), width_ratios=[3, 2]),
        ),
        table(["rung", "trained", "trials", "went on or to the end", "pruned", "failed", "time", "share"], rows),
    ]


def _slice(results: Results, column: str, scores: Scores, learned: np.ndarray) -> Panel:
    r = space_.columns(results.study.space)[column]
    shared = {"scores": scores, "learned": learned, "name": words(column)}
    if isinstance(r, Choice):
        values, choices, log = _texts(results, column), list(map(str, r.among)), False
    else:
        values, choices, log = results.trials.params[column], (r.low, r.high), r.log
    return partial(trial_plots.hyperparameter_slice, x=values, choices=choices, log=log, **shared)


def _texts(results: Results, column: str) -> np.ndarray:
    return np.array([row[column] for row in results.trials.rows])


def _plane(results: Results, scores: Scores, notes: str) -> list[Item]:
    """The first two hyperparameters on logarithmic scales, together; nothing where there are fewer."""
    columns = space_.columns(results.study.space)
    logs = {name: r for name, r in columns.items() if isinstance(r, Float) and r.log}
    if len(logs) < 2:
        return []
    x, y = list(logs)[:2]
    marked = next((name for name, r in columns.items() if isinstance(r, Choice) and r.is_named), None)
    plane = partial(
        trial_plots.score_plane,
        x=results.trials.params[x],
        y=results.trials.params[y],
        scores=scores,
        names=np.full(len(scores.values), "trial") if marked is None else _texts(results, marked),
        ranges=[(r.low, r.high) for r in (logs[x], logs[y])],
        title=f"{html.capital(words(x))} and {words(y)} of all trials, coloured by score",
        labels=(html.label(x), html.label(y)),
    )
    marker = f", a marker for each {words(marked)}" if marked else ""
    together = f"{words(x)}, {words(y)} and {words(marked)}" if marked else f"{words(x)} and {words(y)}"
    return [
        Figure(
            f"{x}_{y}",
            f"{html.capital(html.label(x))} and {html.label(y)} of all trials, coloured by score{marker}",
            f"What usually matters most, together: {together}.{notes}",
            grid([plane], 1, height=3.4),
        )
    ]


def parallel_coordinates(results: Results) -> Figure:
    """Each trial a line through its hyperparameters to its score."""
    trials, study, scores = results.trials, results.study, scores_of(results)
    shown = scores.on_scale
    means, best = scores.values[shown], int(np.sum(shown[: results.row]))
    scores = scores._replace(values=means, on_scale=shown[shown], pruned=trials.pruned[shown], best=best)
    axes = [
        _axis(r, (_texts(results, name) if isinstance(r, Choice) else trials.params[name])[shown])
        for name, r in space_.columns(study.space).items()
    ]
    is_log = not study.maximize and means.min() > 0 and means.max() >= 4 * means.min()
    axes.append(_axis(Float(float(means.min()), float(means.max()), log=bool(is_log)), means))
    dashed = " Dashed: pruned." if scores.pruned.any() else ""
    off = f" {np.sum(~shown)} failed or off the scale are left out." if not shown.all() else ""
    draw = partial(
        trial_plots.parallel_coordinates,
        places=np.stack([place for place, _ in axes], axis=1),
        scores=scores,
        names=[*map(words, trials.params), f"validation {words(study.score)}"],
        ticks=[ticks for _, ticks in axes],
    )
    return Figure(
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


def importances(results: Results) -> Figure:
    """The importance of each hyperparameter for the score, of the complete trials on the scale.

    Raises:
      ValueError: as of `search.importances`.
    """
    from hw1jax.search import importances as search  # late: it brings Optuna, without which a study's file is read

    trials, study = results.trials, results.study
    counted = trials.complete & on_one_scale(results, study.score)
    params = {name: values[counted] for name, values in trials.params.items()}
    scores, maximize = trials.means[study.score][counted], bool(study.maximize)
    found = search.importances(study.space, params, scores, maximize=maximize)
    named = {words(name): share for name, share in found.shares.items()}
    label, about = {
        "fANOVA": (
            "share of the variance",
            "The share of the score's variance over the space that each hyperparameter explains by itself (fANOVA, "
            "Hutter et al. 2014)",
        ),
        "PED-ANOVA": (
            "share of the importance",
            "How far each hyperparameter's values among the best quarter of the trials differ from those of all "
            "(PED-ANOVA, Watanabe et al. 2023)",
        ),
    }[found.method]
    draw = partial(
        plots.bars,
        values=named,
        title="Importance of hyperparameters",
        label=label,
        form="{:.0%}".format,
    )
    return Figure(
        "importances",
        "; ".join(f"{name}: {share:.0%}" for name, share in named.items()),
        f"{about}, from {np.sum(counted)} complete trials.",
        grid([draw], 1, height=0.8 + 0.28 * len(named)),
    )


def what_matters(results: Results) -> list[Item]:
    """Parallel coordinates and importances, if there are enough trials."""
    found: list[Item] = []
    if np.sum(on_one_scale(results, results.study.score)) >= LEAST_TRIALS:
        found.append(parallel_coordinates(results))
    with suppress(ValueError):  # too few, or all alike
        found.append(importances(results))
    return found


def _constant(results: Results) -> float | None:
    """The loss of the best network that ignores its input, where that is known."""
    if results.data.weights is not None or results.task.prepare_y is not None:
        return None
    return evaluation.constant_loss(results.task.loss, results.data.y_train)


def end_of_scale(results: Results, name: str) -> tuple[float, str]:
    """(the largest value that fits into one figure with the others, what that is); (infinity, "") for most metrics."""
    constant = _constant(results)
    if name == "loss" and constant is not None:
        return OFF_SCALE * constant, f"{OFF_SCALE} times a constant's loss"
    median = float(np.median(results.trials.means[name][results.trials.complete | results.trials.pruned]))
    low_is_good = name == "loss" or (name == results.study.score and not results.study.maximize)
    return (OFF_SCALE * median, f"{OFF_SCALE} times the median") if low_is_good and median > 0 else (np.inf, "")


def on_one_scale(results: Results, name: str) -> np.ndarray:
    """The trials that fit into one figure, bool [trial]: neither failed nor far off, and always the best."""
    scored = results.trials.complete | results.trials.pruned
    on_scale = scored & (results.trials.means[name] <= end_of_scale(results, name)[0])
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
    for i in np.argsort(trials["rank"], kind="stable"):
        values = {name: space_.plain(trials.params[name][i]) for name in trials.params}
        rank = "-" if np.isnan(trials["rank"][i]) else html.number(int(trials["rank"][i]), "{}")
        row: list[Any] = [rank, html.number(int(trials["number"][i]), "{}"), _state(results, i)]
        for value in space_.unflatten(study.space, values).values():
            row.append(_together([html.hyperparameter(v) for v in (value if isinstance(value, tuple) else [value])]))
        for name in names:
            mean, folds = float(trials.means[name][i]), trials.folds[name][i].tolist()
            row.append(html.spread(mean, float(trials[f"std_val_{name}"][i]), name))
            missing = np.isfinite(mean) & np.isnan(folds)  # the metric is undefined in these folds
            row.append(_together(["-" if m else html.score(name, v) for m, v in zip(missing, folds, strict=True)]))
        bold = [Markup(f"<strong>{html.cell(value)}</strong>") for value in row]
        rows.append(bold if i == results.row else row)
    return table(headings, rows, caption="All trials, the best first")


def _together(values: Sequence[Any]) -> Markup:
    return Markup(" ".join(map(html.cell, values)))


def _state(results: Results, i: int) -> Markup:
    """The state of a trial, and the epoch where it was pruned or failed."""
    trials = results.trials
    if trials["state"][i] == "pruned":
        return Markup(f"pruned after {html.number(int(trials['epochs'][i]), '{}')}")
    epoch = trials.rows[i]["diverged_epoch"]
    in_epoch = f" in epoch {html.number(int(epoch), '{}')}" if epoch.isdigit() else ""
    return Markup(f"{html.escape(str(trials['state'][i]))}{in_epoch}")
