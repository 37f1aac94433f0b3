"""Cross-validated training of many small networks at once: all folds of all trials in one compiled program.

Its names are imported when they are first used, so that Ctrl-C is heard from the first lines of a program on
(`hw1jax.signals`), and that who cross-validates needs no library of the search: JAX, Optax and NumPy are enough.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hw1jax import data as data
    from hw1jax import models as models
    from hw1jax import report as report
    from hw1jax.cli import main as main
    from hw1jax.cross_validation import CrossValidation as CrossValidation
    from hw1jax.cross_validation import cross_validate as cross_validate
    from hw1jax.data import Dataset as Dataset
    from hw1jax.folds import Fold as Fold
    from hw1jax.folds import k_fold as k_fold
    from hw1jax.folds import stratified_k_fold as stratified_k_fold
    from hw1jax.losses import accuracy as accuracy
    from hw1jax.losses import cross_entropy as cross_entropy
    from hw1jax.losses import squared_error as squared_error
    from hw1jax.optimizers import adam_l2 as adam_l2
    from hw1jax.optimizers import chosen_l2 as chosen_l2
    from hw1jax.optimizers import rmsprop_l2 as rmsprop_l2
    from hw1jax.optimizers import sgd_l2 as sgd_l2
    from hw1jax.report import write_comparison as write_comparison
    from hw1jax.report import write_report as write_report
    from hw1jax.results import Results as Results
    from hw1jax.results import load_results as load_results
    from hw1jax.run import run_study as run_study
    from hw1jax.space import Choice as Choice
    from hw1jax.space import Float as Float
    from hw1jax.space import Int as Int
    from hw1jax.study import Halving as Halving
    from hw1jax.study import Reference as Reference
    from hw1jax.study import Study as Study
    from hw1jax.trained import load_model as load_model
    from hw1jax.training import Task as Task

_ROOMS = {
    "cli": ("main",),
    "cross_validation": ("CrossValidation", "cross_validate"),
    "data": ("Dataset",),
    "folds": ("Fold", "k_fold", "stratified_k_fold"),
    "losses": ("accuracy", "cross_entropy", "squared_error"),
    "optimizers": ("adam_l2", "chosen_l2", "rmsprop_l2", "sgd_l2"),
    "report": ("write_comparison", "write_report"),
    "results": ("Results", "load_results"),
    "run": ("run_study",),
    "space": ("Choice", "Float", "Int"),
    "study": ("Halving", "Reference", "Study"),
    "trained": ("load_model",),
    "training": ("Task",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
_DOORS = ("data", "models", "report")  # modules that are public as a whole
_NEEDED = ("jax", "numpy", "optax", "flax", "optuna", "matplotlib", "rich", "tyro")  # imported and installed as this

if not TYPE_CHECKING:  # or a checker would let any name pass

    def __getattr__(name: str) -> Any:
        if name not in _ROOM_OF and name not in _DOORS:
            raise AttributeError(f"module 'hw1jax' has no attribute {name!r}")
        try:
            room = import_module(f"hw1jax.{_ROOM_OF.get(name, name)}")
            value = room if name in _DOORS else getattr(room, name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in _NEEDED:
                raise
            raise ModuleNotFoundError(
                f"hw1jax.{name} needs {missing}, which is not installed: pip install {missing}", name=error.name
            ) from None
        globals()[name] = value  # found at once the next time
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF, *_DOORS})
