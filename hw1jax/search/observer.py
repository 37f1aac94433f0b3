"""The protocol of a run's observer. `progress.Progress` is the one that shows a run to a person."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hw1jax.search.study import Study
from hw1jax.search.trial_score import TrialScore


class Observer:
    """Is told how a run goes, and shows nothing."""

    def start(self, study: Study, num_trials: int, num_folds: int, num_epochs: int, work: int | None = None) -> None:
        """A study's search begins. `work`: epochs of all its trials together, where not all train to the last."""

    def stage(self, text: str) -> None:
        """What is done from now on, where no epochs are counted."""

    def epochs(
        self,
        what: str,
        done: float,
        num_epochs: int,
        scores: np.ndarray | None,
        search_done: float | None = None,
    ) -> None:
        """`what` has trained `done` epochs, on average; `scores` [trial, fold] are of the last one of each trial.

        They are what the study ranks by, in validation. `search_done`: the share of the search's work that is done;
        None in the refit.
        """

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def trials(self, trials: Sequence[TrialScore], study: Study) -> None:
        """These trials have a score by now."""

    def finish(self, results: dict[str, Any], folder: Path) -> None:
        """The study has ended, and its files are in `folder`."""

    def close(self) -> None:
        """Gives the terminal back."""
