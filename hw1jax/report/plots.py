"""Plots of data, of learning and of networks: each function takes arrays and an `ax`, draws into it, and returns it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from hw1jax.report.look import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    REFIT,
    SKY,
    TEST,
    TRAINING,
    VALIDATION,
    Array,
    dots,
    epoch_axis,
    few_ticks,
    log_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NUMBERS = 20  # rows of a confusion matrix whose cells have room for their numbers
MOST_POINTS = 10_000  # of a cloud: more are ink alone, and placing a legend among them takes minutes

# The data and the fit of a regression


def regression_data(
    ax: Axes,
    x_train: Array,
    y_train: Array,
    x_test: Array | None = None,
    y_test: Array | None = None,
    *,
    gaps: Sequence[tuple[float, float]] = (),
) -> Axes:
    """Training points and test points, if any ([example] each), in one plane, the gaps of the inputs shaded."""
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
    if x_test is not None and y_test is not None:
        at, values = _thinned(x_test), _thinned(y_test)
        ax.plot(at, values, "x", color=TEST, markersize=3.5, markeredgewidth=0.8, label="test points")
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
    """The refitted best model's prediction `y` along `x`, and range and mean of its fold models (all [point])."""
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
    ax: Axes,
    values: Mapping[str, float],
    *,
    title: str,
    label: str,
    form: Callable[[float], str] = "{:.3f}".format,
    hatched: Collection[str] = (),
) -> Axes:
    """A horizontal bar a name, the first on top, each with its number; the hatched ones are of others."""
    drawn = ax.barh(list(values), list(values.values()), color=BLUE, height=0.6)
    for bar, name in zip(drawn, values, strict=True):
        if name in hatched:
            bar.set(facecolor=ORANGE, edgecolor="white", hatch="////", linewidth=0)
    ax.bar_label(drawn, [form(value) for value in values.values()], padding=3)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set(title=title, xlabel=label)
    return ax


def _thinned(values: Array) -> Array:
    """At most `MOST_POINTS` of the points, evenly."""
    return values[:: -(-len(values) // MOST_POINTS) or 1]


# Learning


def learning_profile(
    ax: Axes,
    folds: Mapping[str, Array],
    *,
    title: str,
    label: str,
    refit: Array | None = None,
    means: Mapping[str, Array] | None = None,
) -> Axes:
    """A loss or metric of a trial by epoch: each fold thin, their mean bold.

    Args:
      ax: to draw into.
      folds: of "training", "validation", or both, by name: [fold, epoch].
      title: of the panel.
      label: of the y axis.
      refit: [epoch], the training loss of the refit. With it, or with training losses of folds, the y axis is that
        of a loss, perhaps logarithmic.
      means: [epoch] at least, by the names of `folds`, if they aren't those of the values.
    """
    for name, values in folds.items():
        epochs, color = np.arange(1, values.shape[1] + 1), TRAINING if name == "training" else VALIDATION
        ax.plot(epochs, values.T, color=color, linewidth=0.6, alpha=0.55, **dots(epochs))
        mean, bold = f"{name}, mean of {len(values)} networks", values.mean(axis=0) if means is None else means[name]
        ax.plot(epochs, bold[: len(epochs)], color=color, linewidth=1.8, label=mean, **dots(epochs))
        epoch_axis(ax, epochs)
    ax.set(title=title, xlabel="epoch", ylabel=label)
    drawn = list(folds.values())
    if refit is not None:
        epochs = np.arange(1, len(refit) + 1)
        ax.plot(epochs, refit, color=REFIT, linestyle="--", label="refit on all training data", **dots(epochs))
        drawn.append(refit)
    if refit is not None or "training" in folds:
        log_axis(ax, np.concatenate([np.ravel(values) for values in drawn]))
    ax.legend()
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
        ax.plot(x, curve, color=color, linestyle=line, linewidth=1.5, label=name, **dots(epochs))
    if len(lengths) == 1:
        epoch_axis(ax, np.arange(1, lengths.pop() + 1))
    ax.set(title=title, xlabel="epoch" if not lengths else "share of its epochs", ylabel=label)
    if log:
        log_axis(ax, np.concatenate([np.ravel(curve) for curve in curves.values()]))
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    return ax


# The network


def histogram(ax: Axes, values: Array, *, title: str, label: str, biases: Array | None = None) -> Axes:
    """A histogram of an array of any shape; a layer's biases are ticks below its weights."""
    ax.hist(np.ravel(values), bins=int(np.clip(np.sqrt(np.size(values)), 10, 60)), color=BLUE)
    ax.set(title=title, xlabel=label, ylabel="count")
    few_ticks(ax.yaxis, nbins=4, integer=True)
    if biases is not None:
        at = np.full(np.size(biases), -0.03)
        where = ax.get_xaxis_transform()
        ax.plot(np.ravel(biases), at, "|", color=ORANGE, markersize=6, transform=where, clip_on=False)
        ax.tick_params(axis="x", pad=6)
    return ax


def activation_profile(ax: Axes, activations: Array, *, title: str, limits: tuple[float, float] = (0, 1)) -> Axes:
    """The activation of each unit of a layer, [unit], for one input; a sigmoid's are between 0 and 1."""
    units = np.arange(1, len(activations) + 1)
    # One outline, as a bar for each unit would take ten times as long.
    sides, heights = units[:, None] + [-0.4, -0.4, 0.4, 0.4], np.asarray(activations)[:, None] * [0, 1, 1, 0]
    ax.fill(sides.ravel(), heights.ravel(), color=BLUE, linewidth=0)
    ax.set(title=title, ylim=limits, xlim=(0.3, len(units) + 0.7))
    few_ticks(ax.xaxis, nbins=5, integer=True, min_n_ticks=1)
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


# The classifiers


def confusion_matrix(ax: Axes, shares: Array, names: Sequence[str], *, where: str = "on the test set") -> Axes:
    """Shares [true class, predicted class] of each true class, as percentages with class names."""
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), share in np.ndenumerate(shares if len(names) <= MOST_NUMBERS else np.zeros((0, 0))):
        text = f"{100 * share:.1f}" if share else "0"
        ax.text(predicted, true, text, ha="center", va="center", color="white" if share > 0.55 else BLACK, fontsize=7.5)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(title=f"Confusion {where}: % of each true class", xlabel="predicted class", ylabel="true class")
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
    """Numbers of right and wrong predictions (of `what`) by confidence: edges [bin + 1], right and wrong [bin]."""
    width = np.diff(edges)
    ax.bar(edges[:-1], right, width, align="edge", color=BLUE, linewidth=0, label="right")
    ax.bar(edges[:-1], wrong, width, bottom=right, align="edge", color=ORANGE, linewidth=0, label="wrong")
    ax.set(title="Confidence", xlabel="confidence", ylabel=what, xlim=(0, 1.02))
    ax.legend(loc="upper left")
    return ax
