"""The look of plots: their colours, and the axes that they share.

Colours are Okabe and Ito's, which the colour-blind can tell apart, and matplotlib's viridis, Blues and RdBu. What draws
has an `ax`: matplotlib is imported there, so that a study's file is read without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Array = np.ndarray

BLACK, GREY, LIGHT = "#000000", "#777777", "#bbbbbb"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
TRAINING, VALIDATION, REFIT, TEST, BEST, PRUNED = BLUE, ORANGE, GREEN, BLACK, ORANGE, SKY


def dots(epochs: Array) -> dict[str, Any]:
    """A few epochs are drawn as points too: a line of one epoch would not be seen."""
    return {"marker": "o", "markersize": 2.5} if len(epochs) <= 30 else {}


def epoch_axis(ax: Axes, epochs: Array) -> None:
    """An x axis over all epochs ([epoch], from 1), with whole numbers."""
    room = max(0.02 * len(epochs), 0.2)
    ax.set_xlim(epochs[0] - room, epochs[-1] + room)
    few_ticks(ax.xaxis, integer=True, min_n_ticks=1)


def few_ticks(axis: Axis, **options: Any) -> None:
    """Ticks at round numbers; options as of matplotlib's `MaxNLocator`."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.MaxNLocator(**options))


def plain_numbers(axis: Axis) -> None:
    """Numbers such as 0.01 on a logarithmic axis, at its main ticks alone."""
    from matplotlib import ticker

    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def log_axis(ax: Axes, values: Array) -> None:
    """A logarithmic y axis with plain numbers if the positive finite `values` span more than a factor of 4."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() < 4 * values.min():
        return
    ax.set_yscale("log")
    plain_numbers(ax.yaxis)
    if values.max() < 300 * values.min():  # too narrow for the powers of 10 alone
        from matplotlib import ticker

        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(ticker.NullLocator())


def range_axis(ax: Axes, axis: str, low: float, high: float, *, log: bool) -> None:
    """An axis from low to high with a little room; a logarithmic one needs a factor of 20, to have ticks enough."""
    ticks = ax.xaxis if axis == "x" else ax.yaxis
    if log and high >= 20 * low:
        room = (high / low) ** 0.05
        ax.set(**{f"{axis}scale": "log", f"{axis}lim": (low / room, high * room)})
        plain_numbers(ticks)
    else:
        room = 0.06 * (high - low) or 0.5
        ax.set(**{f"{axis}lim": (low - room, high + room)})
        few_ticks(ticks, nbins=5, integer=high > 2)
