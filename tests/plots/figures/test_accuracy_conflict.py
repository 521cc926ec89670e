"""Accuracy against conflict, run by run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdx_analysis import plots
from kdx_analysis.runs import RunSet


def test_accuracy_against_conflict_is_ranked_over_all_runs(study: RunSet) -> None:
    data = plots.accuracy_conflict.data(study)
    severity = data[data["metric"] == "severity"]
    assert len(severity) == severity["runs"].iloc[0] == 18
    assert severity["rho"].iloc[0] == pytest.approx(
        stats.spearmanr(severity["value"], severity["accuracy"]).statistic
    )
    assert -0.7 < severity["null_low"].iloc[0] < -0.3 < 0.3 < severity["null_high"].iloc[0] < 0.7
    _, axes = plots.accuracy_conflict.draw(data)
    drawn = np.concatenate([line.get_xydata() for line in axes[1].lines])
    expected = severity[["value", "accuracy"]].to_numpy()
    np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])
    few = plots.accuracy_conflict.data(study.filter(objective="kd"))
    assert few["rho"].isna().all()
    assert "not below four runs" in plots.accuracy_conflict.draw(few)[1][0].get_xlabel()
