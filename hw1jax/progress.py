"""Progress of a run: a bar on a terminal, an updated text in a notebook, a line every ten seconds in a log.

Text of a user (names, paths, errors) is shown as it is: no markup, control characters escaped.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from hw1jax import formatting
from hw1jax.results.trials import best
from hw1jax.search import space_text
from hw1jax.search.observer import Observer
from hw1jax.search.study import Study
from hw1jax.search.trial_score import TrialScore

SECONDS_BETWEEN_LINES = 10
SECONDS_BETWEEN_UPDATES = 0.2  # of a notebook's cell: each is a message to a browser


def default_observer() -> Observer:
    """The observer of a run that is given none: a terminal and a notebook show how it goes, a log or a file don't."""
    return Progress() if _in_notebook() or sys.stderr.isatty() else Observer()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # a notebook's process has imported it
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


class Progress(Observer):
    """Shows how a run goes, and in the end the summary on standard output (in a notebook, the number of trials).

    `quiet`: notes and the summary alone. `verbose`: every line, also beside a bar, and every trial's score.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._console = Console(stderr=True)
        self._bar: Bar | None = None
        self._cell: _Cell | None = None
        self._title, self._score, self._high_is_good, self._best = "", "loss", False, ""
        self._paces = {"search": formatting.Pace(), "refit": formatting.Pace()}
        self._last_line = time.monotonic()
        self._num_listed = 0  # trials whose lines have been shown

    def start(self, study: Study, num_trials: int, num_folds: int, num_epochs: int, work: int | None = None) -> None:
        self._title, self._score, self._high_is_good = study.shown, study.score, bool(study.maximize)
        self._num_listed = 0
        most = num_trials * num_epochs
        less = f", of which halving trains {work / most:.0%}" if work is not None and work < most else ""
        first = f"{study.shown}: {num_trials} trials x {num_folds} folds x {num_epochs} epochs{less}"
        now = "compiling and training the first epochs"
        if _in_notebook():
            self._cell = _Cell(first, now)
            return
        self._line(first)
        if self._console.is_terminal and not self._quiet:
            text = TextColumn("{task.description}", markup=False)
            numbers = TaskProgressColumn(), TimeElapsedColumn()
            self._bar = Bar(SpinnerColumn(), text, BarColumn(), *numbers, console=self._console, transient=True)
            self._bar.add_task("compiling", total=None)
            self._bar.start()
        else:
            self._line(now)

    def stage(self, text: str) -> None:
        self._show(text, None)
        self._line(text)

    def epochs(
        self, what: str, done: float, num_epochs: int, scores: np.ndarray | None, search_done: float | None = None
    ) -> None:
        share = done / num_epochs if search_done is None else search_done
        text = f"{what}, epoch {done:.3g}/{num_epochs}"
        if scores is not None:
            finite = scores[np.isfinite(scores).all(axis=1)]
            if len(finite):
                means = finite.mean(axis=1)
                top = means.max() if self._high_is_good else means.min()
                text += f", validation {self._score} mean {_number(finite.mean())}, best {_number(top)}"
        left = self._paces["refit" if search_done is None else "search"].left(share, time.monotonic())
        text += f"{self._best}{left and f', {left} left'}"
        self._show(text, share)
        is_time = self._bar is None and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES
        if self._verbose or is_time:
            self._line(text if search_done is None else f"{search_done:.0%}: {text}")

    def note(self, text: str) -> None:
        if self._cell is not None:
            self._cell.add(text)
        else:
            self._print(text)

    def trials(self, trials: Sequence[TrialScore], study: Study) -> None:
        pruned, failed = (sum(t.state == state for t in trials) for state in ("pruned", "failed"))
        winner = best(trials, study)
        what = "best" if study.score == "loss" else f"best {study.score}"
        self._best = ""
        if winner:
            self._best = f", {what} so far {_number(winner.mean(study.score))} (trial {winner.number})"
        if self._verbose:
            for trial in trials[self._num_listed :]:
                state = "failed" if trial.state == "failed" else _scores(trial, study)
                state += f", pruned after {trial.epochs} epochs" if trial.state == "pruned" else ""
                self._line(f"trial {trial.number}: {state}, {space_text.in_words(trial.draw)}")
            self._num_listed = len(trials)
        dropped = f"{pruned} pruned, " if pruned else ""
        self._line(f"{len(trials)} trials done, {dropped}{failed} failed{self._best}")

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        self.close()
        if self._cell is not None:
            seconds = formatting.duration(results["timing"]["total_seconds"])
            self._cell.show(f"{formatting.counts(results['trials'])} trials in {seconds}", at_once=True)
        else:
            print_summary([results], folder)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, text: str, share: float | None) -> None:
        """Replaces what goes on now; `share` of the search or of the refit is done, None if not known."""
        if self._bar is not None:
            total = None if share is None else 1
            description = formatting.plain(text)
            self._bar.update(self._bar.task_ids[0], description=description, completed=share or 0, total=total)
        if self._cell is not None:
            self._cell.show(text if share is None else f"[{'#' * round(30 * share):30}] {text}")

    def _line(self, text: str) -> None:
        """A line that stays; a notebook's cell has room for those of a verbose run alone."""
        if self._cell is not None and self._verbose:
            self._cell.add(text)
        elif self._cell is None and not self._quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        _print(self._console, f"[{self._title}] {text}")


class _Cell:
    """One text in the output of a notebook's cell, updated as a run goes; it needs no widgets."""

    def __init__(self, first: str, now: str) -> None:
        from IPython.display import display  # a notebook's process has it

        self._first, self._now, self._lines = first, now, []
        self._last_update = time.monotonic()
        self._handle: Any = display(self._content(), raw=True, display_id=True)

    def add(self, line: str) -> None:
        """Adds a line that stays."""
        self._lines.append(line)
        self._update()

    def show(self, now: str, *, at_once: bool = False) -> None:
        """Replaces the second line."""
        self._now = now
        if at_once or time.monotonic() - self._last_update >= SECONDS_BETWEEN_UPDATES:
            self._update()

    def _update(self) -> None:
        self._last_update = time.monotonic()
        self._handle.update(self._content(), raw=True)

    def _content(self) -> dict[str, str]:
        return {"text/plain": formatting.plain("\n".join([self._first, self._now, *self._lines]))}


def _print(console: Console, text: str) -> None:
    console.print(Text(formatting.plain(text)), soft_wrap=True)


def _scores(trial: TrialScore, study: Study) -> str:
    """A trial's loss and metrics, what it is ranked by first."""
    names = [study.score, *(name for name in trial.scores if name != study.score)]
    values = [f"{_number(trial.mean(name))} ± {_number(trial.std(name))}" for name in names]
    labels = ["" if name == "loss" and name == study.score else f"{name} " for name in names]
    return ", ".join(label + value for label, value in zip(labels, values, strict=True))


def print_summary(all_results: Sequence[dict[str, Any]], folder: Path) -> None:
    """A table of what studies have found, beside what others found, on standard output.

    `all_results` are the studies' records, what their `results.json` hold.
    """
    of_search = [r.get("search_ensemble") or {} for r in all_results]
    tests = [(r["test"], r["ensemble"], own.get("test")) for r, own in zip(all_results, of_search, strict=True)]
    on_test_sets = [test for own in tests for test in own if test]
    numbers = [name for test in on_test_sets for name, value in test.items() if isinstance(value, int | float)]
    tested = list(dict.fromkeys(["loss", *numbers])) if on_test_sets else []
    validated = list(dict.fromkeys(["loss", *(r["config"]["score"] for r in all_results)]))
    references = {r["reference"]["name"] for r in all_results if r["reference"]}
    whose = "the reference" if len(references) > 1 else "".join(references)
    title = f"Results, {whose}'s in brackets" if whose else "Results"
    table = Table(title=Text(formatting.plain(title), "italic"), title_justify="left")
    headings = (
        [f"validation {name}" for name in validated] + ["test loss"][: len(tested)] + [*tested[1:], "trials", "time"]
    )
    for heading in ("study", *headings):
        table.add_column(Text(heading.replace("_", " ")), justify="left" if heading == "study" else "right")
    for r, chosen in zip(all_results, of_search, strict=True):
        values = [_with_spread(r["best"], name) for name in validated] + [_compared(r, name) for name in tested]
        counts = [formatting.counts(r["trials"]), _time(r)]
        table.add_row(*(Text(formatting.plain(cell)) for cell in (r["title"], *values, *counts)))
        if r["ensemble"]:
            num_networks = r["config"]["num_folds"] * r["config"].get("repeats", 1)
            name, theirs = f"  ensemble of its {num_networks} folds", r["ensemble"]
            table.add_row(name, *[""] * len(validated), *(_shown(theirs.get(name), name) for name in tested))
        if chosen:
            name, theirs = f"  ensemble of {formatting.trials(len(chosen['trials']))}", chosen["test"] or {}
            values = [_number(chosen["out_of_fold"].get(name)) for name in validated]
            table.add_row(name, *values, *(_shown(theirs.get(name), name) if theirs else "-" for name in tested))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for r in all_results:
        if r["reference"] and r["reference"]["data"]:
            _print(console, f"{r['title']}: {r['reference']['name']}'s numbers are on {r['reference']['data']}")
        if stopped := r.get("stopped"):
            _print(console, f"{r['title']}: {stopped}")
        if wrong := r["refit"]["failure"] or r["refit"]["warning"]:
            _print(console, f"{r['title']}: {wrong}")
    _print(console, f"Files: {folder}")


def _time(record: dict[str, Any]) -> str:
    """Of a resumed run since it was resumed."""
    time = formatting.duration(record["timing"]["total_seconds"])
    return f"{time} (resumed)" if record["timing"].get("resumed") else time


def _with_spread(best: dict[str, Any], name: str) -> str:
    """The best trial's mean over the folds and their standard deviation."""
    if f"mean_val_{name}" not in best:
        return "-"
    return f"{_number(best[f'mean_val_{name}'])} ± {_number(best[f'std_val_{name}'])}"


def _compared(record: dict[str, Any], name: str) -> str:
    """A loss or metric on the test set, a reference's in brackets; a dash without a test."""
    test = record["test"] or {}
    value, theirs = test.get(name), (record["reference"] or {}).get("test", {}).get(name)
    shown = _shown(value, name) if test else "-"
    if theirs is None or (value is None and name != "loss"):
        return shown
    return f"{shown} ({theirs:{'.0%' if name == 'accuracy' else '.2f'}})"


def _shown(value: float | None, name: str) -> str:
    """A loss or metric on the test set."""
    if value is None and name != "loss":
        return "-"
    return f"{value:.1%}" if value is not None and name == "accuracy" else _number(value, 3)


def _number(value: float | None, decimals: int = 4) -> str:
    return "none" if value is None else formatting.number(value, decimals)
