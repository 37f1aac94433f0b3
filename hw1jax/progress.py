"""What a person sees while a study runs: a bar on a terminal, sparse plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hw1jax.search import TrialScore, best

SECONDS_BETWEEN_LINES = 10


class Observer:
    """Is told how a run goes, and shows nothing."""

    def start(self, title: str, num_trials: int, num_folds: int, num_epochs: int) -> None:
        """A study begins."""

    def stage(self, text: str) -> None:
        """What is done from now on, where no epochs are counted."""

    def epochs(self, what: str, done: float, num_epochs: int, val_loss: np.ndarray | None) -> None:
        """`what` has trained `done` epochs, on average; `val_loss` [trial, fold] is of the last one of each trial."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def trials(self, trials: Sequence[TrialScore]) -> None:
        """These trials have a score by now."""

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        """The study has ended, and its files are in `folder`."""

    def close(self) -> None:
        """Gives the terminal back."""


class ConsoleObserver(Observer):
    """A bar where standard error is a terminal, plain lines elsewhere; the summary on standard output.

    `quiet`: notes and the summary alone. `verbose`: all lines, also beside the bar, and every trial's score.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = Console(stderr=True)
        self._quiet, self._verbose = quiet, verbose
        self._bar: Progress | None = None
        self._title = ""
        self._best = ""
        self._since = self._last_line = time.monotonic()

    def start(self, title: str, num_trials: int, num_folds: int, num_epochs: int) -> None:
        self._title, self._best = title, ""
        self._since = self._last_line = time.monotonic()
        self._line(f"{title}: {num_trials} trials x {num_folds} folds x {num_epochs} epochs")
        if self._console.is_terminal and not self._quiet:
            columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("compiling", total=None)
            self._bar.start()
        else:
            self._line("compiling and training the first epochs")

    def stage(self, text: str) -> None:
        self._since = time.monotonic()
        self._update(text, None, None)
        self._line(text)

    def epochs(self, what: str, done: float, num_epochs: int, val_loss: np.ndarray | None) -> None:
        left = (time.monotonic() - self._since) / done * (num_epochs - done)
        text = f"{what}, epoch {done:.3g}/{num_epochs}"
        if val_loss is not None:
            finite = val_loss[np.isfinite(val_loss).all(axis=1)]
            if len(finite):
                text += f", validation loss mean {_loss(finite.mean())}, best {_loss(finite.mean(axis=1).min())}"
        text += f"{self._best}, {_duration(left)} left"
        self._update(text, done, num_epochs)
        sparse = self._bar is None and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES
        if sparse or self._verbose:
            self._line(text)

    def note(self, text: str) -> None:
        self._print(text)

    def trials(self, trials: Sequence[TrialScore]) -> None:
        self._since = time.monotonic()
        failed, winner = sum(not t.complete for t in trials), best(trials)
        self._best = f", best so far {_loss(winner.mean)} (trial {winner.number})" if winner else ""
        if self._verbose:
            for trial in trials:
                state = f"{_loss(trial.mean)} ± {_loss(trial.std)}" if trial.complete else "failed"
                self._line(f"trial {trial.number}: {state}, {trial.draw}")
        self._line(f"{len(trials)} trials done, {failed} failed{self._best}")

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        self.close()
        print_summary([results], folder)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _update(self, text: str, done: float | None, total: int | None) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=text, completed=done or 0, total=total)

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(f"[{self._title}] {text}", markup=False, highlight=False, soft_wrap=True)


def print_summary(all_results: Sequence[dict[str, Any]], folder: Path) -> None:
    """A table of what studies have found, beside what the report found, on standard output."""
    table = Table(title="Results, the report's in brackets", title_justify="left")
    for heading in ("study", "validation loss", "test loss", "accuracy", "trials", "seconds"):
        table.add_column(heading, justify="left" if heading == "study" else "right")
    for r in all_results:
        accuracy = "-"
        if r["test"]["accuracy"] is not None:
            accuracy = f"{r['test']['accuracy']:.1%} ({r['reported']['test_accuracy']:.0%})"
        table.add_row(
            r["title"],
            f"{_loss(r['best']['mean_val_loss'])} ± {_loss(r['best']['std_val_loss'])}",
            f"{_loss(r['test']['loss'], 3)} ({r['reported']['test_loss']:.2f})",
            accuracy,
            f"{r['trials']['complete']} + {r['trials']['failed']} failed",
            f"{r['timing']['total_seconds']:.0f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for r in all_results:
        if r["test"]["loss"] is None:
            console.print(f"{r['title']}: {r['refit']['failure']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Files: {folder}", markup=False, highlight=False, soft_wrap=True)


def _loss(value: float | None, decimals: int = 4) -> str:
    if value is None:
        return "none"
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
