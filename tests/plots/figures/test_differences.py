"""Differences are paired by seed."""

from __future__ import annotations

import pytest
from matplotlib.collections import LineCollection

from kdx_analysis import plots
from kdx_analysis.io import read_parquet
from kdx_analysis.runs import RunSet


def test_differences_are_paired_by_seed(study: RunSet) -> None:
    data = plots.differences.data(study)
    assert list(dict.fromkeys(data["b"])) == [
        "kd_shuffled",
        "kd_flat",
        "hard_T",
        "label_smoothing",
        "hard",
    ]
    row = data.query("metric == 'accuracy' and b == 'hard' and seed == 2")["difference"].item()

    def accuracy(objective: str) -> float:
        run = study.filter(role="explainer", objective=objective, seed=2).runs[0]
        metrics = read_parquet(run.path / "records" / "metrics.parquet")
        return metrics.query("split == 'test' and metric == 'accuracy'")["value"].item()

    assert row == pytest.approx(accuracy("kd") - accuracy("hard"))
    noted = data.drop_duplicates("b").set_index("b")["includes"]
    assert set(noted.index[noted != ""]) == {"label_smoothing", "hard"}


def test_differences_have_no_interval_with_one_seed(small: RunSet) -> None:
    _, axes = plots.differences(small)
    assert not any(
        c.get_segments() for ax in axes for c in ax.collections if isinstance(c, LineCollection)
    )
    assert all("n = 1" in [t.get_text() for t in ax.texts] for ax in axes)
