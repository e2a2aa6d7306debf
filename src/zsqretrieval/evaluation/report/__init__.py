"""Reports: tables, figures and sentences from one :class:`~zsqretrieval.evaluation.results.Results`."""

from zsqretrieval.evaluation.report.conclusions import answer, summary
from zsqretrieval.evaluation.report.render import (
    read_alternatives,
    read_published,
    write_report,
    write_verdict,
)

__all__ = ["answer", "read_alternatives", "read_published", "summary", "write_report", "write_verdict"]
