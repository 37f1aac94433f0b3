"""Draws are pure functions of (seed, number, name); names are the same everywhere; each mistake is one line."""

import json
import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw1jax.search import space as space_
from hw1jax.search import space_text
from hw1jax.search.space import Choice, Float, Int

RATES = {
    "learning_rate": Float(1e-3, 1e-1, log=True),
    "l2": Float(1e-4, 1e-1, log=True),
    "optimizer": Choice("adam", "sgd", "rmsprop"),
}
DENSE = {"hidden_units": (Int(10, 50, width=True), Int(10, 50, width=True), Int(3, 30, width=True)), **RATES}
CONVOLUTIONS = {
    "channels": (Int(4, 10, width=True), Int(10, 15, width=True)),
    "hidden_units": (Int(20, 50, width=True), Int(20, 50, width=True)),
    **RATES,
}
# What older versions drew: {(seed, number): (dense units, channels, units after them, learning rate, l2, optimizer)}
DRAWN = {
    (0, 0): ((32, 16, 8), (9, 12), (37, 25), 0.08358688136518792, 0.00014278284282820964, "rmsprop"),
    (0, 1): ((25, 27, 29), (7, 13), (31, 32), 0.06506295707655006, 0.00039704431844444566, "adam"),
    (7, 24): ((42, 46, 8), (6, 14), (44, 47), 0.012971507266767593, 0.000930162549369625, "adam"),
    (123456, 3): ((40, 31, 10), (7, 13), (43, 36), 0.004783219726265545, 0.00044694829867016793, "sgd"),
}
# One hyperparameter of each kind.
EVERYTHING = {
    "units": (Int(3, 9, width=True), Int(2, 5, width=True)),
    "depth": Int(1, 3, static=True),
    "steps": Int(1, 1000, log=True),
    "rate": Float(1e-3, 1e-1, log=True),
    "dropout": (Float(0, 0.5), Float(0, 0.3)),
    "optimizer": Choice("adam", "sgd", "rmsprop"),
    "activation": Choice("relu", "tanh", static=True),
    "momentum": Choice(0, 0.9, 0.99),
    "heads": Choice(1, 2, 4),
    "bias": Choice(True, False),
}

names = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
seeds = st.integers(0, 2**32 - 1)
floats = st.floats(-1e6, 1e6)


@st.composite
def ints(draw):
    log, width = draw(st.booleans()), draw(st.booleans())
    low, step = draw(st.integers(1 if log or width else -(10**6), 10**4)), 1 if log else draw(st.integers(1, 9))
    return Int(low, low + draw(st.integers(0, 10**4 - max(low, 0))), log=log, width=width, step=step)


@st.composite
def reals(draw):
    if draw(st.booleans()):
        low = draw(st.floats(1e-9, 1))
        return Float(low, low * draw(st.floats(1, 1e6)), log=True)
    return Float(*sorted([draw(floats), draw(floats)]))


@st.composite
def choices(draw):
    tuples = st.lists(st.integers(1, 9), max_size=3).map(tuple)
    mixed = st.one_of(st.none(), names, st.integers(-9, 9), tuples, tuples.map(lambda t: (None, t)))
    kind = draw(st.sampled_from([names, floats, st.integers(-9, 9), st.booleans(), tuples, mixed]))
    values = draw(st.lists(kind, min_size=1, max_size=4, unique=True))
    among = draw(st.lists(st.sampled_from(values), min_size=1, unique=True))
    return Choice(*values, among=among, static=draw(st.booleans()))


one_range = st.one_of(ints(), reals(), choices())
several = st.one_of(
    st.lists(ints().map(lambda r: replace(r, width=False)), min_size=1, max_size=3),
    st.lists(reals(), min_size=1, max_size=3),
)
spaces = st.dictionaries(names, st.one_of(one_range, several.map(tuple), several), min_size=1, max_size=5)


@pytest.mark.parametrize(("seed", "number"), DRAWN)
def test_draws_from_the_homeworks_ranges_stay_what_they_are(seed, number):
    units, channels, own_units, learning_rate, l2, optimizer = DRAWN[seed, number]
    rest = {"learning_rate": learning_rate, "l2": l2, "optimizer": optimizer}
    assert space_.random_draw(DENSE, seed, number) == {"hidden_units": units, **rest}
    assert space_.random_draw(CONVOLUTIONS, seed, number) == {"channels": channels, "hidden_units": own_units, **rest}


@settings(max_examples=100, deadline=None)
@given(values=one_range, seed=seeds, number=st.integers(0, 10**6), name=names)
def test_a_draw_lies_in_its_range_and_is_the_same_each_time(values, seed, number, name):
    drawn = space_.sample(values, seed, number, name)
    assert drawn == space_.sample(values, seed, number, name)
    if isinstance(values, Choice):
        assert drawn in values.among
    else:
        assert type(drawn) is (int if isinstance(values, Int) else float)
        assert values.low <= drawn <= values.high


@settings(max_examples=50, deadline=None)
@given(space=spaces, seed=seeds, number=st.integers(0, 1000))
def test_a_draw_depends_on_no_other_hyperparameter(space, seed, number):
    whole = space_.random_draw(space, seed, number)
    for name, r in space.items():
        assert space_.random_draw({name: r}, seed, number) == {name: whole[name]}
        if not isinstance(r, Choice) and isinstance(whole[name], tuple):  # nor on how many layers follow
            assert space_.random_draw({name: r[:1]}, seed, number) == {name: whole[name][:1]}


@settings(max_examples=50, deadline=None)
@given(space=spaces, seed=seeds)
def test_spaces_are_accepted_and_come_back_from_json_as_their_draws_do_and_have_their_columns(space, seed):
    space_.check(space)
    text = json.dumps(space_text.to_json(space), allow_nan=False)
    expected = {name: tuple(r) if isinstance(r, list) else r for name, r in space.items()}
    assert space_text.from_json(space, json.loads(text)) == expected
    draw = space_.random_draw(space, seed, 0)
    flat = space_.flatten(draw, space)
    assert list(flat) == list(space_.columns(space))
    assert space_.unflatten(space, flat) == draw
    text = json.dumps(space_text.draw_to_json(draw), allow_nan=False)
    found = space_text.draw_from_json(space, json.loads(text))
    assert found == draw
    assert list(map(type, space_.flatten(found, space).values())) == list(map(type, flat.values()))


# Distributions.


def deviation(values):
    """The largest distance between the distribution of [number] values and the uniform one on 0 to 1."""
    return np.abs(np.sort(values) - (np.arange(len(values)) + 0.5) / len(values)).max()


def samples(r, num=2000):
    return np.array([space_.sample(r, 0, number, "x") for number in range(num)])


def test_draws_differ_between_seeds_numbers_and_names():
    r = Float(0, 1)
    drawn = [space_.sample(r, seed, number, name) for seed in range(3) for number in range(3) for name in ("a", "b")]
    assert len(set(drawn)) == len(drawn)


def test_floats_are_uniform_between_their_bounds_or_the_logarithms_of_these():
    for drawn in (
        (samples(Float(-2, 6)) + 2) / 8,
        samples(Float(0.0, 1e-6)) / 1e-6,
        (np.log10(samples(Float(1e-4, 1e2, log=True))) + 4) / 6,
    ):  # Kolmogorov and Smirnov: the deviation is below 1.95 / sqrt(n) in 999 of 1000
        assert deviation(drawn) < 1.95 / math.sqrt(len(drawn))


def test_ints_on_a_logarithmic_scale_have_as_many_of_each_octave_and_reach_both_ends():
    drawn = samples(Int(1, 255, log=True))  # an octave holds 2^n to 2^(n + 1) - 1
    counts = np.bincount(np.log2(drawn).astype(int), minlength=8)
    assert len(counts) == 8
    assert np.abs(counts - len(drawn) / 8).max() < 5 * math.sqrt(len(drawn) / 8)
    shares = np.bincount(samples(Int(2, 4, log=True), 300))[2:] / 300
    np.testing.assert_allclose(shares, np.log([3 / 2, 4 / 3, 5 / 4]) / np.log(5 / 2), atol=0.1)


def test_ints_and_choices_take_every_value_that_is_searched_and_no_other():
    for values, expected in (
        (Int(2, 4), {2, 3, 4}),
        (Int(3, 3, log=True), {3}),
        (Float(0.1, 0.1, log=True), {0.1}),
        (Choice("a", "b", "c", "d", among=("d", "b")), {"b", "d"}),
    ):
        assert set(samples(values, 50).tolist()) == expected
    assert samples(Choice(True, False), 50).dtype == bool


# Columns and arrays.


def test_columns_number_the_layers_of_a_name_with_several_ranges():
    assert " ".join(space_.columns(CONVOLUTIONS)) == (
        "channels_1 channels_2 hidden_units_1 hidden_units_2 learning_rate l2 optimizer"
    )
    assert space_.columns(CONVOLUTIONS)["channels_2"] == Int(10, 15, width=True)
    assert space_.columns({"units": [Int(1, 2)]}) == {"units_1": Int(1, 2)}  # a list is as good as a tuple


def test_arrays_have_a_leading_trial_axis_and_the_types_of_what_is_declared():
    draws = [space_.random_draw(EVERYTHING, 0, number) for number in range(4)]
    arrays = space_.as_arrays(EVERYTHING, draws)
    types = {"units": "int32", "steps": "int32", "rate": "float32", "dropout": "float32"}
    types |= {"optimizer": "int32", "momentum": "float32", "heads": "int32", "bias": "bool"}
    assert {name: array.dtype.name for name, array in arrays.items()} == types
    for name in set(types) - {"optimizer"}:
        np.testing.assert_array_equal(arrays[name], np.array([draw[name] for draw in draws], types[name]), strict=True)
    assert arrays["optimizer"].tolist() == [("adam", "sgd", "rmsprop").index(draw["optimizer"]) for draw in draws]


def test_types_depend_on_the_space_alone_whatever_is_drawn():
    """Otherwise a trial that draws 0 of 0, 0.5 would be another program, and a different computation."""
    space = {"momentum": Choice(0, 0.5), "dropout": Float(0, 1), "mixed": (Int(0, 3), Float(0, 1))}
    arrays = space_.as_arrays(space, [{"momentum": 0, "dropout": 0, "mixed": (1, 1)}])
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    empty = space_.as_arrays(EVERYTHING, [])
    assert empty["units"].shape == (0, 2)
    assert empty["bias"].dtype == bool


def test_a_choice_among_names_is_its_index_in_the_declaration_and_one_among_numbers_the_number():
    """Also where fewer are searched."""
    rule, size = Choice("adam", "sgd", "rmsprop"), Choice(8, 16, 32)
    space = {
        "rule": space_text.narrowed(rule, among=["rmsprop", "sgd"]),
        "size": space_text.narrowed(size, among=[32]),
        "kinds": (space_text.narrowed(rule, among=["rmsprop"]), Choice("a", "b")),
    }
    draws = [{"rule": name, "size": 32, "kinds": ("rmsprop", "a")} for name in ("sgd", "rmsprop", "sgd")]
    arrays = space_.as_arrays(space, draws)
    np.testing.assert_array_equal(arrays["rule"], np.int32([1, 2, 1]), strict=True)
    np.testing.assert_array_equal(arrays["size"], np.int32([32] * 3), strict=True)
    np.testing.assert_array_equal(arrays["kinds"], np.int32([[2, 0]] * 3), strict=True)


def test_steps_of_an_int_reach_the_values_that_optunas_reach():
    for low, high, step in ((20, 60, 20), (1, 10, 4), (-7, 7, 5), (3, 4, 9)):
        expected = optuna.distributions.IntDistribution(low, low + (high - low) // step * step, step=step)
        r = Int(low, high, step=step)
        assert r.high == expected.high
        assert set(samples(r, 100).tolist()) == set(r.values)
        assert list(r.values) == list(range(low, high + 1, step))
    assert space_.num_programs({"a": Int(10, 50, step=20, static=True)}) == 3


def test_widths_of_some_step_are_as_wide_as_the_widest_of_their_group():
    space = {"units": Int(10, 50, step=10, width=True)}
    found = [space_.widened(space, {"units": units}, [2])["units"] for units in space["units"].values]
    assert found == [30, 30, 30, 50, 50]


def test_scalars_of_numpy_become_pythons():
    r = Choice(np.int64(1), np.float32(0.5), np.bool_(True), np.str_("b"), (np.int8(2), None), among=[np.int64(1)])
    assert list(map(repr, r.values)) == ["1", "0.5", "True", "'b'", "(2, None)"]
    assert list(map(type, [*r.values, *r.among])) == [int, float, bool, str, tuple, int]
    whole, real = Int(np.int64(1), np.uint8(9), step=np.int32(2)), Float(np.float32(0.5), np.float64(1))
    assert list(map(type, (whole.low, whole.high, whole.step, real.low, real.high))) == [int] * 3 + [float] * 2
    space_.check({"whole": whole, "real": real})


def test_a_choice_among_what_arrays_cannot_hold_is_its_index_and_whole_in_fixed():
    space = {"layers": Choice((64,), (64, 32), static=True), "rate": Choice(None, 0.1), "sizes": Choice((1,), (2, 3))}
    draws = [{"layers": (64, 32), "rate": rate, "sizes": sizes} for rate, sizes in ((0.1, (1,)), (None, (2, 3)))]
    arrays = space_.as_arrays(space, draws)
    np.testing.assert_array_equal(arrays["rate"], np.int32([1, 0]), strict=True)
    np.testing.assert_array_equal(arrays["sizes"], np.int32([0, 1]), strict=True)
    assert space_.fixed(space, draws[0], widest=True) == {"layers": (64, 32)}
    assert [draw["layers"] for draw in space_.static_draws(space)] == [(64,), (64, 32)]
    assert len({space_.key_of({"a": value}) for value in ((1,), (1.0,), (True,))}) == 3


def test_texts_of_ranges_are_read_back():
    for r in (
        Int(20, 60, step=20, static=True),
        Int(1, 9),
        Float(0.5, 2.0),
        Choice(None, (64,), (64, 32), True, "a b", static=True, among=[(64, 32), None, "a b"]),
    ):
        if not isinstance(r, Choice):
            assert space_text.from_text(replace(r, low=r.low - 1, high=r.high + 40), str(r)) == r
            continue
        whole, texts = Choice(*r.values, static=True), list(map(str, r.among))
        assert space_text.among(whole, texts) == space_text.from_text(whole, ",".join(texts)) == r
        assert space_text.among(whole, ["(64,32)"]).among == ((64, 32),)
    assert space_text.from_text(Int(0, 90, step=30), "10-30") == Int(10, 30, step=30) == Int(10, 10, step=30)


def test_narrowing_keeps_what_is_declared():
    assert space_text.narrowed(Int(1, 9, log=True, width=True), 2, 3) == Int(2, 3, log=True, width=True)
    assert space_text.narrowed(Float(1, 9, log=True), 2, 3) == Float(2, 3, log=True)
    assert space_text.narrowed(Choice(1, 2, static=True), among=[2]) == Choice(1, 2, static=True, among=[2])


# Programs.


def test_static_hyperparameters_are_in_fixed_and_not_in_the_arrays():
    draw = space_.random_draw(EVERYTHING, 3, 1)
    assert {"depth", "activation"}.isdisjoint(space_.as_arrays(EVERYTHING, [draw]))
    own = space_.fixed(EVERYTHING, draw, widest=False)
    assert own == {name: draw[name] for name in ("depth", "activation", "units")}
    assert space_.fixed(EVERYTHING, draw, widest=True) == own | {"units": (9, 5)}


def test_trials_share_a_program_where_what_is_fixed_is_the_same():
    draws = [space_.random_draw(EVERYTHING, 0, number) for number in range(100)]
    padded = {space_.key_of(space_.fixed(EVERYTHING, draw, widest=True)) for draw in draws}
    assert len(padded) == space_.num_programs(EVERYTHING) == 3 * 2
    assert len({space_.key_of(space_.fixed(EVERYTHING, draw, widest=False)) for draw in draws}) > 50
    assert space_.num_programs(DENSE) == 1
    assert space_.num_programs({"a": (Int(1, 3, static=True), Int(0, 1, static=True))}) == 3 * 2
    assert space_.num_programs({"a": Choice(1, 2, 3, static=True, among=[1, 3])}) == 2
    # Equal numbers of another type are another program: 1 == 1.0 == True.
    assert len({space_.key_of({"a": value}) for value in (1, 1.0, True)}) == 3


@given(st.integers(1, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_a_width_is_as_wide_as_the_widest_of_its_group(num_values, data):
    """The groups are as many as asked for, of as many values but for one, and the last has the widest."""
    num_groups = data.draw(st.integers(1, num_values))
    space = {"units": (Int(7, 6 + num_values, width=True),), "n": Int(1, 2, width=True), "rate": Float(1, 2)}
    groups = {}
    for value in range(7, 7 + num_values):
        draw = space_.widened(space, {"units": (value,), "n": 1, "rate": 1.5}, [num_groups, 1])
        assert draw["n"] == 2 and draw["rate"] == 1.5
        groups.setdefault(draw["units"][0], []).append(value)
    assert len(groups) == num_groups and max(groups) == 6 + num_values
    assert all(top == max(values) for top, values in groups.items())
    sizes = set(map(len, groups.values()))
    assert max(sizes) - min(sizes) <= 1
    narrowed = [(6 + num_values - top) * len(values) for top, values in groups.items()]
    expected = sum(narrowed) / num_values / max(1, num_values - 1)
    assert space_.share_narrowed(num_values, num_groups) == pytest.approx(expected, abs=1e-12)


def test_the_widest_draw_has_the_widest_layers_and_the_first_of_all_else():
    assert space_.widths(EVERYTHING) == ["units"]
    first = {"depth": 1, "steps": 1, "rate": 1e-3, "dropout": (0, 0), "optimizer": "adam", "activation": "relu"}
    first |= {"momentum": 0, "heads": 1, "bias": True}
    assert space_.widest(EVERYTHING) == {"units": (9, 5), **first}
    assert space_.narrowest(EVERYTHING, {"units": (7, 7), **first}) == {"units": (3, 2), **first}
    assert space_.widest({"a": Choice("b", "c", among=["c"])}) == {"a": "c"}


# Words, mistakes and files.


def test_ranges_and_draws_are_told_in_a_few_words():
    assert str(Int(1, 9)) == "1-9"
    assert str(Float(1e-4, 0.1, log=True)) == "0.0001-0.1"
    assert str(Choice("a", 2, among=[2, "a"])) == "2, a"
    draw = {"hidden_units": (45, 21), "l2": 0.00031234, "optimizer": "adam"}
    assert space_text.in_words(draw) == "hidden_units 45 21, l2 0.0003123, optimizer adam"


UP, KINDS = (
    "a=: a range goes from a low number",
    "a= must be a choice of names, numbers, truth values, None or tuples",
)
BOTH, STEP = "a= must be a choice among numbers or among truth values, got both", "a=: step= must be a whole number of"
RANGE = "must be an Int, a Float, a Choice or a tuple of them"
NAN, INFINITY = float("nan"), float("inf")
BAD = [
    ([Int(1, 2)], "space= must be a dict of ranges by name, got list"),
    ({"learning rate": Int(1, 2)}, "space: 'learning rate' is no name"),
    ({"rate": 0.1}, f"rate= {RANGE}, got float"),
    ({"units": ()}, "units= needs a range for each layer, for example units= 10-50 10-50"),
    ({"a": (Int(1, 2), Int(1, 2, static=True))}, "a= is static in some of its ranges and not in others"),
    ({"a": (Int(1, 2, width=True), Float(1, 2))}, "a= is a width in some of its ranges and not in others"),
    ({"a": Int(1, 2, static=True, width=True)}, "a= is static and a width"),
    ({"a": (Int(1, 2),), "a_1": Int(1, 2)}, "space: two hyperparameters have the same column"),
    ({"a": Int(2, 1)}, f"{UP} up, got 2-1"),
    ({"a": Float(0, 1, log=True)}, f"{UP} above 0 up, got 0-1"),
    ({"a": Int(0, 1, log=True)}, f"{UP} of at least 1 up, got 0-1"),
    ({"a": Int(0, 1, width=True)}, f"{UP} of at least 1 up, got 0-1"),
    ({"a": Float(NAN, 1)}, f"{UP} up, got nan-1"),
    ({"a": Float(0, INFINITY)}, f"{UP} up, got 0-inf"),
    ({"a": Float(-INFINITY, 0)}, f"{UP} up, got -inf-0"),
    ({"a": Int(1.0, 2)}, "a= must have whole numbers as bounds, got 1.0 and 2"),
    ({"a": Int(False, True)}, "a= must have whole numbers as bounds, got False and True"),
    ({"a": Float("1", "2")}, "a= must have numbers as bounds, got '1' and '2'"),
    ({"a": (Int(1, 10_001, width=True),)}, "a=: a layer has at most 10000 units, got 1-10001"),
    ({"a": Int(0, 2**31)}, "a=: whole numbers lie within"),
    ({"a": Int(-(2**31), 0)}, "a=: whole numbers lie within"),
    ({"a": Choice()}, "a= needs at least one of , got none"),
    ({"a": Choice("b", "c", among=["d"])}, "a= needs at least one of b, c, got d"),
    *[({"a": choice}, KINDS) for choice in (Choice(["b"]), Choice(b"b"), Choice((1, ["b"])), Choice(np.float32))],
    ({"a": Choice(True, 0)}, BOTH),
    ({"a": Choice(1, 1.0)}, "a= has a value twice: 1, 1.0"),
    ({"a": Choice(None, (1,), (True,))}, "a= has a value twice: None, (1,), (True,)"),
    ({"a": Choice(None, "None")}, "a= has two values with the same text: None, None"),
    ({"a": Choice("(1, 2)", (1, 2))}, "a= has two values with the same text"),
    ({"a": Choice(1.0, NAN)}, "a=: numbers must be finite"),
    ({"a": Choice(None, (1.0, NAN))}, "a=: numbers must be finite"),
    *[({"a": Int(1, 9, step=step)}, STEP) for step in (0, -1, 1.5, True, None)],
    ({"a": Int(1, 9, log=True, step=2)}, "a=: step= doesn't go with log=True"),
    ({"a": Choice(1, 2**31)}, "a=: numbers must be finite, whole ones within"),
]


@pytest.mark.parametrize(("space", "message"), BAD)
def test_a_wrong_space_is_refused_in_one_line_that_names_the_hyperparameter(space, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        space_.check(space)
    text = str(caught.value)
    assert text.startswith(message)
    assert len(text.splitlines()) == 1
    assert len(text) < 200


def test_json_of_a_space_says_what_can_be_drawn():
    space = EVERYTHING | {"optimizer": Choice("adam", "sgd", among=["sgd"])}
    assert {name: space_text.to_json(space)[name] for name in ("units", "steps", "rate", "optimizer", "bias")} == {
        "units": [{"low": 3, "high": 9}, {"low": 2, "high": 5}],
        "steps": {"low": 1, "high": 1000, "log": True},
        "rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "optimizer": {"among": ["sgd"]},
        "bias": {"among": [True, False]},
    }


def test_a_space_or_draw_from_json_may_have_other_ranges_and_more_layers():
    declared = {"units": (Int(3, 9, width=True),), "rate": Float(0.1, 1, log=True), "rule": Choice("a", "b")}
    values = {"units": [{"low": 1, "high": 2}] * 3, "rate": {"low": 0.2, "high": 0.3}, "rule": {"among": ["b"]}}
    assert space_text.from_json(declared, values) == {
        "units": (Int(1, 2, width=True),) * 3,
        "rate": Float(0.2, 0.3, log=True),
        "rule": Choice("a", "b", among=["b"]),
    }
    for units in ((100,), (7, 8, 9)):
        draw = space_text.draw_from_json(declared, {"units": list(units), "rate": 7, "rule": "a"})
        assert draw == {"units": units, "rate": 7.0, "rule": "a"}
        np.testing.assert_array_equal(space_.as_arrays(declared, [draw])["units"], np.int32([units]), strict=True)


UNITS, REAL = [{"low": 1, "high": 2}], {"low": 1, "high": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "hyperparameters NoneType, expected"),
        ({"units": [], "rate": REAL, 7: 1}, r"hyperparameters \['7', 'rate', 'units'\], expected"),
        ({"units": REAL, "rate": REAL}, "units is no list"),
        ({"units": UNITS, "rate": UNITS}, "rate is a list"),
        ({"units": [7], "rate": REAL}, "units has no low and high"),
        ({"units": UNITS, "rate": {"low": 2, "high": 1}}, "rate=: a range goes from a low number"),
        ({"units": [{"low": "1", "high": 2}], "rate": REAL}, "units= must have whole numbers"),
        ({"units": [], "rate": REAL}, "units= needs a range for each layer"),
    ],
)
def test_what_is_no_space_is_refused(values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        space_text.from_json({"units": (Int(1, 2),), "rate": Float(1, 2)}, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "hyperparameters .*'more'.*, expected .*'units'"),
        ({"units": 3}, "units is no list"),
        ({"units": [3, True]}, "units can't be True"),
        ({"units": [3, 2**31]}, "units can't be 2147483648"),
        ({"depth": 1.0}, "depth can't be 1.0"),
        ({"depth": [1]}, "depth is a list"),
        ({"rate": "0.1"}, "rate can't be 0.1"),
        ({"rate": NAN}, "rate can't be nan"),
        ({"optimizer": "adagrad"}, "optimizer can't be adagrad"),
        ({"optimizer": "x" * 1000}, "optimizer can't be x{40}$"),
        ({"heads": True}, "heads can't be True"),
        ({"bias": 1}, "bias can't be 1"),
    ],
)
def test_what_is_no_draw_is_refused(change, message):
    values = space_text.draw_to_json(space_.random_draw(EVERYTHING, 0, 0))
    with pytest.raises(ValueError, match=message):
        space_text.draw_from_json(EVERYTHING, values | change)
    for values in (None, [], "draw", {}, {"units": [3, 4]}):
        with pytest.raises(ValueError, match="^hyperparameters .*, expected"):
            space_text.draw_from_json(EVERYTHING, values)
