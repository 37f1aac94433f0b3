"""Frequent mistakes of users: the error names their argument and the remedy; no file is written.

Each mistake is made with `cross_validate` and with a Study of the same functions and data. Mistakes that only a study
allows are in `test_study.py`. Similar correct calls are accepted.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import counted

from hw1jax import (
    Dataset,
    Float,
    Int,
    Study,
    Task,
    accuracy,
    cross_entropy,
    cross_validate,
    k_fold,
    run_study,
    squared_error,
    stratified_k_fold,
)
from hw1jax.core import checks, cost

X = np.linspace(-3, 3, 60, dtype=np.float32)[:, None]
Y = np.sin(2 * X)
FLAT_Y = Y[:, 0]
FEW_ONES = np.float32(np.arange(60) == 7)
CLASSES = np.arange(60) % 3
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 3, 3), dtype=np.uint8)
HALVES = (np.arange(40), np.arange(40, 60))
NET, WIDE_NET = nn.Dense(1), nn.Dense(3)

# A linear net over two learning rates.
PLAIN: dict[str, Any] = {
    "init": lambda key, h: NET.init(key, X[:1]),
    "apply": lambda params, x, h: NET.apply(params, x),
    "loss": squared_error,
    "optimizer": lambda h: optax.sgd(h["rate"]),
    "hyperparameters": {"rate": np.array([0.1, 0.01], np.float32), "units": np.array([2, 3])},
    "x": X,
    "y": Y,
    "num_epochs": 1,
    "batch_size": 20,
}
# The same into three classes.
CLASSIFIER = {
    "init": lambda key, h: WIDE_NET.init(key, X[:1]),
    "apply": lambda params, x, h: WIDE_NET.apply(params, x),
    "loss": cross_entropy,
    "y": CLASSES,
}


class Drops(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


DROPS = Drops()
DROPOUT = (
    ": dropout needs a key in training; give lambda params, x, h, key, train: net.apply(params, x, train, "
    'rngs={"dropout": key} if train else None), and deterministic=not train to the layer'
)
ENCODE = "give np.unique(y, return_inverse=True)[1], or use hw1jax.sklearn"


class Splitter:
    """As scikit-learn has them."""

    def split(self, x, y=None, groups=None):
        return iter([HALVES, HALVES[::-1]])


@dataclass
class Loss:
    """Without a hash, as a dataclass with eq has none."""

    scale: float = 1.0

    def __call__(self, outputs, y):
        return self.scale * squared_error(outputs, y)


class Hashed(Loss):
    def __hash__(self):
        return id(self)


class OnDevice:
    """An array of another library that NumPy can't read."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")


class Normalised(nn.Module):
    """Its statistics count what fills up a short batch."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))


def normalised_init(key, h):
    variables = Normalised().init(key, X[:1], False)
    return variables["params"], {"batch_stats": variables["batch_stats"]}


def normalised_apply(params, x, h, train, state):
    return Normalised().apply({"params": params, **state}, x, train, mutable=["batch_stats"])


def flat(params, x, h):
    """Outputs [batch]."""
    return NET.apply(params, x)[:, 0]


def convolution(params, x, h):
    """It takes no integers."""
    return jax.lax.conv(x, params["kernel"], (1, 1), "VALID").reshape(len(x), -1)


def mean_of_squares(outputs, y):
    """One value an example, which broadcasts to all pairs of examples where an axis is missing."""
    return ((outputs - y) ** 2).mean(axis=-1)


# Two doors, and what comes out of them.


def through_cross_validate(given, out):
    cross_validate(**{"key": jax.random.key(0)} | PLAIN | given)


def through_a_study(given, out):
    given = PLAIN | given
    task = Task(*(given.pop(name) for name in ("init", "apply", "loss", "optimizer")))
    x, y, weights = given.pop("x"), given.pop("y"), given.pop("weights", None)
    del given["hyperparameters"]
    space = {"rate": Float(0.01, 0.1), "units": Int(2, 3)}
    run_study(Study("wrong", task=lambda fixed: task, data=Dataset(x, y, x, y, weights), space=space, **given), out=out)


def message_of(call, *args, **more):
    """The error's message, and its note after a bar."""
    with pytest.raises(Exception) as caught:
        call(*args, **more)
    note = checks.note_of(caught.value)
    assert note or isinstance(caught.value, ValueError | TypeError)
    return " ".join(f"{type(caught.value).__name__}: {caught.value} | {note}".split()) if note else str(caught.value)


def assert_told(message, line):
    """In the line `..` stands for anything."""
    assert re.fullmatch(re.escape(line).replace(r"\.\.", ".*"), message), message


def wrong(line, **change):
    return line, change


def wrong_classes(line, **change):
    return line, CLASSIFIER | change


RATE, UNITS = "hyperparameters['rate']", "hyperparameters['units']"
IN_INIT = "| in init, called with (key: key<fry>[], hyperparameters: {rate, units})"
IN_APPLY = "| in apply, called with (params: {params}, x: float32[2, 1], hyperparameters: {rate, units})"
IN_LOSS = "| in loss, called with (outputs: float32[2, 1], y: float32[2, 1])"
IN_METRIC = "| in metric own, called with (outputs: float32[2, 1], y: float32[2, 1])"
IN_OPTIMIZER = "| in optimizer, called with (hyperparameters: {rate, units})"
TRACED = (
    ": a traced value is no Python number; use jax.numpy and jnp.where, without float(), int() and if. In a Study, "
    "declare it static=True, or a size as width=True with the layers of hw1jax.models"
)
ONE_EACH = "loss must return one value an example, [batch], got"
MIXES = (
    "mixes examples: an example's value changes with the others of its batch. Compute it from the example's own "
    "outputs and y alone (do shapes broadcast?"
)
ADD_AXIS = "y is [sample], outputs [batch, 1]; give y[:, None]"
DROP_AXIS = "y is [sample, 1], outputs [batch]; give y[:, 0]"
SHAPES = "squared error takes y of the outputs' shape [batch, n], got"
OF_CLASSES = "cross entropy takes one class an example, got outputs (2, 3), y"
DICT = "metrics= must be a dict of functions by name, got"
LAMBDA = "give lambda h: optax.adam(h['learning_rate']), say"
METHOD = ": give lambda"
ARRAYS = "where arrays are expected"
PAIR = "fold 0 must be a pair (training indices, validation indices)"
SPLITS = "folds= must be a list of (training indices, validation indices) or a splitter with a method split, got"

WRONG = [
    # what is traced
    wrong(
        f"TracerBoolConversionError: ..{RATE}.. {IN_APPLY}{TRACED}", apply=lambda p, x, h: x if h["rate"] > 0 else -x
    ),
    wrong(
        f"TracerBoolConversionError: ..{RATE}.. {IN_INIT}{TRACED}",
        init=lambda key, h: {} if h["rate"] > 0 else None,
    ),
    wrong(
        f"TracerBoolConversionError: ..{UNITS}.. {IN_OPTIMIZER}{TRACED}",
        optimizer=lambda h: optax.adam(h["rate"]) if h["units"] == 2 else optax.sgd(h["rate"]),
    ),
    wrong(
        f"TracerBoolConversionError: .. {IN_LOSS}{TRACED}",
        loss=lambda o, y: squared_error(o, y) if o[0, 0] > 0 else y[:, 0],
    ),
    wrong(
        f"TracerBoolConversionError: .. {IN_METRIC}{TRACED}",
        metrics={"own": lambda o, y: y[:, 0] if y[0, 0] > 0 else o[:, 0]},
    ),
    wrong(f"..{IN_INIT}{TRACED}", init=lambda key, h: nn.Dense(h["units"]).init(key, X[:1])),
    wrong(f"..{UNITS}.. {IN_INIT}{TRACED}", init=lambda key, h: {"w": jnp.zeros((1, int(h["units"])))}),
    wrong(f"..{UNITS}.. {IN_APPLY}{TRACED}", apply=lambda p, x, h: [x for _ in range(h["units"])][0]),
    wrong(f"..{UNITS}.. {IN_APPLY}{TRACED}", apply=lambda p, x, h: [jnp.sin, jnp.cos][h["units"]](x)),
    wrong(f"TypeError: unhashable.. {IN_APPLY}{TRACED}", apply=lambda p, x, h: {2: jnp.sin, 3: jnp.cos}[h["units"]](x)),
    wrong(f"..{RATE}.. {IN_OPTIMIZER}{TRACED}", optimizer=lambda h: optax.sgd(float(h["rate"]))),
    wrong(f"TracerArray..{RATE}.. {IN_OPTIMIZER}{TRACED}", optimizer=lambda h: optax.sgd(np.exp(h["rate"]))),
    wrong(f"TracerArray.. {IN_LOSS}{TRACED}", loss=lambda o, y: np.square(o - y).mean(axis=-1)),
    # losses and metrics
    wrong(f"ValueError: {SHAPES} (2, 1), y (2,) | in loss, ..: {ADD_AXIS}", y=FLAT_Y),
    wrong(f"{ONE_EACH} shape (2, 2) for a batch of 2: {ADD_AXIS}", y=FLAT_Y, loss=lambda o, y: (o - y) ** 2),
    wrong(f"loss {MIXES} (4, 1) outputs, y (4,)): {ADD_AXIS}", y=FEW_ONES, loss=mean_of_squares),
    wrong(f"ValueError: {SHAPES} (2,), y (2, 1) | in loss, ..: {DROP_AXIS}", apply=flat),
    wrong(f"loss {MIXES} (4,) outputs, y (4, 1)): {DROP_AXIS}", apply=flat, loss=mean_of_squares),
    wrong(f"ValueError: {SHAPES} (2,), y (2,) | in loss, ..", apply=flat, y=FLAT_Y),
    wrong(
        f"metric own {MIXES} (4, 1) outputs, y (4, 1))",
        metrics={"own": lambda o, y: jnp.abs(o - y[:, 0]).mean(axis=1)},
    ),
    wrong(
        "metric own must return one value an example, [batch], got shape (2, 1) for a batch of 2: average over the ..",
        metrics={"own": lambda o, y: o - y},
    ),
    wrong(f"{ONE_EACH} shape () for a batch of 2: don't average over the batch", loss=lambda o, y: jnp.mean(o - y)),
    wrong(
        f"{ONE_EACH} shape (2, 1) for a batch of 2: average over the other axes, as .mean(axis=-1)",
        loss=optax.losses.l2_loss,
    ),
    wrong(f"{ONE_EACH} NoneType", loss=lambda o, y: None),
    wrong("loss must return floating-point numbers, got int32", loss=lambda o, y: jnp.argmax(o, axis=-1)),
    wrong(f"TypeError: .. missing 1 required positional argument: 'y' {IN_LOSS}", loss=lambda params, x, y: y),
    wrong(
        "loss= must be hashable, which Loss is not: wrap it in a function, or make the class a dataclass with eq=False",
        loss=Loss(),
    ),
    wrong("optimizer= must be hashable, which Loss is not: wrap it in a function, ..", optimizer=Loss()),
    wrong_classes(f"ValueError: {OF_CLASSES} (2, 3), one-hot: give y.argmax(axis=-1) | in loss, ..", y=ONE_HOT),
    wrong_classes(
        f"ValueError: {OF_CLASSES} (2, 1) | in loss, ..: y is [sample, 1], outputs [batch, 3]; give y[:, 0]",
        y=CLASSES[:, None],
    ),
    wrong_classes(
        "TypeError: cross entropy takes classes as integers, got y of bool: give y.astype(int) | in loss, ..",
        y=CLASSES == 0,
    ),
    wrong_classes(
        "TypeError: cross entropy takes classes as integers, got y of float32.. | in loss, ..", y=np.float32(CLASSES)
    ),
    wrong_classes("y has labels 1 to 3, 3 outputs take 0 to 2", y=CLASSES + 1),
    wrong_classes(
        "ValueError: Incompatible shapes for .. | in loss, called with (outputs: float32[2, 3], y: int64[2])",
        loss=optax.losses.softmax_cross_entropy,
    ),
    wrong(f"{DICT} function", metrics=accuracy),
    wrong("metrics['off']= must be a function, got float", metrics={"off": 1.0}),
    # init, apply, optimizer
    wrong(f"..{IN_INIT}{METHOD} key, h: net.init(key, x[:1])", init=NET.init),
    wrong(f"TypeError: .. {IN_APPLY}{METHOD} params, x, h: net.apply(params, x)", apply=NET.apply),
    wrong(f"TypeError: .. takes 1 positional argument but 2 were given {IN_INIT}", init=lambda key: X),
    wrong(f"..{IN_INIT}..", init=lambda h, key: NET.init(key, X[:1])),
    wrong(f"TypeError: .. takes 2 positional arguments but 3 were given {IN_APPLY}", apply=lambda params, x: x),
    wrong(
        "apply has an unknown parameter rng; it may have key, train, state, mask",
        apply=lambda params, x, h, rng: x,
    ),
    wrong(f"TypeError: dot_general requires .. {IN_APPLY}", apply=lambda params, x, h: x @ jnp.zeros((5, 1))),
    wrong("apply returns no outputs: is there a return?", apply=lambda params, x, h: None),
    wrong(
        "apply mixes examples: in evaluation an example's outputs change with the others of its batch. ..",
        apply=lambda params, x, h: x - x.mean(),
    ),
    wrong("apply lets padding into its statistics: ..", init=normalised_init, apply=normalised_apply),
    wrong(f"KeyError: 'learning_rate' {IN_OPTIMIZER}", optimizer=lambda h: optax.sgd(h["learning_rate"])),
    wrong(
        "init returns batch_stats beside params, all of which would be trained: return (params, state), and let apply "
        "take state by name",
        init=lambda key, h: {"params": jnp.zeros((1, 1)), "batch_stats": jnp.zeros(1)},
    ),
    wrong(
        "init returns ['n'] of int32: parameters are trained, so all must be floating-point",
        init=lambda key, h: {"w": jnp.zeros((1, 1)), "n": jnp.arange(3)},
    ),
    wrong(
        f"TypeError: init returns a function as ['act'], {ARRAYS}: of an Equinox module, return "
        "eqx.filter(net, eqx.is_array), and eqx.combine it in apply | in init, ..",
        init=lambda key, h: {"w": jnp.zeros(1), "act": jnp.tanh},
    ),
    wrong(
        f"TypeError: init returns a float as ['w'], {ARRAYS}: give jnp.asarray | in init, ..",
        init=lambda key, h: {"w": 0.5},
    ),
    wrong(
        f"TypeError: init returns a str as ['kind'], {ARRAYS} | in init, ..",
        init=lambda key, h: {"w": jnp.zeros(1), "kind": "dense"},
    ),
    wrong(
        "optimizer= must be a function of the hyperparameters that returns an optax transformation, got "
        f"GradientTransformation..: {LAMBDA}",
        optimizer=optax.adam(1e-3),
    ),
    wrong(f"TypeError: .. {IN_OPTIMIZER}: {LAMBDA}", optimizer=optax.adam),
    wrong(f"TypeError: .. takes 0 positional arguments but 1 was given {IN_OPTIMIZER}", optimizer=lambda: None),
    # data and folds
    wrong_classes(
        "TypeError: .. | in apply, called with (params: {kernel}, x: uint8[2, 1, 3, 3], ..): x is of whole numbers; "
        "make it floating-point there, as x / 255",
        x=IMAGES,
        init=lambda key, h: {"kernel": jax.random.normal(key, (3, 1, 3, 3))},
        apply=convolution,
    ),
    wrong("x= must be an array, or a dict or tuple of arrays, not a list: give np.asarray(x)", x=X.tolist()),
    wrong("x= must be finite, got 10 of 60 values ..", x=np.where(X > 2, np.nan, X)),
    wrong("y= must be finite, got 10 of 60 values ..", y=np.where(X > 2, np.inf, Y)),
    wrong(
        "x= can't be made an array by np.asarray: can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()",
        x=OnDevice(),
    ),
    wrong("x and y must have the same leading sample axis, at least 1 long, got shapes [(60, 1), (50, 1)]", y=Y[:50]),
    wrong("weights= must be one number of at least 0 a sample, not all 0, ..", weights=0 * FLAT_Y),
    wrong("weights= are all 0 in the validation part of fold 0", weights=np.float32(X[:, 0] < -2), folds=[HALVES]),
    wrong("the number of folds must lie between 2 and the 2 samples, got 3", x=X[:2], y=Y[:2]),
    wrong(f"{SPLITS} int; their number is num_folds=", folds=5),
    wrong(f"{SPLITS} <class '..Splitter'>; their number is num_folds=", folds=Splitter),
    wrong(PAIR, folds=HALVES),
    wrong(f"y= must be numbers, got an array of <U1: {ENCODE}", y=np.array(["a", "b", "c"] * 20)),
    wrong(f"y= must be numbers, got an array of object (str): {ENCODE}", y=np.array(["a", "b", "c"] * 20, object)),
    wrong(
        f"InvalidRngError: ..{IN_APPLY}{DROPOUT}",
        init=lambda key, h: DROPS.init(key, X[:1], False),
        apply=lambda params, x, h: DROPS.apply(params, x, True),
    ),
    wrong(
        f"ValueError: The ``rngs`` argument ..{IN_APPLY}{DROPOUT}",
        init=lambda key, h: DROPS.init(key, X[:1], False),
        apply=lambda params, x, h, key, train: DROPS.apply(params, x, train, rngs={"dropout": key}),
    ),
    wrong(
        "fold 0: train indices must be a non-empty list of integers, got bool",
        folds=[(np.arange(60) < 40, np.arange(60) >= 40)],
    ),
]
# Arguments of `cross_validate` alone.
LIST_INDICES = "give the index of each in a list of them"
NO_TRIAL_AXIS = "give one a trial, on a leading trial axis"
WHOLE = "num_folds= must be a whole number, got"
ALONE = [
    wrong(f"{RATE} has one value: {NO_TRIAL_AXIS}", hyperparameters={"rate": 0.1}),
    wrong(f"{UNITS} has one value, others 2: {NO_TRIAL_AXIS}", hyperparameters={"rate": [0.1, 0.2], "units": 3}),
    wrong(f"{RATE} must be numbers, got an array of object (Float)", hyperparameters={"rate": Float(0.1, 1)}),
    wrong(f"{UNITS} must be numbers, got names: {LIST_INDICES}", hyperparameters={"units": ["two", "three"]}),
    wrong(f"{UNITS} must be numbers, got functions: {LIST_INDICES}", hyperparameters={"units": [nn.relu, nn.tanh]}),
    wrong(
        "hyperparameters= must be a dict of lists, one value a trial each, not a list of dicts",
        hyperparameters=[{"rate": 0.1}, {"rate": 0.2}],
    ),
    wrong(f"{WHOLE} Splitter: splits are given as folds=", num_folds=Splitter()),
    wrong(f"{WHOLE} list: splits are given as folds=", num_folds=[HALVES]),
    wrong("key= must be a PRNG key, such as jax.random.key(0), got int", key=0),
    wrong("progress= must be True, False or a function, got str", progress="bar"),
    wrong("cross_validate has no argument cv: give num_folds= or folds=", cv=5),
    wrong("cross_validate has no argument random_state: give key=", random_state=0),
    wrong("cross_validate has no argument num_epoch: give num_epochs=", num_epoch=5),
    wrong("cross_validate has no argument colour; there are apply, averaging, batch_size, ..", colour=5),
]


@pytest.fixture(autouse=True)
def shapes_broadcast():
    """They may, as no rule forbids it."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    ("wrong", "door"),
    [(wrong, through_cross_validate) for wrong in WRONG + ALONE] + [(wrong, through_a_study) for wrong in WRONG],
    ids=lambda value: value.__name__ if callable(value) else f"{', '.join(value[1])}: {value[0]}"[:60],
)
@pytest.mark.filterwarnings("ignore:shape requires ndarray")  # JAX's, of a net that is given hyperparameters for inputs
def test_a_mistake_is_told_and_nothing_is_written(wrong, door, tmp_path):
    line, given = wrong
    message = message_of(door, given, tmp_path / "out")
    assert_told(re.sub(r"\b([xy])_train\b", r"\1", message), line)
    assert not (tmp_path / "out").exists()


def call(**given):
    return through_cross_validate(given, None)


@pytest.mark.parametrize(
    "within",
    [
        lambda: jax.jit(lambda x: call(x=x))(X),
        lambda: (lambda key: jax.jit(lambda: call(key=key))())(jax.random.key(0)),
        lambda: jax.vmap(lambda key: call(key=key))(jax.random.split(jax.random.key(0))),
    ],
    ids=["jit", "jit without an argument", "vmap"],
)
def test_a_call_within_a_transformation_is_told(within):
    assert_told(message_of(within), "cross_validate can't be called within jax.jit, vmap or grad: it compiles a ..")


@pytest.mark.parametrize("make", [lambda seed: k_fold(60, 3, seed), lambda seed: stratified_k_fold(CLASSES, 3, seed)])
def test_a_number_for_the_seed_of_folds_is_told(make):
    assert_told(message_of(make, 0), "seed= must be a tuple of whole numbers, such as (0,), got int")


def test_nothing_is_compiled_before_what_is_wrong_with_a_function_is_told():
    first, *others = [given for line, given in WRONG if "| in " in line]
    message_of(call, **first)  # compiles what every call begins with, as the folds
    with counted() as compiled:
        for given in others:
            message_of(call, **given)
    assert not compiled


class Own:
    """A net of one's own, with methods of the names that Flax has; what it decides by may be traced."""

    def init(self, key, hyperparameters):
        return {"w": jax.random.normal(key, (1, 1))}

    def apply(self, params, x, hyperparameters):
        if x.shape[1] == 1:  # which is known
            x = jax.lax.switch(hyperparameters["units"] - 2, (jnp.sin, jnp.cos), x)
        return jnp.where(hyperparameters["rate"] > 0.05, 1, 2) * (x @ params["w"])


# Correct calls that resemble the mistakes above.
RATES = {"hyperparameters": {"rate": [0.1, 0.01]}}  # all that the nets above use
RIGHT = {
    "dropout as the message has it": {
        "init": lambda key, h: DROPS.init(key, X[:1], False),
        "apply": lambda params, x, h, key, train: DROPS.apply(
            params, x, train, rngs={"dropout": key} if train else None
        ),
    },
    "functions": {
        "init": Own().init,
        "apply": Own().apply,
        "loss": functools.partial(lambda outputs, y, scale: scale[0] * squared_error(outputs, y), scale=[2]),
        "folds": Splitter(),
        "hyperparameters": PLAIN["hyperparameters"],
    },
    "numbers": {
        "x": (10 * X).astype(np.int32),
        "y": X > 0,
        "loss": lambda outputs, y: optax.losses.sigmoid_binary_cross_entropy(outputs, y)[:, 0],
        "apply": jax.jit(lambda params, x, h: NET.apply(params, x)),
        "hyperparameters": {"rate": [1e-4, 1e-5]},
        "num_folds": np.int64(2),
    },
    "neither has an axis": {"apply": flat, "y": FLAT_Y, "loss": lambda outputs, y: (outputs - y) ** 2},
    "y without an axis, taken so": {"y": FLAT_Y, "loss": lambda outputs, y: (outputs[:, 0] - y) ** 2},
    "a loss with a hash": {"loss": Hashed()},
    "one-hot": CLASSIFIER | {"y": ONE_HOT, "loss": optax.losses.softmax_cross_entropy},
    "small labels, and a metric of truth values": CLASSIFIER
    | {
        "y": CLASSES.astype(np.uint8),
        "metrics": {"accuracy": accuracy, "right": lambda outputs, y: jnp.argmax(outputs, axis=-1) == y},
    },
    "labels that are all the same": CLASSIFIER | {"y": np.zeros(60, int)},
}


class CheckedError(Exception):
    """All checks are behind it."""


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_beside_it_is_not_refused(what, monkeypatch):
    def stop(*_, **__):
        raise CheckedError

    monkeypatch.setattr(cost, "choose_layout", stop)  # what comes first after them
    with pytest.raises(CheckedError):
        call(**RATES | RIGHT[what])


@pytest.mark.slow
@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_is_trained(what):
    made = cross_validate(**{"key": jax.random.key(0)} | PLAIN | RATES | RIGHT[what])
    assert np.isfinite(made.val_loss).all()
