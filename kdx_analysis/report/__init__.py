"""The report: one renderer, as a self-contained page and as a fragment for notebooks."""

from __future__ import annotations

from pathlib import Path

from kdx_analysis.report.answer import Answer, answer
from kdx_analysis.report.page import Report
from kdx_analysis.runs import RunSet

__all__ = ["Answer", "Report", "answer", "write_report"]


def write_report(runs: RunSet, out: Path) -> Path:
    """Write the report on ``runs`` below ``out`` and return the path of its page, ``report.html``.

    Raises KdxError if there is no explainer among the runs, or if two stand for one objective and seed.
    """
    return Report(runs).save_html(out)
