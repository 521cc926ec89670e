"""What is drawn of fidelity, read off the figure."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from kdx_analysis.drawing.style import Width
from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity.drawing import along_ladder
from kdx_analysis.probes.fidelity.result import Fidelity
from tests.planted_outputs import Nets, replicated
from tests.plots.legible import faults
from tests.plots.parts import texts, upright

LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
NETS = Nets()
HOLLOW = "hollow: a part below 0"


@pytest.fixture(scope="module")
def whole() -> Fidelity:
    return NETS.fidelity(LADDER)


def bars(ax: Axes) -> list[Rectangle]:
    return [bar for container in ax.containers for bar in container]


def points(ax: Axes) -> dict[int, list[float]]:
    """The seeds' values by place."""
    at: dict[int, list[float]] = {}
    for line in ax.lines:
        if line.get_linestyle() == "None":
            at.setdefault(round(float(np.mean(line.get_xdata()))), []).extend(line.get_ydata())
    return at


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("width", ["page", "column"])
def test_it_is_legible_with_the_whole_ladder(whole: Fidelity, width: Width) -> None:
    figure, axes = along_ladder(whole.drawn(), width)
    assert faults(figure, width) == []
    assert axes.shape == (2, 4 if width == "page" else 1)
    assert axes[0, 0].get_title(loc="left").startswith("instance knowledge")


def test_bars_are_the_parts_on_top_of_each_other(whole: Fidelity) -> None:
    _, axes = whole.plot()
    drawn = bars(axes[0, 0])
    assert len(drawn) == 6 * 3
    task, kind, own_part = drawn[-3:]
    parts = whole.parts("instance", "kd")
    assert task.get_height() == pytest.approx(parts["task"].value)
    assert kind.get_y() == pytest.approx(parts["task"].value)
    assert kind.get_height() == pytest.approx(parts["kind"].value)
    assert own_part.get_y() == pytest.approx(parts["task"].value + parts["kind"].value)
    assert own_part.get_height() == pytest.approx(parts["own"].value)


def test_points_are_the_likeness_above_and_own_below(whole: Fidelity) -> None:
    _, axes = whole.plot()
    kd = whole.points.query("metric == 'instance' and objective == 'kd'")
    assert points(axes[0, 0])[5] == pytest.approx(kd["likeness"].tolist())
    assert points(axes[1, 0])[5] == pytest.approx(kd["own"].tolist())
    assert 0 not in points(axes[1, 0])  # of hard, whose own is 0 by its definition


def test_intervals_and_what_is_decided(whole: Fidelity) -> None:
    _, axes = whole.plot()
    own_part = whole.parts("instance", "kd")["own"]
    at_kd = sorted(tuple(segment[:, 1]) for segment in upright(axes[1, 0]) if segment[0, 0] == 5)
    wanted = [(each.low, each.high) for each in (own_part.over_seeds, own_part.over_teachers)]
    assert np.array(at_kd) == pytest.approx(np.array(sorted(wanted)))
    decided = [name for name in LADDER if whole.decided("instance", name)]
    assert words(axes[1, 0]) == ["decided"] * len(decided)
    assert {text.xy[0] for text in axes[1, 0].texts} == {LADDER.index(name) for name in decided}


def test_the_ceiling_and_the_band_of_the_controls(whole: Fidelity) -> None:
    _, axes = whole.plot()
    below = axes[1, 0]
    (ceiling,) = [line for line in below.lines if line.get_linestyle() == "--"]
    assert ceiling.get_ydata()[0] == pytest.approx(whole.parts("instance", "kd")["ceiling"].value)
    (band,) = [patch for patch in below.patches if isinstance(patch, Rectangle)]
    highest = max(map(abs, whole.controls("instance").values()))
    assert (band.get_y(), band.get_height()) == pytest.approx((-highest, 2 * highest))


def test_there_is_no_band_without_controls() -> None:
    _, axes = NETS.fidelity(["hard", "kd"]).plot()
    assert not axes[1, 0].patches


def test_a_part_below_0_is_hollow() -> None:
    nets = Nets(gifts={"kd": (-0.6, 0.6)})
    figure, axes = nets.fidelity(["hard", "kd"]).plot()
    *_, task, kind, own_part = bars(axes[0, 0])
    assert kind.get_height() < 0
    assert to_hex(kind.get_facecolor()) == "#ffffff"
    assert to_hex(kind.get_edgecolor()) == "#9db7d5"
    assert kind.get_zorder() > own_part.get_zorder() > task.get_zorder()
    assert to_hex(own_part.get_facecolor()) == "#d55e00"
    assert HOLLOW in texts(figure)
    assert faults(figure, "page") == []


def test_the_legend_is_silent_of_hollow_bars_where_there_is_none() -> None:
    data = NETS.fidelity(["hard", "kd"]).drawn()
    data[["kind", "own"]] = data[["kind", "own"]].abs()
    assert HOLLOW not in texts(along_ladder(data)[0])


@pytest.mark.parametrize(("K", "first", "count"), [(3, "second choices", 2), (2, "hardness", 1)])
@pytest.mark.parametrize("width", ["page", "column"])
def test_few_classes_show_what_is_defined(K: int, first: str, count: int, width: Width) -> None:
    result = Nets(num_classes=K).fidelity(["hard", "hard_T", "kd"])
    figure, axes = along_ladder(result.drawn(), width)
    assert axes.shape == (2, count if width == "page" else 1)
    assert axes[0, 0].get_title(loc="left").startswith(first)
    assert points(axes[0, 0])[2]
    assert faults(figure, width) == []


def test_without_siblings_points_are_still_the_likeness() -> None:
    result = NETS.fidelity(["hard", "kd"], siblings=0)
    figure, axes = result.plot()
    assert axes.shape == (2, 4)
    assert len(bars(axes[0, 0])) == 2  # the task alone
    likeness = result.points.query("metric == 'instance' and objective == 'kd'")["likeness"]
    assert points(axes[0, 0])[1] == pytest.approx(likeness.tolist())
    assert "0 siblings" in figure.legends[0].get_title().get_text()
    assert faults(figure, "page") == []


@pytest.mark.parametrize("siblings", [1, 2])
def test_few_siblings_have_no_interval_over_teachers(siblings: int) -> None:
    figure, axes = NETS.fidelity(LADDER, siblings=siblings).plot()
    assert not np.isnan(points(axes[1, 0])[5]).any()
    assert "decided" not in words(axes[1, 0])
    plural = "" if siblings == 1 else "s"
    assert f", {siblings} sibling{plural} ·" in figure.legends[0].get_title().get_text()


def test_one_seed_stands_in_the_middle() -> None:
    figure, axes = NETS.fidelity(LADDER, seeds=(3,)).plot()
    (line,) = [
        each
        for each in axes[1, 0].lines
        if each.get_linestyle() == "None" and each.get_xdata()[0] == 5
    ]
    assert len(line.get_xdata()) == 1
    assert faults(figure, "page") == []
    assert "n = 1 seed" in figure.legends[0].get_title().get_text().replace("\xa0", " ")


def test_several_teachers_are_drawn_as_their_mean() -> None:
    result = replicated(NETS, objectives=LADDER)
    figure, axes = result.plot()
    kd = result.points.query("metric == 'instance' and objective == 'kd'")
    assert points(axes[1, 0])[5] == pytest.approx(kd["own"].tolist())
    assert "decided" in words(axes[1, 0])
    assert faults(figure, "page") == []


def test_own_instance_is_drawn_into_given_axes(whole: Fidelity) -> None:
    canvas = matplotlib.figure.Figure((4, 3))
    ax = canvas.subplots()
    figure, axes = whole.plot(ax)
    assert figure is canvas
    assert axes.tolist() == [ax]
    kd = whole.points.query("metric == 'instance' and objective == 'kd'")
    assert points(ax)[5] == pytest.approx(kd["own"].tolist())
    assert [label.get_text() for label in ax.get_xticklabels()] == list(LADDER)


@pytest.mark.parametrize("into_axes", [False, True])
def test_nothing_is_drawn_without_hard(into_axes: bool) -> None:
    result = NETS.fidelity(["kd"])
    ax = matplotlib.figure.Figure().subplots() if into_axes else None
    with pytest.raises(KdxError, match="no objective has a seed with a student under 'hard'"):
        result.plot(ax)


def test_an_objectives_name_starts_no_formula() -> None:
    teaching = NETS.teaching(["hard"], seeds=(0,))
    students = {**teaching.students, ("kd $x$", 0): NETS.outputs(NETS.student("kd", 0))}
    _, axes = Fidelity.of(teaching.teacher, teaching.siblings, students).plot()
    assert r"kd \$x\$" in [label.get_text() for label in axes[1, 0].get_xticklabels()]


def test_drawn_is_a_frame_for_any_plotting_library(whole: Fidelity) -> None:
    data = whole.drawn()
    assert isinstance(data, pd.DataFrame)
    assert data["decided"].dtype == bool
    assert data["control"].dtype == bool
