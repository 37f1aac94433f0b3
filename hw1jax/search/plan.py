"""The layout of a search's trials in programs: computed once, from sizes and memory, before any trial is drawn.

Trials are drawn, trained and reported in *brackets*. A bracket's trials train together up to its first *rung*; the best
of a rung go on to the next (successive halving). Without halving, the last epoch is the only rung. On a rung, trials
with equal static hyperparameters share a program; if each trial has its own widths, these must be equal too.
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
from hw1jax.search.study import ProgramConfig

SHARE_OF_MEMORY = 0.9  # of the free memory that a program may take
MOST_SLOTS = 100  # trials of a program on a CPU: bounds the memory, and the work that a stopped search loses
TPE_TRIALS = 4  # trials of a TPE bracket, whatever num_trials is: extending a search must not change its trials
TRIALS_OF_A_CORE, TRIALS_OF_AN_ACCELERATOR = 4, 64  # of a bracket with timeout=
# Measured on two CPU cores:
FLOPS_PER_SECOND = 8e10  # of one large network
SMALL_FLOPS_PER_SECOND = 1e10  # of small networks that share a program
PROGRAM_SECONDS = 2  # to compile a program
JOB_SECONDS = 0.04  # overhead of a job


@dataclass(frozen=True)
class Rung:
    """One stage of a bracket's training."""

    end_epoch: int  # epoch at which the rung ends, counted from a trial's start
    plan: Plan  # of its programs
    own_widths: bool = False  # True: a program for each trial; the plan's slots are concurrent programs
    # With `own_widths`, the number of equal parts of each width's range: a network is as wide as the widest of its
    # part, so that the trials of a part reuse a program. None: exactly the widths that were drawn.
    groups: tuple[int, ...] | None = None

    @property
    def num_side_by_side(self) -> int:
        """Jobs that train at the same time: one a device if each has its own widths, else one on all devices."""
        return self.plan.num_devices if self.own_widths else 1

    def widths(self, space: space_.Space, draw: Draw) -> Draw:
        """Returns the draw with the widths that its network has on this rung."""
        if not self.own_widths:
            return draw | {name: space_.widest(space)[name] for name in space_.widths(space)}
        return draw if self.groups is None else space_.widened(space, draw, self.groups)


@dataclass(frozen=True)
class Bracket:
    """Trials (by number) that are drawn and reported together, and the rungs of their training."""

    numbers: range
    rungs: tuple[Rung, ...]

    @property
    def ends(self) -> list[int]:
        return [rung.end_epoch for rung in self.rungs]


@dataclass(frozen=True)
class SearchPlan:
    """The layout of all trials of a search. It determines the bits of every result, so it is stored with the search."""

    brackets: tuple[Bracket, ...]  # repeated in this order until all trials have one
    factor: int | None = None  # one in `factor` of a rung's trials goes on; None: no halving
    fewest: int = 1  # trials of a bracket that train to the end at least

    @property
    def rungs(self) -> list[Rung]:
        return [rung for bracket in self.brackets for rung in bracket.rungs]

    def of(self, num_trials: int) -> list[Bracket]:
        """Returns the brackets of the first trials; without halving, the last may be incomplete.

        Raises:
          ValueError: the last would be incomplete with halving, where a trial's fate depends on the whole bracket.
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
        return rungs.work(len(bracket.numbers), bracket.ends, self.factor, self.fewest)

    def to_json(self) -> dict[str, Any]:
        def rung(rung: Rung) -> dict[str, Any]:
            plan = asdict(rung.plan) | {"layout": rung.plan.layout._asdict()}
            return asdict(rung) | {"plan": plan, "groups": None if rung.groups is None else list(rung.groups)}

        brackets = [{"num_trials": len(b.numbers), "rungs": list(map(rung, b.rungs))} for b in self.brackets]
        return {"brackets": brackets, "factor": self.factor, "fewest": self.fewest}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SearchPlan":
        """Inverse of `to_json`."""

        def rung(values: Mapping[str, Any]) -> Rung:
            plan, groups = values["plan"], values["groups"]
            plan = Plan(**{**plan, "layout": Layout(**plan["layout"])})
            return Rung(**{**values, "plan": plan, "groups": None if groups is None else tuple(groups)})

        brackets = [(b["num_trials"], tuple(map(rung, b["rungs"]))) for b in values["brackets"]]
        fewest = values.get("fewest", 1)  # searches that began before it existed go on
        return cls(_in_a_row(brackets), values["factor"], fewest)


def _in_a_row(brackets: Sequence[tuple[int, tuple[Rung, ...]]]) -> tuple[Bracket, ...]:
    """Brackets of these sizes with consecutive trial numbers."""
    found, first = [], 0
    for num_trials, each in brackets:
        found.append(Bracket(range(first, first + num_trials), each))
        first += num_trials
    return tuple(found)


class Job(NamedTuple):
    """Trials that one program trains together."""

    name: str  # of its files, "FIRST_TRIAL-LAST_EPOCH"
    fixed: dict[str, Any]  # static hyperparameters and widths, which select the program
    numbers: list[int]  # trial numbers, in the order of their slots
    draws: list[Draw]
    rung: Rung  # to which it trains
    first_epoch: int  # epochs that its trials have trained before


def make_plan(networks: Networks, num_trials: int, program: ProgramConfig) -> SearchPlan:
    """Plans a search: as many trials in a program as possible, padded to the same widths; or each at about its own.

    Raises:
      ValueError: the settings contradict the networks.
    """
    planner = _Planner(networks, num_trials, program)
    return planner.with_halving() if networks.search.halving is not None else planner.without_halving()


class _Planner:
    def __init__(self, networks: Networks, num_trials: int, program: ProgramConfig):
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
        if search.sampler != "random":  # it learns from one bracket for the next, so there must be several
            wanted = min(TPE_TRIALS, self.most)
        elif self.program.timeout is not None:  # it is asked for between brackets
            wanted = min(wanted, self._few())
        if self.own_widths:
            return SearchPlan(_in_a_row([(wanted, (self._alone(wanted, search.num_epochs),))]))
        wanted, plan = self._fit(wanted)
        num_trials = plan.num_slots * self.program.workers if self.num_programs == 1 else wanted
        return SearchPlan(_in_a_row([(num_trials, (Rung(search.num_epochs, plan),))]))

    def with_halving(self) -> SearchPlan:
        search = self.networks.search
        sizes = rungs.brackets(self.num_trials, search)
        brackets = [rungs.stages(size, ends, search.halving, rungs.fewest(search)) for size, ends in sizes]
        shared = {}
        if jax.default_backend() == "cpu" and not self.own_widths:
            shared = self._shared_programs(list(chain(*brackets)))

        def rung(stage: Stage) -> Rung:
            if self.own_widths:
                return self._alone(stage.num_trials, stage.last_epoch)
            in_a_job = -(-stage.num_trials // -(-stage.num_trials // self.most))
            return Rung(stage.last_epoch, shared.get(stage) or self._fit(in_a_job)[1])

        laid_out = [(stages[0].num_trials, tuple(map(rung, stages))) for stages in brackets]
        return SearchPlan(_in_a_row(laid_out), search.halving, rungs.fewest(search))

    def _most_slots(self) -> int:
        if self.program.members_per_program is None:
            return MOST_SLOTS if jax.default_backend() == "cpu" else self.num_trials
        most = self.program.members_per_program // self.num_folds
        if not most:
            raise ValueError(f"members_per_program= must be at least a trial's {self.num_folds} folds")
        return most

    def _few(self) -> int:
        """Trials that train in about the shortest time without leaving devices idle."""
        each = (
            TRIALS_OF_AN_ACCELERATOR if jax.default_backend() != "cpu" else 1 if self.own_widths else TRIALS_OF_A_CORE
        )
        return each * (self.program.num_devices or len(jax.devices())) * self.program.workers

    def _trains_best_alone(self) -> bool:
        """True if sharing a program gains nothing, so that each trial can have about its own widths.

        That is so on a CPU if no two trials fit its cache, or members run in sequence anyway. An accelerator is faster
        with all trials in one program.
        """
        if jax.devices()[0].platform != "cpu":
            return False
        return self.layout.sequential or cost.trials_that_fit(self.params, self.num_folds) == 1

    def _alone(self, num_trials: int, num_epochs: int) -> Rung:
        """A rung on which each trial has its own program."""
        num_devices = self._plan_for(num_trials).num_devices
        plan = Plan(num_devices, num_devices, 1, self.layout)
        return Rung(num_epochs, plan, own_widths=True, groups=self.groups)

    def _plan_for(self, num_trials: int) -> Plan:
        """The plan of one of the programs that share `num_trials`."""
        each = -(-num_trials // (self.num_programs * self.program.workers))
        num_inputs = cost.num_inputs(self.networks.data.x_train)
        return cost.make_plan(
            each, self.num_folds, self.params, self.layout, self.program.num_devices, num_inputs=num_inputs
        )

    def _fit(self, wanted: int) -> tuple[int, Plan]:
        """(trials, plan of their program): `wanted` trials, or fewer if the memory is too small."""
        plan = self._plan_for(wanted)
        if self.program.members_per_program is not None:
            while plan.num_slots > self.most:  # slots are rounded to divide evenly
                wanted -= 1
                plan = self._plan_for(wanted)
            return wanted, plan
        each = [self.networks.widest, *self.networks.of_each_program]
        widest = max(each, key=lambda network: self.networks.batch_size(network.fixed))  # takes the most memory
        while (free := _free_bytes()) and wanted > 1:
            members = self.networks.population(plan, widest)
            everyone = space_.as_arrays(self.networks.study.space, [widest.draw] * plan.num_slots)
            if cost.bytes_needed(members, everyone) < SHARE_OF_MEMORY * free:
                break
            wanted = -(-wanted // 2)
            plan = self._plan_for(wanted)
        return wanted, plan

    def _shared_programs(self, stages: Sequence[Stage]) -> dict[Stage, Plan]:
        """Selects as few programs as pay for being compiled -> the plan of each stage."""
        largest = max(stage.num_trials for stage in stages)
        possible = [self._plan_for(n) for n in range(1, min(self.most, largest) + 1)]
        plans = list({plan.num_slots: plan for plan in possible if plan.num_slots <= self.most}.values())
        num_jobs = self.num_programs * self.program.workers
        seconds = self.networks.flops_of_an_epoch(self.networks.widest.draw) / SMALL_FLOPS_PER_SECOND

        def spent(plan: Plan, stage: Stage) -> float:
            calls = -(-stage.num_trials // (plan.num_slots * num_jobs))
            return calls * (JOB_SECONDS + plan.num_slots * stage.num_epochs * seconds)

        def total(plans: Sequence[Plan]) -> float:
            return PROGRAM_SECONDS * len(plans) + sum(min(spent(plan, stage) for plan in plans) for stage in stages)

        chosen = [min(plans, key=lambda plan: total([plan]))]
        while total(more := [*chosen, min(plans, key=lambda plan: total([*chosen, plan]))]) < total(chosen):
            chosen = more
        return {stage: min(chosen, key=lambda plan: spent(plan, stage)) for stage in stages}


def _free_bytes() -> int | None:
    """Free memory of a device; None if it has none of its own or doesn't report it."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return limit and limit - statistics.get("bytes_in_use", 0)


def _groups(networks: Networks, num_trials: int) -> tuple[int, ...] | None:
    """Numbers of groups of each width that minimize the time to compile and train; None: exact widths are faster."""
    space, widest = networks.study.space, networks.widest.draw
    ranges, num_programs = space_.width_columns(space), space_.num_programs(space)
    sizes = [len(r.values) for r in ranges.values()]
    flops = networks.flops_of_an_epoch(widest)
    seconds = flops / FLOPS_PER_SECOND * rungs.work_of_search(num_trials, networks.search)  # if all are the widest
    flat = space_.flatten(widest, space)
    narrow = [space_.unflatten(space, flat | {column: r.low}) for column, r in ranges.items()]
    saved = [1 - networks.flops_of_an_epoch(draw) / flops for draw in narrow]  # by the lowest value of each width

    def total(groups: Sequence[int]) -> float:
        narrowed = map(space_.share_narrowed, sizes, groups)
        left = math.prod(1 - share * part for share, part in zip(saved, narrowed, strict=True))
        count = math.prod(groups) * num_programs
        return left * seconds + PROGRAM_SECONDS * count * (1 - (1 - 1 / count) ** num_trials)

    groups = [1] * len(sizes)
    while True:  # adds one group to the width that gains most by it
        finer = [[n + (i == j) for j, n in enumerate(groups)] for i in range(len(groups)) if groups[i] < sizes[i]]
        kept = [more for more in finer if math.prod(more) * num_programs <= KEPT_PROGRAMS]
        best = min(kept, key=total, default=groups)
        if total(best) >= total(groups):
            break
        groups = best
    return None if total(sizes) < total(groups) else tuple(groups)


def narrower(plan: Plan, num_trials: int) -> Plan:
    """The same plan for fewer trials, after running out of memory."""
    num_slots = -(-num_trials // plan.num_devices) * plan.num_devices
    return replace(plan, num_slots=num_slots, trials_per_vmap=num_slots // plan.num_devices)


def for_refits(networks: Networks, rung: Rung, num_trials: int, num_epochs: int | None) -> Rung:
    """The last rung, laid out for the refits of so many of its trials that share a program; `networks`: the refits'."""
    end = num_epochs or rung.end_epoch
    if rung.own_widths:
        return replace(rung, end_epoch=end)
    made = cost.make_plan(num_trials, 1, networks.largest_params, rung.plan.layout, rung.plan.num_devices)
    return replace(rung, end_epoch=end, plan=made)


def jobs_of(networks: Networks, rung: Rung, draws: Mapping[int, Draw], first_epoch: int = 0) -> list[Job]:
    """Groups trials, by number, into jobs on a rung; with programs of their own, the longest first."""
    study, groups = networks.study, {}

    def end(fixed: dict[str, Any]) -> int:
        return min(rung.end_epoch, networks.num_epochs(fixed))

    for number in sorted(draws):
        fixed = space_.fixed(study.space, rung.widths(study.space, draws[number]), widest=False)
        key = number if rung.own_widths else space_.key_of(fixed)
        groups.setdefault(key, (fixed, []))[1].append(number)
    if rung.own_widths:
        sizes: dict[Any, int] = {}  # parameters of each program's network
        for number, (fixed, _) in groups.items():
            if (key := space_.key_of(fixed)) not in sizes:
                sizes[key] = networks_.own(study, draws[number] | fixed).num_parameters
        parts = sorted(groups.values(), key=lambda group: -sizes[space_.key_of(group[0])] * end(group[0]))
    else:
        size = rung.plan.num_slots
        parts = [
            (fixed, numbers[first : first + size])
            for fixed, numbers in groups.values()
            for first in range(0, len(numbers), size)
        ]
    return [
        Job(
            f"{numbers[0]:06d}-{end(fixed)}",
            fixed,
            numbers,
            [draws[n] for n in numbers],
            replace(rung, end_epoch=end(fixed)),
            first_epoch,
        )
        for fixed, numbers in parts
    ]
