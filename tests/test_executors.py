"""Jobs on executors: the same bytes whoever trains, and what is lost with a worker."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
from processes import lasting
from studies import DEEP, TOY

from hw1jax import Halving, run_study
from hw1jax.search import executors, jobs

FORMS = {
    "padded": (TOY, {"widths": "padded", "workers": 2}),
    "own widths": (TOY, {"widths": "exact"}),
    "halving, static, with state": (DEEP, {"halving": Halving(2), "workers": 2}),
}
SHORT = {"num_devices": 1, "num_trials": 4, "num_epochs": 4}


class Serial(Executor):
    """Trains where it is asked to, and says how often."""

    def __init__(self):
        self.requests = []

    def submit(self, function, /, *args):
        self.requests.append(args)
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(autouse=True)
def stretches_of_one_call(monkeypatch):
    monkeypatch.setattr(jobs, "SECONDS", 0)
    monkeypatch.setattr(executors, "SECONDS_PER_MB", 0)
    monkeypatch.setattr(executors, "_known", {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """form -> what is left by a run without an executor."""
    found, folder = {}, tmp_path_factory.mktemp("undisturbed")

    def run(form):
        if form not in found:
            asked, settings = FORMS[form]
            run_study(asked, out=folder / form, **SHORT | settings)
            found[form] = lasting(folder / form)
        return found[form]

    return run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [None, 3])
def test_the_bytes_are_those_without_an_executor(tmp_path, undisturbed, form, threads):
    asked, settings = FORMS[form]
    with Serial() if threads is None else ThreadPoolExecutor(threads) as executor:
        run_study(asked, out=tmp_path, executor=executor, **SHORT | settings)
    assert lasting(tmp_path) == undisturbed(form)


def test_the_networks_travel_where_they_are_not_known_and_a_job_goes_out_again_and_again(tmp_path):
    executor = Serial()
    asked, settings = FORMS["padded"]
    run_study(replace(asked, epochs_per_call=1), out=tmp_path, executor=executor, **SHORT | settings)
    sent = [packed for *_, packed, _ in executor.requests if packed is not None]
    assert len(set(sent)) == 2, "for the search, and for the refit"
    assert len(executor.requests) == len(sent) + 2 * 4 + 4, "each epoch of two jobs and of the refit"


def test_a_worker_with_another_version_or_device_is_refused_in_one_line_that_names_both():
    here = executors.identity()
    for name in ("hw1jax", "jax", "device"):
        words = f"^a worker has {name} {here[name]}, and the process that runs the study has 9.9$"
        with pytest.raises(ValueError, match=words):
            executors.advance_remotely(here | {name: "9.9"}, "", None, b"")


def test_what_a_worker_raises_comes_back(tmp_path):
    class Failing(Serial):
        def submit(self, function, /, *args):
            return super().submit(lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        run_study(TOY, out=tmp_path, executor=Failing(), **SHORT)


def test_it_stops_while_a_worker_trains_and_goes_on_without_one(tmp_path, undisturbed):
    class Waiting(Serial):
        def submit(self, function, /, *args):
            stop.set()
            return Future()  # which nobody ends

    from hw1jax import run
    from hw1jax.search import study
    from hw1jax.search.observer import Observer

    asked, settings = FORMS["padded"]
    stop, order = threading.Event(), study.order(asked, out=tmp_path, **SHORT | settings)
    with pytest.raises(jobs.Stopped):
        run.run(order, Observer(), command="hw1jax.run_study", started=0.0, stop=stop, executor=Waiting())
    run_study(asked, out=tmp_path, **SHORT | settings)
    assert lasting(tmp_path) == undisturbed("padded")


def pool(num_workers):
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))


def test_a_pool_whose_worker_dies_is_told_in_one_line_and_the_search_goes_on(tmp_path, undisturbed):
    asked, settings = FORMS["padded"]

    class Dying:
        """A pool that loses its workers after some jobs."""

        def __init__(self, executor):
            self.executor, self.left = executor, 3

        def submit(self, function, /, *args):
            self.left -= 1
            if not self.left:
                for process in list(self.executor._processes.values()):
                    os.kill(process.pid, signal.SIGKILL)
            return self.executor.submit(function, *args)

    with pool(1) as workers, pytest.raises(ConnectionError, match="^the executor has lost its workers .*goes on"):
        run_study(asked, out=tmp_path, executor=Dying(workers), **SHORT | settings)
    run_study(asked, out=tmp_path, **SHORT | settings)
    assert lasting(tmp_path) == undisturbed("padded")


SCRIPT = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import jax, jax.numpy as jnp, numpy as np, optax
import hw1jax as hw

x = np.linspace(-1, 1, 60, dtype=np.float32)[:, None]
study = hw.Study(
    name="lambdas",
    task=lambda fixed: hw.Task(
        init=lambda key, h: jax.random.normal(key, (1, 1)),
        apply=lambda params, x, h: x @ params,
        loss=lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=1),
        optimizer=lambda h: optax.sgd(h["rate"])),
    data=hw.Dataset(x[::2], 2 * x[::2], x[1::2], 2 * x[1::2]),
    space={"rate": hw.Float(1e-3, 1e-1, log=True)}, num_trials=3, num_epochs=2, batch_size=10)

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for executor in (None, pool):
            hw.run_study(study, out=f"{sys.argv[1]}/{executor is None}", executor=executor, num_devices=1)
"""


def test_a_study_with_lambdas_in_a_script_trains_in_other_processes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, tmp_path / "script.py", tmp_path], check=True, timeout=300)
    assert lasting(tmp_path / "True") == lasting(tmp_path / "False")


# Dask


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_dask_has_the_same_bytes_with_a_worker_that_is_killed_and_one_that_comes_late(
    tmp_path, undisturbed, cluster, form
):
    asked, settings = FORMS[form]
    with executors.connected(cluster.scheduler_address) as executor:
        killed = threading.Event()

        def kill_and_add():
            while not list(tmp_path.rglob("*.npz")):
                time.sleep(0.01)
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            cluster.scale(3)
            killed.set()

        threading.Thread(target=kill_and_add, daemon=True).start()
        run_study(replace(asked, epochs_per_call=1), out=tmp_path, executor=executor, **SHORT | settings)
        assert killed.is_set()
    assert lasting(tmp_path) == undisturbed(form)


def test_an_engine_that_does_not_answer_or_is_not_there_is_told_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match="needs what is not installed: pip install"):
        monkeypatch.setitem(sys.modules, "ray", None)
        with executors.connected("ray"):
            pass


@pytest.mark.slow
def test_ray_has_the_same_bytes(tmp_path, undisturbed):
    pytest.importorskip("ray", reason="Ray is not installed")
    asked, settings = FORMS["padded"]
    with executors.connected("ray") as executor:
        run_study(asked, out=tmp_path, executor=executor, **SHORT | settings)
    assert lasting(tmp_path) == undisturbed("padded")
