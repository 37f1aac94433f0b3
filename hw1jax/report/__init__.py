"""The page that a run leaves behind, from what is on disk alone, and its figures one by one."""

from hw1jax.report.figures import (
    confusion_matrix,
    fitted_curve,
    importances,
    learning_curves,
    parallel_coordinates,
    trial_scores,
)
from hw1jax.report.page import write_comparison, write_overview, write_report

__all__ = [
    "confusion_matrix",
    "fitted_curve",
    "importances",
    "learning_curves",
    "parallel_coordinates",
    "trial_scores",
    "write_comparison",
    "write_overview",
    "write_report",
]
