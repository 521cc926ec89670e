"""Contention: what is drawn is what the records hold, and ranks are not numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.runs import RunSet
from tests.plots.conftest import EPOCHS, EXPERTS, Make, set_undefined
from tests.plots.figures.conftest import record


def test_a_run_is_a_line_whatever_its_experts_are_numbered(study: RunSet) -> None:
    runs = study.filter(objective=["hard", "kd"])
    data = plots.contention.data(runs)
    _, axes = plots.contention.draw(data)
    drawn = [line.get_ydata() for line in axes[0, 0].lines if line.get_marker() != "None"]
    assert len(drawn) == 6
    assert all((np.diff(line) <= 0).all() for line in drawn)
    chosen = record(runs, "contention_by_expert", "kd", 2).query(
        "split == 'train' and term == 'hard' and level == 3"
    )
    means = chosen.groupby("expert")["value"].mean().sort_values(ascending=False)
    assert any(np.allclose(line, means) for line in drawn)
    row = data.query("objective == 'kd' and seed == 2 and level == 3")
    assert row["whole"].unique() == pytest.approx(means.sum())
    assert row["whole_null"].unique() == pytest.approx(0.05 * EXPERTS[-1])


def test_undefined_contention_has_no_rank_and_no_null(make: Make) -> None:
    runs = make(("hard", "kd"), (0,))
    hard, kd = runs.filter(role="explainer")
    kd.record("contention_by_expert")["null_mean"] = kd.record("contention_by_expert")["epoch"]
    set_undefined(kd, "contention_by_expert", "value", f"epoch == {EPOCHS[0]}")
    data = plots.contention.data(runs)
    assert (data.query("objective == 'kd'")["null"] == EPOCHS[-1]).all()
    set_undefined(kd, "contention_by_expert", "value", "epoch > 0")
    assert plots.contention.data(runs)["objective"].unique().tolist() == ["hard"]
    set_undefined(hard, "contention_by_expert", "value", "epoch > 0")
    with pytest.raises(KdxError, match="is defined of none of them"):
        plots.contention(runs)
