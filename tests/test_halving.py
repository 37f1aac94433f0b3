"""Successive halving: who goes on and with what, that it changes no history, and that nothing disturbs its end.

The bits of a history depend on the shape of its program, so those of a survivor are compared where each trial has a
program of its own on all rungs: with one slot, or at its own widths. Elsewhere it is compared in float64.
"""

import csv
import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from dataclasses import replace

import deep
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from optuna.trial import TrialState
from processes import complete, finish, lasting, start, wait_for

from hw1jax import Halving, brackets, checkpoint, evaluation, models, plan, population, run, search, study, trained
from hw1jax import space as space_
from hw1jax.losses import squared_error
from hw1jax.observer import Observer
from hw1jax.plan import Rung
from hw1jax.population import Plan
from hw1jax.run import run_study
from hw1jax.space import Float, Int
from hw1jax.study import Study, load_data, splits_of
from hw1jax.training import Task

NUM_TRIALS, ENDS = 9, [1, 3, 9]
NARROW = 1  # a seed where a trial narrower than others goes on, so that compacting to own widths cuts something off


def task_with(optimizer):
    """fixed -> a net of one hidden layer, soon compiled, with this optimizer."""

    def task(fixed):
        net = models.MLP((fixed["units"],), num_outputs=1)
        return Task(
            init=lambda key, h: net.init(key, jnp.zeros((1, 1)), (h["units"],))["params"],
            apply=lambda params, x, h: net.apply({"params": params}, x, (h["units"],)),
            loss=squared_error,
            optimizer=optimizer,
        )

    return task


STUDY = Study(
    "small",
    task=task_with(lambda h: optax.adam(h["rate"])),
    data=toy.DATA,
    space={"units": Int(2, 3, width=True), "rate": Float(1e-3, 1.0, log=True)},
    num_trials=NUM_TRIALS,
    num_epochs=ENDS[-1],
    batch_size=20,
    epochs_per_call=1,  # so all rungs of as many slots have the same program
)
ONE_SLOT = {"num_devices": 1, "members_per_program": 3, "widths": "padded"}
OWN_WIDTHS = {"num_devices": 1, "widths": "exact"}
COMPACTED = {"num_devices": 1, "widths": "padded"}


def halved(folder, asked=STUDY, **settings):
    """The results of a search with halving, by default all trials in one program that shrinks."""
    return run_study(asked, out=folder, **COMPACTED | {"halving": Halving(3)} | settings)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The results of the usual search; nobody changes its folder."""
    return halved(tmp_path_factory.mktemp("usual") / "out")


def rows(folder):
    return list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))


def rungs_of(found):
    """Of each bracket of a run: (its trials' numbers, its rungs as they are in the record)."""
    first, all_ = 0, found.record["config"]["plan"]["brackets"]
    while first < len(found.trials.numbers):
        for bracket in all_:
            yield range(first, first + bracket["num_trials"]), bracket["rungs"]
            first += bracket["num_trials"]


def assert_the_best_go_on(found, factor):
    """On each rung of each bracket, by the mean over the folds of the histories' values at its end."""
    name, epochs = found.study.score, found.trials.epochs
    for numbers, rungs in rungs_of(found):
        left = list(numbers)
        for rung, after in zip(rungs, [*rungs[1:], None], strict=True):
            assert all(epochs[n] >= rung["num_epochs"] for n in left)
            if after is None:
                continue
            values = found.histories[f"val_{name}"][left, :, rung["num_epochs"] - 1]
            losses = found.histories["val_loss"][left, :, rung["num_epochs"] - 1]
            means = values.mean(axis=1, dtype=float) * (-1 if found.study.maximize else 1)
            fit = [(m, n) for m, n, own in zip(means, left, values + losses, strict=True) if np.isfinite(own).all()]
            went_on = [n for n in left if epochs[n] > rung["num_epochs"]]
            assert went_on == sorted(n for _, n in sorted(fit)[: -(-len(left) // factor)])
            left = went_on


def assert_nothing_after_the_last_epoch(found):
    for name in ("train_loss", "val_loss", *(f"val_{n}" for n in found.study.metrics)):
        for history, epochs in zip(found.histories[name], found.trials.epochs, strict=True):
            assert np.isnan(history[:, epochs:]).all()


# Who goes on.


def test_the_best_of_a_rung_go_on_and_the_best_of_the_last_one_is_the_best(usual):
    assert [rung["num_epochs"] for rung in usual.record["rungs"]] == ENDS
    assert Counter(usual.trials.epochs.tolist()) == {1: 6, 3: 2, 9: 1}
    assert_the_best_go_on(usual, 3)
    assert_nothing_after_the_last_epoch(usual)
    assert usual.trials.states.tolist() == ["complete" if n == 9 else "pruned" for n in usual.trials.epochs]
    assert usual.best.number == usual.trials.numbers[usual.trials.complete]
    assert [(r["num_trials"], r["went_on"], r["failed"]) for r in usual.record["rungs"]] == [
        (9, 3, 0),
        (3, 1, 0),
        (1, 0, 0),
    ]


def test_ranks_are_by_epochs_and_then_by_score(usual):
    trials = usual.trials
    in_order = sorted(range(NUM_TRIALS), key=lambda i: (-trials.epochs[i], trials.means["loss"][i]))
    assert [int(trials.ranks[i]) for i in in_order] == list(range(1, NUM_TRIALS + 1))


def test_optuna_knows_the_losers_as_pruned_with_their_last_value(usual):
    opened = search.open_storage(usual.folder / "journal.log", STUDY, sampler="random", seed=0)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    for trial, state, epochs, mean in zip(
        opened.trials, usual.trials.states, usual.trials.epochs, usual.trials.means["loss"], strict=True
    ):
        assert trial.state == states[state]
        assert max(trial.intermediate_values) == epochs
        assert trial.intermediate_values[epochs] == pytest.approx(mean)
        assert trial.value == pytest.approx(mean)
    assert opened.best_trial.number == usual.best.number


def blown_up(h):
    """Diverges at once where the rate is above 0.1, which about one trial in three draws."""
    return optax.sgd(jnp.where(h["rate"] > 0.1, jnp.inf, h["rate"]))


DIVERGING = replace(STUDY, task=task_with(blown_up))


def test_a_trial_that_diverges_loses_and_keeps_its_epochs(tmp_path):
    found = halved(tmp_path, DIVERGING, **ONE_SLOT)
    bad = found.trials.params["rate"] > 0.1
    assert 0 < bad.sum() < NUM_TRIALS
    assert ((found.trials.states == "failed") == bad).all()
    assert set(found.trials.epochs[bad]) == {1}
    assert np.isnan(found.trials.ranks[bad]).all() and not np.isnan(found.trials.ranks[~bad]).any()
    assert_the_best_go_on(found, 3)
    assert_nothing_after_the_last_epoch(found)
    assert {row["diverged_epoch"] for row, failed in zip(found.trials.rows, bad, strict=True) if failed} == {"1"}
    opened = search.open_storage(tmp_path / "journal.log", DIVERGING, sampler="random", seed=0)
    assert [trial.state == TrialState.FAIL for trial in opened.trials] == bad.tolist()
    assert found.record["rungs"][0]["failed"] == bad.sum()


def test_a_bracket_of_diverged_trials_alone_is_told_in_one_line_and_the_next_one_can_do_better(tmp_path):
    def rates(seed):
        return np.array([space_.random_draw(DIVERGING.space, seed, number)["rate"] for number in range(6)])

    seed = next(seed for seed in range(100) if rates(seed)[:3].min() > 0.1 and rates(seed)[3:].max() < 0.1)
    with pytest.raises(ValueError, match="every trial diverged, see .*trials.csv") as caught:
        halved(tmp_path, DIVERGING, num_trials=3, seed=seed, **ONE_SLOT)
    assert "\n" not in str(caught.value)
    assert {row["state"] for row in rows(tmp_path)} == {"failed"}
    found = halved(tmp_path, DIVERGING, num_trials=6, seed=seed, **ONE_SLOT)
    assert found.best.number > 2
    assert found.record["trials"] == {"complete": 1, "pruned": 2, "failed": 3}


def test_of_equal_trials_the_first_go_on(tmp_path):
    def constant(fixed):
        made = STUDY.task(fixed)
        return made._replace(
            init=lambda key, h: jax.tree.map(jnp.zeros_like, made.init(key, h)),
            optimizer=lambda h: optax.sgd(0 * h["rate"]),
        )

    found = halved(tmp_path, replace(STUDY, task=constant), **ONE_SLOT)
    assert len(set(found.trials.means["loss"])) == 1
    assert found.trials.epochs.tolist() == [9, 3, 3, 1, 1, 1, 1, 1, 1]
    assert found.best.number == 0


# What a survivor is.


def assert_histories_are_those_of_full_trials(found, full):
    """Bit for bit, as far as they go."""
    for name in [name for name in full.histories if name == "train_loss" or name.startswith("val_")]:
        assert full.histories[name].dtype == found.histories[name].dtype
        for i, epochs in enumerate(found.trials.epochs):
            np.testing.assert_array_equal(found.histories[name][i, :, :epochs], full.histories[name][i, :, :epochs])


@pytest.mark.parametrize("shape", [ONE_SLOT, OWN_WIDTHS], ids=["one slot", "own widths"])
def test_in_programs_of_the_same_shape_a_history_is_that_of_the_trial_without_halving(tmp_path, shape):
    full = run_study(STUDY, out=tmp_path / "full", **shape)
    found = halved(tmp_path / "halved", **shape)
    assert found.trials.epochs.max() == 9
    assert_histories_are_those_of_full_trials(found, full)
    number = found.best.number
    for name in ("val_loss", "train_loss"):
        np.testing.assert_array_equal(found.histories[name][number], full.histories[name][number])


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
    make_plan = plan.make_plan

    def with_widths(*args):
        planned = make_plan(*args)
        if planned.factor is None:
            return planned
        [bracket] = planned.brackets
        rungs = [
            rung if own == "padded" else Rung(rung.num_epochs, Plan(2, 2), own_widths=True, groups=own)
            for rung, own in zip(bracket.rungs, WIDTHS[request.param], strict=True)
        ]
        return replace(planned, brackets=(replace(bracket, rungs=tuple(rungs)),))

    monkeypatch.setattr(plan, "make_plan", with_widths)
    return request.param


def test_compacted_into_smaller_programs_a_history_is_that_of_the_trial_to_rounding(tmp_path, float64, widths):
    exact = replace(STUDY, data=jax.tree.map(lambda a: np.asarray(a, np.float64), toy.DATA),
                    space=STUDY.space | {"rate": Float(1e-3, 1e-2, log=True)})  # fmt: skip
    full = run_study(exact, out=tmp_path / "full", seed=NARROW, **COMPACTED)
    found = halved(tmp_path / "halved", exact, seed=NARROW)
    units = found.trials.params["units"]
    assert units[found.trials.epochs > ENDS[0]].min() < units.max()
    assert found.record["num_programs"] == (2 if widths == "then at own widths" else 1)
    assert found.histories["val_loss"].dtype == np.float64
    for name in ("train_loss", "val_loss"):
        for i, epochs in enumerate(found.trials.epochs):
            np.testing.assert_allclose(
                found.histories[name][i, :, :epochs], full.histories[name][i, :, :epochs], rtol=1e-9
            )


def test_state_is_carried_over_exactly_and_what_is_cut_off_is_zero(tmp_path, monkeypatch, widths):
    begun, ended, resume = {}, {}, population.resume  # {(trial, epoch): leaves of its state}

    def kept(state, trials):
        params, leaves = len(jax.tree.leaves(state.params)), [np.array(leaf) for leaf in jax.tree.leaves(state)]
        slots = dict(
            reversed([(int(n), i) for i, n in enumerate(trials.numbers)])
        )  # a trial's first: empty ones follow
        return {n: (params, [leaf[i] for leaf in leaves]) for n, i in slots.items()}

    def recording(members, state, trials, *, first_epoch, last_epoch=None):
        if members.spec.first_fold:  # the refit
            yield from resume(members, state, trials, first_epoch=first_epoch, last_epoch=last_epoch)
            return
        begun.update({(n, first_epoch): own for n, own in kept(state, trials).items()})
        for step in resume(members, state, trials, first_epoch=first_epoch, last_epoch=last_epoch):
            ended.update({(n, step.num_epochs): own for n, own in kept(step.state, trials).items()})
            yield step

    monkeypatch.setattr(population, "resume", recording)
    found, cut = halved(tmp_path, seed=NARROW), set()
    compared = [(n, end) for end in ENDS[:-1] for n in np.flatnonzero(found.trials.epochs > end).tolist()]
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


@pytest.mark.slow
def test_static_hyperparameters_and_randomness_and_state_in_training_go_on_over_rungs(tmp_path):
    full = run_study(deep.STUDY, out=tmp_path / "full", **ONE_SLOT)
    found = halved(tmp_path / "halved", deep.STUDY, **ONE_SLOT, halving=Halving(2))
    assert len(set(found.trials.params["depth"])) == 3
    assert [rung["num_epochs"] for rung in found.record["rungs"]] == [1, 2, 4]
    assert_histories_are_those_of_full_trials(found, full)
    assert_the_best_go_on(found, 2)  # by accuracy, the highest


def test_a_learning_rate_schedule_is_that_of_the_whole_training(tmp_path):
    asked = set()

    def cosine(h, num_steps):
        asked.add(int(num_steps))
        return optax.sgd(optax.cosine_decay_schedule(h["rate"], num_steps))

    scheduled = replace(STUDY, task=task_with(cosine))
    full = run_study(scheduled, out=tmp_path / "full", **ONE_SLOT)
    numbers = set(asked)
    found = halved(tmp_path / "halved", scheduled, **ONE_SLOT)
    assert asked == numbers, "with rungs, the same numbers of steps"
    assert_histories_are_those_of_full_trials(found, full)


# The networks of the folds.


def test_the_fold_models_of_the_best_trial_are_its_networks_trained_alone(usual):
    data = load_data(STUDY, {})
    order = study.order(STUDY)
    splits, draw = splits_of(STUDY, order.search, data), usual.best.params
    fixed = space_.fixed(STUDY.space, draw, widest=False)
    members = plan.make_population(STUDY, order.search, Plan(1), data, splits, fixed)
    trials = brackets.trials_of(STUDY, jax.random.key(0), [usual.best.number], [draw])
    *_, last = population.train(members, trials)
    assert len(usual.model.folds) == 3
    for fold, (params, state) in enumerate(usual.model.folds):
        assert state is None
        own = jax.tree.map(lambda a: a[0, fold], last.state.params)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), params, own)
    outputs = usual.model.fold_outputs(data.x_test)
    assert len(outputs) == 3
    np.testing.assert_allclose(usual.histories["ensemble_outputs"], np.mean(outputs, axis=0), rtol=1e-3, atol=1e-5)


def test_the_ensemble_is_the_mean_of_what_the_folds_say_and_is_the_same_once_loaded(usual):
    x, y = usual.data.x_test, usual.data.y_test
    loaded = trained.load_model(usual.folder / "model.msgpack", STUDY)
    own = [loaded._replace(params=params, state=state, folds=()).predict(x) for params, state in loaded.folds]
    np.testing.assert_allclose(loaded.predict(x, ensemble=True), np.mean(own, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(loaded.predict(x, ensemble=True), usual.histories["ensemble_outputs"])
    assert usual.ensemble["loss"] == pytest.approx(float(np.mean((np.mean(own, axis=0) - y) ** 2)), rel=1e-5)
    assert usual.ensemble["loss"] != usual.test["loss"]


def test_the_ensemble_of_a_classification_is_the_mean_of_probabilities(tmp_path):
    found = halved(tmp_path, deep.STUDY, **ONE_SLOT, num_trials=2, num_epochs=2, halving=Halving(2))
    x, model = found.data.x_test, found.model
    own = [evaluation.softmax(model._replace(params=p, state=s, folds=()).predict(x)) for p, s in model.folds]
    together = model.predict(x, ensemble=True)
    np.testing.assert_allclose(np.exp(together), np.mean(own, axis=0), rtol=1e-5)
    right = np.argmax(np.mean(own, axis=0), axis=1) == found.data.y_test
    assert found.ensemble["accuracy"] == pytest.approx(right.mean())


# Brackets.


def test_a_search_that_is_extended_by_a_bracket_changes_no_trial_of_the_first(tmp_path, usual):
    halved(tmp_path)
    assert rows(tmp_path) == rows(usual.folder)
    found = halved(tmp_path, num_trials=2 * NUM_TRIALS)
    before = [{**row, "rank": ""} for row in rows(usual.folder)]
    assert [{**row, "rank": ""} for row in rows(tmp_path)[:NUM_TRIALS]] == before
    for name in ("train_loss", "val_loss"):
        np.testing.assert_array_equal(found.histories[name][:NUM_TRIALS], usual.histories[name])
    assert_the_best_go_on(found, 3)
    assert Counter(found.trials.epochs.tolist()) == {1: 12, 3: 4, 9: 2}
    at_once = halved(tmp_path / "reduced", num_trials=NUM_TRIALS)
    assert rows(at_once.folder) == rows(usual.folder)


def test_a_part_of_a_bracket_is_refused_with_the_numbers_to_give(tmp_path):
    halved(tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ValueError, match="num_trials=12: .* whole brackets; give 9 or 18") as caught:
        halved(tmp_path, num_trials=12)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="num_trials=4: .* whole brackets; give 9$"):
        halved(tmp_path, num_trials=4)
    assert (tmp_path / "results.json").read_bytes() == before
    assert len(rows(tmp_path)) == NUM_TRIALS


def test_brackets_have_several_first_rungs(tmp_path):
    found = halved(tmp_path, halving=Halving(3, brackets=True), **ONE_SLOT)
    planned = list(rungs_of(found))
    assert [[rung["num_epochs"] for rung in rungs] for _, rungs in planned] == [[1, 3, 9], [3, 9], [9]]
    assert sum(len(numbers) for numbers, _ in planned) == NUM_TRIALS
    sizes = [len(numbers) for numbers, _ in planned]
    assert sizes == sorted(sizes, reverse=True), "the longer the first rung, the fewer trials"
    assert_the_best_go_on(found, 3)
    last = found.trials.epochs == 9
    assert set(found.trials.numbers[last]) & set(planned[-1][0]) == set(planned[-1][0])
    assert found.best.mean == found.trials.means["loss"][last].min()


def test_with_tpe_brackets_follow_one_another_and_learn_from_those_before(tmp_path, monkeypatch):
    known = []  # how many trials had a score when one was drawn
    suggest = search.suggest

    def counting(trial, asked):
        states = Counter(t.state for t in trial.study.get_trials(deepcopy=False))
        known.append((trial.number, states[TrialState.COMPLETE] + states[TrialState.PRUNED]))
        return suggest(trial, asked)

    monkeypatch.setattr(search, "suggest", counting)
    found = halved(tmp_path, sampler="tpe", **ONE_SLOT)
    planned = list(rungs_of(found))
    assert len(planned) == plan.TPE_BRACKETS
    firsts = [min(done for n, done in known if n == number) for number in range(NUM_TRIALS)]
    assert firsts == [numbers.start for numbers, _ in planned for _ in numbers]
    assert_the_best_go_on(found, 3)


# Whatever happens to it.


def everything(folder):
    """All that a run leaves but times and dates, those of its rungs among them."""
    record, *others = lasting(folder)
    for rung in record["rungs"]:
        rung.pop("seconds", None)
    return {name: value for name, value in record.items() if name != "command"}, *others


def assert_same_end(folder, expected):
    assert everything(folder) == everything(expected)
    assert not list(folder.rglob("*.checkpoint"))


def test_ended_just_before_a_file_gets_its_name_it_goes_on_to_the_same_end(tmp_path, usual, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    rename, left_behind = os.replace, []

    def copying(source, target, **more):
        folder = tmp_path / f"{len(left_behind)}"
        left_behind.append((folder, os.path.basename(target)))
        shutil.copytree(tmp_path / "whole", folder)  # as if the process had ended here
        return rename(source, target, **more)

    monkeypatch.setattr(os, "replace", copying)
    halved(tmp_path / "whole")
    monkeypatch.setattr(os, "replace", rename)
    for folder, _ in left_behind:
        assert_same_end(halved(folder).folder, usual.folder)
    assert len(left_behind) > 20
    rungs = {name.split("-")[1].split(".")[0] for _, name in left_behind if name.startswith("0")}
    assert rungs == {str(end) for end in ENDS}, "it was ended on every rung"


def test_stopped_on_any_rung_it_goes_on_to_the_same_end(tmp_path, usual):
    for rung in range(1, len(ENDS) + 1):
        stop = threading.Event()

        class Stopping(Observer):
            def epochs(self, what, done, num_epochs, scores, search_done=None):
                if f"rung {rung} of" in what:  # noqa: B023
                    stop.set()  # noqa: B023

        asked = study.order(STUDY, out=tmp_path, halving=Halving(3), **COMPACTED)
        with pytest.raises(brackets.Stopped):
            run.run(asked, Stopping(), command="", started=0.0, stop=stop)
    assert_same_end(halved(tmp_path).folder, usual.folder)


# Three jobs on the first rung, one on each of the others.
IN_PROCESSES = ("--num-trials", 9, "--num-epochs", 900, "--halving", 3, "--first-rung", 100)


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "out"
    complete(folder, *IN_PROCESSES)
    ends = [rung["num_epochs"] for rung in json.loads((folder / "results.json").read_text())["rungs"]]
    assert ends == [100, 300, 900]
    return folder


def rung_of(log):
    """The rung at which the last line of a run's log is, as a number from 1; 0 before the first."""
    lines = log.read_text().splitlines() if log.exists() else []
    found = re.search(r"rung (\d) of 3", lines[-1]) if lines else None
    return int(found[1]) if found else 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_again_and_again_on_every_rung_it_goes_on_to_the_same_end(tmp_path, in_one_process):
    out, log, hit = tmp_path / "out", tmp_path / "log", []
    while True:  # to the end, as its last files, which are written together or again, are fewer than six
        code, errors = finish(start(out, *IN_PROCESSES, "--log", log, "--kill-at-rename", 6))
        if code == 0:
            break
        assert code == -signal.SIGKILL, errors
        hit.append(rung_of(log))
    assert set(hit) >= {1, 2, 3}
    assert len(hit) > 6
    assert_same_end(out, in_one_process)


@pytest.mark.slow
def test_stopped_by_a_signal_on_the_last_rung_it_goes_on_to_the_same_end(tmp_path, in_one_process):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(out, *IN_PROCESSES, "--log", log)
    wait_for(lambda: rung_of(log) == 3, process)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert (code, errors.strip()) == (128 + signal.SIGTERM, "stopping; the same command goes on from here")
    assert not (out / "results.json").exists()
    complete(out, *IN_PROCESSES)
    assert_same_end(out, in_one_process)


@pytest.mark.slow
def test_three_processes_share_a_search_and_end_as_one_does(tmp_path, in_one_process):
    logs = [tmp_path / f"{i}.log" for i in range(3)]
    processes = [start(tmp_path / "out", *IN_PROCESSES, "--log", log) for log in logs]
    for process in processes:
        code, errors = finish(process)
        assert code == 0, errors
    assert_same_end(tmp_path / "out", in_one_process)
    assert rows(tmp_path / "out") == rows(in_one_process)
