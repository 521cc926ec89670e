"""The API reference, made by pdoc from the docstrings: ``make docs``, or ``python docs/reference.py
FOLDER``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from pdoc import doc, render
from pdoc.doc_types import empty

import kdx_analysis as kdx
from kdx_analysis.plots import Figure

ROOMS = (
    "config",
    "data",
    "models",
    "objectives",
    "training",
    "probes",
    "runs",
    "plots",
    "report",
    "study",
)
FIGURES = Path(__file__).parent / "figures"


def public(module: ModuleType) -> dict[str, object]:
    """What a module shows: by ``__all__``, else what it defines without an underscore."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n
            for n, o in vars(module).items()
            if n[0] != "_" and getattr(o, "__module__", "") == module.__name__
        ]
    return {name: getattr(module, name) for name in names}


def modules() -> Iterator[ModuleType]:
    """The package, its rooms, and the modules that these show, each once."""
    seen: set[str] = set()
    waiting: list[ModuleType] = [
        kdx,
        *(importlib.import_module(f"kdx_analysis.{room}") for room in ROOMS),
    ]
    while waiting:
        module = waiting.pop(0)
        if module.__name__ not in seen:
            seen.add(module.__name__)
            yield module
            waiting += [shown for shown in public(module).values() if isinstance(shown, ModuleType)]


def write(out: Path) -> list[Path]:
    """Write a page a module and the search index below ``out``; their paths."""
    render.configure(
        docformat="google", show_source=False, footer_text=f"kdx_analysis {kdx.__version__}"
    )
    vars(kdx).update(public(kdx))  # they are imported when first used, and pdoc looks without using
    pages = {module.__name__: doc.Module(module) for module in modules()}
    for page in pages.values():
        _show_figures(page)
    written = {
        f"{name.replace('.', '/')}.html": render.html_module(page, pages)
        for name, page in pages.items()
    }
    written |= {"index.html": render.html_index(pages), "search.js": render.search_index(pages)}
    for name, text in written.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in written]


def _show_figures(page: doc.Module) -> None:
    """Give figures their own docstrings in place of their class's, and the pictures that ``make
    gallery`` drew.
    """
    for member in page.members.values():
        shown, name = getattr(page.obj, member.name), member.name
        if isinstance(shown, Figure):
            member.docstring, name = inspect.getdoc(shown) or "", shown.name
            member.default_value, member.annotation = empty, Figure
        picture = FIGURES / f"{name}.png"
        if page.modulename.startswith("kdx_analysis.plots") and picture.exists():
            member.docstring += f"\n\n![{name}]({picture.resolve()})"


if __name__ == "__main__":
    print(f"{len(write(Path(sys.argv[1])))} files in {sys.argv[1]}")
