"""How a search's trials are laid out in programs: once, from sizes and memory, before any trial is drawn.

Trials are asked for, trained and told in *brackets*. A bracket's trials train together up to its first *rung*; of those
that have trained up to a rung, the best go on to the next (successive halving), or there is one rung, the last epoch.
On a rung, trials with the same key share a program: the key is what shapes it, the static hyperparameters, and where
each trial has its own widths, these too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle
from typing import Any, NamedTuple

import jax

from hw1jax.core import cost
from hw1jax.core.layout import Layout
from hw1jax.core.population import Plan
from hw1jax.core.programs import KEPT_PROGRAMS
from hw1jax.search import networks as networks_
from hw1jax.search import rungs
from hw1jax.search import space as space_
from hw1jax.search.networks import Networks
from hw1jax.search.rungs import Stage
from hw1jax.search.space import Draw
from hw1jax.search.study import Program

SHARE_OF_MEMORY = 0.9  # of what is free, that a program may need
MOST_SLOTS = 100  # trials a program on a CPU: bounds the memory, and what a stopped search loses
TPE_TRIALS = 4  # of a TPE search's bracket, however many there are: an extended search is the same as a whole one
# Measured on two CPU cores:
FLOPS_A_SECOND = 8e10  # floating-point operations a second of one large network
SMALL_FLOPS_A_SECOND = 1e10  # of small networks, which train side by side in one program
PROGRAM_SECONDS = 2  # that a program takes to compile
JOB_SECONDS = 0.04  # that a job takes beside its training


@dataclass(frozen=True)
class Rung:
    """How trials train from the rung before, or from the start, up to this one.

    Attributes:
      num_epochs: that a trial has trained on it, in all.
      program: the layout of a program, whichever trials it trains.
      own_widths: whether each trial trains alone, so that the program's slots, one a device, stand side by side.
      groups: then, of each width, into how many even parts its range is cut: a network is as wide as the widest of its
        part, so that those of a part share a program. None: just as wide as it was drawn.
    """

    num_epochs: int
    program: Plan
    own_widths: bool = False
    groups: tuple[int, ...] | None = None

    def widths(self, space: space_.Space, draw: Draw) -> Draw:
        """The draw with the widths that its network has here."""
        if not self.own_widths:
            return draw | {name: space_.widest(space)[name] for name in space_.widths(space)}
        return draw if self.groups is None else space_.widened(space, draw, self.groups)


@dataclass(frozen=True)
class Bracket:
    """Trials that are asked for and told together.

    Attributes:
      numbers: of the trials.
      rungs: up to which they train, one after the other.
    """

    numbers: range
    rungs: tuple[Rung, ...]

    @property
    def ends(self) -> list[int]:
        """The epochs at which its rungs end."""
        return [rung.num_epochs for rung in self.rungs]


@dataclass(frozen=True)
class SearchPlan:
    """How all trials of a search are laid out. It fixes the bits of every result, so it is stored with the search.

    Attributes:
      brackets: they follow one another, again and again: the first trials are the first bracket's, and so on.
      factor: of a rung's trials one in so many goes on; None: a bracket has one rung.
    """

    brackets: tuple[Bracket, ...]
    factor: int | None = None

    @property
    def rungs(self) -> list[Rung]:
        """All there are."""
        return [rung for bracket in self.brackets for rung in bracket.rungs]

    def of(self, num_trials: int) -> list[Bracket]:
        """The brackets of the first trials; without rungs, the last one may be a part.

        Raises:
          ValueError: it would be a part of a bracket with rungs: who goes on depends on all of its trials.
        """
        found, first = [], 0
        for bracket in cycle(self.brackets):
            if first >= num_trials:
                return found
            end = first + len(bracket.numbers)
            if end > num_trials and self.factor is not None:
                raise ValueError(
                    f"num_trials={num_trials}: a search with halving has whole brackets; give "
                    f"{f'{first} or ' if first else ''}{end}"
                )
            found.append(Bracket(range(first, min(end, num_trials)), bracket.rungs))
            first = end
        raise AssertionError("there is a bracket")

    def work(self, bracket: Bracket) -> int:
        """Epochs of all trials of a bracket together, if none fails."""
        return rungs.work(len(bracket.numbers), bracket.ends, self.factor)

    def to_json(self) -> dict[str, Any]:
        """As a search's configuration holds it."""

        def rung(rung: Rung) -> dict[str, Any]:
            program = asdict(rung.program) | {"layout": rung.program.layout._asdict()}
            return asdict(rung) | {"program": program, "groups": None if rung.groups is None else list(rung.groups)}

        brackets = [{"num_trials": len(b.numbers), "rungs": list(map(rung, b.rungs))} for b in self.brackets]
        return {"brackets": brackets, "factor": self.factor}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SearchPlan":
        """What `to_json` gave."""

        def rung(values: Mapping[str, Any]) -> Rung:
            program, groups = values["program"], values["groups"]
            laid_out = Plan(**{**program, "layout": Layout(**program["layout"])})
            return Rung(**{**values, "program": laid_out, "groups": None if groups is None else tuple(groups)})

        brackets = [(b["num_trials"], tuple(map(rung, b["rungs"]))) for b in values["brackets"]]
        return cls(_in_a_row(brackets), values["factor"])


def _in_a_row(brackets: Sequence[tuple[int, tuple[Rung, ...]]]) -> tuple[Bracket, ...]:
    """Brackets of so many trials with these rungs, the first trials in the first one."""
    found, first = [], 0
    for num_trials, each in brackets:
        found.append(Bracket(range(first, first + num_trials), each))
        first += num_trials
    return tuple(found)


class Job(NamedTuple):
    """What one program trains at a time.

    Attributes:
      name: of its files, by its first trial and its last epoch.
      fixed: what shapes the program.
      numbers: of its trials, in the order of their slots.
      draws: the hyperparameters of each.
      rung: up to which it trains.
      first_epoch: how many epochs its trials have trained before.
    """

    name: str
    fixed: dict[str, Any]
    numbers: list[int]
    draws: list[Draw]
    rung: Rung
    first_epoch: int


def make_plan(networks: Networks, num_trials: int, program: Program) -> SearchPlan:
    """As many trials to a program as can be, padded to the same widths; or one by one at hardly more than their own.

    Raises:
      ValueError: settings that can't be followed.
    """
    planner = _Planner(networks, num_trials, program)
    return planner.with_halving() if networks.search.halving is not None else planner.without_halving()


class _Planner:
    """What the plan of a search is made from."""

    def __init__(self, networks: Networks, num_trials: int, program: Program):
        self.networks, self.num_trials, self.program = networks, num_trials, program
        self.num_folds = len(networks.folds)
        self.num_programs = space_.num_programs(networks.study.space)
        self.params, self.layout = networks.largest_params, networks.layout
        self.most = self._most_slots()
        changed = networks.changed_by_padding
        if changed is not None and program.widths == "padded":
            names = " and ".join(space_.varying_widths(networks.study.space))
            raise ValueError(
                f"widths=padded: a network that is padded must be the same as at its own {names}, and {changed} is "
                "another: mask what lies beyond, as hw1jax.models does, or give widths=exact"
            )
        has_widths = bool(space_.widths(networks.study.space))
        self.exact = changed is not None or (program.widths == "exact" and has_widths)
        self.own_widths = self.exact or (program.widths == "auto" and self._trains_best_alone())
        self.groups = None
        if self.own_widths and not self.exact:
            self.groups = _groups(networks, num_trials)

    def without_halving(self) -> SearchPlan:
        search = self.networks.search
        wanted = min(self.num_trials, self.most)
        if search.sampler == "tpe":  # it learns from one bracket for the next, so there must be several
            wanted = min(wanted, TPE_TRIALS)
        if self.own_widths:
            return SearchPlan(_in_a_row([(wanted, (self._alone(wanted, search.num_epochs),))]))
        wanted, plan = self._fit(wanted)
        num_trials = plan.slots * self.program.workers if self.num_programs == 1 else wanted
        return SearchPlan(_in_a_row([(num_trials, (Rung(search.num_epochs, plan),))]))

    def with_halving(self) -> SearchPlan:
        search = self.networks.search
        sizes = rungs.brackets(self.num_trials, search)
        brackets = [rungs.stages(size, ends, search.halving) for size, ends in sizes]
        shared = {}
        if jax.default_backend() == "cpu" and not self.own_widths:
            shared = self._shared_programs(list(chain(*brackets)))

        def rung(stage: Stage) -> Rung:
            if self.own_widths:
                return self._alone(stage.num_trials, stage.last_epoch)
            in_a_job = -(-stage.num_trials // -(-stage.num_trials // self.most))
            return Rung(stage.last_epoch, shared.get(stage) or self._fit(in_a_job)[1])

        laid_out = [(stages[0].num_trials, tuple(map(rung, stages))) for stages in brackets]
        return SearchPlan(_in_a_row(laid_out), search.halving)

    def _most_slots(self) -> int:
        """Trials that a program trains at most."""
        if self.program.members_per_program is None:
            return MOST_SLOTS if jax.default_backend() == "cpu" else self.num_trials
        most = self.program.members_per_program // self.num_folds
        if not most:
            raise ValueError(f"members_per_program= must be at least a trial's {self.num_folds} folds")
        return most

    def _trains_best_alone(self) -> bool:
        """Whether trials gain nothing by training beside others on a device, so each can be almost as narrow as it is.

        So it is on a CPU, where no two fit its cache or they follow one another in any case. An accelerator is better
        filled by all trials in one program.
        """
        if jax.devices()[0].platform != "cpu":
            return False
        return self.layout.one_by_one or cost.trials_that_fit(self.params, self.num_folds) == 1

    def _alone(self, num_trials: int, num_epochs: int) -> Rung:
        """A rung on which each trial has its own program."""
        num_devices = self._plan_for(num_trials).num_devices
        plan = Plan(num_devices, num_devices, 1, self.layout)
        return Rung(num_epochs, plan, own_widths=True, groups=self.groups)

    def _plan_for(self, num_trials: int) -> Plan:
        """A program for so many trials, which static hyperparameters and workers share out."""
        each = -(-num_trials // (self.num_programs * self.program.workers))
        return cost.make_plan(each, self.num_folds, self.params, self.layout, self.program.num_devices)

    def _fit(self, wanted: int) -> tuple[int, Plan]:
        """(trials at a time, their program): at most so many, fewer where the memory asks for it."""
        plan = self._plan_for(wanted)
        if self.program.members_per_program is not None:
            while plan.slots > self.most:  # slots are rounded to divide evenly
                wanted -= 1
                plan = self._plan_for(wanted)
            return wanted, plan
        widest = self.networks.widest
        while (free := _free_bytes()) and wanted > 1:
            members = self.networks.population(plan, widest.task)
            everyone = space_.as_arrays(self.networks.study.space, [widest.draw] * plan.slots)
            if cost.bytes_needed(members, everyone) < SHARE_OF_MEMORY * free:
                break
            wanted = -(-wanted // 2)
            plan = self._plan_for(wanted)
        return wanted, plan

    def _shared_programs(self, stages: Sequence[Stage]) -> dict[Stage, Plan]:
        """The program of each stage: as few as pay for being compiled."""
        largest = max(stage.num_trials for stage in stages)
        plans = [self._plan_for(n) for n in range(1, min(self.most, largest) + 1)]
        small_enough = {plan.slots: plan for plan in plans if plan.slots <= self.most}
        flops = self.networks.flops_of_an_epoch(self.networks.widest.draw)
        num_jobs = self.num_programs * self.program.workers
        return _shared_programs(list(small_enough.values()), stages, num_jobs, flops / SMALL_FLOPS_A_SECOND)


def _shared_programs(
    plans: Sequence[Plan], stages: Sequence[Stage], num_programs: int, seconds: float
) -> dict[Stage, Plan]:
    """The program of each stage: as few as pay for being compiled.

    Args:
      plans: those there may be.
      stages: all of a search.
      num_programs: that static hyperparameters ask for; trials are shared by them.
      seconds: that a trial's epoch takes.
    """

    def spent(plan: Plan, stage: Stage) -> float:
        num_jobs = -(-stage.num_trials // (plan.slots * num_programs))
        return num_jobs * (JOB_SECONDS + plan.slots * stage.num_epochs * seconds)

    def total(plans: Sequence[Plan]) -> float:
        return PROGRAM_SECONDS * len(plans) + sum(min(spent(plan, stage) for plan in plans) for stage in stages)

    chosen = [min(plans, key=lambda plan: total([plan]))]
    while total(more := [*chosen, min(plans, key=lambda plan: total([*chosen, plan]))]) < total(chosen):
        chosen = more
    return {stage: min(chosen, key=lambda plan: spent(plan, stage)) for stage in stages}


def _free_bytes() -> int | None:
    """What is left of a device's memory, where it has one of its own and says so."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return limit and limit - statistics.get("bytes_in_use", 0)


def _groups(networks: Networks, num_trials: int) -> tuple[int, ...] | None:
    """Into how many groups each width is best cut, for compiling and training together; None: each at its own widths.

    `num_trials`: of the search.
    """
    space, num_epochs = networks.study.space, rungs.work_of_search(num_trials, networks.search)
    sizes = [r.high - r.low + 1 for r in space_.width_columns(space).values()]
    seconds, saved = _cost_of_an_epoch(networks)
    return _best_groups(sizes, saved, seconds * num_epochs, num_trials, space_.num_programs(space))


def _best_groups(
    sizes: Sequence[int], saved: Sequence[float], seconds: float, num_trials: int, num_programs: int
) -> tuple[int, ...] | None:
    """As `_groups`.

    Args:
      sizes: how many values each width can have.
      saved: of the time that the widest network takes, the share that the lowest value of each width saves.
      seconds: that all takes if all networks are the widest.
      num_trials: that are drawn.
      num_programs: that static hyperparameters ask for.
    """

    def total(groups: Sequence[int]) -> float:
        narrowed = map(space_.share_narrowed, sizes, groups)
        left = math.prod(1 - share * part for share, part in zip(saved, narrowed, strict=True))
        count = math.prod(groups) * num_programs
        return left * seconds + PROGRAM_SECONDS * count * (1 - (1 - 1 / count) ** num_trials)

    groups = [1] * len(sizes)
    while True:  # one more of the width that gains most by it
        finer = [[n + (i == j) for j, n in enumerate(groups)] for i in range(len(groups)) if groups[i] < sizes[i]]
        kept = [more for more in finer if math.prod(more) * num_programs <= KEPT_PROGRAMS]
        best = min(kept, key=total, default=groups)
        if total(best) >= total(groups):
            break
        groups = best
    return None if total(sizes) < total(groups) else tuple(groups)


def _cost_of_an_epoch(networks: Networks) -> tuple[float, list[float]]:
    """(seconds that an epoch of the widest network takes on two CPU cores, all its folds; of these, the share that the
    lowest value of each width saves)."""
    space, widest = networks.study.space, networks.widest.draw
    flat, most = space_.flatten(widest), networks.flops_of_an_epoch(widest)
    narrow = [flat | {column: r.low} for column, r in space_.width_columns(space).items()]
    saved = [1 - networks.flops_of_an_epoch(space_.unflatten(space, draw)) / most for draw in narrow]
    return most / FLOPS_A_SECOND, saved


def narrower(plan: Plan, num_trials: int) -> Plan:
    """The same plan for fewer trials at once, where the memory was too small."""
    slots = -(-num_trials // plan.num_devices) * plan.num_devices
    return replace(plan, slots=slots, trials_at_once=slots // plan.num_devices)


def jobs_of(networks: Networks, rung: Rung, draws: Mapping[int, Draw], first_epoch: int = 0) -> list[Job]:
    """The jobs of trials that train up to a rung; those with programs of their own the longest first.

    Args:
      networks: of the search.
      rung: up to which they train.
      draws: the trials by number.
      first_epoch: from which they train.
    """
    study, groups = networks.study, {}
    for number in sorted(draws):
        fixed = space_.fixed(study.space, rung.widths(study.space, draws[number]), widest=False)
        key = number if rung.own_widths else space_.key_of(fixed)
        groups.setdefault(key, (fixed, []))[1].append(number)
    if rung.own_widths:
        sizes: dict[Any, int] = {}  # of each program's network, looked up once
        for number, (fixed, _) in groups.items():
            if (key := space_.key_of(fixed)) not in sizes:
                sizes[key] = networks_.own(study, draws[number] | fixed).num_parameters
        parts = sorted(groups.values(), key=lambda group: -sizes[space_.key_of(group[0])])
    else:
        size = rung.program.slots
        parts = [
            (fixed, numbers[first : first + size])
            for fixed, numbers in groups.values()
            for first in range(0, len(numbers), size)
        ]
    return [
        Job(f"{numbers[0]:06d}-{rung.num_epochs}", fixed, numbers, [draws[n] for n in numbers], rung, first_epoch)
        for fixed, numbers in parts
    ]
