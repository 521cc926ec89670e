"""Studies: the pipeline, its steps, and what looks at a study from outside."""

from kdx_analysis.study.study import Study, ready_studies

__all__ = ["Study", "ready_studies"]
