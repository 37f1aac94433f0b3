"""Draws trials with Optuna's samplers, so that resumed and extended searches have the same ones."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from hw1jax.search import given
from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Draw, Float, Int, Range
from hw1jax.search.study import Study

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook without ipywidgets
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.samplers import BaseSampler, TPESampler
    from optuna.trial import FrozenTrial, Trial, TrialState


Direction = Literal["minimize", "maximize"]


class StoppableStudy(optuna.Study):
    """A study that anyone may stop: Optuna's raises an error outside of `optimize`."""

    stopped_by = ""

    def stop(self, by: str = "callbacks=") -> None:
        """No more trials are drawn; `by` names the argument that asks for it."""
        self.stopped_by = self.stopped_by or by


class PureRandomSampler(BaseSampler):
    """Random search in which a draw is a pure function of (seed, trial number, parameter name).

    Optuna's `RandomSampler` has a generator: after a resume it repeats its first draws. `enqueued` are the given
    parameters of the first trials.
    """

    def __init__(self, seed: int, enqueued: Sequence[Mapping[str, Any]] = ()):
        self._seed = seed
        self._enqueued = [{name: _categorical(value) for name, value in params.items()} for params in enqueued]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if trial.number < len(self._enqueued) and param_name in self._enqueued[trial.number]:
            return self._enqueued[trial.number][param_name]
        match param_distribution:
            case IntDistribution(low=low, high=high, log=log, step=step):
                values: Range = Int(low, high, log, step=step)
            case FloatDistribution(low=low, high=high, log=log):
                values = Float(low, high, log)
            case CategoricalDistribution(choices=choices):
                values = Choice(*choices)
            case _:
                raise ValueError(f"no way to draw {param_name} from {param_distribution}")
        return space_.sample(values, self._seed, trial.number, param_name)


class BracketSampler(PureRandomSampler):
    """Any Optuna sampler, with draws that depend on (the sampler, scores of earlier brackets) alone.

    Samplers keep generators, populations and models, which a resumed search has lost. So the sampler draws in a second
    study, in memory, which each process repeats from the first trial on: it asks for the trials of a bracket, and is
    told their scores before the next bracket. Searches that were killed, extended or left alone give the same trials.

    `make` makes the sampler; without it, each bracket has a new TPE sampler, seeded by the bracket's first trial.
    """

    def __init__(
        self,
        seed: int,
        direction: Direction,
        make: Callable[[], BaseSampler] | None,
        enqueued: Sequence[Mapping[str, Any]],
    ):
        super().__init__(seed, enqueued)
        self._is_tpe = make is None
        storage = optuna.storages.InMemoryStorage()
        created = optuna.create_study(storage=storage, direction=direction)
        self._study = StoppableStudy(created.study_name, storage, make and make())
        for params in self._enqueued:
            self._study.enqueue_trial(params)
        self._trials: list[Trial] = []
        self._num_told = 0

    def prepare(self, opened: StoppableStudy, study: Study, numbers: range) -> None:
        """Draws the trials of a bracket; all trials before it have scores. Stops `opened` instead if the sampler does.

        Raises:
          ValueError: a value is outside of its range, or the trials aren't those of the journal.
        """
        known = opened.get_trials(deepcopy=False)
        for number in range(self._num_told, numbers.start):
            _tell_again(self._study, self._trials[number], known[number])
        self._num_told = numbers.start
        if self._study.stopped_by:
            opened.stop("sampler=")
            return
        if self._is_tpe:
            words = hashlib.sha256(f"{self._seed} {numbers.start}".encode()).digest()
            self._study.sampler = TPESampler(seed=int.from_bytes(words[:4]))
        for number in numbers:
            trial = self._study.ask()
            draw = suggest(trial, study)
            self._trials.append(trial)
            given.check_columns(study.space, space_.flatten(draw, study.space), "sampler= draws")
            stored = known[number].params if number < len(known) else {}
            if any(trial.params.get(name) != value for name, value in stored.items()):
                raise ValueError(
                    f"sampler= draws {trial.params} as trial {number}, where the search has {stored}: give the sampler "
                    "a seed and the version of Optuna that it had, or another out="
                )

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._trials[trial.number].params[param_name]


def _tell_again(study: optuna.Study, trial: Trial, known: FrozenTrial) -> None:
    """Tells a study what another one knows of the same trial."""
    for step, value in known.intermediate_values.items():
        trial.report(value, step)
    for name, value in known.user_attrs.items():
        trial.set_user_attr(name, value)
    study.tell(trial, known.value if known.state == TrialState.COMPLETE else None, known.state)


def suggest(trial: Trial, study: Study) -> Draw:
    """Draws a trial's hyperparameters; for a known trial, reads them back."""

    def choose(name: str, values: Range) -> Any:
        if isinstance(values, Int):
            return trial.suggest_int(name, values.low, values.high, log=values.log, step=values.step)
        if isinstance(values, Float):
            return trial.suggest_float(name, values.low, values.high, log=values.log)
        known = {_categorical(value): value for value in values.among}
        return known[trial.suggest_categorical(name, list(known))]

    return space_.draw(study.space, choose)


def _categorical(value: Any) -> Any:
    """A choice's value as Optuna's storages hold it: a tuple as text."""
    return str(value) if isinstance(value, tuple) else value
