"""What a person sees while a study runs: a bar on a terminal, sparse plain lines elsewhere. `notebook` has its own."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hw1jax import lines, space
from hw1jax.observer import Observer
from hw1jax.study import Study, TrialScore
from hw1jax.trials import best

SECONDS_BETWEEN_LINES = 10


class Telling(Observer):
    """Puts how a run goes into words; `_say` and `_show` are for who shows them.

    `verbose`: all lines, also beside a bar, and every trial's score.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._title, self._score, self._high_is_good = "", "loss", False
        self._best = ""
        self._first: dict[bool, tuple[float, float]] = {}  # {whether in the refit: (when, what share was done then)}

    def start(self, study: Study, num_trials: int, num_folds: int, num_epochs: int, work: int | None = None) -> None:
        self._title, self._score, self._high_is_good = study.shown, study.score, bool(study.maximize)
        self._best, self._first = "", {}
        most = num_trials * num_epochs
        less = f", of which halving trains {work / most:.0%}" if work is not None and work < most else ""
        self._say(f"{study.shown}: {num_trials} trials x {num_folds} folds x {num_epochs} epochs{less}")

    def stage(self, text: str) -> None:
        self._show(text, None)
        self._say(text)

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
        text += f"{self._best}{self._left(share, in_refit=search_done is None)}"
        self._show(text, share)
        if self._verbose or self._is_time():
            self._say(text if search_done is None else f"{search_done:.0%}: {text}")

    def trials(self, trials: Sequence[TrialScore], study: Study) -> None:
        pruned, failed = (sum(t.state == state for t in trials) for state in ("pruned", "failed"))
        winner = best(trials, study)
        what = "best" if study.score == "loss" else f"best {study.score}"
        self._best = ""
        if winner:
            self._best = f", {what} so far {_number(winner.mean(study.score))} (trial {winner.number})"
        if self._verbose:
            for trial in trials:
                state = "failed" if trial.state == "failed" else _scores(trial, study)
                state += f", pruned after {trial.epochs} epochs" if trial.state == "pruned" else ""
                self._say(f"trial {trial.number}: {state}, {space.in_words(trial.draw)}")
        dropped = f"{pruned} pruned, " if pruned else ""
        self._say(f"{len(trials)} trials done, {dropped}{failed} failed{self._best}")

    def _left(self, share: float, *, in_refit: bool) -> str:
        """The time that the rest of the work takes, at the pace since the first call: before, a program is compiled."""
        now = time.monotonic()
        begin, share_then = self._first.setdefault(in_refit, (now, share))
        if share == share_then:
            return ""
        return f", {lines.duration(round((now - begin) / (share - share_then) * (1 - share)))} left"

    def _say(self, text: str) -> None:
        """A line that stays."""

    def _show(self, text: str, share: float | None) -> None:
        """What goes on now, instead of what did before, and which share of it is done; None: not known."""

    def _is_time(self) -> bool:
        """Whether it is time to say how many epochs are done."""
        return False


class ConsoleObserver(Telling):
    """A bar where standard error is a terminal, plain lines elsewhere; the summary on standard output.

    `quiet`: notes and the summary alone. `verbose`: all lines, also beside the bar, and every trial's score.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        super().__init__(verbose=verbose)
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    def start(self, study: Study, num_trials: int, num_folds: int, num_epochs: int, work: int | None = None) -> None:
        self._last_line = time.monotonic()
        super().start(study, num_trials, num_folds, num_epochs, work)
        if self._console.is_terminal and not self._quiet:
            numbers = [TaskProgressColumn(), TimeElapsedColumn()]
            columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *numbers]
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("compiling", total=None)
            self._bar.start()
        else:
            self._say("compiling and training the first epochs")

    def note(self, text: str) -> None:
        self._print(text)

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        self.close()
        print_summary([results], folder)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, text: str, share: float | None) -> None:
        if self._bar is not None:
            total = None if share is None else 1
            self._bar.update(self._bar.task_ids[0], description=text, completed=share or 0, total=total)

    def _is_time(self) -> bool:
        return self._bar is None and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(f"[{self._title}] {text}", markup=False, highlight=False, soft_wrap=True)


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
    numbers = [name for r in all_results for name, value in r["test"].items() if isinstance(value, int | float)]
    tested = list(dict.fromkeys(["loss", *numbers]))
    validated = list(dict.fromkeys(["loss", *(r["config"]["score"] for r in all_results)]))
    references = {r["reference"]["name"] for r in all_results if r["reference"]}
    whose = "the reference" if len(references) > 1 else "".join(references)
    table = Table(title=f"Results, {whose}'s in brackets" if whose else "Results", title_justify="left")
    headings = [f"validation {name}" for name in validated] + ["test loss", *tested[1:], "trials", "time"]
    for heading in ("study", *headings):
        table.add_column(heading.replace("_", " "), justify="left" if heading == "study" else "right")
    for r in all_results:
        table.add_row(
            r["title"],
            *(_with_spread(r["best"], name) for name in validated),
            *(_compared(r, name) for name in tested),
            lines.counts(r["trials"]),
            lines.duration(r["timing"]["total_seconds"]),
        )
        if r["ensemble"]:
            table.add_row(
                f"  ensemble of its {r['config']['num_folds']} folds",
                *[""] * len(validated),
                *(_shown(r["ensemble"].get(name), name) for name in tested),
            )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for r in all_results:
        if r["reference"] and r["reference"]["data"]:
            text = f"{r['title']}: {r['reference']['name']}'s numbers are on {r['reference']['data']}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        if wrong := r["refit"]["failure"] or r["refit"]["warning"]:
            console.print(f"{r['title']}: {wrong}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Files: {folder}", markup=False, highlight=False, soft_wrap=True)


def _with_spread(best: dict[str, Any], name: str) -> str:
    """The best trial's mean over the folds and their standard deviation."""
    if f"mean_val_{name}" not in best:
        return "-"
    return f"{_number(best[f'mean_val_{name}'])} ± {_number(best[f'std_val_{name}'])}"


def _compared(record: dict[str, Any], name: str) -> str:
    """A loss or metric on the test set, a reference's in brackets."""
    value, theirs = record["test"].get(name), (record["reference"] or {}).get("test", {}).get(name)
    shown = _shown(value, name)
    if theirs is None or (value is None and name != "loss"):
        return shown
    return f"{shown} ({theirs:{'.0%' if name == 'accuracy' else '.2f'}})"


def _shown(value: float | None, name: str) -> str:
    """A loss or metric on the test set."""
    if value is None and name != "loss":
        return "-"
    return f"{value:.1%}" if value is not None and name == "accuracy" else _number(value, 3)


def _number(value: float | None, decimals: int = 4) -> str:
    return "none" if value is None else lines.number(value, decimals)
