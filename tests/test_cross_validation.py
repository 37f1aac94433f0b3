"""`cross_validate` for its users: its results, its compilations, and one line for each mistake.

`test_mistakes.py` has the mistakes that are possible in a study as well.
"""

import gc
import itertools
import re
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import counted

from hw1jax import cross_entropy, cross_validate, formatting, k_fold, squared_error
from hw1jax.core import array_checks, programs
from hw1jax.core.cross_validation import CrossValidation

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


def absolute(outputs, y):
    return jnp.abs(outputs - y)[:, 0]


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
    "key": jax.random.PRNGKey(3),
    "num_epochs": 20,
    "batch_size": 16,
    "metrics": {"squared": squared_error, "absolute": absolute},
}
RATES = {"optimizer": optax.sgd, "hyperparameters": np.float32([0.1, 0.01])}
CLASSES = GIVEN | RATES | {"init": init_classes, "loss": cross_entropy, "num_epochs": 2, "metrics": None}


def member(tree, *indices):
    return jax.tree.map(lambda a: a[indices], tree)


def outputs_of(result, trial, fold, x=X):
    return np.asarray(apply(member(result.params, trial, fold), x, None))


# What is returned.


@pytest.fixture(scope="module")
def told():
    """The calls of `progress` in the fixture `result`."""
    return []


@pytest.fixture(scope="module")
def result(told):
    return cross_validate(**GIVEN, progress=lambda *what: told.append(what), return_params=True)


def test_losses_metrics_and_parameters_have_leading_trial_and_fold_axes(result):
    assert result.train_loss.shape == result.val_loss.shape == (3, 3, 20)
    assert all(leaf.shape[:2] == (3, 3) for leaf in jax.tree.leaves(result.params))
    assert list(result.metrics) == ["squared", "absolute"]
    np.testing.assert_allclose(result.metrics["squared"], result.val_loss, rtol=1e-6)
    folds = k_fold(60, 3, tuple(int(word) for word in np.asarray(GIVEN["key"])))
    for f, fold in enumerate(folds):
        np.testing.assert_array_equal(result.folds[f].validation, fold.validation)
        errors = (outputs_of(result, 2, f) - Y)[fold.validation]
        np.testing.assert_allclose(result.val_loss[2, f, -1], np.mean(errors**2), rtol=1e-5)
        np.testing.assert_allclose(result.metrics["absolute"][2, f, -1], np.mean(np.abs(errors)), rtol=1e-5)
    assert (result.train_loss[..., -1] < result.train_loss[..., 0]).all()  # it learns


def test_progress_is_told_to_whoever_asks(result, told):
    epochs = [done for done, _, _ in told]
    assert epochs == sorted(set(epochs)) and 2 <= len(epochs) <= 10  # neither too few calls nor too many
    assert told[-1][0] == 20 and {total for _, total, _ in told} == {20}
    for done, _, val_loss in told:
        np.testing.assert_array_equal(val_loss, result.val_loss[:, :, done - 1])


def test_trials_are_those_trained_among_others_or_alone(result):
    for i in range(3):  # a trial's initial parameters depend on its number, which it keeps
        among = {name: np.where(np.arange(3) == i, v, v / 2) for name, v in HYPERPARAMETERS.items()}
        others = cross_validate(**GIVEN | {"hyperparameters": among})
        np.testing.assert_allclose(others.val_loss[i], result.val_loss[i], rtol=1e-5)
        assert not np.isclose(others.val_loss[i - 1], result.val_loss[i - 1]).any()
    first = {name: values[:1] for name, values in HYPERPARAMETERS.items()}
    alone = cross_validate(**GIVEN | {"hyperparameters": first})
    np.testing.assert_allclose(alone.val_loss, result.val_loss[:1], rtol=1e-5)
    assert alone.params is None, "nobody asked for them"


SAME = {
    "lists": {"hyperparameters": {name: values.tolist() for name, values in HYPERPARAMETERS.items()}},
    "tuples": {"hyperparameters": {name: tuple(values.tolist()) for name, values in HYPERPARAMETERS.items()}},
    "a typed key": {"key": jax.random.key(3)},
    "double precision": {
        "x": X.astype(float),
        "y": Y.astype(float),
        "hyperparameters": {name: values.astype(float) for name, values in HYPERPARAMETERS.items()},
    },
    "JAX's arrays": {"x": jnp.asarray(X), "y": jnp.asarray(Y)},
    "own splits": {"folds": k_fold(60, 3, (0, 3))},
}


def test_the_same_in_other_types_is_the_same_and_compiles_nothing():
    expected = cross_validate(**GIVEN)
    for what, change in SAME.items():
        with counted() as compiled:
            found = cross_validate(**GIVEN | change)
        np.testing.assert_array_equal(found.val_loss, expected.val_loss, err_msg=what)
        assert "jit(_fit)" not in compiled, what


# Predictions.


def test_predictions_are_the_mean_of_the_folds_networks(result):
    new = np.linspace(-4, 4, 7, dtype=np.float32)[:, None]
    for trial in (None, 0):
        own = result.best if trial is None else trial
        each = [outputs_of(result, own, f, new) for f in range(3)]
        np.testing.assert_allclose(result.predict(new, trial=trial), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
        found = result.out_of_fold(trial)
        assert found.shape == (60, 1) and found.dtype == np.float32
        for f, fold in enumerate(result.folds):
            np.testing.assert_allclose(found[fold.validation], outputs_of(result, own, f)[fold.validation], atol=1e-5)
    for predict in (lambda trial: result.predict(new, trial=trial), result.out_of_fold):
        for trial in (3, -1):
            with pytest.raises(ValueError, match=f"^trial={trial}: there are trials 0 to 2$"):
                predict(trial)
    with pytest.raises(TypeError, match="^x= must be an array"):
        result.predict(new.tolist())


def test_samples_that_no_fold_holds_out_have_no_prediction_and_those_of_several_have_their_mean():
    splits = [(np.arange(40), np.arange(40, 50)), (np.arange(40), np.arange(45, 58))]
    result = cross_validate(**GIVEN, folds=splits, return_params=True)
    found = result.out_of_fold(1)
    assert np.isnan(found[:40]).all() and np.isnan(found[58:]).all()
    first, second = (outputs_of(result, 1, f) for f in range(2))
    for index, expected in ((slice(40, 45), first), (slice(45, 50), (first + second) / 2), (slice(50, 58), second)):
        np.testing.assert_allclose(found[index], expected[index], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.val_loss[1, 1, -1], np.mean((second - Y)[45:58] ** 2), rtol=1e-5)


def test_predictions_want_parameters():
    result = CrossValidation(np.zeros((2, 3, 1)), np.zeros((2, 3, 1)), x=X, folds=k_fold(60, 3, (0,)))
    for predict in (lambda: result.predict(X), result.out_of_fold):
        with pytest.raises(ValueError, match="call cross_validate with return_params=True"):
            predict()


# Scores.


def scored(last, **more):
    """A result whose validation losses [trial, fold] are these in the end."""
    last = np.asarray(last)
    return CrossValidation(np.zeros((*last.shape, 1)), last[:, :, None], **more)


def test_a_trial_that_failed_is_never_the_best_though_numpy_takes_nan_for_least():
    result = scored([[0.5, 0.7], [np.nan, 0.1], [0.3, 0.5], [0.7, 0.5], [0.1, np.inf], [-np.inf, 0.1]],
                    hyperparameters=np.arange(6))  # fmt: skip
    assert np.argmin(result.scores.mean) == 1
    assert result.best == 2 and isinstance(result.best, int)
    np.testing.assert_allclose(result.scores.mean, [0.6, np.nan, 0.4, 0.6, np.nan, np.nan])
    np.testing.assert_allclose(result.scores.std, [0.1, np.nan, 0.1, 0.1, np.nan, np.nan])
    # Equals share a rank.
    np.testing.assert_array_equal(result.table()["rank"], [2, np.nan, 1, 2, np.nan, np.nan])
    np.testing.assert_array_equal(result.table()["hyperparameters"], np.arange(6))


def test_where_all_trials_failed_none_is_the_best():
    with pytest.raises(ValueError, match="validation loss of all 2 is not finite"):
        _ = scored(np.full((2, 3), np.nan)).best


def test_a_table_is_in_scikit_learns_words():
    losses = np.random.default_rng(0).uniform(size=(3, 3, 4))
    hyperparameters = HYPERPARAMETERS | {"width": np.int32([[1, 2], [3, 4], [5, 6]])}
    result = CrossValidation(losses, losses, metrics={"accuracy": 1 - losses**2}, hyperparameters=hyperparameters)
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
    np.testing.assert_array_equal(table["std_val_accuracy"], result.metrics["accuracy"][:, :, -1].std(axis=1))
    np.testing.assert_array_equal(table["mean_val_loss"], result.scores.mean)
    np.testing.assert_array_equal(table["std_val_loss"], result.scores.std)
    assert sorted(table["rank"]) == [1, 2, 3] and table["rank"][result.best] == 1


def test_a_hyperparameter_that_has_the_name_of_another_column_is_not_lost():
    with pytest.raises(ValueError, match="^two hyperparameters have the same column in the table"):
        scored(np.zeros((1, 2)), hyperparameters={"a": np.zeros((1, 2)), "a_1": np.zeros(1)}).table()
    with pytest.raises(ValueError, match="^the table has a column rank of its own"):
        scored(np.zeros((1, 2)), hyperparameters={"rank": np.arange(1)}).table()


@pytest.mark.parametrize("num_trials", [3, 300])
def test_what_is_shown_of_a_result_fits_a_screen(num_trials):
    losses = np.random.default_rng(0).uniform(size=(num_trials, 5, 200))
    losses[2] = np.nan
    many = {f"number_{i}": losses[:, 0, i] for i in range(50)}
    params = {"w": np.zeros((num_trials, 5, 300, 10))}
    shown = repr(CrossValidation(losses, losses, params, metrics={"accuracy": 1 - losses}, hyperparameters=many))
    assert len(shown) <= 500
    assert shown.startswith(f"CrossValidation({num_trials} trials x 5 folds x 200 epochs, 1 failed; the best is trial ")
    for part in ("validation loss 0.", ", accuracy 0.", ", number_0=0."):
        assert part in shown
    assert repr(scored(losses[2:3, :, 0])) == "CrossValidation(1 trials x 5 folds x 1 epochs, 1 failed)"


def test_early_stopping_ends_when_all_have_stopped_and_scores_the_best_epochs():
    told = []
    rates = np.float32([0.3, 1e30])  # the second never has a finite loss
    changes = {"num_epochs": 400, "hyperparameters": rates, "optimizer": optax.adam, "y": Y + 0.5 * NOISE}
    result = cross_validate(
        **GIVEN | changes, early_stopping=5, progress=lambda *what: told.append(what), return_params=True
    )
    assert result.val_loss.shape == (2, 3, 400)
    assert told[-1][0] < 400
    for fold in range(3):
        best, own = result.best_epoch[0, fold], result.val_loss[0, fold]
        assert np.nanargmin(own) == best
        for losses in (own, result.train_loss[0, fold]):
            np.testing.assert_array_equal(np.isfinite(losses), np.arange(400) < best + 6)
        held_out = result.folds[fold].validation
        errors = (outputs_of(result, 0, fold) - changes["y"])[held_out]
        np.testing.assert_allclose(np.mean(errors**2), own[best], rtol=1e-5)
    lowest = np.nanmin(result.val_loss[0], axis=1)
    assert result.scores.mean[0] == lowest.mean()
    assert result.best == 0 and np.isnan(result.scores.mean[1])
    assert (result.best_epoch[1] == -1).all()
    np.testing.assert_allclose(told[-1][2][0], lowest)
    assert "1 failed" in repr(result)


# What compiles nothing, and what is kept.


def test_a_cell_that_runs_again_compiles_nothing_and_gives_the_same_and_a_changed_one_something_else():
    def cell(factor):
        own = {
            "init": lambda key, h: {"w": jax.random.normal(key, (1, 1))},
            "apply": lambda params, x, h: factor * x @ params["w"],
            "loss": lambda outputs, y: squared_error(outputs, y),
            "optimizer": lambda h: optimizer(h),
        }
        return cross_validate(**GIVEN | own)

    first = cell(0.5)
    with counted() as compiled:
        again = cell(0.5)
    assert not compiled
    np.testing.assert_array_equal(again.val_loss, first.val_loss)
    assert not np.isclose(cell(0.25).val_loss, first.val_loss).any()


def test_other_labels_of_the_same_shape_compile_nothing():
    labels = np.arange(60) % 3
    cross_validate(**CLASSES | {"y": labels})
    with counted() as compiled:
        cross_validate(**CLASSES | {"y": (labels + 1) % 3})
    assert not compiled


def test_nine_ten_and_eleven_trials_compile_once_and_are_the_same_trials():
    rates = np.linspace(0.01, 0.1, 11).astype(np.float32)
    given = GIVEN | RATES | {"return_params": True, "num_epochs": 2}
    eleven = cross_validate(**given | {"hyperparameters": rates})
    assert len(np.unique(eleven.val_loss)) == eleven.val_loss.size
    with counted() as compiled:
        for num_trials in (9, 10):
            found = cross_validate(**given | {"hyperparameters": rates[:num_trials]})
            np.testing.assert_array_equal(found.val_loss, eleven.val_loss[:num_trials])
            np.testing.assert_array_equal(found.metrics["absolute"], eleven.metrics["absolute"][:num_trials])
            np.testing.assert_array_equal(found.params["first"], eleven.params["first"][:num_trials])
    assert not compiled


@pytest.mark.slow
def test_calls_with_new_functions_let_go_of_those_before():
    """As where a notebook's cell runs again and again: each function may close over much memory."""

    def call():
        held = frozenset("what takes memory")
        own = {
            "init": lambda key, h: {"w": jax.random.normal(key, (len(held), 1))[:1]},
            "apply": lambda params, x, h: x @ params["w"] * len(held),
            "loss": lambda outputs, y: squared_error(outputs, y) * len(held),
            "optimizer": lambda h: optax.sgd(h / len(held)),
        }
        cross_validate(**GIVEN | RATES | own | {"num_epochs": 1})
        return weakref.ref(held)

    references = [call() for _ in range(programs.KEPT_TASKS + 3)]
    gc.collect()
    assert 0 < sum(reference() is not None for reference in references) <= programs.KEPT_TASKS


# Lines on standard error.


def test_progress_says_a_line_now_and_then_on_standard_error(capsys, monkeypatch):
    clock = itertools.count(0, 2.0)  # two seconds between readings
    monkeypatch.setattr(formatting.time, "monotonic", lambda: next(clock))
    say = formatting.progress_printer("cross_validate")
    for done in range(5, 101, 5):
        say(done, 100, np.array([[0.5, 0.25], [np.nan, 1]]))
    out, err = capsys.readouterr()
    assert not out
    first, *others = err.splitlines()
    assert first == "cross_validate: epoch 10 of 100, lowest mean validation loss 0.375, about 36 s left"
    assert others[0] == "cross_validate: epoch 35 of 100, lowest mean validation loss 0.375, about 26 s left"
    assert others[-1] == "cross_validate: 100 epochs in 40 s"
    assert len(others) == 4


def test_short_work_says_nothing_and_no_loss_is_named_where_all_trials_have_failed(capsys, monkeypatch):
    cross_validate(**GIVEN, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(formatting, "FIRST_AFTER", 0)
    cross_validate(**GIVEN | RATES | {"hyperparameters": np.full(3, 1e30, np.float32)}, progress=True)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "cross_validate: epoch 10 of 20" and said[-1].startswith("cross_validate: 20 epochs in ")


# Hyperparameters and folds.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.1, 0.2), np.array([0.1, 0.2])),
        ((np.zeros(2), [1, 2]), (np.zeros(2), np.array([1, 2]))),
        ([np.zeros(2), jnp.ones(2)], [np.zeros(2), np.ones(2)]),
        ({"a": {"b": [1, 2], "c": [[1, 2], [3, 4]]}}, {"a": {"b": np.array([1, 2]), "c": np.array([[1, 2], [3, 4]])}}),
    ],
)
def test_lists_of_values_are_arrays_and_lists_of_arrays_are_trees(given, expected):
    found = array_checks.check_hyperparameters(given)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    chex.assert_trees_all_equal(found, expected)


def test_a_splitter_of_scikit_learn_keeps_groups_together():
    splitter = pytest.importorskip("sklearn.model_selection").GroupKFold(3)
    groups = np.arange(60) // 5
    for fold in cross_validate(**GIVEN, folds=splitter, groups=groups.tolist()).folds:
        assert not np.intersect1d(groups[fold.train], groups[fold.validation]).size


# Mistakes.


def init_with_last_layer_of_zeros(key, hyperparameters):
    return init(key, hyperparameters) | {"second": jnp.zeros((8, 1))}


def init_many_classes(key, hyperparameters):
    return init(key, hyperparameters) | {"second": jax.random.normal(key, (8, 1499))}


def normalised(params, x, hyperparameters):
    hidden = jnp.tanh(x @ params["first"])
    return (hidden - hidden.mean(axis=0, keepdims=True)) @ params["second"]


def with_state(state):
    """Functions of a net whose `apply` returns this for the state that begins as three zeros."""

    new = state
    return {
        "init": lambda key, h: (init(key, h), {"mean": jnp.zeros(3)}),
        "apply": lambda params, x, h, state: (apply(params, x, h), new),
    }


def wrong(message, **change):
    return message, change


HALVES = [(np.arange(40), np.arange(40, 60))]
RATE, TWO = "hyperparameters['learning_rate']", np.float32([0.1, 0.2])
COUNT = "must be a whole number, at least 1, got"
WEIGHTS = "weights= must be one number of at least 0 a sample, not all 0, got shape"
SAMPLES = "must have the same leading sample axis, at least 1 long, got shapes"
STATE = "state['mean'], init float32[3]: a state keeps its shapes"
MISTAKES = [
    wrong(f"x and y {SAMPLES} [(60, 1), ()]", y=np.float32(0)),
    wrong("x= is empty", x={}),
    wrong("y['b']= is empty", y={"a": Y, "b": ()}),
    wrong("y= must be numbers, got an array of <U..", y=Y.astype(str)),
    wrong("x= must be numbers, got an array of object..", x=None),
    wrong("x['b']= must be an array, .. not a list: give np.asarray(x['b'])", x={"a": X, "b": [1.0] * 60}),
    wrong("y= must be an array, .. not a list: give np.asarray(y)", y=tuple(Y[:, 0].tolist())),
    wrong(f"{RATE} has 2 values, others 3: ..", hyperparameters=HYPERPARAMETERS | {"learning_rate": TWO, "b": [1] * 3}),
    wrong(
        "hyperparameters['a']['b'] has 3 values, others 2: ..",
        hyperparameters={"a": {"b": [1, 2, 3]}, "c": TWO, "d": TWO},
    ),
    wrong("hyperparameters['b'] is a list of lists of several lengths", hyperparameters={"a": TWO, "b": [[1, 2], [3]]}),
    wrong("hyperparameters has one value: give one a trial, on a leading trial axis", hyperparameters=0.1),
    wrong("hyperparameters has 0 values: ..", hyperparameters=np.zeros(0)),
    wrong("hyperparameters= is empty: ..", hyperparameters={}),
    wrong(f"{RATE} must be numbers, got an array of object..", hyperparameters={"learning_rate": [0.1, None]}),
    wrong(f"{RATE} must be finite, got 1 of 2 ..", hyperparameters={"learning_rate": np.array([0.1, np.nan])}),
    wrong(f"num_epochs= {COUNT} 0", num_epochs=0),
    wrong(f"batch_size= {COUNT} 0", batch_size=0),
    wrong(f"batch_size= {COUNT} 16.0", batch_size=16.0),
    wrong(f"early_stopping= {COUNT} True", early_stopping=True),
    wrong(f"early_stopping= {COUNT} 0", early_stopping=0),
    wrong(f"x, weights and groups {SAMPLES} [(60, 1), (59,)]", weights=np.ones(59)),
    wrong(f"{WEIGHTS} (60,)", weights=-np.ones(60)),
    wrong(f"{WEIGHTS} (60, 1)", weights=np.ones((60, 1))),
    wrong("weights= must be finite, ..", weights=np.full(60, np.inf)),
    wrong("weights= are all 0 in the validation part of fold 0", weights=np.arange(60) < 40, folds=HALVES),
    wrong("the number of folds must lie between 2 and the 60 samples, got 1", num_folds=1),
    wrong("the number of folds must lie between 2 and the 60 samples, got 61", num_folds=61),
    wrong("folds is empty", folds=[]),
    wrong("fold 0: the same sample is in its training and its validation part", folds=[(range(40), range(39, 60))]),
    wrong("key= must be a PRNG key, ..", key=jax.random.split(jax.random.key(0))),
    wrong("apply mixes examples: .. belong into state ..", apply=normalised),
    wrong("apply mixes examples: ..", apply=normalised, init=init_with_last_layer_of_zeros),
    wrong("apply= must be a function, got str", apply="relu"),
    wrong("init returns no parameters", init=lambda key, h: {}),
    wrong("init must return (params, state), as apply takes state", **with_state({}) | {"init": init}),
    wrong(
        "apply must return (outputs, state), as it takes state",
        **with_state({}) | {"apply": lambda params, x, h, state: apply(params, x, h)},
    ),
    wrong(f"apply returns float32[2] for {STATE}", **with_state({"mean": jnp.zeros(2)})),
    wrong(f"apply returns nothing for {STATE}", **with_state({})),
    wrong("optimizer must return an optax transformation, got ..", optimizer=lambda h: h["learning_rate"]),
    wrong("optimizer has an unknown parameter steps; it may have num_steps", optimizer=lambda h, steps: optax.sgd(0.1)),
    wrong("metric own mixes examples: ..", metrics={"own": lambda outputs, y: (outputs - outputs.mean())[:, 0]}),
    wrong("metrics= has 'loss', which is the name of another value", metrics={"loss": squared_error}),
    wrong(
        "the loss of label 3 of y is not finite",
        **CLASSES | {"loss": lambda o, y: jnp.where(y < 3, o[:, 0] ** 2, jnp.nan), "y": np.arange(60) % 4},
    ),
    wrong("y has labels -1 to 2, 3 outputs take 0 to 2", **CLASSES | {"y": np.arange(60) % 4 - 1}),
    wrong("y has labels 0 to 3, 3 outputs take 0 to 2", **CLASSES | {"y": np.arange(60) % 4}),
    wrong(  # more labels than are tried: the ends are among them
        "y has labels 0 to 1499, 1499 outputs take 0 to 1498",
        **CLASSES | {"init": init_many_classes, "x": np.zeros((1500, 1), np.float32), "y": np.arange(1500)},
    ),
]


@pytest.mark.parametrize(("message", "change"), MISTAKES)
def test_a_mistake_is_told_in_one_line(message, change):
    with pytest.raises((TypeError, ValueError)) as caught:
        cross_validate(**GIVEN | change)
    assert re.fullmatch(re.escape(message).replace(r"\.\.", ".*"), str(caught.value)), str(caught.value)
