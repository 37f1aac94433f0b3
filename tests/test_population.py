"""Properties of every population: independence, one compilation, plans, unequal folds."""

from itertools import pairwise

import chex
import compilations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from studies import TOY, TOY_DATA, toy_task

from hw1jax.core import cost, member_states, population, training
from hw1jax.core.folds import Fold, k_fold
from hw1jax.core.layout import Layout
from hw1jax.core.losses import squared_error
from hw1jax.core.population import Plan, TrainConfig, Trials
from hw1jax.core.tasks import Task
from hw1jax.core.training import Data
from hw1jax.search import networks, space

X, Y = TOY_DATA.x_train, TOY_DATA.y_train
KEY = jax.random.key(0)
FOLDS = k_fold(len(X), 3, (0,))
LOSSES = {"rtol": 1e-5, "atol": 1e-6}  # of the same training in another program


def joined(steps):
    """(training loss, validation loss), [trial, fold, epoch]"""
    return tuple(
        np.concatenate(parts, axis=2) for parts in zip(*((s.train_loss, s.val["loss"]) for s in steps), strict=True)
    )


# Networks of several widths, in two groups on each of two devices.

WIDTHS, RATES = ((6, 4), (2, 2), (5, 3)), (0.001, 0.01, 0.003, 0.005, 0.002, 0.004, 0.006, 0.001)
DRAWS = [
    {
        "hidden_units": WIDTHS[i % 3],
        "learning_rate": RATES[i],
        "l2": 0.1,
        "optimizer": ("adam", "sgd", "rmsprop")[i % 3],
    }
    for i in range(8)
]
WIDE = toy_task({"hidden_units": (6, 4)})
TOGETHER = Plan(8, 2, 2)


def narrow(number):
    """The trial's task at its own widths."""
    return toy_task({"hidden_units": DRAWS[number]["hidden_units"]})


def trials_of(draws, numbers=None):
    numbers = np.arange(len(draws)) if numbers is None else np.array(numbers)
    return Trials(KEY, numbers, space.as_arrays(TOY.space, draws))


@pytest.fixture(scope="module")
def members():
    return population.make_population(WIDE, TOGETHER, TrainConfig(6, 20, (0,), 2), Data(X, Y), FOLDS)


def val_losses(members, draws, numbers=None):
    return joined(population.train(members, trials_of(draws, numbers)))[1]


@pytest.fixture(scope="module")
def usual(members):
    """(training loss, validation loss, state after two epochs)"""
    steps, state = [], None
    for step in population.train(members, trials_of(DRAWS)):
        state = jax.tree.map(np.array, step.state) if state is None else state
        steps.append(step)
    return *joined(steps), state


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("rate", [1e30, float("nan")])
def test_a_trial_that_diverges_changes_no_other_by_a_bit(members, usual, optimizer, rate):
    diverging = DRAWS[:1] + [DRAWS[1] | {"learning_rate": rate, "optimizer": optimizer}] + DRAWS[2:]
    found = val_losses(members, diverging)
    assert not np.isfinite(found[1, :, -1]).any()
    np.testing.assert_array_equal(np.delete(found, 1, axis=0), np.delete(usual[1], 1, axis=0))


def test_a_trial_depends_on_its_number_and_not_on_its_companions(members, usual):
    numbers = [0, 7, 2, 1, 6, 5, 4, 4]  # some stay in their slots; the last is a dummy in an empty one
    found = val_losses(members, [DRAWS[n] for n in numbers], numbers)
    for slot in (0, 2, 5):
        np.testing.assert_array_equal(found[slot], usual[1][slot])
    np.testing.assert_allclose(found, usual[1][numbers], **LOSSES)
    np.testing.assert_array_equal(found[-1], found[-2])


def test_members_of_the_same_hyperparameters_differ(members):
    assert len(np.unique(val_losses(members, DRAWS[:1] * 8)[:, :, 0])) == 8 * 3


def test_training_goes_on_from_a_state_with_the_same_bits_and_ends_at_the_epoch_that_is_asked_for(members, usual):
    train_loss, val_loss, state = usual
    steps = list(population.resume(members, population.shard(members, state), trials_of(DRAWS), first_epoch=2))
    found = joined(steps)
    np.testing.assert_array_equal(found[0], train_loss[:, :, 2:])
    np.testing.assert_array_equal(found[1], val_loss[:, :, 2:])
    assert [step.num_epochs for step in steps] == [4, 6]
    start = population.init(members, trials_of(DRAWS))
    steps = population.resume(members, start, trials_of(DRAWS), first_epoch=0, last_epoch=4)
    assert [step.num_epochs for step in steps] == [2, 4]


def first_of(trials):
    """The hyperparameters of the first of some trials."""
    return jax.tree.map(lambda a: a[0], trials.hyperparameters)


def rows_of(state, numbers):
    return [[np.asarray(leaf)[number] for leaf in jax.tree.leaves(state)] for number in numbers]


@pytest.mark.parametrize("numbers", [[3, 1], [1]], ids=["in a smaller program", "at its own widths"])
def test_trials_that_go_on_have_their_state_exactly_and_the_losses_they_would_have_had(members, usual, numbers):
    _, expected, state = usual
    few = population.with_plan(members, Plan(len(numbers), len(numbers)))
    few = few._replace(task=narrow(1) if numbers == [1] else WIDE, config=TrainConfig(6, 20, (0,), 4))
    trials = trials_of([DRAWS[n] for n in numbers], numbers)
    shapes = member_states.member_shapes(few.task, few.num_steps, first_of(trials))
    leaves = member_states.select(shapes, rows_of(state, numbers))
    selected = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(selected), strict=True):
        corner = (..., *map(slice, after.shape[2:]))
        rest = before[numbers]
        np.testing.assert_array_equal(rest[corner], after, strict=True)
        rest[corner] = 0
        np.testing.assert_array_equal(rest, 0)  # what is left behind is padding
    (end,) = population.resume(few, population.shard(few, selected), trials, first_epoch=2)
    assert end.num_epochs == 6
    np.testing.assert_allclose(end.val["loss"], expected[numbers, :, 2:], **LOSSES)


def test_states_of_narrower_networks_are_refused(members):
    small = population.init(members._replace(task=narrow(1), plan=Plan(1)), trials_of(DRAWS[1:2], [1]))
    shapes = member_states.member_shapes(members.task, None, first_of(trials_of(DRAWS)))
    with pytest.raises(ValueError, match="arrays of .*, expected "):
        member_states.select(shapes, rows_of(small, [0] * 8))


# Members of one parameter and of a small network, which compile soon.


def linear(params, x, h):
    return x @ params["w"]


def init_linear(key, h):
    return {"w": jax.random.randint(key, (1, 1), -9, 9) / 8.0}  # weakly typed, as constants are


def sgd(h):
    return optax.sgd(h["learning_rate"])


LINEAR = Task(init_linear, linear, squared_error, sgd)


def few(num_trials):
    return Trials(KEY, np.arange(num_trials), {"learning_rate": np.resize(np.float32(RATES), num_trials)})


def place(plan, config, task=LINEAR, folds=FOLDS, x=X):
    return population.make_population(task, plan, config, Data(x, Y), folds)


PLANS = [
    Plan(25, 1, 25),
    Plan(8, 2, 1, Layout(5, 8)),
    Plan(7, 1, 1, Layout(None, 21, sequential=True)),
    Plan(8, 2, 2, Layout(10, 7, sequential=True)),
]


@pytest.mark.parametrize("plan", PLANS)
def test_plans_and_layouts_agree_over_the_first_steps(plan):
    expected, found = (
        joined(population.train(place(p, TrainConfig(3, 20, (0,), 3)), few(p.num_slots))) for p in (Plan(7, 1, 7), plan)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[:7], other, rtol=1e-5, atol=1e-5)


def test_batches_of_different_hyperparameters_share_one_trace_and_one_compilation():
    traces = []

    def scaled(params, x, h):
        traces.append(1)
        return 1.2345 * linear(params, x, h)  # no other test has this program

    members = place(Plan(4, 2, 2), TrainConfig(4, 20, (0,), epochs_per_call=2), LINEAR._replace(apply=scaled))
    with compilations.counted() as compiled:
        *_, first = population.train(members, few(4))
    assert compiled.count("jit(_fit)") == 1
    num_traces, others = len(traces), few(4)._replace(numbers=np.arange(4, 8))
    with compilations.counted() as compiled:
        *_, second = population.train(members, others._replace(hyperparameters={"learning_rate": np.ones(4, "f")}))
    assert (len(traces), compiled) == (num_traces, [])
    assert not np.isclose(first.val["loss"], second.val["loss"]).any()


def noisy_linear(params, x, h, key, train, state, mask):
    noise = 0.1 * jax.random.normal(key, x.shape) if train else 0.0
    return linear(params, x + noise, h), state + jnp.sum(mask) if train else state


# What is random in training, a state, an average and the best epoch know nothing of the epochs that are empty.
NOISY = LINEAR._replace(init=lambda key, h: (init_linear(key, h), jnp.zeros(())), apply=noisy_linear, averaging=0.9)


@pytest.mark.parametrize(("task", "per_call", "patience"), [(LINEAR, 3, None), (NOISY, 4, 2)])
def test_a_last_call_with_fewer_epochs_ends_where_calls_of_one_epoch_do(task, per_call, patience):
    def ended(per_call):
        members = place(Plan(2), TrainConfig(7, 20, (0,), per_call, patience=patience), task)
        steps = list(population.train(members, few(2)))
        assert [step.num_epochs for step in steps] == [*range(per_call, 7, per_call), 7]
        train_loss, val_loss = joined(steps)
        assert train_loss.shape == val_loss.shape == (2, 3, 7)
        return jax.tree.map(np.asarray, (train_loss, val_loss, steps[-1].state, steps[-1].best))

    chex.assert_trees_all_close(ended(per_call), ended(1), rtol=1e-6, atol=1e-7)


def test_samples_of_no_fold_leak_nothing_not_even_nan():
    x = np.where(np.arange(61)[:, None] == 0, np.float32(np.nan), X)
    # The small fold has one step an epoch, the large one three.
    folds = [Fold(np.arange(40, 55), np.arange(1, 5)), Fold(np.arange(1, 50), np.arange(50, 61))]
    train_loss, val_loss = joined(population.train(place(Plan(2), TrainConfig(3, 20, (0,)), folds=folds, x=x), few(2)))
    assert np.isfinite(train_loss).all() and np.isfinite(val_loss).all()


def test_one_program_makes_the_members_of_populations_of_all_sizes():
    task, made = LINEAR._replace(init=lambda key, h: {"w": jax.random.normal(key, (1, 17))}), {}
    with compilations.counted() as compiled:
        for plan in (Plan(1), Plan(5), Plan(8, 2, 2)):
            made[plan.num_slots] = population.init(place(plan, TrainConfig(2, 20, (0,)), task), few(plan.num_slots))
    assert compiled.count("jit(_init)") == 1
    for number, more in ((1, 5), (5, 8)):
        for one, other in zip(jax.tree.leaves(made[number]), jax.tree.leaves(made[more]), strict=True):
            np.testing.assert_array_equal(one, other[:number])


def test_members_with_keys_in_their_state_begin():
    with_key = optax.GradientTransformation(lambda _: jax.random.key(1), lambda updates, state, _: (updates, state))
    task = LINEAR._replace(optimizer=lambda h: optax.chain(with_key, optax.sgd(0.1)))
    state = population.init(place(Plan(4), TrainConfig(2, 20, (0,)), task), few(4))
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(state)} == {(4, 3)}


def test_a_compiled_program_has_no_collective():
    members = place(Plan(2, 2, 1), TrainConfig(1, 20, (0,)))
    text = population.lowered(members, few(2).hyperparameters).compile().as_text()
    assert "num_partitions=2" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text


def test_a_plan_whose_slots_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="7 slots don't divide by 2 devices x 2"):
        Plan(7, 2, 2)


@pytest.mark.parametrize("num_trials", [1, 2, 7, 25, 100])
def test_a_plan_has_a_slot_for_each_trial_and_few_to_spare(num_trials):
    params = networks.padded(TOY, DRAWS[0]).shapes[0]
    plan = cost.make_plan(num_trials, 3, params, Layout())
    assert num_trials <= plan.num_slots < num_trials + plan.num_devices * plan.trials_per_vmap
    assert plan.num_devices == min(num_trials, len(jax.devices()))


def test_on_a_cpu_more_trials_step_at_once_if_most_of_their_state_is_weights_of_the_inputs():
    def dense(*sizes):
        shapes = [shape for n, m in pairwise(sizes) for shape in ((n, m), (m,))]
        return [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    wide, deep = dense(784, 20, 10), dense(64, 100, 100, 10)
    assert cost.trials_that_fit(wide, 3) == cost.trials_that_fit(deep, 3) == 3
    assert cost.trials_at_once(wide, 3, 784) == 29 and cost.trials_at_once(deep, 3, 64) == 3
    with_bias_columns = [jax.ShapeDtypeStruct((20, 785), np.float32), jax.ShapeDtypeStruct((10, 21), np.float32)]
    assert cost.trials_at_once(with_bias_columns, 3, 784) == 29
    assert cost.num_inputs(np.zeros((5, 28, 28))) == 784 and cost.num_inputs({"a": np.zeros((5, 3))}) is None
    assert cost.trials_at_once(wide, 3, None) == 3
    num_devices = len(jax.devices())
    for layout, at_once in ((Layout(), 12), (Layout(sequential=True), 3)):
        plan = cost.make_plan(12 * num_devices, 3, wide, layout, num_inputs=784)
        assert (plan.num_slots, plan.trials_per_vmap) == (12 * num_devices, at_once)


def test_predictions_in_pieces_equal_predictions_at_once():
    params = {"w": jnp.full((1, 1), 3.0)}
    np.testing.assert_allclose(population.predict(LINEAR, params, {}, X, batch_size=7), 3 * X, rtol=1e-6)


def test_gather_pads_with_the_batchs_own_samples():
    data = training.Data(jnp.arange(5.0)[:, None], jnp.arange(5.0)[:, None])
    batch = training.gather(LINEAR, data, jnp.array([3, 2, -1, -1]), 2)
    np.testing.assert_array_equal(batch.x[..., 0], [[3, 2], [3, 3]])
    np.testing.assert_array_equal(batch.real, [[True, True], [False, False]])
