"""How a search is laid out: no more to a program than asked for and than fits, jobs by what shapes a program."""

import json
from dataclasses import replace

import deep
import jax
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax import plan, population
from hw1jax import space as space_
from hw1jax.layout import Layout
from hw1jax.plan import SearchPlan
from hw1jax.population import Plan
from hw1jax.space import Choice, Float, Int
from hw1jax.study import load_data, num_parameters, order, splits_of

STATIC = replace(toy.STUDY, space={"depth": Int(1, 3, static=True), "rate": Float(1e-3, 1.0)})


def laid_out(study, **asked):
    """(plan, order, data, folds) of a search."""
    ordered = order(study, **asked)
    data = load_data(study, ordered.inputs)
    splits = splits_of(study, ordered.search, data)
    planned = plan.make_plan(study, ordered.num_trials, ordered.search, ordered.program, data, splits)
    return planned, ordered, data, splits


def drawn(study, num_trials):
    return {number: space_.random_draw(study.space, 0, number) for number in range(num_trials)}


def numbers(jobs):
    return [job.numbers for job in jobs]


# What a program trains.


@pytest.mark.slow
def test_members_of_a_program_are_as_many_as_the_devices_memory_holds(monkeypatch):
    def plan_with(free):
        monkeypatch.setattr(plan, "_free_bytes", lambda: free)
        return laid_out(toy.STUDY, num_trials=64, widths="padded")

    everything, ordered, data, splits = plan_with(None)
    assert everything.program.slots == plan_with(10**12)[0].program.slots == 64
    widest = space_.widest(toy.STUDY.space)
    fixed = space_.fixed(toy.STUDY.space, widest, widest=True)
    members = plan.make_population(toy.STUDY, ordered.search, everything.program, data, splits, fixed)
    needed = population.bytes_needed(members, space_.as_arrays(toy.STUDY.space, [widest] * 64))
    assert needed > 64 * 3 * 4 * num_parameters(toy.STUDY, widest) / everything.program.num_devices
    assert 8 <= plan_with(needed // 2)[0].program.slots < 64
    assert plan_with(1)[0].program.slots == 1


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_members_per_program_are_never_more_than_asked_for(num_devices, sampler):
    common = {"num_trials": 100, "widths": "padded", "sampler": sampler, "num_devices": num_devices}
    for members in (3, 9, 10, 21, 50, 299, 300):
        slots = laid_out(toy.STUDY, members_per_program=members, **common)[0].program.slots
        assert 3 * slots <= members
        assert sampler == "tpe" or 3 * slots > members / 3  # and not many fewer


@pytest.mark.parametrize("sampler, brackets", [("random", 1), ("tpe", 5)])
def test_all_trials_are_in_one_bracket_unless_the_sampler_learns_from_one_for_the_next(sampler, brackets):
    planned, *_ = laid_out(toy.STUDY, num_trials=40, sampler=sampler, num_devices=2)
    assert planned.bracket == planned.program.slots == 40 // brackets
    assert not planned.own_widths


def test_a_bracket_is_shared_by_the_programs_of_static_hyperparameters():
    planned, *_ = laid_out(deep.STUDY, num_trials=9, num_devices=2)
    assert planned.bracket == 9
    assert planned.program.slots == 4  # a third of them, and as many on each device


def test_a_study_without_widths_has_none_of_its_own():
    assert not laid_out(deep.STUDY, widths="exact")[0].own_widths


def test_own_widths_are_one_slot_a_device():
    planned, *_ = laid_out(toy.STUDY, num_trials=5, widths="exact", num_devices=2)
    assert planned.own_widths
    assert (planned.program.slots, planned.program.num_devices) == (2, 2)
    assert planned.bracket == 5


def test_fewer_members_to_a_program_than_a_trial_has_folds_are_refused_in_one_line():
    with pytest.raises(ValueError, match="members_per_program= must be at least a trial's 3 folds") as caught:
        laid_out(toy.STUDY, members_per_program=2)
    assert "\n" not in str(caught.value)
    own_folds = replace(toy.STUDY, folds=[(np.arange(40), np.arange(40 + i, 61)) for i in range(5)])
    with pytest.raises(ValueError, match="members_per_program= must be at least a trial's 5 folds") as caught:
        laid_out(own_folds, members_per_program=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", [Layout(), Layout(20, 20, one_by_one=True)])
def test_a_plan_comes_back_from_json_as_it_was(layout):
    planned = SearchPlan(12, Plan(6, 2, 3, layout), own_widths=False)
    assert SearchPlan.from_json(json.loads(json.dumps(planned.to_json()))) == planned


def test_a_narrower_plan_has_slots_for_the_trials_on_every_device():
    narrower = plan.narrower(Plan(12, 2, 3, Layout(20, 20)), 5)
    assert narrower == Plan(6, 2, 3, Layout(20, 20))


# Which trials share a program.


def test_trials_with_the_same_static_hyperparameters_share_a_program():
    draws = drawn(STATIC, 20)
    jobs = plan.jobs_of(STATIC, SearchPlan(20, Plan(20)), draws)
    assert sorted(job.fixed["depth"] for job in jobs) == [1, 2, 3]
    for job in jobs:
        assert job.numbers == [n for n, draw in draws.items() if draw["depth"] == job.fixed["depth"]]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_jobs_have_each_trial_once_in_order_and_no_more_than_the_programs_slots(num_trials, slots, first):
    draws = {number: space_.random_draw(STATIC.space, 0, number) for number in range(first, first + num_trials)}
    jobs = plan.jobs_of(STATIC, SearchPlan(num_trials, Plan(slots)), draws)
    assert sorted(number for job in jobs for number in job.numbers) == list(draws)
    assert all(job.numbers == sorted(job.numbers) and 1 <= len(job.numbers) <= slots for job in jobs)
    assert all(draws[number]["depth"] == job.fixed["depth"] for job in jobs for number in job.numbers)


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_a_bracket_that_is_filled_up_leaves_every_trial_in_its_slot(num_trials, more, slots):
    """So its bits stay, and what is kept of its job under the first trial's number goes on to be this job's."""
    planned = SearchPlan(50, Plan(slots))
    before = plan.jobs_of(STATIC, planned, drawn(STATIC, num_trials))
    after = {job.numbers[0]: job for job in plan.jobs_of(STATIC, planned, drawn(STATIC, num_trials + more))}
    for job in before:
        assert after[job.numbers[0]].numbers[: len(job.numbers)] == job.numbers
        assert after[job.numbers[0]].fixed == job.fixed


def test_trials_of_any_width_share_a_program_that_has_the_widest():
    draws = drawn(toy.STUDY, 10)
    (job,) = plan.jobs_of(toy.STUDY, SearchPlan(10, Plan(10)), draws)
    assert job == plan.Job({"hidden_units": (6, 4)}, list(range(10)))


def test_trials_at_own_widths_are_a_job_each_the_largest_first():
    draws = drawn(toy.STUDY, 10)
    jobs = plan.jobs_of(toy.STUDY, SearchPlan(10, Plan(2, 2), own_widths=True), draws)
    assert sorted(numbers(jobs)) == [[number] for number in range(10)]
    assert all(job.fixed == {"hidden_units": draws[job.numbers[0]]["hidden_units"]} for job in jobs)
    sizes = [num_parameters(toy.STUDY, draws[job.numbers[0]]) for job in jobs]
    assert sizes == sorted(sizes, reverse=True)


def test_there_is_one_draw_for_each_program():
    space = {
        "depth": (Int(1, 2, static=True), Int(3, 4, static=True)),
        "rate": Float(1e-3, 1.0),
        "shape": Choice("relu", "tanh", "gelu", static=True, among=("tanh", "gelu")),
        "width": Int(2, 9, width=True),
    }
    study = replace(toy.STUDY, space=space)
    found = plan.statics(study)
    assert len(found) == space_.num_programs(space) == 8
    assert len({(draw["depth"], draw["shape"]) for draw in found}) == 8
    assert all(draw["width"] == 9 and draw["shape"] != "relu" for draw in found)


def test_a_network_that_only_one_static_value_makes_wrong_is_found_beforehand():
    """Each is tried, as shapes, before anything is trained."""

    def task(fixed):
        made = deep.task(fixed)
        return made._replace(loss=lambda outputs, y: made.loss(outputs, y).mean()) if fixed["depth"] == 2 else made

    study = replace(deep.STUDY, task=task)
    _, ordered, data, splits = laid_out(deep.STUDY)
    plan.check_networks(deep.STUDY, ordered.search, data, splits)
    with pytest.raises(ValueError, match="loss must return one value an example") as caught:
        plan.check_networks(study, ordered.search, data, splits)
    assert "\n" not in str(caught.value)


def test_the_bytes_that_are_free_are_unknown_on_a_cpu():
    assert jax.default_backend() == "cpu"
    assert plan._free_bytes() is None
