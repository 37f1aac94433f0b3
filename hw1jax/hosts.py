"""Several processes that run one program over all their devices: process 0 leads, the others do as it says.

Each process calls `jax.distributed.initialize` first (the experiments' `--distributed`). Process 0 asks and tells the
search, writes the files and broadcasts each batch of trials; all of them run the program on the devices that they have.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def are_several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def tell(message: dict[str, Any]) -> None:
    """Process 0: what the others are to do, as JSON holds it. Does nothing where there are no others."""
    if are_several():
        text = np.frombuffer(json.dumps(message).encode(), np.uint8)
        multihost_utils.broadcast_one_to_all(np.int32(len(text)))
        multihost_utils.broadcast_one_to_all(text)


def hear() -> dict[str, Any]:
    """The other processes: what process 0 tells; empty when there is nothing more to do."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(0)))
    text = multihost_utils.broadcast_one_to_all(np.zeros(length, np.uint8))
    return json.loads(np.asarray(text).astype(np.uint8).tobytes())


class LostError(OSError):
    """Training with other processes has failed, so that nobody knows where they are."""


@contextmanager
def leading() -> Iterator[None]:
    """Process 0: tells the others at the end, however it comes, that there is nothing more to do."""
    try:
        yield
    except LostError:
        raise  # they would not hear it; JAX ends them when this process has ended
    except BaseException:
        tell({})
        raise
    tell({})
