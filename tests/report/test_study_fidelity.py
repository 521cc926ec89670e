"""Fidelity in the report of a study: its place, its figure, its numbers' formulas, its files."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag

from kdx_analysis import plots
from kdx_analysis.plots import FIGURES
from kdx_analysis.registry import Registry
from kdx_analysis.report import Report
from kdx_analysis.report.fidelity_answers import said
from kdx_analysis.runs import RunSet
from kdx_analysis.runs.tables.numbers import tied
from tests.planted_outputs import Nets
from tests.report.conftest import Write, quick_figures, write_study

SCRIPT = "<script>alert(1)</script>"
NETS = Nets()
LADDER = ("hard", "label_smoothing", "hard_T", "kd_shuffled", "kd")
TABLES = {"pairs.csv", "whose.csv", "classes.csv", "images.csv"}


@pytest.fixture(scope="module", autouse=True)
def fidelitys_figure() -> object:
    """Fidelity's figure between two of others, which are quickly drawn or impossible."""
    figures: Registry[plots.Figure] = quick_figures()
    figures.register("fidelity")(FIGURES["fidelity"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FIGURES", figures)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> RunSet:
    classes = (SCRIPT, "a & b", *NETS.names[2:])
    folder = tmp_path_factory.mktemp("study") / "study"
    return write_study(folder, LADDER, nets=NETS, classes=classes)


@pytest.fixture(scope="module")
def path(runs: RunSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Report(runs).save_html(tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def page(path: Path) -> Tag:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_fidelitys_answer_comes_first(runs: RunSet, page: Tag) -> None:
    assert page.h1.get_text() == "What did the student get from the teacher?"  # type: ignore[union-attr]
    answers = page.select("div.answer")
    sentences = [p.get_text() for p in answers[0].find_all("p", recursive=False)]
    assert sentences[:4] == list(map(tied, said(runs.fidelity("student"))))
    headings = [each.get_text() for each in page.select("section[aria-label=Answer] h2")]
    assert headings == ["The same, asked of explainers", "What happened inside"]


def test_the_explainers_answer_stands_apart(runs: RunSet, page: Tag) -> None:
    second = page.select("div.answer")[1]
    sentences = [p.get_text() for p in second.find_all("p", recursive=False)]
    assert sentences[:4] == list(map(tied, said(runs.fidelity("explainer"), "explainers")))
    assert second.find("figure") is None
    assert sentences[:1] != [page.select("div.answer")[0].p.get_text()]  # type: ignore[union-attr]


def test_its_figure_is_shown_once_beside_the_answer(page: Tag) -> None:
    (figure,) = page.select("#kdx-figure-fidelity")
    assert figure.find_parent("div", class_="answer") is page.select("div.answer")[0]
    assert figure.img["src"].startswith("data:image/")  # type: ignore[index,union-attr]
    assert len(page.select("#kdx-figure-plain")) == 1


def test_every_number_of_fidelity_names_its_formula(page: Tag) -> None:
    numbered = 0
    for name in ("kdx-whose", "kdx-levels", "kdx-classes", "kdx-images"):
        section = page.find(id=name).find_parent("section")  # type: ignore[union-attr]
        for cell in section.select("td"):  # type: ignore[union-attr]
            if re.search(r"\d", cell.get_text()):
                assert cell.has_attr("data-formula") or cell.find_parent(
                    attrs={"data-formula": True}
                ), cell
                numbered += 1
    assert numbered > 100
    for answer in page.select("div.answer")[:2]:
        formulas = str(answer["data-formula"]).split()
        assert "kdx_analysis.probes.fidelity.likeness.instance" in formulas
        assert "kdx_analysis.probes.fidelity.whose.own" in formulas
        assert "kdx_analysis.probes.fidelity.whose.parts" in formulas


def test_names_of_classes_are_escaped(page: Tag, path: Path) -> None:
    assert len(page.select("script")) == 1
    classes = page.find(id="kdx-classes").find_parent("section")  # type: ignore[union-attr]
    shown = {cell.get_text() for cell in classes.select("tbody th")}  # type: ignore[union-attr]
    assert {SCRIPT, "a & b", "class 5"} <= shown
    assert "<script>alert(1)" not in path.read_text()


def test_the_page_needs_no_other_file_but_those_it_links(page: Tag, path: Path) -> None:
    beside = {
        file.relative_to(path.parent).as_posix()
        for file in path.parent.rglob("*")
        if file.is_file() and file != path and not file.name.startswith(".")
    }
    linked = {str(a["href"]) for a in page.select("a[href]")}
    assert beside == {href for href in linked if not href.startswith(("#", "https:"))}
    assert {f"fidelity/{name}" for name in TABLES} <= beside
    assert {f"fidelity/1/{name}" for name in TABLES} <= beside
    for image in page.select("img"):
        assert str(image["src"]).startswith("data:image/")


def test_files_hold_what_the_runs_say(runs: RunSet, path: Path) -> None:
    for folder, role in (("fidelity", "student"), ("fidelity/1", "explainer")):
        whose = pd.read_csv(path.parent / folder / "whose.csv")
        wanted = runs.fidelity(role).whose
        assert whose["value"].to_numpy() == pytest.approx(wanted["value"].to_numpy(), nan_ok=True)


def test_in_a_notebook_it_links_to_no_file(runs: RunSet) -> None:
    shown = BeautifulSoup(Report(runs)._repr_html_(), "html.parser")
    assert not [a["href"] for a in shown.select("a[href]") if ".csv" in str(a["href"])]
    assert shown.select("#kdx-whose")


def test_markdown_has_the_answer_and_the_table(runs: RunSet, tmp_path: Path) -> None:
    text = Report(runs).save_markdown(tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.index("# What did the student get") < text.index("Under kd, students share")
    assert text.index("Under kd, students share") < text.index("The same, asked of explainers")
    assert "## Whose is it?" in text
    assert (tmp_path / "fidelity" / "pairs.csv").exists()


def test_a_study_without_outputs_has_no_such_sections(write: Write) -> None:
    page = BeautifulSoup(Report(write(("hard", "kd"), seeds=1))._repr_html_(), "html.parser")
    assert page.find(id="kdx-whose") is None
    assert "What did the student get from the teacher?" not in page.get_text()
    assert not page.select("#kdx-figure-fidelity")


def test_a_study_without_hard_says_so_and_leaves_its_figure_out(write: Write) -> None:
    runs = write(("hard_T", "kd"), nets=NETS, classes=NETS.names, roles=("student",))
    page = BeautifulSoup(Report(runs)._repr_html_(), "html.parser")
    answer = page.select("div.answer")[0].get_text()
    assert "can't be taken apart into task, kind and own" in answer
    assert not page.select("#kdx-figure-fidelity")
    left_out = page.find(id="kdx-figures").find_parent("section").get_text()  # type: ignore[union-attr]
    assert f"{FIGURES['fidelity'].title}: what students share" in left_out


def test_a_note_on_siblings_stands_below_the_answer(write: Write) -> None:
    runs = write(("hard", "kd"), nets=NETS, classes=NETS.names, roles=("student",), siblings=1)
    run = next(run for run in runs if run.role == "teacher" and run.seed == 1)
    info = run.path / "run.json"
    info.write_text(info.read_text().replace("small_teacher", "<i>large</i>"))
    page = BeautifulSoup(Report(RunSet.load(run.path.parent))._repr_html_(), "html.parser")
    (note,) = page.select("div.answer")[0].select("p.caution")
    assert "The teacher with seed 1 is no sibling of that with seed 0: model is" in note.get_text()
    assert "<i>large</i>" in note.get_text()
    assert not page.select("i")
