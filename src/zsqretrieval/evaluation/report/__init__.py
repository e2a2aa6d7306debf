"""Reports: tables, figures and sentences from one :class:`~zsqretrieval.evaluation.results.Results`."""

from zsqretrieval.evaluation.report.conclusions import answer, summary
from zsqretrieval.evaluation.report.render import write_report, write_verdict

__all__ = ["answer", "summary", "write_report", "write_verdict"]
