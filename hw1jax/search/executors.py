"""A search's jobs on the workers of any `concurrent.futures.Executor`: processes, Dask, Ray.

Where a lost worker's job is done again is the executor's business, as Dask and Ray do by themselves.
"""

import hashlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
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


def on_executor(executor: Executor, networks: Networks, stop: threading.Event | None) -> Advance:
    """`advance` by the workers of an executor.

    The networks with their data travel once to each worker, which keeps them.

    Raises (when it is called):
      ValueError: a worker has other versions or another kind of device than this process.
      ConnectionError: the executor has lost its workers.
      Stopped: `stop` was set.
      Exception: whatever training raised in the worker.
    """
    here = replace(networks.study, data=networks.data)  # which the workers need not load
    packed = cloudpickle.dumps(Networks(here, networks.search, networks.data, networks.folds, networks.first_fold))
    digest, versions = hashlib.sha256(packed).hexdigest(), identity()

    def result(networks_: bytes | None, request: bytes) -> bytes | None:
        try:
            future = executor.submit(advance_remotely, versions, digest, networks_, request)
            while not wait([future], SECONDS_BETWEEN_LOOKS).done:
                if stop is not None and stop.is_set():
                    future.cancel()
                    raise Stopped
            return future.result()
        except Exception as error:
            if isinstance(error, BrokenExecutor | CancelledError | OSError) or type(error).__name__ == "KilledWorker":
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ConnectionError(
                    f"the executor has lost its workers ({reason}): the same command goes on from here"
                ) from error
            raise

    def on_worker(job: Job, state: Any, first_epoch: int, device: int, show: Show) -> Stretch:
        request = pickle.dumps((job, state, first_epoch))
        answer = result(None, request)
        while answer is None:  # the worker doesn't know the networks; the next one may not either
            answer = result(packed, request)
        stretch: Stretch = pickle.loads(answer)
        show(job, stretch.num_epochs, stretch.losses[1])
        return stretch

    return on_worker


def identity() -> dict[str, str]:
    """What must be the same in the process that runs the study and in its workers, for the same bits."""
    versions = {name: environment.version_of(name) for name in ("hw1jax", "jax", "jaxlib", "numpy")}
    return versions | {"device": jax.default_backend(), "jax_enable_x64": str(jax.config.read("jax_enable_x64"))}


_known: dict[str, Networks] = {}  # the networks that this worker has worked on last, by digest


def advance_remotely(versions: dict[str, str], digest: str, packed: bytes | None, request: bytes) -> bytes | None:
    """`advance` in a worker; None if it doesn't know the networks and they are not given.

    Args:
      versions: `identity()` of the process that runs the study.
      digest: of the networks.
      packed: the networks, pickled.
      request: (job, state, epochs done), pickled.

    Raises:
      ValueError: this worker has other versions, or another kind of device.
    """
    own = identity()
    for name, version in versions.items():
        if own[name] != version:
            raise ValueError(f"a worker has {name} {own[name]}, and the process that runs the study has {version}")
    if digest not in _known:
        if packed is None:
            return None
        _known.clear()
        _known[digest] = pickle.loads(packed)
    job, state, first_epoch = pickle.loads(request)
    megabytes = 0 if state is None else sum(leaf.nbytes for leaf in state) / 1e6
    seconds = max(jobs.SECONDS, SECONDS_PER_MB * megabytes)
    stretch = jobs.advance(_known[digest], job, state, first_epoch, seconds=seconds)
    return pickle.dumps(stretch)


# Engines


@contextmanager
def connected(address: str) -> Iterator[Executor]:
    """The executor of a Dask scheduler ("tcp://HOST:PORT", or its scheduler file) or of Ray ("ray", "ray://HOST:PORT").

    Raises:
      ValueError: the engine isn't installed.
      ConnectionError: nobody answers at the address.
    """
    try:
        if address == "ray" or address.startswith("ray://"):
            import ray  # pyright: ignore[reportMissingImports]

            ray.init(None if address == "ray" else address)
            try:
                yield RayExecutor()
            finally:
                ray.shutdown()
            return
        from distributed import Client
    except ImportError as error:
        extra = "ray" if address.startswith("ray") else "hw1jax[dask]"
        raise ValueError(f"executor={address} needs what is not installed: pip install '{extra}'") from error
    try:
        client = Client(scheduler_file=address) if os.path.exists(address) else Client(address)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"executor={address}: no Dask scheduler answers ({error})") from error
    with client:
        yield client.get_executor(pure=False)


class RayExecutor(Executor):
    """Ray's workers as a `concurrent.futures.Executor`."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        import ray  # pyright: ignore[reportMissingImports]

        return ray.remote(function).remote(*args, **kwargs).future()
