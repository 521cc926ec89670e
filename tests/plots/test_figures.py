"""Each figure on runs of one and three seeds, with a rung missing, and what it leaves behind
(nothing).
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas
from scipy import stats

from kdx_analysis import plots
from kdx_analysis.drawing.style import Width
from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet
from kdx_analysis.plots import probed
from kdx_analysis.plots.figure import Format
from kdx_analysis.runs import RunSet, t_interval
from tests.report.conftest import write_study

from .conftest import EPOCHS, Make, set_undefined
from .legible import faults

OF_VAM = ("arms", "vam_attention", "vam_entropy")
ALL = tuple(name for name in plots.FIGURES if name not in OF_VAM)


def upright(ax: Axes) -> list[np.ndarray]:
    """The vertical segments that stand for intervals."""
    segments = [
        s for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()
    ]
    return [s for s in segments if len(s) == 2 and s[0][0] == s[1][0]]


def texts(figure: Canvas) -> str:
    return "\n".join(
        t.get_text().replace("\n", " ") for legend in figure.legends for t in legend.get_texts()
    )


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


def test_a_hundred_names_stand_in_two_columns_or_every_few_do(make: Make) -> None:
    runs = make(("hard", "kd"), (0,), [f"class_{i}" for i in range(100)])
    figure, axes = plots.gates(runs)
    assert faults(figure, "page") == []
    named = [
        t.get_text() for minor in (False, True) for t in axes[0, -1].get_yticklabels(minor=minor)
    ]
    assert sorted(named) == sorted(runs.classes)
    figure, axes = plots.flow(runs, "column")
    assert faults(figure, "column") == []
    assert 20 <= len(axes[-1].get_yticklabels()) <= 50
    assert "class is named, the data name all" in figure.get_suptitle().replace("\n", " ")


def test_ladder_data_are_those_on_disk(study: RunSet) -> None:
    data = plots.ladder.data(study)
    run = study.filter(role="explainer", objective="kd_flat", seed=1).runs[0]
    disk = read_parquet(run.path / "records" / "conflict_summary.parquet")
    disk = disk[
        (disk["term"] == "hard") & (disk["metric"] == "severity") & (disk["split"] == "val")
    ]
    row = data.query(
        "objective == 'kd_flat' and seed == 1 and metric == 'severity' and split == 'val'"
    )
    assert row["value"].item() == pytest.approx(disk["value"].sum() / 2)
    assert row["null"].item() == pytest.approx(disk["null_mean"].sum() / 2)
    assert data.drop_duplicates("objective")["rung"].tolist() == [
        "hard",
        "",
        "hard_T",
        "kd_flat",
        "kd_shuffled",
        "kd",
    ]


def test_a_rung_adds_what_missing_rungs_would_have(make: Make) -> None:
    runs = make(("hard", "label_smoothing", "kd_flat", "kd"), (0, 1))
    adds = plots.ladder.data(runs).drop_duplicates("objective").set_index("objective")["adds"]
    assert adds.to_dict() == {
        "hard": "",
        "label_smoothing": "",
        "kd_flat": "temperature, loss scale, softness",
        "kd": "unevenness, class structure",
    }
    figure, _ = plots.ladder(runs)
    assert "not run: hard_T, kd_shuffled" in texts(figure)
    assert "label_smoothing: beside the ladder" in texts(figure)


def test_objectives_of_other_settings_are_left_out_and_named(tmp_path: Path) -> None:
    at_one = [{"name": name, "T": 1} for name in ("kd_shuffled", "kd")]
    runs = write_study(
        tmp_path, ["hard", "kd_flat", "kd", *at_one], seeds=2, roles=("explainer",), drawn=True
    )
    out = "kd_shuffled T=1.0 and kd T=1.0"
    data = plots.ladder.data(runs)
    assert set(data["objective"]) == {"hard", "kd_flat", "kd"}
    assert data["left_out"].unique().tolist() == [out]
    assert f"left out, of other settings: {out}" in texts(plots.ladder.draw(data)[0])
    for figure, other in ((plots.differences, "b"), (plots.conflict_differences, "other")):
        data = figure.data(runs)
        assert data[other].unique().tolist() == ["kd_flat", "hard"]
        drawn, _ = figure.draw(data)
        assert faults(drawn, "page") == []
        assert f"left out, of other settings: {out}" in drawn.get_suptitle().replace("\n", " ")


def test_ladder_draws_the_t_interval_and_none_with_one_seed(study: RunSet) -> None:
    data = plots.ladder.data(study.filter(objective=["hard", "kd"]))
    _, axes = plots.ladder.draw(data)
    expected = t_interval(
        data.query("metric == 'accuracy' and objective == 'kd'")["value"].to_numpy()
    )
    drawn = [sorted(s[:, 1]) for s in upright(axes[0])]
    assert any(np.allclose(ends, [expected.low, expected.high]) for ends in drawn)
    assert len(drawn) == 2
    _, axes = plots.ladder.draw(data[data["seed"] == 0])
    assert not any(upright(ax) for ax in axes)


def test_ladder_needs_two_rungs(make: Make) -> None:
    with pytest.raises(KdxError, match="two of its rungs"):
        plots.ladder(make(("hard", "label_smoothing"), (0,)))


def test_comparisons_stay_within_one_decomposition(make: Make) -> None:
    runs = make(("hard", "kd"), (0,), decompositions=("binary", "multiclass"))
    for name in ("ladder", "differences", "conflict"):
        with pytest.raises(KdxError, match="binary and multiclass"):
            plots.FIGURES[name](runs)
        plots.FIGURES[name](runs.filter(decomposition="multiclass"))


def test_differences_are_paired_by_seed(study: RunSet) -> None:
    data = plots.differences.data(study)
    assert list(dict.fromkeys(data["b"])) == [
        "kd_shuffled",
        "kd_flat",
        "hard_T",
        "label_smoothing",
        "hard",
    ]
    row = data.query("metric == 'accuracy' and b == 'hard' and seed == 2")["difference"].item()

    def accuracy(objective: str) -> float:
        run = study.filter(role="explainer", objective=objective, seed=2).runs[0]
        metrics = read_parquet(run.path / "records" / "metrics.parquet")
        return metrics.query("split == 'test' and metric == 'accuracy'")["value"].item()

    assert row == pytest.approx(accuracy("kd") - accuracy("hard"))
    noted = data.drop_duplicates("b").set_index("b")["includes"]
    assert set(noted.index[noted != ""]) == {"label_smoothing", "hard"}


def test_differences_have_no_interval_with_one_seed(small: RunSet) -> None:
    _, axes = plots.differences(small)
    assert not any(
        c.get_segments() for ax in axes for c in ax.collections if isinstance(c, LineCollection)
    )
    assert all("n = 1" in [t.get_text() for t in ax.texts] for ax in axes)


def test_gates_are_those_of_the_first_seed_at_the_selected_epoch(make: Make) -> None:
    runs = make(("hard", "kd"), (2, 5))
    data = plots.gates.data(runs)
    assert set(data["seed"]) == {2}
    assert sorted(data["level"].unique()) == [3, 4]
    run = runs.filter(role="explainer", objective="kd", seed=2).runs[0]
    disk = read_parquet(run.path / "records" / "gates.parquet").query(
        f"epoch == {EPOCHS[-1]} and level == 4"
    )
    drawn = data.query("objective == 'kd' and level == 4")
    both = drawn.merge(disk, on=["child", "parent"], suffixes=("", "_disk"))
    assert len(both) == len(disk) == 20
    assert (both["effective"] == both["effective_disk"]).all()
    assert (both["alpha"] == both["alpha_disk"]).all()
    rows = (
        data.query("level == 4")
        .groupby("objective")[["child", "row"]]
        .apply(lambda f: frozenset(map(tuple, f.values)))
    )
    assert rows["kd"] == rows["hard"]


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


def test_entropy_stands_beside_the_initial_gates(study: RunSet) -> None:
    runs = study.filter(objective=["hard", "kd"], seed=[0, 1])
    data = plots.entropy.data(runs)
    assert data.groupby(["objective", "seed", "level", "attention"]).size().eq(len(EPOCHS)).all()
    _, axes = plots.entropy.draw(data)
    lines = [line.get_ydata() for line in axes[0, 0].lines]
    drawn = data.query(
        "attention == 'effective' and level == 4 and objective == 'kd' and seed == 1"
    )
    assert any(np.array_equal(line, drawn["value"]) for line in lines)
    assert sum(np.array_equal(line, drawn["initial"]) for line in lines) == 4
    assert axes[0, 0].get_yscale() == "log"
    _, axes = plots.entropy.draw(data.assign(value=0.5))
    assert axes[0, 0].get_yscale() == "linear"


def test_training_draws_the_teacher_at_its_selected_epoch(small: RunSet) -> None:
    _, axes = plots.training(small)
    teacher = read_parquet(
        small.filter(role="teacher").runs[0].path / "records" / "metrics.parquet"
    )
    value = teacher.query(f"split == 'val' and metric == 'accuracy' and epoch == {EPOCHS[-1]}")[
        "value"
    ].item()
    assert [ax.get_title(loc="left") for ax in axes[:, 0]] == ["student", "explainer"]
    assert all([value, value] in [list(line.get_ydata()) for line in ax.lines] for ax in axes[:, 0])


def test_two_runs_for_one_cell_are_refused(small: RunSet) -> None:
    twice = RunSet.of([*small, small.runs[-1]])
    with pytest.raises(KdxError, match="2 explainers are 'kd' with seed 4"):
        plots.ladder(twice)
    with pytest.raises(KdxError, match="is an explainer"):
        plots.gates(small.filter(role="student"))


def test_differences_of_conflict_are_paired_by_seed_and_epoch(study: RunSet) -> None:
    runs = study.filter(objective=["hard", "kd"])
    data = plots.conflict_differences.data(runs)
    row = data.query("a == 'cat' and b == 'ship'").iloc[0]
    means = plots.conflict.data(runs).query("a == 'cat' and b == 'ship'").set_index("objective")
    assert (row["kd"], row["other"], row["seeds"], row["epochs"]) == ("kd", "hard", 3, 2)
    assert row["difference"] == pytest.approx(
        means.loc["kd", "cosine"] - means.loc["hard", "cosine"]
    )
    assert row["null"] == pytest.approx(means.loc["kd", "null"] - means.loc["hard", "null"])
    fewer = RunSet(
        tuple(r for r in runs if (r.role, r.objective, r.seed) != ("explainer", "hard", 1))
    )
    assert plots.conflict_differences.data(fewer)["seeds"].unique().tolist() == [2]
    _, axes = plots.conflict_differences.draw(data)
    low, high = axes[0].collections[0].get_clim()
    assert -low == high == pytest.approx(data[["difference", "null"]].abs().to_numpy().max())
    matrix = axes[0].collections[0].get_array()
    assert matrix[
        max(row["a_row"], row["b_row"]), min(row["a_row"], row["b_row"])
    ] == pytest.approx(row["difference"])
    with pytest.raises(KdxError, match="need kd and another"):
        plots.conflict_differences(runs.filter(objective="hard"))


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


def test_differences_of_conflict_need_conflict_on_both_sides(make: Make) -> None:
    runs = make(("hard", "kd_flat", "kd"), (0,))
    hard, _, kd = (
        run.path / "records" / "conflict.parquet" for run in runs.filter(role="explainer")
    )
    hard.unlink()
    probed = RunSet.load(hard.parents[2])
    assert plots.conflict_differences.data(probed)["other"].unique().tolist() == ["kd_flat"]
    kd.unlink()
    with pytest.raises(KdxError, match="conflict was not probed under 'kd' and another objective"):
        plots.conflict_differences(RunSet.load(hard.parents[2]))


def test_accuracy_against_conflict_is_ranked_over_all_runs(study: RunSet) -> None:
    data = plots.accuracy_conflict.data(study)
    severity = data[data["metric"] == "severity"]
    assert len(severity) == severity["runs"].iloc[0] == 18
    assert severity["rho"].iloc[0] == pytest.approx(
        stats.spearmanr(severity["value"], severity["accuracy"]).statistic
    )
    assert -0.7 < severity["null_low"].iloc[0] < -0.3 < 0.3 < severity["null_high"].iloc[0] < 0.7
    _, axes = plots.accuracy_conflict.draw(data)
    drawn = np.concatenate([line.get_xydata() for line in axes[1].lines])
    expected = severity[["value", "accuracy"]].to_numpy()
    np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])
    few = plots.accuracy_conflict.data(study.filter(objective="kd"))
    assert few["rho"].isna().all()
    assert "not below four runs" in plots.accuracy_conflict.draw(few)[1][0].get_xlabel()


@pytest.mark.parametrize(
    ("lows", "said"),
    [
        ([0.1, 0.2], "value; grey: 95 % of its null"),
        ([0.1, math.nan], "value; grey: 95 % of its null, where it has a range (from 39 draws)"),
        ([math.nan] * 2, "value; no null has a range (from 39 draws)"),
    ],
)
def test_a_null_without_a_range_is_left_out_and_said_to_have_none(
    lows: list[float], said: str
) -> None:
    data = pd.DataFrame(
        {
            "name": ["conflict rate", "severity"],
            "split": "train",
            "value": [0.3, 0.1],
            "null_low": lows,
        }
    )
    figure, (ax,) = probed.beside_nulls(data.assign(null_high=data["null_low"] + 0.5))
    bars = [path for lines in ax.collections for path in lines.get_paths()]
    assert len(bars) == sum(not math.isnan(low) for low in lows)
    assert ax.get_xlabel() == said
    plt.close(figure)
