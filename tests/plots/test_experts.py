"""Expert use, contention and flow: what is drawn is what the records hold, and ranks are not
numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet, write_parquet
from kdx_analysis.runs import RunSet
from tests.planted_records import complete
from tests.planted_trees import EPOCH, random_tree, runs_with

from .conftest import EPOCHS, EXPERTS, Make, set_undefined


def record(runs: RunSet, kind: str, objective: str, seed: int) -> pd.DataFrame:
    run = runs.filter(role="explainer", objective=objective, seed=seed).runs[0]
    return read_parquet(run.path / "records" / f"{kind}.parquet")


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


def test_runs_without_what_is_drawn_are_named(tmp_path: Path) -> None:
    runs = runs_with(tmp_path, {("kd", 0): random_tree(0)})
    with pytest.raises(KdxError, match="none of the 1 runs has 'contention_by_expert' records"):
        plots.contention(runs)
    alone = runs_with(tmp_path / "alone", {("kd", 0): random_tree(0, experts=(1, 1))})
    for figure in (plots.flow, plots.gates):
        with pytest.raises(KdxError, match="no gate has a choice"):
            figure(_with_pathways(alone))


def test_flow_conserves_mass_and_follows_the_pathways(tmp_path: Path) -> None:
    runs = _with_pathways(runs_with(tmp_path, {("kd", 0): random_tree(0)}))
    data = plots.flow.data(runs)
    assert data.groupby("level")["mass"].sum().to_numpy() == pytest.approx(1)
    assert data.groupby("level")["even"].sum().to_numpy() == pytest.approx(1)
    heads = data[data["heads"]]
    assert heads.groupby("source")["mass"].sum().to_numpy() == pytest.approx(1 / 12)
    into, out = (
        heads.groupby("target")["mass"].sum(),
        data[~data["heads"]].groupby("row")["mass"].sum(),
    )
    assert out.to_numpy() == pytest.approx(into.to_numpy())
    gates = runs.runs[0].record("gates").query(f"epoch == {EPOCH} and level == 4")
    both = heads.merge(gates, left_on=["source", "target"], right_on=["child", "parent"])
    assert both["mass"].to_numpy() == pytest.approx(both["effective"].to_numpy() / 12)
    _, axes = plots.flow.draw(data)
    bands = [b for b in axes[0].collections if isinstance(b, PolyCollection)]
    heights = sorted(np.ptp(path.vertices[[0, -2], 1]) for of in bands for path in of.get_paths())
    assert heights == pytest.approx(sorted(0.8 * 12 * data["mass"]))


def test_gates_that_read_the_input_flow_through_their_last_level_only(tmp_path: Path) -> None:
    runs = _with_pathways(runs_with(tmp_path, {("kd", 0): random_tree(0)}))
    (table,) = complete({"gates_by_class": pd.DataFrame({"level": [4]})}).values()
    write_parquet(runs.runs[0].path / "records" / "gates_by_class.parquet", table)
    assert plots.flow.data(RunSet.load(tmp_path))["level"].unique().tolist() == [4]


def _with_pathways(runs: RunSet) -> RunSet:
    """The same runs with the records of pathways that follow from their gates."""
    for run in runs:
        gates = run.record("gates").query(f"epoch == {EPOCH}")
        path, frames = None, []
        for level, rows in reversed(list(gates.groupby("level"))):
            attention = rows.pivot(
                index="child_index", columns="parent", values="effective"
            ).to_numpy()
            path = attention if path is None else path @ attention
            K, N = path.shape
            frames.append(
                pd.DataFrame(
                    {
                        "epoch": EPOCH,
                        "level": level - 1,
                        "subtask_index": np.repeat(np.arange(K), N),
                        "expert": np.tile(np.arange(N), K),
                        "alpha": path.ravel(),
                        "effective": path.ravel(),
                    }
                )
            )
        tables = complete({"pathways": pd.concat(frames, ignore_index=True)})
        write_parquet(run.path / "records" / "pathways.parquet", tables["pathways"])
    return RunSet.load(runs.runs[0].path.parent)
