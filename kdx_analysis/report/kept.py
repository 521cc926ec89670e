"""Pictures of an earlier report that are taken over, where the same would be drawn again."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pandas as pd

from kdx_analysis.drawing.style import DOTS
from kdx_analysis.extensions import extension_of, loaded_now
from kdx_analysis.io import read_json, write_json
from kdx_analysis.metrics import METRICS
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.plots.figure import Figure
from kdx_analysis.registry import ENTRY_POINTS, home, is_foreign

MANIFEST = ".drawn.json"  # beside the pictures
_DRAWN_BY = ("matplotlib", "seaborn", "pillow", "numpy", "scipy", "pandas")


def key(figure: Figure, data: pd.DataFrame, csv: bytes) -> str | None:
    """A digest of all that a figure's picture depends on: its table, the code, the libraries.

    The code is all of this package, since a drawing asks registries for titles and colours, and
    every file of the user's own that is loaded. None where code has part in it that no file holds,
    as a figure or an objective that a notebook declares.

    Args:
        figure: whose picture it is.
        data: its table.
        csv: the table as it is written.
    """
    if not is_known_elsewhere(figure) or not is_reproducible():
        return None
    index = b"" if isinstance(data.index, pd.RangeIndex) else data.index.to_frame().to_csv()
    types = repr(list(data.dtypes.items()))
    parts: list[str | bytes] = [figure.name, csv, types, index, repr(data.attrs), _code()]
    parts += [extension.sha256 for extension in loaded_now()]
    return _digest(*parts)


def is_known_elsewhere(thing: Any) -> bool:
    """Whether another process knows it too: it is of this package, a loaded file or installed."""
    module = home(thing).partition(".")[0]
    installed = {point.module.partition(".")[0] for point in _installed()}
    return not is_foreign(thing) or extension_of(thing) is not None or module in installed


def is_reproducible() -> bool:
    """Whether all that figures look up is known elsewhere: objectives and metrics."""
    return all(map(is_known_elsewhere, [*OBJECTIVES.values(), *METRICS.values()]))


class Kept:
    """The pictures in a folder, by figure, with the keys under which they were drawn."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            entries = read_json(folder / MANIFEST)
        except (OSError, ValueError):
            entries = {}
        self._entries = entries if isinstance(entries, dict) else {}

    def files(self, name: str, key: str) -> dict[str, bytes] | None:
        """The pictures of a figure by suffix; None unless both are there as they were drawn."""
        entry = self._entries.get(name)
        if not isinstance(entry, dict) or entry.get("key") != key:
            return None
        files = {}
        for suffix in ("png", "svg"):
            try:
                files[suffix] = (self._folder / f"{name}.{suffix}").read_bytes()
            except OSError:
                return None
            if _digest(files[suffix]) != entry.get(suffix):
                return None
        return files


def write_manifest(folder: Path, drawn: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> None:
    """Say under which keys the pictures in ``folder`` were drawn: figure → key and files."""
    entries = {}
    for name, (under, files) in drawn.items():
        digests = {suffix: _digest(content) for suffix, content in files.items()}
        entries[name] = {"key": under, **digests}
    write_json(folder / MANIFEST, entries)


@cache
def _code() -> str:
    """A digest of this package, of what extends it, and of the versions of what draws."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    parts: list[str | bytes] = [path.read_bytes() for path in sources]
    for point in _installed():
        file = getattr(sys.modules.get(point.module), "__file__", None)
        parts += [point.value, point.dist.version if point.dist else ""]
        parts.append(Path(file).read_bytes() if file else b"")
    versions = {name: version(name) for name in _DRAWN_BY}
    return _digest(*parts, json.dumps(versions), str(DOTS))


@cache
def _installed() -> tuple[Any, ...]:
    return tuple(entry_points(group=ENTRY_POINTS))


def _digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each with its length before it, so that none runs into the next."""
    sha256 = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode()
        sha256.update(b"%d:" % len(content))
        sha256.update(content)
    return sha256.hexdigest()
