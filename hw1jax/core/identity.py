"""A task's operations: their digest, and the hyperparameters that have no effect on them."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval
from jax.stages import Traced

from hw1jax.core import programs, tasks, training
from hw1jax.core.tasks import Hyperparameters, NumSteps, Task
from hw1jax.core.training import Batch, Data


def traced(
    task: Task, hyperparameters: Hyperparameters, data: Data, batch_size: int, num_steps: tuple[int, ...] | None = None
) -> Traced:
    """Traces a member's initialization, one step and an evaluation; nothing is compiled.

    `hyperparameters` are one trial's; of `data` shapes and dtypes count; `num_steps`: see `population.num_updates`.
    """

    def member(hyperparameters: Hyperparameters, key: jax.Array, x: Any, y: Any, weights: Any) -> Any:
        steps = None if num_steps is None else NumSteps(num_steps)
        state = training.init(task, key, hyperparameters, num_steps=steps)
        real = jnp.ones(batch_size, bool)
        statistics, own_y = None, y
        if tasks.is_fitted(task):
            statistics = tasks.fit(task, x, y, jnp.ones(batch_size) if weights is None else weights)
            y = tasks.prepared_y(task, statistics, y)
        batch = Batch(tasks.prepared(task, statistics, x), y, real, weights)
        whole = jax.tree.map(lambda a: a[None], batch)
        state, total = training.step(task, state, whole, hyperparameters, key=key, num_steps=steps)
        params = training.final_params(task, state)
        outputs = tasks.evaluated(task, params, state.model_state, x, hyperparameters, statistics)
        own = tasks.in_own_units(task, statistics, outputs)
        values = [task.loss(outputs, y), *(metric(own, own_y) for _, metric in task.metrics)]
        return state, total, values, own if task.prepare_y is not None else None

    def shapes(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype))

    return programs.trace(
        member, hyperparameters, jax.random.key(0), *jax.tree.map(shapes, (data.x, data.y, data.weights))
    )


def digest(operations: Traced) -> str:
    """Returns a sha256 that depends on the operations alone, not on the machine nor on names in the Python code.

    It is computed from the program lowered for a CPU, and the constants that JAX passes separately.
    """
    lowered = operations.lower(lowering_platforms=("cpu",))
    # Names of results and addresses of callbacks are no part of the computation.
    text = re.sub(r'jax\.result_info = "[^"]*"|backend_config = "\d+"', "", lowered.as_text())
    names: dict[str, str] = {}
    text = re.sub(r"@[\w.]+", lambda name: names.setdefault(name[0], f"@{len(names)}"), text)
    content = hashlib.sha256(text.encode())
    for constant in _constants(operations.jaxpr):
        content.update(f"{constant.dtype}{constant.shape}".encode() + constant.tobytes())
    return content.hexdigest()


def _constants(jaxpr: ClosedJaxpr) -> Sequence[np.ndarray]:
    constants = [np.asarray(constant) for constant in jaxpr.consts]
    for equation in jaxpr.jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: isinstance(p, ClosedJaxpr)):
            if isinstance(inner, ClosedJaxpr):
                constants += _constants(inner)
    return constants


def unused(operations: Traced) -> list[str]:
    """Returns the hyperparameters without effect on the operations of `traced`, as `jax.tree_util.keystr`s."""
    jaxpr = operations.jaxpr.jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    hyperparameters = operations.args_info[0][0]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(hyperparameters)]
    return [path for path, is_used in zip(paths, used, strict=False) if not is_used]
