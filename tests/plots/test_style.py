from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kdx_analysis.drawing.classes import clustered, dendrogram
from kdx_analysis.drawing.style import (
    LOOKS,
    counted,
    drawing,
    look,
    plain,
    save,
    style,
    styled,
    wrapped,
)
from kdx_analysis.runs.runset import ORDER

# Machado, Oliveira & Fernandes, A physiologically-based model for simulation of colour vision
# deficiency (2009), severity 1, on linear RGB.
SIGHT = {
    "unimpaired": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, sight: str = "unimpaired") -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as it looks to one kind of sight; 2.3 apart is just
    noticeable.
    """
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = _XYZ @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1) / _XYZ.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_objectives_differ_in_colour_to_every_sight(sight: str) -> None:
    np.testing.assert_allclose(lab("white", sight), [100, 0, 0], atol=0.1)
    np.testing.assert_allclose(lab("red"), [53.2, 80.1, 67.2], atol=0.1)
    assert set(LOOKS) == set(ORDER)
    for a, b in itertools.combinations(LOOKS.values(), 2):
        assert np.linalg.norm(lab(a.colour, sight) - lab(b.colour, sight)) > 15


def test_objectives_differ_without_colour() -> None:
    for a, b in itertools.combinations(LOOKS.values(), 2):
        assert a.marker != b.marker
        assert a.line != b.line or abs(lab(a.colour)[0] - lab(b.colour)[0]) > 30
    assert all(lab(of.colour)[0] < 75 for of in LOOKS.values())  # dark enough on white


def test_an_unknown_label_always_looks_the_same_and_like_no_known_one() -> None:
    assert look("kd T=1") == look("kd T=1")
    assert look("kd T=1").colour not in {known.colour for known in LOOKS.values()}
    assert look("kd T=1") != look("kd lambda=0.5")


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
