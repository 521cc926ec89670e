"""What a student got from its teacher, from outputs alone: the task's, the kind's, its own.

``Outputs`` holds what one network says of images; ``Likeness`` of two is all that they share, of
which ``dark``, ``instance``, ``second_choice`` and ``hardness`` are single figures. ``Fidelity``
takes it apart for all students, ``own`` and ``kind`` beside siblings of the teacher. From files or
arrays it is made by :func:`kdx_analysis.fidelity`, of runs by ``RunSet.fidelity``.
"""

from kdx_analysis.probes.fidelity.calibration import calibration_error, ece, nll
from kdx_analysis.probes.fidelity.likeness import (
    Likeness,
    agreement_excess,
    class_part,
    copied_errors,
    dark,
    divergence,
    error_consistency,
    hardness,
    instance,
    jensen_shannon,
    second_choice,
)
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.result import Fidelity, Teaching
from kdx_analysis.probes.fidelity.whose import fieller, kind, own

__all__ = [
    "Fidelity",
    "Likeness",
    "Outputs",
    "Teaching",
    "agreement_excess",
    "calibration_error",
    "class_part",
    "copied_errors",
    "dark",
    "divergence",
    "ece",
    "error_consistency",
    "fieller",
    "hardness",
    "instance",
    "jensen_shannon",
    "kind",
    "nll",
    "own",
    "second_choice",
]
