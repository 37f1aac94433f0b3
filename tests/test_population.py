"""What holds for a population whatever it trains: independence, one compilation, plans, unequal folds."""

from dataclasses import replace

import compilations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from hw1jax import population, space, study, training
from hw1jax.folds import Fold, k_fold
from hw1jax.layout import Layout
from hw1jax.losses import squared_error
from hw1jax.population import Plan, Spec, Trials
from hw1jax.training import Data, Task

X, Y = toy.DATA.x_train, toy.DATA.y_train
KEY = jax.random.key(0)
RATES = (0.001, 0.01, 0.003, 0.005, 0.002, 0.004, 0.006)
WIDTHS = ((6, 4), (2, 2), (5, 3))


def toy_task():
    return study.make_task(toy.STUDY, space.fixed(toy.STUDY.space, space.widest(toy.STUDY.space), widest=True))


def draws(num):
    names, first = ("adam", "sgd", "rmsprop"), space.widest(toy.STUDY.space)
    return [first | {"hidden_units": WIDTHS[i % 3], "learning_rate": RATES[i % 7], "optimizer": names[i % 3]}
            for i in range(num)]  # fmt: skip


def as_arrays(draws):
    return space.as_arrays(toy.STUDY.space, draws)


def place(plan, spec, *, task=None, folds=None, x=X, y=Y):
    return population.place(task or toy_task(), plan, spec, Data(x, y), folds or k_fold(len(x), 3, (0,)))


def trained(plan, draws, *, num_epochs=4, numbers=None, batch_size=20, **placed):
    """(training loss, validation loss), [trial, fold, epoch]"""
    placed = place(plan, Spec(num_epochs, batch_size, (0,)), **placed)
    filled = (draws + draws)[: plan.slots] if len(draws) < plan.slots else draws
    numbers = np.arange(plan.slots) if numbers is None else numbers
    steps = list(population.train(placed, Trials(KEY, numbers, as_arrays(filled))))
    return np.concatenate([s.train_loss for s in steps], 2), np.concatenate([s.val["loss"] for s in steps], 2)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("rate", [1e30, float("nan")])
def test_diverging_trial_changes_no_other_by_a_bit(optimizer, rate):
    plan, ordinary = Plan(4, 2, 2), draws(4)
    diverging = list(ordinary)
    diverging[1] = ordinary[1] | {"learning_rate": rate, "optimizer": optimizer}
    _, expected = trained(plan, ordinary)
    _, found = trained(plan, diverging)
    assert not np.isfinite(found[1, :, -1]).any()
    for other in (0, 2, 3):
        np.testing.assert_array_equal(found[other], expected[other])


def test_dummies_in_empty_slots_change_no_bit():
    plan, four = Plan(4, 2, 2), draws(4)
    _, expected = trained(plan, four)
    _, found = trained(plan, four[:3] + [four[0]])
    np.testing.assert_array_equal(found[:3], expected[:3])


def test_batches_of_different_hyperparameters_share_one_trace_and_one_compilation():
    plain, traces = study.make_task(toy.STUDY, {"hidden_units": (7, 5)}), []  # wider than what is compiled already
    task = plain._replace(apply=lambda *arguments: traces.append(1) or plain.apply(*arguments))
    placed = place(Plan(4, 2, 2), Spec(4, 20, (0,), epochs_per_call=2), task=task)

    def train(some, numbers):
        *_, end = population.train(placed, Trials(KEY, numbers, as_arrays(some)))
        return end.val["loss"]

    with compilations.counted() as compiled:
        first = train(draws(8)[:4], np.arange(4))
    assert len(compiled) == 2  # the start and the training
    num_traces = len(traces)
    with compilations.counted() as compiled:
        second = train(draws(8)[4:], np.arange(4, 8))
    assert len(traces) == num_traces
    assert not compiled
    assert not np.array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [Plan(7, 1, 1), Plan(7, 1, 7), Plan(8, 2, 4), Plan(8, 8, 1), Plan(8, 2, 1)])
def test_plans_agree_over_the_first_steps(plan):
    _, expected = trained(Plan(7, 1, 7), draws(7), num_epochs=3)  # 9 steps
    _, found = trained(plan, draws(7), num_epochs=3)
    np.testing.assert_allclose(found[:7], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_25_trials_in_a_program_agree_with_7_over_the_first_steps():
    _, expected = trained(Plan(7, 1, 7), draws(7), num_epochs=3)
    _, found = trained(Plan(26, 2, 13), draws(26), num_epochs=3)
    np.testing.assert_allclose(found[:7], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(5, 8), Layout(None, 21, True), Layout(10, 7, True)])
def test_layouts_agree_over_the_first_steps(layout):
    _, expected = trained(Plan(2), draws(2), num_epochs=3)
    _, found = trained(Plan(2, layout=layout), draws(2), num_epochs=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_folds_of_unequal_size_train_on_exactly_their_own_samples():
    # The small fold has one step an epoch, the large one three: the small one's empty batches must change nothing.
    small, large = Fold(np.arange(40, 55), np.arange(5)), Fold(np.arange(50), np.arange(50, 61))
    together_train, together_val = trained(Plan(3), draws(3), folds=[small, large])
    alone_train, alone_val = trained(Plan(3), draws(3), folds=[small])
    np.testing.assert_allclose(together_train[:, :1], alone_train, rtol=1e-5)
    np.testing.assert_allclose(together_val[:, :1], alone_val, rtol=1e-5)


@pytest.mark.slow
def test_samples_of_no_fold_leak_nothing_not_even_nan():
    x = X.copy()
    x[0] = np.nan
    folds = [Fold(np.arange(1, 31), np.arange(31, 61)), Fold(np.arange(31, 60), np.arange(1, 31))]
    _, val_loss = trained(Plan(2), draws(2), folds=folds, x=x)
    assert np.isfinite(val_loss).all()


@pytest.mark.slow
def test_training_in_several_calls_equals_one_call():
    ends = []
    for per_call in (2, 6):
        placed = place(Plan(2), Spec(6, 20, (0,), per_call))
        *_, end = population.train(placed, Trials(KEY, np.arange(2), as_arrays(draws(2))))
        ends.append(end.val["loss"][..., -1])
    np.testing.assert_allclose(*ends, rtol=1e-5)


@pytest.mark.slow
def test_resume_from_a_state_gives_the_same_bits():
    placed = place(Plan(2), Spec(6, 20, (0,), 2))
    trials = Trials(KEY, np.arange(2), as_arrays(draws(2)))
    saved, expected = None, None
    for step in population.train(placed, trials):
        saved = jax.tree.map(np.array, step.state) if step.num_epochs == 2 else saved
        expected = step.val["loss"]
    *_, end = population.resume(placed, saved, trials, first_epoch=2)
    np.testing.assert_array_equal(end.val["loss"], expected)


# Trials that go on in another program.


def after_two_epochs(num_trials=4):
    """(population, trials, their state after two of six epochs, validation loss of all six)"""
    placed = place(Plan(num_trials), Spec(6, 20, (0,), 2))
    trials = Trials(KEY, np.arange(num_trials), as_arrays(draws(num_trials)))
    steps, state = [], None
    for step in population.train(placed, trials):
        state = jax.tree.map(np.array, step.state) if step.num_epochs == 2 else state
        steps.append(step.val["loss"])
    return placed, trials, state, np.concatenate(steps, axis=2)


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("per_call", [2, 3, 4])
def test_a_last_call_with_fewer_epochs_ends_where_calls_of_one_epoch_do(per_call, patience):
    """What is random in training, a state, an average and the best epoch know nothing of the epochs that are empty."""

    def noisy(params, x, h, key, train, state, mask):
        noise = 0.1 * jax.random.normal(key, x.shape) if train else 0.0
        return x @ params + noise, state + jnp.sum(mask) if train else state

    task = Task(
        lambda key, h: (jax.random.normal(key, (1, 1)), jnp.zeros(())),
        noisy,
        squared_error,
        lambda h: optax.adam(h["learning_rate"]),
        averaging=0.9,
    )
    trials = Trials(KEY, np.arange(2), {"learning_rate": np.array([0.1, 0.01])})

    def ended(per_call):
        members = place(Plan(2), Spec(7, 20, (0,), per_call, patience=patience), task=task)
        steps = list(population.train(members, trials))
        assert [step.num_epochs for step in steps] == [*range(per_call, 7, per_call), 7]
        train_loss, val = (
            np.concatenate([get(s) for s in steps], axis=2) for get in (lambda s: s.train_loss, lambda s: s.val["loss"])
        )
        assert train_loss.shape == val.shape == (2, 3, 7)
        return jax.tree.map(np.asarray, (train_loss, val, steps[-1].state, steps[-1].best))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ended(per_call), ended(1))


def rows_of(state, numbers):
    return [[np.asarray(leaf)[number] for leaf in jax.tree.leaves(state)] for number in numbers]


def in_calls_of(num_epochs, members):
    return members._replace(spec=replace(members.spec, epochs_per_call=num_epochs))


def narrow(number):
    """A task of this trial's own widths."""
    return study.make_task(toy.STUDY, space.fixed(toy.STUDY.space, draws(number + 1)[number], widest=False))


def test_trials_that_go_on_in_a_smaller_program_have_their_state_exactly_and_the_losses_they_would_have_had():
    placed, _, state, expected = after_two_epochs()
    smaller, chosen = in_calls_of(4, population.rearranged(placed, Plan(2, 2))), [3, 1]
    trials = Trials(KEY, np.array(chosen), as_arrays([draws(4)[number] for number in chosen]))
    selected = population.select(smaller, rows_of(state, chosen), trials)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(selected), strict=True):
        np.testing.assert_array_equal(before[chosen], after, strict=True)
    (end,) = population.resume(smaller, population.put(smaller, selected), trials, first_epoch=2)
    assert end.num_epochs == 6
    np.testing.assert_allclose(end.val["loss"], expected[chosen, :, 2:], rtol=1e-5)


def test_a_trial_that_goes_on_at_its_own_widths_has_the_corners_and_the_losses_it_would_have_had():
    placed, _, state, expected = after_two_epochs()
    own = in_calls_of(4, population.rearranged(placed, Plan(1)))._replace(task=narrow(1))
    trials = Trials(KEY, np.array([1]), as_arrays(draws(2)[1:]))
    selected = population.select(own, rows_of(state, [1]), trials)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(selected), strict=True):
        rest = before[1].copy()
        rest[tuple(map(slice, after[0].shape))] = 0
        np.testing.assert_array_equal(rest, 0)  # what is left behind is padding
        np.testing.assert_array_equal(before[1][tuple(map(slice, after[0].shape))], after[0])
    (end,) = population.resume(own, population.put(own, selected), trials, first_epoch=2)
    np.testing.assert_allclose(end.val["loss"][0], expected[1, :, 2:], rtol=1e-5)


def test_states_of_narrower_networks_are_refused():
    placed, trials, _, _ = after_two_epochs()
    own = population.rearranged(placed, Plan(1))._replace(task=narrow(1))
    one = trials._replace(numbers=np.array([1]), hyperparameters=as_arrays(draws(2)[1:]))
    small = population.start(own, one)
    with pytest.raises(ValueError, match="arrays of .*, expected "):
        population.select(placed, rows_of(small, [0] * 4), trials)


def test_an_empty_state_is_one_of_zeros_in_the_shape_of_the_program():
    placed = place(Plan(3), Spec(2, 20, (0,)))
    trials = Trials(KEY, np.arange(3), as_arrays(draws(3)))
    empty, begun = population.empty(placed, trials), population.start(placed, trials)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), empty) == jax.tree.map(lambda a: (a.shape, a.dtype), begun)
    assert all(not leaf.any() for leaf in jax.tree.leaves(empty))


def test_one_program_makes_the_members_of_populations_of_all_sizes():
    made = {}
    with compilations.counted() as names:
        for plan in (Plan(1), Plan(5), Plan(8, 2, 2)):
            trials = Trials(KEY, np.arange(plan.slots), as_arrays(draws(plan.slots)))
            made[plan.slots] = population.start(place(plan, Spec(2, 20, (0,))), trials)
    assert len(names) <= 1, "none, where another test has made some"
    for few, more in ((1, 5), (5, 8)):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:few]), made[few], made[more])  # noqa: B023


def test_members_with_keys_in_their_state_begin():
    with_key = optax.GradientTransformation(lambda _: jax.random.key(1), lambda updates, state, _: (updates, state))
    noisy = toy_task()._replace(optimizer=lambda h: optax.chain(with_key, optax.sgd(0.1)))
    placed = place(Plan(4), Spec(2, 20, (0,)))._replace(task=noisy)
    state = population.start(placed, Trials(KEY, np.arange(4), as_arrays(draws(4))))
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(state)} == {(4, 3)}


def test_training_ends_at_the_last_epoch_that_is_asked_for():
    placed = place(Plan(4), Spec(6, 20, (0,), 2))
    trials = Trials(KEY, np.arange(4), as_arrays(draws(4)))
    steps = population.resume(placed, population.start(placed, trials), trials, first_epoch=0, last_epoch=4)
    assert [step.num_epochs for step in steps] == [2, 4]


def test_trial_depends_on_its_number_and_not_on_its_companions():
    plan, eight = Plan(4, 2, 2), draws(8)
    _, expected = trained(plan, eight[4:], numbers=np.arange(4, 8))
    _, found = trained(plan, [eight[4], eight[0], eight[6], eight[1]], numbers=np.array([4, 0, 6, 1]))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.mark.slow
def test_members_of_a_population_differ():
    same = [space.widest(toy.STUDY.space)] * 2  # the same hyperparameters, so only the keys differ
    _, val_loss = trained(Plan(2), same, num_epochs=1)
    assert len(np.unique(val_loss)) == 6


@pytest.mark.slow
def test_metrics_stand_beside_the_loss_by_name():
    def absolute_error(outputs, y):
        return jnp.abs(outputs - y)[:, 0]

    task = toy_task()._replace(metrics=(("absolute", absolute_error), ("square", squared_error)))
    placed, trials = place(Plan(3), Spec(2, 20, (0,)), task=task), Trials(KEY, np.arange(3), as_arrays(draws(3)))
    *_, end = population.train(placed, trials)
    assert set(end.val) == {"loss", "absolute", "square"}
    np.testing.assert_array_equal(end.val["square"], end.val["loss"])
    outputs = jax.vmap(jax.vmap(task.apply, (0, None, None)), (0, None, 0))(
        end.state.params, X, trials.hyperparameters
    )  # [trial, fold, example, 1]
    for f, fold in enumerate(placed.folds):
        errors = np.abs(np.asarray(outputs)[:, f, fold.validation] - Y[fold.validation])  # [trial, example, 1]
        np.testing.assert_allclose(end.val["absolute"][:, f, -1], errors.mean(axis=(1, 2)), rtol=1e-5)


def test_an_optimizer_that_asks_is_told_how_many_updates_there_will_be():
    plain, told = toy_task(), []
    task = plain._replace(optimizer=lambda h, num_steps: told.append(num_steps) or plain.optimizer(h))
    folds = [Fold(np.arange(41), np.arange(41, 61)), Fold(np.arange(10), np.arange(10, 61))]
    placed = place(Plan(1), Spec(3, 20, (0,)), task=task, folds=folds)
    assert placed.num_steps == 3 * 3  # epochs x batches of the longer fold
    population.start(placed, Trials(KEY, np.arange(1), as_arrays(draws(1))))
    assert set(told) == {9}
    assert place(Plan(1), Spec(3, 20, (0,))).num_steps is None


@pytest.mark.slow
def test_compiled_program_has_no_collective():
    text = population.lowered(place(Plan(8, 8, 1), Spec(1, 20, (0,))), as_arrays(draws(8))).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text


def test_plan_whose_slots_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="7 slots don't divide by 2 devices x 2"):
        Plan(7, 2, 2)


@pytest.mark.parametrize("num_trials", [1, 2, 7, 25, 100])
def test_make_plan_has_a_slot_for_each_trial_and_few_to_spare(num_trials):
    params = study.parameter_shapes(toy_task(), study.one_trial(toy.STUDY, draws(1)[0]))
    plan = population.make_plan(num_trials, 3, params, Layout())
    assert num_trials <= plan.slots < num_trials + plan.num_devices * plan.trials_at_once
    assert plan.num_devices == min(num_trials, 8)


@pytest.mark.slow
def test_predictions_in_pieces_equal_predictions_at_once():
    task, hyperparameters = toy_task(), study.one_trial(toy.STUDY, draws(1)[0])
    params = jax.jit(task.init)(KEY, hyperparameters)
    pieces = population.predict(task, params, hyperparameters, X, piece_size=7)
    np.testing.assert_allclose(pieces, task.apply(params, jnp.asarray(X), hyperparameters), rtol=1e-5, atol=1e-6)


def test_gather_pads_with_the_batchs_own_samples():
    task = Task(None, None, squared_error, None)
    data = training.Data(jnp.arange(5.0)[:, None], jnp.arange(5.0)[:, None])
    batch = training.gather(task, data, jnp.array([3, 2, -1, -1]), 2)
    np.testing.assert_array_equal(batch.x[..., 0], [[3, 2], [3, 3]])
    np.testing.assert_array_equal(batch.real, [[True, True], [False, False]])
