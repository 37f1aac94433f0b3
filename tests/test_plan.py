"""The plan of a search: the size of programs, and the division of trials into jobs."""

import json
from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import DEEP, TOY, deep_task

from hw1jax.core import cost
from hw1jax.core.losses import squared_error
from hw1jax.core.population import Plan
from hw1jax.core.tasks import Task
from hw1jax.search import plan, rungs
from hw1jax.search import space as space_
from hw1jax.search.networks import Networks, own
from hw1jax.search.plan import Bracket, Rung, SearchPlan
from hw1jax.search.space import Choice, Float, Int
from hw1jax.search.study import SearchConfig, narrow, run_config
from hw1jax.search.study_data import load_data, splits_of


def soon_traced(fixed):
    """A network with hardly any operations, which uses its two widths, if it has them."""
    first, second = fixed.get("units", (5, 3))

    def apply(params, x, h):
        first_width, second_width = h.get("units", (first, second))
        mask = (jnp.arange(first) < first_width)[:, None] & (jnp.arange(second) < second_width)[None]
        return x * jnp.sum(jnp.where(mask, params, 0))

    return Task(lambda key, h: jnp.zeros((first, second)), apply, squared_error, lambda h: optax.sgd(h["rate"]))


NET = replace(TOY, task=soon_traced, space={"rate": Float(1e-3, 1.0)})
WIDE = narrow(NET, units=(Int(2, 42, width=True), Int(2, 4, width=True)))
STATIC = replace(TOY, space={"depth": Int(1, 3, static=True), "rate": Float(1e-3, 1.0)})


def networks_of(study, **asked):
    """(networks, order) of a search."""
    ordered = run_config(study, **asked)
    data = load_data(study, ordered.inputs)
    return Networks(study, ordered.search, data, splits_of(study, ordered.search, data)), ordered


def laid_out(study, **asked):
    networks, ordered = networks_of(study, **asked)
    planned = plan.make_plan(networks, ordered.num_trials, ordered.program)
    assert SearchPlan.from_json(json.loads(json.dumps(planned.to_json()))) == planned
    return planned


def only_rung(planned):
    """Of a plan without halving."""
    ((rung,),) = [bracket.rungs for bracket in planned.brackets]
    return rung


def sizes(planned):
    return [len(bracket.numbers) for bracket in planned.brackets]


def drawn(study, num_trials):
    return {number: space_.random_draw(study.space, 0, number) for number in range(num_trials)}


# What a program trains.


def test_members_of_a_program_are_as_many_as_the_devices_memory_holds(monkeypatch):
    asked = {"num_trials": 8, "widths": "padded"}
    everything = only_rung(laid_out(WIDE, **asked)).plan
    assert everything.num_slots == 8, "a CPU doesn't say what is free"
    networks, _ = networks_of(WIDE, **asked)
    widest = space_.widest(WIDE.space)
    members = networks.population(everything, networks.widest)
    needed = cost.bytes_needed(members, space_.as_arrays(WIDE.space, [widest] * 8))
    assert needed > 8 * 3 * 4 * own(WIDE, widest).num_parameters / everything.num_devices

    def a_hundred_a_trial(population, hyperparameters):
        assert len(hyperparameters["rate"]) == population.plan.num_slots
        return 100 * population.plan.num_slots

    monkeypatch.setattr(cost, "bytes_needed", a_hundred_a_trial)
    for free, slots in [(10_000, 8), (900, 8), (800, 4), (300, 2), (1, 1)]:
        device = Mock(**{"memory_stats.return_value": {"bytes_limit": free + 70, "bytes_in_use": 70}})
        monkeypatch.setattr(jax, "local_devices", Mock(return_value=[device]))
        assert only_rung(laid_out(WIDE, **asked)).plan.num_slots == slots


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("members", [3, 10, 21, 299])
def test_members_per_program_are_never_more_than_asked_for_and_not_many_fewer(num_devices, members):
    rung = only_rung(laid_out(NET, num_trials=100, num_devices=num_devices, members_per_program=members))
    assert members / 3 < 3 * rung.plan.num_slots <= members
    assert rung.plan.num_devices == min(num_devices, rung.plan.num_slots)


@pytest.mark.parametrize("sampler, members, expected", [("random", None, 40), ("tpe", None, 4), ("tpe", 10, 3)])
def test_all_trials_are_in_one_bracket_unless_the_sampler_learns_from_one_for_the_next(sampler, members, expected):
    planned = laid_out(NET, num_trials=40, sampler=sampler, num_devices=1, members_per_program=members)
    assert sizes(planned) == [only_rung(planned).plan.num_slots] == [expected]
    assert planned.factor is None and only_rung(planned).end_epoch == NET.num_epochs
    assert not only_rung(planned).own_widths


def test_with_a_timeout_a_random_search_has_brackets_of_a_few_trials_a_device():
    for num_devices in (1, 2):
        asked = {"num_trials": 40, "num_devices": num_devices, "timeout": 60}
        assert sizes(laid_out(NET, **asked)) == [4 * num_devices]
        assert sizes(laid_out(WIDE, widths="exact", **asked)) == [num_devices]
        assert sizes(laid_out(NET, sampler="tpe", **asked)) == [4]
    assert sizes(laid_out(NET, num_trials=3, num_devices=1, timeout=60)) == [3]


def test_a_bracket_is_shared_by_the_programs_of_static_hyperparameters_and_without_widths_there_are_no_own_ones():
    for num_devices, slots in ((1, 3), (2, 4)):  # a third of them, and as many on each device
        planned = laid_out(DEEP, num_trials=9, num_devices=num_devices, widths="exact")
        assert sizes(planned) == [9] and not only_rung(planned).own_widths
        assert (only_rung(planned).plan.num_slots, only_rung(planned).plan.num_devices) == (slots, num_devices)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_own_widths_are_one_slot_a_device(num_devices):
    planned = laid_out(WIDE, num_trials=5, widths="exact", num_devices=num_devices)
    rung = only_rung(planned)
    assert rung.own_widths and rung.groups is None
    assert (rung.plan.num_slots, rung.plan.num_devices) == (num_devices, num_devices)
    assert sizes(planned) == [5]


@pytest.mark.parametrize("folds", [None, [(np.arange(40), np.arange(40 + i, 61)) for i in range(5)]])
def test_fewer_members_to_a_program_than_a_trial_has_folds_are_refused_in_one_line(folds):
    least = 5 if folds else 3
    with pytest.raises(ValueError, match=f"^members_per_program= must be at least a trial's {least} folds$"):
        laid_out(replace(NET, folds=folds), members_per_program=least - 1)


def test_a_narrower_plan_has_slots_for_the_trials_on_every_device():
    assert plan.narrower(Plan(12, 2, 3), 5) == Plan(6, 2, 3)


# Rungs and brackets of a search with halving.


def test_rungs_end_at_the_epochs_over_powers_of_the_factor_and_not_below_the_first():
    def ends(num_epochs, **given):
        return rungs.ends(SearchConfig(num_epochs, 20, **given))

    assert ends(1000) == [1000]
    assert ends(1000, halving=3) == [38, 112, 334, 1000]
    assert ends(20, halving=3) == [1, 3, 7, 20]
    assert ends(20, halving=3, first_rung=3) == [3, 7, 20]
    assert ends(20, halving=3, first_rung=4) == [7, 20]
    assert ends(20, halving=3, first_rung=20) == [20]
    assert ends(20, halving=2, first_rung=1) == [1, 2, 3, 5, 10, 20]
    assert ends(2, halving=3) == [1, 2] and ends(1, halving=2) == [1]


@pytest.mark.parametrize(
    "asked, expected, first_rungs",
    [
        ({}, [20], [1]),
        ({"sampler": "tpe"}, [4] * 5, [1] * 5),
        ({"sampler": "tpe", "num_trials": 7}, [3, 4], [1] * 2),
        ({"sampler": "tpe", "num_trials": 2}, [2], [1]),
        ({"brackets": True}, [11, 5, 4], [1, 3, 9]),
        ({"brackets": True, "sampler": "tpe"}, [11, 5, 4], [1, 3, 9]),
        ({"brackets": True, "num_trials": 3}, [1, 1, 1], [1, 3, 9]),
    ],
)
def test_all_trials_are_in_brackets_whose_last_rung_is_the_last_epoch(asked, expected, first_rungs):
    asked = {"num_trials": 20, "num_epochs": 9, "halving": 3, "num_devices": 1, **asked}
    planned = laid_out(NET, **asked)
    assert (sizes(planned), planned.factor) == (expected, 3)
    assert [bracket.rungs[0].end_epoch for bracket in planned.brackets] == first_rungs
    assert all(bracket.rungs[-1].end_epoch == 9 for bracket in planned.brackets)
    brackets = planned.of(asked["num_trials"])
    assert [number for bracket in brackets for number in bracket.numbers] == list(range(asked["num_trials"]))


def test_hyperbands_brackets_cost_the_same_and_are_one_trial_at_least():
    planned = laid_out(NET, num_trials=100_000, num_epochs=1000, halving=3, brackets=True)
    works = [planned.work(bracket) for bracket in planned.of(100_000)]
    assert len(works) == 4 and max(works) <= 1.05 * min(works)
    with pytest.raises(ValueError, match="brackets= asks for at least 4 trials, .*num_trials=3$"):
        laid_out(NET, num_trials=3, num_epochs=1000, halving=3, brackets=True)


@pytest.mark.parametrize(
    "num_trials, factor, kept, work", [(10, 3, 4, 30), (9, 3, 3, 21), (1, 5, 1, 9), (9, None, 9, 81)]
)
def test_one_in_so_many_goes_on_rounded_up(num_trials, factor, kept, work):
    bracket = Bracket(range(num_trials), tuple(Rung(end, Plan(1)) for end in (1, 3, 9)))
    assert rungs.num_kept(num_trials, factor) == kept
    assert SearchPlan((bracket,), factor).work(bracket) == work


def test_with_an_ensemble_as_many_trials_train_to_the_end():
    bracket = Bracket(range(10), tuple(Rung(end, Plan(1)) for end in (1, 3, 9)))
    assert [rungs.num_kept(n, 3, 3) for n in (10, 4, 3, 2)] == [4, 3, 3, 2]
    planned = SearchPlan((bracket,), 3, 3)
    assert planned.work(bracket) == 10 + 4 * 2 + 3 * 6
    assert SearchPlan.from_json(planned.to_json()) == planned
    before = {name: value for name, value in planned.to_json().items() if name != "fewest"}
    assert SearchPlan.from_json(before) == SearchPlan((bracket,), 3), "of a search that began without it"
    search = SearchConfig(9, 20, halving=3, ensemble=3)
    assert rungs.work_of_search(10, search) == planned.work(bracket) and rungs.ends(search) == [1, 3, 9]


def test_brackets_follow_one_another_again_and_again_and_only_those_without_rungs_may_be_a_part():
    long, short = Bracket(range(5), (Rung(1, Plan(5)), Rung(3, Plan(2)))), Bracket(range(5, 8), (Rung(3, Plan(3)),))
    planned = SearchPlan((long, short), 3)
    assert planned.rungs == [*long.rungs, *short.rungs]
    all_brackets = [long, short, Bracket(range(8, 13), long.rungs)]
    for count, num_trials in enumerate((5, 8, 13), 1):
        assert planned.of(num_trials) == all_brackets[:count]
    alone = Bracket(range(3), short.rungs)
    assert SearchPlan((alone,)).of(4) == [alone, Bracket(range(3, 4), short.rungs)]
    for num_trials, instead in [(3, "5"), (6, "5 or 8"), (12, "8 or 13")]:
        with pytest.raises(ValueError, match=f"^num_trials={num_trials}: .* whole brackets; give {instead}$"):
            planned.of(num_trials)


@pytest.mark.parametrize(
    "platform, program_seconds, members, slots",
    [
        ("gpu", 2, None, [24, 8, 3]),
        ("gpu", 2, 21, [6, 4, 3]),
        ("cpu", 2, None, [24, 24, 24]),  # compiled once
        ("cpu", 2, 21, [6, 6, 6]),
        ("cpu", 0, None, [24, 8, 3]),  # as if compiling took no time
    ],
)
def test_rungs_have_programs_for_those_who_go_on_unless_compiling_costs_more(
    monkeypatch, platform, program_seconds, members, slots
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(plan, "PROGRAM_SECONDS", program_seconds)
    asked = {"num_epochs": 9, "halving": 3, "widths": "padded", "num_devices": 1, "members_per_program": members}
    planned = laid_out(NET, num_trials=24, **asked)
    assert [(rung.end_epoch, rung.plan.num_slots) for rung in planned.rungs] == [*zip((1, 3, 9), slots, strict=True)]
    assert not any(rung.own_widths for rung in planned.rungs)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_calls_of_one_program_are_as_long_as_wanted_and_waste_little(lengths, most):
    found = cost.epochs_of_a_call(lengths, most)
    most = min(most, max(lengths))
    assert most / 2 < found <= most
    assert sum(-n % found / n for n in lengths) <= sum(-n % most / n for n in lengths) + 1e-6
    assert len(lengths) > 1 or lengths[0] % most or found == most
    assert cost.epochs_of_a_call([38, 74, 222, 666], 50) == 38  # the regression's rungs


@pytest.mark.parametrize(
    "halving, flops_per_second, groups",
    [(3, 1e15, (1, 1)), (None, 1e15, (1, 1)), (3, 1e4, (2, 1)), (None, 1e4, (3, 1)), (None, 1e-3, None)],
)
def test_trials_that_fill_a_cores_cache_train_alone_in_narrower_groups_the_longer_the_search(
    monkeypatch, halving, flops_per_second, groups
):
    monkeypatch.setattr(cost, "trials_that_fit", lambda *_: 1)
    monkeypatch.setattr(plan, "FLOPS_PER_SECOND", flops_per_second)
    planned = laid_out(WIDE, num_trials=24, num_epochs=9, halving=halving, num_devices=1)
    assert all(rung.own_widths and rung.plan == Plan(1, 1, 1, rung.plan.layout) for rung in planned.rungs)
    assert {rung.groups for rung in planned.rungs} == {groups}


def test_one_split_of_ones_own_has_groups_too(monkeypatch):
    monkeypatch.setattr(cost, "trials_that_fit", lambda *_: 1)
    one_split = replace(WIDE, folds=[(np.arange(20), np.arange(20, 30))])
    assert only_rung(laid_out(one_split, num_trials=24)).groups == (1, 1)


# Which trials share a program.


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_jobs_are_trials_of_the_same_static_hyperparameters_and_each_keeps_its_slot_when_more_come(
    num_trials, more, slots
):
    """So its bits stay, and what is kept of its job under the first trial's number goes on to be this job's."""
    rung, draws = Rung(4, Plan(slots)), drawn(STATIC, num_trials + more)
    networks, _ = networks_of(STATIC)
    before = plan.jobs_of(networks, rung, drawn(STATIC, num_trials))
    after = plan.jobs_of(networks, rung, draws)
    assert sorted(number for job in after for number in job.numbers) == list(draws)
    for job in after:
        assert job.numbers == sorted(job.numbers) and 1 <= len(job.numbers) <= slots
        assert {draws[number]["depth"] for number in job.numbers} == {job.fixed["depth"]}
    for depth in (1, 2, 3):  # no job but the last of its kind has a slot to spare
        assert all(len(job.numbers) == slots for job in [job for job in after if job.fixed["depth"] == depth][:-1])
    beginnings = {job.numbers[0]: job.numbers for job in after}
    assert all(beginnings[job.numbers[0]][: len(job.numbers)] == job.numbers for job in before)


@pytest.mark.parametrize("groups", [None, (2, 1)])
def test_trials_at_own_widths_are_a_job_each_as_wide_as_the_widest_of_its_group_the_largest_first(groups):
    draws, (networks, _) = drawn(TOY, 20), networks_of(TOY)
    (padded,) = plan.jobs_of(networks, Rung(4, Plan(20)), draws)
    assert (padded.fixed, padded.numbers, padded.draws) == ({"hidden_units": (6, 4)}, [*range(20)], [*draws.values()])
    jobs = plan.jobs_of(networks, Rung(4, Plan(2, 2), own_widths=True, groups=groups), draws)
    assert sorted(job.numbers for job in jobs) == [[number] for number in range(20)]
    for job in jobs:
        first, second = draws[job.numbers[0]]["hidden_units"]  # of 2-6 and of 2-4
        expected = (first, second) if groups is None else (4 if first <= 4 else 6, 4)
        assert job.fixed == {"hidden_units": expected}
    parameters = [own(TOY, draws[job.numbers[0]] | job.fixed).num_parameters for job in jobs]
    assert parameters == sorted(parameters, reverse=True)


def test_there_is_one_draw_for_each_program():
    space = {
        "depth": (Int(1, 2, static=True), Int(3, 4, static=True)),
        "rate": Float(1e-3, 1.0),
        "shape": Choice("relu", "tanh", "gelu", static=True, among=("tanh", "gelu")),
        "width": Int(2, 9, width=True),
    }
    found = space_.static_draws(space)
    assert len(found) == space_.num_programs(space) == 8
    assert len({(draw["depth"], draw["shape"]) for draw in found}) == 8
    assert all(draw["width"] == 9 and draw["shape"] != "relu" for draw in found)


def test_a_network_that_only_one_static_value_makes_wrong_is_found_beforehand():
    def task(fixed):
        made = deep_task(fixed)
        return made._replace(loss=lambda outputs, y: made.loss(outputs, y).mean()) if fixed["depth"] == 2 else made

    with pytest.raises(ValueError, match="^[^\n]*loss must return one value an example[^\n]*$"):
        networks_of(replace(DEEP, task=task))[0].check()
