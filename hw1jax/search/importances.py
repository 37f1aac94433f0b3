"""Importances of hyperparameters, by Optuna."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Int, Range, Space

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook without ipywidgets
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

FOREST_SEED = 0  # importances are a function of the trials alone


def importances(space: Space, params: Mapping[str, Sequence[Any] | np.ndarray], scores: np.ndarray) -> dict[str, float]:
    """Share of the variance of scores (float [trial]) that each hyperparameter alone explains, the largest first.

    Functional ANOVA on a random forest (Hutter, Hoos and Leyton-Brown 2014); rough for a few dozen trials. `params` has
    the columns of the space, [trial] each; the shares {column: share} sum to 1.

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
        opened = optuna.create_study()
        for i, score in enumerate(np.asarray(scores, np.float64).tolist()):
            values = {name: _value(r, space_.plain(params[name][i])) for name, r in ranges.items()}
            opened.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, value=score))
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=FOREST_SEED)
            return optuna.importance.get_param_importances(opened, evaluator=evaluator)
        except ImportError:
            raise ImportError("importances need scikit-learn: pip install scikit-learn") from None
        except RuntimeError as error:  # the forest has no split
            raise ValueError("importances: too few trials, or too similar ones") from error


def _distribution(r: Range) -> BaseDistribution:
    if isinstance(r, Choice):
        return CategoricalDistribution([str(value) for value in r.values])
    if isinstance(r, Int):
        return IntDistribution(r.low, r.high, r.log, r.step)
    return FloatDistribution(r.low, r.high, r.log)


def _value(r: Range, value: Any) -> Any:
    """Returns the value for `_distribution`: numbers of a choice may have another type, as 1.0 for 1."""
    if not isinstance(r, Choice):
        return value
    return next(str(known) for known in r.values if known == value and isinstance(known, str) == isinstance(value, str))
