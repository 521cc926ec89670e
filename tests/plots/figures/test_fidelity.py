"""The figure of fidelity, of runs on disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kdx_analysis.drawing.style import Width
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.plots import FIGURES
from kdx_analysis.runs import RunSet
from tests.planted_outputs import Nets
from tests.plots.legible import faults
from tests.report.conftest import LADDER, write_study

NETS = Nets()
FIGURE = FIGURES["fidelity"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    folder = tmp_path_factory.mktemp("fidelity") / "study"
    return write_study(folder, LADDER, nets=NETS, classes=NETS.names)


@pytest.mark.parametrize("width", ["page", "column"])
def test_it_is_legible_with_the_whole_ladder(runs: RunSet, width: Width) -> None:
    figure, axes = FIGURE(runs, width)
    assert faults(figure, width) == []
    assert axes.shape == (2, 4 if width == "page" else 1)
    labels = [label.get_text() for label in axes[1, 0].get_xticklabels()]
    assert labels == list(LADDER)


def test_its_table_is_of_the_undivided_students(runs: RunSet) -> None:
    pd.testing.assert_frame_equal(FIGURE.data(runs), runs.fidelity("student").drawn())
    explainers = runs.filter(role="explainer")
    pd.testing.assert_frame_equal(FIGURE.data(explainers), runs.fidelity("explainer").drawn())


def test_its_data_lies_beside_the_picture(runs: RunSet, tmp_path: Path) -> None:
    picture, data = FIGURE.write(runs, tmp_path)
    assert picture.name == "fidelity.svg"
    table = pd.read_csv(data)
    assert {"task", "kind", "own", "likeness", "ceiling", "control"} <= set(table.columns)
    assert len(table) == len(FIGURE.data(runs))


def test_without_outputs_there_is_no_such_figure(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="has its outputs kept"):
        FIGURE.data(write_study(tmp_path / "study", ("hard", "kd"), seeds=1))


def test_without_hard_it_says_why_it_is_not_drawn(tmp_path: Path) -> None:
    runs = write_study(
        tmp_path / "study", ("kd",), nets=NETS, classes=NETS.names, roles=("student",)
    )
    with pytest.raises(KdxError, match="there is nothing to draw"):
        FIGURE(runs)


def test_its_caption_says_what_stands_there() -> None:
    for word in ("task", "kind", "own", "hollow", "ceiling", "negative controls", "decided"):
        assert word in FIGURE.caption
