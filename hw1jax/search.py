"""Hyperparameter search: ask Optuna for a batch of trials, train the batch, tell. The only file that knows Optuna."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

MOST_REPORTS = 20  # intermediate values of a trial, for Optuna's plots


class IntRange(NamedTuple):
    """Whole numbers from low to high, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


class FloatRange(NamedTuple):
    """Positive numbers from low to high, drawn on a logarithmic scale."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g}"


@dataclass(frozen=True)
class Space:
    """What is searched, and how widely.

    Attributes:
      hidden_units: the range of each hidden dense layer.
      channels: the range of each convolution; empty for a dense net.
      learning_rate, l2: their ranges.
      optimizers: names of `hw1jax.optimizers.OPTIMIZERS`.
    """

    hidden_units: tuple[IntRange, ...]
    channels: tuple[IntRange, ...] = ()
    learning_rate: FloatRange = FloatRange(1e-3, 1e-1)
    l2: FloatRange = FloatRange(1e-4, 1e-1)
    optimizers: tuple[str, ...] = ("adam", "sgd", "rmsprop")


class Draw(NamedTuple):
    """One trial's hyperparameters, as plain Python values."""

    channels: tuple[int, ...]
    hidden_units: tuple[int, ...]
    learning_rate: float
    l2: float
    optimizer: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON and MessagePack take it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self._asdict().items()}

    def columns(self) -> dict[str, Any]:
        """One plain value a name, the names of Optuna's parameters."""
        widths = {"channels": self.channels, "hidden_units": self.hidden_units}
        named = {f"{name}_{i + 1}": width for name, all in widths.items() for i, width in enumerate(all)}
        return named | {"learning_rate": self.learning_rate, "l2": self.l2, "optimizer": self.optimizer}


class TrialScore(NamedTuple):
    """A trial that has been trained."""

    number: int
    draw: Draw
    scores: tuple[float, ...]  # validation loss of each fold after the last epoch

    @property
    def mean(self) -> float:
        """Mean over the folds: what is minimised."""
        with np.errstate(invalid="ignore"):  # infinity less infinity, in a failed trial
            return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        """Standard deviation over the folds, as scikit-learn's `std_test_score` (no degrees of freedom lost)."""
        return float(np.std(self.scores)) if self.complete else float("nan")

    @property
    def complete(self) -> bool:
        """False for a failed trial: a diverged one, whose score is not finite."""
        return bool(np.all(np.isfinite(self.scores)))


class PureRandomSampler(optuna.samplers.BaseSampler):
    """Random search in which a draw is a pure function of (seed, trial number, parameter name).

    Optuna's own `RandomSampler` keeps a generator: after a resume it repeats its first draws, and so do two workers
    with one seed.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        name = int.from_bytes(hashlib.sha256(param_name.encode()).digest()[:8])
        rng = np.random.default_rng([self._seed, trial.number, name])
        match param_distribution:
            case IntDistribution(low=low, high=high):
                return int(rng.integers(low, high, endpoint=True))
            case FloatDistribution(low=low, high=high, log=True):
                return float(np.clip(np.exp(rng.uniform(np.log(low), np.log(high))), low, high))
            case FloatDistribution(low=low, high=high):
                return float(rng.uniform(low, high))
            case CategoricalDistribution(choices=choices):
                return choices[rng.integers(len(choices))]
        raise ValueError(f"no way to draw {param_name} from {param_distribution}")


def open_study(journal: Path, name: str, *, sampler: str, seed: int) -> optuna.Study:
    """The study in Optuna's journal at `journal`, created if there is none (`optuna-dashboard` opens it as well).

    Raises:
      ValueError: the file is no journal, or holds another study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        chosen = PureRandomSampler(seed) if sampler == "random" else optuna.samplers.TPESampler(seed=seed)
        _drop_torn_line(journal)
        try:
            storage = JournalStorage(JournalFileBackend(str(journal)))
            others = [other for other in optuna.get_all_study_names(storage) if other != name]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{journal} is not a journal of Optuna ({error}): give another --out") from error
        if others:
            raise ValueError(f"{journal.parent} holds the study {others[0]}, not {name}: give another --out")
        return optuna.create_study(
            storage=storage, study_name=name, sampler=chosen, direction="minimize", load_if_exists=True
        )


def _drop_torn_line(journal: Path) -> None:
    """Cuts off the part of a line that a killed process has left, which the next append would continue."""
    if not journal.is_file():
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if 0 < whole < len(content):
            os.truncate(journal, whole)
    finally:
        lock.release()


def claim(study: optuna.Study, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Stores with a new study what its results depend on, or checks that an old one was made with the same.

    Returns:
      The configuration that counts: the study's own, with the plan that its results were computed with.

    Raises:
      ValueError: the folder holds a search with other settings; the message names the first difference.
    """
    stored = study.user_attrs.get("config")
    if stored is None:
        study.set_user_attr("config", config)
        return study.user_attrs["config"]
    wanted = json.loads(json.dumps(config))
    for name in wanted:
        if name != "plan" and wanted[name] != stored.get(name):
            raise ValueError(
                f"{folder} holds a search with {name} = {stored.get(name)}, not {wanted[name]}: "
                "give the old settings to go on with it, or another --out"
            )
    return stored


def suggest(trial: Trial, space: Space) -> Draw:
    """Draws (or, for a trial that has been asked before, reads back) a trial's hyperparameters."""
    return Draw(
        tuple(trial.suggest_int(f"channels_{i + 1}", *bounds) for i, bounds in enumerate(space.channels)),
        tuple(trial.suggest_int(f"hidden_units_{i + 1}", *bounds) for i, bounds in enumerate(space.hidden_units)),
        trial.suggest_float("learning_rate", *space.learning_rate, log=True),
        trial.suggest_float("l2", *space.l2, log=True),
        trial.suggest_categorical("optimizer", space.optimizers),
    )


def search(
    study: optuna.Study,
    space: Space,
    train: Callable[[dict[int, Draw]], dict[int, Sequence[float] | np.ndarray]],
    *,
    num_trials: int,
    batch_size: int,
) -> Iterator[list[TrialScore]]:
    """Asks for batches of trials, trains each batch, tells its scores; yields each batch.

    Trial n is always in batch n // batch_size, so a search that was stopped goes on with the same batches. Trials
    that have a score are not trained again.

    Args:
      study: from `open_study`.
      space: what to draw from.
      train: {number: draw} -> {number: validation losses [fold, epoch], or [fold] after the last epoch alone}. The
        last ones are the scores.
      num_trials: trials in all, those that the study already has included.
      batch_size: trials a batch.
    """
    for first in range(0, num_trials, batch_size):
        numbers = range(first, min(first + batch_size, num_trials))
        trials = {number: _ask(study, number) for number in numbers}
        draws = {number: suggest(trial, space) for number, trial in trials.items()}
        frozen = study.get_trials(deepcopy=False)
        losses = {n: frozen[n].user_attrs["scores"] for n in numbers if frozen[n].state.is_finished()}
        if len(losses) < len(numbers):  # a trial that has a score keeps it, though its slot runs once more
            losses = train(draws) | losses
        batch = []
        for number in numbers:
            of_epochs = np.reshape(losses[number], (len(losses[number]), -1))  # [fold, epoch]
            batch.append(TrialScore(number, draws[number], tuple(map(float, of_epochs[:, -1]))))
            if not frozen[number].state.is_finished():
                with np.errstate(invalid="ignore"):  # infinity less infinity, in a diverged trial
                    mean_losses = of_epochs.mean(axis=0)
                _tell(study, trials[number], batch[-1], mean_losses)
        yield batch


def _ask(study: optuna.Study, number: int) -> Trial:
    """The trial with this number: a new one, or the one that an earlier run has asked for."""
    known = study.get_trials(deepcopy=False)
    if number < len(known):
        return Trial(study, known[number]._trial_id)
    trial = study.ask()
    if trial.number != number:
        raise RuntimeError(f"asked for trial {number}, got {trial.number}: another process works on this journal")
    return trial


def _tell(study: optuna.Study, trial: Trial, score: TrialScore, mean_losses: np.ndarray) -> None:
    num_epochs = len(mean_losses)  # a few of them: each takes a journal 0.4 ms
    for epoch in np.unique(np.linspace(1, num_epochs, min(num_epochs, MOST_REPORTS)).astype(int)):
        if np.isfinite(mean_losses[epoch - 1]):
            trial.report(float(mean_losses[epoch - 1]), step=int(epoch))
    for i, value in enumerate(score.scores):  # before `tell`: a finished trial can't change
        trial.set_user_attr(f"split{i}_val_loss", value)
    trial.set_user_attr("scores", list(score.scores))
    if score.complete:
        study.tell(trial, score.mean)
    else:
        study.tell(trial, state=TrialState.FAIL)


def best(trials: Sequence[TrialScore]) -> TrialScore | None:
    """The complete trial with the lowest mean score (the first of equals); None if all have failed."""
    return min((t for t in trials if t.complete), key=lambda t: t.mean, default=None)


def ranks(trials: Sequence[TrialScore]) -> list[int | None]:
    """Rank of each trial by mean score, 1 the best, equals sharing a rank; None for a failed one."""
    means = sorted(t.mean for t in trials if t.complete)
    return [means.index(t.mean) + 1 if t.complete else None for t in trials]
