"""Probes: a model and data in, tidy tables out.

``gates`` and ``conflict`` are pure functions on tensors, ``gradients`` makes the Gram matrices that conflict is
read from, ``ExplainerProbe`` records all of it through a training. ``affinity``, ``outputs`` and ``agreement`` ask
what a step for one subtask does to another, what subtasks claim, and what routing agrees with; ``gates_of`` and
``conflict_of`` hand back one model's records.
"""

from kdx_analysis.probes import affinity, agreement, conflict, gates, gradients, outputs
from kdx_analysis.probes.affinity import subtask_affinity
from kdx_analysis.probes.agreement import Mantel, mantel
from kdx_analysis.probes.gradients import Cost, Grams, module_groups, probing_cost, subtask_gradients, subtask_grams
from kdx_analysis.probes.recorder import ExplainerProbe
from kdx_analysis.probes.records import ConflictRecord, GateRecord, conflict_of, gates_of

__all__ = [
    "ConflictRecord",
    "Cost",
    "ExplainerProbe",
    "GateRecord",
    "Grams",
    "Mantel",
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
    "probing_cost",
    "subtask_affinity",
    "subtask_gradients",
    "subtask_grams",
]
