"""Students under arms, seed by seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdx_analysis import plots
from kdx_analysis.errors import AbsentError
from kdx_analysis.runs import RunSet
from tests.planted_arms import write_arms

ACCURACIES = {
    "plain": [0.50, 0.52, 0.51],
    "vam": [0.51, 0.51, 0.54],
    "vam_entropy": [0.54, 0.54, 0.54],
}


def test_arms_are_drawn_seed_by_seed_beside_their_differences(tmp_path: Path) -> None:
    write_arms(tmp_path / "a", {"kd": ACCURACIES})
    write_arms(tmp_path / "b", {"kd": {"plain": [0.7], "vam": [0.6]}}, model="resnet20")
    data = plots.arms.data(RunSet.load(tmp_path))
    assert data.groupby("student").size().to_dict() == {"digits_student": 9, "resnet20": 2}
    assert data["reference"].unique().tolist() == ["plain"]
    assert data["n"].unique().tolist() == [40]
    figure, axes = plots.arms.draw(data)
    (left, right), (one_seed, _) = axes
    assert [text.get_text() for text in left.get_xticklabels()] == []  # shared, below
    assert [text.get_text() for text in one_seed.get_xticklabels()] == [
        "plain",
        "vam",
        "vam_entropy",
    ]
    joined = [
        line for line in left.lines if len(line.get_xdata()) == 3 and line.get_marker() == "None"
    ]
    assert [line.get_ydata().tolist() for line in joined] == [
        [50, 51, 54],
        [52, 51, 54],
        [51, 54, 54],
    ]
    points = [line.get_xdata() for line in right.lines if line.get_marker() == "o"]
    assert points == [pytest.approx([1, -1, 3]), pytest.approx([4, 2, 3])]
    assert len(one_seed.collections) == 0  # no mean of one
    assert "n = 1–3 seeds per arm, 40 test images" in figure.get_suptitle()


def test_runs_of_no_arms_have_no_figure_of_them(small: RunSet) -> None:
    with pytest.raises(AbsentError, match="the 5 runs hold no two arms of VAM"):
        plots.arms(small)
