"""Cosines of pairs of subtasks, and their nulls."""

from __future__ import annotations

import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.io import read_parquet
from kdx_analysis.runs import RunSet
from tests.plots.conftest import EPOCHS, Make, set_undefined


def test_conflict_is_the_mean_over_seeds_and_epochs(study: RunSet) -> None:
    runs = study.filter(objective=["hard", "kd"])
    row = (
        plots.conflict.data(runs).query("objective == 'kd' and a == 'cat' and b == 'ship'").iloc[0]
    )
    frames = [
        read_parquet(r.path / "records" / "conflict.parquet")
        for r in runs.filter(role="explainer", objective="kd")
    ]
    disk = pd.concat(frames).query(
        "split == 'train' and term == 'hard' and a == 'cat' and b == 'ship'"
    )
    assert (row["seeds"], row["epochs"], row["values"], row["undefined"]) == (3, 2, 6, 0)
    assert row["cosine"] == pytest.approx(disk["cosine"].mean())
    _, axes = plots.conflict(runs)
    matrix = axes[1].collections[0].get_array()
    high, low = max(row["a_row"], row["b_row"]), min(row["a_row"], row["b_row"])
    assert matrix[high, low] == pytest.approx(row["cosine"])
    assert matrix[low, high] == pytest.approx(row["null"])
    assert axes[0].collections[0].get_clim() == (-1, 1)


def test_nulls_are_of_the_epochs_in_which_the_cosine_is_defined(make: Make) -> None:
    runs = make(("hard", "kd"), (0,))
    kd = runs.filter(role="explainer", objective="kd").runs[0]
    disk = kd.record("conflict").query(
        "split == 'train' and term == 'hard' and a == 'cat' and b == 'ship'"
    )
    null = disk.set_index("epoch")["null_mean"]
    set_undefined(kd, "conflict", "cosine", f"epoch == {EPOCHS[0]}")
    row = (
        plots.conflict.data(runs).query("objective == 'kd' and a == 'cat' and b == 'ship'").iloc[0]
    )
    assert (row["undefined"], row["null"]) == (1, pytest.approx(null[EPOCHS[-1]]))
    other = runs.filter(role="explainer", objective="hard").runs[0].record("conflict")
    hard = other.query(
        "split == 'train' and term == 'hard' and a == 'cat' and b == 'ship' and epoch == "
        f"{EPOCHS[-1]}"
    )
    row = plots.conflict_differences.data(runs).query("a == 'cat' and b == 'ship'").iloc[0]
    assert row["null"] == pytest.approx(null[EPOCHS[-1]] - hard["null_mean"].item())
