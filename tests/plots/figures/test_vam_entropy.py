"""The entropy of VAM's attention."""

from __future__ import annotations

import pytest

from kdx_analysis import plots
from kdx_analysis.runs import RunSet


def test_entropy_is_the_mean_over_rows_of_every_run(attended: RunSet) -> None:
    data = plots.vam_entropy.data(attended).set_index(["objective", "seed", "epoch", "attention"])
    assert len(data) == 2 * 2 * 2 * 2
    assert data["n"].unique().tolist() == [9]
    assert data.loc[("kd", 0, 2, "alpha"), "value"] == pytest.approx(0)
    assert data.loc[("kd", 0, 1, "alpha"), "value"] == pytest.approx(1)
    assert data["initial"].xs("alpha", level="attention").to_numpy() == pytest.approx(1)
    _, axes = plots.vam_entropy(attended)
    assert [len(ax.lines) for ax in axes[0]] == [8, 8]
