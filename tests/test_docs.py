"""API reference and README: everything public is documented, and what they name is there."""

from __future__ import annotations

import ast
import doctest
import html
import importlib.util
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import typer
import yaml

import kdx_analysis as kdx
from kdx_analysis import cli, plots, probes
from kdx_analysis.errors import KdxError
from kdx_analysis.objectives import check_objectives
from kdx_analysis.plots import FIGURES
from kdx_analysis.probes import agreement
from kdx_analysis.probes.contract import check_sections

ROOT = Path(kdx.__file__).parents[1]
README = ROOT / "README.md"
HOUSE_WORDS = (
    "scores",
    "teacher_scores",
    "ax",
    "classes",
    "config",
    "data",
    "data_dir",
    "folder",
    "generator",
    "groups",
    "image_shape",
    "images",
    "labels",
    "margins",
    "model",
    "num_classes",
    "path",
    "record",
    "residuals",
    "run",
    "runs",
    "seed",
    "subtask",
    "teacher_logits",
)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load(ROOT / "tools" / "reference.py")
gallery = load(ROOT / "tools" / "gallery.py")


def everything_public() -> Iterator[tuple[str, Any]]:
    """(dotted name, object) of all functions, classes, methods and properties that the reference
    shows, once each.
    """
    seen: set[int] = set()
    for module in reference.modules():
        for name, shown in reference.public(module).items():
            if id(shown) in seen or not (inspect.isfunction(shown) or isinstance(shown, type)):
                continue
            seen.add(id(shown))
            where = f"{module.__name__}.{name}"
            yield where, shown
            if isinstance(shown, type) and shown.__module__.startswith("kdx_analysis"):
                for member, value in vars(shown).items():
                    unwrapped = getattr(value, "__func__", getattr(value, "fget", None)) or value
                    if not member.startswith("_") and inspect.isfunction(unwrapped):
                        yield f"{where}.{member}", unwrapped


PUBLIC = dict(everything_public())
FUNCTIONS = {name: shown for name, shown in PUBLIC.items() if inspect.isfunction(shown)}


def raises(function: FunctionType) -> bool:
    """Whether the body itself raises a KdxError."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [
        ast.unparse(node.exc)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
    ]
    return any(text.startswith(("KdxError(", "unknown(")) for text in raised)


def unexplained(function: FunctionType) -> list[str]:
    """Arguments without a shape that the docstring does not name and that are no words of the
    house.

    A single argument is what the first line speaks of.
    """
    told = inspect.getdoc(function) or ""
    arguments = [
        a for a in inspect.signature(function).parameters.values() if a.name not in ("self", "cls")
    ]
    return [
        a.name
        for a in arguments
        if len(arguments) > 1
        and a.name not in HOUSE_WORDS
        and not re.search(rf"\b{a.name}\b", told)
        and not re.search(r"\b(Float|Int|Bool|Int64|Shaped)\[", str(a.annotation))
    ]


def test_everything_public_has_a_docstring_of_its_own():
    assert len(PUBLIC) > 200
    bare = [name for name, shown in PUBLIC.items() if not vars(shown).get("__doc__", shown.__doc__)]
    assert bare == []
    assert [module.__name__ for module in reference.modules() if not module.__doc__] == []


def test_arguments_are_explained():
    found = {
        name: missing for name, function in FUNCTIONS.items() if (missing := unexplained(function))
    }
    assert found == {}


def test_errors_are_told():
    silent = [
        name
        for name, shown in FUNCTIONS.items()
        if raises(shown) and "KdxError" not in (shown.__doc__ or "")
    ]
    assert silent == []


def test_the_checks_find_what_is_missing():
    def bad(model, threshold):
        """Does things."""
        raise KdxError("no")

    assert unexplained(bad) == ["threshold"]
    assert raises(bad)


def test_words_of_the_house_are_explained_on_the_first_page():
    for word in HOUSE_WORDS:
        assert re.search(rf"``{word}``", kdx.__doc__), word


def with_doctests() -> list[str]:
    files = (ROOT / "kdx_analysis").rglob("*.py")
    return [
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for f in files
        if ">>> " in f.read_text()
    ]


@pytest.mark.parametrize("name", with_doctests())
def test_doctests(name):
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, extraglobs={"torch": sys.modules["torch"]})
    assert failed == 0
    # A decorator that hides a function's module would hide its examples, too.
    written = re.findall(r"^\s*>>> (?!.*\+SKIP)", inspect.getsource(module), flags=re.MULTILINE)
    assert tried == len(written)


def built(out: Path) -> dict[str, str]:
    """The reference's files by name; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {path.relative_to(out).as_posix(): path.read_text() for path in reference.write(out)}


def test_pages_of_the_reference_show_captions_pictures_and_shapes(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "modules", lambda: iter((plots, probes, agreement)))
    pages = built(tmp_path)
    figures = pages["kdx_analysis/plots.html"]
    assert html.escape(FIGURES["ladder"].caption[:60]) in figures
    for name in FIGURES:
        assert f'alt="{name}"' in figures, name
    for name in set(gallery.RESULTS) - {"Tree"}:  # which stands on the page of models
        assert f'alt="{name}"' in pages["kdx_analysis/probes.html"], name
    assert "K K" in pages["kdx_analysis/probes/agreement.html"]


@pytest.mark.slow
def test_the_whole_reference_builds(tmp_path):
    pages = built(tmp_path)
    assert len(pages) > 25
    assert all(pages.values())


def test_every_figure_and_result_has_a_picture():
    folder = ROOT / "docs" / "figures"
    assert {path.stem for path in folder.glob("*.png")} == set(FIGURES)
    assert {path.stem for path in (folder / "results").glob("*.png")} == set(gallery.RESULTS)


def test_the_tour_is_that_of_the_declarations():
    readme = README.read_text()
    assert gallery.tour() in readme
    assert gallery.with_tour(readme) == readme


def test_the_gallery_is_small():
    pictures = (ROOT / "docs" / "figures").rglob("*.png")
    assert sum(picture.stat().st_size for picture in pictures) < 1_500_000


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)|(?:src|href)=\"([^\"]+)", README.read_text())
    assert links
    for link in (first or second for first, second in links):
        assert "://" in link or (ROOT / link).exists(), link


def test_the_study_that_is_shown_is_one():
    (text,) = re.findall(r"^```yaml\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    config = kdx.StudyConfig.parse(yaml.safe_load(text))
    check_objectives(config.objectives)
    check_sections(config.probes)
    assert config.probes.sections == {"conflict": {"null_draws": 199}, "affinity": False}


def moved_modules() -> list[str]:
    """The dotted names on the right of CHANGELOG.md's table; one with a dot first is a sibling."""
    text = (ROOT / "CHANGELOG.md").read_text()
    names = []
    rows = re.findall(r"^  \| `.+ \| (`.+`) \|$", text, re.MULTILINE)
    for row in rows:
        room = ""
        for name in re.findall(r"`([^`]+)`", row):
            room = room if name.startswith(".") else name.rpartition(".")[0]
            names.append(f"{room}{name}" if name.startswith(".") else name)
    return names


def test_modules_are_where_the_changelog_says():
    assert len(moved_modules()) > 50
    for name in moved_modules():
        importlib.import_module(f"kdx_analysis.{name}")


def test_commands_exist():
    known = set(typer.main.get_command(cli.app).commands)
    named = re.findall(r"(?:^|`)kdx ([a-z][a-z-]*)", README.read_text(), flags=re.MULTILINE)
    assert set(named) <= known
    made = re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(), flags=re.MULTILINE)
    assert set(made) <= set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )
