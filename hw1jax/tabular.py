"""A dense network for tables of numbers, ready to train, and the space of its hyperparameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hw1jax import layers as layers_
from hw1jax.core import losses, optimizers, preprocessing
from hw1jax.core.tasks import Task
from hw1jax.search.space import Choice, Float, Int, Range, Space

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "identity": lambda x: x,
}

Scalar = float | tuple[float, float] | Range


def mlp(
    num_inputs: int,
    num_outputs: int,
    loss: Callable[[Any, Any], Any] = losses.cross_entropy,
    *,
    layers: Choice | Sequence[int | tuple[int, int] | Int] = ((10, 100), (10, 100)),
    learning_rate: Scalar = (1e-4, 1e-1),
    l2: Scalar = (1e-6, 1e-1),
    optimizer: str | Sequence[str] = "adam",
    activation: str = "relu",
    standardize: bool = True,
) -> tuple[Callable[[dict[str, Any]], Task], Space]:
    """A dense network for x float [sample, num_inputs], as the `task` and the `space` of a study or of `SearchCV`.

    A value is searched if it is given as a range: a pair (low, high), or an `Int`, `Float` or `Choice`.

    Args:
      num_inputs: features; arrays [sample, ...] of so many numbers a sample are flattened.
      num_outputs: outputs, without an activation: one a class for `cross_entropy`.
      loss: (outputs [batch, num_outputs], y) -> [batch].
      layers: the units of each hidden layer; or a `Choice` of tuples of numbers.
      learning_rate, l2: of the optimizer (see `adam_l2`); pairs are drawn on a logarithmic scale.
      optimizer: "adam", "sgd" or "rmsprop"; several are searched.
      activation: of the hidden layers: relu, tanh, sigmoid, silu or identity.
      standardize: scales the features to mean 0 and standard deviation 1, and so the targets of `squared_error`; fitted
        on each fold's training part.

    Returns:
      (task, space). `task(fixed)` makes the `Task`; equal arguments give the same object. What isn't searched is not in
      the space. For `cross_validate`, `task({"layers": (50,)})` has the functions; hyperparameters have the same names.

    Raises:
      ValueError: unknown names.
    """
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation= must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    rules = tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
    if unknown := [rule for rule in rules if rule not in optimizers.OPTIMIZERS]:
        raise ValueError(f"optimizer= must be of {', '.join(optimizers.OPTIMIZERS)}, got {unknown[0]!r}")
    chosen = {
        "layers": layers if isinstance(layers, Choice) else tuple(map(_units, layers)),
        "learning_rate": _scalar(learning_rate),
        "l2": _scalar(l2),
        "optimizer": rules[0] if len(rules) == 1 else Choice(*optimizers.OPTIMIZERS, among=rules),
    }
    space = {name: value for name, value in chosen.items() if isinstance(value, Range | tuple) and value != ()}
    values = tuple((name, value) for name, value in chosen.items() if name not in space)
    return _maker(num_inputs, num_outputs, loss, activation, standardize, values), space


def _units(units: Any) -> Int:
    """The range of a layer's units."""
    if isinstance(units, Int):
        return replace(units, static=False, width=True)
    low, high = units if isinstance(units, tuple) else (units, units)
    return Int(low, high, width=True)


def _scalar(value: Any) -> Any:
    return Float(*value, log=True) if isinstance(value, tuple) else value


@lru_cache(maxsize=64)  # an equal network is the same object, so that JAX has its programs
def _maker(
    num_inputs: int,
    num_outputs: int,
    loss: Callable[..., Any],
    activation: str,
    standardize: bool,
    values: tuple[tuple[str, Any], ...],
) -> Callable[[dict[str, Any]], Task]:
    net = _Dense(num_inputs, num_outputs, activation, dict(values))

    def task(fixed: dict[str, Any]) -> Task:
        return _task(net, loss, standardize, tuple(fixed.get("layers", ())))

    return task


@lru_cache(maxsize=64)
def _task(net: "_Dense", loss: Callable[..., Any], standardize: bool, layers: tuple[int, ...]) -> Task:
    own = _Sized(net, layers)
    task = Task(own.init, own.apply, loss, net.rule)
    if not standardize:
        return task
    y = preprocessing.standardize if loss is losses.squared_error else None
    return task._replace(prepare=preprocessing.standardize, prepare_y=y)


@dataclass(frozen=True, eq=False)
class _Dense:
    """A network whose layers are not known yet."""

    num_inputs: int
    num_outputs: int
    activation: str
    values: dict[str, Any]  # of the hyperparameters that are not searched

    def rule(self, h: dict[str, Any]) -> optax.GradientTransformation:
        """The optimizer."""
        h = self.values | h
        if isinstance(h["optimizer"], str):
            rules = optimizers.adam_l2, optimizers.sgd_l2, optimizers.rmsprop_l2
            return rules[optimizers.OPTIMIZERS.index(h["optimizer"])](h["learning_rate"], h["l2"])
        return optimizers.chosen_l2(h["optimizer"], h["learning_rate"], h["l2"])


@dataclass(frozen=True, eq=False)
class _Sized:
    """A network with these numbers of units, of which a member may use fewer."""

    net: _Dense
    layers: tuple[int, ...]

    def init(self, key: jax.Array, h: dict[str, Any]) -> dict[str, jax.Array]:
        """New parameters, those of torch's `nn.Linear`."""
        params, fan_in, num_inputs = {}, self.net.num_inputs, self.net.num_inputs
        for i, (maximum, width, name) in enumerate(self._sizes(h)):
            shape = (maximum, 1 + num_inputs)
            params[name] = layers_.uniform_by_fan_in(jax.random.fold_in(key, i), shape, fan_in, width)
            fan_in, num_inputs = width, maximum
        return params

    def apply(self, params: dict[str, jax.Array], x: jax.Array, h: dict[str, Any]) -> jax.Array:
        """x [batch, ...] -> float [batch, num_outputs]."""
        x = x.reshape(len(x), -1).astype(jnp.result_type(float))
        *hidden, (_, _, last) = self._sizes(h)
        for _, width, name in hidden:
            x = ACTIVATIONS[self.net.activation](layers_.dense(x, params[name]))
            x = x if isinstance(width, int) else layers_.mask_units(x, width)
        return layers_.dense(x, params[last])

    def _sizes(self, h: dict[str, Any]) -> list[tuple[int, Any, str]]:
        """(maximum units, own units, name) of each layer."""
        own = h.get("layers", self.layers)  # a static choice isn't in `h`
        hidden = [(units, own[i], f"dense{i + 1}") for i, units in enumerate(self.layers)]
        return [*hidden, (self.net.num_outputs, self.net.num_outputs, "output")]


@lru_cache(maxsize=64)  # as above
def class_weighted(weights: tuple[float, ...]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The cross entropy times a weight for each class."""

    @wraps(losses.cross_entropy)
    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return losses.cross_entropy(outputs, y) * jnp.asarray(weights, outputs.dtype)[y]

    return loss
