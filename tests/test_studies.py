"""The three studies as data."""

import jax
import jax.numpy as jnp
import pytest

from hw1jax import studies
from hw1jax.space import Draw


@pytest.mark.parametrize("study", studies.STUDIES, ids=lambda study: study.name)
def test_a_task_made_in_one_precision_computes_in_the_other(study):
    """Tasks are cached: one that held an array would carry the precision of its first use into the next."""
    studies.make_task.cache_clear()
    draw = Draw((3, 4) if study is studies.FASHION_CNN else (), (5, 4, 3), 0.01, 0.001, "adam")
    tasks = []

    def precision():
        task = studies.make_task(study, draw.channels, draw.hidden_units)
        tasks.append(task)
        hyperparameters = jax.tree.map(lambda a: a[0], studies.as_arrays([draw]))
        params = jax.eval_shape(task.init, jax.random.key(0), hyperparameters)
        x = jnp.zeros((2, 28, 28), jnp.uint8) if study.classes else jnp.zeros((2, 1))
        outputs = jax.eval_shape(lambda params: task.apply(params, task.prepare(x), hyperparameters), params)
        return {leaf.dtype.name for leaf in jax.tree.leaves([params, outputs])}

    with jax.enable_x64(True):
        assert precision() == {"float64"}
    assert precision() == {"float32"}
    with jax.enable_x64(True):
        assert precision() == {"float64"}
    assert tasks[0] is tasks[1] is tasks[2]
