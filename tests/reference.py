"""The plain computation of one network alone: own widths, `lax.conv`, autodiff, optax's own optimizers.

It shares with the package only the layout of the parameters, so agreement is evidence.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax


def activations(params, x):
    """What each layer makes of x, by its name: of a dense net, or of a CNN where the parameters have convolutions.

    Pixels are uint8. Convolutions have [image, channel, row, column], dense layers [example, unit].
    """
    found = {}
    x = x / 255.0 if x.dtype == np.uint8 else x
    x = x[:, None] if "conv1" in params else x
    for name in sorted(params):  # conv1, ..., dense1, ..., output
        weights = params[name]["weights"]
        if name.startswith("conv"):
            found[name] = nn.relu(convolution(x, weights))
            x = found[name.replace("conv", "pool")] = pool(found[name])
        else:
            z = x.reshape(len(x), -1) @ weights[:, 1:].T + weights[None, :, 0]
            x = found[name] = z if name == "output" else nn.sigmoid(z)
    return found


def forward(params, x):
    """Outputs [example, output]."""
    return activations(params, x)["output"]


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
