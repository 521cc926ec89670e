"""Probes: a model and data in, tidy tables out, each beside its null.

In training, :class:`TrainingProbe` runs every probe of a role (``PROBES``): ``gates``,
``conflict``, ``agreement``, ``claims``, ``affinity``, ``vam`` and those of the user's own, which
``contract`` says how to declare. Of any model at hand, ``gates_of``, ``conflict_of`` and
``affinity_of`` hand back the same as records; ``ConflictProbe`` takes its images batch by batch,
``MetricRecord`` sets several models side by side, ``probe`` records what any code makes a model
compute.

Each room has its pure functions under its name. ``faithfulness`` asks whether attention says what
an ablation confirms, what experts look at, and whether that is the model's doing; ``planted`` makes
explainers whose conflicts are known, and ``validate`` holds the probes against them. ``fidelity``
asks of outputs alone, of any network, what a student got from its teacher.
"""

from kdx_analysis.probes import (
    affinity,
    agreement,
    claims,
    conflict,
    faithfulness,
    fidelity,
    gates,
    planted,
    recording,
    vam,
)
from kdx_analysis.probes.across_models import MetricRecord
from kdx_analysis.probes.affinity import affinity_of, subtask_affinity
from kdx_analysis.probes.agreement import Mantel, mantel
from kdx_analysis.probes.conflict.grams import (
    Grams,
    probing_cost,
    subtask_gradients,
    subtask_grams,
)
from kdx_analysis.probes.conflict.parts import module_groups
from kdx_analysis.probes.conflict.record import ConflictProbe, ConflictRecord, conflict_of
from kdx_analysis.probes.contract import (
    PROBES,
    Cost,
    Moment,
    Probe,
    ProbeSet,
    Setting,
    probe_of,
)
from kdx_analysis.probes.faithfulness.ablation import Faithfulness, ablate
from kdx_analysis.probes.faithfulness.attribution import (
    Attribution,
    Conductance,
    conductance,
    grad_cam,
    integrated_gradients,
)
from kdx_analysis.probes.faithfulness.explanation import Explanation, explain
from kdx_analysis.probes.faithfulness.sanity import Randomisation, randomisation, randomised
from kdx_analysis.probes.gates.record import GateRecord, gates_of
from kdx_analysis.probes.planted.validation import Validation, validate
from kdx_analysis.probes.recording import Recording, probe
from kdx_analysis.probes.training_probe import TrainingProbe

__all__ = [
    "PROBES",
    "Attribution",
    "Conductance",
    "ConflictProbe",
    "ConflictRecord",
    "Cost",
    "Explanation",
    "Faithfulness",
    "GateRecord",
    "Grams",
    "Mantel",
    "MetricRecord",
    "Moment",
    "Probe",
    "ProbeSet",
    "Randomisation",
    "Recording",
    "Setting",
    "TrainingProbe",
    "Validation",
    "ablate",
    "affinity",
    "affinity_of",
    "agreement",
    "claims",
    "conductance",
    "conflict",
    "conflict_of",
    "explain",
    "faithfulness",
    "fidelity",
    "gates",
    "gates_of",
    "grad_cam",
    "integrated_gradients",
    "mantel",
    "module_groups",
    "planted",
    "probe",
    "probe_of",
    "probing_cost",
    "randomisation",
    "randomised",
    "recording",
    "subtask_affinity",
    "subtask_gradients",
    "subtask_grams",
    "validate",
    "vam",
]
