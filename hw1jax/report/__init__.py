"""The page that a run leaves behind: its sections, figures and tables, from what is on disk alone."""

from hw1jax.report.page import write_comparison as write_comparison
from hw1jax.report.page import write_overview as write_overview
from hw1jax.report.page import write_report as write_report
