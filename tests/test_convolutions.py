"""`cross_validate` trains any convolutions: each member equals the network trained alone in a plain loop."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
from plain import float64  # noqa: F401

from hw1jax import cross_validate, squared_error
from hw1jax.core import cost
from hw1jax.core.layout import Layout

# Folds of 7: an epoch has two steps, the second of 3 samples.
SETTINGS = {"key": jax.random.key(5), "num_folds": 2, "num_epochs": 2, "batch_size": 4}
RATES = np.array([2**-4, 2**-6])
RNG = np.random.default_rng(0)
IMAGES, SIGNALS, Y = (RNG.normal(size=(14, *shape)) for shape in ((5, 5, 2), (9, 2), (1,)))


class Images(nn.Module):
    """Convolutions each after another, so that its gradient in x counts."""

    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.max_pool(nn.tanh(nn.Conv(4, (3, 2))(x)), (2, 2), (1, 1))
        x = nn.tanh(nn.Conv(4, (3, 3), feature_group_count=2, strides=2)(x))
        return nn.Dense(1)(x.reshape(len(x), -1))


class MoreImages(nn.Module):
    """More kinds of them."""

    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.avg_pool(nn.tanh(nn.Conv(3, (1, 1))(x)), (2, 2), (2, 2))
        x = nn.tanh(nn.ConvTranspose(2, (3, 3), strides=(2, 2))(x))
        x = nn.tanh(nn.Conv(2, (2, 3))(x))
        return nn.Dense(1)(x.reshape(len(x), -1))


class Signals(nn.Module):
    """Convolutions of one dimension."""

    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.tanh(nn.Conv(3, (3,))(x))
        x = nn.tanh(nn.Conv(3, (3,), padding="CAUSAL")(x))
        x = nn.tanh(nn.Conv(2, (3,), kernel_dilation=2)(x))
        return nn.Dense(1)(x.reshape(len(x), -1))


class Random(nn.Module):
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


# A CPU's own layout, one by one, and an accelerator's, all at once; on one device and on two.
WAYS = {"one by one": (None, 1), "at once on two": (Layout(), 2), "at once": (Layout(), 1), "on two": (None, 2)}
QUICK = [(Images, "one by one"), (Images, "at once on two")]
SLOW = [(net, way) for net in (MoreImages, Signals) for way in ("one by one", "at once on two")]
SLOW += [(Random, way) for way in WAYS]


@pytest.mark.parametrize(("net", "way"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_members_with_convolutions_equal_the_net_trained_alone(net, way, monkeypatch):
    net, x, (layout, num_devices) = net(), SIGNALS if net is Signals else IMAGES, WAYS[way]
    given, used = cost.make_plan, []

    def make_plan(num_trials, num_folds, params, chosen, **more):
        used.append(given(num_trials, num_folds, params, layout or chosen, num_devices, **more))
        return used[-1]

    def init(key, rate):
        shapes = jax.eval_shape(lambda key, x: net.init(key, x, False, None), key, x[:1])
        state = jax.tree.map(lambda a: jnp.ones(a.shape), {**shapes}.get("batch_stats", {}))
        return plain.exact(key, shapes["params"]), state

    def apply(params, x, rate, key, train, mask, state):
        rngs = {} if key is None else {"dropout": key}
        variables = {"params": params, "batch_stats": state}
        outputs, new = net.apply(variables, x, train, mask, rngs=rngs, mutable=["batch_stats"])
        return outputs, new.get("batch_stats", {})

    def alone(params, state, x, rate, key, train):
        return apply(params, x, rate, key if train else None, train, None, state)

    def optimizer(rate, num_steps):
        return optax.sgd(rate, 0.9)

    monkeypatch.setattr(cost, "make_plan", make_plan)
    expected = plain.cross_validate(plain.Net(init, alone, squared_error, optimizer), RATES, x, Y, **SETTINGS)
    found = cross_validate(init, apply, squared_error, optimizer, RATES, x, Y, return_params=True, **SETTINGS)
    plain.assert_equal(found, expected)
    [plan] = used
    assert (plan.layout.sequential, plan.num_devices) == (layout is None, num_devices)
