"""All tests: eight virtual CPU devices, rank promotion is an error, no process outlives the test that started it."""

import jax
import processes
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    processes.kill_started()
