"""`cross_validate` trains anyone's convolutions: each member equals the net trained alone, in a plain loop."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest

from hw1jax import cross_validate, population, squared_error
from hw1jax.folds import PADDING, k_fold, minibatches
from hw1jax.layout import Layout

NUM_SAMPLES, NUM_EPOCHS, BATCH_SIZE = 14, 2, 4  # folds of 7: an epoch has two steps, the second of 3 samples
RATES = np.array([2**-4, 2**-6])
KEY = jax.random.key(5)
KINDS = {
    "conv 1-D": (1, lambda: nn.Conv(3, (3,))),
    "conv 2-D": (2, lambda: nn.Conv(3, (3, 2))),
    "depthwise": (2, lambda: nn.Conv(4, (3, 3), feature_group_count=2)),
    "strided": (2, lambda: nn.Conv(3, (3, 3), strides=2)),
    "dilated": (1, lambda: nn.Conv(3, (3,), kernel_dilation=2)),
    "causal": (1, lambda: nn.Conv(3, (3,), padding="CAUSAL")),
    "transposed": (2, lambda: nn.ConvTranspose(2, (3, 3), strides=(2, 2))),
    "average pooling": (2, lambda: lambda x: nn.avg_pool(nn.Conv(3, (3, 3))(x), (2, 2), (2, 2))),
    "max pooling": (2, lambda: lambda x: nn.max_pool(nn.Conv(3, (3, 3))(x), (2, 2), (2, 2))),
    "1 x 1": (2, lambda: nn.Conv(3, (1, 1))),
}


class Net(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(KINDS[self.kind][1]()(x))
        x = nn.tanh(nn.Conv(2, (2,) * (x.ndim - 2))(x))  # a second one, so that the gradient in x counts
        return nn.Dense(1)(x.reshape(len(x), -1))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def data(kind):
    rng = np.random.default_rng(0)
    return rng.normal(size=(NUM_SAMPLES, *(5,) * KINDS[kind][0], 2)), rng.normal(size=(NUM_SAMPLES, 1))


def functions(kind):
    net = Net(kind)

    def init(key, rate):  # multiples of 1/64, which no way to compile rounds
        shapes = jax.eval_shape(net.init, key, jnp.zeros((1, *(5,) * KINDS[kind][0], 2)))
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            tree, [jax.random.randint(k, leaf.shape, -32, 32) / 64.0 for k, leaf in zip(keys, leaves, strict=True)]
        )

    return init, lambda params, x, rate: net.apply(params, x), squared_error, lambda rate: optax.sgd(rate, 0.9)


def trained_alone(kind):
    """(train_loss, val_loss), each [trial, fold, epoch]."""
    (init, apply, loss, optimizer), (x, y) = functions(kind), data(kind)
    seed = tuple(int(word) for word in jax.random.key_data(KEY))
    folds = k_fold(NUM_SAMPLES, 2, seed)
    order = minibatches(folds, range(NUM_EPOCHS), batch_size=BATCH_SIZE, seed=seed)

    @jax.jit
    def mean_loss(params, x, y):
        return jnp.mean(loss(apply(params, x, None), y))

    @jax.jit
    def step(params, state, x, y, rate):
        value, gradient = jax.value_and_grad(mean_loss)(params, x, y)
        updates, state = optimizer(rate).update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    initial = jax.jit(init)
    train_loss, val_loss = np.zeros((2, len(RATES), 2, NUM_EPOCHS))
    for t, f in np.ndindex(len(RATES), 2):
        params = initial(jax.random.fold_in(jax.random.fold_in(KEY, t), f), RATES[t])
        state = optimizer(RATES[t]).init(params)
        for e in range(NUM_EPOCHS):
            for index in order[f, e]:
                index = index[index != PADDING]
                params, state, value = step(params, state, x[index], y[index], RATES[t])
                train_loss[t, f, e] += len(index) * value / len(folds[f].train)
            val_loss[t, f, e] = mean_loss(params, x[folds[f].validation], y[folds[f].validation])
    return train_loss, val_loss


# A CPU's own layout, one by one, and an accelerator's, all at once, on one device and on two.
WAYS = {"own": [(None, 1), (Layout(), 2)], "other": [(Layout(), 1), (None, 2)]}


@pytest.fixture(params=WAYS)
def ways(request, monkeypatch):
    """Lays out one call of `cross_validate` after the other; yields how, and how they have been laid out."""
    plain_plan, left, used = population.make_plan, list(WAYS[request.param]), []

    def make_plan(num_trials, num_folds, params, chosen):
        layout, num_devices = left.pop(0)
        plan = plain_plan(num_trials, num_folds, params, layout or chosen, num_devices)
        used.append((plan.layout.one_by_one, plan.num_devices))
        return plan

    monkeypatch.setattr(population, "make_plan", make_plan)
    yield WAYS[request.param]
    assert used == [(layout is None, num_devices) for layout, num_devices in WAYS[request.param]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_members_with_convolutions_equal_the_net_trained_alone(kind, ways):
    (x, y), expected = data(kind), trained_alone(kind)
    for _ in ways:
        found = cross_validate(
            *functions(kind), RATES, x, y, key=KEY, num_folds=2, num_epochs=NUM_EPOCHS, batch_size=BATCH_SIZE
        )
        for a, b in zip((found.train_loss, found.val_loss), expected, strict=True):
            np.testing.assert_array_less(np.abs(a - b), 1e-10 * np.maximum(1, np.abs(b)))
    assert len(np.unique(expected[1])) == expected[1].size  # members and epochs differ


class Everything(nn.Module):
    """Convolutions with batch norm, which wants a mask, and dropout, which wants a key."""

    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.Conv(3, (3, 3), use_bias=False)(x)
        mask = None if mask is None else mask[:, None, None, None]
        x = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.7)(x, mask=mask))
        x = nn.Dropout(0.25, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = nn.tanh(nn.Conv(2, (2, 2), strides=2)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(1)(x.reshape(len(x), -1))


@pytest.mark.slow
def test_members_with_convolutions_batch_norm_and_dropout_equal_the_net_trained_alone(ways):
    net, (x, y) = Everything(), data("conv 2-D")

    def init(key, rate):
        shapes = jax.eval_shape(lambda key, x: net.init(key, x, False, None), key, x[:1])
        stats = shapes["batch_stats"]["BatchNorm_0"]
        start = {"mean": jnp.zeros(stats["mean"].shape), "var": jnp.ones(stats["var"].shape)}
        return plain.exact(key, shapes["params"]), {"BatchNorm_0": start}

    def apply(params, x, rate, key, train, mask, state):
        rngs = {} if key is None else {"dropout": key}
        variables = {"params": params, "batch_stats": state}
        outputs, new = net.apply(variables, x, train, mask, rngs=rngs, mutable=["batch_stats"])
        return outputs, new["batch_stats"]

    alone = plain.Net(
        init,
        lambda params, state, x, rate, key, train: apply(params, x, rate, key if train else None, train, None, state),
        squared_error,
        lambda rate, num_steps: optax.sgd(rate, 0.9),
    )
    settings = {"key": KEY, "num_folds": 2, "num_epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE}
    expected = plain.cross_validate(alone, RATES, x, y, **settings)
    for _ in ways:
        found = cross_validate(
            init, apply, squared_error, lambda rate: optax.sgd(rate, 0.9), RATES, x, y, return_params=True, **settings
        )
        plain.assert_equal(found, expected)
