"""Many searches in one process leave nothing behind: no listener, thread, open file or memory."""

import gc
import os
import threading

import jax
import numpy as np
import optax
from jax._src import monitoring
from studies import LINE

import hw1jax as hw
from hw1jax.sklearn import MLPRegressorCV

X = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]


def left():
    """What a process holds: listeners of JAX's monitoring, threads, open files, arrays on devices."""
    gc.collect()
    listeners = len(monitoring.get_event_duration_listeners()) + len(monitoring.get_event_listeners())
    return listeners, threading.active_count(), len(os.listdir("/proc/self/fd")), len(jax.live_arrays())


def search(folder):
    hw.run_study(LINE, out=folder, overwrite=True, num_devices=1)


def validate(_):
    hw.cross_validate(
        lambda key, rate: jax.random.normal(key, (1, 1)),
        lambda params, x, rate: x @ params,
        hw.squared_error,
        optax.sgd,
        np.array([0.01, 0.1], np.float32),
        X,
        2 * X,
        key=jax.random.key(0),
        num_epochs=1,
        batch_size=5,
    )


def fit(_):
    MLPRegressorCV((4,), n_iter=2, cv=2, max_iter=1, batch_size=5, random_state=0).fit(X, X[:, 0])


def test_calls_leave_nothing_behind(tmp_path):
    for call in (search, validate, fit):
        for _ in range(3):  # caches fill
            call(tmp_path / "run")
        before = left()
        for _ in range(3):
            call(tmp_path / "run")
        after = left()
        assert after[:3] == before[:3], call.__name__
        assert after[3] <= before[3] + 3, "arrays on devices"
