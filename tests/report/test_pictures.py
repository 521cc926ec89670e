"""Which figures a report draws, and which it takes over from an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdx_analysis import plots
from kdx_analysis.data.sources import CIFAR100_SUPERCLASSES
from kdx_analysis.plots.figure import Figure
from kdx_analysis.plots.workers import Job
from kdx_analysis.registry import Registry
from kdx_analysis.report import Report, kept
from kdx_analysis.runs import RunSet
from tests.plots.conftest import LADDER, write_all
from tests.report.conftest import Write

Draw = Callable[[RunSet], list[str]]


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Writes the report into one folder; gives the names of the figures that were drawn."""
    figures: Registry[Figure] = Registry("figure")
    for name in ("entropy", "training"):
        figures.register(name)(plots.FIGURES[name])
    monkeypatch.setattr(plots, "FIGURES", figures)
    names: list[str] = []
    drawn = Job.drawn

    def counted(job: Job) -> dict[str, bytes]:
        names.append(job.figure.name)
        return drawn(job)

    monkeypatch.setattr(Job, "drawn", counted)

    def write(runs: RunSet) -> list[str]:
        names.clear()
        Report(runs).save_html(tmp_path / "out", jobs=1)
        return sorted(names)

    return write


def test_unchanged_runs_draw_nothing_again(write: Write, draw: Draw, tmp_path: Path) -> None:
    runs = write(("hard", "kd"), seeds=1, drawn=True)
    assert draw(runs) == ["entropy", "training"]
    page = (tmp_path / "out/report.html").read_text()
    assert draw(runs) == []
    assert (tmp_path / "out/report.html").read_text() == page


def test_only_what_a_run_adds_to_is_drawn_again(write: Write, draw: Draw) -> None:
    draw(write(("hard",), seeds=1, drawn=True))
    assert draw(write(("hard", "kd"), seeds=1, drawn=True, roles=("student",))) == ["training"]


def test_a_picture_that_was_damaged_or_lost_is_drawn_again(
    write: Write, draw: Draw, tmp_path: Path
) -> None:
    runs, figures = write(("hard",), seeds=1, drawn=True), tmp_path / "out/figures"
    draw(runs)
    (figures / "entropy.png").write_bytes(b"damaged")
    (figures / "training.svg").unlink()
    assert draw(runs) == ["entropy", "training"]
    (figures / kept.MANIFEST).write_text("[")
    assert draw(runs) == ["entropy", "training"]


def test_other_code_draws_again(write: Write, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write(("hard",), seeds=1, drawn=True)
    draw(runs)
    monkeypatch.setattr(kept, "_code", lambda: "other")
    assert draw(runs) == ["entropy", "training"]


@pytest.mark.slow
def test_thirty_runs_of_a_hundred_classes_are_one_page(tmp_path: Path) -> None:
    classes = [name for members in CIFAR100_SUPERCLASSES.values() for name in members]
    runs = write_all(tmp_path / "study", LADDER[:5], (0, 1, 2), classes, ("binary",), (1, 4, 8))
    assert len(runs) == 31  # with the teacher
    for run in runs:
        run.info["data"]["sizes"] = {"train": 30, "val": 9, "test": 80}
    report = Report(runs)
    report.save_html(tmp_path / "out", jobs=2)
    names = {picture.name for picture in report.album.pictures}
    assert {"conflict", "entropy", "gates", "training", "tree_agreement"} <= names
    again = Report(runs)
    again.save_html(tmp_path / "out", jobs=1)
    assert again.album.kept == names
    assert [each.files for each in again.album.pictures] == [
        each.files for each in report.album.pictures
    ]
