"""One visual language, undone after its use."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine

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


def test_text_is_broken_where_its_width_ends() -> None:
    assert wrapped("one two three", 0.5) == "one two\nthree"
    assert wrapped("kept\nlines", 5) == "kept\nlines"
