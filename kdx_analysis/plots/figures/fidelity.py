"""Whose is what students share with their teacher: task, kind and own along the ladder."""

from __future__ import annotations

import pandas as pd

from kdx_analysis.drawing.style import Width
from kdx_analysis.plots.figure import Drawn, figure
from kdx_analysis.probes.fidelity.drawing import along_ladder
from kdx_analysis.runs import RunSet


def _table(runs: RunSet) -> pd.DataFrame:
    """One row a likeness, objective and seed.

    Columns metric, objective, seed, task, kind, own and likeness, their sum; own's seed_low,
    seed_high, teacher_low, teacher_high, decided and siblings; ceiling, control, and teachers
    that have students of their own.

    Of undivided students, or of explainers where there is none; where several teachers have
    students of their own, a seed's value is the mean over them. ``control`` marks the objectives
    that see no teacher.
    """
    return runs.fidelity().drawn()


@figure(
    title="Fidelity: what students share with their teacher, and whose it is",
    caption="Above: likeness of students to their own teacher on test images, in four ways, taken "
    "apart into task (that of students on hard labels), kind (how much the objective brings them "
    "nearer to the teacher's siblings, which they never saw) and own (from this teacher alone); a "
    "hollow bar is a part below 0, which takes away. Below: own alone, with its 95 % intervals "
    "over seeds (thick) and over teachers of the recipe (thin), the own part of the teacher itself "
    "as the ceiling, and the band of the negative controls, which see no teacher. Own is called "
    "decided where both intervals leave out 0 and it lies above the band.",
    table=_table,
)
def fidelity(data: pd.DataFrame, width: Width = "page") -> Drawn:
    return along_ladder(data, width)
