"""Figures: their style, size, layout and files.

The one module that imports matplotlib, which takes a second: others import this one where they draw. Nothing is global:
no pyplot, and the style holds within `style()`.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogFormatterMathtext
from matplotlib.transforms import Bbox
from PIL import Image  # which matplotlib writes its PNGs with

from hw1jax.report.look import plain_numbers

WIDTH = 6.5  # inches: the text of a printed page
DOTS_PER_INCH = 190
NOTEBOOK_DOTS_PER_INCH = 100  # a notebook keeps its pictures in itself, as text

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


class MeasuredOnce(ConstrainedLayoutEngine):
    """matplotlib's constrained layout, which lays out twice, with one measurement of each panel's texts.

    Measuring takes as long as drawing. The second time the texts stand out as far from their panels as the first time.
    """

    def execute(self, fig: Figure) -> None:
        """Moves and resizes the panels."""
        panels = fig.get_axes()
        for ax in panels:
            ax.get_tightbbox = _measured_once(ax)
        try:
            super().execute(fig)
        finally:
            for ax in panels:
                del ax.get_tightbbox


def _measured_once(ax: Axes) -> Callable[..., Any]:
    measure, beyond = ax.get_tightbbox, []

    def bounds(*args: Any, **options: Any) -> Bbox | None:
        whole = None if beyond else measure(*args, **options)
        ax.apply_aspect()
        panel = np.asarray(ax.get_window_extent().extents)
        if whole is not None:
            beyond.append(whole.extents - panel)
        return Bbox.from_extents(panel + beyond[0]) if beyond else None

    return bounds


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
        buffer, "PNG", compress_level=6, dpi=(dots, dots)
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
    new = Drawing(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout=MeasuredOnce())
    return new, new.subplots(num_rows, num_columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _with_colours(256, canvas)
