"""The report: one renderer, as a self-contained page and as a fragment for notebooks.

``findings`` decides what differs, ``answers`` says it; ``methods`` defines every metric and
objective as it is declared.
"""

from kdx_analysis.report.answers import Answer, answer
from kdx_analysis.report.page import Report

__all__ = ["Answer", "Report", "answer"]
