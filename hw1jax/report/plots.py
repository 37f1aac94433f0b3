"""Figures: each function takes arrays and an `ax`, draws into it, and returns it. The only file that knows matplotlib.

Nothing is computed here but where ink goes, and nothing is global: no pyplot, and the style holds within `style()`.
Colours are Okabe and Ito's, which the colour-blind can tell apart, and matplotlib's viridis, Blues and RdBu.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image  # which matplotlib writes its PNGs with

Array = np.ndarray

WIDTH = 6.5  # inches: the text of a printed page
DOTS_PER_INCH = 190
NOTEBOOK_DOTS_PER_INCH = 100  # a notebook keeps its pictures in itself, as text
BLACK, GREY, LIGHT = "#000000", "#777777", "#bbbbbb"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
TRAINING, VALIDATION, REFIT, TEST, BEST, PRUNED = BLUE, ORANGE, GREEN, BLACK, ORANGE, SKY
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SEQUENTIAL = "viridis"  # dark is low: a small loss stands out

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.2,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "figure.labelsize": 8,
    "figure.titlesize": 8.5,
    "figure.facecolor": "white",
}


class Drawing(Figure):
    """A figure that a notebook shows as it is, without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """A PNG of fewer dots and colours than on a page, and the width at which it is shown."""
        dots, self.dpi = self.dpi, NOTEBOOK_DOTS_PER_INCH
        try:
            canvas = FigureCanvasAgg(self)
            with style():
                canvas.draw()
            return _with_colours(128, canvas), {"width": round(96 * self.get_figwidth())}
        finally:
            self.dpi = dots


def _with_colours(most: int, canvas: FigureCanvasAgg) -> bytes:
    """What is drawn, as a PNG file of so many colours, a third as large as one of all."""
    pixels, buffer, dots = Image.fromarray(np.asarray(canvas.buffer_rgba())), io.BytesIO(), canvas.figure.dpi
    pixels.convert("RGB").quantize(most, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True, dpi=(dots, dots)
    )
    return buffer.getvalue()


def style() -> AbstractContextManager[None]:
    """The figures' look, for everything that is drawn and saved within."""
    return matplotlib.rc_context(STYLE)


def figure(num_rows: int = 1, num_columns: int = 1, *, height: float, **options) -> tuple[Drawing, np.ndarray]:
    """A figure as wide as a page and `height` inches high, with its axes [row, column]; options as of `subplots`."""
    new = Drawing(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    return new, new.subplots(num_rows, num_columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _with_colours(256, canvas)


# The data and the fit of a regression


def regression_data(
    ax: Axes, x_train: Array, y_train: Array, x_test: Array, y_test: Array, *, gaps: Sequence[tuple[float, float]] = ()
) -> Axes:
    """Training and test points ([example] each) in one plane, the gaps of the training inputs shaded."""
    shade_gaps(ax, gaps)
    ax.plot(
        _thinned(x_train),
        _thinned(y_train),
        "o",
        color=TRAINING,
        markersize=3.5,
        markeredgewidth=0,
        label="training points",
    )
    ax.plot(
        _thinned(x_test), _thinned(y_test), "x", color=TEST, markersize=3.5, markeredgewidth=0.8, label="test points"
    )
    ax.set(title="Data of the regression", xlabel="input x", ylabel="label y")
    ax.legend()
    return ax


def shade_gaps(ax: Axes, gaps: Sequence[tuple[float, float]]) -> Axes:
    """Shades the intervals of x without training inputs."""
    for i, (start, stop) in enumerate(gaps):
        label = "no training inputs" if i == 0 else None
        ax.axvspan(start, stop, color="#eeeeee", linewidth=0, label=label, zorder=0)
    return ax


def fitted_curve(ax: Axes, x: Array, y: Array, low: Array, high: Array, mean: Array) -> Axes:
    """What the refitted best model predicts (`y`) along `x`; range and mean of its fold models (all [point])."""
    ax.fill_between(x, low, high, color=ORANGE, alpha=0.25, linewidth=0, label="range of the fold models")
    ax.plot(x, mean, color=GREEN, linestyle="--", label="mean of the fold models")
    ax.plot(x, y, color=ORANGE, linewidth=1.8, label="refitted best model")
    ax.set(title="Fitted curve", xlabel="input x", ylabel="label y")
    ax.legend()
    return ax


def residuals(ax: Axes, x: Array, residual: Array, inside: Array, *, gaps: Sequence[tuple[float, float]] = ()) -> Axes:
    """Prediction minus label of the test points ([example] each); those `inside` a gap have a colour of their own.

    Where there are no gaps nothing is told apart.
    """
    shade_gaps(ax, gaps)
    ax.axhline(0, color=GREY, linewidth=0.8)
    for mask, color, marker, label in ((~inside, BLUE, "o", "outside the gaps"), (inside, ORANGE, "s", "inside")):
        at, error = _thinned(x[mask]), _thinned(residual[mask])
        ax.plot(at, error, marker, color=color, markersize=3.5, markeredgewidth=0, label=label)
    ax.set(title="Error on the test points", xlabel="input x", ylabel="prediction - label")
    if gaps:
        ax.legend()
    return ax


def bars(
    ax: Axes, values: Mapping[str, float], *, title: str, label: str, form: Callable[[float], str] = "{:.3f}".format
) -> Axes:
    """A horizontal bar a name, the first on top, each with its number."""
    names = list(values)
    drawn = ax.barh(names, list(values.values()), color=BLUE, height=0.6)
    ax.bar_label(drawn, [form(value) for value in values.values()], padding=3)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set(title=title, xlabel=label)
    return ax


def rungs(ax: Axes, names: Sequence[str], went_on: Array, pruned: Array, failed: Array) -> Axes:
    """What became of the trials of each rung of a search ([rung] each): bars side by side, the first rung on top."""
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
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    ax.legend(loc="lower right")
    return ax


# Learning


def learning_profile(
    ax: Axes, train: Array, val: Array, train_mean: Array, val_mean: Array, refit: Array, *, loss_name: str
) -> Axes:
    """Losses by epoch: train and val [fold, epoch] thin, their means [epoch] bold, and the refit's training loss."""
    epochs = np.arange(1, len(refit) + 1)
    dots = _dots(epochs)
    for folds, mean, color, name in (
        (train, train_mean, TRAINING, "training"),
        (val, val_mean, VALIDATION, "validation"),
    ):
        ax.plot(epochs, np.transpose(folds), color=color, linewidth=0.6, alpha=0.55, **dots)
        ax.plot(epochs, mean, color=color, linewidth=1.8, label=f"{name}, mean of {len(folds)} folds", **dots)
    ax.plot(epochs, refit, color=REFIT, linestyle="--", label="refit on all training data", **dots)
    ax.set(title="Learning profile of the best trial", xlabel="epoch", ylabel=loss_name)
    _epoch_axis(ax, epochs)
    _log_loss_axis(ax, np.concatenate([np.ravel(train), np.ravel(val), np.ravel(refit)]))
    ax.legend()
    return ax


def validation_curves(ax: Axes, curves: Array, on_scale: Array, pruned: Array, best: int, *, loss_name: str) -> Axes:
    """Validation loss of every trial, curves [trial, epoch], NaN after its last; `best` is a row.

    A pruned trial's line ends in a ring. on_scale and pruned are bool [trial]. The limits come from the trials on the
    scale: a diverged one leaves the figure instead of flattening the others.
    """
    _trial_curves(ax, curves, on_scale, pruned, best)
    ax.set(title="Validation loss of all trials, mean over the folds", ylabel=loss_name)
    shown = curves[on_scale]
    shown = shown[np.isfinite(shown)]
    _log_loss_axis(ax, shown)
    low, high = shown.min(), np.quantile(shown, 0.995)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1
    ax.set_ylim(low * 0.92 if ax.get_yscale() == "log" else low - room, high + 2 * room)
    ax.legend()
    return ax


def metric_profile(ax: Axes, val: Array, mean: Array, *, name: str) -> Axes:
    """A metric in validation by epoch: val [fold, epoch] thin, their mean [epoch] bold."""
    epochs = np.arange(1, len(mean) + 1)
    dots = _dots(epochs)
    ax.plot(epochs, np.transpose(val), color=VALIDATION, linewidth=0.6, alpha=0.55, **dots)
    ax.plot(epochs, mean, color=VALIDATION, linewidth=1.8, label=f"validation, mean of {len(val)} folds", **dots)
    ax.set(title="Best trial", xlabel="epoch", ylabel=name)
    _epoch_axis(ax, epochs)
    ax.legend()
    return ax


def metric_curves(ax: Axes, curves: Array, on_scale: Array, pruned: Array, best: int, *, name: str) -> Axes:
    """A metric in validation of every trial, as `validation_curves`, on a linear axis."""
    _trial_curves(ax, curves, on_scale, pruned, best)
    ax.set(title="All trials, mean over the folds", ylabel=name)
    shown = curves[on_scale]
    shown = shown[np.isfinite(shown)]
    if len(shown):
        room = 0.05 * (shown.max() - shown.min()) or 0.05 * abs(shown.max()) or 1
        ax.set_ylim(shown.min() - room, shown.max() + room)
    ax.legend()
    return ax


def _trial_curves(ax: Axes, curves: Array, on_scale: Array, pruned: Array, best: int) -> None:
    """A line a trial, curves [trial, epoch], the best one in front, a ring where one was pruned."""
    epochs = np.arange(1, curves.shape[1] + 1)
    dots = _dots(epochs)
    off, dropped, other = "failed or off the scale", "pruned", "other trials"
    ring = {"marker": "o", "markersize": 3.5, "markerfacecolor": "white", "markeredgewidth": 0.7}
    looks: dict[str, dict[str, Any]] = {
        off: {"color": GREY, "linestyle": ":", **dots},
        dropped: {"color": PRUNED, "alpha": 0.8, **ring},
        other: {"color": BLUE, "alpha": 0.8 if pruned.any() else 0.45, **dots},
    }
    kinds = np.select([~on_scale, pruned], [off, dropped], other)
    for kind, look in looks.items():
        rows = [row for row in np.flatnonzero(kinds == kind) if row != best]
        for row in rows:
            ends: dict[str, Any] = (
                {"markevery": np.flatnonzero(np.isfinite(curves[row]))[-1:]} if kind == dropped else {}
            )
            label = kind if row == rows[0] else None
            ax.plot(epochs, curves[row], linewidth=0.6, label=label, **look, **ends)
    ax.plot(epochs, curves[best], color=BEST, linewidth=1.8, label="best trial", zorder=3, **dots)
    ax.set_xlabel("epoch")
    _epoch_axis(ax, epochs)


# Trials


def trial_scores(
    ax: Axes,
    numbers: Array,
    folds: Array,
    means: Array,
    on_scale: Array,
    pruned: Array,
    epochs: Array,
    *,
    constant: float | None,
    name: str,
    high_is_good: bool = False,
) -> Axes:
    """Each trial's score: a dot a fold (folds [trial, fold]) and a bar at the mean ([trial]), in the given order.

    Pruned trials are hollow, a line between those of different epochs. Trials off the scale (failed, or far off) are
    crosses at the top edge; the dashed line is a constant's loss, where that is known. `name` is the score's.
    """
    place = np.arange(len(numbers))
    done = np.asarray(on_scale, bool)
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
    ax.set(title="Score of each trial, the best first", xlabel="trial number", ylabel=f"validation {name}")
    every = slice(None, None, -(-len(numbers) // 50))  # more would overlap
    ax.set_xticks(place[every], [str(number) for number in numbers[every]], rotation=90 if len(numbers) > 30 else 0)
    ax.set_xlim(-0.7, len(numbers) - 0.3)
    if not high_is_good:
        _log_loss_axis(ax, folds[done] if constant is None else np.append(folds[done], constant))
    ax.legend()
    return ax


def hyperparameter_slice(
    ax: Axes,
    values: Array,
    scores: Array,
    on_scale: Array,
    learned: Array,
    pruned: Array,
    best: int,
    *,
    name: str,
    choices: Sequence,
    log: bool = False,
    high_is_good: bool = False,
) -> Axes:
    """One hyperparameter against the score, a point a trial (all [trial]), coloured by score.

    Args:
      values: numbers, or str for a choice.
      on_scale: bool; the others, failed or far off, are crosses at the top edge.
      learned: bool; trials no better than a constant are hollow.
      pruned: bool; these are small triangles.
      best: the row with a ring around it.
      choices: what could be drawn: (low, high), or the names.
      log: whether numbers were drawn on a logarithmic scale.
      high_is_good: of the score; dark is good.
    """
    values = _place(ax, values, choices, log)
    look: dict[str, Any] = {"norm": _score_norm(scores[on_scale]), "cmap": _colours(high_is_good)}
    for kind, marker, size in ((~pruned, "o", 18), (pruned, "v", 11)):
        shown, hollow = on_scale & learned & kind, on_scale & ~learned & kind
        points: dict[str, Any] = {"c": scores[shown], "marker": marker, "s": size, "edgecolor": GREY}
        ax.scatter(values[shown], scores[shown], linewidth=0.3, **points, **look)
        rings: dict[str, Any] = {"marker": marker, "s": 0.8 * size, "facecolor": "none", "edgecolor": GREY}
        ax.scatter(values[hollow], scores[hollow], linewidth=0.8, **rings)
    ax.scatter(values[best], scores[best], s=70, facecolor="none", edgecolor=BEST, linewidth=1.4, zorder=3)
    _crosses(ax, values[~on_scale])
    if not high_is_good:
        _log_loss_axis(ax, scores[on_scale])
    ax.set_xlabel(name)
    return ax


def score_plane(
    ax: Axes,
    x: Array,
    y: Array,
    scores: Array,
    on_scale: Array,
    pruned: Array,
    names: Sequence[str],
    best: int,
    *,
    x_range: Sequence[float],
    y_range: Sequence[float],
    title: str,
    labels: tuple[str, str, str],
    high_is_good: bool = False,
) -> Axes:
    """Two hyperparameters on logarithmic axes, a point a trial (all [trial]) coloured by score, a marker a name.

    Pruned ones are small. The ranges are (low, high) of what could be drawn; `labels` are those of x, y and score.
    """
    look: dict[str, Any] = {"norm": _score_norm(scores[on_scale]), "cmap": _colours(high_is_good)}
    for marker, name in zip(cycle(MARKERS), sorted(set(names)), strict=False):
        mask = on_scale & (np.asarray(names) == name)
        sizes = np.where(pruned[mask], 9, 28)
        ax.scatter(x[mask], y[mask], c=scores[mask], marker=marker, s=sizes, edgecolor=GREY, linewidth=0.3, **look)
        ax.plot([], [], marker, color=GREY, markersize=5, label=name)
    ax.scatter(x[best], y[best], s=110, facecolor="none", edgecolor=BEST, linewidth=1.5, label="best trial")
    if not on_scale.all():
        ax.plot(x[~on_scale], y[~on_scale], "x", color=GREY, markersize=5, label="failed or off the scale")
    _range_axis(ax, "x", *x_range, log=True)
    _range_axis(ax, "y", *y_range, log=True)
    ax.set(title=title, xlabel=labels[0], ylabel=labels[1])
    ax.figure.colorbar(ScalarMappable(**look), ax=ax, label=labels[2], format=_PLAIN)
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=5)
    return ax


def parallel_coordinates(
    ax: Axes,
    places: Array,
    scores: Array,
    pruned: Array,
    best: int,
    *,
    names: Sequence[str],
    ticks: Sequence[Sequence[tuple[float, str]]],
    label: str,
    high_is_good: bool = False,
) -> Axes:
    """Each trial a line through its hyperparameters, coloured by score, the good ones in front; the best is ringed.

    Args:
      places: [trial, axis], each between 0 and 1.
      scores: [trial], finite.
      pruned: bool [trial]; these are dashed.
      best: the row in front of all.
      names: of the axes.
      ticks: of each axis, (place, text).
      label: the score's.
      high_is_good: of the score; dark is good.
    """
    norm, colours = _score_norm(scores), matplotlib.colormaps[_colours(high_is_good)]
    worst_first = np.argsort(scores if high_is_good else -scores, kind="stable")
    axes = np.arange(places.shape[1])
    for row in worst_first:
        look: dict[str, Any] = {"color": colours(norm(scores[row])), "linewidth": 0.9, "alpha": 0.75}
        ax.plot(axes, places[row], linestyle="--" if pruned[row] else "-", **look)
    front: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.4, "label": "best trial"}
    ax.plot(axes, places[best], "o-", color=BEST, linewidth=2, zorder=3, **front)
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
    ax.figure.colorbar(ScalarMappable(norm, _colours(high_is_good)), ax=ax, label=label, format=_PLAIN)
    return ax


def compared_curves(ax: Axes, curves: Mapping[str, Array], *, title: str, label: str, log: bool = False) -> Axes:
    """A line a run with its name, each [epoch], in the share of its own epochs where these differ.

    `log`: a logarithmic axis if the values span much.
    """
    lengths = {len(curve) for curve in curves.values()}
    looks = zip(cycle((BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK)), cycle(("-", "--", "-.", ":")), strict=False)
    for (name, curve), (color, line) in zip(curves.items(), looks, strict=False):
        epochs = np.arange(1, len(curve) + 1)
        x = epochs if len(lengths) == 1 else epochs / len(curve)
        ax.plot(x, curve, color=color, linestyle=line, linewidth=1.5, label=name, **_dots(epochs))
    if len(lengths) == 1:
        _epoch_axis(ax, np.arange(1, lengths.pop() + 1))
    ax.set(title=title, xlabel="epoch" if not lengths else "share of its epochs", ylabel=label)
    if log:
        _log_loss_axis(ax, np.concatenate([np.ravel(curve) for curve in curves.values()]))
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    return ax


# The network


def weight_histogram(ax: Axes, weights: Array, biases: Array, *, layer: str) -> Axes:
    """How the weights of a layer (any shape) are distributed; its biases are ticks below."""
    value_histogram(ax, weights, title=f"{layer}: {np.size(weights):,} weights", label="weight (bias: ticks)")
    at = np.full(np.size(biases), -0.03)
    ax.plot(np.ravel(biases), at, "|", color=ORANGE, markersize=6, transform=ax.get_xaxis_transform(), clip_on=False)
    ax.tick_params(axis="x", pad=6)
    return ax


def value_histogram(ax: Axes, values: Array, *, title: str, label: str) -> Axes:
    """How values (an array of any shape) are distributed."""
    values = np.ravel(values)
    ax.hist(values, bins=int(np.clip(np.sqrt(values.size), 10, 60)), color=BLUE)
    ax.set(title=title, xlabel=label, ylabel="count")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return ax


def activation_profile(ax: Axes, activations: Array, *, title: str, limits: tuple[float, float] = (0, 1)) -> Axes:
    """The activation of each unit of a layer, [unit], for one input; a sigmoid's are between 0 and 1."""
    units = np.arange(1, len(activations) + 1)
    ax.bar(units, activations, width=0.8, color=BLUE, linewidth=0)
    ax.set(title=title, ylim=limits, xlim=(0.3, len(units) + 0.7))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    ax.set_xlabel("unit")
    return ax


def image(ax: Axes, pixels: Array, *, title: str) -> Axes:
    """Pixels uint8 [row, column], grey, 255 black as Fashion-MNIST shows it on white paper; or [row, column, RGB]."""
    ax.imshow(pixels, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    ax.set_title(title, loc="center")
    ax.set_axis_off()
    return ax


def feature_maps(ax: Axes, maps: Array, *, title: str) -> Axes:
    """A convolution's activation profiles, maps [channel, row, column], side by side on one colour scale from 0."""
    num_columns = _columns_of(len(maps))
    tiles = _tiled(maps, num_columns)
    drawn = ax.imshow(tiles, cmap="viridis", vmin=0, interpolation="nearest")
    ax.set_title(title)
    ax.set_axis_off()
    ax.figure.colorbar(drawn, ax=ax, label="activation", shrink=0.85, aspect=25)
    return ax


def receptive_fields(ax: Axes, kernels: Array, *, title: str) -> Axes:
    """Kernels [channel, input channel, row, column]: a column of tiles a channel, a row of tiles an input channel."""
    num_channels, num_inputs, size, _ = kernels.shape
    largest = float(np.abs(kernels).max()) or 1.0
    tiles = _tiled(np.swapaxes(kernels, 0, 1).reshape(-1, size, size), num_channels)
    drawn = ax.imshow(tiles, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    step, middle = size + 1, (size - 1) / 2
    ax.set_xticks(middle + step * np.arange(num_channels), np.arange(1, num_channels + 1))
    ax.set_yticks(middle + step * np.arange(num_inputs), np.arange(1, num_inputs + 1))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(title=title, xlabel="channel", ylabel="input channel")
    if num_inputs == 1:
        ax.set(yticks=[], ylabel="")
    ax.figure.colorbar(drawn, ax=ax, label="weight", aspect=25, shrink=0.9)
    return ax


def nothing(ax: Axes) -> Axes:
    """An empty place in a grid."""
    ax.set_axis_off()
    return ax


# The classifiers


def confusion_matrix(ax: Axes, shares: Array, names: Sequence[str]) -> Axes:
    """Shares [true class, predicted class] of each true class, as percentages with class names."""
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), share in np.ndenumerate(shares if len(names) <= MOST_NUMBERS else np.zeros((0, 0))):
        text = f"{100 * share:.1f}" if share else "0"
        ax.text(predicted, true, text, ha="center", va="center", color="white" if share > 0.55 else BLACK, fontsize=7.5)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(title="Confusion on the test set: % of each true class", xlabel="predicted class", ylabel="true class")
    return ax


def precision_and_recall(ax: Axes, precision: Array, recall: Array, names: Sequence[str]) -> Axes:
    """Precision and recall of each class ([class] each), joined by a line."""
    place = np.arange(len(names))
    ax.hlines(place, np.minimum(precision, recall), np.maximum(precision, recall), color=LIGHT, linewidth=2, zorder=1)
    ax.plot(precision, place, "o", color=BLUE, markersize=5, label="precision")
    ax.plot(recall, place, "s", color=ORANGE, markersize=4.5, label="recall")
    ax.set_yticks(place, names)
    ax.invert_yaxis()
    ax.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set(title="Precision and recall by class", xlabel="share", xlim=(-0.02, 1.02))
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    return ax


def reliability(ax: Axes, confidence: Array, accuracy: Array) -> Axes:
    """Accuracy against mean confidence, [bin] each, NaN for an empty bin; on the diagonal both are equal."""
    filled = np.isfinite(confidence) & np.isfinite(accuracy)
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=0.8, label="perfectly calibrated")
    ax.plot(confidence[filled], accuracy[filled], "o-", color=BLUE, markersize=4, label="this classifier")
    ax.set(title="Calibration", xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    ax.set_aspect("equal")
    ax.legend(loc="upper left")
    return ax


def confidence_histogram(ax: Axes, edges: Array, right: Array, wrong: Array, *, what: str) -> Axes:
    """How many (of `what`) were predicted with which confidence, rightly and wrongly: [bin + 1], [bin], [bin]."""
    width = np.diff(edges)
    ax.bar(edges[:-1], right, width, align="edge", color=BLUE, linewidth=0, label="right")
    ax.bar(edges[:-1], wrong, width, bottom=right, align="edge", color=ORANGE, linewidth=0, label="wrong")
    ax.set(title="Confidence", xlabel="confidence", ylabel=what, xlim=(0, 1.02))
    ax.legend(loc="upper left")
    return ax


# Speed


def speed_bars(ax: Axes, ours: Mapping[str, float], peers: Mapping[str, float], *, title: str, label: str) -> Axes:
    """A horizontal bar a name with its number, on a logarithmic axis: our forms on top, the peers hatched below."""
    for part, color, hatch in ((ours, BLUE, None), (peers, ORANGE, "////")):
        look: dict[str, Any] = {"color": color, "edgecolor": "white", "hatch": hatch}
        drawn = ax.barh(list(part), list(part.values()), height=0.65, linewidth=0, **look)
        ax.bar_label(drawn, fmt="%.3g", padding=3)
    ax.invert_yaxis()
    ax.set_xscale("log")
    values = [*ours.values(), *peers.values()]
    ax.set_xlim(10 ** np.floor(np.log10(0.7 * min(values))), 1.6 * max(values))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(_PLAIN)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(title=title, xlabel=label)
    return ax


# Shared pieces

MOST_NUMBERS = 20  # rows of a confusion matrix whose cells have room for their numbers
MOST_POINTS = 10_000  # of a cloud: more are ink alone, and placing a legend among them takes minutes


def _thinned(values: Array) -> Array:
    """At most `MOST_POINTS` of the points, evenly."""
    return values[:: -(-len(values) // MOST_POINTS) or 1]


_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def _dots(epochs: Array) -> dict[str, Any]:
    """A few epochs are drawn as points too: a line of one epoch would not be seen."""
    return {"marker": "o", "markersize": 2.5} if len(epochs) <= 30 else {}


def _epoch_axis(ax: Axes, epochs: Array) -> None:
    room = max(0.02 * len(epochs), 0.2)
    ax.set_xlim(epochs[0] - room, epochs[-1] + room)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _epoch_groups(ax: Axes, place: Array, epochs: Array, pruned: Array) -> None:
    """Of trials in the order of their ranks, where those begin that were pruned after as many epochs."""
    starts = [i for i in np.flatnonzero(pruned) if i == 0 or not pruned[i - 1] or epochs[i - 1] != epochs[i]]
    where, box = ax.get_xaxis_transform(), {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    for k, i in enumerate(starts):  # one text above the other, as groups may be narrow
        ax.axvline(place[i] - 0.5, color=GREY, linewidth=0.6)
        text = f"pruned after {epochs[i]} epoch{'s' if epochs[i] > 1 else ''}"
        ax.text(place[i] - 0.4, 0.01 + 0.06 * k, text, fontsize=6.5, color=GREY, transform=where, bbox=box)


def _log_loss_axis(ax: Axes, values: Array) -> None:
    """A logarithmic y axis with plain numbers if the positive finite `values` span more than a factor of 4."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() < 4 * values.min():
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(_PLAIN)
    ax.yaxis.set_minor_formatter(NullFormatter())
    if values.max() < 300 * values.min():  # too narrow for the powers of 10 alone
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())


def _place(ax: Axes, values: Array, choices: Sequence, log: bool) -> np.ndarray:
    """Where values go on the x axis, which shows all that they could have been."""
    values = np.asarray(values)
    if values.dtype.kind == "U":
        names = list(dict.fromkeys([*choices, *values.tolist()]))
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.5, len(names) - 0.5)
        return np.array([names.index(value) for value in values.tolist()])
    _range_axis(ax, "x", *choices, log=log)
    return values


def _range_axis(ax: Axes, axis: str, low: float, high: float, *, log: bool) -> None:
    """An axis from low to high with a little room; a logarithmic one needs a factor of 20, to have ticks enough."""
    ticks = ax.xaxis if axis == "x" else ax.yaxis
    if log and high >= 20 * low:
        room = (high / low) ** 0.05
        ax.set(**{f"{axis}scale": "log", f"{axis}lim": (low / room, high * room)})
        ticks.set_major_formatter(_PLAIN)
        ticks.set_minor_formatter(NullFormatter())
    else:
        room = 0.06 * (high - low) or 0.5
        ax.set(**{f"{axis}lim": (low - room, high + room)})
        ticks.set_major_locator(MaxNLocator(5, integer=high > 2))


def _colours(high_is_good: bool) -> str:
    """The colours of scores: dark is good."""
    return f"{SEQUENTIAL}_r" if high_is_good else SEQUENTIAL


def _score_norm(scores: Array) -> Normalize:
    """Colours for scores, never of no width."""
    low, high = float(scores.min()), float(scores.max())
    return Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5)


def _crosses(ax: Axes, x: Array) -> None:
    """Trials without a score, or one far off: crosses at the top edge."""
    if len(x):
        ax.margins(y=0.12)  # so that they stand above the points
        label = "failed or off the scale"
        ax.plot(
            x, np.full(len(x), 0.97), "x", color=GREY, markersize=5, transform=ax.get_xaxis_transform(), label=label
        )


def _columns_of(num_tiles: int) -> int:
    """Tiles a row: one row of up to 5, else rows of about equal length that a page holds."""
    num_rows = -(-num_tiles // 5)
    return -(-num_tiles // num_rows)


def _tiled(tiles: Array, num_columns: int) -> np.ndarray:
    """[tile, row, column] in rows of `num_columns` tiles, with lines of NaN, which is not drawn, between them."""
    num_tiles, height, width = tiles.shape
    num_rows = -(-num_tiles // num_columns)
    board = np.full((num_rows * num_columns, height + 1, width + 1), np.nan)
    board[:num_tiles, :height, :width] = tiles
    board = board.reshape(num_rows, num_columns, height + 1, width + 1).swapaxes(1, 2)
    return board.reshape(num_rows * (height + 1), num_columns * (width + 1))[:-1, :-1]
