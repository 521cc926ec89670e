"""Likeness under shift, on records that are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.drawing.style import Width
from kdx_analysis.errors import AbsentError
from kdx_analysis.io import write_parquet
from kdx_analysis.plots import FIGURES
from kdx_analysis.probes.fidelity.shift import CORRUPTIONS, cells
from kdx_analysis.records import check
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.runs.shifted import beside
from tests.plots.conftest import CLASSES, LADDER, write_one
from tests.plots.legible import faults


def record(run: Run, teachers: list[str], names: list[str]) -> pd.DataFrame:
    """Instance .9 less .1 a severity beside the first teacher, half of that beside others."""
    rows = []
    for name, severity in cells(names):
        rows.append((name, severity, "", "accuracy", 0.95 - 0.1 * severity, np.nan, 80))
        for i, teacher in enumerate(teachers if run.role != "teacher" else ()):
            value = (0.9 - 0.1 * severity + 0.02 * run.seed) / (1 + (i > 0))
            rows += [(name, severity, teacher, metric, value, 0.0, 80) for metric in ("instance",)]
    columns = ["corruption", "severity", "teacher", "metric", "value", "chance", "n"]
    return check("shift", pd.DataFrame(rows, columns=columns))


def asked(folder: Path, objectives: tuple[str, ...], seeds: int, names: list[str]) -> RunSet:
    for seed in (0, 1):  # the own teacher and a sibling
        write_one(folder / "teacher", "teacher", "", seed, CLASSES)
    for objective in objectives:
        for seed in range(seeds):
            for role in ("student", "explainer"):
                write_one(folder / "runs", role, objective, seed, CLASSES)
    runs = RunSet.load(folder)
    teachers = [run.id for run in runs if run.role == "teacher"]
    for run in runs:
        write_parquet(beside(run) / "shift.parquet", record(run, teachers, names))
    return runs


@pytest.mark.parametrize("width", ["page", "column"])
def test_it_is_legible_with_the_whole_ladder(tmp_path: Path, width: Width) -> None:
    figure, axes = plots.FIGURES["shift"](asked(tmp_path, LADDER, 3, list(CORRUPTIONS)), width)
    assert faults(figure, width) == []
    assert axes.size == 20
    assert figure.get_figheight() <= 11


def test_it_draws_own_likeness_against_severity(tmp_path: Path) -> None:
    runs = asked(tmp_path, ("hard", "kd"), 2, ["noise", "blur"])
    data = FIGURES["shift"].data(runs)
    kd = data.query("role == 'student' and objective == 'kd' and metric == 'instance'")
    noise = kd.query("corruption == 'noise' and seed == 0")
    assert list(noise["severity"]) == [0, 1, 2, 3, 4, 5]
    assert noise["value"].to_numpy() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    figure, axes = FIGURES["shift"](runs)
    assert axes.shape == (4, 2)
    assert [ax.get_title(loc="left") for ax in axes[0]] == ["student: noise", "student: blur"]
    lines = [line.get_ydata() for line in axes[0, 0].lines if line.get_linestyle() != "None"]
    (mean,) = {tuple(line) for line in lines if len(line) == 6}
    assert mean == pytest.approx([0.91, 0.81, 0.71, 0.61, 0.51, 0.41])
    assert "2\N{NO-BREAK SPACE}seeds for each objective" in figure.legends[0].get_title().get_text()


def test_a_study_that_asks_nothing_has_no_such_figure(tmp_path: Path) -> None:
    write_one(tmp_path / "runs", "student", "kd", 0, CLASSES)
    with pytest.raises(AbsentError, match="was asked about corrupted"):
        FIGURES["shift"].data(RunSet.load(tmp_path))
