"""Training of jobs by the workers of any `concurrent.futures.Executor`: processes, Dask, Ray.

Dask and Ray repeat the work of a lost worker on another one.
"""

import hashlib
import logging
import os
import pickle
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import cloudpickle
import jax

from hw1jax import environment
from hw1jax.search import jobs
from hw1jax.search.jobs import Advance, Show, Stopped, Stretch
from hw1jax.search.networks import Networks
from hw1jax.search.plan import Job

SECONDS_PER_MB = 1  # of training per MB of state: transfer takes up to 0.02 s per MB, so the overhead stays below 2 %
SECONDS_BETWEEN_CHECKS = 0.5  # whether to stop, while a worker trains
KEPT = 2  # networks, with their data, in a worker's memory: of a search and its refit, or of two searches


def on_executor(executor: Executor, networks: Networks, stop: Callable[[], bool]) -> Advance:
    """Returns an `advance` that runs on the workers of an executor; each worker is sent the networks and data once.

    Raises (when it is called):
      ValueError: a worker has other versions or another kind of device than this process, or can't load the study.
      ConnectionError: the executor has failed; it may have lost its workers.
      Stopped: `stop` gave True.
      Exception: the worker's error, with the worker's traceback as its cause.
    """
    here = replace(networks.study, data=networks.data)  # workers don't load data
    with _modules_beside_the_script():
        packed = cloudpickle.dumps(Networks(here, networks.search, networks.data, networks.folds, networks.first_fold))
    digest, versions = hashlib.sha256(packed).hexdigest(), identity()
    sending, num_sent = threading.Lock(), 0

    def answer_to(networks_: bytes | None, request: bytes | None) -> Stretch | None:
        try:
            future = executor.submit(advance_remotely, versions, digest, networks_, request)
            while not wait([future], SECONDS_BETWEEN_CHECKS).done:
                if stop():
                    future.cancel()
                    raise Stopped
            stretch, raised, worker_traceback = pickle.loads(future.result())
        except Stopped:
            raise
        except Exception as error:
            reason = " ".join([type(error).__name__, *str(error).split()])
            raise ConnectionError(f"the executor has failed ({reason}); the same command goes on from here") from error
        if raised is not None:
            kind, args, attributes = raised
            error = kind.__new__(kind, *args)
            error.__dict__.update(attributes)
            raise error from RuntimeError(f"in a worker:\n{worker_traceback}")
        return stretch

    def on_worker(job: Job, state: Any, first_epoch: int, device: int, show: Show) -> Stretch:
        nonlocal num_sent
        request = pickle.dumps((job, state, first_epoch))
        num_before, copies = num_sent, 0
        # The second copy goes with the request: requests may never reach the workers that copies reach.
        while (stretch := answer_to(packed if copies == 2 else None, request)) is None:  # the worker has no networks
            with sending:  # one copy at a time, to an idle worker; then all threads ask again
                if num_sent == num_before:
                    num_sent, copies = num_sent + 1, copies + 1
                    if copies == 1:
                        answer_to(packed, None)
            num_before = num_sent
        show(job, stretch.num_epochs, stretch.losses[1])
        return stretch

    return on_worker


@contextmanager
def _modules_beside_the_script() -> Iterator[None]:
    """Within it, cloudpickle copies the modules in the folder of the script or notebook, which workers can't import."""
    folder = os.path.abspath(sys.path[0])  # of `python -m hw1jax FILE`, that of the file
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    names = [name for name, file in files.items() if file and os.path.dirname(os.path.abspath(file)) == folder]
    beside = [sys.modules[name] for name in names if name != "__main__"]
    for module in beside:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in beside:
            cloudpickle.unregister_pickle_by_value(module)


def identity() -> dict[str, str]:
    """Versions and settings that must be equal in this process and in its workers, for the same bits."""
    versions = {name: environment.version_of(name) for name in ("hw1jax", "jax", "jaxlib", "numpy")}
    flags = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")
    config = {name: str(getattr(jax.config, name)) for name in flags}
    device = jax.devices()[0].device_kind
    reproducible = device != "cpu" and environment.is_reproducible()
    return versions | config | {"device": device, "reproducible": str(reproducible)}


_known: dict[str, Networks] = {}  # networks that this worker was sent, by digest


def advance_remotely(versions: dict[str, str], digest: str, packed: bytes | None, request: bytes | None) -> bytes:
    """Runs `advance` in a worker, or stores the networks there for the next calls.

    Args:
      versions: `identity()` of the process that runs the study.
      digest: of the networks.
      packed: the networks to store, pickled.
      request: (job, state, epochs done) to train, pickled.

    Returns:
      (stretch, error, traceback), pickled. The stretch is None if the worker has no networks of this digest. The error
      is None or (type, args, attributes): executors lose notes, and exceptions that can't be unpickled.
    """
    try:
        for name, own in identity().items():
            if versions.get(name) != own:
                raise ValueError(f"a worker has {name} {own}, and the process that runs the study {versions.get(name)}")
        if packed is not None:
            _keep(digest, packed)
        networks = _known.get(digest)
        if networks is None or request is None:
            return pickle.dumps((None, None, ""))
        job, state, first_epoch = pickle.loads(request)
        megabytes = 0 if state is None else sum(leaf.nbytes for leaf in state) / 1e6
        seconds = max(jobs.SECONDS, SECONDS_PER_MB * megabytes)
        return pickle.dumps((jobs.advance(networks, job, state, first_epoch, seconds=seconds), None, ""))
    except Exception as error:
        return _packed_error(error)


def _keep(digest: str, packed: bytes) -> None:
    try:
        _known[digest] = pickle.loads(packed)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        hint = "install there what the study imports, or start workers with its folder in PYTHONPATH"
        raise ValueError(f"a worker can't load the study ({reason}): {hint}") from error
    for old in list(_known)[:-KEPT]:
        _known.pop(old, None)  # another thread may remove it too


def _packed_error(error: Exception) -> bytes:
    """The parts of an error; if they can't be pickled, those of a RuntimeError with its name, text and notes."""
    text = "".join(traceback.format_exception(error))
    try:
        return cloudpickle.dumps((None, (type(error), error.args, vars(error)), text))
    except Exception:
        attributes = {"__notes__": getattr(error, "__notes__", [])}
        return pickle.dumps((None, (RuntimeError, (f"{type(error).__name__}: {error}",), attributes), text))


# Engines


@contextmanager
def connected(address: str) -> Iterator[Executor]:
    """The executor of a Dask scheduler ("tcp://HOST:PORT", or its scheduler file) or of Ray ("ray", "ray://HOST:PORT").

    Raises:
      ValueError: the engine isn't installed.
      ConnectionError: nothing answers at the address.
    """
    is_ray = address.partition("://")[0] == "ray"
    warnings.filterwarnings("ignore", "Sending large graph")  # Dask's; states and data are large
    try:
        if is_ray:
            engine: Any = RayExecutor(address)
        else:
            from distributed import Client

            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # the run's error is one line
            engine = Client(scheduler_file=address) if os.path.exists(address) else Client(address)
    except ImportError as error:
        extra = "ray" if is_ray else "hw1jax[dask]"
        raise ValueError(f"executor={address} needs what is not installed: pip install '{extra}'") from error
    except (OSError, ValueError) as error:
        raise ConnectionError(f"executor={address}: nothing answers there ({error})") from error
    with engine:
        yield engine if is_ray else engine.get_executor(pure=False)


class RayExecutor(Executor):
    """Ray's workers as a `concurrent.futures.Executor`."""

    def __init__(self, address: str):
        import ray  # pyright: ignore[reportMissingImports]

        self._ray = ray
        ray.init(None if address == "ray" else address)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        on_gpu = jax.default_backend() == "gpu"  # Ray hides GPUs from what doesn't ask for one
        return self._ray.remote(num_gpus=int(on_gpu))(function).remote(*args, **kwargs).future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._ray.shutdown()
