"""All tests: eight virtual CPU devices, rank promotion is an error, no process outlives the test that started it."""

import atexit
import gc
import os
import shutil
import tempfile

# One compilation cache for all tests, their processes and pytest's workers (which inherit it), gone afterwards.
# Before JAX, which reads it as it is imported.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="hw1jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import processes
import pytest

from hw1jax import population

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """After each file: a process that keeps thousands of programs slows down, and Linux gives it 65,530 memory maps."""
    yield
    jax.clear_caches()
    for made in vars(population).values():
        if hasattr(made, "cache_clear"):
            made.cache_clear()
    gc.collect()


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    processes.kill_started()
