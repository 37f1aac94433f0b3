"""`cross_validate` as its users see it: the README's example, their own splits, and one line for each mistake."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import counted

from hw1jax import (
    accuracy,
    checks,
    cross_entropy,
    cross_validate,
    cross_validation,
    k_fold,
    lines,
    population,
    rmsprop_l2,
    squared_error,
    stratified_k_fold,
)
from hw1jax.cross_validation import CrossValidation

X = np.linspace(-3, 3, 60, dtype=np.float32)[:, None]
Y = np.sin(2 * X)
NOISE = np.random.default_rng(0).normal(size=Y.shape).astype(np.float32)


def init(key, hyperparameters):
    first, second = jax.random.split(key)
    return {"first": jax.random.normal(first, (1, 8)), "second": 0.1 * jax.random.normal(second, (8, 1))}


def init_classes(key, hyperparameters):
    return init(key, hyperparameters) | {"second": jax.random.normal(key, (8, 3))}


def apply(params, x, hyperparameters):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def normalised(params, x, hyperparameters):
    hidden = jnp.tanh(x @ params["first"])
    return (hidden - hidden.mean(axis=0, keepdims=True)) @ params["second"]


def init_with_last_layer_of_zeros(key, hyperparameters):
    return init(key, hyperparameters) | {"second": jnp.zeros((8, 1))}


def broadcast_error(outputs, y):
    """[batch, 1] and [batch] make [batch, batch]."""
    return jnp.mean((outputs - y[None]) ** 2, axis=-1)


def init_with_statistics(key, hyperparameters):
    return {"params": init(key, hyperparameters), "batch_stats": {"mean": jnp.zeros(8)}}


def init_with_integers(key, hyperparameters):
    return init(key, hyperparameters) | {"count": jnp.zeros((), jnp.int32)}


def with_state(size):
    return lambda key, hyperparameters: (init(key, hyperparameters), {"mean": jnp.zeros(size)})


def optimizer(hyperparameters):
    return optax.sgd(hyperparameters["learning_rate"], momentum=hyperparameters["momentum"])


HYPERPARAMETERS = {"learning_rate": np.float32([0.01, 0.1, 0.03]), "momentum": np.float32([0.0, 0.5, 0.9])}
GIVEN = {
    "init": init,
    "apply": apply,
    "loss": squared_error,
    "optimizer": optimizer,
    "hyperparameters": HYPERPARAMETERS,
    "x": X,
    "y": Y,
    "key": jax.random.key(3),
    "num_epochs": 5,
    "batch_size": 16,
}


def test_the_example_of_the_docs_runs_and_is_short(capsys):
    page = (Path(__file__).parents[1] / "docs" / "cross-validate.md").read_text()
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", page, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 15
    names = {}
    exec(code, names)
    assert names["result"].val_loss.shape == (8, 3, 100)
    assert 1e-3 < float(capsys.readouterr().out) < 0.2
    scores = names["result"].scores
    np.testing.assert_array_equal(scores.mean, names["result"].val_loss[:, :, -1].mean(axis=1))
    np.testing.assert_array_equal(scores.std, names["result"].val_loss[:, :, -1].std(axis=1))


def test_a_trial_that_failed_is_never_the_best_though_numpy_takes_nan_for_least():
    last = np.array([[0.5, 0.7], [np.nan, 0.1], [0.3, 0.5], [0.1, np.inf], [-np.inf, 0.1]])
    result = CrossValidation(np.zeros((5, 2, 1)), last[:, :, None], None)
    assert np.argmin(result.scores.mean) == 1
    assert result.best == 2 and isinstance(result.best, int)
    np.testing.assert_allclose(result.scores.mean, [0.6, np.nan, 0.4, np.nan, np.nan])
    np.testing.assert_allclose(result.scores.std, [0.1, np.nan, 0.1, np.nan, np.nan])


def test_the_learning_rate_that_diverges_is_not_the_best():
    rates = np.float32([1e30, 0.01, 1e30])
    result = cross_validate(**GIVEN | {"hyperparameters": rates, "optimizer": optax.sgd})
    assert result.best == 1
    assert np.isnan(result.scores.mean).tolist() == [True, False, True]


def test_where_all_trials_failed_none_is_the_best():
    failed = CrossValidation(np.zeros((2, 3, 1)), np.full((2, 3, 1), np.nan), None)
    with pytest.raises(ValueError, match="validation loss of all 2 is not finite"):
        _ = failed.best


def test_losses_and_parameters_have_leading_trial_and_fold_axes():
    result = cross_validate(**GIVEN, num_folds=4, return_params=True)
    chex.assert_shape((result.train_loss, result.val_loss), (3, 4, 5))
    chex.assert_tree_shape_prefix(result.params, (3, 4))
    outputs = apply(jax.tree.map(lambda a: a[2, 1], result.params), X, None)
    fold = k_fold(60, 4, tuple(int(v) for v in jax.random.key_data(GIVEN["key"])))[1]
    held_out = np.mean((outputs - Y)[fold.validation] ** 2)
    np.testing.assert_allclose(result.val_loss[2, 1, -1], held_out, rtol=1e-5)


def test_parameters_are_returned_only_when_asked_for():
    assert cross_validate(**GIVEN).params is None


def test_trials_are_those_trained_among_others_or_alone():
    together = cross_validate(**GIVEN)
    for i in range(3):  # a trial's initial parameters depend on its number, which it keeps
        among = {name: np.where(np.arange(3) == i, v, v / 2) for name, v in HYPERPARAMETERS.items()}
        others = cross_validate(**GIVEN | {"hyperparameters": among})
        np.testing.assert_allclose(together.val_loss[i], others.val_loss[i], rtol=1e-6)
        assert not np.isclose(together.val_loss[i - 1], others.val_loss[i - 1]).any()
    first = {name: values[:1] for name, values in HYPERPARAMETERS.items()}
    alone = cross_validate(**GIVEN | {"hyperparameters": first})
    np.testing.assert_allclose(together.val_loss[:1], alone.val_loss, rtol=1e-5)


def test_second_call_with_the_same_functions_compiles_nothing():
    cross_validate(**GIVEN)
    other = {name: values / 2 for name, values in HYPERPARAMETERS.items()}
    with counted() as compiled:
        cross_validate(**GIVEN | {"hyperparameters": other, "key": jax.random.key(4)})
    assert not compiled


def test_a_cell_that_runs_again_compiles_nothing_and_gives_the_same_and_a_changed_one_something_else():
    def cell(width):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(1)(nn.tanh(nn.Dense(width)(x)))

        net = Net()
        return cross_validate(
            init=lambda key, h: net.init(key, X[:1]),
            apply=lambda params, x, h: net.apply(params, x),
            loss=lambda outputs, y: squared_error(outputs, y),
            optimizer=lambda h: optax.adam(h["learning_rate"]),
            metrics={"absolute": lambda outputs, y: jnp.abs(outputs - y)[:, 0]},
            hyperparameters=HYPERPARAMETERS, x=X, y=Y, key=jax.random.key(0), num_epochs=3, batch_size=16,
        )  # fmt: skip

    first = cell(8)
    with counted() as compiled:
        again = cell(8)
    assert not compiled
    np.testing.assert_array_equal(again.val_loss, first.val_loss)
    np.testing.assert_array_equal(again.metrics["absolute"], first.metrics["absolute"])
    assert not np.isclose(cell(7).val_loss, first.val_loss).any()


def test_other_labels_of_the_same_shape_compile_nothing():
    labels = np.arange(60) % 3
    classify = GIVEN | {"init": init_classes, "loss": cross_entropy}
    cross_validate(**classify | {"y": labels})
    with counted() as compiled:
        cross_validate(**classify | {"y": labels % 2})
    assert not compiled


@pytest.mark.parametrize("num_indices", [30, 480, 10_000, 3_000_000])
def test_a_call_advances_by_epochs_neither_too_few_nor_too_many(num_indices):
    found = population.enough_epochs(num_indices)
    assert found == 1 or found * num_indices <= 2**22
    assert found <= 25
    assert found * num_indices >= 4800 or found >= 10


def test_calling_the_program_in_pieces_changes_nothing(monkeypatch):
    in_pieces = cross_validate(**GIVEN | {"num_epochs": 20}, return_params=True)
    monkeypatch.setattr(population, "FEW_EPOCHS", 20)
    at_once = cross_validate(**GIVEN | {"num_epochs": 20}, return_params=True)
    chex.assert_shape(in_pieces.val_loss, (3, 3, 20))
    for name in ("train_loss", "val_loss", "params"):
        chex.assert_trees_all_close(getattr(in_pieces, name), getattr(at_once, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("labels", [[-1, 0, 1, 2], [1, 2, 3], [-1, 1], [0, 1, 2, 3]])
def test_labels_without_an_output_are_told_in_one_line(labels):
    y = np.resize(labels, 60).astype(np.int32)
    line = f"y has labels {min(labels)} to {max(labels)}, 3 outputs take 0 to 2"
    with pytest.raises(ValueError, match=f"^{line}$"):
        cross_validate(**GIVEN | {"init": init_classes, "loss": cross_entropy, "y": y})


def test_a_label_that_another_loss_does_not_take_is_named():
    def own(outputs, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], 1, mode="fill", fill_value=jnp.nan)[:, 0]

    y = np.arange(60) % 4
    with pytest.raises(ValueError, match="^the loss of label 3 of y is not finite$"):
        cross_validate(**GIVEN | {"init": init_classes, "loss": own, "y": y})


def test_more_labels_than_are_tried_are_no_obstacle_and_the_ends_are_among_them():
    x, y = np.zeros((1500, 1), np.float32), np.arange(1500)

    def init(key, hyperparameters):
        return {"first": jnp.zeros((1, 8)), "second": jax.random.normal(key, (8, 1499))}

    with pytest.raises(ValueError, match="y has labels 0 to 1499, 1499 outputs take 0 to 1498"):
        cross_validate(**GIVEN | {"init": init, "loss": cross_entropy, "x": x, "y": y})


def test_a_flax_net_of_params_alone_is_taken_and_float64_data_and_hyperparameters():
    net = nn.Dense(1)
    result = cross_validate(
        **GIVEN
        | {"init": lambda key, h: net.init(key, X[:1]), "apply": lambda params, x, h: net.apply(params, x)}
        | {"x": X.astype(float), "y": Y.astype(float), "hyperparameters": np.array([0.1]), "optimizer": optax.sgd}
    )
    assert np.isfinite(result.val_loss).all()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process has")
def test_calls_with_new_functions_let_go_of_those_before():
    """As where a notebook's cell runs again and again: each function closes over 20 MB of its own."""
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, last = map(float, done.stdout.split())
    assert last < 1.1 * first, (first, last)


AGAIN = """
import gc, re
import jax, numpy as np, optax
from hw1jax import cross_validate, squared_error

x = np.linspace(-3, 3, 12, dtype=np.float32)[:, None]
for call in range(1, 35):
    table = np.full(5_000_000, call, np.float32)
    cross_validate(
        lambda key, h: {"w": jax.random.normal(key, (1, 1))},
        lambda params, x, h, table=table: x @ params["w"] + table[:1],
        lambda outputs, y: squared_error(outputs, y),
        lambda h: optax.sgd(h),
        np.float32([0.1, 0.01]), x, x, key=jax.random.key(0), num_epochs=2, batch_size=4,
    )
    if call in (17, 34):  # the functions of 16 tasks are kept
        print(int(re.search(r"VmRSS:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


def test_scikit_learns_splitters_keep_groups_together():
    model_selection = pytest.importorskip("sklearn.model_selection")
    groups = np.arange(60) // 7
    result = cross_validate(**GIVEN, folds=model_selection.GroupKFold(4), groups=groups.tolist())
    assert result.val_loss.shape == (3, 4, 5)
    for fold in result.folds:
        assert not np.intersect1d(groups[fold.train], groups[fold.validation]).size


CLASSES = GIVEN | {"init": init_classes, "loss": cross_entropy, "y": (X[:, 0] > 0).astype(int) + (X[:, 0] > 1)}


def test_metrics_are_means_over_the_held_out_samples_by_trial_fold_and_epoch():
    def absolute(outputs, y):
        return jnp.abs(outputs - y)[:, 0]

    result = cross_validate(**GIVEN, metrics={"squared": squared_error, "absolute": absolute}, return_params=True)
    assert list(result.metrics) == ["squared", "absolute"]
    assert result.metrics["absolute"].shape == (3, 3, 5)
    np.testing.assert_allclose(result.metrics["squared"], result.val_loss, rtol=1e-6)
    outputs = apply(jax.tree.map(lambda a: a[2, 1], result.params), X, None)
    expected = np.mean(np.abs(outputs - Y)[result.folds[1].validation])
    np.testing.assert_allclose(result.metrics["absolute"][2, 1, -1], expected, rtol=1e-5)


def test_table_is_in_scikit_learns_words():
    hyperparameters = HYPERPARAMETERS | {"width": np.int32([[1, 2], [3, 4], [5, 6]])}
    result = cross_validate(**CLASSES | {"hyperparameters": hyperparameters}, metrics={"accuracy": accuracy})
    table = result.table()
    assert list(table) == [
        "learning_rate", "momentum", "width_1", "width_2",
        "split0_val_loss", "split1_val_loss", "split2_val_loss", "mean_val_loss", "std_val_loss",
        "split0_val_accuracy", "split1_val_accuracy", "split2_val_accuracy", "mean_val_accuracy", "std_val_accuracy",
        "rank",
    ]  # fmt: skip
    assert all(column.shape == (3,) for column in table.values())
    np.testing.assert_array_equal(table["width_2"], [2, 4, 6])
    np.testing.assert_array_equal(table["split1_val_accuracy"], result.metrics["accuracy"][:, 1, -1])
    np.testing.assert_array_equal(table["mean_val_loss"], result.scores.mean)
    np.testing.assert_array_equal(table["std_val_loss"], result.scores.std)
    assert sorted(table["rank"]) == [1, 2, 3] and table["rank"][result.best] == 1
    single = cross_validate(**GIVEN | {"hyperparameters": np.float32([0.1, 0.01]), "optimizer": optax.sgd}).table()
    np.testing.assert_array_equal(single["hyperparameters"], np.float32([0.1, 0.01]))


def test_equals_share_a_rank_and_failed_trials_have_none():
    last = np.array([[0.5, 0.7], [np.nan, 0.1], [0.3, 0.5], [0.7, 0.5]])
    result = CrossValidation(np.zeros((4, 2, 1)), last[:, :, None], hyperparameters={"rate": np.arange(4)})
    np.testing.assert_array_equal(result.table()["rank"], [2, np.nan, 1, 2])


def test_a_hyperparameter_that_has_the_name_of_another_column_is_not_lost():
    result = CrossValidation(np.zeros((1, 2, 1)), np.zeros((1, 2, 1)), hyperparameters={"rank": np.arange(1)})
    with pytest.raises(ValueError, match="^the table has a column rank of its own"):
        result.table()


@pytest.mark.parametrize("num_trials", [3, 300])
def test_what_is_shown_of_a_result_fits_a_screen(num_trials):
    rng = np.random.default_rng(0)
    losses = rng.uniform(size=(num_trials, 5, 200))
    losses[2] = np.nan
    shown = repr(
        CrossValidation(
            losses,
            losses,
            {"w": rng.normal(size=(num_trials, 5, 300, 10))},
            metrics={"accuracy": 1 - losses},
            hyperparameters={f"number_{i}": rng.uniform(size=num_trials) for i in range(50)},
        )
    )
    assert len(shown) <= 500
    assert shown.startswith(f"CrossValidation({num_trials} trials x 5 folds x 200 epochs, 1 failed; the best is trial ")
    for part in ("validation loss 0.", ", accuracy 0.", ", number_0=0."):
        assert part in shown
    assert (
        repr(CrossValidation(losses[2:3], losses[2:3])) == "CrossValidation(1 trials x 5 folds x 200 epochs, 1 failed)"
    )


def test_out_of_fold_predictions_are_those_of_the_fold_that_held_a_sample_out():
    result = cross_validate(**GIVEN | {"x": X[:59], "y": Y[:59]}, num_folds=4, return_params=True)
    for trial in (None, 0):
        own = result.best if trial is None else trial
        found = result.out_of_fold(trial)
        assert found.shape == (59, 1) and found.dtype == np.float32
        for f, fold in enumerate(result.folds):
            params = jax.tree.map(lambda a: a[own, f], result.params)  # noqa: B023
            np.testing.assert_allclose(found[fold.validation], apply(params, X[fold.validation], None), atol=1e-6)
            held_out = np.mean((found - Y[:59])[fold.validation] ** 2)
            np.testing.assert_allclose(held_out, result.val_loss[own, f, -1], rtol=1e-5)


def test_samples_that_no_fold_holds_out_have_no_prediction_and_those_of_several_have_their_mean():
    splits = [(np.arange(40), np.arange(40, 50)), (np.arange(40), np.arange(45, 58))]
    result = cross_validate(**GIVEN, folds=splits, return_params=True)
    found = result.out_of_fold(1)
    assert np.isnan(found[:40]).all() and np.isnan(found[58:]).all()
    first, second = (apply(jax.tree.map(lambda a: a[1, f], result.params), X, None) for f in range(2))  # noqa: B023
    np.testing.assert_allclose(found[40:45], first[40:45], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[45:50], (first + second)[45:50] / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[50:58], second[50:58], rtol=1e-5, atol=1e-6)


def test_predictions_are_the_mean_of_the_folds_networks():
    result = cross_validate(**GIVEN, return_params=True)
    new = np.linspace(-4, 4, 7, dtype=np.float32)[:, None]
    each = [apply(jax.tree.map(lambda a: a[result.best, f], result.params), new, None) for f in range(3)]  # noqa: B023
    np.testing.assert_allclose(result.predict(new), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    each = [apply(jax.tree.map(lambda a: a[0, f], result.params), new, None) for f in range(3)]  # noqa: B023
    np.testing.assert_allclose(result.predict(new, trial=0), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="^trial=3: there are trials 0 to 2$"):
        result.predict(new, trial=3)
    with pytest.raises(ValueError, match="^trial=-1: there are trials 0 to 2$"):
        result.out_of_fold(-1)
    with pytest.raises(TypeError, match="^x= must be an array"):
        result.predict(new.tolist())


def test_predictions_want_parameters():
    result = cross_validate(**GIVEN)
    for predict in (lambda: result.predict(X), result.out_of_fold):
        with pytest.raises(ValueError, match="call cross_validate with return_params=True"):
            predict()


def test_hyperparameters_may_be_a_dict_of_lists():
    lists = {name: values.tolist() for name, values in HYPERPARAMETERS.items()}
    expected = cross_validate(**GIVEN)
    for given in (lists, {name: tuple(values) for name, values in lists.items()}):
        found = cross_validate(**GIVEN | {"hyperparameters": given})
        np.testing.assert_array_equal(found.val_loss, expected.val_loss)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.1, 0.2], np.array([0.1, 0.2])),
        ((0.1, 0.2), np.array([0.1, 0.2])),
        ((np.zeros(2), [1, 2]), (np.zeros(2), np.array([1, 2]))),
        ([np.zeros(2), jnp.ones(2)], [np.zeros(2), np.ones(2)]),
        ([jnp.float32(0.5), jnp.float32(1)], np.float32([0.5, 1])),
        ({"a": {"b": [1, 2], "c": [[1, 2], [3, 4]]}}, {"a": {"b": np.array([1, 2]), "c": np.array([[1, 2], [3, 4]])}}),
        ({"x": np.array([True, False])}, {"x": np.array([True, False])}),
    ],
)
def test_lists_of_values_are_arrays_and_lists_of_arrays_are_trees(given, expected):
    found = checks.check_hyperparameters(given)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_nested_hyperparameters_are_named_by_their_place():
    with pytest.raises(ValueError, match=r"^hyperparameters\['adam'\]\['b1'\] has 3 values, others 2"):
        checks.check_hyperparameters({"adam": {"b1": [1, 2, 3], "b2": [1, 2]}, "rate": [1, 2]})


@pytest.mark.parametrize("num_trials", range(1, 130))
def test_numbers_of_trials_that_differ_by_a_few_share_a_program_and_few_slots_are_to_spare(num_trials):
    slots = cross_validation._num_slots(num_trials)
    assert num_trials <= slots
    assert slots == num_trials or (slots - num_trials) / slots <= 0.25
    assert cross_validation._num_slots(slots) == slots
    assert num_trials > 4 or slots == num_trials
    assert len({cross_validation._num_slots(n) for n in (9, 10, 11, 12)}) == 1


@pytest.mark.slow
def test_nine_ten_and_eleven_trials_compile_once_and_are_the_same_trials():
    rates = np.linspace(0.01, 0.1, 11).astype(np.float32)
    given = GIVEN | {"optimizer": optax.sgd, "metrics": {"squared": squared_error}}
    eleven = cross_validate(**given | {"hyperparameters": rates}, return_params=True)
    with counted() as compiled:
        for num_trials in (9, 10):
            found = cross_validate(**given | {"hyperparameters": rates[:num_trials]}, return_params=True)
            np.testing.assert_array_equal(found.val_loss, eleven.val_loss[:num_trials])
            np.testing.assert_array_equal(found.params["first"], eleven.params["first"][:num_trials])
    assert not compiled


def test_progress_is_told_to_whoever_asks():
    told = []
    result = cross_validate(**GIVEN | {"num_epochs": 40}, progress=lambda *what: told.append(what))
    assert [done for done, _, _ in told] == sorted({done for done, _, _ in told})
    assert told[-1][0] == 40 and {total for _, total, _ in told} == {40}
    for done, _, val_loss in told:
        np.testing.assert_array_equal(val_loss, result.val_loss[:, :, done - 1])


def test_progress_says_a_line_now_and_then_on_standard_error(capsys, monkeypatch):
    clock = itertools.count(0, 2.0)  # two seconds between two looks at it
    monkeypatch.setattr(lines.time, "monotonic", lambda: next(clock))
    say = lines.teller("cross_validate")
    for done in range(5, 101, 5):
        say(done, 100, np.array([[0.5, 0.25], [np.nan, 1]]))
    out, err = capsys.readouterr()
    assert not out
    first, *others = err.splitlines()
    assert first == "cross_validate: epoch 10 of 100, lowest mean validation loss 0.375, about 36 s left"
    assert others[0] == "cross_validate: epoch 35 of 100, lowest mean validation loss 0.375, about 26 s left"
    assert others[-1] == "cross_validate: 100 epochs in 40 s"
    assert len(others) == 4


def test_short_work_says_nothing(capsys):
    cross_validate(**GIVEN, progress=False)
    say = lines.teller("cross_validate")
    say(1, 2, np.ones((1, 2)))
    say(2, 2, np.ones((1, 2)))
    assert capsys.readouterr() == ("", "")


def test_where_all_trials_have_failed_so_far_progress_names_no_loss(capsys, monkeypatch):
    monkeypatch.setattr(lines, "FIRST_AFTER", 0)
    lines.teller("cross_validate")(1, 2, np.full((2, 2), np.nan))
    assert capsys.readouterr().err == "cross_validate: epoch 1 of 2\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "7.4 s"), (130, "2 min 10 s"), (3900, "1 h 5 min"), (59.6, "1 min 0 s")]
)
def test_durations_are_told_as_people_tell_them(seconds, text):
    assert lines.duration(seconds) == text


def test_early_stopping_ends_when_all_have_stopped_and_scores_the_best_epochs():
    rates = np.float32([0.3, 1e30])  # the second never has a finite loss
    told = []
    result = cross_validate(
        **GIVEN | {"num_epochs": 400, "hyperparameters": rates, "optimizer": optax.adam, "y": Y + 0.5 * NOISE},
        early_stopping=5,
        progress=lambda *what: told.append(what),
        return_params=True,
    )
    assert result.val_loss.shape == (2, 3, 400)
    assert told[-1][0] < 400
    for fold in range(3):
        best = result.best_epoch[0, fold]
        assert np.nanargmin(result.val_loss[0, fold]) == best
        assert np.isfinite(result.val_loss[0, fold, : best + 6]).all() and np.isfinite(
            result.train_loss[0, fold, best + 5]
        )
        assert np.isnan(result.val_loss[0, fold, best + 6 :]).all()
        assert np.isnan(result.train_loss[0, fold, best + 6 :]).all()
        params = jax.tree.map(lambda a: a[0, fold], result.params)  # noqa: B023
        held_out = result.folds[fold].validation
        value = np.mean((apply(params, X, None) - Y - 0.5 * NOISE)[held_out] ** 2)
        np.testing.assert_allclose(value, result.val_loss[0, fold, best], rtol=1e-5)
    assert result.scores.mean[0] == np.nanmin(result.val_loss[0], axis=1).mean()
    assert result.best == 0 and np.isnan(result.scores.mean[1])
    assert (result.best_epoch[1] == -1).all()
    np.testing.assert_allclose(told[-1][2][0], np.nanmin(result.val_loss[0], axis=1))
    assert "1 failed" in repr(result)


def test_own_splits_are_used():
    splits = [(np.arange(40), np.arange(40, 60)), (np.arange(20, 60), np.arange(20))]
    result = cross_validate(**GIVEN, folds=splits, return_params=True)
    outputs = apply(jax.tree.map(lambda a: a[0, 1], result.params), X, None)
    np.testing.assert_allclose(result.val_loss[0, 1, -1], np.mean((outputs - Y)[:20] ** 2), rtol=1e-5)
    assert cross_validate(**GIVEN, folds=stratified_k_fold(Y[:, 0] > 0, 2, (0,))).val_loss.shape == (3, 2, 5)


def test_legacy_keys_and_our_optimizers_are_accepted():
    rates = np.float32([0.01, 0.003])
    given = GIVEN | {"hyperparameters": rates, "optimizer": lambda rate: rmsprop_l2(rate, 0.1 * rate)}
    legacy, typed = (cross_validate(**given | {"key": key}) for key in (jax.random.PRNGKey(3), jax.random.key(3)))
    np.testing.assert_array_equal(legacy.val_loss, typed.val_loss)
    assert (legacy.train_loss[..., -1] < legacy.train_loss[..., 0]).all()  # it learns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y[:-1]}, "x and y must have the same leading sample axis"),
        ({"y": np.float32(0)}, "x and y must have the same leading sample axis"),
        ({"x": {}}, "^x= is empty"),
        ({"y": {"a": Y, "b": ()}}, r"^y\['b'\]= is empty"),
        (
            {"hyperparameters": {"learning_rate": np.ones(3), "momentum": np.ones(2)}},
            r"^hyperparameters\['momentum'\] has 2 values, others 3: give one a trial",
        ),
        (
            {"hyperparameters": {"learning_rate": [0.1, 0.2], "momentum": 0.9}},
            r"^hyperparameters\['momentum'\] has one value, others 2: give one a trial",
        ),
        (
            {"hyperparameters": {"learning_rate": [0.1, 0.2], "widths": [[1, 2], [3]]}},
            r"^hyperparameters\['widths'\] is a list of lists of several lengths",
        ),
        ({"hyperparameters": 0.1}, "^hyperparameters has one value: give one a trial, on a leading trial axis"),
        ({"hyperparameters": np.zeros(0)}, "^hyperparameters has 0 values"),
        ({"hyperparameters": {}}, "^hyperparameters= is empty"),
        ({"loss": lambda outputs, y: jnp.mean((outputs - y) ** 2)}, "one value an example"),
        ({"apply": normalised}, "^apply mixes examples: .* belong into state"),
        ({"apply": normalised, "init": init_with_last_layer_of_zeros}, "^apply mixes examples"),
        ({"loss": broadcast_error, "y": Y[:, 0]}, r"^loss mixes examples: .* \(4, 1\) outputs, y \(4,\)"),
        ({"init": init_with_statistics}, "^init returns batch_stats beside params"),
        ({"init": init_with_integers}, r"^init returns \['count'\] of int32"),
        ({"init": lambda key, hyperparameters: {}}, "^init returns no parameters"),
        ({"apply": lambda params, x, h, state: apply(params, x, h)}, r"^init must return \(params, state\), as apply"),
        ({"init": with_state(3), "apply": lambda params, x, h, state: apply(params, x, h)}, "^apply must return"),
        (
            {"init": with_state(3), "apply": lambda params, x, h, state: (apply(params, x, h), {"mean": x[0]})},
            r"^apply returns float32\[1\] for state\['mean'\], init float32\[3\]: a state keeps its shapes",
        ),
        (
            {"init": with_state(3), "apply": lambda params, x, h, state: (apply(params, x, h), {})},
            r"^apply returns nothing for state\['mean'\], init float32\[3\]",
        ),
        ({"x": np.where(X > 0, X, np.nan)}, "x= must be finite, got"),
        ({"y": np.full_like(Y, np.inf)}, "y= must be finite, got 60 of 60 values"),
        (
            {"hyperparameters": HYPERPARAMETERS | {"learning_rate": np.float32([0.1, np.nan, 0.1])}},
            r"^hyperparameters\['learning_rate'\] must be finite",
        ),
        ({"y": Y[:, 0]}, "y of the outputs' shape"),
        ({"num_epochs": 0}, "^num_epochs= must be a whole number, at least 1, got 0"),
        ({"batch_size": 0}, "^batch_size= must be a whole number, at least 1, got 0"),
        ({"batch_size": 16.0}, "^batch_size= must be a whole number, at least 1, got 16.0"),
        ({"early_stopping": True}, "^early_stopping= must be a whole number, at least 1, got True"),
        ({"early_stopping": 0}, "^early_stopping= must be a whole number, at least 1, got 0"),
        ({"weights": np.ones(59)}, "^x, weights and groups must have the same leading sample axis"),
        ({"weights": -np.ones(60)}, "^weights= must be one number of at least 0 a sample"),
        ({"weights": np.zeros(60)}, "^weights= must be one number of at least 0 a sample, not all 0"),
        ({"weights": np.ones((60, 1))}, "^weights= must be one number of at least 0 a sample"),
        ({"weights": np.full(60, np.inf)}, "^weights= must be finite"),
        (
            {"weights": np.arange(60) < 40, "folds": [(np.arange(40), np.arange(40, 60))]},
            "^weights= are all 0 in the validation part of fold 0",
        ),
        ({"groups": np.arange(59)}, "^x, weights and groups must have the same leading sample axis"),
        (
            {"metrics": {"mean": lambda outputs, y: jnp.mean(outputs - y)}},
            "^metric mean must return one value an example",
        ),
        ({"metrics": {"own": lambda outputs, y: outputs - y}}, r"^metric own must return .* got shape \(2, 1\)"),
        ({"metrics": {"own": lambda outputs, y: (outputs - outputs.mean())[:, 0]}}, "^metric own mixes examples"),
        ({"metrics": {"loss": squared_error}}, "^metrics= has 'loss', which is the name of another value"),
        ({"init": init_classes, "loss": cross_entropy, "y": np.eye(3)[np.arange(60) % 3]}, "one-hot: give y.argmax"),
        ({"num_folds": 1}, "number of folds"),
        ({"num_folds": 61}, "number of folds"),
        ({"folds": []}, "folds is empty"),
        ({"folds": [(np.arange(40), np.arange(30, 60))]}, "the same sample"),
    ],
)
def test_mistakes_are_told_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        cross_validate(**GIVEN | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y.astype(str)}, "^y= must be numbers, got an array of <U"),
        ({"x": None}, "^x= must be numbers, got an array of object"),
        ({"x": X.tolist()}, r"^x= must be an array, .* not a list: give np.asarray\(x\)"),
        ({"x": {"a": X, "b": [1.0] * 60}}, r"^x\['b'\]= must be an array, .* not a list: give np.asarray\(x\['b'\]\)"),
        ({"y": tuple(Y[:, 0].tolist())}, r"^y= must be an array, .* not a list: give np.asarray\(y\)"),
        (
            {"hyperparameters": {"learning_rate": np.array(["fast", "slow"])}},
            r"^hyperparameters\['learning_rate'\] must be numbers, got names",
        ),
        ({"hyperparameters": {"learning_rate": [0.1, None]}}, r"^hyperparameters\['learning_rate'\] must be numbers"),
        ({"hyperparameters": [{"learning_rate": 0.1}, {"learning_rate": 0.2}]}, "must be a dict of lists"),
        ({"loss": cross_entropy, "y": Y[:, 0]}, "classes as integers, got y of float"),
        ({"optimizer": optax.adam(0.1)}, "^optimizer= must be a function of the hyperparameters .* got Gradient"),
        ({"optimizer": lambda h: h["learning_rate"]}, "^optimizer must return an optax transformation, got "),
        ({"apply": lambda params, x, h, rng: x}, "^apply asks for rng, .* may ask for key, train, state, mask$"),
        ({"optimizer": lambda h, steps: optax.sgd(h)}, "^optimizer asks for steps, .* may ask for num_steps$"),
        ({"apply": "relu"}, "^apply= must be a function, got str"),
        ({"metrics": {"accuracy": 1.0}}, r"^metrics\['accuracy'\]= must be a function, got float"),
        ({"folds": 5}, "^folds= must be a list .* their number is num_folds="),
        ({"key": 0}, "^key= must be a PRNG key, such as jax.random.key\\(0\\), got int"),
        ({"key": jax.random.split(jax.random.key(0))}, "^key= must be a PRNG key"),
    ],
)
def test_wrong_types_are_told_in_one_line(change, message):
    with pytest.raises(TypeError, match=message) as error:
        cross_validate(**GIVEN | change)
    assert "\n" not in str(error.value)
