"""The API reference, made by pdoc from the docstrings: ``make docs``.

``python tools/reference.py FOLDER`` writes it into FOLDER.
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
from kdx_analysis import plots
from kdx_analysis.plots import Figure

ROOMS = (
    "registry",
    "extensions",
    "records",
    "metrics",
    "config",
    "drawing.style",
    "data",
    "models",
    "objectives",
    "training",
    "training.loggers",
    "probes",
    "runs",
    "imports",
    "plots",
    "plots.figure",
    "report",
    "study",
)
PICTURES = Path(__file__).parents[1] / "docs" / "figures"


def public(module: ModuleType) -> dict[str, object]:
    """What a module shows: by ``__all__``, else what it defines without an underscore.

    Of ``plots`` these are the figures too, which are found when they are first used.
    """
    names = getattr(module, "__all__", None)
    if module is plots:
        names = [*plots.__all__, *(name for name in plots.FIGURES if name not in plots.__all__)]
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
    for lazy in (kdx, plots):  # what is imported when first used, since pdoc looks without using
        vars(lazy).update(public(lazy), __all__=list(public(lazy)))
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
    """Give figures their own docstrings in place of their class's, and show what ``make gallery``
    drew of them and of results.
    """
    for member in page.members.values():
        shown, picture = getattr(page.obj, member.name), PICTURES / "results" / f"{member.name}.png"
        if isinstance(shown, Figure):
            member.docstring = inspect.getdoc(shown) or ""
            member.default_value, member.annotation = empty, Figure
            picture = PICTURES / f"{shown.name}.png"
        if picture.exists() and not isinstance(shown, ModuleType):
            member.docstring += f"\n\n![{picture.stem}]({picture.resolve()})"


if __name__ == "__main__":
    print(f"{len(write(Path(sys.argv[1])))} files in {sys.argv[1]}")
