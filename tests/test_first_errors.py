"""What a stranger gets wrong first with `cross_validate`: one line that names what they wrote and says what to do.

What is right beside it is not refused; what a study of their own has wrong is in `test_wrong_studies.py`.
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
    Float,
    accuracy,
    cross_entropy,
    cross_validate,
    k_fold,
    population,
    squared_error,
    stratified_k_fold,
)

X = np.linspace(-3, 3, 60, dtype=np.float32)[:, None]
Y = np.sin(2 * X)
CLASSES = np.arange(60) % 3
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 3, 3, 1), dtype=np.uint8)
HALVES = (np.arange(40), np.arange(40, 60))
NET = nn.Dense(1)
NUMBER: Any = 0  # where a tuple belongs


class Splitter:
    """As scikit-learn has them."""

    def split(self, x, y=None, groups=None):
        return iter([HALVES, (HALVES[1], HALVES[0])])


@dataclass
class Loss:
    """Without a hash, as a dataclass with eq has none."""

    scale: float = 1.0

    def __call__(self, outputs, y):
        return self.scale * squared_error(outputs, y)


class OnDevice:
    """An array of another library that NumPy can't read."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")


class Table:
    """As pandas has them, for one column of names."""

    columns = ("size", "colour")

    def __getitem__(self, column):
        return Series(X[:, 0] if column == "size" else np.array(["red"] * 60, object))

    def to_numpy(self):
        return np.array([[0.5, "red"]] * 60, object)


@dataclass(frozen=True)
class Series:
    values: np.ndarray

    def to_numpy(self):
        return self.values


@jax.tree_util.register_pytree_node_class
class Module:
    """As Equinox' modules: a tree with a function among its leaves."""

    def tree_flatten_with_keys(self):
        return ((jax.tree_util.GetAttrKey("w"), jnp.zeros(1)), (jax.tree_util.GetAttrKey("activation"), jnp.tanh)), None

    def tree_flatten(self):
        return (jnp.zeros(1), jnp.tanh), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls()


def call(**change: Any):
    """A linear net over two learning rates, but for what is another."""
    given: dict[str, Any] = {
        "init": lambda key, h: NET.init(key, X[:1]),
        "apply": lambda params, x, h: NET.apply(params, x),
        "loss": squared_error,
        "optimizer": lambda h: optax.sgd(h["rate"]),
        "hyperparameters": {"rate": np.array([0.1, 0.01], np.float32), "units": np.array([2, 3])},
        "x": X,
        "y": Y,
        "key": jax.random.key(0),
        "num_epochs": 1,
        "batch_size": 20,
    }
    return functools.partial(cross_validate, **given | change)


def classify(**change):
    """As `call`, into three classes."""
    net = nn.Dense(3)
    given = {"init": lambda key, h: net.init(key, X[:1]), "apply": lambda params, x, h: net.apply(params, x)}
    return call(**given | {"loss": cross_entropy, "y": CLASSES} | change)


def flat(params, x, h):
    """Outputs [batch]."""
    return jnp.asarray(NET.apply(params, x))[:, 0]


def of_images(params, x, h):
    """A convolution, which takes no integers."""
    return jax.lax.conv(x, params["kernel"], (1, 1), "VALID").reshape(len(x), -1)


HERE = r"at test_first_errors\.py:\d+"
STATIC = r"in a Study a size, a range or an index is static=True, or width=True with the layers of hw1jax\.models"
GIVEN = r"\(params: {params}, x: float32\[2, 1\], hyperparameters: {rate, units}\)"
ONE_EACH = r"one value an example, \[batch\], got"
MIXES = (
    r"mixes examples: an example's value changes with the others of its batch\. Compute it from the example's own "
    r"outputs and y alone \(do shapes broadcast\? "
)
FLAT_Y = r"y is \[sample\], outputs \[batch, 1\]; give y\[:, None\]"
FLAT_OUTPUTS = r"y is \[sample, 1\], outputs \[batch\]; give y\[:, 0\]"
JIT = r"cross_validate can't be called within jax\.jit, vmap or grad: it compiles a program itself; call it outside"

WRONG = {
    # hyperparameters
    "no trial axis": (
        call(hyperparameters={"rate": 0.1}),
        r"hyperparameters\['rate'\] has one value: give one a trial, on a leading trial axis",
    ),
    "no trial axis in one": (
        call(hyperparameters={"rate": [0.1, 0.2], "units": 3}),
        r"hyperparameters\['units'\] has one value, others 2: give one a trial, on a leading trial axis",
    ),
    "ranges": (
        call(hyperparameters={"rate": Float(0.1, 1)}),
        r"hyperparameters\['rate'\] must be numbers, got an array of object \(Float\)",
    ),
    "names": (
        call(hyperparameters={"rate": [0.1, 0.1], "kind": ["relu", "tanh"]}),
        r"hyperparameters\['kind'\] must be numbers, got names: give the index of each in a list of them",
    ),
    "functions among them": (
        call(hyperparameters={"rate": [0.1, 0.1], "kind": [nn.relu, nn.tanh]}),
        r"hyperparameters\['kind'\] must be numbers, got functions: give the index of each in a list of them",
    ),
    "a list of dicts": (
        call(hyperparameters=[{"rate": 0.1}, {"rate": 0.2}]),
        r"hyperparameters= must be a dict of lists, one value a trial each, not a list of dicts",
    ),
    # what is traced
    "if in apply": (
        call(apply=lambda params, x, h: NET.apply(params, x) if h["rate"] > 0 else x),
        rf"apply decides by hyperparameters\['rate'\] in Python \(if, and, or, not\) {HERE}, but it is traced: use "
        r"jnp\.where, or in a Study static=True",
    ),
    "if in init": (
        call(init=lambda key, h: NET.init(key, X[:1]) if h["rate"] > 0 else {}),
        rf"init decides by hyperparameters\['rate'\] .* {HERE}, but it is traced: use .*, or in a Study static=True",
    ),
    "if in optimizer": (
        call(optimizer=lambda h: optax.adam(h["rate"]) if h["units"] == 2 else optax.sgd(h["rate"])),
        rf"optimizer decides by hyperparameters\['units'\] .* {HERE}, but it is traced: .*, or in a Study static=True",
    ),
    "if in loss": (
        call(loss=lambda outputs, y: squared_error(outputs, y) if outputs[0, 0] > 0 else y[:, 0]),
        rf"loss decides by outputs in Python \(if, and, or, not\) {HERE}, but it is traced: use jnp\.where",
    ),
    "if in a metric": (
        call(metrics={"own": lambda outputs, y: y[:, 0] if y[0, 0] > 0 else outputs[:, 0]}),
        rf"metric own decides by y in Python \(if, and, or, not\) {HERE}, but it is traced: use jnp\.where",
    ),
    "a size in init": (
        call(init=lambda key, h: nn.Dense(h["units"]).init(key, X[:1])),
        rf"init needs hyperparameters\['units'\] as a Python number {HERE}, but it is traced: leave out float\(\), "
        rf"int\(\); {STATIC}",
    ),
    "a size by int": (
        call(init=lambda key, h: {"w": jnp.zeros((1, int(h["units"])))}),
        rf"init needs hyperparameters\['units'\] as a Python number {HERE}, but .*; {STATIC}",
    ),
    "a range in apply": (
        call(apply=lambda params, x, h: [x for _ in range(h["units"])][0]),
        rf"apply needs hyperparameters\['units'\] as a Python number {HERE}, but .*; {STATIC}",
    ),
    "an index of a list": (
        call(apply=lambda params, x, h: [jnp.sin, jnp.cos][h["units"]](x)),
        rf"apply needs hyperparameters\['units'\] as a Python number {HERE}, but .*; {STATIC}",
    ),
    "a key of a dict": (
        call(apply=lambda params, x, h: {2: jnp.sin, 3: jnp.cos}[h["units"]](x)),
        rf"apply needs a traced value as a Python number {HERE}, but .*; {STATIC}",
    ),
    "float in optimizer": (
        call(optimizer=lambda h: optax.sgd(float(h["rate"]))),
        rf"optimizer needs hyperparameters\['rate'\] as a Python number {HERE}, but it is traced: leave out .*",
    ),
    "numpy in optimizer": (
        call(optimizer=lambda h: optax.sgd(np.exp(h["rate"]))),
        rf"optimizer gives hyperparameters\['rate'\] to NumPy {HERE}, which can't take what is traced: "
        r"use jax\.numpy there",
    ),
    "within jit": (lambda: jax.jit(lambda x: call(x=x)().val_loss)(X), JIT),
    "within jit without an argument": (lambda: jax.jit(lambda: call()().val_loss)(), JIT),
    "within vmap": (lambda: jax.vmap(lambda key: call(key=key)().val_loss)(jax.random.split(jax.random.key(0))), JIT),
    # losses
    "y without an axis": (
        call(y=Y[:, 0]),
        rf"squared error takes y of the outputs' shape \[batch, n\], got \(2, 1\), y \(2,\): {FLAT_Y}",
    ),
    "y without an axis in a loss of one's own": (
        call(y=Y[:, 0], loss=lambda outputs, y: (outputs - y) ** 2),
        rf"loss must return {ONE_EACH} shape \(2, 2\) for a batch of 2: {FLAT_Y}",
    ),
    "y without an axis, silently": (
        call(y=Y[:, 0], loss=lambda outputs, y: ((outputs - y) ** 2).mean(axis=-1)),
        rf"loss {MIXES}\(4, 1\) outputs, y \(4,\)\): {FLAT_Y}",
    ),
    "y without an axis, most of it the same": (
        call(y=np.float32(np.arange(60) == 7), loss=lambda outputs, y: ((outputs - y) ** 2).mean(axis=-1)),
        rf"loss {MIXES}\(4, 1\) outputs, y \(4,\)\): {FLAT_Y}",
    ),
    "outputs without an axis": (
        call(apply=flat, loss=lambda outputs, y: ((outputs - y) ** 2).mean(axis=-1)),
        rf"loss {MIXES}\(4,\) outputs, y \(4, 1\)\): {FLAT_OUTPUTS}",
    ),
    "outputs without an axis, told at once": (
        call(apply=flat),
        rf"squared error takes y of the outputs' shape \[batch, n\], got \(2,\), y \(2, 1\): {FLAT_OUTPUTS}",
    ),
    "neither has an axis": (
        call(apply=flat, y=Y[:, 0]),
        r"squared error takes y of the outputs' shape \[batch, n\], got \(2,\), y \(2,\)",
    ),
    "a metric that broadcasts": (
        call(metrics={"own": lambda outputs, y: jnp.abs(outputs - y[:, 0]).mean(axis=1)}),
        rf"metric own {MIXES}\(4, 1\) outputs, y \(4, 1\)\)",
    ),
    "a loss that is a mean": (
        call(loss=lambda outputs, y: jnp.mean((outputs - y) ** 2)),
        rf"loss must return {ONE_EACH} shape \(\) for a batch of 2: don't average over the batch",
    ),
    "a loss of each output": (
        call(loss=optax.losses.l2_loss),
        rf"loss must return {ONE_EACH} shape \(2, 1\) for a batch of 2: average over the other axes, as "
        r"\.mean\(axis=-1\)",
    ),
    "a loss without return": (call(loss=lambda outputs, y: None), rf"loss must return {ONE_EACH} NoneType"),
    "a loss of whole numbers": (
        call(loss=lambda outputs, y: jnp.argmax(outputs, axis=-1)),
        r"loss must return floating-point numbers, got int32",
    ),
    "a loss in NumPy": (
        call(loss=lambda outputs, y: np.square(outputs - y).mean(axis=-1)),
        rf"loss gives outputs and y to NumPy {HERE}, which can't take what is traced: use jax\.numpy there",
    ),
    "a loss of three arguments": (
        call(loss=lambda params, x, y: y),
        r"loss\(outputs: float32\[2, 1\], y: float32\[2, 1\]\) fails: TypeError: .* missing 1 required positional "
        r"argument: 'y'",
    ),
    "a loss that can't be hashed": (
        call(loss=Loss()),
        r"loss= must be hashable, which Loss is not: wrap it in a function, or make the class a "
        r"dataclass with eq=False",
    ),
    "labels one-hot": (
        classify(y=np.eye(3, dtype=np.float32)[CLASSES]),
        r"cross entropy takes one class an example, got outputs \(2, 3\), y \(2, 3\), one-hot: give "
        r"y\.argmax\(axis=-1\)",
    ),
    "labels in a column": (
        classify(y=CLASSES[:, None]),
        r"cross entropy takes one class an example, got outputs \(2, 3\), y \(2, 1\): y is \[sample, 1\], outputs "
        r"\[batch, 3\]; give y\[:, 0\]",
    ),
    "labels that are truth values": (
        classify(y=CLASSES == 0),
        r"cross entropy takes classes as integers, got y of bool: give y\.astype\(int\)",
    ),
    "labels from 1": (classify(y=CLASSES + 1), r"y has labels 1 to 3, 3 outputs take 0 to 2"),
    "labels for a loss of one-hot": (
        classify(loss=optax.losses.softmax_cross_entropy),
        r"loss\(outputs: float32\[2, 3\], y: int32\[2\]\) fails: ValueError: Incompatible shapes for .*",
    ),
    "metrics in a list": (classify(metrics=[accuracy]), r"metrics= must be a dict of functions by name, got list"),
    "one metric": (classify(metrics=accuracy), r"metrics= must be a dict of functions by name, got function"),
    # init, apply, optimizer
    "init of a net": (
        call(init=NET.init),
        r"init\(key: key<fry>\[\], hyperparameters: {rate, units}\) fails: .*; a method of a net doesn't take "
        r"hyperparameters: give lambda key, h: net\.init\(key, x\[:1\]\)",
    ),
    "apply of a net": (
        call(apply=NET.apply),
        rf"apply{GIVEN} fails: TypeError: .*; a method of a net doesn't take hyperparameters: give lambda params, x, "
        r"h: net\.apply\(params, x\)",
    ),
    "init of the key alone": (
        call(init=lambda key: NET.init(key, X[:1])),
        r"init\(key: key<fry>\[\], hyperparameters: {rate, units}\) fails: TypeError: .* takes 1 positional argument "
        r"but 2 were given",
    ),
    "init whose arguments are the other way round": (
        call(init=lambda h, key: NET.init(key, X[:1])),
        rf"init\(key: key<fry>\[\], hyperparameters: {{rate, units}}\) fails {HERE}: .*",
    ),
    "apply without hyperparameters": (
        call(apply=lambda params, x: NET.apply(params, x)),
        rf"apply{GIVEN} fails: TypeError: .* takes 2 positional arguments but 3 were given",
    ),
    "apply that asks for what nobody gives": (
        call(apply=lambda params, x, h, rng: x),
        r"apply asks for rng, which nobody gives it; it may ask for key, train, state, mask",
    ),
    "apply on inputs of another size": (
        call(apply=lambda params, x, h: x @ jnp.zeros((5, 1))),
        rf"apply{GIVEN} fails {HERE}: TypeError: dot_general requires .*",
    ),
    "apply without return": (call(apply=lambda params, x, h: None), r"apply returns no outputs: is there a return\?"),
    "apply of two outputs": (
        call(apply=lambda params, x, h: (x, x)),
        r"loss\(outputs: tuple, y: float32\[2, 1\]\) fails: AttributeError: .*",
    ),
    "a name that isn't there": (
        call(optimizer=lambda h: optax.sgd(h["learning_rate"])),
        rf"optimizer\(hyperparameters: {{rate, units}}\) fails {HERE}: KeyError: 'learning_rate'",
    ),
    "a module with functions": (
        call(init=lambda key, h: Module()),
        r"init returns a function as .*, where arrays are expected: of an Equinox module, return eqx\.filter\(net, "
        r"eqx\.is_array\), and eqx\.combine it in apply",
    ),
    "a Python number among the parameters": (
        call(init=lambda key, h: {"w": 0.5}),
        r"init returns a float as \['w'\], where arrays are expected: give jnp\.asarray",
    ),
    "a name among the parameters": (
        call(init=lambda key, h: {"w": jnp.zeros(1), "kind": "dense"}),
        r"init returns a str as \['kind'\], where arrays are expected",
    ),
    "an optimizer that is made": (
        call(optimizer=optax.adam(1e-3)),
        r"optimizer= must be a function of the hyperparameters that returns an optax transformation, got "
        r"GradientTransformation\w*: give lambda h: optax\.adam\(h\['learning_rate'\]\), say",
    ),
    "optax's own function": (
        call(optimizer=optax.adam),
        r"optimizer\(hyperparameters: {rate, units}\) fails: TypeError: .*; give lambda h: "
        r"optax\.adam\(h\['learning_rate'\]\), say",
    ),
    "an optimizer of nothing": (
        call(optimizer=lambda: optax.sgd(0.1)),
        r"optimizer\(hyperparameters: {rate, units}\) fails: TypeError: .* takes 0 positional arguments but 1 was "
        r"given",
    ),
    # data and folds
    "images that apply can't take": (
        classify(
            x=IMAGES.transpose(0, 3, 1, 2),
            init=lambda key, h: {"kernel": jax.random.normal(key, (3, 1, 3, 3))},
            apply=of_images,
        ),
        rf"apply\(params: {{kernel}}, x: uint8\[2, 1, 3, 3\], .*\) fails {HERE}: TypeError: .*; x is uint8: make it "
        r"floating-point there, as x / 255",
    ),
    "lists": (
        call(x=X.tolist()),
        r"x= must be an array, or a dict or tuple of arrays, not a list: give np\.asarray\(x\)",
    ),
    "not a number": (call(x=X / X[:, :1] * np.where(X > 2, np.nan, 1)), r"x= must be finite, got 10 of 60 values .*"),
    "a table with names": (call(x=Table()), r"x\['colour'\] must be numbers, got an array of object \(str\)"),
    "an array that NumPy can't read": (
        call(x=OnDevice()),
        r"x= can't be made an array by np\.asarray: can't convert cuda:0 device type tensor to numpy\. "
        r"Use Tensor\.cpu\(\)",
    ),
    "fewer labels": (
        call(y=Y[:50]),
        r"x and y must have the same leading sample axis, at least 1 long, got shapes \[\(60, 1\), \(50, 1\)\]",
    ),
    "too few samples": (
        call(x=X[:2], y=Y[:2]),
        r"the number of folds must lie between 2 and the 2 samples, got 3",
    ),
    "a splitter for a number": (
        call(num_folds=Splitter()),
        r"num_folds= must be a whole number, got Splitter: splits are given as folds=",
    ),
    "splits for a number": (
        call(num_folds=[HALVES]),
        r"num_folds= must be a whole number, got list: splits are given as folds=",
    ),
    "a number for splits": (
        call(folds=5),
        r"folds= must be a list of \(training indices, validation indices\) or a splitter with a method split, got "
        r"int; their number is num_folds=",
    ),
    "a splitter's class": (call(folds=Splitter), r"folds= must be a list .*, got <class '.*Splitter'>; .*"),
    "one split without a list": (
        call(folds=HALVES),
        r"fold 0 must be a pair \(training indices, validation indices\)",
    ),
    "a fold's number for each sample": (
        call(folds=CLASSES),
        r"fold 0 must be a pair \(training indices, validation indices\)",
    ),
    "splits as truth values": (
        call(folds=[(np.arange(60) < 40, np.arange(60) >= 40)]),
        r"fold 0: train indices must be a non-empty list of integers, got bool",
    ),
    "a number for a seed": (
        lambda: k_fold(60, 3, NUMBER),
        r"seed= must be a tuple of whole numbers, such as \(0,\), got int",
    ),
    "a number for a seed of folds by label": (
        lambda: stratified_k_fold(CLASSES, 3, NUMBER),
        r"seed= must be a tuple of whole numbers, such as \(0,\), got int",
    ),
    "a number for a key": (call(key=0), r"key= must be a PRNG key, such as jax\.random\.key\(0\), got int"),
    "a name for progress": (call(progress="bar"), r"progress= must be True, False or a function, got str"),
}


@pytest.fixture(autouse=True)
def shapes_broadcast():
    """As they do where nobody forbids it."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.filterwarnings("ignore:shape requires ndarray")  # JAX's, of a net that is given hyperparameters for inputs
def test_what_is_wrong_is_told_in_one_line(what):
    wrong, line = WRONG[what]
    with pytest.raises((ValueError, TypeError)) as caught:
        wrong()
    message = str(caught.value)
    assert re.fullmatch(line, message), message
    assert len(message) <= 450


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (call(apply=lambda params, x, h: x if h["rate"] > 0 else -x), jax.errors.TracerBoolConversionError),
        (call(optimizer=lambda h: optax.sgd(h["learning_rate"])), KeyError),
        (call(loss=Loss()), TypeError),
    ],
)
def test_what_was_raised_first_is_the_cause(wrong, cause):
    with pytest.raises((ValueError, TypeError)) as caught:
        wrong()
    assert isinstance(caught.value.__cause__, cause)


def test_nothing_is_compiled_before_what_is_wrong_with_a_function_is_told():
    call()()  # the checks that every call goes through
    with counted() as compiled:
        for what in ("if in apply", "a size in init", "a loss that is a mean", "init of the key alone"):
            with pytest.raises((ValueError, TypeError)):
                WRONG[what][0]()
    assert not compiled


class Own:
    """A net of one's own, with methods of the names that Flax has."""

    def init(self, key, hyperparameters):
        return {"w": jax.random.normal(key, (1, 1))}

    def apply(self, params, x, hyperparameters):
        return x @ params["w"]


class Hashed(Loss):
    def __hash__(self):
        return id(self)


RIGHT = {
    "where": call(apply=lambda params, x, h: jnp.where(h["rate"] > 0.05, 1, 2) * NET.apply(params, x)),
    "a switch": call(apply=lambda p, x, h: jax.lax.switch(h["units"] - 2, (jnp.sin, jnp.cos), NET.apply(p, x))),
    "a size of the data's": call(apply=lambda p, x, h: NET.apply(p, x) if x.shape[1] == 1 else x),
    "neither has an axis": call(apply=flat, y=Y[:, 0], loss=lambda outputs, y: (outputs - y) ** 2),
    "y without an axis, taken so": call(y=Y[:, 0], loss=lambda outputs, y: (outputs[:, 0] - y) ** 2),
    "one-hot": classify(loss=optax.losses.softmax_cross_entropy, y=np.eye(3, dtype=np.float32)[CLASSES]),
    "small labels": classify(y=CLASSES.astype(np.uint8), metrics={"accuracy": accuracy}),
    "truth values": call(y=X > 0, loss=lambda o, y: optax.losses.sigmoid_binary_cross_entropy(o, y)[:, 0]),
    "whole numbers that are promoted": call(x=(10 * X).astype(np.int32), hyperparameters={"rate": [1e-4, 1e-5]}),
    "methods of one's own": call(init=Own().init, apply=Own().apply),
    "a partial": call(
        loss=functools.partial(lambda outputs, y, scale: scale[0] * squared_error(outputs, y), scale=[2])
    ),
    "what can be hashed": call(loss=Hashed()),
    "a function in jit": call(apply=jax.jit(lambda params, x, h: NET.apply(params, x))),
    "a metric of truth values": classify(metrics={"right": lambda outputs, y: jnp.argmax(outputs, axis=-1) == y}),
    "a splitter": call(folds=Splitter()),
    "labels that are all the same": classify(y=np.zeros(60, int)),
    "numpy's number of folds": call(num_folds=np.int64(2)),
}


class Checked(Exception):
    """All checks are behind it."""


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_beside_it_is_not_refused(what, monkeypatch):
    def stop(*_, **__):
        raise Checked

    monkeypatch.setattr(population, "choose_layout", stop)  # what comes first after them
    with pytest.raises(Checked):
        RIGHT[what]()


@pytest.mark.slow
@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_is_trained(what):
    assert np.isfinite(RIGHT[what]().val_loss).all()
