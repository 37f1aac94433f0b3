"""Brackets in training: a program for each static value, compiled once; jobs as files that the next process trusts."""

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

from hw1jax import brackets, plan, population, storage, training
from hw1jax import space as space_
from hw1jax import study as study_
from hw1jax.brackets import Brackets
from hw1jax.checkpoint import Checkpoint
from hw1jax.losses import squared_error
from hw1jax.observer import Observer
from hw1jax.space import Float, Int
from hw1jax.study import Study, narrow
from hw1jax.training import Data, Task

# The same for all tests, so that a program is compiled once: two slots, and six trials of three depths a bracket.
USUAL = {"num_devices": 2, "widths": "padded", "members_per_program": 18, "num_trials": 9}


def training_of(folder, study, *, observer=None, stop=None, **settings):
    """(brackets, plan) of a search in a folder."""
    order = study_.order(study, **USUAL | settings)
    data = study_.load_data(study, order.inputs)
    splits = study_.splits_of(study, order.search, data)
    planned = plan.make_plan(study, order.num_trials, order.search, order.program, data, splits)
    fixed = space_.fixed(study.space, space_.widest(study.space), widest=True)
    wide = plan.make_population(study, order.search, planned.rungs[0].program, data, splits, fixed)
    observer, stop = observer or Observer(), stop or threading.Event()
    made = Brackets(folder, study, planned, wide, 0, observer, stop, num_trials=order.num_trials)
    return made, planned


def losses_in(folder):
    """The files of the jobs that are done."""
    return [path for path in folder.glob("*.npz") if not path.name.endswith(".members.npz")]


def drawn(study, *numbers):
    return {number: space_.random_draw(study.space, 0, number) for number in numbers}


def as_bytes(tree):
    if isinstance(tree, brackets.Trained):
        tree = tree._replace(seconds=np.zeros(0))  # which are never the same
    return jax.tree.map(lambda a: np.asarray(a).tobytes(), tree)


@pytest.fixture
def compiled():
    """Names of the programs that are compiled from here on."""
    found, listening = [], True

    def listen(event, _, fun_name="", **__):
        if event.endswith("backend_compile_duration") and listening:
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    listening = False  # no listener can be taken away


# Static hyperparameters.


def test_a_program_for_each_static_value_is_compiled_once_for_all_brackets(tmp_path, compiled):
    made, planned = training_of(tmp_path, deep.STUDY, num_trials=18, batch_size=19)  # a program of this test's own
    assert (planned.brackets[0].num_trials, planned.rungs[0].program.slots) == (6, 2)
    depths = Counter()
    for first in range(0, 18, 6):
        draws = drawn(deep.STUDY, *range(first, first + 6))
        depths.update(draw["depth"] for draw in draws.values())
        made.train(draws)
        made.read(draws)
    assert set(depths) == {1, 2, 3} and sum(depths.values()) == 18
    assert len(made.programs) == 3
    assert Counter(compiled)["jit(_fit)"] == 3


@pytest.mark.slow
def test_as_many_programs_as_a_study_may_have_are_each_compiled_once(tmp_path, compiled):
    """Each bracket needs all of them again."""
    most = study_.MOST_PROGRAMS
    study = replace(toy.STUDY, task=of_any_size, space={"size": Int(1, most, static=True)})
    made, _ = training_of(tmp_path, study, num_trials=3 * most, members_per_program=3, num_epochs=1)
    for first in range(0, 3 * most, most):
        draws = {first + i: {"size": 1 + i} for i in range(most)}
        made.train(draws)
        made.read(draws)
    assert len(made.programs) == most
    assert {name: Counter(compiled)[f"jit({name})"] for name in ("_init", "_fit")} == {"_init": most, "_fit": most}


def of_any_size(fixed):
    return Task(
        init=lambda key, h: {"w": jax.random.normal(key, (fixed["size"],))},
        apply=lambda params, x, h: x * jnp.sum(jnp.tanh(params["w"])),
        loss=squared_error,
        optimizer=lambda h: optax.sgd(0.01),
    )


def test_trials_come_back_in_the_order_of_their_numbers_whatever_their_jobs(tmp_path):
    made, planned = training_of(tmp_path, deep.STUDY, num_trials=9)
    draws = drawn(deep.STUDY, *range(9))
    values = made.train(draws)
    whole = made.read(draws)
    assert list(values) == list(range(9))
    assert whole.train_loss.shape == (9, 3, 4) and set(whole.val) == {"loss", "accuracy"}
    for number, own in values.items():
        for name, array in own.items():
            np.testing.assert_array_equal(array, whole.val[name][number])
    jobs = plan.jobs_of(deep.STUDY, planned.rungs[0], draws)
    assert len(jobs) > 3, "a depth that is drawn more often than a program has slots takes several jobs"
    assert {path.name for path in losses_in(tmp_path)} == {f"{job.numbers[0]:06d}-4.npz" for job in jobs}


@pytest.mark.slow
def test_a_trial_of_a_static_value_is_what_it_is_in_a_search_of_this_value_alone(tmp_path):
    """The same key, folds and batches: to rounding, as it is another slot."""
    draws = drawn(deep.STUDY, *range(9))
    made, _ = training_of(tmp_path / "all", deep.STUDY, num_epochs=1)
    values = made.train(draws)
    for depth in (1, 2, 3):
        alone = replace(deep.STUDY, space=deep.STUDY.space | {"depth": Int(depth, depth, static=True)})
        own = {number: draw for number, draw in draws.items() if draw["depth"] == depth}
        found = training_of(tmp_path / f"{depth}", alone, num_epochs=1)[0].train(own)
        for number in own:
            np.testing.assert_allclose(found[number]["loss"], values[number]["loss"], rtol=1e-5)


# Jobs as files.


def test_a_job_that_is_kept_is_not_trained_again_and_one_that_is_gone_is(tmp_path, monkeypatch):
    made, _ = training_of(tmp_path, deep.STUDY)
    draws = drawn(deep.STUDY, *range(9))
    made.train(draws)
    before = as_bytes(made.read(draws))
    trained, train = [], Brackets._train
    monkeypatch.setattr(Brackets, "_train", lambda self, *job: trained.append(job[0].job.numbers) or train(self, *job))
    again, planned = training_of(tmp_path, deep.STUDY)
    assert as_bytes(again.read(draws)) == before
    assert trained == []
    first = plan.jobs_of(deep.STUDY, planned.rungs[0], draws)[0].numbers
    (tmp_path / f"{first[0]:06d}-4.npz").unlink()
    assert as_bytes(again.read(draws)) == before
    assert trained == [first]


def test_a_bracket_that_is_filled_up_trains_only_the_jobs_with_new_trials_and_changes_no_bit(tmp_path, monkeypatch):
    made, planned = training_of(tmp_path, deep.STUDY)
    few, all_ = drawn(deep.STUDY, *range(7)), drawn(deep.STUDY, *range(9))
    made.train(few)
    before = made.read(few)
    trained, train = [], Brackets._train
    monkeypatch.setattr(Brackets, "_train", lambda self, *job: trained.append(job[0].job.numbers) or train(self, *job))
    made.train(all_)
    after = made.read(all_)
    assert as_bytes(jax.tree.map(lambda a: a[:7], after)) == as_bytes(before)
    assert trained == [
        job.numbers for job in plan.jobs_of(deep.STUDY, planned.rungs[0], all_) if set(job.numbers) & {7, 8}
    ]
    # Asked for fewer again, the first of each job are read.
    assert as_bytes(made.read(few)) == as_bytes(before)


def test_a_job_in_another_process_hands_leaves_the_bracket_for_later(tmp_path):
    made, planned = training_of(tmp_path, deep.STUDY)
    draws = drawn(deep.STUDY, *range(9))
    job = plan.jobs_of(deep.STUDY, planned.rungs[0], draws)[1]
    with storage.try_lock(tmp_path / f"{job.numbers[0]:06d}-4.lock") as ours:
        assert ours
        assert made.train(draws) is None
        assert len(losses_in(tmp_path)) == len(plan.jobs_of(deep.STUDY, planned.rungs[0], draws)) - 1
    assert set(made.train(draws)) == set(range(9))


@pytest.mark.parametrize("spoil", ["cut", "other metrics", "other length"])
def test_a_file_that_is_no_job_of_this_study_is_refused_in_one_line(tmp_path, spoil):
    made, _ = training_of(tmp_path, deep.STUDY)
    draws = drawn(deep.STUDY, *range(9))
    made.train(draws)
    path = tmp_path / "000000-4.npz"
    arrays = storage.read_arrays(path)
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif spoil == "other metrics":
        storage.write_arrays(path, {n: a for n, a in arrays.items() if n != "val_accuracy"})
    else:
        storage.write_arrays(path, arrays | {"val_accuracy": arrays["val_accuracy"][:0]})
    with pytest.raises(
        ValueError, match="000000-4.npz is damaged .*: remove it and run the same command again"
    ) as caught:
        made.read(draws)
    assert "\n" not in str(caught.value)


def test_a_job_stopped_between_two_epochs_goes_on_to_the_same_bits(tmp_path):
    """With randomness in training, which depends on the epoch, and with state that is not trained."""
    study = deep.STUDY
    draws = drawn(study, *range(6))
    made, _ = training_of(tmp_path / "whole", study)
    made.train(draws)
    whole = as_bytes(made.read(draws))
    for _ in range(2):
        stop = threading.Event()
        stop.set()  # after the first call of a job's program
        made, _ = training_of(tmp_path / "stopped", study, stop=stop)
        with pytest.raises(brackets.Stopped):
            made.train(draws)
        assert list((tmp_path / "stopped").glob("*.checkpoint"))
    made, _ = training_of(tmp_path / "stopped", study)
    made.train(draws)
    assert as_bytes(made.read(draws)) == whole
    assert not list((tmp_path / "stopped").glob("*.checkpoint"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_checkpoint_gives_back_any_state_as_it_was(tmp_path, dtype):
    params = {"w": jnp.linspace(0, 1, 12).reshape(2, 3, 2).astype(dtype)}
    state = training.State(params, jax.tree.map(jnp.zeros_like, params), {"mean": jnp.ones((2, 3))})
    val = {"loss": np.ones((2, 3, 5), np.float32)}
    Checkpoint(tmp_path / "a").write(state, 5, [(np.zeros((2, 3, 5), np.float32), val)])
    start = jax.tree.map(jnp.zeros_like, state)
    found, done, losses = Checkpoint(tmp_path / "a").read(start)
    assert done == 5
    assert as_bytes(found) == as_bytes(state)
    assert jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, state)
    assert as_bytes(losses[0][1]) == as_bytes(val)
    with pytest.raises(ValueError, match="is damaged"):
        Checkpoint(tmp_path / "a").read(start._replace(model_state={"mean": jnp.ones((2, 3, 1))}))


# What a person is shown.


def test_an_observer_is_shown_the_scores_that_count(tmp_path):
    shown = []

    class Shown(Observer):
        def epochs(self, what, done, num_epochs, scores, search_done=None):
            shown.append((what, done, num_epochs, scores, search_done))

    made, _ = training_of(tmp_path, deep.STUDY, observer=Shown())
    draws = drawn(deep.STUDY, *range(9))
    values = made.train(draws)
    what, done, num_epochs, scores, search_done = shown[-1]
    assert (what, done, num_epochs, search_done) == ("trials 0-8", 4, 4, 1)
    np.testing.assert_array_equal(scores, [values[n]["accuracy"][:, -1] for n in range(9)])


# Own widths.


def net(fixed):
    """A user's own net of one hidden layer, which isn't initialised as the homework's, nor cares for padding."""
    width = fixed["units"]

    def init(key, h):
        keys = jax.random.split(key)
        return {"in": jax.random.normal(keys[0], (1, width)), "out": jax.random.normal(keys[1], (width, 1)) / width}

    def apply(params, x, h):
        return jnp.tanh(x @ params["in"]) @ params["out"]

    return Task(init, apply, squared_error, lambda h: optax.sgd(h["rate"]))


NET = Study("net", task=net, data=toy.DATA, space={"units": Int(2, 9, width=True), "rate": Float(1e-3, 1e-1, log=True)},
            num_epochs=2, batch_size=20)  # fmt: skip


def test_a_users_net_at_its_own_width_begins_as_it_does_alone(tmp_path):
    """And not in a corner of the widest one's parameters, which only a net that is made for it does."""
    made, planned = training_of(tmp_path, NET, widths="auto", num_trials=3)
    assert planned.rungs[0].own_widths
    draws = drawn(NET, *range(3))
    values = made.train(draws)
    assert len({draw["units"] for draw in draws.values()}) > 1
    order = study_.order(NET)
    data = study_.load_data(NET, {})
    splits = study_.splits_of(NET, order.search, data)
    for number, draw in draws.items():
        fixed = space_.fixed(NET.space, draw, widest=False)
        members = plan.make_population(NET, order.search, population.Plan(1), data, splits, fixed)
        trials = brackets.trials_of(NET, jax.random.key(0), [number], [draw])
        *_, last = population.train(members, trials)
        np.testing.assert_allclose(values[number]["loss"][:, -1], last.val["loss"][0, :, -1], rtol=1e-5)


def test_a_net_that_does_not_look_at_its_width_is_never_padded():
    """All its trials would train at the widest."""
    with pytest.raises(ValueError, match="widths=padded: a network that is padded .*, or give widths=exact") as caught:
        training_of(None, NET, widths="padded")
    assert "\n" not in str(caught.value)
    within_jit = replace(NET, task=lambda fixed: net(fixed)._replace(apply=jax.jit(net(fixed).apply)))

    def changed(study):
        search, data = study_.order(study).search, study_.load_data(study, {})
        splits = study_.splits_of(study, search, data)
        return plan.changed_by_padding(study, search, Data(data.x_train, data.y_train), splits)

    assert changed(NET) and changed(within_jit)
    assert changed(toy.STUDY) is None
    assert changed(narrow(NET, units=Int(5, 5, width=True))) is None  # there is nothing to mask
    assert changed(deep.STUDY) is None


@pytest.mark.slow
def test_the_homeworks_nets_begin_in_the_corner_of_the_widest_one_which_is_compiled_once(tmp_path, compiled):
    made, _ = training_of(tmp_path, toy.STUDY, widths="exact", num_trials=8)
    draws = drawn(toy.STUDY, *range(8))
    made.train(draws)
    assert Counter(compiled)["jit(_fit)"] == len({draw["hidden_units"] for draw in draws.values()})
    assert Counter(compiled)["jit(_init)"] < 4


@pytest.mark.slow
def test_trials_at_own_widths_agree_with_padded_ones_at_first(tmp_path):
    draws = drawn(toy.STUDY, *range(4))
    found = [training_of(tmp_path / w, toy.STUDY, widths=w, num_epochs=1)[0].train(draws) for w in ("padded", "exact")]
    for number in draws:
        np.testing.assert_allclose(found[0][number]["loss"], found[1][number]["loss"], rtol=1e-4)
