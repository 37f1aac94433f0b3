"""The plain way to train one network alone: its own widths, `lax.conv`, autodiff, a Python loop. Nothing is shared
with the package but the layout of the parameters, so that agreement means something."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax


def forward(params, x):
    """Outputs [example, output] of a dense net, or of a CNN for uint8 images where the parameters have convolutions."""
    if "conv1" in params:
        x = (x / 255.0)[:, None]  # [image, channel, row, column]
        for name in sorted(name for name in params if name.startswith("conv")):
            x = pool(nn.relu(convolution(x, params[name]["weights"])))
    elif x.dtype == np.uint8:
        x = x / 255.0
    x = x.reshape(x.shape[0], -1)
    for name in sorted(name for name in params if name.startswith("dense")):
        x = nn.sigmoid(x @ params[name]["weights"][:, 1:].T + params[name]["weights"][None, :, 0])
    return x @ params["output"]["weights"][:, 1:].T + params["output"]["weights"][None, :, 0]


def convolution(x, weights):
    """[image, channel, row, column] with padding 1."""
    num_inputs = x.shape[1]
    size = int(((weights.shape[1] - 1) // num_inputs) ** 0.5)
    kernel = weights[:, 1:].reshape(-1, num_inputs, size, size)
    x = lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return x + weights[:, 0][None, :, None, None]


def pool(x):
    """2x2 max-pooling, floor; [image, channel, row, column]."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def squared_error(outputs, y):
    return jnp.mean((outputs - y) ** 2)


def cross_entropy(outputs, y):
    return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y])


def optimizer(name, learning_rate, l2):
    """optax's own pieces, with coupled L2."""
    rules = {
        "adam": optax.scale_by_adam(),
        "sgd": optax.identity(),
        "rmsprop": optax.scale_by_rms(decay=0.99, eps_in_sqrt=False),
    }
    return optax.chain(optax.add_decayed_weights(l2), rules[name], optax.scale(-learning_rate))


def crop(params, shapes):
    """The corner of padded parameters that a network of these shapes has."""
    return jax.tree.map(lambda leaf, shape: leaf[tuple(map(slice, shape.shape))], params, shapes)


def train(params, loss, rule, x, y, batches):
    """-> (params, loss of each step); `batches` lists index arrays."""
    state, x, y = jax.jit(rule.init)(params), jnp.asarray(x), jnp.asarray(y)

    @jax.jit  # as a whole: operations one by one are compiled too, each of them
    def step(params, state, index):
        value, gradient = jax.value_and_grad(lambda p: loss(forward(p, x[index]), y[index]))(params)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    values = []
    for index in batches:
        params, state, value = step(params, state, jnp.asarray(index))
        values.append(float(value))
    return params, np.array(values)
