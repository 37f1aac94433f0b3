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


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One compilation cache for all the processes that a file's tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield
