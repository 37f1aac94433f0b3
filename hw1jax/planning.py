"""How a search's trials are laid out in programs: once, from the settings, before any trial is drawn."""

from dataclasses import replace

import jax

from hw1jax import population, studies
from hw1jax.data import Dataset
from hw1jax.population import Plan
from hw1jax.studies import Settings, Study

MOST_SLOTS = 100  # trials a program: bounds the memory, and what a stopped search loses
TPE_BATCHES = 5  # batches that a TPE search has at least
# Measured on two CPU cores: what one computes, the share of it that padding is, and what a program takes to compile.
FLOPS_A_SECOND, SHARE_SAVED, PROGRAM_SECONDS = 8e10, 0.4, 2


def make_plan(study: Study, settings: Settings, data: Dataset) -> Plan:
    """As many trials to a program as can be, padded to the same widths; or each at its own, where that pays."""
    most = MOST_SLOTS
    if settings.members_per_program is not None:
        most = settings.members_per_program // settings.num_folds
    wanted = min(settings.num_trials, most)
    if settings.sampler == "tpe":  # it learns from one batch for the next, so there must be several
        wanted = -(-wanted // TPE_BATCHES)
    shapes = studies.parameter_shapes(study, studies.widest(settings))
    plan = population.make_plan(wanted, settings.num_folds, shapes, study.layout)
    if _own_widths_pay(study, settings, data, plan):
        plan = replace(plan, slots=wanted, trials_at_once=1, own_widths=True)
    return plan


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
