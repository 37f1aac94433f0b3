"""How a search's trials are laid out in programs: once, from sizes and memory, before any trial is drawn.

Trials are asked for, trained and told in *brackets*. Within a bracket, trials with the same key share a program: the
key is what shapes it, the static hyperparameters, and where each trial has its own widths, these too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import jax
from jax.extend import core

from hw1jax import checks, hosts, population, study, training
from hw1jax import space as space_
from hw1jax.data import Dataset
from hw1jax.folds import Fold
from hw1jax.folds import num_steps as num_steps_of
from hw1jax.layout import Layout
from hw1jax.population import Plan, Population, Spec
from hw1jax.space import Choice, Draw, Float, Int
from hw1jax.study import Program, Search, Study
from hw1jax.training import Data, Task

SHARE_OF_MEMORY = 0.9  # of what is free, that a program may need
MOST_SLOTS = 100  # trials a program on a CPU: bounds the memory, and what a stopped search loses
TPE_BRACKETS = 5  # that a TPE search has at least
# Measured on two CPU cores: what one computes, the share of it that padding is, and what a program takes to compile.
FLOPS_A_SECOND, SHARE_SAVED, PROGRAM_SECONDS = 8e10, 0.4, 2


@dataclass(frozen=True)
class SearchPlan:
    """How all trials of a search are laid out. It fixes the bits of every result, so it is stored with the search.

    Attributes:
      bracket: trials that are asked for together: trial n is in bracket n // bracket.
      program: the layout of a program, whichever trials it trains.
      own_widths: whether each trial has a program of its own, so that the program's slots, one a device, stand side by
        side.
    """

    bracket: int
    program: Plan
    own_widths: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a search's configuration holds it."""
        return asdict(self) | {"program": asdict(self.program) | {"layout": self.program.layout._asdict()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SearchPlan":
        """What `to_json` gave."""
        program = values["program"]
        return cls(**{**values, "program": Plan(**{**program, "layout": Layout(**program["layout"])})})


class Job(NamedTuple):
    """What one program trains at a time."""

    fixed: dict[str, Any]  # what shapes the program
    numbers: list[int]  # of the trials, in the order of their slots


def make_plan(
    study_: Study, num_trials: int, search: Search, program: Program, data: Dataset, splits: list[Fold]
) -> SearchPlan:
    """As many trials to a program as can be, padded to the same widths; or each at its own, where that pays."""
    most = MOST_SLOTS if jax.default_backend() == "cpu" else num_trials
    if program.members_per_program is not None:
        most = program.members_per_program // len(splits)
        if not most:
            raise ValueError(f"members_per_program= must be at least a trial's {len(splits)} folds")
    wanted = min(num_trials, most)
    if search.sampler == "tpe":  # it learns from one bracket for the next, so there must be several
        wanted = -(-wanted // TPE_BRACKETS)
    num_programs = space_.num_programs(study_.space)
    shapes, layout = _largest(study_), make_layout(study_, search, data)

    def plan_for(num_trials: int) -> Plan:
        each = -(-num_trials // num_programs)
        return population.make_plan(each, len(splits), shapes, layout, program.num_devices)

    plan = plan_for(wanted)
    can_be_padded = takes_padding(study_, data.x_train)
    if not can_be_padded and program.widths == "padded":
        raise ValueError(
            f"widths=padded: apply must look at {' and '.join(space_.widths(study_.space))} of its hyperparameters and "
            "mask what lies beyond, as hw1jax.models does; give widths=exact"
        )
    if not can_be_padded or _own_widths_pay(study_, search, program, data, plan.slots * num_programs, len(splits)):
        return SearchPlan(wanted, Plan(plan.num_devices, plan.num_devices, 1, layout), own_widths=True)
    while program.members_per_program is not None and plan.slots > most:  # slots are rounded up to divide evenly
        wanted -= 1
        plan = plan_for(wanted)
    if program.members_per_program is None and not hosts.are_several():
        while (free := _free_bytes()) and wanted > 1:
            fixed = space_.fixed(study_.space, space_.widest(study_.space), widest=True)
            trial = make_population(study_, search, plan, data, splits, fixed)
            everyone = space_.as_arrays(study_.space, [space_.widest(study_.space)] * plan.slots)
            if population.bytes_needed(trial, everyone) < SHARE_OF_MEMORY * free:
                break
            wanted = -(-wanted // 2)
            plan = plan_for(wanted)
    return SearchPlan(plan.slots if num_programs == 1 else wanted, plan)


def takes_padding(study_: Study, x: Any) -> bool:
    """Whether the networks look at their widths, as they must where they are made wider; see `hw1jax.models`.

    `x`: a tree of arrays of examples.
    """
    several = {name: r for name, r in space_.ranges_of(study_.space).items() if name in space_.widths(study_.space)}
    vary = [name for name, ranges in several.items() if any(isinstance(r, Int) and r.low < r.high for r in ranges)]
    widest = space_.widest(study_.space)
    task = study.make_task(study_, space_.fixed(study_.space, widest, widest=True))
    one = study.one_trial(study_, widest)
    params, state = study.variable_shapes(task, one)
    some = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), x)

    def looks_at(name: str) -> bool:
        others = {other: array for other, array in one.items() if other != name}

        def outputs(width: jax.Array, params: Any, state: Any, x: Any, others: dict[str, Any]) -> Any:
            return training.evaluated(task, params, state, x, others | {name: width})

        jaxpr = jax.make_jaxpr(outputs)(one[name], params, state, some, others).jaxpr
        return _is_used(jaxpr.invars[0], jaxpr)

    return all(map(looks_at, vary))


def _is_used(variable: core.Var, jaxpr: core.Jaxpr) -> bool:
    """Whether anything is computed from an input of a function; within a `jax.jit` its inputs all look used."""
    for equation in jaxpr.eqns:
        places = [i for i, v in enumerate(equation.invars) if v is variable]
        inner = list(core.jaxprs_in_params(equation.params)) if equation.primitive.name in ("jit", "pjit") else []
        if places and not inner:
            return True
        if any(_is_used(function.invars[i], function) for function in inner for i in places):
            return True
    return False


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
    most = study_.epochs_per_call or population.enough_epochs(search.num_epochs, num_indices)
    per_call = max(n for n in range(1, most + 1) if search.num_epochs % n == 0)
    spec = Spec(search.num_epochs, search.batch_size, (search.seed,), per_call, first_fold)
    return population.place(task, plan, spec, Data(data.x_train, data.y_train, data.weights), splits)


def jobs_of(study_: Study, plan: SearchPlan, draws: Mapping[int, Draw]) -> list[Job]:
    """A bracket's trials as jobs; those with programs of their own the longest first."""
    groups: dict[Any, Job] = {}
    for number in sorted(draws):
        fixed = space_.fixed(study_.space, draws[number], widest=not plan.own_widths)
        key = (number if plan.own_widths else space_.key_of(fixed),)
        groups.setdefault(key, Job(fixed, [])).numbers.append(number)
    if plan.own_widths:
        return sorted(groups.values(), key=lambda job: -study.num_parameters(study_, draws[job.numbers[0]]))
    size = plan.program.slots
    return [
        Job(job.fixed, job.numbers[first : first + size])
        for job in groups.values()
        for first in range(0, len(job.numbers), size)
    ]


def check_networks(study_: Study, search: Search, data: Dataset, splits: list[Fold]) -> None:
    """Raises a ValueError or TypeError of one line if the study's networks can't be trained on the data."""
    shortest = min(len(fold.train) for fold in splits)
    if search.batch_size > shortest:
        raise ValueError(f"batch_size={search.batch_size} is more than a fold's {shortest} training samples")
    checks.check_weights(data.weights, splits)
    samples, num_steps = Data(data.x_train, data.y_train), search.num_epochs * num_steps_of(splits, search.batch_size)
    for draw in statics(study_):
        task, one = _of_widest(study_, draw)
        checks.check_task(task, one, samples, num_steps if training.wants_num_steps(task) else None)
    task, one = _of_widest(study_, space_.widest(study_.space))
    checks.check_examples(task, jax.random.key(search.seed), one, samples)  # of one of them, as it is compiled


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


def _own_widths_pay(
    study_: Study, search: Search, program: Program, data: Dataset, num_trials: int, num_folds: int
) -> bool:
    """Whether programs at the trials' own widths save more than they take to compile; on accelerators, never."""
    if not space_.widths(study_.space):
        return False
    if program.widths != "auto" or jax.devices()[0].platform != "cpu":
        return program.widths == "exact"
    widest = space_.widest(study_.space)
    task = study.make_task(study_, space_.fixed(study_.space, widest, widest=True))
    x, y = jax.tree.map(lambda a: a[:200], (data.x_train, data.y_train))
    some, num_samples = len(jax.tree.leaves(x)[0]), len(jax.tree.leaves(data.x_train)[0])
    flops = population.flops(task, Data(x, y), study.one_trial(study_, widest))
    samples = num_trials * (num_folds - 1) * num_samples * search.num_epochs
    saved = SHARE_SAVED * samples * flops / some / FLOPS_A_SECOND
    return saved > PROGRAM_SECONDS * num_trials


def narrower(plan: Plan, num_trials: int) -> Plan:
    """The same plan for fewer trials at once, where the memory was too small."""
    slots = -(-num_trials // plan.num_devices) * plan.num_devices
    return replace(plan, slots=slots, trials_at_once=slots // plan.num_devices)
