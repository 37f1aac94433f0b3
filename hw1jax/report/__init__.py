"""The page that a run leaves behind: its sections, figures and tables, from what is on disk alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hw1jax.report.page import write_comparison as write_comparison
    from hw1jax.report.page import write_overview as write_overview
    from hw1jax.report.page import write_report as write_report

__all__ = ["write_comparison", "write_overview", "write_report"]


def __getattr__(name: str) -> Any:
    """They are imported when they are first used: the page draws with a library that takes its time."""
    if name not in __all__:
        raise AttributeError(f"module 'hw1jax.report' has no attribute {name!r}")
    return getattr(import_module("hw1jax.report.page"), name)
