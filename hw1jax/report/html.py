"""The items of a page's sections (figures, tables, text), and numbers, names and settings as HTML."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hw1jax import formatting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hw1jax.report.drawing import Drawing

Panel = Callable[["Axes"], Any]  # draws into an ax


class Markup(str):
    """Text that is HTML already; any other is escaped."""


class Figure(NamedTuple):
    """A figure of the page.

    Attributes:
      name: of its file; no two figures of a page have the same.
      alt: what it shows, in words, for those who can't see it.
      caption: the text below it.
      draw: makes it.
    """

    name: str
    alt: str
    caption: str
    draw: "Callable[[], Drawing]"


Item = Figure | str


def grid(
    panels: Sequence[Panel], num_columns: int, *, height: float, title: str = "", label: str = "", **options: Any
) -> "Callable[[], Drawing]":
    """A function that draws panels into a figure, row by row; `label` is that of all y axes, `height` is in inches."""

    def draw() -> "Drawing":
        from hw1jax.report import drawing

        figure, axes = drawing.figure(-(-len(panels) // num_columns), num_columns, height=height, **options)
        for ax, cell in zip(axes.flat, panels, strict=False):
            cell(ax)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        if label:
            figure.supylabel(label)
        return figure

    return draw


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "") -> Markup:
    """A table, a cell a `Markup` or what becomes text."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row)}</tr>" for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = "pairs" if len(headings) == 2 else "wide" if len(headings) > 5 else "small"
    return Markup(
        f'<div class="scroll" tabindex="0"><table class="{kind}">{above}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def cell(value: Any) -> Markup:
    """A table cell as HTML."""
    return value if isinstance(value, Markup) else escape(str(value))


def number(value: float | None, form: str | None = None) -> Markup:
    """A number as text, with the exact value for programs; a missing loss is not finite."""
    if value is None:
        return Markup("none")
    shown = formatting.number(value) if form is None else form.format(value)
    return Markup(f'<data value="{escape(repr(value))}">{escape(shown)}</data>')


def duration(seconds: float) -> Markup:
    """Seconds as text, with the exact value for programs."""
    return number(seconds, formatting.duration(seconds))


def spread(mean: float | None, std: float | None, name: str = "loss") -> Markup:
    """A mean over the folds and the standard deviation."""
    return Markup(f"{score(name, mean)} ± {score(name, std)}")


def score(name: str, value: float | None) -> Markup:
    """A loss or metric; accuracies are percentages."""
    return number(value, "{:.1%}" if name == "accuracy" else None)


def theirs(name: str, test: Mapping[str, float]) -> str:
    """A reference's loss or metric, as coarse as reports give them; a dash if it has none."""
    return number(test[name], "{:.0%}" if name == "accuracy" else "{:.2f}") if name in test else "-"


def hyperparameter(value: Any) -> Any:
    """A hyperparameter's value."""
    if value is None:
        return "None"
    return number(value, "{:.4g}") if isinstance(value, float) else value


def setting(value: Any) -> str:
    """A setting as a line: 10 - 50 for a range, names and values of a dict, the others as they are."""
    if isinstance(value, dict):
        if {"low", "high"} <= value.keys():
            step = f", step {value['step']}" if "step" in value else ""
            return f"{value['low']:g} - {value['high']:g}" + (", log scale" if value.get("log") else step)
        return ", ".join(f"{words(str(name))} {setting(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(setting, value))
    return "-" if value is None else str(value)


def words(name: str) -> str:
    """num_epochs -> epochs, learning_rate -> learning rate."""
    return {"l2": "L2"}.get(name, name.removeprefix("num_").replace("_", " "))


def label(name: str) -> str:
    """The name of a hyperparameter for an axis: as `words`, or longer."""
    return {"l2": "L2 coefficient"}.get(name, words(name))


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def escape(text: str) -> Markup:
    """Any text as HTML; characters that are not printed are shown by their codes."""
    return Markup(html.escape(formatting.plain(text), quote=True))
