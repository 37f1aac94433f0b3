"""Which hyperparameters matter: the share of the score's variance that each explains, by Optuna's fANOVA."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hw1jax import space as space_
from hw1jax.space import Choice, Int, Range, Space

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")  # of bars that are not shown, in a notebook
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

SEED = 0  # of the forest: the same trials give the same shares


def fanova(space: Space, params: Mapping[str, Sequence[Any] | np.ndarray], scores: np.ndarray) -> dict[str, float]:
    """The share of the variance of scores that each hyperparameter explains by itself, the largest first.

    The method is that of Hutter, Hoos and Leyton-Brown (2014): a forest is fitted to the scores, and its variance over
    the space is taken apart. Of a few dozen trials the shares are rough.

    Args:
      space: what was searched.
      params: a column of the space (`space.columns`) each: [trial].
      scores: float [trial], finite.

    Returns:
      {column: share}; the shares add up to 1.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: fewer than two trials, or all scores are equal.
    """
    if len(scores) < 2 or np.ptp(scores) == 0:
        raise ValueError("importances need at least two trials with different scores")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = space_.columns(space)
    kinds = {name: _distribution(r) for name, r in ranges.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study()
        for i, score in enumerate(np.asarray(scores, np.float64).tolist()):
            values = {name: _value(r, np.asarray(params[name])[i].item()) for name, r in ranges.items()}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, value=score))
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
        except ImportError:
            raise ImportError("importances need scikit-learn: pip install scikit-learn") from None
        except RuntimeError as error:  # the forest found nothing to split
            raise ValueError("importances: these trials are too few or too equal to tell") from error


def _distribution(r: Range) -> BaseDistribution:
    if isinstance(r, Choice):
        return CategoricalDistribution([str(value) for value in r.values])
    return IntDistribution(r.low, r.high, r.log) if isinstance(r, Int) else FloatDistribution(r.low, r.high, r.log)


def _value(r: Range, value: Any) -> Any:
    """As `_distribution` takes it: numbers of a choice may come in another type, as 1.0 for 1."""
    if not isinstance(r, Choice):
        return value
    return next(str(known) for known in r.values if known == value and isinstance(known, str) == isinstance(value, str))
