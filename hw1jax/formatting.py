"""Numbers, durations, counts and names as text, and progress lines."""

import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

FIRST_AFTER, EVERY = 3, 10  # seconds until the first line, and between later ones


class Pace:
    """Estimates the remaining time from the first call of `left`, before which programs are compiled."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, share: float, now: float) -> str:
        """The remaining time as text if this share is done by `now` (seconds); empty in the first call."""
        begin, share_then = self._first = self._first or (now, share)
        return duration(round((now - begin) / (share - share_then) * (1 - share))) if share > share_then else ""


def progress_printer(what: str) -> Callable[[int, int, np.ndarray], None]:
    """Returns a function of (epochs done, number of epochs, validation loss [trial, fold]) that prints to stderr.

    It may be called often, and prints a line every few seconds.
    """
    started = last_line = time.monotonic()
    pace = Pace()

    def show(done: int, num_epochs: int, val_loss: np.ndarray) -> None:
        nonlocal last_line
        now, is_first_line = time.monotonic(), last_line == started
        left = pace.left(done / num_epochs, now)
        if done == num_epochs:
            if not is_first_line:
                print(f"{what}: {num_epochs} epochs in {duration(now - started)}", file=sys.stderr, flush=True)
        elif now - last_line >= (FIRST_AFTER if is_first_line else EVERY):
            means = val_loss.mean(axis=1)
            lowest = f", lowest mean validation loss {np.nanmin(means):.4g}" if not np.isnan(means).all() else ""
            rest = left and f", about {left} left"
            print(f"{what}: epoch {done} of {num_epochs}{lowest}{rest}", file=sys.stderr, flush=True)
            last_line = now

    return show


def plain(text: str) -> str:
    """Escapes control and other unprintable characters, except line ends."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def number(value: float, decimals: int = 3) -> str:
    """Formats with `decimals`: 0.171, 23.400; small values with two digits, large ones with four: 0.00035, 1.2e+07."""
    if 0 < abs(value) < 10.0 ** (1 - decimals):
        return f"{value:.2g}"
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Formats seconds: 1 h 5 min, 2 min 10 s, 17 s, 4.2 s."""
    if round(seconds, 1) < 10:
        return f"{round(seconds, 1):g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counts(trials: Mapping[str, int]) -> str:
    """Formats the numbers of complete, pruned and failed trials: 81 + 54 pruned + 2 failed."""
    pruned = f" + {trials['pruned']} pruned" if trials["pruned"] else ""
    return f"{trials['complete']}{pruned} + {trials['failed']} failed"


def trials(number: int) -> str:
    """1 trial, 2 trials, .."""
    return f"{number} trial{'' if number == 1 else 's'}"
