"""What a person sees while a study runs in a notebook: one place in the cell's output, updated as it goes.

Nothing of it is imported where there is no notebook; it needs no widgets, so it shows wherever notebooks do.
"""

import html
import sys
import time
from pathlib import Path
from typing import Any

from hw1jax import lines
from hw1jax.observer import Observer
from hw1jax.progress import Telling
from hw1jax.study import Study

SECONDS_BETWEEN_UPDATES = 0.2  # each is a message to a browser


class NotebookObserver(Telling):
    """A bar in a notebook's cell, with a line below it, and the notes; at the end a line alone.

    It is what `hw1jax.run_study` tells how a run goes, in a notebook, where nobody says otherwise. `verbose`: all
    lines stay, every trial's score among them.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        super().__init__(verbose=verbose)
        self._handle: Any = None
        self._first_line = ""
        self._said: list[str] = []
        self._now: tuple[str, float | None] = ("compiling and training the first epochs", None)
        self._last_update = 0.0

    def start(self, study: Study, num_trials: int, num_folds: int, num_epochs: int, work: int | None = None) -> None:
        self._first_line, self._said, self._handle = "", [], None
        self._now = "compiling and training the first epochs", None
        super().start(study, num_trials, num_folds, num_epochs, work)
        self._update()

    def note(self, text: str) -> None:
        self._said.append(text)
        self._update()

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        seconds = lines.duration(results["timing"]["total_seconds"])
        self._now = (f"{lines.counts(results['trials'])} trials in {seconds}", 1.0)
        self._update()

    def _say(self, text: str) -> None:
        if not self._first_line:
            self._first_line = text
        elif self._verbose:
            self._said.append(text)

    def _show(self, text: str, share: float | None) -> None:
        self._now = text, share
        if time.monotonic() - self._last_update >= SECONDS_BETWEEN_UPDATES:
            self._update()

    def _update(self) -> None:
        from IPython.display import display  # there is one: this is a notebook

        self._last_update = time.monotonic()
        shown = _Shown([self._first_line, self._now[0], *self._said], self._now[1])
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


class _Shown:
    """Lines, with a bar below the first where a share of the work is known, as a notebook shows an object."""

    def __init__(self, texts: list[str], share: float | None):
        self._texts, self._share = texts, share

    def __repr__(self) -> str:
        return "\n".join(self._texts)

    def _repr_html_(self) -> str:
        first, *others = (html.escape(text) for text in self._texts)
        done = "" if self._share is None else f' value="{self._share:.4f}"'
        bar = f'<progress max="1"{done} style="width: 100%; max-width: 40em"></progress>'
        return f"<div>{first}<br>{bar}<br>{'<br>'.join(others)}</div>"


def usual_observer() -> Observer:
    """Who is told how a run goes where nobody says who: in a notebook its reader, elsewhere nobody."""
    ipython = sys.modules.get("IPython")  # a notebook's process has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    return Observer() if getattr(shell, "kernel", None) is None else NotebookObserver()
