"""Layout of a member's step on a kind of device. It changes speed and rounding only.

An accelerator takes all members and whole batches at once. A CPU core has a small cache: it takes members one by one if
the network has convolutions, and a batch in microbatches if activations are large.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p

CACHED_BYTES = 3 * 2**18  # bytes of one activation that fit a CPU core's cache
LARGEST_MICROBATCH = 64  # examples; if more fit the cache, microbatches gain nothing
EVAL_BATCH_SIZE = 500  # examples of an evaluation batch
MOST_COPIED = 2**13  # elements of an array whose copy costs less than a faster product gains


class Layout(NamedTuple):
    """How a step is laid out on the device."""

    microbatch_size: int | None = None  # examples a gradient; accumulated over the batch. None: the whole batch
    eval_batch_size: int = 256  # examples of an evaluation batch
    sequential: bool = False  # members step in sequence instead of under `vmap`, so that each fits a CPU's cache
    canonical: bool = False  # a step's products have the form that is fast on a CPU (`canonical`)


def choose(
    apply: Callable[..., Any], params: Any, x: Any, hyperparameters: Any, batch_size: int, platform: str
) -> Layout:
    """Chooses the layout for a network on the platform "cpu", "gpu" or "tpu".

    `apply` is one member's (params, x, hyperparameters) -> outputs, on a batch [example, ...]. Shapes and dtypes of its
    arguments are enough, and `x` has any number of examples.
    """
    if platform != "cpu":
        return Layout(None, max(2 * batch_size, EVAL_BATCH_SIZE))  # evaluating takes less memory than training
    some = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), x
    )
    jaxpr = jax.make_jaxpr(apply)(params, some, hyperparameters).jaxpr
    sources = [{"params"}] * len(jax.tree.leaves(params)) + [{"x"}] * len(jax.tree.leaves(x))
    activations = list(_activations(jaxpr, dict(zip(jaxpr.invars, sources, strict=False))))
    if any(primitive is conv_general_dilated_p for primitive, _ in activations):
        return Layout(None, EVAL_BATCH_SIZE, sequential=True, canonical=True)
    num_microbatches = max(1, -(-max((size for _, size in activations), default=0) // CACHED_BYTES))
    microbatch_size = -(-batch_size // num_microbatches)
    if num_microbatches > 1 and microbatch_size <= LARGEST_MICROBATCH:
        return Layout(microbatch_size, microbatch_size, sequential=True, canonical=True)
    return Layout(None, EVAL_BATCH_SIZE, canonical=True)


def _activations(jaxpr: core.Jaxpr, sources: dict[core.Var, set[str]]) -> Iterator[tuple[core.Primitive, int]]:
    """Yields (operation, bytes of its largest result) of all that depends on both "params" and "x".

    `sources`: the variables that depend on them.
    """
    sources = dict(sources)
    for equation in jaxpr.eqns:
        inputs = [sources.get(v, set()) if isinstance(v, core.Var) else set() for v in equation.invars]
        both = set().union(*inputs)
        sources |= dict.fromkeys(equation.outvars, both)
        if len(both) < 2:
            continue
        results: list[Any] = [variable.aval for variable in equation.outvars]
        yield equation.primitive, max((a.size * a.dtype.itemsize for a in results), default=0)
        for inner in functions_in(equation):
            # Its arguments are the operation's last ones: the first of a condition is the branch index.
            yield from _activations(inner, dict(zip(reversed(inner.invars), reversed(inputs), strict=False)))


def functions_in(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yields the functions within an operation, such as a loop's body or a condition's branches."""
    for value in equation.params.values():  # as jax.extend.core.jaxprs_in_params does, which JAX has since 0.10 alone
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, core.Jaxpr):
                yield inner


def canonical(function: Callable[..., Any], *, products: bool = False) -> Callable[..., Any]:
    """Rewrites a function's convolutions, and its products if asked, into the forms that XLA:CPU has fast routines for.

    A convolution's is [batch, place, feature] x [place, input, output]; a kernel's gradient, for one, has another.
    XLA:CPU converts convolutions itself, but only in a program's outermost computation: within a loop the same step
    takes three times as long. A small product of floats is slow where both arrays are contracted over their first axes,
    as in the gradient of a dense layer's weights.

    Apply it to a function that has been differentiated. Loops, conditions and custom gradients within stay as they are.
    """

    def rewritten(*args: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(jaxpr, jax.tree.leaves(args), products))

    return rewritten


def _evaluate(closed: core.ClosedJaxpr, args: list[jax.Array], products: bool) -> list[jax.Array]:
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        if equation.primitive is conv_general_dilated_p:
            outputs = [_canonical_convolution(*inputs, **equation.params)]
        elif equation.primitive is dot_general_p and products:
            outputs = [_canonical_product(*inputs, **equation.params)]
        elif equation.primitive.name in ("jit", "pjit"):
            outputs = _evaluate(equation.params["jaxpr"], inputs, products)
        else:
            bound: Any = equation.primitive.get_bind_params(equation.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair in older versions of JAX
            outputs = equation.primitive.bind(*functions, *inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _canonical_convolution(x: jax.Array, kernel: jax.Array, *, dimension_numbers, **params: Any) -> jax.Array:
    # The numbers are the places of (batch, feature, *place), (output, input, *place) and (batch, feature, *place).
    (batch, feature, *place), (out, into, *window), out_spec = dimension_numbers
    x = lax.transpose(x, (batch, *place, feature))
    kernel = lax.transpose(kernel, (*window, into, out))
    last = x.ndim - 1
    image_spec, kernel_spec = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    numbers = lax.ConvDimensionNumbers(image_spec, kernel_spec, image_spec)
    outputs = conv_general_dilated_p.bind(x, kernel, dimension_numbers=numbers, **params)
    return lax.transpose(outputs, np.argsort((out_spec[0], *out_spec[2:], out_spec[1])))


def _canonical_product(a: jax.Array, b: jax.Array, *, dimension_numbers, precision, **params: Any) -> jax.Array:
    """Contracts the last axes of a transposed copy of b, where both arrays are contracted over their first axes.

    In a weight's gradient, b are the activations. If they are many, the copy takes as long as the product.
    """
    (contracted, _), (batch, _) = dimension_numbers
    batch, first = tuple(range(len(batch))), tuple(range(len(batch), len(batch) + len(contracted)))
    end = len(batch) + len(first)
    is_slow = dimension_numbers == ((first, first), (batch, batch)) and first and end < min(a.ndim, b.ndim)
    is_float = all(jnp.issubdtype(array.dtype, jnp.floating) for array in (a, b))
    if not is_slow or not is_float or b.size > MOST_COPIED:
        return dot_general_p.bind(a, b, dimension_numbers=dimension_numbers, precision=precision, **params)
    # Without the barrier XLA would make the transposition a part of the product again.
    copy = lax.optimization_barrier(lax.transpose(b, (*batch, *range(end, b.ndim), *first)))
    numbers = ((tuple(range(b.ndim - len(first), b.ndim)), first), (batch, batch))
    precision = precision[::-1] if isinstance(precision, tuple) else precision
    product = dot_general_p.bind(copy, a, dimension_numbers=numbers, precision=precision, **params)
    middle = len(batch) + b.ndim - end
    return lax.transpose(product, (*batch, *range(middle, product.ndim), *range(len(batch), middle)))
