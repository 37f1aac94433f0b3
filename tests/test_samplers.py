"""Any sampler of Optuna's draws the same trials however often the search is stopped, extended or repeated."""

import math
import threading
import warnings
from importlib.util import find_spec

import numpy as np
import optuna
import pytest
from optuna import samplers as those
from optuna.trial import TrialState
from studies import LINE, TOY

import hw1jax as hw
from hw1jax.search import given, optuna_search, seeding
from hw1jax.search import space as space_
from hw1jax.search.given import Given
from hw1jax.search.samplers import suggest

BRACKET = 4

# Some without a seed: it is derived from seed=.
SAMPLERS = {
    "tpe": lambda: those.TPESampler(multivariate=True, n_startup_trials=3),
    "tpe, a group": lambda: those.TPESampler(multivariate=True, group=True, constant_liar=True, seed=1),
    "random": lambda: those.RandomSampler(),
    "quasi-random": lambda: those.QMCSampler(),
    "scrambled": lambda: those.QMCSampler(scramble=True, qmc_type="halton", warn_asynchronous_seeding=False),
    "genetic": lambda: those.NSGAIISampler(population_size=BRACKET),
    "evolution": lambda: those.CmaEsSampler(n_startup_trials=2, popsize=5, warn_independent_sampling=False),
    "process": lambda: those.GPSampler(n_startup_trials=3),
    "part": lambda: those.PartialFixedSampler({"l2": 0.01}, those.TPESampler(n_startup_trials=2, seed=2)),
    "function": lambda: lambda seed: those.TPESampler(n_startup_trials=2, seed=seed),
}
NEEDS = {"evolution": "cmaes", "process": "torch"}
EACH = [
    pytest.param(
        make,
        id=name,
        marks=[
            pytest.mark.skipif(
                name in NEEDS and find_spec(NEEDS[name]) is None, reason=f"Optuna's sampler needs {NEEDS.get(name)}"
            ),
            *([pytest.mark.slow] if name == "process" else []),  # which takes a second to draw a trial
        ],
    )
    for name, make in SAMPLERS.items()
]


def seeded(sampler, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return seeding.seeded(sampler() if not hasattr(sampler, "sample_relative") else sampler, seed)


def loss_of(draw):
    return abs(math.log10(draw["learning_rate"]) + 2) + 0.1 * draw["hidden_units"][0]


def full(draws):
    return {number: {"loss": np.full((1, 4), loss_of(draw))} for number, draw in draws.items()}


def halved(draws):
    """As training with halving: the better half of a bracket has four epochs, the others two; number 2 diverges."""
    in_order = sorted(draws, key=lambda number: loss_of(draws[number]))
    lengths = {number: 4 if place < len(draws) / 2 else 2 for place, number in enumerate(in_order)}
    losses = {number: np.nan if number == 2 else loss_of(draws[number]) for number in draws}
    return {n: {"loss": losses[n] + 0.01 * np.arange(4.0)[None, ::-1][:, : lengths[n]]} for n in draws}


def search(folder, sampler, num_trials=14, study=TOY, train=full, **more):
    """The draws of a search, from where its folder is."""
    folder.mkdir(exist_ok=True)
    name, made = seeded(sampler)
    opened = optuna_search.open_storage(folder / "journal.log", study, name, 0, Given(made, **more))
    brackets = [range(first, min(first + BRACKET, num_trials)) for first in range(0, num_trials, BRACKET)]
    found = list(optuna_search.search(opened, study, train, brackets=brackets, num_epochs=4))
    return [trial.draw for bracket in found for trial in bracket]


@pytest.mark.parametrize("sampler", EACH)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_stopped_and_an_extended_search_have_the_trials_of_one_that_was_left_alone(tmp_path, sampler):
    whole = search(tmp_path / "whole", sampler)
    assert len({str(draw) for draw in whole}) == 14
    first = search(tmp_path / "longer", sampler, num_trials=6)
    assert search(tmp_path / "longer", sampler) == whole and first == whole[:6]

    def stopped(draws):
        if 9 in draws:
            raise KeyboardInterrupt
        return full(draws)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "stopped", sampler, train=stopped)
    assert search(tmp_path / "stopped", sampler) == whole


@pytest.mark.parametrize("sampler", EACH)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trials_are_those_of_optunas_own_ask_and_tell(tmp_path, sampler):
    """Scores, pruned and failed trials all count, and so does the state that a sampler keeps in its study."""
    study = optuna.create_study(sampler=seeded(sampler)[1]())
    expected = []
    for _ in range(4):
        trials = [study.ask() for _ in range(BRACKET)]
        draws = {trial.number: suggest(trial, TOY) for trial in trials}
        expected += draws.values()
        for trial, values in zip(trials, halved(draws).values(), strict=True):
            mean = values["loss"][0]
            for i, value in enumerate(mean if np.isfinite(mean).all() else []):
                trial.report(value, i + 1)
            state = TrialState.PRUNED if len(mean) == 2 else TrialState.COMPLETE
            state = state if np.isfinite(mean).all() else TrialState.FAIL
            study.tell(trial, mean[-1] if state == TrialState.COMPLETE else None, state)
    assert search(tmp_path, sampler, num_trials=16, train=halved) == expected


def test_a_sampler_learns_from_the_values_of_pruned_trials(tmp_path):
    def pruned(sign):
        return lambda draws: {n: {"loss": np.full((1, 2), sign * loss_of(draw))} for n, draw in draws.items()}

    tpe = those.TPESampler(n_startup_trials=2, seed=0)
    one, other = (search(tmp_path / str(sign), tpe, train=pruned(sign)) for sign in (1, -1))
    assert one[:BRACKET] == other[:BRACKET] and one[BRACKET:] != other[BRACKET:]


def test_a_sampler_without_a_seed_follows_that_of_the_search_and_one_with_a_seed_its_own():
    for name in ("tpe", "random", "scrambled", "genetic", "function"):
        assert seeded(SAMPLERS[name])[0] == seeded(SAMPLERS[name])[0] != seeded(SAMPLERS[name], 1)[0]
    fixed = those.TPESampler(seed=3)
    assert seeded(fixed)[0] == seeded(fixed, 1)[0] != seeded(those.TPESampler(seed=4))[0]
    assert seeded(those.TPESampler(seed=3, n_startup_trials=2))[0].startswith("TPESampler(n_startup_trials=2) ")
    own = those.RandomSampler()
    assert seeded(own)[1]() is not own and own._rng._rng is None, "the given one is left as it is"


class Uncopied(those.RandomSampler):
    def __init__(self, seed):
        super().__init__(seed)
        self.lock = threading.Lock()


def test_a_sampler_that_cant_be_copied_is_made_by_a_function(tmp_path):
    with pytest.raises(
        TypeError, match=r"^sampler= can't be copied \(cannot pickle '_thread.lock' object\): give a func"
    ):
        seeded(Uncopied(0))
    assert search(tmp_path / "own", lambda: lambda seed: Uncopied(seed)) == search(
        tmp_path / "usual", lambda: those.RandomSampler(0)
    )


def test_a_grid_is_gone_through_and_ends_the_search(tmp_path):
    space = {"units": [1, 2, 3], "learning_rate": [0.01, 0.1]}
    flat = {"loss": np.ones((1, 4))}
    for num_trials in (4, 20):
        draws = search(
            tmp_path,
            lambda: those.GridSampler(space),
            num_trials,
            study=LINE,
            train=lambda draws: dict.fromkeys(draws, flat),
        )
        assert len(draws) == min(num_trials, 8), "whole brackets, until all six have been tried"
    assert {(draw["units"], draw["learning_rate"]) for draw in draws} == {
        (units, rate) for units in space["units"] for rate in space["learning_rate"]
    }


def test_a_grid_that_leaves_the_ranges_is_refused(tmp_path):
    grid = those.GridSampler({"units": [1, 4], "learning_rate": [0.01]})
    with pytest.warns(UserWarning, match="out of range"), pytest.raises(ValueError) as caught:
        search(tmp_path, grid, study=LINE)
    assert str(caught.value) == "sampler= draws units = 4, which is not in 1-3"


class Forgetful(those.BaseSampler):
    """Draws something else in each process."""

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return those.RandomSampler().sample_independent(study, trial, param_name, param_distribution)


def test_a_sampler_that_draws_others_than_before_is_refused_in_one_line(tmp_path):
    search(tmp_path, Forgetful(), num_trials=4)
    with pytest.raises(ValueError, match=r"^sampler= draws \{[^\n]*as trial 0, where the search has \{[^\n]*out=$"):
        search(tmp_path, Forgetful(), num_trials=8)


# Trials that are given.

FIRST = {"hidden_units": (5, 3), "learning_rate": np.float64(0.01), "l2": 1e-3, "optimizer": "sgd"}
PART = {"optimizer": "adam", "learning_rate": 0.1}


def test_given_trials_are_the_first_ones_and_the_sampler_draws_what_they_lack(tmp_path):
    opened = optuna_search.open_storage(
        tmp_path / "journal.log", TOY, "random", 7, Given(None, given.enqueued(TOY.space, [FIRST, PART, {}]))
    )
    (bracket,) = optuna_search.search(opened, TOY, full, brackets=[range(5)], num_epochs=4)
    expected = [space_.random_draw(TOY.space, 7, number) for number in range(5)]
    expected[0] = {**FIRST, "learning_rate": 0.01}
    expected[1] |= PART
    assert repr([trial.draw for trial in bracket]) == repr(expected), "the types as well"


@pytest.mark.parametrize("name", ["tpe", "genetic", "quasi-random", "part"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_searches_with_given_trials_are_resumed_exactly(tmp_path, name):
    first = {"enqueued": given.enqueued(TOY.space, [FIRST] * 3 + [PART] * 3)}  # more than a bracket
    whole = search(tmp_path / "whole", SAMPLERS[name], **first)
    assert whole[:3] == [FIRST] * 3 and all(draw.items() >= PART.items() for draw in whole[3:6])
    assert len({draw["hidden_units"] + (draw["l2"],) for draw in whole[3:]}) > 5, "the rest is drawn"
    search(tmp_path / "longer", SAMPLERS[name], num_trials=5, **first)
    assert search(tmp_path / "longer", SAMPLERS[name], **first) == whole
    assert search(tmp_path / "without", SAMPLERS[name])[6:] != whole[6:], "the sampler has learned from them"


@pytest.mark.parametrize(
    "enqueue, message",
    [
        ([{"rate": 0.1}], "enqueue= has 'rate', which is no hyperparameter; there are hidden_units, learning_rate"),
        ([FIRST, {"l2": 1.0}], "enqueue= has l2 = 1.0, which is not in 0.0001-0.1"),
        ([{"l2": float("nan")}], "enqueue= has l2 = nan, which is not in 0.0001-0.1"),
        ([{"l2": True}], "enqueue= has l2 = True, which is not in 0.0001-0.1"),
        ([{"l2": (1e-3, 1e-3)}], "enqueue= has l2 = (0.001, 0.001), which must be one value"),
        ([{"hidden_units": 3}], "enqueue= has hidden_units = 3, which must be a tuple of 2"),
        ([{"hidden_units": (3,)}], "enqueue= has hidden_units = (3,), which must be a tuple of 2"),
        ([{"hidden_units": (3, 7)}], "enqueue= has hidden_units_2 = 7, which is not in 2-4"),
        ([{"hidden_units": (3.0, 3)}], "enqueue= has hidden_units_1 = 3.0, which is not in 2-6"),
        ([{"optimizer": "adamw"}], "enqueue= has optimizer = 'adamw', which is not in adam, sgd, rmsprop"),
        (FIRST, "enqueue= must be a list of dicts"),
        ([3], "enqueue= must be a list of dicts"),
        (3, "enqueue= must be a list of dicts"),
    ],
)
def test_given_values_outside_of_the_ranges_are_told_in_one_line(tmp_path, enqueue, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        hw.run_study(TOY, out=tmp_path / "out", enqueue=enqueue)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_choice_of_tuples_steps_and_numbers_of_another_type_are_found():
    space = {"kernel": hw.Choice((3, 3), None, 2), "units": hw.Int(2, 8, step=3), "flag": hw.Choice(True, False)}
    draw = {"kernel": (3, 3), "units": np.int64(5), "flag": np.bool_(True)}
    assert repr(given.enqueued(space, [draw, {"kernel": None}, {"kernel": 2.0}])) == repr(
        [{"kernel": (3, 3), "units": 5, "flag": True}, {"kernel": None}, {"kernel": 2}]
    )
    for wrong in ({"units": 6}, {"flag": 1}, {"kernel": True}):
        with pytest.raises(ValueError, match="which is not in"):
            given.enqueued(space, [wrong])


# Studies.

SETTINGS = {"num_epochs": 2, "widths": "padded", "num_devices": 1}


def test_a_study_takes_a_sampler_and_its_folder_belongs_to_it(tmp_path):
    def searched(name, sampler, num_trials):
        return hw.run_study(LINE, out=tmp_path / name, sampler=sampler, num_trials=num_trials, **SETTINGS)

    whole = searched("whole", those.TPESampler(seed=0, n_startup_trials=3), 10)
    searched("longer", those.TPESampler(seed=0, n_startup_trials=3), 3)
    longer = searched("longer", those.TPESampler(seed=0, n_startup_trials=3), 10)
    assert (longer.folder / "trials.csv").read_bytes() == (whole.folder / "trials.csv").read_bytes()
    name = longer.record["config"]["sampler"]
    assert name.startswith("TPESampler(n_startup_trials=3) ")
    assert [bracket["num_trials"] for bracket in longer.record["config"]["plan"]["brackets"]] == [4]
    for other in (
        those.TPESampler(seed=1, n_startup_trials=3),
        those.TPESampler(seed=0),
        those.RandomSampler(seed=0),
        "random",
    ):
        with pytest.raises(ValueError) as caught:
            searched("longer", other, 10)
        assert f"holds a search with sampler = {name}, not {other if other == 'random' else ''}" in str(caught.value)
        assert "give the old settings" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sampler, got",
    [(3, "int"), (those.TPESampler, "the class TPESampler"), (None, "NoneType"), (lambda seed: "tpe", "str")],
)
def test_what_is_no_sampler_is_refused_in_one_line(tmp_path, sampler, got):
    with pytest.raises(TypeError) as caught:
        hw.run_study(LINE, out=tmp_path / "out", sampler=sampler, **SETTINGS)
    message = "sampler= must be random, tpe, a sampler of Optuna's or a function seed -> sampler, got "
    assert str(caught.value) == message + got
    assert not (tmp_path / "out").exists()


def test_several_objectives_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^maximize= must be one of loss, got \('loss', 'accuracy'\)$"):
        hw.run_study(hw.Study(**(vars(LINE) | {"maximize": ("loss", "accuracy")})), out=tmp_path / "out")


def test_a_studys_given_trials_come_first_and_belong_to_its_folder(tmp_path):
    best = {"units": 2, "learning_rate": 0.1}
    results = hw.run_study(LINE, out=tmp_path, enqueue=[best, {"units": 1}], **SETTINGS)
    assert results.trials["units"][:2].tolist() == [2, 1] and results.trials["learning_rate"][0] == 0.1
    drawn = space_.random_draw(LINE.space, 0, 1)["learning_rate"], space_.random_draw(LINE.space, 0, 2)["learning_rate"]
    assert tuple(results.trials["learning_rate"][1:]) == drawn
    table = (tmp_path / "trials.csv").read_bytes()
    same = [best, {"units": np.int32(1)}]
    again = hw.run_study(LINE, out=tmp_path, enqueue=same, **SETTINGS)
    assert (again.folder / "trials.csv").read_bytes() == table
    for other in ([best], []):
        with pytest.raises(ValueError, match=r"holds a search with enqueue = \[[^\n]*give the old settings[^\n]*out=$"):
            hw.run_study(LINE, out=tmp_path, enqueue=other, **SETTINGS)
