"""`cross_validate` as its users see it: the README's example, their own splits, and one line for each mistake."""

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

from hw1jax import cross_entropy, cross_validate, cross_validation, k_fold, rmsprop_l2, squared_error, stratified_k_fold
from hw1jax.cross_validation import CrossValidation

X = np.linspace(-3, 3, 60, dtype=np.float32)[:, None]
Y = np.sin(2 * X)


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
    compiled = []
    cross_validate(**GIVEN)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    other = {name: values / 2 for name, values in HYPERPARAMETERS.items()}
    cross_validate(**GIVEN | {"hyperparameters": other, "key": jax.random.key(4)})
    assert not compiled


def test_other_labels_of_the_same_shape_compile_nothing():
    labels = np.arange(60) % 3
    classify = GIVEN | {"init": init_classes, "loss": cross_entropy}
    cross_validate(**classify | {"y": labels})
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    cross_validate(**classify | {"y": labels % 2})
    assert not compiled


@pytest.mark.parametrize("num_epochs", [1, 7, 12, 97, 100, 1000])
@pytest.mark.parametrize("num_indices", [30, 480, 10_000, 3_000_000])
def test_a_call_advances_by_a_divisor_of_the_epochs_neither_too_short_nor_too_long(num_epochs, num_indices):
    found = cross_validation._epochs_per_call(num_epochs, num_indices)
    assert num_epochs % found == 0
    assert found == 1 or found * num_indices <= 2**22
    assert found <= 25 or num_epochs == 97  # a prime: one call, or as many as it has epochs
    assert found * num_indices >= 4800 or found >= min(num_epochs, 10)


def test_calling_the_program_in_pieces_changes_nothing(monkeypatch):
    in_pieces = cross_validate(**GIVEN | {"num_epochs": 20}, return_params=True)
    monkeypatch.setattr(cross_validation, "FEW_EPOCHS", 20)
    at_once = cross_validate(**GIVEN | {"num_epochs": 20}, return_params=True)
    chex.assert_shape(in_pieces.val_loss, (3, 3, 20))
    chex.assert_trees_all_close(in_pieces, at_once, rtol=1e-6, atol=1e-6)


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
    tenth, last = map(float, done.stdout.split())
    assert last < 1.3 * tenth, (tenth, last)


AGAIN = """
import gc, re
import jax, numpy as np, optax
from hw1jax import cross_validate, squared_error

x = np.linspace(-3, 3, 12, dtype=np.float32)[:, None]
for call in range(1, 31):
    table = np.full(5_000_000, call, np.float32)
    cross_validate(
        lambda key, h: {"w": jax.random.normal(key, (1, 1))},
        lambda params, x, h, table=table: x @ params["w"] + table[:1],
        lambda outputs, y: squared_error(outputs, y),
        lambda h: optax.sgd(h),
        np.float32([0.1, 0.01]), x, x, key=jax.random.key(0), num_epochs=2, batch_size=4,
    )
    if call in (10, 30):
        print(int(re.search(r"VmRSS:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


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
        ({"apply": normalised}, "^apply mixes examples: .* not supported"),
        ({"apply": normalised, "init": init_with_last_layer_of_zeros}, "^apply mixes examples"),
        ({"loss": broadcast_error, "y": Y[:, 0]}, r"^loss mixes examples: .* \(4, 1\) outputs, y \(4,\)"),
        ({"init": init_with_statistics}, "^init returns batch_stats beside params"),
        ({"init": init_with_integers}, r"^init returns \['count'\] of int32"),
        ({"init": lambda key, hyperparameters: {}}, "^init returns no parameters"),
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
