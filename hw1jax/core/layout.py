"""Layout of a member's step on a kind of device. It changes speed and rounding only.

An accelerator takes all members and whole batches at once. A CPU core has a small cache: it takes members one by one if
the network has convolutions, and a batch in microbatches if activations are large.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core.primitives import conv_general_dilated_p

CACHED_BYTES = 3 * 2**18  # bytes of one activation that fit a CPU core's cache
LARGEST_MICROBATCH = 64  # examples; if more fit the cache, microbatches gain nothing
EVAL_BATCH_SIZE = 500  # examples of an evaluation batch


class Layout(NamedTuple):
    """How a step is laid out on the device."""

    microbatch_size: int | None = None  # examples a gradient; accumulated over the batch. None: the whole batch
    eval_batch_size: int = 256  # examples of an evaluation batch
    sequential: bool = False  # members step in sequence instead of under `vmap`, so that each fits a CPU's cache


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
        return Layout(None, EVAL_BATCH_SIZE, sequential=True)
    num_microbatches = max(1, -(-max((size for _, size in activations), default=0) // CACHED_BYTES))
    microbatch_size = -(-batch_size // num_microbatches)
    if num_microbatches > 1 and microbatch_size <= LARGEST_MICROBATCH:
        return Layout(microbatch_size, microbatch_size, sequential=True)
    return Layout(None, EVAL_BATCH_SIZE)


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


def canonical_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """Rewrites a function's convolutions into the one form that XLA:CPU has a fast routine for.

    That form is [batch, place, feature] x [place, input, output]; a kernel's gradient, for one, has another. XLA:CPU
    converts convolutions itself, but only in a program's outermost computation: within a loop the same step takes three
    times as long. Apply it to a function that has been differentiated.
    """

    def canonical(*args: Any) -> Any:
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(jaxpr, jax.tree.leaves(args)))

    return canonical


def _evaluate(closed: core.ClosedJaxpr, args: list[jax.Array]) -> list[jax.Array]:
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        if equation.primitive is conv_general_dilated_p:
            outputs = [_canonical_convolution(*inputs, **equation.params)]
        elif equation.primitive.name in ("jit", "pjit"):
            outputs = _evaluate(equation.params["jaxpr"], inputs)
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
