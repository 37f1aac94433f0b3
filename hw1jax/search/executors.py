"""A search's jobs on the workers of any `concurrent.futures.Executor`: processes, Dask, Ray.

Where a lost worker's job is done again is the executor's business, as Dask and Ray do by themselves.
"""

import hashlib
import logging
import os
import pickle
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

SECONDS_PER_MB = 1  # of state: on an executor it travels, at 0.02 s a MB, which is to be 2 % of the training
SECONDS_BETWEEN_LOOKS = 0.5  # at whether to stop, while a worker trains
KEPT = 2  # networks with their data that a worker keeps: a search and its refit, or two searches at a time


def on_executor(executor: Executor, networks: Networks, stop: Callable[[], bool]) -> Advance:
    """`advance` by the workers of an executor, to each of which the networks with their data travel once.

    Raises (when it is called):
      ValueError: a worker has other versions or another kind of device than this process, or can't load the study.
      ConnectionError: the executor has failed; it may have lost its workers.
      Stopped: `stop()` is true.
      Exception: whatever training raised in the worker, with the worker's traceback as its cause.
    """
    here = replace(networks.study, data=networks.data)  # which the workers need not load
    packed = cloudpickle.dumps(Networks(here, networks.search, networks.data, networks.folds, networks.first_fold))
    digest, versions = hashlib.sha256(packed).hexdigest(), identity()
    sending, num_sent = threading.Lock(), 0

    def answer_to(networks_: bytes | None, request: bytes | None) -> Stretch | None:
        try:
            future = executor.submit(advance_remotely, versions, digest, networks_, request)
            while not wait([future], SECONDS_BETWEEN_LOOKS).done:
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
        num_before = num_sent
        while (stretch := answer_to(None, request)) is None:  # a worker doesn't know the networks
            with sending:  # one at a time, to whoever is idle: the others ask again first
                if num_sent == num_before:
                    answer_to(packed, None)
                    num_sent += 1
            num_before = num_sent
        show(job, stretch.num_epochs, stretch.losses[1])
        return stretch

    return on_worker


def identity() -> dict[str, str]:
    """What must be the same in the process that runs the study and in its workers, for the same bits."""
    versions = {name: environment.version_of(name) for name in ("hw1jax", "jax", "jaxlib", "numpy")}
    flags = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")
    config = {name: str(getattr(jax.config, name)) for name in flags}
    device = jax.devices()[0].device_kind
    reproducible = device != "cpu" and environment.is_reproducible()
    return versions | config | {"device": device, "reproducible": str(reproducible)}


_known: dict[str, Networks] = {}  # the networks that this worker has been sent last, by digest


def advance_remotely(versions: dict[str, str], digest: str, packed: bytes | None, request: bytes | None) -> bytes:
    """`advance` in a worker, or keeps the networks there for the next calls.

    Args:
      versions: `identity()` of the process that runs the study.
      digest: of the networks.
      packed: the networks, pickled, to be kept.
      request: (job, state, epochs done), pickled, where there is something to train.

    Returns:
      (stretch, error, traceback), pickled. The stretch is None where the worker doesn't know the networks. The error is
      (type, arguments, attributes), as no executor brings back every exception with its notes; None without one.
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
        _known.pop(old, None)  # another thread may be at it too


def _packed_error(error: Exception) -> bytes:
    """What makes an error anew, whatever its `__init__` takes; its name, text and notes if it can't be pickled."""
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
      ConnectionError: nobody answers at the address.
    """
    is_ray = address.partition("://")[0] == "ray"
    warnings.filterwarnings("ignore", "Sending large graph")  # by Dask, of states and data
    try:
        if is_ray:
            engine: Any = RayExecutor(address)
        else:
            from distributed import Client

            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its errors are raised in one line
            engine = Client(scheduler_file=address) if os.path.exists(address) else Client(address)
    except ImportError as error:
        extra = "ray" if is_ray else "hw1jax[dask]"
        raise ValueError(f"executor={address} needs what is not installed: pip install '{extra}'") from error
    except (OSError, ValueError) as error:
        raise ConnectionError(f"executor={address}: nobody answers there ({error})") from error
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
