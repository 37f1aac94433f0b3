"""What holds for a population whatever it trains: independence, one compilation, plans, unequal folds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw1jax import population, studies, training
from hw1jax.folds import Fold, k_fold
from hw1jax.layout import Layout
from hw1jax.losses import squared_error
from hw1jax.population import Plan, Spec
from hw1jax.training import Task

STUDY = studies.REGRESSION
WIDEST = studies.widest(STUDY.settings)
RNG = np.random.default_rng(1)
X = RNG.uniform(-5, 5, (61, 1)).astype(np.float32)
Y = np.sin(X)
RATES = (0.001, 0.01, 0.003, 0.005, 0.002, 0.004, 0.006)


def draws(num):
    names, widths = ("adam", "sgd", "rmsprop"), ((50, 50, 30), (10, 10, 3), (33, 20, 11))
    return [WIDEST._replace(hidden_units=widths[i % 3], learning_rate=RATES[i % 7], optimizer=names[i % 3])
            for i in range(num)]  # fmt: skip


def trained(plan, draws, *, num_epochs=4, folds=None, task=None, numbers=None, x=X, y=Y, batch_size=20):
    folds = folds or k_fold(len(x), 3, (0,))
    task = task or studies.make_task(STUDY, (), WIDEST.hidden_units)
    problem = population.place(task, plan, Spec(num_epochs, batch_size, (0,)), x, y, folds)
    filled = (draws + draws)[: plan.slots] if len(draws) < plan.slots else draws
    numbers = np.arange(plan.slots) if numbers is None else numbers
    steps = list(population.train(problem, jax.random.key(0), numbers, studies.as_arrays(filled)))
    return np.concatenate([s.train_loss for s in steps], 2), np.concatenate([s.val_loss for s in steps], 2)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("rate", [1e30, float("nan")])
def test_diverging_trial_changes_no_other_by_a_bit(optimizer, rate):
    plan, ordinary = Plan(4, 2, 2), draws(4)
    diverging = list(ordinary)
    diverging[1] = ordinary[1]._replace(learning_rate=rate, optimizer=optimizer)
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
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    plain, traces = studies.make_task(STUDY, (), WIDEST.hidden_units), []
    task = plain._replace(apply=lambda *arguments: traces.append(1) or plain.apply(*arguments))
    spec = Spec(4, 20, (0,), epochs_per_call=2)
    problem = population.place(task, Plan(4, 2, 2), spec, X, Y, k_fold(len(X), 3, (0,)))

    def train(batch, numbers):
        *_, end = population.train(problem, jax.random.key(0), numbers, studies.as_arrays(batch))
        return end.val_loss

    jax.monitoring.register_event_duration_secs_listener(listen)
    first = train(draws(8)[:4], np.arange(4))
    num_traces, num_compiled = len(traces), len(compiled)
    assert num_compiled == 2  # the start and the training
    second = train(draws(8)[4:], np.arange(4, 8))
    assert len(traces) == num_traces
    assert len(compiled) == num_compiled
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
    task = studies.make_task(STUDY, (), WIDEST.hidden_units)
    ends = []
    for per_call in (2, 6):
        spec = Spec(6, 20, (0,), per_call)
        problem = population.place(task, Plan(2), spec, X, Y, k_fold(len(X), 3, (0,)))
        *_, end = population.train(problem, jax.random.key(0), np.arange(2), studies.as_arrays(draws(2)))
        ends.append(end.val_loss[..., -1])
    np.testing.assert_allclose(*ends, rtol=1e-5)


@pytest.mark.slow
def test_resume_from_a_state_gives_the_same_bits():
    task = studies.make_task(STUDY, (), WIDEST.hidden_units)
    problem = population.place(task, Plan(2), Spec(6, 20, (0,), 2), X, Y, k_fold(len(X), 3, (0,)))
    hyperparameters = studies.as_arrays(draws(2))
    saved, expected = None, None
    for step in population.train(problem, jax.random.key(0), np.arange(2), hyperparameters):
        saved = jax.tree.map(np.array, step.state) if step.num_epochs == 2 else saved
        expected = step.val_loss
    *_, end = population.resume(problem, saved, hyperparameters, first_epoch=2)
    np.testing.assert_array_equal(end.val_loss, expected)


def test_trial_depends_on_its_number_and_not_on_its_companions():
    plan, eight = Plan(4, 2, 2), draws(8)
    _, expected = trained(plan, eight[4:], numbers=np.arange(4, 8))
    _, found = trained(plan, [eight[4], eight[0], eight[6], eight[1]], numbers=np.array([4, 0, 6, 1]))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.mark.slow
def test_compiled_program_has_no_collective():
    task = studies.make_task(STUDY, (), WIDEST.hidden_units)
    problem = population.place(task, Plan(8, 8, 1), Spec(1, 20, (0,)), X, Y, k_fold(len(X), 3, (0,)))
    text = population.lowered(problem, studies.as_arrays(draws(8))).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text


def test_plan_whose_slots_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="7 slots don't divide by 2 devices x 2"):
        Plan(7, 2, 2)


@pytest.mark.parametrize("num_trials", [1, 2, 7, 25, 100])
def test_make_plan_has_a_slot_for_each_trial_and_few_to_spare(num_trials):
    params = studies.parameter_shapes(STUDY, WIDEST)
    plan = population.make_plan(num_trials, 3, params, Layout())
    assert num_trials <= plan.slots < num_trials + plan.num_devices * plan.trials_at_once
    assert plan.num_devices == min(num_trials, 8)


@pytest.mark.slow
def test_predictions_in_pieces_equal_predictions_at_once():
    task = studies.make_task(STUDY, (), WIDEST.hidden_units)
    hyperparameters = jax.tree.map(lambda a: a[0], studies.as_arrays(draws(1)))
    params = task.init(jax.random.key(0), hyperparameters)
    pieces = population.predict(task, params, hyperparameters, X, piece_size=7)
    np.testing.assert_allclose(pieces, task.apply(params, jnp.asarray(X), hyperparameters), rtol=1e-5, atol=1e-6)


def test_gather_pads_with_the_batchs_own_samples():
    task = Task(None, None, squared_error, None)
    data = training.Data(jnp.arange(5.0)[:, None], jnp.arange(5.0)[:, None])
    batch = training.gather(task, data, jnp.array([3, 2, -1, -1]), 2)
    np.testing.assert_array_equal(batch.x[..., 0], [[3, 2], [3, 3]])
    np.testing.assert_array_equal(batch.real, [[True, True], [False, False]])
