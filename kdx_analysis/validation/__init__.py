"""``kdx validate``: the toolkit held against what is known, part by part."""

from kdx_analysis.validation.outcome import Outcome, Row

__all__ = ["Outcome", "Row"]
