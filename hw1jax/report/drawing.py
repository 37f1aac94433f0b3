"""The look of figures: their style, colours, size and files, and the axes that plots share.

With `plots` and `trial_plots` it is all that knows matplotlib. Nothing is global: no pyplot, and the style holds within
`style()`. Colours are Okabe and Ito's, which the colour-blind can tell apart, and matplotlib's viridis, Blues and RdBu.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image  # which matplotlib writes its PNGs with

Array = np.ndarray

WIDTH = 6.5  # inches: the text of a printed page
DOTS_PER_INCH = 190
NOTEBOOK_DOTS_PER_INCH = 100  # a notebook keeps its pictures in itself, as text
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
BLACK, GREY, LIGHT = "#000000", "#777777", "#bbbbbb"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
TRAINING, VALIDATION, REFIT, TEST, BEST, PRUNED = BLUE, ORANGE, GREEN, BLACK, ORANGE, SKY
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

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
    "text.parse_math": False,  # a dollar sign in a name is one
}


class Drawing(Figure):
    """A figure that a notebook shows as it is, without pyplot."""

    def draw(self, renderer: Any) -> None:
        """Draws it, the numbers of logarithmic axes without mathtext, which the style turns off."""
        for axis in (axis for ax in self.axes for axis in (ax.xaxis, ax.yaxis)):
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                plain_numbers(axis)
        super().draw(renderer)

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
    """The canvas as a PNG file of at most `most` colours; it is a third as large as with all colours."""
    pixels, buffer, dots = Image.fromarray(np.asarray(canvas.buffer_rgba())), io.BytesIO(), canvas.figure.dpi
    pixels.convert("RGB").quantize(most, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True, dpi=(dots, dots)
    )
    return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """The figures' look, for everything that is drawn and saved within; a name may have letters that the font lacks."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")
        yield


def figure(num_rows: int = 1, num_columns: int = 1, *, height: float, **options) -> tuple[Drawing, np.ndarray]:
    """A figure as wide as a page and `height` inches high, with its axes [row, column]; options as of `subplots`."""
    new = Drawing(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    return new, new.subplots(num_rows, num_columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _with_colours(256, canvas)


def dots(epochs: Array) -> dict[str, Any]:
    """A few epochs are drawn as points too: a line of one epoch would not be seen."""
    return {"marker": "o", "markersize": 2.5} if len(epochs) <= 30 else {}


def epoch_axis(ax: Axes, epochs: Array) -> None:
    """An x axis over all epochs ([epoch], from 1), with whole numbers."""
    room = max(0.02 * len(epochs), 0.2)
    ax.set_xlim(epochs[0] - room, epochs[-1] + room)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def plain_numbers(axis: Axis) -> None:
    """Numbers such as 0.01 on a logarithmic axis, at its main ticks alone."""
    axis.set_major_formatter(PLAIN)
    axis.set_minor_formatter(NullFormatter())


def log_axis(ax: Axes, values: Array) -> None:
    """A logarithmic y axis with plain numbers if the positive finite `values` span more than a factor of 4."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() < 4 * values.min():
        return
    ax.set_yscale("log")
    plain_numbers(ax.yaxis)
    if values.max() < 300 * values.min():  # too narrow for the powers of 10 alone
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())


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
        ticks.set_major_locator(MaxNLocator(5, integer=high > 2))
