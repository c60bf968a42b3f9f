"""The report: evaluated runs as one HTML page that needs nothing else."""

from pluralign.reporting.page import write_report

__all__ = ["write_report"]
