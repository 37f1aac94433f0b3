"""How a search is laid out: no more to a program than asked for and than fits, jobs by what shapes a program."""

import json
import math
import re
from dataclasses import replace

import deep
import jax
import numpy as np
import pytest
import regression
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax import plan, population, programs
from hw1jax import space as space_
from hw1jax.layout import Layout
from hw1jax.plan import Bracket, Rung, SearchPlan, Stretch
from hw1jax.population import Plan
from hw1jax.space import Choice, Float, Int
from hw1jax.study import Search, load_data, num_parameters, order, splits_of

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


def only_rung(planned):
    """Of a plan without halving."""
    ((rung,),) = [bracket.rungs for bracket in planned.brackets]
    return rung


# What a program trains.


@pytest.mark.slow
def test_members_of_a_program_are_as_many_as_the_devices_memory_holds(monkeypatch):
    def plan_with(free):
        monkeypatch.setattr(plan, "_free_bytes", lambda: free)
        return laid_out(toy.STUDY, num_trials=64, widths="padded")

    everything, ordered, data, splits = plan_with(None)
    assert only_rung(everything).program.slots == only_rung(plan_with(10**12)[0]).program.slots == 64
    widest = space_.widest(toy.STUDY.space)
    fixed = space_.fixed(toy.STUDY.space, widest, widest=True)
    members = plan.make_population(toy.STUDY, ordered.search, only_rung(everything).program, data, splits, fixed)
    needed = population.bytes_needed(members, space_.as_arrays(toy.STUDY.space, [widest] * 64))
    assert needed > 64 * 3 * 4 * num_parameters(toy.STUDY, widest) / only_rung(everything).program.num_devices
    assert 8 <= only_rung(plan_with(needed // 2)[0]).program.slots < 64
    assert only_rung(plan_with(1)[0]).program.slots == 1


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_members_per_program_are_never_more_than_asked_for(num_devices, sampler):
    common = {"num_trials": 100, "widths": "padded", "sampler": sampler, "num_devices": num_devices}
    for members in (3, 9, 10, 21, 50, 299, 300):
        slots = only_rung(laid_out(toy.STUDY, members_per_program=members, **common)[0]).program.slots
        assert 3 * slots <= members
        assert sampler == "tpe" or 3 * slots > members / 3  # and not many fewer


@pytest.mark.parametrize("sampler, brackets", [("random", 1), ("tpe", 5)])
def test_all_trials_are_in_one_bracket_unless_the_sampler_learns_from_one_for_the_next(sampler, brackets):
    planned, *_ = laid_out(toy.STUDY, num_trials=40, sampler=sampler, num_devices=2)
    assert planned.brackets[0].num_trials == only_rung(planned).program.slots == 40 // brackets
    assert not only_rung(planned).own_widths


def test_a_bracket_is_shared_by_the_programs_of_static_hyperparameters():
    planned, *_ = laid_out(deep.STUDY, num_trials=9, num_devices=2)
    assert planned.brackets[0].num_trials == 9
    assert only_rung(planned).program.slots == 4  # a third of them, and as many on each device


def test_a_study_without_widths_has_none_of_its_own():
    assert not only_rung(laid_out(deep.STUDY, widths="exact")[0]).own_widths


def test_own_widths_are_one_slot_a_device():
    planned, *_ = laid_out(toy.STUDY, num_trials=5, widths="exact", num_devices=2)
    rung = only_rung(planned)
    assert rung.own_widths
    assert (rung.program.slots, rung.program.num_devices) == (2, 2)
    assert planned.brackets[0].num_trials == 5


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
    rungs = Rung(3, Plan(6, 2, 3, layout)), Rung(9, Plan(2, 2), own_widths=True, groups=(3, 1))
    planned = SearchPlan((Bracket(12, rungs), Bracket(4, rungs[1:])), factor=3)
    assert SearchPlan.from_json(json.loads(json.dumps(planned.to_json()))) == planned


def test_a_narrower_plan_has_slots_for_the_trials_on_every_device():
    narrower = plan.narrower(Plan(12, 2, 3, Layout(20, 20)), 5)
    assert narrower == Plan(6, 2, 3, Layout(20, 20))


# Rungs and brackets of a search with halving.


@st.composite
def searches(draw, **fixed):
    """Searches with halving, whose first rung may be given."""
    num_epochs = draw(st.integers(1, 3000))
    first = draw(st.none() | st.integers(1, num_epochs))
    return Search(num_epochs, 20, halving=draw(st.integers(2, 5)), first_rung=first, **fixed)


@given(searches())
@settings(max_examples=200, deadline=None)
def test_rungs_end_at_the_epochs_over_powers_of_the_factor_and_not_below_the_first(search):
    ends, factor = plan.rung_ends(search), search.halving
    least = search.first_rung or math.ceil(search.num_epochs / factor**3)
    assert ends == sorted(set(ends)) and ends[-1] == search.num_epochs
    assert ends == [math.ceil(search.num_epochs / factor**k) for k in reversed(range(len(ends)))]
    assert all(end >= least for end in ends[:-1])
    below = math.ceil(search.num_epochs / factor ** len(ends))
    assert below < least or below == ends[0], "there is a rung as often as there can be"


def test_rungs_by_hand():
    def ends(num_epochs, **given):
        return plan.rung_ends(Search(num_epochs, 20, **given))

    assert ends(1000) == [1000]
    assert ends(1000, halving=3) == [38, 112, 334, 1000]
    assert ends(20, halving=3) == [1, 3, 7, 20]
    assert ends(20, halving=3, first_rung=3) == [3, 7, 20]
    assert ends(20, halving=3, first_rung=20) == [20]
    assert ends(1, halving=2) == [1]


@given(searches(brackets=True) | searches(sampler="tpe") | searches(), st.integers(4, 500))
@settings(max_examples=200, deadline=None)
def test_all_trials_are_in_brackets_of_at_least_one_whose_last_rung_is_the_last_epoch(search, num_trials):
    if search.brackets and num_trials < (least := len(plan.rung_ends(search))):
        with pytest.raises(ValueError, match=f"brackets= asks for at least {least} trials, .*num_trials={num_trials}"):
            plan._bracket_sizes(num_trials, search)
        return
    found = plan._bracket_sizes(num_trials, search)
    assert sum(size for size, _ in found) == num_trials and all(size >= 1 for size, _ in found)
    assert all(ends[-1] == search.num_epochs for _, ends in found)
    if search.brackets:
        assert [ends[0] for _, ends in found] == plan.rung_ends(search), "each begins one rung later"
    else:
        assert [ends for _, ends in found] == [plan.rung_ends(search)] * (1 if search.sampler == "random" else
                                                                         min(5, num_trials))  # fmt: skip


@given(searches(brackets=True), st.integers(100_000, 200_000))
@settings(max_examples=100, deadline=None)
def test_hyperbands_brackets_cost_the_same(search, num_trials):
    """To the rounding of trials."""
    works = []
    for size, ends in plan._bracket_sizes(num_trials, search):
        bracket = Bracket(size, tuple(Rung(end, Plan(1)) for end in ends))
        works.append(SearchPlan((bracket,), search.halving).work(Stretch(bracket, range(size))))
    assert max(works) <= 1.05 * min(works)


@given(st.integers(1, 300), st.integers(2, 5), st.lists(st.integers(1, 100), min_size=1, max_size=5, unique=True))
@settings(max_examples=100, deadline=None)
def test_one_in_so_many_goes_on_rounded_up(num_trials, factor, ends):
    bracket = Bracket(num_trials, tuple(Rung(end, Plan(1)) for end in sorted(ends)))
    planned = SearchPlan((bracket,), factor)
    left, epochs = list(range(num_trials)), [0] * num_trials
    for rung in bracket.rungs:
        for number in left:
            epochs[number] = rung.num_epochs
        assert planned.num_kept(len(left)) == math.ceil(len(left) / factor) >= 1
        left = left[: planned.num_kept(len(left))]
    assert planned.work(Stretch(bracket, range(num_trials))) == sum(epochs)
    assert SearchPlan((bracket,)).num_kept(num_trials) == num_trials


def test_brackets_follow_one_another_again_and_again():
    long, short = Bracket(5, (Rung(1, Plan(5)), Rung(3, Plan(2)))), Bracket(3, (Rung(3, Plan(3)),))
    planned = SearchPlan((long, short), 3)
    assert planned.stretches(5) == [Stretch(long, range(5))]
    assert planned.stretches(13) == [
        Stretch(long, range(5)),
        Stretch(short, range(5, 8)),
        Stretch(long, range(8, 13)),
    ]
    assert planned.rungs == [*long.rungs, *short.rungs]
    assert SearchPlan((short,)).stretches(4) == [Stretch(short, range(3)), Stretch(short, range(3, 4))]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_a_part_of_a_bracket_with_rungs_is_refused_and_the_numbers_that_can_be_had_are_named(sizes, num_trials):
    planned = SearchPlan(tuple(Bracket(size, (Rung(2, Plan(1)),)) for size in sizes), 2)
    try:
        assert planned.stretches(num_trials)[-1].numbers.stop == num_trials
    except ValueError as error:
        assert str(error).startswith(f"num_trials={num_trials}: ") and "\n" not in str(error)
        named = [int(number) for number in re.findall(r"\d+", str(error).partition("; give ")[2])]
        assert named == [*([below] if (below := named[0]) < num_trials else []), named[-1]]
        assert named[-1] > num_trials
        for number in named:
            assert planned.stretches(number)[-1].numbers.stop == number


def test_on_an_accelerator_a_rungs_program_has_slots_for_those_who_go_on(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    planned, *_ = laid_out(toy.STUDY, num_trials=24, num_epochs=9, halving=3, widths="padded", num_devices=2)
    (bracket,) = planned.brackets
    assert (bracket.num_trials, planned.factor) == (24, 3)
    assert [(rung.num_epochs, rung.program.slots) for rung in bracket.rungs] == [(1, 24), (3, 8), (9, 4)]
    assert [rung.program.num_devices for rung in bracket.rungs] == [2, 2, 2]  # of three trials one has no company
    assert not any(rung.own_widths for rung in bracket.rungs)
    assert SearchPlan.from_json(json.loads(json.dumps(planned.to_json()))) == planned


@pytest.mark.parametrize("platform, slots", [("gpu", [6, 4, 3]), ("cpu", [6, 6, 6])])
def test_a_rung_has_programs_of_no_more_members_than_asked_for_and_they_share_its_trials_evenly(
    monkeypatch, platform, slots
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    common = {"num_epochs": 9, "halving": 3, "widths": "padded", "num_devices": 1}
    planned, *_ = laid_out(toy.STUDY, num_trials=24, members_per_program=21, **common)
    assert [rung.program.slots for rung in planned.rungs] == slots


def test_on_a_cpu_all_rungs_share_a_program_that_is_compiled_once():
    planned, *_ = laid_out(regression.STUDY, halving=3, num_trials=180, num_devices=2)
    assert len({rung.program for rung in planned.rungs}) == 1


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=20, unique=True),
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 50), st.integers(1, 1000)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.floats(1e-7, 10),
)
@settings(max_examples=200, deadline=None)
def test_rungs_share_programs_unless_others_save_more_than_compiling_them_costs(sizes, stages, num_programs, seconds):
    plans = [Plan(size) for size in sizes]
    stages = [plan.Stage(n, first, first + more) for n, first, more in stages]
    programs = plan._shared_programs(plans, stages, num_programs, seconds)
    assert set(programs) == set(stages) and set(programs.values()) <= set(plans)

    def spent(of_stage):
        total = plan.PROGRAM_SECONDS * len(set(of_stage.values()))
        for stage in stages:
            slots = of_stage[stage].slots
            num_jobs = math.ceil(stage.num_trials / (slots * num_programs))
            total += num_jobs * (plan.JOB_SECONDS + slots * stage.num_epochs * seconds)
        return total

    for one in plans:
        assert spent(programs) <= spent(dict.fromkeys(stages, one)) * (1 + 1e-9)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_calls_of_one_program_are_as_long_as_wanted_and_waste_little(lengths, most):
    found = population.epochs_of_a_call(lengths, most)
    most = min(most, max(lengths))
    assert most / 2 < found <= most
    wasted = sum(-length % found / length for length in lengths)
    assert wasted <= sum(-length % most / length for length in lengths) + 1e-6
    if len(lengths) == 1 and lengths[0] % most == 0:
        assert found == most


def test_calls_of_the_regressions_rungs_waste_hardly_anything():
    found = population.epochs_of_a_call([38, 74, 222, 666], 50)
    assert found == 38 and sum(-n % found for n in (38, 74, 222, 666)) / 1000 < 0.03


@pytest.mark.parametrize("brackets, sampler, sizes", [(False, "random", [20]), (False, "tpe", [4] * 5),
                                                      (True, "random", [11, 5, 4])])  # fmt: skip
def test_hyperband_and_a_sampler_that_learns_have_several_brackets(brackets, sampler, sizes):
    common = {"num_epochs": 9, "halving": 3, "num_devices": 1}
    planned, *_ = laid_out(toy.STUDY, num_trials=20, brackets=brackets, sampler=sampler, **common)
    assert [bracket.num_trials for bracket in planned.brackets] == sizes
    assert sum(len(stretch.numbers) for stretch in planned.stretches(20)) == 20


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 0.9)), max_size=4),
    st.floats(1e-2, 1e5),
    st.integers(1, 100),
    st.integers(1, 16),
)
@settings(max_examples=200, deadline=None)
def test_groups_take_no_longer_than_one_program_for_all_or_one_for_each(widths, seconds, num_trials, num_programs):
    sizes, saved = [size for size, _ in widths], [share for _, share in widths]

    def total(groups):
        left = [1 - share * space_.share_narrowed(size, n) for share, size, n in zip(saved, sizes, groups, strict=True)]
        count = math.prod(groups) * num_programs
        return seconds * math.prod(left) + plan.PROGRAM_SECONDS * count * (1 - (1 - 1 / count) ** num_trials)

    found = plan._best_groups(sizes, saved, seconds, num_trials, num_programs)
    taken = total(sizes if found is None else found)
    assert taken <= total(sizes) + 1e-9 and taken <= total([1] * len(sizes)) + 1e-9
    if found is not None:
        assert all(1 <= n <= size for n, size in zip(found, sizes, strict=True))
        assert math.prod(found) * num_programs <= programs.KEPT_PROGRAMS


@pytest.mark.parametrize("seconds, num_trials, expected", [(0.1, 50, (1, 1)), (60, 50, (3, 1)), (1e6, 2, None)])
def test_the_longer_a_search_trains_the_narrower_its_groups(seconds, num_trials, expected):
    """The first width of a dense net on images has most of the weights."""
    assert plan._best_groups([41, 41], [0.7, 0.05], seconds, num_trials, 1) == expected


@pytest.mark.parametrize("fit, halving", [(1, 3), (1, None), (2, 3)])
def test_trials_that_fill_a_cores_cache_train_alone_in_groups_of_like_widths(monkeypatch, fit, halving):
    """So one program serves all rungs; and smaller ones gain more by company."""
    monkeypatch.setattr(population, "trials_that_fit", lambda *_: fit)
    monkeypatch.setattr(plan, "_cost_of_an_epoch", lambda *_: (1.0, [0.5, 0.1]))
    planned, *_ = laid_out(toy.STUDY, num_trials=24, num_epochs=9, halving=halving, num_devices=2)
    assert {rung.own_widths for rung in planned.rungs} == {fit == 1}
    if fit == 1:
        assert {(rung.program.slots, rung.program.num_devices) for rung in planned.rungs} <= {(2, 2), (1, 1)}
        assert len({rung.groups for rung in planned.rungs}) == 1
    assert SearchPlan.from_json(json.loads(json.dumps(planned.to_json()))) == planned


def test_a_plan_of_an_earlier_version_has_networks_just_as_wide_as_drawn():
    planned = SearchPlan((Bracket(4, (Rung(3, Plan(2, 2), own_widths=True),)),))
    stored = planned.to_json()
    del stored["brackets"][0]["rungs"][0]["groups"]
    assert SearchPlan.from_json(stored) == planned


def test_without_halving_there_is_one_rung_the_last_epoch():
    planned, *_ = laid_out(toy.STUDY, num_trials=6)
    assert planned.factor is None and only_rung(planned).num_epochs == toy.STUDY.num_epochs


# Which trials share a program.


def test_trials_with_the_same_static_hyperparameters_share_a_program():
    draws = drawn(STATIC, 20)
    jobs = plan.jobs_of(STATIC, Rung(4, Plan(20)), draws)
    assert sorted(job.fixed["depth"] for job in jobs) == [1, 2, 3]
    for job in jobs:
        assert job.numbers == [n for n, draw in draws.items() if draw["depth"] == job.fixed["depth"]]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_jobs_have_each_trial_once_in_order_and_no_more_than_the_programs_slots(num_trials, slots, first):
    draws = {number: space_.random_draw(STATIC.space, 0, number) for number in range(first, first + num_trials)}
    jobs = plan.jobs_of(STATIC, Rung(4, Plan(slots)), draws)
    assert sorted(number for job in jobs for number in job.numbers) == list(draws)
    assert all(job.numbers == sorted(job.numbers) and 1 <= len(job.numbers) <= slots for job in jobs)
    assert all(draws[number]["depth"] == job.fixed["depth"] for job in jobs for number in job.numbers)


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_a_bracket_that_is_filled_up_leaves_every_trial_in_its_slot(num_trials, more, slots):
    """So its bits stay, and what is kept of its job under the first trial's number goes on to be this job's."""
    rung = Rung(4, Plan(slots))
    before = plan.jobs_of(STATIC, rung, drawn(STATIC, num_trials))
    after = {job.numbers[0]: job for job in plan.jobs_of(STATIC, rung, drawn(STATIC, num_trials + more))}
    for job in before:
        assert after[job.numbers[0]].numbers[: len(job.numbers)] == job.numbers
        assert after[job.numbers[0]].fixed == job.fixed


def test_trials_of_any_width_share_a_program_that_has_the_widest():
    draws = drawn(toy.STUDY, 10)
    (job,) = plan.jobs_of(toy.STUDY, Rung(4, Plan(10)), draws)
    assert job == plan.Job({"hidden_units": (6, 4)}, list(range(10)))


def test_trials_at_own_widths_are_a_job_each_the_largest_first():
    draws = drawn(toy.STUDY, 10)
    jobs = plan.jobs_of(toy.STUDY, Rung(4, Plan(2, 2), own_widths=True), draws)
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


def test_trials_in_groups_are_a_job_each_and_their_widths_those_of_the_widest_of_the_group():
    draws = drawn(toy.STUDY, 20)
    for job in plan.jobs_of(toy.STUDY, Rung(4, Plan(2, 2), own_widths=True, groups=(2, 1)), draws):
        [number] = job.numbers
        first, _ = draws[number]["hidden_units"]  # of 2-6 and of 2-4
        assert job.fixed == {"hidden_units": (4 if first <= 4 else 6, 4)}
