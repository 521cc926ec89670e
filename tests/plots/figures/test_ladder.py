"""The ladder: what is drawn is what the records hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet
from kdx_analysis.runs import RunSet, t_interval
from tests.plots.conftest import Make
from tests.plots.legible import faults
from tests.plots.parts import texts, upright
from tests.report.conftest import write_study


def test_ladder_data_are_those_on_disk(study: RunSet) -> None:
    data = plots.ladder.data(study)
    run = study.filter(role="explainer", objective="kd_flat", seed=1).runs[0]
    disk = read_parquet(run.path / "records" / "conflict_summary.parquet")
    disk = disk[
        (disk["term"] == "hard") & (disk["metric"] == "severity") & (disk["split"] == "val")
    ]
    row = data.query(
        "objective == 'kd_flat' and seed == 1 and metric == 'severity' and split == 'val'"
    )
    assert row["value"].item() == pytest.approx(disk["value"].sum() / 2)
    assert row["null"].item() == pytest.approx(disk["null_mean"].sum() / 2)
    assert data.drop_duplicates("objective")["rung"].tolist() == [
        "hard",
        "",
        "hard_T",
        "kd_flat",
        "kd_shuffled",
        "kd",
    ]


def test_a_rung_adds_what_missing_rungs_would_have(make: Make) -> None:
    runs = make(("hard", "label_smoothing", "kd_flat", "kd"), (0, 1))
    adds = plots.ladder.data(runs).drop_duplicates("objective").set_index("objective")["adds"]
    assert adds.to_dict() == {
        "hard": "",
        "label_smoothing": "",
        "kd_flat": "temperature, loss scale, softness",
        "kd": "unevenness, class structure",
    }
    figure, _ = plots.ladder(runs)
    assert "not run: hard_T, kd_shuffled" in texts(figure)
    assert "label_smoothing: beside the ladder" in texts(figure)


def test_objectives_of_other_settings_are_left_out_and_named(tmp_path: Path) -> None:
    at_one = [{"name": name, "T": 1} for name in ("kd_shuffled", "kd")]
    runs = write_study(
        tmp_path, ["hard", "kd_flat", "kd", *at_one], seeds=2, roles=("explainer",), drawn=True
    )
    out = "kd_shuffled T=1.0 and kd T=1.0"
    data = plots.ladder.data(runs)
    assert set(data["objective"]) == {"hard", "kd_flat", "kd"}
    assert data["left_out"].unique().tolist() == [out]
    assert f"left out, of other settings: {out}" in texts(plots.ladder.draw(data)[0])
    for figure, other in ((plots.differences, "b"), (plots.conflict_differences, "other")):
        data = figure.data(runs)
        assert data[other].unique().tolist() == ["kd_flat", "hard"]
        drawn, _ = figure.draw(data)
        assert faults(drawn, "page") == []
        assert f"left out, of other settings: {out}" in drawn.get_suptitle().replace("\n", " ")


def test_ladder_draws_the_t_interval_and_none_with_one_seed(study: RunSet) -> None:
    data = plots.ladder.data(study.filter(objective=["hard", "kd"]))
    _, axes = plots.ladder.draw(data)
    expected = t_interval(
        data.query("metric == 'accuracy' and objective == 'kd'")["value"].to_numpy()
    )
    drawn = [sorted(s[:, 1]) for s in upright(axes[0])]
    assert any(np.allclose(ends, [expected.low, expected.high]) for ends in drawn)
    assert len(drawn) == 2
    _, axes = plots.ladder.draw(data[data["seed"] == 0])
    assert not any(upright(ax) for ax in axes)


def test_ladder_needs_two_rungs(make: Make) -> None:
    with pytest.raises(KdxError, match="two of its rungs"):
        plots.ladder(make(("hard", "label_smoothing"), (0,)))
