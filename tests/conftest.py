"""Settings of all tests: two virtual CPU devices, rank promotion is an error, no process outlives its test.

Compiled programs are kept in pytest's cache folder, so a second session compiles hardly anything.
"""

import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ |= {  # processes of tests inherit it, and JAX reads it as it is imported
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

import jax
import processes
import pytest

from hw1jax.core import population

MANY_MEMORY_MAPS = 20_000  # Linux gives a process 65,530, and each compiled program takes a few
CACHE = "JAX_COMPILATION_CACHE_DIR"  # workers and processes of tests inherit it
LARGEST_CACHE = 1 << 30  # bytes

jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", 2)))  # more: test_devices.py
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    if CACHE not in os.environ:  # a worker's environment has it
        kept = config.cache.mkdir("compiled") if hasattr(config, "cache") else Path(tempfile.mkdtemp())
        if not hasattr(config, "cache"):  # -p no:cacheprovider
            config.add_cleanup(lambda: shutil.rmtree(kept, ignore_errors=True))
        if sum(file.stat().st_size for file in kept.iterdir()) > LARGEST_CACHE:
            shutil.rmtree(kept)
        os.environ[CACHE] = str(kept)
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])


def forget_programs():
    """The next call of any function traces and compiles it again, or reads it from the cache on the disk."""
    jax.clear_caches()
    for made in vars(population).values():
        if hasattr(made, "cache_clear"):
            made.cache_clear()
    gc.collect()


@pytest.fixture
def no_programs():
    """For tests that count what is compiled: nothing is compiled yet, whatever ran before."""
    forget_programs()


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MANY_MEMORY_MAPS:
        forget_programs()


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    processes.kill_started()
