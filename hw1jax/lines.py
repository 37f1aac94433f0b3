"""What is said in a line: numbers of any size, how long work takes, how many trials have come to what.

`teller` says it now and then on standard error: what `cross_validate(progress=True)` says.
"""

import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

FIRST_AFTER, EVERY = 3, 10  # seconds; what takes less than the first says nothing


def teller(what: str) -> Callable[[int, int, np.ndarray], None]:
    """A function of (epochs done, number of epochs, validation loss [trial, fold]) that may be called often."""
    started = last_line = time.monotonic()
    first_call: tuple[float, int] | None = None  # the epochs until then took the time to compile, too

    def tell(done: int, num_epochs: int, val_loss: np.ndarray) -> None:
        nonlocal last_line, first_call
        now, is_first_line = time.monotonic(), last_line == started
        left = ""
        if first_call is None:
            first_call = now, done
        else:
            seconds = (now - first_call[0]) / (done - first_call[1]) * (num_epochs - done)
            left = f", about {duration(seconds)} left"
        if done == num_epochs:
            if not is_first_line:
                print(f"{what}: {num_epochs} epochs in {duration(now - started)}", file=sys.stderr, flush=True)
        elif now - last_line >= (FIRST_AFTER if is_first_line else EVERY):
            means = val_loss.mean(axis=1)
            lowest = f", lowest mean validation loss {np.nanmin(means):.4g}" if not np.isnan(means).all() else ""
            print(f"{what}: epoch {done} of {num_epochs}{lowest}{left}", file=sys.stderr, flush=True)
            last_line = now

    return tell


def number(value: float, decimals: int = 3) -> str:
    """With so many decimals: 0.171, 23.400; a smaller one with two digits, a huge one with four: 0.00035, 1.2e+07."""
    if 0 < abs(value) < 10.0 ** (1 - decimals):
        return f"{value:.2g}"
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """As people say it: 1 h 5 min, 2 min 10 s, 17 s, 4.2 s."""
    if round(seconds, 1) < 10:
        return f"{round(seconds, 1):g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counts(trials: Mapping[str, int]) -> str:
    """How many of a search's trials are complete, pruned and failed: 81 + 54 pruned + 2 failed."""
    pruned = f" + {trials['pruned']} pruned" if trials["pruned"] else ""
    return f"{trials['complete']}{pruned} + {trials['failed']} failed"
