"""How a search's trials are laid out in programs: once, from sizes and memory, before any trial is drawn.

Trials are asked for, trained and told in *brackets*. A bracket's trials train together up to its first *rung*; of those
that have trained up to a rung, the best go on to the next (successive halving), or there is one rung, the last epoch.
On a rung, trials with the same key share a program: the key is what shapes it, the static hyperparameters, and where
each trial has its own widths, these too.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle, pairwise, product
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Traced

from hw1jax import checks, identity, population, probe, study
from hw1jax import space as space_
from hw1jax.data import Dataset
from hw1jax.folds import Fold
from hw1jax.layout import Layout
from hw1jax.population import Plan, Population, Spec
from hw1jax.programs import KEPT_PROGRAMS
from hw1jax.space import Choice, Draw, Float, Int
from hw1jax.study import Program, Search, Study
from hw1jax.training import Data, Task

SHARE_OF_MEMORY = 0.9  # of what is free, that a program may need
NUM_EXAMPLES = 8  # on which a network that is padded is compared with the same at its own widths
MOST_SLOTS = 100  # trials a program on a CPU: bounds the memory, and what a stopped search loses
TPE_TRIALS = 4  # of a TPE search's bracket, however many there are: an extended search is the same as a whole one
TPE_BRACKETS = 5  # of a TPE search with halving, at least
EARLIER_RUNGS = 3  # of halving, before the last, where nobody says how long the first is
# Measured on two CPU cores: what one computes, and what a program takes to compile.
FLOPS_A_SECOND, PROGRAM_SECONDS = 8e10, 2
SMALL_FLOPS_A_SECOND, JOB_SECONDS = 1e10, 0.04  # where small networks train side by side; what a job takes beside


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
    """Trials that are asked for and told together."""

    num_trials: int
    rungs: tuple[Rung, ...]


class Stretch(NamedTuple):
    """A bracket of a search, and its trials."""

    bracket: Bracket
    numbers: range


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

    def stretches(self, num_trials: int) -> list[Stretch]:
        """The brackets of the first trials; without rungs, the last one may be a part.

        Raises:
          ValueError: it would be a part of a bracket with rungs: who goes on depends on all of its trials.
        """
        found, first = [], 0
        for bracket in cycle(self.brackets):
            if first >= num_trials:
                return found
            end = first + bracket.num_trials
            if end > num_trials and self.factor is not None:
                raise ValueError(
                    f"num_trials={num_trials}: a search with halving has whole brackets; give "
                    f"{f'{first} or ' if first else ''}{end}"
                )
            found.append(Stretch(bracket, range(first, min(end, num_trials))))
            first = end
        raise AssertionError("there is a bracket")

    def num_kept(self, num_trials: int) -> int:
        """Of so many trials on a rung, how many go on to the next."""
        return _num_kept(num_trials, self.factor)

    def work(self, stretch: Stretch) -> int:
        """Epochs of all trials of a bracket together, if none fails."""
        return _work(len(stretch.numbers), [rung.num_epochs for rung in stretch.bracket.rungs], self.factor)

    def to_json(self) -> dict[str, Any]:
        """As a search's configuration holds it."""

        def rung(rung: Rung) -> dict[str, Any]:
            program = asdict(rung.program) | {"layout": rung.program.layout._asdict()}
            return asdict(rung) | {"program": program, "groups": None if rung.groups is None else list(rung.groups)}

        brackets = [{"num_trials": b.num_trials, "rungs": list(map(rung, b.rungs))} for b in self.brackets]
        return {"brackets": brackets, "factor": self.factor}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SearchPlan":
        """What `to_json` gave."""

        def rung(values: Mapping[str, Any]) -> Rung:
            program, groups = values["program"], values.get("groups")  # a plan of an earlier version has none
            laid_out = Plan(**{**program, "layout": Layout(**program["layout"])})
            return Rung(**{**values, "program": laid_out, "groups": None if groups is None else tuple(groups)})

        brackets = [Bracket(b["num_trials"], tuple(map(rung, b["rungs"]))) for b in values["brackets"]]
        return cls(tuple(brackets), values["factor"])


class Job(NamedTuple):
    """What one program trains at a time."""

    fixed: dict[str, Any]  # what shapes the program
    numbers: list[int]  # of the trials, in the order of their slots


def make_plan(
    study_: Study, num_trials: int, search: Search, program: Program, data: Dataset, splits: list[Fold]
) -> SearchPlan:
    """As many trials to a program as can be, padded to the same widths; or one by one at hardly more than their own."""
    most = MOST_SLOTS if jax.default_backend() == "cpu" else num_trials
    if program.members_per_program is not None:
        most = program.members_per_program // len(splits)
        if not most:
            raise ValueError(f"members_per_program= must be at least a trial's {len(splits)} folds")
    num_programs = space_.num_programs(study_.space)
    shapes, layout = _largest(study_), make_layout(study_, search, data)
    changed = changed_by_padding(study_, search, Data(data.x_train, data.y_train), splits)
    can_be_padded = changed is None
    if changed is not None and program.widths == "padded":
        raise ValueError(
            f"widths=padded: a network that is padded must be the same as at its own {' and '.join(vary_of(study_))}, "
            f"and {changed} is another: mask what lies beyond, as hw1jax.models does, or give widths=exact"
        )

    def plan_for(num_trials: int) -> Plan:
        each = -(-num_trials // num_programs)
        return population.make_plan(each, len(splits), shapes, layout, program.num_devices)

    def fit(wanted: int) -> tuple[int, Plan]:
        """(trials at a time, their program): at most so many, fewer where the memory asks for it."""
        plan = plan_for(wanted)
        while program.members_per_program is not None and plan.slots > most:  # slots are rounded to divide evenly
            wanted -= 1
            plan = plan_for(wanted)
        if program.members_per_program is None:
            while (free := _free_bytes()) and wanted > 1:
                fixed = space_.fixed(study_.space, space_.widest(study_.space), widest=True)
                trial = make_population(study_, search, plan, data, splits, fixed)
                everyone = space_.as_arrays(study_.space, [space_.widest(study_.space)] * plan.slots)
                if population.bytes_needed(trial, everyone) < SHARE_OF_MEMORY * free:
                    break
                wanted = -(-wanted // 2)
                plan = plan_for(wanted)
        return wanted, plan

    exact = not can_be_padded or (program.widths == "exact" and bool(space_.widths(study_.space)))
    own_widths = exact or (program.widths == "auto" and _trains_best_alone(shapes, layout, len(splits)))
    groups = None
    if own_widths and not exact:
        groups = _groups(study_, data, len(splits), num_trials, _work_of(num_trials, search))

    def alone(num_trials: int, num_epochs: int) -> Rung:
        num_devices = plan_for(num_trials).num_devices
        return Rung(num_epochs, Plan(num_devices, num_devices, 1, layout), own_widths=True, groups=groups)

    if search.halving is None:
        wanted = min(num_trials, most)
        if search.sampler == "tpe":  # it learns from one bracket for the next, so there must be several
            wanted = min(wanted, TPE_TRIALS)
        if own_widths:
            return SearchPlan((Bracket(wanted, (alone(wanted, search.num_epochs),)),))
        wanted, plan = fit(wanted)
        num_trials = plan.slots if num_programs == 1 else wanted
        return SearchPlan((Bracket(num_trials, (Rung(search.num_epochs, plan),)),))

    def rung(stage: Stage) -> Rung:
        if own_widths:
            return alone(stage.num_trials, stage.last_epoch)
        in_a_job = -(-stage.num_trials // -(-stage.num_trials // most))
        return Rung(stage.last_epoch, programs.get(stage) or fit(in_a_job)[1])

    brackets = [_stages(size, ends, search.halving) for size, ends in _bracket_sizes(num_trials, search)]
    programs: dict[Stage, Plan] = {}
    if jax.default_backend() == "cpu" and not own_widths:
        stages = list(chain(*brackets))
        plans = [plan_for(n) for n in range(1, min(most, max(stage.num_trials for stage in stages)) + 1)]
        small_enough = {plan.slots: plan for plan in plans if plan.slots <= most}
        seconds = _flops_of_an_epoch(study_, data, len(splits), space_.widest(study_.space)) / SMALL_FLOPS_A_SECOND
        programs = _shared_programs(list(small_enough.values()), stages, num_programs, seconds)
    laid_out = [Bracket(stages[0].num_trials, tuple(map(rung, stages))) for stages in brackets]
    return SearchPlan(tuple(laid_out), search.halving)


def _num_kept(num_trials: int, factor: int | None) -> int:
    return num_trials if factor is None else -(-num_trials // factor)


class Stage(NamedTuple):
    """What a bracket has to train on a rung."""

    num_trials: int
    first_epoch: int
    last_epoch: int

    @property
    def num_epochs(self) -> int:
        return self.last_epoch - self.first_epoch


def _stages(num_trials: int, ends: Sequence[int], factor: int | None) -> list[Stage]:
    """Those of a bracket of so many trials; `ends`: of its rungs."""
    stages, left = [], num_trials
    for before, end in pairwise([0, *ends]):
        stages.append(Stage(left, before, end))
        left = _num_kept(left, factor)
    return stages


def _work(num_trials: int, ends: Sequence[int], factor: int | None) -> int:
    """Epochs of a bracket's trials together; `ends`: of its rungs."""
    return sum(stage.num_trials * stage.num_epochs for stage in _stages(num_trials, ends, factor))


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


def _work_of(num_trials: int, search: Search) -> int:
    """Epochs of all trials of a search together."""
    sizes = _bracket_sizes(num_trials, search) if search.halving else [(num_trials, [search.num_epochs])]
    return sum(_work(size, ends, search.halving) for size, ends in sizes)


def rung_ends(search: Search) -> list[int]:
    """The epochs at which rungs end, the last one at the last epoch."""
    ends, factor = [search.num_epochs], search.halving
    if factor is None:
        return ends
    first = search.first_rung or -(-search.num_epochs // factor**EARLIER_RUNGS)
    power = factor
    while first <= (end := -(-search.num_epochs // power)) < ends[0]:
        ends.insert(0, end)
        power *= factor
    return ends


def _kinds(search: Search) -> list[list[int]]:
    """The epochs at which rungs end, of each kind of bracket."""
    ends = rung_ends(search)
    return [ends[first:] for first in range(len(ends))] if search.brackets else [ends]


def _epochs_at_a_go(search: Search) -> list[int]:
    """How many epochs trials train from the start or from a rung to the next, all there are."""
    return sorted({end - before for ends in _kinds(search) for before, end in pairwise([0, *ends])})


def _bracket_sizes(num_trials: int, search: Search) -> list[tuple[int, list[int]]]:
    """(trials, the epochs at which rungs end) of each bracket of a search with halving.

    Raises:
      ValueError: too few trials for the brackets.
    """
    assert search.halving is not None
    ends, kinds = rung_ends(search), _kinds(search)
    if search.sampler == "tpe" and not search.brackets:  # it learns from one bracket for the next
        kinds = [ends] * min(TPE_BRACKETS, num_trials)
    # Hyperband (Li et al. 2018): brackets cost the same, so one whose trials train longer from the first has fewer.
    costs = [sum(step / search.halving**i for i, step in enumerate(np.diff([0, *ends]))) for ends in kinds]
    if num_trials < len(kinds):
        raise ValueError(f"brackets= asks for at least {len(kinds)} trials, one a bracket; got num_trials={num_trials}")
    shares = np.array([1 / cost for cost in costs]) / sum(1 / cost for cost in costs)
    edges = np.round(np.cumsum(shares) * (num_trials - len(kinds))).astype(int)  # beside one for each
    sizes = 1 + np.diff([0, *edges])
    return [(int(size), ends) for size, ends in zip(sizes, kinds, strict=True)]


def vary_of(study_: Study) -> list[str]:
    """The names of the widths that differ among trials."""
    ranges = {name: r for name, r in space_.ranges_of(study_.space).items() if name in space_.widths(study_.space)}
    return [name for name, each in ranges.items() if any(isinstance(r, Int) and r.low < r.high for r in each)]


def changed_by_padding(study_: Study, search: Search, data: Data, splits: Sequence[Fold]) -> str | None:
    """What of the narrowest network is another where it is padded to the widest; None if nothing is.

    It is tried on a few examples, with each value of the static hyperparameters.
    """
    if not vary_of(study_):
        return None
    few = Data(*(jax.tree.map(lambda a: np.asarray(a[:NUM_EXAMPLES]), tree) for tree in (data.x, data.y)))
    key = jax.random.key(search.seed)
    for draw in statics(study_):
        narrow_draw = space_.narrowest(study_.space, draw)
        wide, narrow = (
            study.make_task(study_, space_.fixed(study_.space, narrow_draw, widest=widest)) for widest in (True, False)
        )
        num_steps = population.num_updates(wide, splits, search.num_epochs, search.batch_size)
        one = study.one_trial(study_, narrow_draw)
        if changed := probe.padding_changes(wide, narrow, num_steps, key, one, few):
            return changed
    return None


def make_layout(study_: Study, search: Search, data: Dataset) -> Layout:
    """How a member of the widest network that can be drawn takes a step on the devices that are here."""
    widest = space_.widest(study_.space)
    task = study.make_task(study_, space_.fixed(study_.space, widest, widest=True))
    one = study.one_trial(study_, widest)
    params, state = study.variable_shapes(task, one)
    return population.choose_layout(task, params, state, data.x_train, one, batch_size=search.batch_size)


def make_population(
    study_: Study,
    search: Search,
    plan: Plan,
    data: Dataset,
    splits: list[Fold],
    fixed: Mapping[str, Any],
    first_fold: int = 0,
) -> Population:
    """The study's members of one program, with these static hyperparameters and widths."""
    task = study.make_task(study_, fixed)
    num_indices = len(splits) * max(len(fold.train) for fold in splits)
    most = study_.epochs_per_call or population.enough_epochs(num_indices)
    per_call = population.epochs_of_a_call(_epochs_at_a_go(search), most)
    batch_size = min(search.batch_size, max(len(fold.train) for fold in splits))  # as cross_validate does
    spec = Spec(search.num_epochs, batch_size, (search.seed,), per_call, first_fold)
    return population.place(task, plan, spec, Data(data.x_train, data.y_train, data.weights), splits)


def jobs_of(study_: Study, rung: Rung, draws: Mapping[int, Draw]) -> list[Job]:
    """A rung's trials as jobs; those with programs of their own the longest first."""
    groups: dict[Any, Job] = {}
    for number in sorted(draws):
        fixed = space_.fixed(study_.space, rung.widths(study_.space, draws[number]), widest=False)
        key = (number if rung.own_widths else space_.key_of(fixed),)
        groups.setdefault(key, Job(fixed, [])).numbers.append(number)
    if rung.own_widths:
        sizes: dict[Any, int] = {}  # of each program's network, looked at once
        for job in groups.values():
            if (key := space_.key_of(job.fixed)) not in sizes:
                sizes[key] = study.num_parameters(study_, draws[job.numbers[0]] | job.fixed)
        return sorted(groups.values(), key=lambda job: -sizes[space_.key_of(job.fixed)])
    size = rung.program.slots
    return [
        Job(job.fixed, job.numbers[first : first + size])
        for job in groups.values()
        for first in range(0, len(job.numbers), size)
    ]


def check_networks(study_: Study, search: Search, data: Dataset, splits: list[Fold]) -> str:
    """A digest of all that the study's networks compute, by which a folder knows the task that it belongs to.

    Raises:
      ValueError, TypeError: they can't be trained on the data, or a hyperparameter has no effect; in one line.
    """
    checks.check_weights(data.weights, splits)
    samples = Data(data.x_train, data.y_train)

    def num_steps(task: Task) -> tuple[int, ...] | None:
        return population.num_updates(task, splits, search.num_epochs, search.batch_size)

    programs = []
    for draw in statics(study_):
        task, one = _of_widest(study_, draw)
        checks.check_task(task, one, samples, num_steps(task))
        checks.check_names(task, one, space_.names(study_.space), samples.x, num_steps(task))
        programs.append(
            identity.traced(task, one, samples._replace(weights=data.weights), search.batch_size, num_steps(task))
        )
    digests = list(map(identity.digest, programs))
    task, one = _of_widest(study_, space_.widest(study_.space))
    key = jax.random.key(search.seed)
    checks.check_examples(task, key, one, samples, num_steps(task))  # of one of them, as it is compiled
    _check_used(study_, programs, digests)
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _check_used(study_: Study, programs: Sequence[Traced], digests: Sequence[str]) -> None:
    """Raises a ValueError that names a hyperparameter on which no network depends: a misspelt or forgotten one, say.

    Args:
      programs: of the widest networks, one for each draw of `statics`.
      digests: of these.
    """
    paths = set.intersection(*(set(identity.unused(program)) for program in programs))
    widest = space_.widest(study_.space)
    lowest = space_.narrowest(study_.space, widest)
    names = [
        name
        for name in study_.space
        if f"['{name}']" in paths
        and (
            name not in space_.widths(study_.space)  # these may shape the network, and be of no use beside
            or (name in vary_of(study_) and _shapes(study_, {**widest, name: lowest[name]}) == _shapes(study_, widest))
        )
    ]
    draws = statics(study_)
    for name in space_.statics(study_.space):
        others = [
            space_.key_of({other: draw[other] for other in space_.statics(study_.space) if other != name})
            for draw in draws
        ]
        several = len({repr(draw[name]) for draw in draws}) > 1
        if several and len(set(zip(others, digests, strict=True))) == len(set(others)):
            names.append(name)
    if names:
        raise ValueError(
            f"space: {names[0]} has no effect: neither initial parameters nor training nor evaluation depend on it. "
            f"The task has it as {'fixed' if names[0] in space_.statics(study_.space) else 'h'}[{names[0]!r}]"
        )


def _shapes(study_: Study, draw: Draw) -> list[tuple[int, ...]]:
    """Of the parameters and the state of a network at its own widths."""
    task = study.make_task(study_, space_.fixed(study_.space, draw, widest=False))
    variables = study.variable_shapes(task, study.one_trial(study_, draw))
    return [leaf.shape for leaf in jax.tree.leaves(variables)]


def _of_widest(study_: Study, draw: Draw) -> tuple[Task, dict[str, Any]]:
    """(task, one trial's hyperparameters as arrays) of a draw whose layers are the widest there are."""
    return study.make_task(study_, space_.fixed(study_.space, draw, widest=True)), study.one_trial(study_, draw)


def statics(study_: Study) -> list[Draw]:
    """Draws of the widest networks, one for each program that static hyperparameters ask for."""
    widest, choices = space_.widest(study_.space), {}
    for name, ranges in space_.ranges_of(study_.space).items():
        if space_.is_static(ranges):
            values = [r.among if isinstance(r, Choice) else range(r.low, r.high + 1)
                      for r in ranges if not isinstance(r, Float)]  # fmt: skip
            several = isinstance(widest[name], tuple)
            choices[name] = [combined if several else combined[0] for combined in product(*values)]
    return [widest | dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]


def _largest(study_: Study) -> Any:
    """Shapes of the parameters of the largest network that can be drawn."""

    def shapes(draw: Draw) -> Any:
        task = study.make_task(study_, space_.fixed(study_.space, draw, widest=True))
        return study.parameter_shapes(task, study.one_trial(study_, draw))

    return max(map(shapes, statics(study_)), key=lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)))


def _free_bytes() -> int | None:
    """What is left of a device's memory, where it has one of its own and says so."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return limit and limit - statistics.get("bytes_in_use", 0)


def _trains_best_alone(params: Any, layout: Layout, num_folds: int) -> bool:
    """Whether trials gain nothing by training beside others on a device, so that each can be almost as narrow as it is.

    So it is on a CPU, where no two fit its cache or they follow one another in any case. An accelerator is better
    filled by all trials in one program.
    """
    if jax.devices()[0].platform != "cpu":
        return False
    return layout.one_by_one or population.trials_that_fit(params, num_folds) == 1


def _groups(study_: Study, data: Dataset, num_folds: int, num_trials: int, num_epochs: int) -> tuple[int, ...] | None:
    """Into how many groups each width is best cut, for compiling and training together; None: each at its own widths.

    `num_epochs`: of all trials together.
    """
    sizes = [r.high - r.low + 1 for r in space_.width_columns(study_.space).values()]
    seconds, saved = _cost_of_an_epoch(study_, data, num_folds)
    return _best_groups(sizes, saved, seconds * num_epochs, num_trials, space_.num_programs(study_.space))


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


def _cost_of_an_epoch(study_: Study, data: Dataset, num_folds: int) -> tuple[float, list[float]]:
    """(seconds that an epoch of the widest network takes on two CPU cores, all its folds; of these, the share that the
    lowest value of each width saves)."""
    widest = space_.widest(study_.space)
    flat, most = space_.flatten(widest), _flops_of_an_epoch(study_, data, num_folds, widest)
    narrow = [flat | {column: r.low} for column, r in space_.width_columns(study_.space).items()]
    saved = [
        1 - _flops_of_an_epoch(study_, data, num_folds, space_.unflatten(study_.space, draw)) / most for draw in narrow
    ]
    return most / FLOPS_A_SECOND, saved


def _flops_of_an_epoch(study_: Study, data: Dataset, num_folds: int, draw: Draw) -> float:
    """Of all folds of a network with these widths."""
    x, y = jax.tree.map(lambda a: a[:200], (data.x_train, data.y_train))
    task = study.make_task(study_, space_.fixed(study_.space, draw, widest=False))
    of_a_sample = population.flops(task, Data(x, y), study.one_trial(study_, draw)) / len(jax.tree.leaves(x)[0])
    return of_a_sample * (num_folds - 1) * len(jax.tree.leaves(data.x_train)[0])


def narrower(plan: Plan, num_trials: int) -> Plan:
    """The same plan for fewer trials at once, where the memory was too small."""
    slots = -(-num_trials // plan.num_devices) * plan.num_devices
    return replace(plan, slots=slots, trials_at_once=slots // plan.num_devices)
