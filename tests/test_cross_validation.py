"""`cross_validate` as its users see it: the README's example, their own splits, and one line for each mistake."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hw1jax import cross_entropy, cross_validate, k_fold, rmsprop_l2, squared_error, stratified_k_fold

X = np.linspace(-3, 3, 60, dtype=np.float32)[:, None]
Y = np.sin(2 * X)


def init(key, hyperparameters):
    first, second = jax.random.split(key)
    return {"first": jax.random.normal(first, (1, 8)), "second": 0.1 * jax.random.normal(second, (8, 1))}


def apply(params, x, hyperparameters):
    return jnp.tanh(x @ params["first"]) @ params["second"]


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


def test_readme_example_runs_and_is_short(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 15
    names = {}
    exec(code, names)
    assert names["result"].val_loss.shape == (8, 3, 100)
    assert 1e-3 < float(capsys.readouterr().out) < 0.2


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
    compiled = []
    cross_validate(**GIVEN)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    other = {name: values / 2 for name, values in HYPERPARAMETERS.items()}
    cross_validate(**GIVEN | {"hyperparameters": other, "key": jax.random.key(4)})
    assert not compiled


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
        ({"hyperparameters": {"learning_rate": np.ones(3), "momentum": np.ones(2)}}, "same leading trial axis"),
        ({"hyperparameters": 0.1}, "same leading trial axis"),
        ({"hyperparameters": np.zeros(0)}, "at least 1 long"),
        ({"loss": lambda outputs, y: jnp.mean((outputs - y) ** 2)}, "one value an example"),
        ({"x": np.where(X > 0, X, np.nan)}, "x must be finite, got"),
        ({"y": np.full_like(Y, np.inf)}, "y must be finite, got 60 of 60 values"),
        ({"hyperparameters": HYPERPARAMETERS | {"learning_rate": np.float32([0.1, np.nan, 0.1])}}, "must be finite"),
        ({"y": Y[:, 0]}, "y of the outputs' shape"),
        ({"num_epochs": 0}, "num_epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
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
        ({"y": Y.astype(str)}, "y must be numbers, got an array of <U"),
        ({"hyperparameters": {"learning_rate": np.array(["fast", "slow"])}}, "hyperparameters must be numbers"),
        ({"loss": cross_entropy}, "classes as integers, got y of float"),
    ],
)
def test_wrong_types_are_told_in_one_line(change, message):
    with pytest.raises(TypeError, match=message) as error:
        cross_validate(**GIVEN | change)
    assert "\n" not in str(error.value)
