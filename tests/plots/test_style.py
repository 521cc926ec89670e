from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kdx_analysis.drawing.classes import clustered, dendrogram
from kdx_analysis.drawing.style import (
    counted,
    drawing,
    plain,
    save,
    style,
    styled,
    wrapped,
)


def test_style_is_undone_when_the_body_raises() -> None:
    before = dict(mpl.rcParams)
    with pytest.raises(ZeroDivisionError), style():
        1 / (mpl.rcParams["svg.fonttype"] != "none")
    assert dict(mpl.rcParams) == before


def test_a_figure_is_laid_out_once_for_all_its_files_and_anew_when_it_changed(
    tmp_path, monkeypatch
) -> None:
    layouts = []
    own = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine,
        "execute",
        lambda self, figure: (layouts.append(figure), own(self, figure))[1],
    )

    @styled
    def draw():
        figure = drawing("column", 2)
        ax = figure.subplots()
        figure.colorbar(ax.imshow([[0, 1]]))
        return figure, ax

    figure, ax = draw()
    before = ax.get_position(original=True).bounds
    save(figure, tmp_path / "same")
    assert len(layouts) == 1
    assert ax.get_position(original=True).bounds == before
    ax.set_ylabel("of two\nlines")
    save(figure, tmp_path / "changed")
    assert len(layouts) == 2
    assert ax.get_position(original=True).x0 > before[0]
    assert isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)


def test_plain_text_starts_no_formula() -> None:
    assert plain("$a$_%") == r"\$a\$_%"


def test_counts_are_ranges_where_they_differ() -> None:
    assert [counted([1]), counted([3, 3]), counted([2, 3, 1])] == ["1 seed", "3 seeds", "1–3 seeds"]


def test_clusters_stand_together_whatever_the_classes_numbers() -> None:
    group = np.array([0, 1, 0, 2, 1, 2, 0])
    distances = np.where(group[:, None] == group, 0.1, 1.0)
    np.fill_diagonal(distances, 0)
    distances[0, 1] = distances[1, 0] = np.nan
    found = clustered(distances)
    runs = [g for g, _ in itertools.groupby(group[list(found.order)])]
    assert sorted(runs) == [0, 1, 2]
    at = group[list(found.order)]
    assert [join > 0.9 for join in found.joins] == (at[:-1] != at[1:]).tolist()


def test_a_dendrogram_joins_each_branch_at_the_height_of_its_linkage() -> None:
    place = np.array([0.0, 1.0, 3.5, 10.0])  # {0, 1} at 1, then 2 at 3, then 3 at 8.5
    found = clustered(np.abs(place[:, None] - place))
    ax = Canvas().subplots()
    dendrogram(ax, found.joins)
    drawn = sorted(
        ([tuple(p) for p in line] for line in ax.collections[0].get_segments()),
        key=lambda line: line[1],
    )
    order = found.order if found.order[0] == 0 else tuple(reversed(found.order))
    assert order == (0, 1, 2, 3)
    assert sorted(found.joins) == pytest.approx([1, 3, 8.5])
    assert [line[1][0] for line in drawn] == pytest.approx([1, 3, 8.5])
    ends = [
        (line[0][0], line[3][0]) for line in drawn
    ]  # what each joins: leaves at 0, and the branch before
    assert [sorted(end) for end in ends] == [
        pytest.approx(pair) for pair in ([0, 0], [0, 1], [0, 3])
    ]


def test_text_is_broken_where_its_width_ends() -> None:
    assert wrapped("one two three", 0.5) == "one two\nthree"
    assert wrapped("kept\nlines", 5) == "kept\nlines"
