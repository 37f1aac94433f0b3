"""Importances of hyperparameters, by Optuna."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from hw1jax.search import space as space_
from hw1jax.search.space import Choice, Int, Range, Space

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook without ipywidgets
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

FOREST_SEED = 0  # importances are a function of the trials alone
LEAST_TRIALS = 50  # with fewer, either method often ranks another hyperparameter first than with many
BEST = 0.25  # share of the trials that PED-ANOVA compares with all


class Importances(NamedTuple):
    """The importance of each hyperparameter for the score, the largest first."""

    shares: dict[str, float]  # by column; PED-ANOVA's sum to 1, fANOVA's to what is not explained by several together
    method: Literal["fANOVA", "PED-ANOVA"]


def importances(
    space: Space, params: Mapping[str, Sequence[Any] | np.ndarray], scores: np.ndarray, *, maximize: bool = False
) -> Importances:
    """The importances of hyperparameters for scores (float [trial]).

    With scikit-learn, the shares of the scores' variance that each explains by itself: functional ANOVA on a random
    forest (Hutter, Hoos and Leyton-Brown 2014). Without it, how far the values of the best quarter of trials differ
    from those of all: PED-ANOVA (Watanabe, Bansal and Hutter 2023). `params` has the columns of the space, [trial]
    each.

    Raises:
      ValueError: fewer than `LEAST_TRIALS` trials, or all scores are equal.
    """
    if len(scores) < LEAST_TRIALS or np.ptp(scores) == 0:
        raise ValueError(f"importances need at least {LEAST_TRIALS} trials with different scores, got {len(scores)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = space_.columns(space)
    kinds = {name: _distribution(r) for name, r in ranges.items()}
    compute = optuna.importance.get_param_importances
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        opened = optuna.create_study(direction="maximize" if maximize else "minimize")
        for i, score in enumerate(np.asarray(scores, np.float64).tolist()):
            values = {name: _value(r, space_.plain(params[name][i])) for name, r in ranges.items()}
            opened.add_trial(optuna.trial.create_trial(params=values, distributions=kinds, value=score))
        try:
            forest = optuna.importance.FanovaImportanceEvaluator(seed=FOREST_SEED)
            return Importances(compute(opened, evaluator=forest, normalize=False), "fANOVA")
        except ImportError:  # scikit-learn isn't installed
            quarter = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST)
            return Importances(compute(opened, evaluator=quarter), "PED-ANOVA")
        except RuntimeError as error:  # the forest has no split
            raise ValueError("importances: the trials are too similar") from error


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
