"""kdx_analysis explains knowledge distillation: what did the student get from the teacher?

    import kdx_analysis as kdx

    study = kdx.Study(data="digits", teacher="digits_teacher", student="digits_student")
    runs = study.run("out/digits")
    kdx.plots.ladder(runs)

Axes mean the same everywhere: B samples, K classes and their binary subtasks, L levels, N experts
of a level, C×H×W channels, height and width. So do arguments of these names:

- ``model``: a module; ``images``: normalised, B×C×H×W; ``labels``: their classes, int64, B, in [0,
  K).
- ``margins``: m_k, what an explainer or a binary student gives, B×K; ``teacher_logits``: v_k, B×K,
  or None.
- ``scores``, ``teacher_scores``: what is compared of a network and its teacher, N×K: logits,
  log-probabilities, or margins of binary subtasks.
- ``subtask``: the number of a class; ``classes``: their K names, by default their numbers;
  ``num_classes``: K.
- ``data``: a :class:`Dataset`; ``data_dir``: where named data sets lie, by default $KDX_DATA, else
  ./data.
- ``runs``: a :class:`RunSet`; ``run``: a :class:`Run`; ``record``: the result of a probe;
  ``config``: a section of :mod:`kdx_analysis.config`, or the study's own.
- ``image_shape``: (C, H, W); ``groups``: paths of a model's modules by stage, as of
  :func:`kdx_analysis.probes.module_groups`; ``residuals``: r_bk = ∂L_bk/∂m_bk of one or R losses,
  B×K or R×B×K.
- ``generator``: draws what is random; ``seed``: what one is seeded with. Nothing global is.
- ``path``, ``folder``: a file or directory; ``ax``: Axes to draw into, by default those of a new
  figure.

Mistakes raise :class:`KdxError`, before any long work. Public names are imported when they are
first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdx_analysis import plots, probes
    from kdx_analysis.config import StudyConfig
    from kdx_analysis.data import Dataset, load_dataset
    from kdx_analysis.errors import KdxError
    from kdx_analysis.imports import import_runs
    from kdx_analysis.imports.weights import import_weights
    from kdx_analysis.models import HME, Tree, vam
    from kdx_analysis.models.learn_to_branch import learn_to_branch
    from kdx_analysis.probes import probe
    from kdx_analysis.report import Report
    from kdx_analysis.runs import Run, RunSet
    from kdx_analysis.runs.ways_in import fidelity
    from kdx_analysis.study.study import Study, ready_studies
    from kdx_analysis.training.checkpoints import load_learn_to_branch

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "data",
    "HME": "models",
    "KdxError": "errors",
    "Report": "report",
    "Run": "runs",
    "RunSet": "runs",
    "Study": "study",
    "StudyConfig": "config",
    "Tree": "models",
    "fidelity": "runs.ways_in",
    "import_runs": "imports",
    "import_weights": "imports.weights",
    "learn_to_branch": "models.learn_to_branch",
    "load_dataset": "data",
    "load_learn_to_branch": "training.checkpoints",
    "plots": "",
    "probe": "probes",
    "probes": "",
    "ready_studies": "study",
    "vam": "models",
}

__all__ = [
    "HME",
    "Dataset",
    "KdxError",
    "Report",
    "Run",
    "RunSet",
    "Study",
    "StudyConfig",
    "Tree",
    "fidelity",
    "import_runs",
    "import_weights",
    "learn_to_branch",
    "load_dataset",
    "load_learn_to_branch",
    "plots",
    "probe",
    "probes",
    "ready_studies",
    "vam",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _HOMES[name]:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
