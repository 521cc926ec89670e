"""Each figure on runs of one and three seeds, and what it leaves behind (nothing)."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.drawing.style import Width
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Format
from kdx_analysis.runs import RunSet
from tests.plots.conftest import Make
from tests.plots.legible import faults
from tests.plots.parts import texts, upright

OF_VAM = ("arms", "vam_attention", "vam_entropy")
OF_OUTPUTS = ("fidelity", "shift")


ALL = tuple(name for name in plots.FIGURES if name not in (*OF_VAM, *OF_OUTPUTS))


@pytest.mark.parametrize("name", ALL)
def test_draws_three_seeds_and_leaves_nothing_behind(name: str, study: RunSet) -> None:
    before = dict(mpl.rcParams)
    figure, axes = plots.FIGURES[name](study)
    assert faults(figure, "page") == []
    assert all(ax.figure is figure for ax in axes.flat)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ALL)
def test_draws_one_seed_of_two_rungs_in_a_column(name: str, small: RunSet) -> None:
    figure, axes = plots.FIGURES[name](small, "column")
    assert faults(figure, "column") == []
    assert "95 % t-interval" not in " ".join(
        t.get_text().replace("\n", " ") for t in figure.findobj(mpl.text.Text)
    )
    if name in ("ladder", "contention", "expert_use"):
        assert not any(upright(ax) for ax in axes.flat)
        assert "one seed: no interval" in texts(figure)


@pytest.mark.slow
@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("name", ALL)
def test_stays_legible_with_a_hundred_classes(name: str, width: Width, hundred: RunSet) -> None:
    figure, _ = plots.FIGURES[name](hundred, width)
    assert faults(figure, width) == []
    assert figure.get_figheight() <= 10


@pytest.mark.parametrize(
    ("format", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")]
)
def test_writes_a_figure_with_its_data_beside_it(
    format: Format, begins: bytes, small: RunSet, tmp_path: Path
) -> None:
    picture, table = plots.entropy.write(small, tmp_path / "out", "column", format)
    assert picture.read_bytes().startswith(begins)
    assert picture.name == f"entropy.{format}"
    pd.testing.assert_frame_equal(pd.read_csv(table), plots.entropy.data(small))
    if format == "svg":
        assert ">gates into the heads,</" in picture.read_text()
    if format == "pdf":
        assert b"/FontFile2" in picture.read_bytes()  # TrueType, whose letters stay letters
        assert b"/Type3" not in picture.read_bytes()


def test_what_cannot_be_written_leaves_nothing(small: RunSet, tmp_path: Path) -> None:
    with pytest.raises(KdxError, match="unknown format of figures 'gif'"):
        plots.entropy.write(small, tmp_path / "out", format="gif")
    with pytest.raises(KdxError, match="unknown width of figures 'colum'; did you mean 'column'"):
        plots.entropy.write(small, tmp_path / "out", width="colum")
    with pytest.raises(KdxError, match="is an explainer"):
        plots.contention.write(small.filter(role="student"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saves_a_picture_and_text_that_stays_text(small: RunSet, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    paths = plots.save(plots.tree(small)[0], tmp_path / "out" / "tree.v1")
    assert [p.name for p in paths] == ["tree.v1.png", "tree.v1.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert ">100% cotton_rag</text>" in paths[1].read_text()
    assert ">$5 bill</text>" in paths[1].read_text()
    assert dict(mpl.rcParams) == before


def test_a_notebook_shows_the_figure_whatever_the_callers_style(small: RunSet) -> None:
    shown = plots.entropy(small)[0]._repr_png_()
    with mpl.rc_context({"font.size": 20, "axes.grid": True, "lines.linewidth": 9}):
        assert plots.entropy(small)[0]._repr_png_() == shown


def test_class_names_are_shown_letter_by_letter(make: Make) -> None:
    names = ("$x^2$", "a_b", "50% off", "$5", "e")
    _, axes = plots.gates(make(("hard", "kd"), (0,), names))
    assert {t.get_text() for t in axes[0, -1].get_yticklabels()} == {
        n.replace("$", r"\$") for n in names
    }
    for name in ("tree", "conflict"):
        plots.FIGURES[name](make(("hard", "kd"), (0,), names))


def test_comparisons_stay_within_one_decomposition(make: Make) -> None:
    runs = make(("hard", "kd"), (0,), decompositions=("binary", "multiclass"))
    for name in ("ladder", "differences", "conflict"):
        with pytest.raises(KdxError, match="binary and multiclass"):
            plots.FIGURES[name](runs)
        plots.FIGURES[name](runs.filter(decomposition="multiclass"))


def test_two_runs_for_one_cell_are_refused(small: RunSet) -> None:
    twice = RunSet.of([*small, small.runs[-1]])
    with pytest.raises(KdxError, match="2 explainers are 'kd' with seed 4"):
        plots.ladder(twice)
    with pytest.raises(KdxError, match="is an explainer"):
        plots.gates(small.filter(role="student"))
