"""Entropy beside that of the initial gates."""

from __future__ import annotations

import numpy as np

from kdx_analysis import plots
from kdx_analysis.runs import RunSet
from tests.plots.conftest import EPOCHS


def test_entropy_stands_beside_the_initial_gates(study: RunSet) -> None:
    runs = study.filter(objective=["hard", "kd"], seed=[0, 1])
    data = plots.entropy.data(runs)
    assert data.groupby(["objective", "seed", "level", "attention"]).size().eq(len(EPOCHS)).all()
    _, axes = plots.entropy.draw(data)
    lines = [line.get_ydata() for line in axes[0, 0].lines]
    drawn = data.query(
        "attention == 'effective' and level == 4 and objective == 'kd' and seed == 1"
    )
    assert any(np.array_equal(line, drawn["value"]) for line in lines)
    assert sum(np.array_equal(line, drawn["initial"]) for line in lines) == 4
    assert axes[0, 0].get_yscale() == "log"
    _, axes = plots.entropy.draw(data.assign(value=0.5))
    assert axes[0, 0].get_yscale() == "linear"
