"""The CSV of one chart of Weights & Biases.

It has a column a run, named ``RUN - METRIC``, and its __MIN and __MAX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import Names

_BETWEEN = " - "
_BOUNDS = ("__MIN", "__MAX")


@dataclass(frozen=True)
class Chart:
    """The one run of a chart's CSV: its metrics under their own names.

    The run's name stands in a column ``run``.
    """

    table: pd.DataFrame
    renamed: Mapping[str, str]
    left_out: tuple[str, ...]


def read_chart(path: Path, table: pd.DataFrame, names: Names) -> Chart | None:
    """A table read as a chart's, or None if it is none.

    It is one where a column has its __MIN and __MAX beside it, or where what follows ``RUN - `` in
    a column's name is the metric of a split. A column that is mapped by its whole name keeps it,
    and where only columns of one run are, the other runs' are left out.

    Raises KdxError for several runs, of which a chart tells neither objectives nor seeds, and for
    values that are means, since their minimum or maximum is another.
    """
    texts = [str(column) for column in table.columns]
    curves = _curves(texts, names)
    if not curves:
        return None
    run, chosen = _one_run(path, curves, names)
    for text in chosen:
        _refuse_mean(path, table, text)
    dropped = [text for text in curves if text not in chosen]
    dropped += [text for text in texts if text.endswith(_BOUNDS) and _bounded(text) in curves]
    renamed = {text: _metric(text) for text in chosen if text not in names.metrics}
    kept = table.drop(columns=dropped).rename(columns=renamed)
    if len(twice := kept.columns[kept.columns.duplicated()]):
        raise KdxError(
            f"{path.name} holds {twice[0]!r} alone and after the name of a run: remove one of the "
            "columns"
        )
    return Chart(kept.assign(**{names.column("run"): run}), renamed, tuple(dropped))


def _curves(texts: Sequence[str], names: Names) -> list[str]:
    """The columns that hold a run's values, of a chart; none of another table."""
    bounded = {_bounded(text) for text in texts if text.endswith(_BOUNDS)}
    curves = []
    for text in texts:
        if _BETWEEN not in text or text.endswith(_BOUNDS):
            continue
        if text in bounded or names.reading(_metric(text)) is not None:
            curves.append(text)
    return curves


def _one_run(path: Path, curves: list[str], names: Names) -> tuple[str, list[str]]:
    """The run that a chart is read for, and its columns: the only one, or the only one mapped."""
    mapped = {_run(text) for text in curves if text in names.metrics}
    chosen = [text for text in curves if _run(text) in mapped] if len(mapped) == 1 else curves
    runs = sorted({_run(text) for text in chosen})
    if len(runs) > 1:
        raise KdxError(
            f"{path.name} is a chart of {len(runs)} runs ({', '.join(runs[:4])}), and says no "
            "objective and seed of each: import them one by one, each with its own keys and its "
            f"columns by name, as '{chosen[0]}=test/accuracy%'"
        )
    return runs[0], chosen


def _bounded(column: str) -> str:
    """The column whose minimum or maximum a column ``…__MIN`` or ``…__MAX`` is."""
    return column[: -len(_BOUNDS[0])]


def _run(column: str) -> str:
    return column.rpartition(_BETWEEN)[0]


def _metric(column: str) -> str:
    return column.rpartition(_BETWEEN)[2]


def _refuse_mean(path: Path, table: pd.DataFrame, column: str) -> None:
    for end in _BOUNDS:
        if column + end not in table:
            continue
        apart = pd.to_numeric(table[column], errors="coerce") - pd.to_numeric(
            table[column + end], errors="coerce"
        )
        if len(line := np.flatnonzero(apart.fillna(0) != 0)):
            raise KdxError(
                f"{column!r} in line {int(line[0]) + 2} of {path.name} is not its own "
                f"{end.strip('_')}, so it is a mean of several runs or steps: export the chart "
                "ungrouped and in full"
            )
