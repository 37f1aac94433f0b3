"""Functions defined again find the compiled program of their equals; a change of anything they use is noticed."""

import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted

from hw1jax.core import programs, tasks
from hw1jax.core.losses import cross_entropy
from hw1jax.core.metrics import roc_auc
from hw1jax.core.tasks import Whole
from hw1jax.search import study
from hw1jax.tabular import class_weighted

X = np.arange(6.0, dtype=np.float32)
LARGE = 5000  # numbers


@programs.for_each_task()
def called(task, x):
    return task(x)


def closure(value):
    return lambda x: x * value


def array(value):
    table = value * np.linspace(0, 1, LARGE, dtype=np.float32)
    return lambda x: x * table[-1] + 0 * jnp.sum(table)


def jax_array(value):
    table = value * jnp.linspace(0, 1, LARGE)
    return lambda x: x * jnp.max(table)


def callable_object(value):
    class Scale:
        factor = value

        def __call__(self, x):
            return x * self.factor

    return Scale()


def flax_module(value):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, kernel_init=nn.initializers.constant(value))(x)

    return lambda x: Net().init_with_output(jax.random.key(0), x[None])[0]


def with_own_gradient(value):
    @jax.custom_jvp
    def function(x):
        return x * value

    function.defjvps(lambda dx, _, x: 3 * value * dx)
    return lambda x: function(x) + jax.grad(lambda x: jnp.sum(function(x)))(x)


MAKERS = {
    "closure": closure,
    "default": lambda value: lambda x, factor=value: x * factor,
    "partial": lambda value: functools.partial(jnp.multiply, jnp.float32(value)),
    "array": array,
    "JAX array": jax_array,
    "callable object": callable_object,
    "Flax module": flax_module,
    "compiled before": lambda value: jax.jit(lambda x: x * value),
    "own gradient": with_own_gradient,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_functions_written_anew_compile_nothing_where_they_are_the_same_and_differ_where_they_are_not(make):
    first = np.asarray(called(make(2))(X))
    with counted() as compiled:
        again = np.asarray(called(make(2))(X))
    assert compiled == []
    np.testing.assert_array_equal(again, first)
    other = np.asarray(called(make(3))(X))
    np.testing.assert_allclose(other, np.asarray(make(3)(X)), rtol=1e-6)
    assert (other != first)[1:].all()


SETTING, TABLE, FACTOR = {"factor": 2.0}, np.full(LARGE, 2.0, np.float32), 2.0


def by_global():
    return FACTOR


def set_global(name, value):
    return lambda patch: patch.setitem(globals(), name, value)


CHANGES = {
    "dict": (lambda: lambda x: x * SETTING["factor"], lambda patch: patch.setitem(SETTING, "factor", 3.0)),
    "array in place": (lambda: lambda x: x * TABLE[0], lambda _: TABLE.fill(3)),
    "global": (lambda: lambda x: x * FACTOR, set_global("FACTOR", 3.0)),
    "global of a helper": (lambda: lambda x: x * by_global(), set_global("FACTOR", 3.0)),
    "another helper": (lambda: lambda x: x * by_global(), set_global("by_global", lambda: 3.0)),
}


@pytest.mark.parametrize("make, change", CHANGES.values(), ids=CHANGES)
def test_what_has_changed_in_the_meantime_is_seen(make, change, monkeypatch):
    TABLE.fill(2)
    np.testing.assert_array_equal(called(make())(X), 2 * X)
    with counted() as compiled:
        called(make())(X)
    assert compiled == []
    change(monkeypatch)
    np.testing.assert_array_equal(called(make())(X), 3 * X)


def test_a_users_function_that_wraps_one_of_ours_is_traced_again_and_ours_is_not():
    @functools.wraps(cross_entropy)
    def weighted(outputs, y):
        return FACTOR * cross_entropy(outputs, y)

    for own in (weighted, Whole(weighted), lambda outputs, y: FACTOR):
        assert tasks.fresh(own) is not own
    for ours in (cross_entropy, roc_auc, class_weighted((1.0, 2.0))):
        assert tasks.fresh(ours) is ours


def test_the_same_function_is_not_even_traced_again(monkeypatch):
    traces = []
    function = lambda x: traces.append(1) or 2 * x  # noqa: E731
    called(function)(X)
    with monkeypatch.context() as patched:
        patched.setattr(programs, "_Lowered", None)  # nor lowered
        called(function)(X)
    assert traces == [1]
    called(function)(X[:2])
    assert traces == [1, 1]


def test_threads_that_ask_for_the_same_program_at_the_same_time_have_it_compiled_once(monkeypatch):
    counts, both, compile_ = [], threading.Barrier(2), programs._compile
    monkeypatch.setattr(programs, "_compile", lambda program: counts.append(1) or time.sleep(0.2) or compile_(program))

    @programs.for_each_task()
    def scaled(task, x):
        return task * x

    def ask(_):
        both.wait()
        return scaled(3.25)(X)

    with ThreadPoolExecutor(2) as threads:
        np.testing.assert_array_equal(list(threads.map(ask, range(2))), [3.25 * X] * 2)
    assert len(counts) == 1


def test_functions_that_use_other_arguments_or_return_the_same_under_other_names_are_told_apart():
    values = {"a": X, "b": X + 1}
    called(lambda v: 4 * v["a"])(values)
    with counted() as compiled:
        called(lambda v: 4 * v["a"])(values)
    assert compiled == [], "an argument that is not used costs nothing"
    np.testing.assert_array_equal(called(lambda v: 2 * v["a"])(values), 2 * values["a"])
    np.testing.assert_array_equal(called(lambda v: 2 * v["b"])(values), 2 * values["b"])
    one = called(lambda x: {"a": 2 * x, "b": 3 * x})(X)
    other = called(lambda x: {"a": 2 * x, "c": 3 * x})(X)
    assert one.keys() == {"a", "b"} and other.keys() == {"a", "c"}


def test_functions_that_call_back_into_python_keep_their_own_python():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    for added in (1, 2):
        task = lambda x, added=added: jax.pure_callback(lambda x: np.asarray(x) + added, shape, x)  # noqa: E731
        np.testing.assert_array_equal(called(task)(X), X + added)


BESIDE = """
import jax.numpy as jnp, numpy as np
from hw1jax.core import programs

called, x = programs.for_each_task()(lambda task, x: task(x)), np.arange(6, dtype=np.float32)
for value in (4, 5):
    table = value * jnp.linspace(0, 1, 5000)
    np.testing.assert_array_equal(called(lambda x, table=table: x * table[-1] + 0 * jnp.sum(table))(x), value * x)
"""


def test_constants_that_jax_passes_beside_the_program_are_told_apart():
    environment = os.environ | {"JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS": "1"}  # JAX looks at it as it is imported
    done = subprocess.run([sys.executable, "-c", BESIDE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_precisions_and_devices_have_programs_of_their_own():
    assert called(closure(7))(X).dtype == np.float32
    with jax.enable_x64(True):
        assert called(closure(7))(X.astype(float)).dtype == np.float64
    devices = jax.devices()[:2]
    for device in devices:
        found = called(closure(7))(jax.device_put(X, device))
        assert found.devices() == {device}
        np.testing.assert_array_equal(found, 7 * X)


def test_arguments_that_a_program_gives_back_may_be_given_away():
    @programs.for_each_task(0, donate_argnums=1)
    def updated(task, number, state):
        return task(state) + number

    for _ in range(2):
        state = jnp.asarray(X)
        np.testing.assert_array_equal(updated(closure(13))(1, state), 13 * X + 1)
        assert state.is_deleted()
        np.testing.assert_array_equal(updated(closure(13))(2, jnp.asarray(X)), 13 * X + 2)


def test_few_tasks_and_programs_are_kept(monkeypatch):
    assert min(programs.KEPT_TASKS, programs.KEPT_PROGRAMS) >= study.MOST_PROGRAMS
    monkeypatch.setattr(programs, "KEPT_TASKS", 3)
    monkeypatch.setattr(programs, "KEPT_PROGRAMS", 2)

    @programs.for_each_task()
    def scaled(task, x):
        return task(x)

    def closing_over(held):
        return lambda x: x * len(held)

    references = []
    for _ in range(9):
        held = frozenset("what takes memory")
        scaled(closing_over(held))(X)
        references.append(weakref.ref(held))
    del held
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 3
    with counted() as compiled:
        for value in (2, 3, 2, 4, 2, 3):  # the third takes the place of the second, which was not used for longest
            scaled(closure(value))(X)
    assert len(compiled) == 4
