"""Training of brackets: one program for each static value, compiled once; jobs saved as files that resume trusts."""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from studies import DEEP, TOY, TOY_DATA

from hw1jax import models, storage
from hw1jax.core import population, programs
from hw1jax.core.losses import squared_error
from hw1jax.core.tasks import Task
from hw1jax.search import jobs, networks, plan, study_data
from hw1jax.search import space as space_
from hw1jax.search import study as study_
from hw1jax.search.brackets import Brackets
from hw1jax.search.networks import Networks
from hw1jax.search.observer import Observer
from hw1jax.search.space import Float, Int
from hw1jax.search.study import Study, narrow
from hw1jax.search.trainer import Trained, Trainer

# The same for all tests, so that a program is compiled once, and for no other file: two slots, four trials of
# two depths a bracket.
USUAL = {"num_devices": 2, "widths": "padded", "members_per_program": 12, "num_trials": 9, "batch_size": 19}
ASKED = narrow(DEEP, depth=Int(1, 2, static=True))
DRAWS = {number: space_.random_draw(ASKED.space, 0, number) for number in range(9)}


def networks_of(study=ASKED, **settings):
    """(networks, config) of a search."""
    config = study_.run_config(study, **USUAL | settings)
    data = study_data.load_data(study, config.inputs)
    return Networks(study, config.search, data, study_data.splits_of(study, config.search, data)), config


def training_of(folder, study=ASKED, *, observer=None, stop=None, **settings):
    """(brackets, plan) of a search in a folder."""
    own, config = networks_of(study, **settings)
    planned = plan.make_plan(own, config.num_trials, config.program)
    observer, stop = observer or Observer(), stop or threading.Event()
    return Brackets(storage.Folder(folder), own, planned, observer, stop, num_trials=config.num_trials), planned


def first(number):
    """The first draws of the deep study."""
    return {n: DRAWS[n] for n in range(number)}


def losses_in(folder):
    """The files of the jobs that are done."""
    return {path.name for path in folder.glob("*.npz") if not path.name.endswith(".members.npz")}


def as_bytes(tree):
    if isinstance(tree, Trained):
        tree = tree._replace(seconds=np.zeros(0))  # which are never the same
    return jax.tree.map(lambda a: np.asarray(a).tobytes(), tree)


@pytest.fixture
def trained_jobs(monkeypatch):
    """The numbers of the trials of each job that is trained from here on."""
    trained, train = [], Trainer._train
    monkeypatch.setattr(
        Trainer, "_train", lambda self, job, *rest: trained.append(job.numbers) or train(self, job, *rest)
    )
    return trained


# Static hyperparameters.


def test_a_search_has_as_many_programs_at_hand_as_static_hyperparameters_may_ask_for():
    """Each bracket needs all of them again."""
    assert min(programs.KEPT_TASKS, programs.KEPT_PROGRAMS) >= study_.MOST_PROGRAMS


class Nine(NamedTuple):
    """Trials that were trained as one bracket."""

    folder: Path  # read only
    values: dict[int, dict[str, np.ndarray]]  # that training returned
    whole: Trained  # all of them together
    compiled: list[str]  # programs, for these and for the same in a search of several brackets


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nine")
    with compilations.counted() as compiled:
        made, planned = training_of(folder / "several")
        assert len(parts := planned.of(9)) == 3
        for part in parts:
            made.train({number: DRAWS[number] for number in part.numbers})
        assert len(made.programs) == 2
        made, _ = training_of(folder / "one")
        values = made.train(first(9))
    return Nine(folder / "one", values, made.history(), compiled)


@pytest.fixture
def nine_copied(nine, tmp_path):
    for path in nine.folder.glob("*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_program_for_each_static_value_is_compiled_once_for_all_brackets(nine):
    assert {draw["depth"] for draw in DRAWS.values()} == {1, 2}
    assert Counter(nine.compiled)["jit(_fit)"] == 2


def test_trials_come_back_in_the_order_of_their_numbers_whatever_their_jobs(nine):
    folder, values, whole, _ = nine
    assert list(values) == list(range(9))
    assert whole.train_loss.shape == (9, 3, 4) and set(whole.val) == {"loss", "accuracy"}
    for number, own in values.items():
        for name, array in own.items():
            np.testing.assert_array_equal(array, whole.val[name][number])
    jobs = plan.jobs_of(networks_of()[0], training_of(None)[1].rungs[0], first(9))
    assert len(jobs) > 3, "a depth that is drawn more often than a program has slots takes several jobs"
    assert losses_in(folder) == {f"{job.numbers[0]:06d}-4.npz" for job in jobs}


def test_a_trial_is_what_its_network_is_that_is_trained_alone(nine):
    """The same key, folds and batches; to rounding, as it is another program. Its static value is not the largest."""
    number = next(n for n in range(8, -1, -1) if DRAWS[n]["depth"] == 1)
    own, _ = networks_of()
    members = own.population(population.Plan(1), networks.own(ASKED, DRAWS[number]))
    first_call = next(population.train(members, own.trials([number], [DRAWS[number]])))
    for name, found in first_call.val.items():
        np.testing.assert_allclose(nine.values[number][name][:, : first_call.num_epochs], found[0], rtol=1e-4)


# Jobs as files.


def test_a_job_that_is_kept_is_not_trained_again_and_one_that_is_gone_is(nine, nine_copied, trained_jobs):
    again, planned = training_of(nine_copied)
    again.train(first(9))
    assert as_bytes(again.history()) == as_bytes(nine.whole)
    assert trained_jobs == []
    gone = plan.jobs_of(networks_of()[0], planned.rungs[0], first(9))[0].numbers
    (nine_copied / f"{gone[0]:06d}-4.npz").unlink()
    again.train(first(9))
    assert as_bytes(again.history()) == as_bytes(nine.whole)
    assert trained_jobs == [gone]


def test_a_bracket_that_is_filled_up_trains_only_the_jobs_with_new_trials_and_changes_no_bit(
    nine, tmp_path, trained_jobs
):
    made, planned = training_of(tmp_path)
    made.train(first(7))
    before = made.history()
    trained_jobs.clear()
    made.train(first(9))
    whole = made.history()
    jobs = plan.jobs_of(networks_of()[0], planned.rungs[0], first(9))
    assert trained_jobs == [job.numbers for job in jobs if set(job.numbers) & {7, 8}]
    assert as_bytes(whole) == as_bytes(nine.whole)
    made.train(first(7))
    assert as_bytes(made.history()) == as_bytes(before)  # asked for fewer again, the first of each job are read


@pytest.mark.parametrize("spoil", ["cut", "other metrics", "other length"])
def test_a_file_that_is_no_job_of_this_study_is_refused_in_one_line(nine_copied, spoil):
    made, _ = training_of(nine_copied)
    path = nine_copied / "000000-4.npz"
    arrays = storage.read_arrays(path)
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif spoil == "other metrics":
        storage.write_arrays(path, {n: a for n, a in arrays.items() if n != "val_accuracy"})
    else:
        storage.write_arrays(path, arrays | {"val_accuracy": arrays["val_accuracy"][:0]})
    words = "000000-4.npz is damaged .*: remove it and run the same command again"
    with pytest.raises(ValueError, match=words) as caught:
        made.train(first(9))
    assert "\n" not in str(caught.value)


def test_a_job_stopped_between_two_epochs_goes_on_to_the_same_bits(nine, tmp_path):
    """With randomness in training, which depends on the epoch, and with state that is not trained."""

    class Stopping(Observer):
        def epochs(self, *_):
            stop.set()

    for _ in range(2):
        stop = threading.Event()
        made, _ = training_of(tmp_path, stop=stop, observer=Stopping())
        with pytest.raises(jobs.Stopped):
            made.train(first(9))
        assert list(tmp_path.glob("*.checkpoint")) or losses_in(tmp_path)
    made, _ = training_of(tmp_path)
    made.train(first(9))
    assert as_bytes(made.history()) == as_bytes(nine.whole)
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_checkpoint_gives_back_any_state_as_it_was(tmp_path, dtype):
    params = {"w": jnp.linspace(0, 1, 12).reshape(2, 3, 2).astype(dtype)}
    state = [np.asarray(leaf) for leaf in jax.tree.leaves((params, {"mean": jnp.ones((2, 3))}))]
    losses = np.zeros((2, 3, 5), np.float32), {"loss": np.ones((2, 3, 5), np.float32)}
    jobs.write_checkpoint(tmp_path / "a", stretch := jobs.Stretch(state, 5, losses, 1.5))
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in state]
    found = jobs.read_checkpoint(tmp_path / "a", shapes, 0)
    assert (found.num_epochs, found.seconds) == (5, 1.5)
    assert as_bytes(found) == as_bytes(stretch)
    assert [leaf.dtype for leaf in found.state] == [leaf.dtype for leaf in state]
    words = "a is damaged .* remove it and run the same command again"
    with pytest.raises(ValueError, match=words):
        jobs.read_checkpoint(tmp_path / "a", shapes[:-1] + [jax.ShapeDtypeStruct((2, 3, 1), np.float32)], 0)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-50])
    with pytest.raises(ValueError, match=words):
        jobs.read_checkpoint(tmp_path / "a", shapes, 0)


# What a person is shown.


def test_an_observer_is_shown_the_scores_that_count(nine, tmp_path):
    shown = []

    class Shown(Observer):
        def epochs(self, what, done, num_epochs, scores, search_done=None):
            shown.append((what, done, num_epochs, scores, search_done))

    made, _ = training_of(tmp_path, observer=Shown())
    values = made.train(first(9))
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


NET = Study(
    "net",
    task=net,
    data=TOY_DATA,
    space={"units": Int(2, 3, width=True), "rate": Float(1e-3, 1e-1, log=True)},
    num_epochs=2,
    batch_size=20,
)


def test_a_users_net_at_its_own_width_begins_as_it_does_alone(tmp_path):
    """And not in a corner of the widest one's parameters, which only a net that is made for it does."""
    made, planned = training_of(tmp_path, NET, widths="auto", num_trials=3)
    assert planned.rungs[0].own_widths
    draws = {number: space_.random_draw(NET.space, 0, number) for number in range(3)}
    values = made.train(draws)
    assert {draw["units"] for draw in draws.values()} == {2, 3}
    own, _ = networks_of(NET)
    for number in (next(n for n in draws if draws[n]["units"] == units) for units in (2, 3)):
        members = own.population(population.Plan(1), networks.own(NET, draws[number]))
        *_, last = population.train(members, own.trials([number], [draws[number]]))
        np.testing.assert_allclose(values[number]["loss"][:, -1], last.val["loss"][0, :, -1], rtol=1e-5)


def test_a_net_that_does_not_look_at_its_width_is_never_padded():
    """All its trials would train at the widest."""
    with pytest.raises(ValueError, match="widths=padded: a network that is padded .*, or give widths=exact") as caught:
        training_of(None, NET, widths="padded")
    assert "\n" not in str(caught.value)
    within_jit = replace(NET, task=lambda fixed: net(fixed)._replace(apply=jax.jit(net(fixed).apply)))

    def changed(study):
        return networks_of(study)[0].changed_by_padding

    assert changed(NET) and changed(within_jit)
    assert changed(TOY) is None
    assert changed(narrow(NET, units=Int(5, 5, width=True))) is None  # there is nothing to mask


def test_the_homeworks_nets_begin_in_the_corner_of_the_widest_one_which_is_compiled_once(tmp_path):
    """So at first they train as padded ones do."""

    def task(fixed):
        mlp = models.MLP((fixed["units"],), num_outputs=1)
        return Task(
            init=lambda key, h: mlp.init(key, jnp.zeros((1, 1)), (h["units"],))["params"],
            apply=lambda params, x, h: mlp.apply({"params": params}, x, (h["units"],)),
            loss=squared_error,
            optimizer=lambda h: optax.sgd(h["rate"]),
        )

    study = replace(NET, task=task)
    draws = {number: space_.random_draw(study.space, 0, number) for number in range(2)}
    with jax.default_matmul_precision("float32"):  # as a run has it
        made, _ = training_of(tmp_path / "exact", study, widths="exact", num_trials=2, num_epochs=1)
        with compilations.counted() as compiled:
            exact = made.train(draws)
    assert Counter(compiled)["jit(_fit)"] == len({draw["units"] for draw in draws.values()}) == 2
    assert "jit(_init)" not in compiled, "the widest one's was needed before, to see what padding changes"
    padded = training_of(tmp_path / "padded", study, num_trials=2, num_epochs=1)[0].train(draws)
    for number in draws:
        np.testing.assert_allclose(exact[number]["loss"], padded[number]["loss"], rtol=1e-4)
