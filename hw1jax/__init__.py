"""Cross-validated training of many small networks at once: all folds of all trials in one compiled program.

`import hw1jax` imports JAX, Optax and NumPy alone. Flax, Optuna, rich and tyro are imported on first use, matplotlib
before the first figure.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hw1jax import data as data
from hw1jax.core.cross_validation import CrossValidation as CrossValidation
from hw1jax.core.cross_validation import cross_validate as cross_validate
from hw1jax.core.folds import Fold as Fold
from hw1jax.core.folds import k_fold as k_fold
from hw1jax.core.folds import stratified_k_fold as stratified_k_fold
from hw1jax.core.losses import accuracy as accuracy
from hw1jax.core.losses import cross_entropy as cross_entropy
from hw1jax.core.losses import squared_error as squared_error
from hw1jax.core.metrics import average_precision as average_precision
from hw1jax.core.metrics import balanced_accuracy as balanced_accuracy
from hw1jax.core.metrics import f1 as f1
from hw1jax.core.metrics import f1_macro as f1_macro
from hw1jax.core.metrics import f1_micro as f1_micro
from hw1jax.core.metrics import f1_weighted as f1_weighted
from hw1jax.core.metrics import r2 as r2
from hw1jax.core.metrics import rmse as rmse
from hw1jax.core.metrics import roc_auc as roc_auc
from hw1jax.core.metrics import spearman as spearman
from hw1jax.core.metrics import whole as whole
from hw1jax.core.optimizers import adam_l2 as adam_l2
from hw1jax.core.optimizers import chosen_l2 as chosen_l2
from hw1jax.core.optimizers import rmsprop_l2 as rmsprop_l2
from hw1jax.core.optimizers import sgd_l2 as sgd_l2
from hw1jax.core.preprocessing import impute_mean as impute_mean
from hw1jax.core.preprocessing import quantiles as quantiles
from hw1jax.core.preprocessing import standardize as standardize
from hw1jax.core.tasks import Fitted as Fitted
from hw1jax.core.tasks import Task as Task
from hw1jax.data import Dataset as Dataset
from hw1jax.search.observer import Observer as Observer
from hw1jax.search.space import Choice as Choice
from hw1jax.search.space import Float as Float
from hw1jax.search.space import Int as Int
from hw1jax.search.study import Halving as Halving
from hw1jax.search.study import Reference as Reference
from hw1jax.search.study import Study as Study

if TYPE_CHECKING:
    from hw1jax import models as models
    from hw1jax import report as report
    from hw1jax.cli import main as main
    from hw1jax.report import write_comparison as write_comparison
    from hw1jax.report import write_report as write_report
    from hw1jax.results.results import Results as Results
    from hw1jax.results.results import load_results as load_results
    from hw1jax.results.trained_model import load_model as load_model
    from hw1jax.run import run_study as run_study
    from hw1jax.tabular import mlp as mlp

__version__ = "0.1.0"

_LATER = {  # {name: module that is imported on first use; "" for a module}
    "models": "",
    "report": "",
    "main": "cli",
    "write_comparison": "report",
    "write_report": "report",
    "Results": "results.results",
    "load_results": "results.results",
    "run_study": "run",
    "load_model": "results.trained_model",
    "mlp": "tabular",
}

if not TYPE_CHECKING:  # or a checker would let any name pass

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module 'hw1jax' has no attribute {name!r}")
        module = import_module(f"hw1jax.{_LATER[name] or name}")
        return getattr(module, name) if _LATER[name] else module


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
