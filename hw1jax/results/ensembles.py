"""The ensemble of a whole search: the trials that predict best together what their folds held out."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hw1jax.core import population, selection
from hw1jax.core.folds import Fold
from hw1jax.results.trained_model import Member, Model
from hw1jax.search.brackets import Brackets
from hw1jax.search.networks import Network, Networks
from hw1jax.search.trainer import FoldNetworks
from hw1jax.search.trial_score import TrialScore


class Chosen(NamedTuple):
    """An ensemble, with scores out of fold: "loss" and metrics by name, on all samples that were held out."""

    members: tuple[Member, ...]
    scores: dict[str, float]
    of_best: dict[str, float]  # the same of the best trial alone


class _HeldOut(NamedTuple):
    """What the folds held out, the repeats' folds but once: a fold's rows follow those of the fold before."""

    folds: list[Fold]
    x: list[Any]  # a tree of arrays [sample, ...] a fold, all filled up to one length, so that one program serves
    y: Any  # a tree of arrays [row, ...]
    weights: np.ndarray  # float [row]


def choose(
    networks: Networks, trainer: Brackets, trials: Sequence[TrialScore], best: TrialScore, most: int, *, refit: bool
) -> Chosen:
    """Chooses at most so many complete trials, and their weights, by the study's score; the test set takes no part.

    With `refit` each of them is also trained on all training data. The outputs of all candidates are in memory: 4 bytes
    for each of them, sample and output.
    """
    draws = {trial.number: trial.draw for trial in trials if trial.state == "complete"}
    held_out, task = _held_out(networks), networks.widest.task
    found = _outputs(held_out, trainer.as_trained(draws), networks.search.repeats)
    numbers = sorted(draws)
    candidates = jax.tree.map(lambda *each: jnp.asarray(np.stack(each)), *(found[number] for number in numbers))
    nothing = jax.tree.map(lambda a: np.zeros(a.shape[1:], a.dtype), candidates)
    edges = tuple(np.cumsum([len(fold.validation) for fold in held_out.folds])[:-1].tolist())
    shared = held_out.y, held_out.weights, networks.statistics(task)
    score, sign = networks.study.score, -1 if networks.study.maximize else 1

    def scores_of(total: Any, size: int) -> np.ndarray:
        made = selection.scores(task)((score,), edges, total, np.float32(size), candidates, *shared)
        return sign * np.asarray(made[score])

    counts = selection.greedy(scores_of, candidates, most)
    weights = counts / counts.sum()
    mean = jax.tree.map(lambda a: np.tensordot(weights, a, 1).astype(a.dtype), candidates)
    both = jax.tree.map(lambda a, mean: np.stack([mean, a[numbers.index(best.number)]]), candidates, mean)
    names = ("loss", *networks.study.metrics)
    scores = selection.scores(task)(names, edges, nothing, np.float32(1), both, *shared)
    own = {number: float(weight) for number, weight in zip(numbers, weights, strict=True) if weight}
    epochs = {trial.number: trial.refit_epochs for trial in trials if trial.number in own}
    refits = trainer.refits({n: draws[n] for n in own}, epochs) if refit else dict.fromkeys(own, (None, None))
    members = []
    for n, (params, state) in refits.items():
        finite = Model(networks.study, draws[n], params, state).is_finite  # else its folds predict
        refitted = (params, state) if finite else (None, None)
        members.append(Member(n, own[n], draws[n], *refitted, trainer.fold_models(n, draws[n])))
    members.sort(key=lambda member: -member.weight)  # those of equal weight by number
    return Chosen(tuple(members), *({name: float(scores[name][i]) for name in names} for i in range(2)))


def _held_out(networks: Networks) -> _HeldOut:
    data, splits = networks.data, networks.folds[: len(networks.folds) // networks.search.repeats]
    longest = max(len(fold.validation) for fold in splits)
    x = [jax.tree.map(lambda a: a[np.resize(fold.validation, longest)], data.x_train) for fold in splits]  # noqa: B023
    rows = np.concatenate([fold.validation for fold in splits])
    weights = np.ones(len(rows)) if data.weights is None else data.weights[rows]
    y = jax.tree.map(lambda a: a[rows], data.y_train)
    return _HeldOut(splits, x, y, weights.astype(jax.dtypes.canonicalize_dtype(float)))


def _outputs(held_out: _HeldOut, kept: Iterable[tuple[int, Network, FoldNetworks]], repeats: int) -> dict[int, Any]:
    """{trial: what is combined of its outputs, [row, ...]}, the mean over the repeats."""
    found = {}
    for number, network, folds in kept:
        task, h, parts = network.task, network.hyperparameters, []
        for i, fold in enumerate(held_out.folds):
            each = []
            for params, state in folds[i :: len(held_out.folds)]:
                outputs = population.predict(task, params, h, held_out.x[i], state=state)
                outputs = jax.tree.map(lambda a: a[: len(fold.validation)], outputs)  # noqa: B023
                each.append(selection.combinable(task, outputs))
            parts.append(jax.tree.map(lambda *arrays: sum(arrays) / arrays[0].dtype.type(repeats), *each))
        found[number] = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return found
