"""The homework's networks, as Flax modules whose widths may differ between the members of a program.

A module has the maximum widths; a call takes the member's own. All beyond stays exactly 0 in parameters, gradients and
activations, so a padded network computes the same as the unpadded one.

If the collection "intermediates" is mutable, the networks store their activations there (`activations`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hw1jax import layers
from hw1jax.layers import Width

FIRST_KERNEL, LATER_KERNEL = 4, 5  # kernel sizes of the report; later ones must be odd


class MaskedDense(nn.Module):
    """A dense layer with at most `units` units, initialised as torch's `nn.Linear`."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array, num_inputs: Width, width: Width) -> jax.Array:
        """x [batch, inputs], of which the first `num_inputs` are real -> [batch, units], not masked yet."""
        shape = (self.units, 1 + x.shape[-1])
        weights = self.param("weights", layers.uniform_by_fan_in, shape, num_inputs, width)
        return layers.dense(x, weights)


class MaskedConvPool(nn.Module):
    """Convolution with padding 1, ReLU and 2x2 max-pooling, at most `channels` channels, initialised as torch's.

    For images of any size and number of channels, in the layout of `images_last`.

    Attributes:
      channels: the maximum number of channels.
      kernel_size: rows and columns of a kernel; odd for `layers.conv_pool`.
      layer: (x, weights) -> outputs: `layers.conv_pool`, `layers.first_conv_pool` or `layers.lax_conv_pool`.
    """

    channels: int
    kernel_size: int
    layer: Callable[[jax.Array, jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, num_inputs: Width, width: Width) -> jax.Array:
        """x [channel, row, column, image], of which the first `num_inputs` channels are real -> the same, pooled."""
        shape = (self.channels, 1 + len(x) * self.kernel_size**2)
        weights = self.param("weights", layers.uniform_by_fan_in, shape, num_inputs * self.kernel_size**2, width)
        return self.layer(x, weights)  # ReLU of a padded channel is ReLU(0 + 0) = 0: no mask is needed after it


class MLP(nn.Module):
    """Dense layers with an activation after each hidden one.

    Attributes:
      hidden_units: the maximum number of units of each hidden layer.
      num_outputs: outputs, without an activation.
      activation: of the hidden layers; the homework's is the sigmoid.
    """

    hidden_units: Sequence[int]
    num_outputs: int
    activation: Callable[[jax.Array], jax.Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, widths: Sequence[Width] | jax.Array) -> jax.Array:
        """x float [batch, ...], flattened; widths int [layer] -> float [batch, num_outputs]."""
        x = x.reshape(x.shape[0], -1)
        return _dense_layers(self, x, x.shape[1], widths)


class CNN(nn.Module):
    """Convolutions with pooling, then dense layers with an activation after each hidden one.

    Attributes:
      channels: the maximum number of channels of each convolution (the first 4 x 4, later ones 5 x 5).
      hidden_units: the maximum number of units of each hidden dense layer.
      num_outputs: classes.
      activation: of the hidden dense layers; the homework's is the sigmoid.
      first_conv_pool, conv_pool: implementations of the first and of later convolutions, see `layers`.
    """

    channels: Sequence[int]
    hidden_units: Sequence[int]
    num_outputs: int
    activation: Callable[[jax.Array], jax.Array] = nn.sigmoid
    first_conv_pool: Callable[[jax.Array, jax.Array], jax.Array] = layers.first_conv_pool
    conv_pool: Callable[[jax.Array, jax.Array], jax.Array] = layers.conv_pool

    @nn.compact
    def __call__(self, x: jax.Array, channels: Sequence[Width], widths: Sequence[Width]) -> jax.Array:
        """x float [channel, row, column, image] from `images_last` -> float [image, num_outputs]."""
        num_inputs: Width = len(x)
        for i, maximum in enumerate(self.channels):
            kind = (FIRST_KERNEL, self.first_conv_pool) if i == 0 else (LATER_KERNEL, self.conv_pool)
            images, name = x, f"conv{i + 1}"
            x = MaskedConvPool(maximum, *kind, name=name)(images, num_inputs, channels[i])
            num_inputs = channels[i]
            if self.is_mutable_collection("intermediates"):  # the layer computes no values before pooling
                weights = self.variables["params"][name]["weights"]
                _store(self, {name: layers.conv(images, weights), f"pool{i + 1}": x})
        cells = x.shape[1] * x.shape[2]
        x = x.reshape(-1, x.shape[3]).T  # [image, (channel, row, column)]: the real channels come first
        return _dense_layers(self, x, cells * num_inputs, widths)


def _dense_layers(
    network: MLP | CNN, x: jax.Array, num_inputs: Width, widths: Sequence[Width] | jax.Array
) -> jax.Array:
    for i, maximum in enumerate(network.hidden_units):
        x = network.activation(MaskedDense(maximum, name=f"dense{i + 1}")(x, num_inputs, widths[i]))
        x, num_inputs = layers.mask_units(x, widths[i]), widths[i]
        _store(network, {f"dense{i + 1}": x})
    outputs = MaskedDense(network.num_outputs, name="output")(x, num_inputs, network.num_outputs)
    _store(network, {"output": outputs})
    return outputs


def _store(network: nn.Module, activations: dict[str, jax.Array]) -> None:
    network.sow("intermediates", "activations", activations, init_fn=dict, reduce_fn=lambda before, new: before | new)


def activations(network: MLP | CNN, params: Any, x: jax.Array, *widths: Any) -> dict[str, jax.Array]:
    """The activations of every layer, from the first to the last.

    Args:
      network: the module.
      params: its parameters.
      x, widths: the arguments of its call.

    Returns:
      Arrays by layer: "conv1" [example, channel, row, column] after ReLU and before pooling, "pool1" the same after
      pooling, "dense1" [example, unit] after the activation, and "output" [example, output], the network's value.
    """
    if isinstance(network, CNN):  # for a few examples: XLA's convolutions compile 30 times faster
        network = network.clone(first_conv_pool=layers.lax_conv_pool, conv_pool=layers.lax_conv_pool)
    applied: Any = network.apply({"params": params}, x, *widths, mutable=["intermediates"])
    by_layer = applied[1]["intermediates"]["activations"]
    return {name: values.transpose(3, 0, 1, 2) if values.ndim == 4 else values for name, values in by_layer.items()}


def most_convolutions(image_size: int) -> int:
    """The largest number of convolutions with pooling for images of so many rows and columns."""
    size, count = layers.pooled_size(image_size, FIRST_KERNEL), 0
    while size > 0:
        size, count = layers.pooled_size(size, LATER_KERNEL), count + 1
    return count


def scale_pixels(images: jax.Array) -> jax.Array:
    """uint8 pixels [...] -> float in [0, 1]; as `prepare`, once for each batch instead of each member."""
    return images.astype(jnp.result_type(float)) / 255


def images_last(images: jax.Array) -> jax.Array:
    """Images [image, row, column] or [image, row, column, channel] -> float [channel, row, column, image].

    Pixels of uint8 are scaled to [0, 1]; floats stay as they are.
    """
    images = images[..., None] if images.ndim == 3 else images
    images = images.transpose(3, 1, 2, 0)
    return scale_pixels(images) if images.dtype == jnp.uint8 else images
