"""Plots of a search's trials: each function takes arrays and an `ax`, draws into it, and returns it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hw1jax.report.look import (
    BEST,
    BLACK,
    BLUE,
    GREY,
    LIGHT,
    PRUNED,
    Array,
    dots,
    epoch_axis,
    few_ticks,
    log_axis,
    range_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
OFF = "failed or off the scale"  # how a legend calls these trials


class Scores(NamedTuple):
    """The scores of a search's trials, as all plots show them: dark the good ones, ringed the best.

    Attributes:
      values: float [trial].
      on_scale: bool [trial]; the others, failed or far off, are crosses at the edge.
      pruned: bool [trial].
      best: the row of the best trial.
      label: of their axis, as "validation loss".
      high_is_good: False for a loss.
    """

    values: Array
    on_scale: Array
    pruned: Array
    best: int
    label: str = "validation loss"
    high_is_good: bool = False

    @property
    def look(self) -> dict[str, Any]:
        """The colours of scores, as a scatter plot and a colour bar take them; dark is good."""
        from matplotlib.colors import Normalize

        shown = self.values[self.on_scale]
        low, high = float(shown.min()), float(shown.max())
        norm = Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5)
        return {"norm": norm, "cmap": "viridis_r" if self.high_is_good else "viridis"}

    @property
    def colours(self) -> ScalarMappable:
        """The same for single values."""
        from matplotlib.cm import ScalarMappable

        return ScalarMappable(**self.look)


def rungs(ax: Axes, names: Sequence[str], went_on: Array, pruned: Array, failed: Array) -> Axes:
    """Trials of each rung that went on, were pruned or failed ([rung] each), as stacked bars, the first rung on top."""
    begin = np.zeros(len(names))
    for values, color, hatch, label in (
        (went_on, BLUE, None, "went on, or to the end"),
        (pruned, PRUNED, "////", "pruned"),
        (failed, GREY, "....", "failed"),
    ):
        if any(values):
            look: dict[str, Any] = {"color": color, "edgecolor": "white", "hatch": hatch, "linewidth": 0}
            drawn = ax.barh(names, values, left=begin, height=0.6, label=label, **look)
            box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
            share = np.asarray(values) / max(went_on + pruned + failed)
            numbers = [str(value) if part > 0.03 else "" for value, part in zip(values, share, strict=True)]
            ax.bar_label(drawn, numbers, label_type="center", bbox=box)
            begin = begin + values
    ax.invert_yaxis()
    ax.set(title="Trials of each rung", xlabel="trials")
    few_ticks(ax.xaxis, nbins=5, integer=True, min_n_ticks=1)
    ax.legend(loc="lower right")
    return ax


def trial_curves(ax: Axes, curves: Array, scores: Scores, *, title: str, label: str, is_loss: bool) -> Axes:
    """A loss or metric of every trial by epoch, curves [trial, epoch], NaN after its last, the best one in front.

    A pruned trial's line ends in a ring. The limits come from the trials on the scale: a diverged one leaves the figure
    instead of flattening the others. A loss's axis may be logarithmic.
    """
    epochs, pruned = np.arange(1, curves.shape[1] + 1), scores.pruned
    ring = {"marker": "o", "markersize": 3.5, "markerfacecolor": "white", "markeredgewidth": 0.7}
    looks: dict[str, dict[str, Any]] = {
        OFF: {"color": GREY, "linestyle": ":", **dots(epochs)},
        "pruned": {"color": PRUNED, "alpha": 0.8, **ring},
        "other trials": {"color": BLUE, "alpha": 0.8 if pruned.any() else 0.45, **dots(epochs)},
    }
    kinds = np.select([~scores.on_scale, pruned], [OFF, "pruned"], "other trials")
    for kind, look in looks.items():
        rows = [row for row in np.flatnonzero(kinds == kind) if row != scores.best]
        for row in rows:
            if kind == "pruned":
                look["markevery"] = np.flatnonzero(np.isfinite(curves[row]))[-1:]
            ax.plot(epochs, curves[row], linewidth=0.6, label=kind if row == rows[0] else None, **look)
    ax.plot(epochs, curves[scores.best], color=BEST, linewidth=1.8, label="best trial", zorder=3, **dots(epochs))
    ax.set(title=title, xlabel="epoch", ylabel=label)
    epoch_axis(ax, epochs)
    shown = curves[scores.on_scale]
    if len(shown := shown[np.isfinite(shown)]):
        low, high = shown.min(), np.quantile(shown, 0.995) if is_loss else shown.max()
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1
        if is_loss:
            log_axis(ax, shown)
        ax.set_ylim(low * 0.92 if ax.get_yscale() == "log" else low - room, high + (1 + is_loss) * room)
    ax.legend()
    return ax


def trial_scores(
    ax: Axes, scores: Scores, order: Array, folds: Array, numbers: Array, epochs: Array, *, constant: float | None
) -> Axes:
    """Each trial's score: a dot a fold (folds [trial, fold]) and a bar at the mean, in this order of the rows.

    Pruned trials are hollow, a line between those of different epochs. Trials off the scale (failed, or far off) are
    crosses at the top edge; the dashed line is a constant's loss, where that is known.
    """
    arrays = (scores.values, scores.on_scale, scores.pruned, folds, numbers, epochs)
    means, done, pruned, folds, numbers, epochs = (a[order] for a in arrays)
    place = np.arange(len(order))
    if constant is not None:
        ax.axhline(constant, color=GREY, linestyle="--", linewidth=0.8, label="constant prediction")
    ax.vlines(place[done], folds[done].min(axis=1), folds[done].max(axis=1), color=LIGHT, linewidth=2.5, zorder=1)
    hollow: dict[str, Any] = {"color": PRUNED, "markersize": 2.8, "markerfacecolor": "white", "markeredgewidth": 0.7}
    kinds: list[tuple[Array, str, str, dict[str, Any]]] = [
        (done & ~pruned, "each fold", "o", {"color": BLUE, "markersize": 2.5}),
        (done & pruned, "each fold of a pruned trial", "s", hollow),
    ]
    for shown, label, marker, look in kinds:
        if shown.any():
            columns = [ax.plot(place[shown], fold[shown], marker, linestyle="", **look)[0] for fold in folds.T]
            columns[0].set_label(label)
    long = float(np.clip(270 / len(place), 2, 9))  # points: the bars of neighbours don't touch
    ax.plot(place[done], means[done], "_", color=BLACK, markersize=long, markeredgewidth=1.8, label="mean")
    _crosses(ax, place[~done])
    _epoch_groups(ax, place[done], epochs[done], pruned[done])
    ax.set(title="Score of each trial, the best first", xlabel="trial number", ylabel=scores.label)
    every = slice(None, None, -(-len(numbers) // 50))  # more would overlap
    ax.set_xticks(place[every], [str(number) for number in numbers[every]], rotation=90 if len(numbers) > 30 else 0)
    ax.set_xlim(-0.7, len(numbers) - 0.3)
    if not scores.high_is_good:
        log_axis(ax, folds[done] if constant is None else np.append(folds[done], constant))
    ax.legend()
    return ax


def hyperparameter_slice(
    ax: Axes, x: Array, scores: Scores, learned: Array, *, name: str, choices: Sequence, log: bool = False
) -> Axes:
    """One hyperparameter against the score, a point a trial, coloured by score; pruned ones are small triangles.

    Args:
      ax: to draw into.
      x: its values, [trial], numbers, or str for a choice.
      scores: of the trials.
      learned: bool [trial]; trials no better than a constant are hollow.
      name: of the hyperparameter.
      choices: what could be drawn: (low, high), or the names.
      log: True if numbers were drawn on a logarithmic scale.
    """
    x, y = _place(ax, x, choices, log), scores.values
    for kind, marker, size in ((~scores.pruned, "o", 18), (scores.pruned, "v", 11)):
        shown, hollow = scores.on_scale & learned & kind, scores.on_scale & ~learned & kind
        points: dict[str, Any] = {"marker": marker, "s": size, "edgecolor": GREY, "linewidth": 0.3}
        ax.scatter(x[shown], y[shown], c=y[shown], **points, **scores.look)
        ax.scatter(x[hollow], y[hollow], marker=marker, s=0.8 * size, facecolor="none", edgecolor=GREY, linewidth=0.8)
    ax.scatter(x[scores.best], y[scores.best], s=70, facecolor="none", edgecolor=BEST, linewidth=1.4, zorder=3)
    _crosses(ax, x[~scores.on_scale])
    if not scores.high_is_good:
        log_axis(ax, y[scores.on_scale])
    ax.set_xlabel(name)
    return ax


def score_plane(
    ax: Axes,
    x: Array,
    y: Array,
    scores: Scores,
    names: Array,
    *,
    ranges: Sequence[tuple[float, float]],
    title: str,
    labels: Sequence[str],
) -> Axes:
    """Two hyperparameters on logarithmic axes, a point a trial (all [trial]) coloured by score, a marker a name.

    Pruned ones are small. The ranges are (low, high) of what could be drawn, of x and of y, and so are the labels.
    """
    shown = scores.on_scale
    for marker, name in zip(cycle(MARKERS), sorted({*names.tolist()}), strict=False):
        mask = shown & (names == name)
        look: dict[str, Any] = {"marker": marker, "s": np.where(scores.pruned[mask], 9, 28), "edgecolor": GREY}
        ax.scatter(x[mask], y[mask], c=scores.values[mask], linewidth=0.3, **look, **scores.look)
        ax.plot([], [], marker, color=GREY, markersize=5, label=name)
    best = scores.best
    ax.scatter(x[best], y[best], s=110, facecolor="none", edgecolor=BEST, linewidth=1.5, label="best trial")
    if not shown.all():
        ax.plot(x[~shown], y[~shown], "x", color=GREY, markersize=5, label=OFF)
    for axis, (low, high) in zip("xy", ranges, strict=True):
        range_axis(ax, axis, low, high, log=True)
    ax.set(title=title, xlabel=labels[0], ylabel=labels[1])
    ax.figure.colorbar(scores.colours, ax=ax, label=scores.label, format="%g")
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=5)
    return ax


def parallel_coordinates(
    ax: Axes, places: Array, scores: Scores, *, names: Sequence[str], ticks: Sequence[Sequence[tuple[float, str]]]
) -> Axes:
    """Each trial a line through its hyperparameters, coloured by score, the good ones in front, the best ringed.

    Args:
      ax: to draw into.
      places: [trial, axis], each between 0 and 1.
      scores: of the trials, all finite; pruned ones are dashed.
      names: of the axes.
      ticks: of each axis, (place, text).
    """
    values, colours = scores.values, scores.colours
    worst_first = np.argsort(values if scores.high_is_good else -values, kind="stable")
    axes = np.arange(places.shape[1])
    for row in worst_first:
        look: dict[str, Any] = {"color": colours.to_rgba(values[row]), "linewidth": 0.9, "alpha": 0.75}
        ax.plot(axes, places[row], linestyle="--" if scores.pruned[row] else "-", **look)
    front: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.4, "label": "best trial"}
    ax.plot(axes, places[scores.best], "o-", color=BEST, linewidth=2, zorder=3, **front)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    for at, marks in zip(axes.tolist(), ticks, strict=True):
        ax.axvline(at, color=BLACK, linewidth=0.7, zorder=2)
        for place, text in marks:
            ax.plot([at - 0.02, at + 0.02], [place, place], color=BLACK, linewidth=0.7, zorder=4)
            ax.text(at - 0.05, place, text, ha="right", va="center", fontsize=6.5, bbox=box, zorder=4)
    ax.set_xticks(axes, [name.replace(" ", "\n") for name in names])
    ax.tick_params(axis="x", length=0, pad=5)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set(title="Each trial a line through its hyperparameters", xlim=(-0.45, axes[-1] + 0.1), ylim=(-0.06, 1.06))
    ax.figure.colorbar(scores.colours, ax=ax, label=scores.label, format="%g")
    return ax


def _epoch_groups(ax: Axes, place: Array, epochs: Array, pruned: Array) -> None:
    """Lines between pruned trials, in the order of their ranks, that were trained for different numbers of epochs."""
    starts = [i for i in np.flatnonzero(pruned) if i == 0 or not pruned[i - 1] or epochs[i - 1] != epochs[i]]
    where, box = ax.get_xaxis_transform(), {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    for k, i in enumerate(starts):  # one text above the other, as groups may be narrow
        ax.axvline(place[i] - 0.5, color=GREY, linewidth=0.6)
        text = f"pruned after {epochs[i]} epoch{'s' if epochs[i] > 1 else ''}"
        ax.text(place[i] - 0.4, 0.01 + 0.06 * k, text, fontsize=6.5, color=GREY, transform=where, bbox=box)


def _place(ax: Axes, values: Array, choices: Sequence, log: bool) -> np.ndarray:
    """Positions of values on the x axis, which covers the whole range or all choices."""
    values = np.asarray(values)
    if values.dtype.kind == "U":
        names = list(dict.fromkeys([*choices, *values.tolist()]))
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.5, len(names) - 0.5)
        return np.array([names.index(value) for value in values.tolist()])
    range_axis(ax, "x", *choices, log=log)
    return values


def _crosses(ax: Axes, x: Array) -> None:
    """Trials without a score, or one far off: crosses at the top edge."""
    if len(x):
        ax.margins(y=0.12)  # so that they stand above the points
        where = ax.get_xaxis_transform()
        ax.plot(x, np.full(len(x), 0.97), "x", color=GREY, markersize=5, transform=where, label=OFF)
