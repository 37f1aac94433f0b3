"""Makes a sampler of Optuna's repeatable, and names it; without Optuna, which is imported late.

Samplers keep a generator, in Optuna's `LazyRandomState`, and it has no state until the first draw unless a seed was
given. `QMCSampler` keeps a number instead, and draws it itself if none was given.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hw1jax.core import checks

PARTS = ("sample_relative", "sample_independent", "infer_relative_search_space")  # of Optuna's BaseSampler
SIMPLE = (bool, int, float, str, type(None))
LARGEST_SEED = 2**32 - 1  # of NumPy's RandomState; a longer one is none that a user gave


def seeded(sampler: Any, seed: int) -> tuple[str, Callable[[], Any]]:
    """(name, maker) of a sampler that draws the same in each process; generators without a seed get one from `seed`.

    `sampler` is an Optuna sampler, of which copies are made, or a function seed -> sampler. The name has the arguments
    that differ from their defaults, and a digest of all attributes, generators included:
    "TPESampler(multivariate=True) 5f0a9c31".

    Raises:
      TypeError: `sampler` is neither, or can't be copied.
    """
    made, content = _made(sampler, seed)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{_call(made)} {digest[:8]}", lambda: _made(sampler, seed)[0]


def _made(sampler: Any, seed: int) -> tuple[Any, Any]:
    """A new sampler, and what `_content` tells of it."""
    if all(hasattr(sampler, part) for part in PARTS) and not isinstance(sampler, type):
        try:
            new = copy.deepcopy(sampler)
        except Exception as error:
            raise TypeError(f"sampler= can't be copied ({error}): give a function seed -> sampler") from error
    else:
        new = sampler
        if callable(sampler) and not isinstance(sampler, type):
            with checks.in_function("sampler", sampler, seed=seed):
                new = sampler(seed)
    if isinstance(new, type) or not all(hasattr(new, part) for part in PARTS):
        what = f"the class {new.__name__}" if isinstance(new, type) else type(new).__name__
        raise TypeError(
            f"sampler= must be random, tpe, a sampler of Optuna's or a function seed -> sampler, got {what}"
        )
    return new, _content(new, str(seed), set())


def _call(sampler: Any) -> str:
    """The call that makes the sampler, as far as its attributes tell."""
    given = {}
    for name, parameter in inspect.signature(type(sampler).__init__).parameters.items():
        value = getattr(sampler, f"_{name}", parameter.default)
        if name != "seed" and not name.startswith("warn_") and isinstance(value, SIMPLE) and value != parameter.default:
            given[name] = value
    return f"{type(sampler).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _content(value: Any, path: str, seen: set[int]) -> Any:
    """All that an attribute's value tells, as JSON; gives each generator without a seed one that `path` determines."""
    if isinstance(value, SIMPLE):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, np.random.RandomState | np.random.Generator):
        state = value.get_state(legacy=False) if isinstance(value, np.random.RandomState) else value.bit_generator.state
        return repr({name: np.asarray(part).tolist() for name, part in state.items()})
    if isinstance(value, Mapping):
        return {str(name): _content(one, f"{path}.{name}", seen) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_content(one, f"{path}.{i}", seen) for i, one in enumerate(value)]
    if not (type(value).__module__.startswith("optuna.") or all(hasattr(value, part) for part in PARTS)):
        return getattr(value, "__qualname__", type(value).__qualname__)
    attributes = vars(value)
    if type(value).__name__ == "LazyRandomState" and attributes.get("_rng", 0) is None:
        value.rng.seed(_derived(path))
    if isinstance(number := attributes.get("_seed"), int) and number > LARGEST_SEED:
        value._seed = _derived(path)
    counted = {name: one for name, one in attributes.items() if not name.startswith("_warn_")}
    parts = {name: _content(one, f"{path}.{name}", seen) for name, one in counted.items()}
    return {"type": type(value).__qualname__, **parts}


def _derived(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4])
