"""A figure is one file, in the package or of a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from typer.testing import CliRunner

from kdx_analysis import plots
from kdx_analysis.cli import app
from kdx_analysis.errors import AbsentError
from kdx_analysis.metrics import METRICS, metric
from kdx_analysis.plots import FIGURES, Figure, figures
from kdx_analysis.registry import Registry
from kdx_analysis.report import Report
from kdx_analysis.runs import RunSet
from tests.plots.conftest import Make
from tests.report.conftest import write_study

PAGE = (
    "fidelity",
    "arms",
    "vam_attention",
    "vam_entropy",
    "ladder",
    "differences",
    "accuracy_conflict",
    "entropy",
    "gates",
    "flow",
    "expert_use",
    "tree",
    "tanglegram",
    "tree_agreement",
    "conflict",
    "conflict_differences",
    "contention",
    "training",
    "shift",
)
MINE = '''"""How severe conflict is, seed by seed."""

import numpy as np

from kdx_analysis.drawing.style import drawing
from kdx_analysis.plots.figure import explainers, figure


def severities(runs):
    """One row a run."""
    return runs.to_frame().query("metric == 'severity' and split == 'train'")


@figure(
    title="Severity, seed by seed",
    caption="Conflict severity of every explainer.",
    table=severities,
    wants=explainers,
)
def severity_by_seed(data, width="page"):
    canvas = drawing(width, 2.0)
    ax = canvas.subplots()
    ax.plot(data["seed"], data["value"], "o")
    return canvas, np.array([ax])
'''


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A user's own file, whose figure is forgotten afterwards."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    yield path
    if "severity_by_seed" in FIGURES:
        FIGURES.forget("severity_by_seed")


def test_the_page_has_its_order() -> None:
    assert tuple(FIGURES) == PAGE


@pytest.mark.parametrize("name", PAGE)
def test_a_figure_is_named_for_its_module(name: str) -> None:
    assert FIGURES[name].name == name
    assert FIGURES[name].home == f"kdx_analysis.plots.figures.{name}.{name}"
    assert getattr(plots, name) is FIGURES[name]
    assert import_module(f"kdx_analysis.plots.figures.{name}").__name__.endswith(f".{name}")


def test_every_file_of_the_folder_is_a_figure() -> None:
    assert {module.name for module in iter_modules(figures.__path__)} == set(PAGE)


def test_a_name_that_is_no_figure_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'laddr'"):
        _ = plots.laddr
    assert set(PAGE) <= set(dir(plots))


def test_figures_ask_for_the_runs_they_are_about(small: RunSet) -> None:
    students = small.filter(role="student")
    for name, figure in FIGURES.items():
        if name != "training":
            with pytest.raises(AbsentError):
                figure.data(students)


def test_a_users_figure_is_listed_drawn_and_comes_last(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = write_study(tmp_path / "runs", ("hard", "kd"), seeds=1, drawn=True)
    assert len(MINE.strip().splitlines()) <= 25
    listed = CliRunner().invoke(app, ["list", "figures", "--load", str(mine)])
    assert listed.output.splitlines()[-1] == "severity_by_seed: Severity, seed by seed"
    out = tmp_path / "drawn"
    options = ["--out", str(out), "--load", str(mine)]
    drawn = CliRunner().invoke(
        app, ["figure", "severity_by_seed", str(tmp_path / "runs"), *options]
    )
    assert drawn.exit_code == 0, drawn.output
    assert {path.name for path in out.iterdir()} == {"severity_by_seed.svg", "severity_by_seed.csv"}
    assert list(FIGURES)[-1] == "severity_by_seed"
    few: Registry[Figure] = Registry("figure")  # that the report need not draw all
    for name in FIGURES:
        if name in ("severity_by_seed", "training"):
            few.register(name)(FIGURES[name])
    monkeypatch.setattr(plots, "FIGURES", few)
    page = Report(runs).save_html(tmp_path / "report").read_text()
    assert page.index('id="kdx-figure-training"') < page.index('id="kdx-figure-severity_by_seed"')


def test_a_metric_that_is_declared_is_drawn_with_its_unit_and_range(make: Make) -> None:
    runs = make(("hard", "kd"), (0, 1))
    for run in runs.filter(role="explainer"):
        summary = run.record("conflict_summary")
        summary.loc[summary["metric"] == "severity", "metric"] = "votes_lost"
    declare = metric(
        "votes_lost",
        reads="cosines",
        title="votes lost",
        unit="share of votes",
        range=(0, 1),
        conflict=True,
    )
    declare(lambda cosines: cosines.amin(dim=(-2, -1)))
    try:
        panels = {}
        for figure in (plots.ladder, plots.differences, plots.accuracy_conflict):
            _, axes = figure(runs)
            panels[figure.name] = next(
                ax for ax in axes if "votes lost" in ax.get_title(loc="left")
            )
    finally:
        METRICS.forget("votes_lost")
    assert panels["ladder"].get_ylabel() == "share of votes\nin [0, 1], train"
    assert panels["differences"].get_xlabel() == "share of votes"
    assert panels["accuracy_conflict"].get_xlabel().startswith("share of votes\nρ")
