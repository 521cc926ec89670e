"""Probes: a model and data in, tidy tables out.

``gates`` and ``conflict`` are pure functions on tensors, ``gradients`` makes the Gram matrices that conflict is
read from, ``ExplainerProbe`` records all of it through a training; ``vam`` is the same for VAM's gates. ``affinity``,
``outputs`` and ``agreement`` ask what a step for one subtask does to another, what subtasks claim, and what routing
agrees with; ``gates_of`` and ``conflict_of`` hand back one model's records. ``planted`` makes explainers whose
conflicts are known, ``validate`` holds the probes against them.
"""

from kdx_analysis.probes import affinity, agreement, conflict, gates, gradients, outputs, planted, vam
from kdx_analysis.probes.affinity import subtask_affinity
from kdx_analysis.probes.agreement import Mantel, mantel
from kdx_analysis.probes.gradients import Cost, Grams, module_groups, probing_cost, subtask_gradients, subtask_grams
from kdx_analysis.probes.recorder import ExplainerProbe
from kdx_analysis.probes.records import ConflictRecord, GateRecord, conflict_of, gates_of
from kdx_analysis.probes.validation import Validation, validate
from kdx_analysis.probes.vam import VAMProbe

__all__ = [
    "ConflictRecord",
    "Cost",
    "ExplainerProbe",
    "GateRecord",
    "Grams",
    "Mantel",
    "VAMProbe",
    "Validation",
    "affinity",
    "agreement",
    "conflict",
    "conflict_of",
    "gates",
    "gates_of",
    "gradients",
    "mantel",
    "module_groups",
    "outputs",
    "planted",
    "probing_cost",
    "subtask_affinity",
    "subtask_gradients",
    "subtask_grams",
    "validate",
    "vam",
]
