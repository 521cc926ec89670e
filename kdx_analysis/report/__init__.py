"""The report: one renderer, as a self-contained page and as a fragment for notebooks."""

from kdx_analysis.report.answers import Answer, answer
from kdx_analysis.report.page import Report

__all__ = ["Answer", "Report", "answer"]
