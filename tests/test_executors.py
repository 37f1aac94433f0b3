"""Jobs on executors: the results are the same bytes, and a lost worker or main process costs little."""

import importlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cloudpickle
import jax
import pytest
from processes import STARTED, lasting, one_line, wait_for
from studies import DEEP, TOY, toy_task

from hw1jax import Halving, run, run_study, squared_error
from hw1jax.search import executors, jobs, study
from hw1jax.search.observer import Observer

EACH_EPOCH = replace(TOY, epochs_per_call=1)  # another number may be another program, which rounds in another way
FORMS = {
    "padded": (EACH_EPOCH, {"widths": "padded", "workers": 2}),
    "own widths": (EACH_EPOCH, {"widths": "exact"}),
    "halving, static, with state": (DEEP, {"halving": Halving(2), "workers": 2}),
}
SHORT = {"num_devices": 1, "num_trials": 4, "num_epochs": 4}


def briefly(function, *args):
    """In a worker: its stretches end with each call of the program."""
    jobs.SECONDS = executors.SECONDS_PER_MB = 0
    return function(*args)


def known(folder, function, *args):
    """As `briefly`; leaves the worker's process id in a folder."""
    (folder / str(os.getpid())).touch()
    return briefly(function, *args)


def dying(mark, function, *args):
    """As `briefly`; the first worker that is in the middle of a job kills itself."""
    answer, request = briefly(function, *args), args[-1]
    if request is not None and pickle.loads(request)[2] and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


class By(Executor):
    """An executor whose workers call function(*given, the submitted function, *its arguments)."""

    def __init__(self, executor, function, *given):
        self._executor, self._first = executor, (function, *given)

    def submit(self, function, /, *args):
        return self._executor.submit(*self._first, function, *args)


class Serial(Executor):
    """Trains in the calling thread, and keeps the requests and answers."""

    def __init__(self):
        self.requests, self.answers = [], []

    def submit(self, function, /, *args):
        self.requests.append(args)
        future = Future()
        try:
            self.answers.append(function(*args))
            future.set_result(self.answers[-1])
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
    """form -> files of a run without an executor."""
    found, folder = {}, tmp_path_factory.mktemp("undisturbed")

    def run(form):
        if form not in found:
            asked, settings = FORMS[form]
            run_study(asked, out=folder / form, **SHORT | settings)
            found[form] = lasting(folder / form)
        return found[form]

    return run


@pytest.fixture(scope="module")
def pool():
    """Two processes, whose stretches are short."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as made:
        yield By(made, briefly)


# The same bytes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [None, 3])
def test_the_bytes_are_those_without_an_executor(tmp_path, undisturbed, form, threads):
    asked, settings = FORMS[form]
    with Serial() if threads is None else ThreadPoolExecutor(threads) as executor:
        run_study(asked, out=tmp_path, executor=executor, **SHORT | settings)
    assert lasting(tmp_path) == undisturbed(form)


@pytest.mark.parametrize("form", ["padded", *(pytest.param(form, marks=pytest.mark.slow) for form in [*FORMS][1:])])
def test_the_bytes_are_those_without_a_pool_of_processes(tmp_path, undisturbed, pool, form):
    asked, settings = FORMS[form]
    run_study(asked, out=tmp_path, executor=pool, **SHORT | settings)
    assert lasting(tmp_path) == undisturbed(form)


# What travels


def test_the_networks_travel_where_they_are_not_known_and_a_job_goes_out_again_and_again(tmp_path):
    executor = Serial()
    asked, settings = FORMS["padded"]
    run_study(asked, out=tmp_path, executor=executor, **SHORT | settings)
    sent = [packed for *_, packed, _ in executor.requests if packed is not None]
    assert len(set(sent)) == len(sent) == 2, "for the search, and for the refit"
    stretches = [stretch for stretch, *_ in map(pickle.loads, executor.answers) if stretch is not None]
    assert len(stretches) == 2 * 4 + 4, "each epoch of two jobs and of the refit"


def test_of_many_jobs_that_wait_for_few_workers_one_sends_the_networks(tmp_path):
    """All jobs are submitted before the first answer; networks with each would fill the executor's queue."""
    asked, settings = FORMS["own widths"]
    all_ask, sent = threading.Barrier(4, timeout=60), []

    class Meeting(ThreadPoolExecutor):
        def submit(self, function, /, *args):
            if len(sent) == 0 and args[-1] is not None and not meeting.is_set():
                all_ask.wait()
                meeting.set()
            if args[-2] is not None:
                sent.append(args[1])
            return super().submit(function, *args)

    meeting = threading.Event()
    with Meeting(4) as executor:
        run_study(asked, out=tmp_path, executor=executor, **SHORT | settings)
    assert len(set(sent)) == len(sent) == 2, "for the search, and for the refit"


def test_workers_that_keep_nothing_are_sent_the_networks_with_each_request(tmp_path, undisturbed):
    class Forgetful(Serial):
        def submit(self, function, /, *args):
            executors._known.clear()
            return super().submit(function, *args)

    asked, settings = FORMS["padded"]
    run_study(asked, out=tmp_path, executor=Forgetful(), **SHORT | settings)
    assert lasting(tmp_path) == undisturbed("padded")


def test_a_worker_keeps_the_networks_of_two_searches_at_a_time(tmp_path):
    executor = Serial()
    for i in range(2):
        run_study(EACH_EPOCH, out=tmp_path / str(i), seed=i, executor=executor, **SHORT)
    assert len(executors._known) == 2


# Who is refused, and what comes back


def raised_by(*args):
    _, raised, text = pickle.loads(executors.advance_remotely(*args))
    return raised, text


def test_a_worker_with_another_version_or_device_is_refused_in_one_line_that_names_both():
    here = executors.identity()
    for name in ("hw1jax", "jax", "device", "jax_enable_x64"):
        (kind, args, _), _ = raised_by(here | {name: "9.9"}, "", None, b"")
        assert kind is ValueError
        assert args == (f"a worker has {name} {here[name]}, and the process that runs the study 9.9",)


def test_a_worker_that_can_not_import_what_the_study_does_is_refused_in_one_line():
    missing = pickle.dumps(raised_by).replace(b"test_executors", b"test_elsewhere")
    (kind, (line,), _), _ = raised_by(executors.identity(), "", missing, None)
    assert kind is ValueError
    assert line.startswith(
        "a worker can't load the study (ModuleNotFoundError: No module named 'test_elsewhere'): inst"
    )


class Odd(Exception):
    """Pickle would call it with one argument."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Bound(Exception):
    """It can't be pickled."""

    def __init__(self):
        super().__init__("bound to a thread")
        self.lock = threading.Lock()


def fail(kind, outputs, y):
    """A loss that fails in workers."""
    if multiprocessing.parent_process() is not None:
        if kind is Odd:
            raise Odd(1, 2)
        float(outputs[0, 0])
    return squared_error(outputs, y)


def failing_task(kind, fixed):
    """A task that fails in workers, when it is made or when its loss is called."""
    if kind is Bound and multiprocessing.parent_process() is not None:
        raise Bound
    return toy_task(fixed)._replace(loss=partial(fail, kind))


@pytest.mark.parametrize(
    ("kind", "comes_back", "words", "function"),
    [
        (Odd, Odd, "^1 and 2\n", "fail"),
        (float, jax.errors.ConcretizationTypeError, "^Abstract tracer value", "fail"),
        (Bound, RuntimeError, "^Bound: bound to a thread\nin task, called with ", "failing_task"),
    ],
)
def test_what_a_function_of_the_study_raises_in_a_worker_comes_back(tmp_path, pool, kind, comes_back, words, function):
    with pytest.raises(comes_back, match=words) as caught:
        run_study(replace(TOY, task=partial(failing_task, kind)), out=tmp_path, executor=pool, **SHORT)
    assert type(caught.value) is comes_back
    assert f"in {function}\n" in str(caught.value.__cause__), "the worker's traceback"


def test_an_error_in_one_job_stops_those_that_others_wait_for(tmp_path):
    asked, settings = FORMS["own widths"]

    class Failing(Serial):
        def submit(self, function, /, *args):
            future = Future()  # which nobody ends
            self.requests.append(args)
            if len(self.requests) == 4:
                failed.append(time.monotonic())
                future.set_exception(RuntimeError("no\nmemory"))
            return future

    failed = []
    with pytest.raises(ConnectionError, match=r"^the executor has failed \(RuntimeError no memory\); the same comm"):
        run_study(asked, out=tmp_path, executor=Failing(), **SHORT | settings)
    assert time.monotonic() - failed[0] < 2


def test_a_job_that_is_too_large_for_a_workers_memory_is_trained_in_halves(tmp_path, monkeypatch):
    def advance(networks, job, *args, **kwargs):
        if len(job.numbers) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return within_memory(networks, job, *args, **kwargs)

    within_memory = jobs.advance
    monkeypatch.setattr(jobs, "advance", advance)
    asked, settings = FORMS["padded"]
    run_study(asked, out=tmp_path, executor=Serial(), **SHORT | settings)
    assert lasting(tmp_path)[0]["splits"] == 2, "jobs of two trials each"


def test_it_stops_while_a_worker_trains_and_goes_on_without_one(tmp_path, undisturbed):
    class Waiting(Serial):
        def submit(self, function, /, *args):
            stop.set()
            return Future()  # which nobody ends

    asked, settings = FORMS["padded"]
    stop, config = threading.Event(), study.run_config(asked, out=tmp_path, **SHORT | settings)
    with pytest.raises(jobs.Stopped):
        run.run(config, Observer(), command="hw1jax.run_study", started=0.0, stop=stop, executor=Waiting())
    run_study(asked, out=tmp_path, **SHORT | settings)
    assert lasting(tmp_path) == undisturbed("padded")


def test_an_engine_that_is_not_installed_is_told_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match="^executor=ray needs what is not installed: pip install 'ray'$"):
        monkeypatch.setitem(sys.modules, "ray", None)
        with executors.connected("ray"):
            pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "no/such.json"])
def test_an_address_where_nothing_answers_is_told_in_one_line(address):
    pytest.importorskip("distributed", reason="Dask is not installed")
    from dask import config

    with (
        config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(ConnectionError, match=f"^executor={address}: nothing answers there "),
        executors.connected(address),
    ):
        pass


# A script, its lambdas, and processes that die

SCRIPT = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
import hw1jax as hw
from hw1jax import cli
import test_executors

x = np.linspace(-1, 1, 60, dtype=np.float32)[:, None]
study = hw.Study(
    name="lambdas",
    task=lambda fixed: hw.Task(
        init=lambda key, h: jax.random.normal(key, (1, 1)),
        apply=lambda params, x, h: x @ params,
        loss=lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=1),
        optimizer=lambda h: optax.sgd(h["rate"])),
    data=hw.Dataset(x[::2], 2 * x[::2], x[1::2], 2 * x[1::2]),
    space={"rate": hw.Float(1e-3, 1e-1, log=True)},
    num_trials=3, num_epochs=3, batch_size=10, epochs_per_call=1)

def in_a_pool(out):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        executor = test_executors.By(pool, test_executors.dying, Path(out, "mark"))
        hw.run_study(study, out=out, executor=executor, num_devices=1)

if __name__ == "__main__":
    if sys.argv[1] == "pool":
        cli.with_exit_code(lambda: in_a_pool(sys.argv[2]))
    hw.main(study)
"""


@pytest.fixture
def script(tmp_path):
    """(arguments of the command line of a study with lambdas) -> its process."""
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}

    def start(*args):
        command = [sys.executable, tmp_path / "script.py", *map(str, args)]
        process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=os.environ | paths)
        STARTED.append(process)
        return process

    return start


def but_for_the_command(folder):
    results, *others = lasting(folder)
    del results["command"]
    return results, *others


def ended(process):
    """(exit code, standard error)"""
    errors = process.communicate(timeout=300)[1]
    return process.returncode, errors


def test_a_pool_whose_worker_dies_is_told_in_one_line_and_the_same_command_goes_on(tmp_path, script):
    (tmp_path / "killed").mkdir()
    code, errors = ended(script("pool", tmp_path / "killed"))
    assert code == 2
    one_line(errors)
    assert "the executor has failed (BrokenProcessPool " in errors
    assert errors.endswith("; the same command goes on from here\n")
    assert list(tmp_path.rglob("*.checkpoint")), "of what was trained before"
    assert ended(script("pool", tmp_path / "killed")) == (0, "")
    code, errors = ended(script("--out", tmp_path / "here", "--num-devices", "1", "--quiet"))
    assert code == 0, errors
    assert but_for_the_command(tmp_path / "killed") == but_for_the_command(tmp_path / "here")


# Dask


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


@pytest.fixture
def workers(cluster):
    """(how many) -> waits until there are so many."""

    def scaled(num_workers):
        cluster.scale(num_workers)
        wait_for(lambda: len(cluster.scheduler.workers) == num_workers)

    return scaled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_dask_has_the_same_bytes(tmp_path, undisturbed, cluster, workers, form, num_workers):
    asked, settings = FORMS[form]
    workers(num_workers)
    with executors.connected(cluster.scheduler_address) as executor:
        run_study(asked, out=tmp_path, executor=By(executor, briefly), **SHORT | settings)
    assert lasting(tmp_path) == undisturbed(form)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_with_dask_the_bytes_are_the_same_where_a_worker_is_killed_in_the_middle_of_a_job(
    tmp_path, undisturbed, cluster, workers, form
):
    asked, settings = FORMS[form]
    workers(2)
    with executors.connected(cluster.scheduler_address) as executor:
        run_study(asked, out=tmp_path, executor=By(executor, dying, tmp_path / "mark"), **SHORT | settings)
    assert (tmp_path / "mark").exists()
    assert lasting(tmp_path) == undisturbed(form)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_with_dask_a_worker_that_comes_late_has_its_share(tmp_path, undisturbed, cluster, workers):
    asked, settings = FORMS["padded"]
    workers(1)
    seen = tmp_path / "seen"
    seen.mkdir()

    class Growing(By):
        def submit(self, function, /, *args):
            with adding:
                if any(seen.iterdir()):
                    workers(2)
            return super().submit(function, *args)

    adding = threading.Lock()
    with executors.connected(cluster.scheduler_address) as executor:
        run_study(asked, out=tmp_path / "out", executor=Growing(executor, known, seen), **SHORT | settings)
    assert len(list(seen.iterdir())) == 2
    assert lasting(tmp_path / "out") == undisturbed("padded")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_runs_the_study_is_stopped_then_killed_and_the_same_command_goes_on(tmp_path, script, cluster, workers):
    workers(2)
    with executors.connected(cluster.scheduler_address) as executor:
        executor._client.run(partial(briefly, str))  # no worker is killed here
    sizes = ["--num-devices", 1, "--num-epochs", 100, "--quiet"]
    command = [*sizes, "--out", tmp_path / "out", "--executor", cluster.scheduler_address, "--workers", 2]
    checkpoints = []

    def found():
        return [(path, path.stat().st_mtime_ns) for path in Path(tmp_path, "out").rglob("*.checkpoint")]

    def trains_further():
        return found() and found() != checkpoints

    process = script(*command)
    wait_for(trains_further)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    assert code == 143
    assert "stopping; the same command goes on from here" in errors
    assert time.monotonic() - begin < 4
    checkpoints[:] = found()
    process = script(*command)
    wait_for(trains_further)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert not (tmp_path / "out" / "results.json").exists()
    code, errors = ended(script(*command))
    assert code == 0, errors
    code, errors = ended(script(*sizes, "--out", tmp_path / "here", "--workers", 2))
    assert code == 0, errors
    assert but_for_the_command(tmp_path / "out") == but_for_the_command(tmp_path / "here")


@pytest.mark.slow
def test_a_scheduler_that_dies_is_told_in_one_line(tmp_path, script):
    pytest.importorskip("distributed", reason="Dask is not installed")
    file = tmp_path / "scheduler.json"
    options = ["--scheduler-file", file, "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([sys.executable, "-m", "dask", "scheduler", *options], stderr=subprocess.DEVNULL)
    try:
        wait_for(file.exists)
        process = script("--out", tmp_path / "out", "--executor", file, "--quiet")
        wait_for((tmp_path / "out" / "journal.log").exists)  # and no worker comes
    finally:
        scheduler.kill()
        scheduler.wait()
    code, errors = ended(process)
    assert code == 2
    one_line(errors)
    assert errors.startswith("error: the executor has failed (")


# Ray


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_has_the_same_bytes_and_a_killed_worker_costs_its_stretch(tmp_path, undisturbed, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # its workers import this file
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with executors.connected("ray") as executor:
        for form, (asked, settings) in FORMS.items():
            out = tmp_path / form
            by = By(executor, dying, tmp_path / f"{form}.mark")
            run_study(asked, out=out, executor=by, **SHORT | settings)
            assert (tmp_path / f"{form}.mark").exists()
            assert lasting(out) == undisturbed(form)


def test_a_search_that_was_begun_on_more_devices_than_a_worker_has_is_refused_in_one_line(monkeypatch, tmp_path):
    asked, settings = FORMS["padded"]
    stopped = {"num_trials": 4, "num_epochs": 4, "num_devices": 2} | settings | {"workers": 1}

    class Stopping(Observer):
        def epochs(self, *_):
            stop.set()

    stop = threading.Event()
    config = study.run_config(asked, out=tmp_path, **stopped)
    with pytest.raises(jobs.Stopped):
        run.run(config, Stopping(), command="", started=0.0, stop=stop)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]])
    with pytest.raises(ValueError, match="^this search was begun on 2 devices, a worker has 1: [^\n]*$"):
        run_study(asked, out=tmp_path, executor=Serial(), **stopped)


def test_modules_in_the_scripts_folder_travel_with_the_study(tmp_path, monkeypatch):
    (tmp_path / "beside_the_script.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    double = importlib.import_module("beside_the_script").double
    with executors._modules_beside_the_script():
        packed = cloudpickle.dumps(double)
    assert b"beside_the_script" in cloudpickle.dumps(double), "and only within it"
    sys.path.remove(str(tmp_path))
    del sys.modules["beside_the_script"]
    assert pickle.loads(packed)(4) == 8
