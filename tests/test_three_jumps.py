"""From every number of the report to its formula, by name and through three files at most."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag

from kdx_analysis.metrics import METRICS
from kdx_analysis.report import Report
from tests.planted_arms import write_arms
from tests.planted_outputs import Nets
from tests.report.conftest import write_study

PAGE = (Path(__file__).parents[1] / "docs" / "three_jumps.md").read_text()
MOST_BETWEEN = 3
READ_OFF = ("kdx-provenance", "kdx-methods")  # facts of the runs, and the formulas themselves


def resolved(name: str) -> Any:
    """The thing of a dotted name: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            thing = getattr(thing, attribute)
        return thing
    raise ModuleNotFoundError(name)


def chains() -> dict[str, list[str]]:
    """Number → the functions on the way to its formula, which comes last, from the page's table."""
    rows = re.findall(r"^\| ([a-z ]+) \| (`.*`) \|$", PAGE, re.MULTILINE)
    return {
        number: [f"kdx_analysis.{name}" for name in re.findall(r"`([\w.]+)`", names)]
        for number, names in rows
    }


def names_in(module: Any) -> set[str]:
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in nodes
        if isinstance(node, ast.Name | ast.Attribute)
    }


@pytest.mark.parametrize("number", chains())
def test_the_page_leads_to_the_formula(number: str) -> None:
    *between, formula = chains()[number]
    assert 0 < len(between) <= MOST_BETWEEN
    assert inspect.isfunction(inspect.unwrap(resolved(formula)))
    declared = {metric.home for metric in METRICS.values()}
    for here, following in zip(between, [*between[1:], formula], strict=True):
        assert callable(resolved(here))
        called = {following.rpartition(".")[2]} | ({"METRICS"} if following in declared else set())
        assert called & names_in(inspect.getmodule(resolved(here))), (here, following)


def test_the_page_shows_the_numbers_that_are_asked_for() -> None:
    asked = {"modulation", "contention", "gate entropy", "accuracy"}
    assert set(chains()) >= asked | {"own in the answer", "likeness in the tables"}


@pytest.fixture(scope="module", params=["study", "fidelity", "arms"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tag:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "study":
        runs = write_study(folder, ("hard", "kd_shuffled", "kd"), seeds=2, drawn=True)
    elif request.param == "fidelity":
        nets = Nets()
        objectives = ("hard", "hard_T", "kd_shuffled", "kd")
        runs = write_study(folder, objectives, nets=nets, classes=nets.names, roles=("student",))
    else:
        runs = write_arms(folder, {"kd": {"plain": [0.5, 0.6], "vam": [0.52, 0.65]}})
    return BeautifulSoup(Report(runs)._repr_html_(), "html.parser")


def numbers(report: Tag) -> Iterator[Tag]:
    """Cells, sentences and figures of the report that show a number, but for what is read off."""
    for section in report.find_all("section"):
        heading = section.find("h2")
        if heading is not None and heading.get("id") in READ_OFF:
            continue
        for element in section.find_all(["td", "li", "figure"]):
            if re.search(r"\d", element.get_text()) and not element.find_parent("figure"):
                yield element


def test_every_number_names_functions_that_are_there(report: Tag) -> None:
    shown = list(numbers(report))
    assert len(shown) > 10
    for element in shown:
        named = element if element.has_attr("data-formula") else None
        named = named or element.find_parent(attrs={"data-formula": True})
        assert named is not None, element
    for element in report.find_all(attrs={"data-formula": True}):
        for name in element["data-formula"].split():
            assert callable(resolved(name)), name


def test_cells_of_a_metric_name_its_formula(report: Tag) -> None:
    homes = {metric.home: metric.name for metric in METRICS.values()}
    printed = {code.get_text() for code in report.select("dd code")}
    cells = list(report.select("td[data-formula], tr[data-formula]"))
    named = {cell["data-formula"].split()[0] for cell in cells} & set(homes)
    assert named
    assert named <= printed
