"""Two trees face to face."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from tests.planted_trees import random_tree, runs_with
from tests.plots.legible import faults


def test_tanglegram_puts_kd_beside_a_seed_its_control_and_hard_labels(tmp_path: Path) -> None:
    objectives = ("hard", "kd_shuffled", "kd")
    runs = runs_with(
        tmp_path,
        {(o, s): random_tree(10 * i + s) for i, o in enumerate(objectives) for s in (0, 1)},
    )
    data = plots.tanglegram.data(runs)
    assert data["pair"].unique().tolist() == [
        "kd, seed 0 | kd, seed 1",
        "kd, seed 0 | kd_shuffled, seed 0",
        "kd, seed 0 | hard, seed 0",
    ]
    kd, hard = random_tree(20), random_tree(0)
    of_pair = data[data["pair"] == "kd, seed 0 | hard, seed 0"]
    assert of_pair["correlation"].unique() == pytest.approx(kd.cophenetic_correlation(hard))
    figure, axes = plots.tanglegram.draw(data)
    assert faults(figure, "page") == []
    places = of_pair[of_pair["name"] != ""].pivot(index="name", columns="side", values="child_y")
    lines = axes[2].collections[-1].get_segments()
    assert sorted((a[1], b[1]) for a, b in lines) == sorted(
        map(tuple, places[["left", "right"]].to_numpy())
    )


def test_the_right_tree_turns_to_follow_the_left_one(tmp_path: Path) -> None:
    tree = random_tree(0)
    data = plots.tanglegram.data(runs_with(tmp_path, {("hard", 0): tree, ("hard", 1): tree}))
    leaves = data[data["name"] != ""].pivot(index="name", columns="side", values="child_y")
    assert (leaves["left"] == leaves["right"]).all()
    assert data["correlation"].unique() == pytest.approx(1)
    with pytest.raises(KdxError, match="one explainer makes no pair"):
        plots.tanglegram(runs_with(tmp_path / "one", {("kd", 0): tree}))
