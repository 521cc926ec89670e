"""Probes: a model and data in, tidy tables out.

``gates`` and ``conflict`` are pure functions on tensors, ``gradients`` makes the Gram matrices that conflict is
read from, ``ExplainerProbe`` records all of it through a training; ``vam`` is the same for VAM's gates. ``planted``
makes explainers whose conflicts are known, ``validate`` holds the probes against them.
"""

from kdx_analysis.probes import conflict, gates, gradients, planted, vam
from kdx_analysis.probes.gradients import Grams, subtask_grams
from kdx_analysis.probes.recorder import ExplainerProbe
from kdx_analysis.probes.validation import Validation, validate
from kdx_analysis.probes.vam import VAMProbe

__all__ = [
    "ExplainerProbe",
    "Grams",
    "VAMProbe",
    "Validation",
    "conflict",
    "gates",
    "gradients",
    "planted",
    "subtask_grams",
    "validate",
    "vam",
]
