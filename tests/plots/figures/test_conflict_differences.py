"""Differences of cosines are paired by seed and epoch."""

from __future__ import annotations

import pytest

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.runs import RunSet
from tests.plots.conftest import Make


def test_differences_of_conflict_are_paired_by_seed_and_epoch(study: RunSet) -> None:
    runs = study.filter(objective=["hard", "kd"])
    data = plots.conflict_differences.data(runs)
    row = data.query("a == 'cat' and b == 'ship'").iloc[0]
    means = plots.conflict.data(runs).query("a == 'cat' and b == 'ship'").set_index("objective")
    assert (row["kd"], row["other"], row["seeds"], row["epochs"]) == ("kd", "hard", 3, 2)
    assert row["difference"] == pytest.approx(
        means.loc["kd", "cosine"] - means.loc["hard", "cosine"]
    )
    assert row["null"] == pytest.approx(means.loc["kd", "null"] - means.loc["hard", "null"])
    fewer = RunSet(
        tuple(r for r in runs if (r.role, r.objective, r.seed) != ("explainer", "hard", 1))
    )
    assert plots.conflict_differences.data(fewer)["seeds"].unique().tolist() == [2]
    _, axes = plots.conflict_differences.draw(data)
    low, high = axes[0].collections[0].get_clim()
    assert -low == high == pytest.approx(data[["difference", "null"]].abs().to_numpy().max())
    matrix = axes[0].collections[0].get_array()
    assert matrix[
        max(row["a_row"], row["b_row"]), min(row["a_row"], row["b_row"])
    ] == pytest.approx(row["difference"])
    with pytest.raises(KdxError, match="need kd and another"):
        plots.conflict_differences(runs.filter(objective="hard"))


def test_differences_of_conflict_need_conflict_on_both_sides(make: Make) -> None:
    runs = make(("hard", "kd_flat", "kd"), (0,))
    hard, _, kd = (
        run.path / "records" / "conflict.parquet" for run in runs.filter(role="explainer")
    )
    hard.unlink()
    probed = RunSet.load(hard.parents[2])
    assert plots.conflict_differences.data(probed)["other"].unique().tolist() == ["kd_flat"]
    kd.unlink()
    with pytest.raises(KdxError, match="conflict was not probed under 'kd' and another objective"):
        plots.conflict_differences(RunSet.load(hard.parents[2]))
