"""Expert use: ranks are not numbers."""

from __future__ import annotations

import pytest

from kdx_analysis import plots
from kdx_analysis.runs import RunSet
from tests.plots.conftest import EPOCHS
from tests.plots.figures.conftest import record


def test_use_is_the_mean_over_subtasks_from_the_most_used_down(study: RunSet) -> None:
    data = plots.expert_use.data(study).query("objective == 'kd' and seed == 1 and level == 3")
    disk = record(study, "pathways", "kd", 1).query(f"epoch == {EPOCHS[-1]} and level == 3")
    use = disk.groupby("expert")["effective"].mean().sort_values(ascending=False)
    assert data["rank"].tolist() == [1, 2, 3, 4]
    assert data["value"].tolist() == pytest.approx(use.tolist())
    assert data["expert"].tolist() == use.index.tolist()
    assert data["whole"].unique() == pytest.approx(1 / (use**2).sum())
    summary = record(study, "gate_summary", "kd", 1).query(
        f"epoch == {EPOCHS[-1]} and level == 3 and metric == 'use_cv2' and attention == 'effective'"
    )
    assert data["whole_null"].unique() == pytest.approx(4 / (1 + summary["initial"].item()))
    assert (data["null"] == 0.25).all()
    assert sorted(plots.expert_use.data(study)["level"].unique()) == [
        2,
        3,
    ]  # the trunk has no choice
