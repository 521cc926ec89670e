"""Flow conserves mass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.io import write_parquet
from kdx_analysis.runs import RunSet
from tests.planted_records import complete
from tests.planted_trees import EPOCH, random_tree, runs_with


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
