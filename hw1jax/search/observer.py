"""The interface of a run's observers, such as `progress.Progress`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hw1jax.search.study import Study
from hw1jax.search.trial_score import TrialScore


class Observer:
    """Receives the progress of a run (`observer=`); this base class ignores it, a subclass overrides what it needs."""

    def start(self, study: Study, num_trials: int, num_folds: int, num_epochs: int, work: int | None = None) -> None:
        """A search begins. `work`: total epochs of its trials if not all train to the last."""

    def stage(self, text: str) -> None:
        """A step without epochs begins."""

    def epochs(
        self, what: str, done: float, num_epochs: int, scores: np.ndarray | None, search_done: float | None = None
    ) -> None:
        """`what` has trained `done` epochs on average.

        `scores` [trial, fold]: latest validation scores; `search_done`: share of the search's work, None in the refit.
        """

    def note(self, text: str) -> None:
        """A note for the user."""

    def trials(self, trials: Sequence[TrialScore], study: Study) -> None:
        """More trials have been scored; `trials`: all so far.

        Each has `number`, `draw` (its hyperparameters by name), `state`, `epochs`, `scores` (by name, a value for each
        fold) and `mean(name)` over the folds. A name is "loss" or that of a metric; `study.score` ranks the trials.
        """

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        """The study has ended; its files are in `folder`."""

    def close(self) -> None:
        """Restores the terminal."""
