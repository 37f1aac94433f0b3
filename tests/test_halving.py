"""Successive halving: which trials continue, with which state; histories don't change; searches resume.

The bits of a history depend on the shape of its program. So survivors are compared bit for bit where each trial has its
own program on all rungs (one slot, or own widths), and in float64 elsewhere.
"""

import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optuna.trial import TrialState
from processes import lasting
from studies import DEEP, TOY_DATA

from hw1jax import Halving, run
from hw1jax.core import population
from hw1jax.core.losses import squared_error
from hw1jax.core.population import Plan
from hw1jax.core.tasks import Task
from hw1jax.results import evaluation
from hw1jax.results.trained_model import load_model
from hw1jax.run import run_study
from hw1jax.search import jobs, networks, optuna_search, rungs, study, study_data
from hw1jax.search import space as space_
from hw1jax.search.networks import Networks
from hw1jax.search.observer import Observer
from hw1jax.search.plan import Rung
from hw1jax.search.space import Float, Int
from hw1jax.search.study import Study

NUM_TRIALS, ENDS = 9, [1, 3, 9]
NARROW = 1  # a seed where a trial narrower than others goes on, so that compacting to own widths cuts something off


def task_with(optimizer):
    """fixed -> a padded net of one hidden layer, soon traced and compiled, with this optimizer."""

    def task(fixed):
        unit = np.arange(fixed["units"], dtype=np.int32)  # tasks are kept, whichever types JAX computes in by then

        def init(key, h):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, unit)
            drawn = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
            return {"in, out": jnp.where((unit < h["units"])[:, None], drawn, 0)}

        def apply(params, x, h):
            hidden = jnp.tanh(x * params["in, out"][None, :, 0])
            return jnp.where((unit < h["units"])[None], hidden, 0) @ params["in, out"][:, 1:]

        return Task(init, apply, squared_error, optimizer)

    return task


STUDY = Study(
    "small",
    task=task_with(lambda h: optax.adam(jnp.where(h["rate"] > 1, jnp.inf, h["rate"]))),  # see WILD
    data=TOY_DATA,
    space={"units": Int(2, 3, width=True), "rate": Float(1e-3, 1.0, log=True)},
    num_trials=NUM_TRIALS,
    num_epochs=ENDS[-1],
    batch_size=20,
    epochs_per_call=1,  # so all rungs of as many slots have the same program
)
RATE = {"rate": STUDY.space["rate"]}
# Static depth, randomness in training, and state; ranked by accuracy.
SHALLOW = study.narrow(replace(DEEP, num_trials=4, epochs_per_call=1), depth=Int(1, 2, static=True))
ONE_SLOT = {"num_devices": 1, "members_per_program": 3, "widths": "padded"}
OWN_WIDTHS = {"num_devices": 1, "widths": "exact"}
COMPACTED = {"num_devices": 1, "widths": "padded"}


def halved(folder, asked=STUDY, **settings):
    """The results of a search with halving, by default all trials in one program that shrinks."""
    return run_study(asked, out=folder, **COMPACTED | {"halving": Halving(3)} | settings)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The results of the usual search; its folder is read only."""
    return halved(tmp_path_factory.mktemp("usual") / "out")


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """(results without halving, with it) of SHALLOW, where each trial has a program of its own."""
    folder = tmp_path_factory.mktemp("shallow")
    full = run_study(SHALLOW, out=folder / "full", **ONE_SLOT)
    return full, halved(folder / "halved", SHALLOW, **ONE_SLOT, halving=2)


def rungs_of(found):
    """Of each bracket of a run: (its trials' numbers, its rungs as they are in the record)."""
    first, all_ = 0, found.record["config"]["plan"]["brackets"]
    while first < len(found.trials["number"]):
        for bracket in all_:
            yield range(first, first + bracket["num_trials"]), bracket["rungs"]
            first += bracket["num_trials"]


def assert_the_best_go_on(found, factor):
    """On each rung of each bracket, by the mean over the folds of the histories' values at its end."""
    name, epochs = found.study.score, found.trials["epochs"]
    for numbers, each in rungs_of(found):
        left = list(numbers)
        for rung, after in zip(each, [*each[1:], None], strict=True):
            assert all(epochs[n] >= rung["end_epoch"] for n in left)
            if after is None:
                continue
            values = found.histories[f"val_{name}"][left, :, rung["end_epoch"] - 1]
            losses = found.histories["val_loss"][left, :, rung["end_epoch"] - 1]
            means = values.mean(axis=1, dtype=float) * (-1 if found.study.maximize else 1)
            fit = [(m, n) for m, n, own in zip(means, left, values + losses, strict=True) if np.isfinite(own).all()]
            went_on = [n for n in left if epochs[n] > rung["end_epoch"]]
            assert went_on == sorted(n for _, n in sorted(fit)[: -(-len(left) // factor)])
            left = went_on


# Who goes on.


def test_the_best_of_a_rung_go_on_and_the_best_of_the_last_one_is_the_best(usual):
    trials = usual.trials
    assert [rung["num_epochs"] for rung in usual.record["rungs"]] == ENDS
    assert Counter(trials["epochs"].tolist()) == {1: 6, 3: 2, 9: 1}
    assert_the_best_go_on(usual, 3)
    assert trials["state"].tolist() == ["complete" if n == 9 else "pruned" for n in trials["epochs"]]
    assert usual.best.number == trials["number"][trials.complete]
    counts = [(rung["num_trials"], rung["went_on"], rung["failed"]) for rung in usual.record["rungs"]]
    assert counts == [(9, 3, 0), (3, 1, 0), (1, 0, 0)]
    in_order = sorted(range(NUM_TRIALS), key=lambda i: (-trials["epochs"][i], trials.means["loss"][i]))
    assert [int(trials["rank"][i]) for i in in_order] == list(range(1, NUM_TRIALS + 1))


def test_optuna_knows_the_losers_as_pruned_with_their_last_value(usual):
    opened = optuna_search.open_storage(usual.folder / "journal.log", STUDY, sampler="random", seed=0)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    for trial, state, epochs, mean in zip(
        opened.trials, usual.trials["state"], usual.trials["epochs"], usual.trials.means["loss"], strict=True
    ):
        assert trial.state == states[state]
        assert max(trial.intermediate_values) == epochs
        assert trial.intermediate_values[epochs] == pytest.approx(mean)
        assert trial.value == pytest.approx(mean)
    assert opened.best_trial.number == usual.best.number


WILD = study.narrow(STUDY, rate=Float(1e-3, 1e3, log=True))  # above 1, a trial diverges at once


def first_seed(fits, num_trials):
    """The first seed of WILD that draws what `fits`: bool [trial], whether they diverge."""
    for seed in range(999):
        rates = [space_.random_draw(WILD.space, seed, number)["rate"] for number in range(num_trials)]
        if fits(np.array(rates) > 1):
            return seed
    raise AssertionError("no seed fits")


def test_a_trial_that_diverges_loses_and_keeps_its_epochs(tmp_path):
    seed = first_seed(lambda bad: 2 <= bad.sum() <= 5, NUM_TRIALS)
    found = halved(tmp_path, WILD, seed=seed, **ONE_SLOT)
    trials, bad = found.trials, found.trials.params["rate"] > 1
    assert ((trials["state"] == "failed") == bad).all()
    assert set(trials["epochs"][bad]) == {1}
    assert np.isnan(trials["rank"][bad]).all() and not np.isnan(trials["rank"][~bad]).any()
    assert_the_best_go_on(found, 3)
    for name in ("train_loss", "val_loss"):
        for history, epochs in zip(found.histories[name], trials["epochs"], strict=True):
            assert np.isnan(history[:, epochs:]).all()
    assert {row["diverged_epoch"] for row, failed in zip(trials.rows, bad, strict=True) if failed} == {"1"}
    opened = optuna_search.open_storage(tmp_path / "journal.log", WILD, sampler="random", seed=seed)
    assert [trial.state == TrialState.FAIL for trial in opened.trials] == bad.tolist()
    assert found.record["rungs"][0]["failed"] == bad.sum() == found.record["trials"]["failed"]


def test_a_bracket_of_diverged_trials_alone_is_told_in_one_line_and_the_next_one_can_do_better(tmp_path):
    seed = first_seed(lambda bad: bad[:3].all() and not bad[3:].any(), 6)
    with pytest.raises(ValueError, match="every trial diverged, see .*trials.csv") as caught:
        halved(tmp_path, WILD, num_trials=3, seed=seed, **ONE_SLOT)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "trials.csv").read_text().count(",failed,") == 3
    assert not (tmp_path / "model.msgpack").exists()
    found = halved(tmp_path, WILD, num_trials=6, seed=seed, **ONE_SLOT)
    assert found.best.number > 2
    assert found.record["trials"] == {"complete": 1, "pruned": 2, "failed": 3}


def slope(optimizer, first=jax.random.normal):
    """fixed -> a net of one number, which starts at first(key, shape)."""
    return lambda fixed: Task(
        init=lambda key, h: {"w": first(key, (1, 1))},
        apply=lambda params, x, h: x * params["w"],
        loss=squared_error,
        optimizer=optimizer,
    )


def test_of_equal_trials_the_first_go_on(tmp_path):
    constant = slope(lambda h: optax.sgd(0 * h["rate"]), lambda key, shape: jnp.zeros(shape))
    found = halved(tmp_path, replace(STUDY, task=constant, space=RATE), **ONE_SLOT)
    assert len(set(found.trials.means["loss"])) == 1
    assert found.trials["epochs"].tolist() == [9, 3, 3, 1, 1, 1, 1, 1, 1]
    assert found.best.number == 0


# What a survivor is.


def scheduled(h, num_steps):
    """A learning rate that falls over the whole training, however long a rung is."""
    return optax.sgd(optax.cosine_decay_schedule(0.1 * h["rate"], num_steps))


@pytest.mark.parametrize("case", ["one slot", "own widths", "static, random, with state", "scheduled"])
def test_in_programs_of_the_same_shape_a_history_is_that_of_the_trial_without_halving(case, tmp_path, request):
    """Bit for bit, as far as it goes."""
    if case == "static, random, with state":
        full, found = request.getfixturevalue("shallow")
    else:
        asked = STUDY if case != "scheduled" else replace(STUDY, task=slope(scheduled), space=RATE)
        shape = OWN_WIDTHS if case == "own widths" else ONE_SLOT
        full = run_study(asked, out=tmp_path / "full", **shape)
        found = halved(tmp_path / "halved", asked, **shape)
    assert len(set(found.trials["epochs"])) == len(found.record["rungs"]) == 3
    assert_the_best_go_on(found, found.record["config"]["halving"])
    for name in [name for name in full.histories if name == "train_loss" or name.startswith("val_")]:
        assert full.histories[name].dtype == found.histories[name].dtype
        for own, whole, epochs in zip(found.histories[name], full.histories[name], found.trials["epochs"], strict=True):
            np.testing.assert_array_equal(own[:, :epochs], whole[:, :epochs])


@pytest.fixture
def float64():
    """For all threads."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


# How wide the networks are on each rung: padded, at their own widths (None), or in so many groups of each width.
WIDTHS = {
    "padded": ("padded", "padded", "padded"),
    "in groups": ((1,), (1,), (1,)),
    "then at own widths": ("padded", None, None),  # as plans of earlier versions have it
}


@pytest.fixture(params=WIDTHS)
def widths(request, monkeypatch):
    """Plans of halving have such widths on their three rungs."""
    make_plan = run.make_plan

    def with_widths(*args):
        planned = make_plan(*args)
        if planned.factor is None:
            return planned
        [bracket] = planned.brackets
        rungs = [
            rung if own == "padded" else Rung(rung.end_epoch, Plan(2, 2), own_widths=True, groups=own)
            for rung, own in zip(bracket.rungs, WIDTHS[request.param], strict=True)
        ]
        return replace(planned, brackets=(replace(bracket, rungs=tuple(rungs)),))

    monkeypatch.setattr(run, "make_plan", with_widths)
    return request.param


EXACT = replace(
    study.narrow(STUDY, rate=Float(1e-3, 1e-2, log=True)),
    data=TOY_DATA._replace(**{n: np.asarray(getattr(TOY_DATA, n), np.float64) for n in TOY_DATA._fields[:4]}),
)


@cache
def without_halving(folder):
    return run_study(EXACT, out=folder / "full", seed=NARROW, **COMPACTED)


@pytest.fixture
def kept_states(monkeypatch):
    """({(trial, epochs): leaves of its state where a rung begins}, the same where calls end), of the search alone."""
    begun, ended, resume = {}, {}, population.resume

    def kept(state, trials):
        params, leaves = len(jax.tree.leaves(state.params)), [np.array(leaf) for leaf in jax.tree.leaves(state)]
        slots = {int(n): i for i, n in reversed(list(enumerate(trials.numbers)))}  # the first: empty ones follow
        return {n: (params, [leaf[i] for leaf in leaves]) for n, i in slots.items()}

    def recording(members, state, trials, *, first_epoch, **settings):
        searched = not members.config.first_fold
        if searched:
            begun.update({(n, first_epoch): own for n, own in kept(state, trials).items()})
        for step in resume(members, state, trials, first_epoch=first_epoch, **settings):
            if searched:
                ended.update({(n, step.num_epochs): own for n, own in kept(step.state, trials).items()})
            yield step

    monkeypatch.setattr(population, "resume", recording)
    return begun, ended


def test_compacted_into_smaller_programs_state_is_carried_over_exactly_and_histories_are_those_of_full_trials(
    tmp_path, tmp_path_factory, float64, widths, kept_states
):
    """Histories to rounding. What is cut off of a narrow network's arrays is zero."""
    full = without_halving(tmp_path_factory.getbasetemp() / "compacted")
    begun, ended = kept_states
    begun.clear()
    ended.clear()
    found, cut = halved(tmp_path, EXACT, seed=NARROW), set()
    units, epochs = found.trials.params["units"], found.trials["epochs"]
    assert units[epochs > ENDS[0]].min() < units.max()
    assert found.record["num_programs"] == (2 if widths == "then at own widths" else 1)
    assert found.histories["val_loss"].dtype == np.float64
    for name in ("train_loss", "val_loss"):
        for own, whole, n in zip(found.histories[name], full.histories[name], epochs, strict=True):
            np.testing.assert_allclose(own[:, :n], whole[:, :n], rtol=1e-9)

    compared = [(n, end) for end in ENDS[:-1] for n in np.flatnonzero(epochs > end).tolist()]
    assert len(compared) == 4
    for place in compared:
        num_params, before = ended[place]
        _, after = begun[place]
        assert len(before) == len(after) > num_params, "an optimizer's state goes along"
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            corner = (..., *map(slice, new.shape[1:]))
            assert (old.dtype, old[corner].tobytes()) == (new.dtype, new.tobytes())
            outside = old.copy()
            outside[corner] = 0
            cut.add(old.size - new.size)
            if i < num_params:
                assert not outside.any()
    assert (max(cut) > 0) == (widths == "then at own widths"), "some trial has been cut to its own"


# The networks of the folds.


def test_the_fold_models_of_the_best_trial_are_its_networks_trained_alone(usual):
    data, config, draw = TOY_DATA, study.run_config(STUDY), usual.best.params
    made = Networks(STUDY, config.search, data, study_data.splits_of(STUDY, config.search, data))
    members = made.population(Plan(1), networks.own(STUDY, draw))
    *_, last = population.train(members, made.trials([usual.best.number], [draw]))
    assert len(usual.model.folds) == 3
    for fold, (params, state) in enumerate(usual.model.folds):
        assert state is None
        own = jax.tree.map(lambda a: a[0, fold], last.state.params)  # noqa: B023
        chex.assert_trees_all_close(params, own, rtol=1e-3, atol=1e-5)


def test_the_ensemble_is_the_mean_of_what_the_folds_say_and_is_the_same_once_loaded(usual):
    x, y = TOY_DATA.x_test, TOY_DATA.y_test
    loaded = load_model(usual.folder / "model.msgpack", STUDY)
    own = [loaded._replace(params=params, state=state, folds=()).predict(x) for params, state in loaded.folds]
    np.testing.assert_allclose(loaded.predict(x, ensemble=True), np.mean(own, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(loaded.predict(x, ensemble=True), usual.histories["ensemble_outputs"])
    assert usual.ensemble["loss"] == pytest.approx(float(np.mean((np.mean(own, axis=0) - y) ** 2)), rel=1e-5)
    assert usual.ensemble["loss"] != usual.test["loss"]


def test_the_ensemble_of_a_classification_is_the_mean_of_probabilities(shallow):
    for found in shallow:
        x, model = found.data.x_test, found.model
        own = [evaluation.softmax(model._replace(params=p, state=s, folds=()).predict(x)) for p, s in model.folds]
        np.testing.assert_allclose(np.exp(model.predict(x, ensemble=True)), np.mean(own, axis=0), rtol=1e-5)
        right = np.argmax(np.mean(own, axis=0), axis=1) == found.data.y_test
        assert found.ensemble["accuracy"] == pytest.approx(right.mean())


# Brackets.


def rows(folder, ranked=True):
    """Lines of trials.csv, with the columns after its last score or without."""
    return [line if ranked else line.rpartition(",")[0].rpartition(",")[0] for line in
            (folder / "trials.csv").read_text().splitlines()]  # fmt: skip


def test_a_search_is_extended_by_whole_brackets_which_change_no_trial_of_the_first(tmp_path, usual):
    shutil.copytree(usual.folder, tmp_path / "out")
    for num_trials, give in ((12, "9 or 18"), (4, "9$")):
        with pytest.raises(ValueError, match=f"num_trials={num_trials}: .* whole brackets; give {give}") as caught:
            halved(tmp_path / "out", num_trials=num_trials)
        assert "\n" not in str(caught.value)
    assert lasting(tmp_path / "out") == lasting(usual.folder)
    found = halved(tmp_path / "out", num_trials=2 * NUM_TRIALS)
    assert rows(found.folder, ranked=False)[: 1 + NUM_TRIALS] == rows(usual.folder, ranked=False)
    for name in ("train_loss", "val_loss"):
        np.testing.assert_array_equal(found.histories[name][:NUM_TRIALS], usual.histories[name])
    assert_the_best_go_on(found, 3)
    assert Counter(found.trials["epochs"].tolist()) == {1: 12, 3: 4, 9: 2}
    assert rows(halved(tmp_path / "out").folder) == rows(usual.folder)


def test_brackets_have_several_first_rungs(tmp_path):
    found = halved(tmp_path, halving=Halving(3, brackets=True), **ONE_SLOT)
    planned = list(rungs_of(found))
    assert [[rung["end_epoch"] for rung in rungs] for _, rungs in planned] == [[1, 3, 9], [3, 9], [9]]
    sizes = [len(numbers) for numbers, _ in planned]
    assert sum(sizes) == NUM_TRIALS
    assert sizes == sorted(sizes, reverse=True), "the longer the first rung, the fewer trials"
    assert_the_best_go_on(found, 3)
    last = found.trials["epochs"] == 9
    assert set(planned[-1][0]) <= set(found.trials["number"][last])
    assert found.best.mean == found.trials.means["loss"][last].min()


def test_with_tpe_brackets_learn_from_those_before_and_lost_records_are_told_again(tmp_path, monkeypatch):
    known = []  # how many trials had a score when one was drawn
    suggest = optuna_search.suggest

    def counting(trial, asked):
        states = Counter(t.state for t in trial.study.get_trials(deepcopy=False))
        known.append((trial.number, states[TrialState.COMPLETE] + states[TrialState.PRUNED]))
        return suggest(trial, asked)

    with monkeypatch.context() as patched:
        patched.setattr(optuna_search, "suggest", counting)
        found = halved(tmp_path, sampler="tpe", **ONE_SLOT)
    planned = list(rungs_of(found))
    assert len(planned) == NUM_TRIALS // 3 < rungs.TPE_BRACKETS, "each prunes"
    firsts = [min(done for n, done in known if n == number) for number in range(NUM_TRIALS)]
    assert firsts == [numbers.start for numbers, _ in planned for _ in numbers]
    assert_the_best_go_on(found, 3)

    before, journal = rows(tmp_path), tmp_path / "journal.log"
    content = journal.read_bytes()
    first_told = content.index(b"\n", content.rindex(b'"param_name"'))  # of the last bracket: those before are synced
    journal.write_bytes(content[: (first_told + len(content)) // 2])
    monkeypatch.setattr(population, "resume", lambda *_, **__: pytest.fail("trained again"))
    halved(tmp_path, sampler="tpe", **ONE_SLOT)
    assert rows(tmp_path) == before


# Whatever happens to it: the moments at which it may die, and that it is stopped.

FEW = {"num_trials": 2, "num_epochs": 3}


def of_few_bits(fixed):
    """Files of arrays know no bfloat16."""
    return Task(
        init=lambda key, h: {"w": jax.random.normal(key, (1, 2), jnp.bfloat16)},
        apply=lambda params, x, h: jnp.sum(jnp.tanh(x.astype(jnp.bfloat16) @ params["w"]), axis=1, keepdims=True),
        loss=lambda outputs, y: squared_error(outputs, y.astype(jnp.bfloat16)),
        optimizer=lambda h: optax.adam(h["rate"]),
    )


FEW_BITS = replace(STUDY, task=of_few_bits, space=RATE)


@pytest.mark.parametrize(
    ("asked", "settings", "rungs"),
    [
        pytest.param(STUDY, OWN_WIDTHS | FEW, {3}, id="own widths"),
        pytest.param(STUDY, COMPACTED | {"num_trials": 4, "num_epochs": 4, "halving": 2}, {1, 2, 4}, id="halving"),
        pytest.param(SHALLOW, ONE_SLOT | {"num_trials": 2, "halving": 2}, {1, 2, 4}, id="static, random, with state"),
        pytest.param(FEW_BITS, ONE_SLOT | FEW, {3}, id="without halving, in bfloat16"),
    ],
)
def test_ended_just_before_a_file_gets_its_name_it_goes_on_to_the_same_end(
    tmp_path, monkeypatch, asked, settings, rungs
):
    """Before each of them: checkpoints after every epoch of every job and of the refit, what jobs leave, results."""
    monkeypatch.setattr(jobs, "SECONDS", 0)
    # The study is checked once: it is the same each time, and the check takes longer than the rest.
    monkeypatch.setattr(Networks, "check", cache_of_one(Networks.check))
    rename, left_behind = os.replace, []

    def copying(source, target, **more):
        folder = tmp_path / f"{len(left_behind)}"
        left_behind.append((folder, os.path.basename(target)))
        shutil.copytree(tmp_path / "whole", folder)  # as if the process had ended here
        return rename(source, target, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", copying)
        whole = run_study(asked, out=tmp_path / "whole", **settings)
    expected, num_epochs = lasting(tmp_path / "whole"), whole.record["config"]["num_epochs"]
    for folder, name in left_behind:
        run_study(asked, out=folder, **settings)
        assert lasting(folder) == expected, f"ended before {name}"
        assert not list(folder.rglob("*.checkpoint"))
    names = [name for _, name in left_behind]
    of_jobs = [name for name in names if name.startswith("0")]
    assert {int(name.split("-")[1].split(".")[0]) for name in of_jobs} == rungs
    assert any(name.endswith(".checkpoint") for name in of_jobs)
    of_refit = [name for name in names if name.startswith("refit-")]
    assert sum(name.endswith(".checkpoint") for name in of_refit) == num_epochs - 1
    assert names[-5:] == ["trials.csv", "histories.npz", "model.msgpack", "results.json", "results.sha256"]


def cache_of_one(function):
    """The function's first result, whatever it is called with."""
    found = []
    return lambda *args: found[0] if found else found.append(function(*args)) or found[0]


def test_stopped_on_any_rung_it_goes_on_to_the_same_end(tmp_path, usual):
    for rung in range(1, len(ENDS) + 1):
        stop = threading.Event()

        class Stopping(Observer):
            def epochs(self, what, done, num_epochs, scores, search_done=None):
                if f"rung {rung} of" in what:  # noqa: B023
                    stop.set()  # noqa: B023

        asked = study.run_config(STUDY, out=tmp_path, halving=Halving(3), **COMPACTED)
        with pytest.raises(jobs.Stopped):
            run.run(asked, Stopping(), command="hw1jax.run_study", started=0.0, stop=stop)
    assert list(tmp_path.rglob("*.checkpoint"))
    halved(tmp_path)
    assert lasting(tmp_path) == lasting(usual.folder)
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_file_of_any_rung_that_was_removed_is_made_again(tmp_path, usual):
    """Also where the networks of the rungs before are gone, as they are once the next rung is done."""
    shutil.copytree(usual.folder, tmp_path / "out")
    expected, kept = lasting(tmp_path / "out"), sorted((tmp_path / "out").glob("brackets/*/*"))
    names = {path.name.partition("-")[2] for path in kept if not path.name.startswith("refit")}
    assert names == {"1.npz", "3.npz", "9.npz", "9.members.npz"}
    for gone in [[path] for path in kept] + [kept]:
        for path in [*gone, tmp_path / "out" / "model.msgpack"]:
            path.unlink()
        halved(tmp_path / "out")
        assert lasting(tmp_path / "out") == expected
        assert sorted((tmp_path / "out").glob("brackets/*/*")) == kept
