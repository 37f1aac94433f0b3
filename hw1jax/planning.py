"""How a search's trials are laid out in programs: once, from the settings, before any trial is drawn."""

from dataclasses import replace

import jax

from hw1jax import hosts, population, studies
from hw1jax.data import Dataset
from hw1jax.folds import Fold
from hw1jax.layout import Layout
from hw1jax.population import Plan, Problem, Spec
from hw1jax.space import Draw
from hw1jax.studies import Settings, Study

SHARE_OF_MEMORY = 0.9  # of what is free, that a program may need
MOST_SLOTS = 100  # trials a program on a CPU: bounds the memory, and what a stopped search loses
TPE_BATCHES = 5  # batches that a TPE search has at least
# Measured on two CPU cores: what one computes, the share of it that padding is, and what a program takes to compile.
FLOPS_A_SECOND, SHARE_SAVED, PROGRAM_SECONDS = 8e10, 0.4, 2


def make_plan(study: Study, settings: Settings, data: Dataset, splits: list[Fold]) -> Plan:
    """As many trials to a program as can be, padded to the same widths; or each at its own, where that pays."""
    most = MOST_SLOTS if jax.default_backend() == "cpu" else settings.num_trials
    if settings.members_per_program is not None:
        most = settings.members_per_program // settings.num_folds
    wanted = min(settings.num_trials, most)
    if settings.sampler == "tpe":  # it learns from one batch for the next, so there must be several
        wanted = -(-wanted // TPE_BATCHES)
    widest = studies.widest(settings)
    shapes, layout = studies.parameter_shapes(study, widest), make_layout(study, settings, data)

    def plan_for(num_trials: int) -> Plan:
        return population.make_plan(num_trials, settings.num_folds, shapes, layout, settings.num_devices)

    plan = plan_for(wanted)
    if _own_widths_pay(study, settings, data, plan):
        return replace(plan, slots=wanted, trials_at_once=1, own_widths=True)
    while settings.members_per_program is not None and plan.slots > most:  # slots are rounded up to divide evenly
        wanted -= 1
        plan = plan_for(wanted)
    if settings.members_per_program is None and not hosts.are_several():
        while (free := _free_bytes()) and wanted > 1:
            problem = make_problem(study, settings, plan, data, splits)
            everyone = studies.as_arrays([studies.widest(settings)] * plan.slots)
            if population.bytes_needed(problem, everyone) < SHARE_OF_MEMORY * free:
                break
            wanted = -(-wanted // 2)
            plan = plan_for(wanted)
    return plan


def make_layout(study: Study, settings: Settings, data: Dataset) -> Layout:
    """How a member of the widest network that can be drawn takes a step on the devices that are here."""
    widest = studies.widest(settings)
    task = studies.make_task(study, widest.channels, widest.hidden_units)
    shapes, one = studies.parameter_shapes(study, widest), jax.tree.map(lambda a: a[0], studies.as_arrays([widest]))
    return population.choose_layout(task, shapes, data.x_train, one, batch_size=settings.batch_size)


def _free_bytes() -> int | None:
    """What is left of a device's memory, where it has one of its own and says so."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return limit and limit - statistics.get("bytes_in_use", 0)


def make_problem(
    study: Study,
    settings: Settings,
    plan: Plan,
    data: Dataset,
    splits: list[Fold],
    draw: Draw | None = None,
    first_fold: int = 0,
) -> Problem:
    """The study as a population of at most the space's widths, or of a draw's own."""
    widths = draw or studies.widest(settings)
    task = studies.make_task(study, widths.channels, widths.hidden_units)
    per_call = max(n for n in range(1, study.epochs_per_call + 1) if settings.num_epochs % n == 0)
    spec = Spec(settings.num_epochs, settings.batch_size, (settings.seed,), per_call, first_fold)
    return population.place(task, plan, spec, data.x_train, data.y_train, splits)


def _own_widths_pay(study: Study, settings: Settings, data: Dataset, plan: Plan) -> bool:
    """Whether programs at the trials' own widths save more than they take to compile; on accelerators, never."""
    if settings.widths != "auto" or jax.devices()[0].platform != "cpu":
        return settings.widths == "exact"
    widest = studies.widest(settings)
    task = studies.make_task(study, widest.channels, widest.hidden_units)
    flops = population.flops(
        task, data.x_train[:200], data.y_train[:200], jax.tree.map(lambda a: a[0], studies.as_arrays([widest]))
    )
    samples = plan.slots * (settings.num_folds - 1) * len(data.x_train) * settings.num_epochs
    saved = SHARE_SAVED * samples * flops / 200 / FLOPS_A_SECOND
    return saved > PROGRAM_SECONDS * plan.slots
