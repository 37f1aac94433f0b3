"""The arithmetic of successive halving: numbers of trials and epochs of each rung."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hw1jax.search.study import SearchConfig

EARLIER_RUNGS = 3  # before the last one, without first_rung=
TPE_BRACKETS = 5  # of a TPE search with halving, at most


class Stage(NamedTuple):
    """Trials of a bracket that train up to one of its rungs."""

    num_trials: int
    first_epoch: int
    last_epoch: int

    @property
    def num_epochs(self) -> int:
        return self.last_epoch - self.first_epoch


def num_kept(num_trials: int, factor: int | None, fewest: int = 1) -> int:
    """Number of a rung's trials that go on to the next, at least `fewest`; all without halving."""
    return num_trials if factor is None else min(num_trials, max(fewest, -(-num_trials // factor)))


def fewest(search: SearchConfig) -> int:
    """The least number of a bracket's trials that train to the end: an ensemble chooses among them."""
    return search.ensemble or 1


def stages(num_trials: int, ends: Sequence[int], factor: int | None, fewest: int = 1) -> list[Stage]:
    """The stages of a bracket whose rungs end at these epochs."""
    found, left = [], num_trials
    for before, end in pairwise([0, *ends]):
        found.append(Stage(left, before, end))
        left = num_kept(left, factor, fewest)
    return found


def work(num_trials: int, ends: Sequence[int], factor: int | None, fewest: int = 1) -> int:
    """Total epochs of a bracket's trials, if none fails."""
    return sum(stage.num_trials * stage.num_epochs for stage in stages(num_trials, ends, factor, fewest))


def work_of_search(num_trials: int, search: SearchConfig) -> int:
    """Total epochs of a search's trials, if none fails."""
    each = brackets(num_trials, search)
    return sum(work(size, ends, search.halving, fewest(search)) for size, ends in each)


def ends(search: SearchConfig) -> list[int]:
    """The epochs at which rungs end, sorted; the last is the last epoch."""
    found, factor = [search.num_epochs], search.halving
    if factor is None:
        return found
    first = search.first_rung or -(-search.num_epochs // factor**EARLIER_RUNGS)
    power = factor
    while first <= (end := -(-search.num_epochs // power)) < found[0]:
        found.insert(0, end)
        power *= factor
    return found


def _kinds(search: SearchConfig) -> list[list[int]]:
    """The `ends` of each kind of bracket."""
    all_ends = ends(search)
    return [all_ends[first:] for first in range(len(all_ends))] if search.brackets else [all_ends]


def lengths(search: SearchConfig) -> list[int]:
    """The distinct numbers of epochs between consecutive rungs, sorted."""
    return sorted({end - before for kind in _kinds(search) for before, end in pairwise([0, *kind])})


def brackets(num_trials: int, search: SearchConfig) -> list[tuple[int, list[int]]]:
    """(number of trials, ends of its rungs) of each bracket; one bracket without halving.

    Raises:
      ValueError: fewer trials than brackets.
    """
    if search.halving is None:
        return [(num_trials, [search.num_epochs])]
    kinds = _kinds(search)
    if search.sampler != "random" and not search.brackets:  # samplers learn between brackets
        kinds = kinds * max(1, min(TPE_BRACKETS, num_trials // search.halving))  # a smaller one would prune nothing
    # Hyperband (Li et al. 2018): brackets cost the same, so one with a longer first rung has fewer trials.
    costs = [sum(step / search.halving**i for i, step in enumerate(np.diff([0, *kind]))) for kind in kinds]
    if num_trials < len(kinds):
        raise ValueError(f"brackets= asks for at least {len(kinds)} trials, one a bracket; got num_trials={num_trials}")
    shares = np.array([1 / cost for cost in costs]) / sum(1 / cost for cost in costs)
    edges = np.round(np.cumsum(shares) * (num_trials - len(kinds))).astype(int)  # each bracket has one trial more
    sizes = 1 + np.diff([0, *edges])
    return [(int(size), kind) for size, kind in zip(sizes, kinds, strict=True)]
