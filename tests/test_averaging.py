"""An exponential moving average of the parameters in a search: ranking, halving, refit and the saved model.

`test_plain_loop.py` tests it in `cross_validate`.
"""

from dataclasses import replace

import chex
import jax
import numpy as np
import optax
import pytest
import reference
from studies import TOY, TOY_DATA

from hw1jax import cross_validate, run_study, squared_error
from hw1jax.core.folds import Fold, k_fold, minibatches
from hw1jax.search.space import Int

DECAY, SEED, NUM_EPOCHS = 0.6, 5, 4
NARROW = {"hidden_units": (Int(3, 3, width=True), Int(2, 2, width=True))}
STUDY = replace(TOY, space=TOY.space | NARROW, num_epochs=NUM_EPOCHS)


@pytest.mark.parametrize("averaging", [0.0, 1.0, -0.5, 2.0, True, "0.9"])
def test_what_is_no_decay_is_refused(averaging):
    functions = lambda key, h: {"w": h}, lambda params, x, h: params["w"] * x, squared_error, optax.sgd
    settings = {"key": jax.random.key(0), "num_epochs": 1, "batch_size": 7}
    with pytest.raises(ValueError, match="averaging= is a decay, above 0 and below 1"):
        cross_validate(*functions, [0.1], TOY_DATA.x_train, TOY_DATA.y_train, averaging=averaging, **settings)


def trained_alone(found, number, fold_number, train):
    """(average of the parameters, loss on all that was trained on in the last epoch) of one member of the search."""
    task, params = found.model.task, found.best.params
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), number), fold_number)
    own = jax.jit(task.init)(key, found.model.hyperparameters)
    rule = reference.optimizer(params["optimizer"], params["learning_rate"], params["l2"])
    state, average, num_updates, losses = jax.jit(rule.init)(own), own, 0, []
    x, y = TOY_DATA.x_train, TOY_DATA.y_train

    @jax.jit
    def update(own, state, x, y):
        value, gradient = jax.value_and_grad(lambda p: reference.squared_error(reference.forward(p, x), y))(own)
        updates, state = rule.update(gradient, state, own)
        return optax.apply_updates(own, updates), state, value

    [order] = minibatches([Fold(train, None)], range(NUM_EPOCHS), batch_size=20, seed=(SEED,), first_fold=fold_number)
    for batches in order:
        losses = []
        for padded in batches:
            index = padded[padded >= 0]
            own, state, value = update(own, state, x[index], y[index])
            decay = min(DECAY, (1 + num_updates) / (10 + num_updates))
            average = jax.tree.map(lambda a, p: decay * np.asarray(a) + (1 - decay) * np.asarray(p), average, own)  # noqa: B023
            num_updates += 1
            losses.append(float(value) * len(index))
    return average, sum(losses) / len(train)


@pytest.mark.parametrize("widths", ["padded", "exact"])
def test_the_best_of_a_search_with_halving_has_the_averages_of_its_members_trained_alone(tmp_path, widths):
    found = run_study(STUDY, out=tmp_path / "run", widths=widths, averaging=DECAY, halving=4, seed=SEED, num_devices=1)
    row, close = found.row, {"rtol": 1e-4, "atol": 1e-5}
    assert found.trials["epochs"].tolist().count(NUM_EPOCHS) == 1
    for f, fold in enumerate(k_fold(len(TOY_DATA.x_train), 3, (SEED,))):
        expected, train_loss = trained_alone(found, found.best.number, f, fold.train)
        chex.assert_trees_all_close(found.model.folds[f][0], expected, **close)
        outputs = reference.forward(expected, TOY_DATA.x_train[fold.validation])
        val_loss = reference.squared_error(outputs, TOY_DATA.y_train[fold.validation])
        np.testing.assert_allclose(found.histories["val_loss"][row, f, -1], val_loss, **close)
        np.testing.assert_allclose(found.histories["train_loss"][row, f, -1], train_loss, **close)
    refitted, _ = trained_alone(found, 0, 3, np.arange(len(TOY_DATA.x_train)))
    chex.assert_trees_all_close(found.model.params, refitted, **close)
