"""Dense and convolution layers whose widths are traced, made to stay fast under `vmap` and on a CPU.

The parameters of a layer are one matrix, `weights` [units, 1 + inputs]: its first column is the bias, the weight of a
constant 1. The inputs of a convolution are (input channel, row, column) of its k x k window, in this order. With the
inputs last, the gradient of a narrow layer is a product that XLA:CPU does at full speed; it halves with the units last.

Convolutions work on images in the minor dimension, `[channel, row, column, image]`: each slice, pad and mask is then a
contiguous vector loop, and each convolution one matrix product with a long last axis. `lax.conv` under `vmap`
would be a grouped convolution, whose gradient XLA:CPU does not optimise. A convolution and the 2x2 pooling after it
are one layer: a column of the product is one pooling cell, and what pooling would discard is never computed.
"""

import math
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Width = int | jax.Array  # a number of units or channels, Python's or traced

FEW_INPUTS = 2**12  # size of a dense layer's batch up to which copies cost as much as the product


def uniform_by_fan_in(key: jax.Array, shape: tuple[int, int], fan_in: Width, width: Width) -> jax.Array:
    """A layer's initial weights, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) as torch's, whatever the padding.

    The weights of each input are drawn with a key of their own, and a value among them depends on its place alone,
    since the corner of a large draw is not the small draw.

    Args:
      key: the key of the layer.
      shape: (maximum units, 1 + maximum inputs); the first column is the bias.
      fan_in: the member's own number of inputs to a unit.
      width: the member's own number of units.

    Returns:
      float [units, 1 + inputs], 0 beyond the member's own size; all NaN where that is larger than the shape has room
      for, so that such a member fails instead of being trained at another size.
    """
    num_units, num_columns = shape

    def draw_column(column: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, column), (num_units,), minval=-1, maxval=1)

    values = jax.vmap(draw_column, out_axes=1)(jnp.arange(num_columns))
    inside = (jnp.arange(num_units) < width)[:, None] & (jnp.arange(num_columns) <= fan_in)[None, :]
    fits = (width <= num_units) & (fan_in < num_columns)
    outside = jnp.where(fits, 0, jnp.nan).astype(values.dtype)
    return jnp.where(inside & fits, values / jnp.sqrt(jnp.asarray(fan_in, values.dtype)), outside)


def mask_units(x: jax.Array, width: Width) -> jax.Array:
    """`x` [..., units] with 0 from unit `width` on. It comes after the activation, since sigmoid(0) is not 0."""
    inside = jnp.arange(x.shape[-1]) < width
    return jnp.where(lax.broadcast_in_dim(inside, x.shape, (x.ndim - 1,)), x, 0)


def dense(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [batch, inputs], weights [units, 1 + inputs] -> [batch, units].

    Small batches have a custom gradient, in reverse mode alone.
    """
    if x.size > FEW_INPUTS:
        return _dense(x, weights)
    dtype = jnp.result_type(x, weights)  # of both, so that each one's gradient has its own
    return lax.platform_dependent(x.astype(dtype), weights.astype(dtype), cpu=_dense_of_few, default=_dense)


def _dense(x: jax.Array, weights: jax.Array) -> jax.Array:
    # Examples last, as there are many: XLA:CPU's product is up to twice as slow where its last axis is narrow and odd.
    return (weights[:, 1:] @ x.T).T + weights[None, :, 0]


@jax.custom_vjp
def _dense_of_few(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`dense` for small batches: the bias is a column of the product."""
    return _dense_of_few_forward(x, weights)[0]


def _dense_of_few_forward(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x = jnp.concatenate([jnp.ones_like(x[:, :1]), x], axis=1)
    return x @ weights.T, (x, weights)


def _dense_of_few_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weights = kept
    # The barrier keeps XLA:CPU from fusing the transpose into a product over the first axes, which is slow.
    transposed = lax.optimization_barrier(gradient.T)
    return (gradient @ weights)[:, 1:], transposed @ x


_dense_of_few.defvjp(_dense_of_few_forward, _dense_of_few_backward)


def pooled_size(size: int, kernel_size: int) -> int:
    """Rows (or columns) left of `size` by a convolution with padding 1 and a 2x2 pooling that drops an odd last row."""
    return (size + 2 - kernel_size + 1) // 2


def first_conv_pool(x: jax.Array, weights: jax.Array) -> jax.Array:
    """As `conv_pool`, for a network's first convolution, whose images need no gradient; k may be even."""
    kernel = kernels(weights, len(x))
    patch = kernel.shape[-1] + 1  # a pooling cell's four outputs see patch x patch pixels
    rows, columns = _pooled_sizes(x, patch - 1)
    x = _pad(x, (rows, columns), patch - 1)
    below, right = 2 * rows - 1, 2 * columns - 1
    taken = [x[:, dy : dy + below : 2, dx : dx + right : 2] for dy in range(patch) for dx in range(patch)]
    patches = _with_ones(taken)  # [(dy, dx, input) and 1, (row, column, image)]
    blocks = _blocks(kernel).transpose(0, 1, 3, 4, 2).reshape(4 * len(kernel), -1)
    outputs = _with_bias(blocks, weights) @ patches
    return relu_of_maximum(outputs.reshape(4, len(kernel), rows, columns, -1))


def conv_pool(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Convolution with padding 1, ReLU and 2x2 max-pooling (floor: an odd last row or column is dropped).

    Args:
      x: [input channel, row, column, image].
      weights: [channel, 1 + input channel * k^2] with k odd.

    Returns:
      [channel, pooled row, pooled column, image].

    Raises:
      ValueError: weights that don't fit the input channels, an even k, or images that leave no pixel.
    """
    num_inputs = len(x)
    kernel = kernels(weights, num_inputs)
    num_channels, _, k, _ = kernel.shape
    if k % 2 == 0:
        raise ValueError(f"conv_pool takes kernels of odd size, got {k} x {k}; first_conv_pool takes any")
    (rows, columns), shifts = _pooled_sizes(x, k), (k + 1) // 2
    x = _pad(x, (rows, columns), k)
    half_rows, half_columns = x.shape[1] // 2, x.shape[2] // 2
    x = x.reshape(num_inputs, half_rows, 2, half_columns, 2, -1).transpose(2, 4, 0, 1, 3, 5)
    # [(row parity, column parity, input), row, column, image]
    phases = x.reshape(4 * num_inputs, half_rows, half_columns, -1)
    blocks = _blocks(kernel).reshape(4 * num_channels, num_inputs, shifts, 2, shifts, 2)
    blocks = blocks.transpose(0, 2, 4, 3, 5, 1).reshape(4 * num_channels, -1)
    outputs: Any = _product_with_shifted(_with_bias(blocks, weights), phases, shifts, (rows, columns))
    return relu_of_maximum(outputs.reshape(4, num_channels, rows, columns, -1))


def lax_conv_pool(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`conv_pool`, and `first_conv_pool`, by XLA's own convolution and pooling; members become its groups.

    Far slower on a CPU, not compared on an accelerator. `models.CNN` takes either.
    """
    _pooled_sizes(x, kernels(weights, len(x)).shape[-1])
    return lax.reduce_window(conv(x, weights), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def conv(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Convolution with padding 1 and ReLU, without the pooling, for plots of activations; shapes as in `conv_pool`."""
    numbers = ("CHWN", "OIHW", "CHWN")
    z = lax.conv_general_dilated(x, kernels(weights, len(x)), (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers)
    return jnp.maximum(z + weights[:, 0, None, None, None], 0)


def kernels(weights: jax.Array, num_inputs: int) -> jax.Array:
    """A convolution's weights without the bias, as torch shapes them: [channel, input channel, k, k]."""
    size = math.isqrt((weights.shape[1] - 1) // num_inputs)
    if num_inputs * size**2 != weights.shape[1] - 1:
        raise ValueError(f"weights for {weights.shape[1] - 1} inputs are no square kernels over {num_inputs} channels")
    return weights[:, 1:].reshape(-1, num_inputs, size, size)


def _pooled_sizes(x: jax.Array, kernel_size: int) -> tuple[int, int]:
    """Rows and columns of pooling cells of x [channel, row, column, image]."""
    rows, columns = (pooled_size(size, kernel_size) for size in x.shape[1:3])
    if rows < 1 or columns < 1:
        size = " x ".join(map(str, x.shape[1:3]))
        raise ValueError(f"{size} pixels are too few for a convolution of {kernel_size} x {kernel_size} and pooling")
    return rows, columns


def _pad(x: jax.Array, cells: tuple[int, int], kernel_size: int) -> jax.Array:
    """A row and column of zeros before, and just as many after as the pooling cells see (it may be fewer)."""
    widths = [(0, 0, 0), *((1, 2 * (n - 1) + kernel_size - m, 0) for n, m in zip(cells, x.shape[1:3], strict=True))]
    return lax.pad(x, jnp.zeros((), x.dtype), [*widths, (0, 0, 0)])


def _blocks(kernel: jax.Array) -> jax.Array:
    """The kernel at each of the four places in a pooling cell's patch: [place, channel, input, k+1, k+1]."""
    pads = [((0, 0), (0, 0), (dy, 1 - dy), (dx, 1 - dx)) for dy in (0, 1) for dx in (0, 1)]
    return jnp.stack([jnp.pad(kernel, pad) for pad in pads])


def _with_bias(blocks: jax.Array, weights: jax.Array) -> jax.Array:
    """[4 * channel, row] -> [4 * channel, row + 1]: the bias, whose row of the patches is ones (`_with_ones`).

    Its gradient comes out of the product that way, not of a reduction.
    """
    return jnp.concatenate([blocks, jnp.tile(weights[:, 0], 4)[:, None]], axis=1)


def _with_ones(pieces: list[jax.Array]) -> jax.Array:
    """Pieces [row, cell row, cell column, image] -> [all their rows + 1, (cell row, cell column, image)]."""
    # One concatenation of whole images: each further one copies them all, and flat pieces divide for each index.
    together = jnp.concatenate([*pieces, jnp.ones_like(pieces[0][:1])])
    return together.reshape(len(together), -1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product_with_shifted(blocks: jax.Array, phases: jax.Array, shifts: int, cells: tuple[int, int]) -> jax.Array:
    """Blocks x patches, these the [(shift, shift, phase) and 1, cell] of phases [phase, row, column, image]."""
    return _product_with_shifted_forward(blocks, phases, shifts, cells)[0]


def _product_with_shifted_forward(
    blocks: jax.Array, phases: jax.Array, shifts: int, cells: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows, columns = cells
    patches = _with_ones([phases[:, a : a + rows, b : b + columns] for a in range(shifts) for b in range(shifts)])
    return blocks @ patches, (blocks, patches)


def _product_with_shifted_backward(
    shifts: int, cells: tuple[int, int], kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    blocks, patches = kept
    pieces = (blocks.T @ gradient).reshape(len(patches), *cells, -1)  # the ones' too: to cut it off would be a copy
    fold_back = {"cpu": partial(_fold_back_one_by_one, shifts), "default": partial(_fold_back_at_once, shifts)}
    return gradient @ patches.T, lax.platform_dependent(pieces, **fold_back)


def _fold_back_at_once(shifts: int, pieces: jax.Array) -> jax.Array:
    """The sum of [(shift, shift, phase) and 1, cell row, cell column, image], each shift's padded to its place."""
    pieces = pieces[:-1].reshape(shifts, shifts, -1, *pieces.shape[1:])
    pads = [[((0, 0), (a, shifts - 1 - a), (b, shifts - 1 - b), (0, 0)) for b in range(shifts)] for a in range(shifts)]
    return reduce(jnp.add, (jnp.pad(pieces[a, b], pads[a][b]) for a in range(shifts) for b in range(shifts)))


def _fold_back_one_by_one(shifts: int, pieces: jax.Array) -> jax.Array:
    # The plain sum is right, but XLA:CPU recomputes it for each of the four outputs of the pooling before (15 times
    # slower). A loop's result is computed once. A row's columns and images are one axis, as long loops are fast ones.
    num_rows, rows, columns, num_images = pieces.shape
    num_phases = (num_rows - 1) // shifts**2
    pieces = pieces.reshape(num_rows, rows, -1)

    def fold_back(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        piece = lax.dynamic_slice_in_dim(pieces, number * num_phases, num_phases)
        place = (0, number // shifts, number % shifts * num_images)
        before = lax.dynamic_slice(total, place, piece.shape)
        return lax.dynamic_update_slice(total, before + piece, place), None

    total = jnp.zeros((num_phases, rows + shifts - 1, (columns + shifts - 1) * num_images), pieces.dtype)
    total = lax.scan(fold_back, total, jnp.arange(shifts * shifts))[0]
    return total.reshape(num_phases, rows + shifts - 1, columns + shifts - 1, num_images)


_product_with_shifted.defvjp(_product_with_shifted_forward, _product_with_shifted_backward)


@jax.custom_vjp
def relu_of_maximum(z: jax.Array) -> jax.Array:
    """max(0, maximum over the first axis) of [4, ...]; the gradient goes to the first winner of a tie, as in torch."""
    return _relu_of_maximum_forward(z)[0]


def _relu_of_maximum_forward(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    best, winner = z[0], jnp.zeros(z.shape[1:], jnp.int32)
    for i in range(1, len(z)):
        better = z[i] > best
        best, winner = jnp.maximum(best, z[i]), jnp.where(better, i, winner)  # `maximum` keeps a NaN
    return jnp.maximum(best, 0), jnp.where(best <= 0, len(z), winner)  # ReLU's gradient at 0 is 0: nobody wins


def _relu_of_maximum_backward(winner: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def to_winners(winner: jax.Array, gradient: jax.Array) -> jax.Array:
        places = jnp.arange(4).reshape(4, *[1] * winner.ndim)
        return jnp.where(winner[None] == places, gradient[None], 0)

    def one_by_one(winner: jax.Array, gradient: jax.Array) -> jax.Array:
        # A loop over the four, as its operands are computed once: see `_fold_back_one_by_one`. Its rows are flat as
        # long loops are fast ones, and made so within it: before it, each pixel's place would be a division.
        rows = (len(winner), -1)
        places = lax.map(
            lambda place: jnp.where(winner.reshape(rows) == place, gradient.reshape(rows), 0), jnp.arange(4)
        )
        return places.reshape(4, *winner.shape)

    return (lax.platform_dependent(winner, gradient, cpu=one_by_one, default=to_winners),)


relu_of_maximum.defvjp(_relu_of_maximum_forward, _relu_of_maximum_backward)
