"""Probes: a model and data in, tidy tables out.

``gates`` and ``conflict`` are pure functions on tensors, ``gradients`` makes the Gram matrices that conflict is
read from, ``ExplainerProbe`` records all of it through a training. ``planted`` makes explainers whose conflicts are
known, ``validate`` holds the probes against them. ``faithfulness`` asks whether attention says what an ablation
confirms, ``attribution`` what experts look at, ``sanity`` whether that is the model's doing; ``watch`` records what any
code makes a model compute.
"""

from kdx_analysis.probes import attribution, conflict, faithfulness, gates, gradients, planted, sanity, watch
from kdx_analysis.probes.attribution import Attribution, Conductance, conductance, grad_cam, integrated_gradients
from kdx_analysis.probes.faithfulness import Explanation, Faithfulness, ablate, explain
from kdx_analysis.probes.gradients import Grams, subtask_grams
from kdx_analysis.probes.recorder import ExplainerProbe
from kdx_analysis.probes.sanity import Randomisation, randomisation, randomised
from kdx_analysis.probes.validation import Validation, validate
from kdx_analysis.probes.watch import Recording, probe

__all__ = [
    "Attribution",
    "Conductance",
    "ExplainerProbe",
    "Explanation",
    "Faithfulness",
    "Grams",
    "Randomisation",
    "Recording",
    "Validation",
    "ablate",
    "attribution",
    "conductance",
    "conflict",
    "explain",
    "faithfulness",
    "gates",
    "grad_cam",
    "gradients",
    "integrated_gradients",
    "planted",
    "probe",
    "randomisation",
    "randomised",
    "sanity",
    "subtask_grams",
    "validate",
    "watch",
]
