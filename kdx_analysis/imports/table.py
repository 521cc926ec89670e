"""A CSV: tidy (a row an observation), or a row a run, or a row a run and epoch."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.imports.chart import read_chart
from kdx_analysis.imports.names import KEYS, Names, SourceRun
from kdx_analysis.imports.units import surely_metric
from kdx_analysis.registry import unknown

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)*|[.,]\d+)\s*%?")
_NAN = re.compile(r"[+-]?(nan|1\.#(ind|qnan))", re.IGNORECASE)


def read_csv(path: Path, text: Collection[str] = ()) -> pd.DataFrame:
    """A CSV as a frame, with the columns ``text`` as they are written.

    A float would round a large seed. Raises KdxError if it can't be read, holds no row, or has
    columns that something else than commas parts.
    """
    try:
        table = pd.read_csv(path, skipinitialspace=True, dtype=dict.fromkeys(text, str))
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise KdxError(
            f"cannot read {str(path)!r} as a CSV: {' '.join(str(error).split())}"
        ) from None
    if table.empty:
        raise KdxError(f"{str(path)!r} has no rows")
    header = (
        pd.read_csv(path, skipinitialspace=True, header=None, nrows=1, dtype=str).iloc[0].dropna()
    )
    if len(twice := header[header.duplicated()]):  # pandas would give the second another name
        raise KdxError(
            f"{str(path)!r} has two columns {twice.iloc[0]!r}: rename one of them, or remove it"
        )
    if len(table.columns) == 1 and (
        parted := [mark for mark in (";", "\t") if mark in str(table.columns[0])]
    ):
        raise KdxError(
            f"the columns of {str(path)!r} are parted by {parted[0]!r}: part them by commas"
        )
    return table


def _nans(path: Path, renamed: Mapping[str, str]) -> pd.DataFrame:
    """Which cells of a CSV say that they are no number, and are not just empty.

    A loss that diverged says so.
    """
    cells = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True).rename(
        columns=renamed
    )
    undefined: pd.DataFrame = cells.apply(lambda column: column.str.fullmatch(_NAN))
    return undefined


def read_table(path: Path, names: Names) -> list[SourceRun]:
    """The runs of a CSV.

    It is tidy if it has the columns metric and value (and split, unless the metrics' names say it).
    Otherwise every metric is a column, and a row is a run, or an epoch of one where there is a
    column ``epoch`` (or ``step``). Rows belong to one run if they agree in the run keys and in
    ``run``, where there are such columns. Columns that are neither key nor metric are settings
    where they are constant within a run. An empty cell holds no value; one that says nan does. The
    CSV of a chart of Weights & Biases is read as :func:`read_chart` says.
    """
    table = read_csv(path, names.columns_of(*KEYS, "run"))
    chart = read_chart(path, table, names)
    renamed: Mapping[str, str] = {}
    dropped: tuple[str, ...] = ()
    if chart is not None:
        table, renamed, dropped = chart.table, chart.renamed, chart.left_out
    form = _form(path, table, names)
    long, percent = _observations(path, table, form, names, renamed)
    runs = []
    for name, rows in _groups(table, form.keys):
        constant = [c for c in form.settings if rows[c].nunique(dropna=False) == 1]
        said = {c: _plain(rows[c].iloc[0]) for c in (*form.keys, *constant)}
        varying = [c for c in form.settings if c not in constant]
        runs.append(
            SourceRun(
                name,
                {c: value for c, value in said.items() if value is not None},
                long[long.index.isin(rows.index)].reset_index(drop=True),
                epochs=form.step is not None and form.step == names.column("epoch"),
                left_out=(*dropped, *varying),
                percent=percent,
            )
        )
    return runs


@dataclass(frozen=True)
class _Form:
    """What the columns of a CSV are.

    Attributes:
        tidy: whether a row is an observation; otherwise every metric is a column.
        keys: that rows of one run agree in.
        step: that counts epochs or steps, if there is one.
        metrics: of a CSV that isn't tidy.
        settings: that are neither key nor metric.
    """

    tidy: bool
    keys: list[str]
    step: str | None
    metrics: list[str]
    settings: list[str]


def _form(path: Path, table: pd.DataFrame, names: Names) -> _Form:
    _refuse_missing(path, table, names)
    tidy = names.columns_of("metric", "value") <= set(table.columns)
    special = names.columns_of(*KEYS, "run")
    steps = [column for column in (names.column("epoch"), "step") if column in table]
    counting = {"step"} | names.columns_of("epoch", "n")
    if tidy:
        counting |= names.columns_of("split", "metric", "value")
    rest = [str(c) for c in table.columns if c not in special | counting]
    metrics = [c for c in rest if _is_metric(table, c, names)]
    settings = [c for c in rest if c not in metrics]
    if not tidy:
        _refuse_without_split(path, table, settings)
    elif metrics:
        raise KdxError(
            f"{path.name} has columns metric and value, and {metrics[0]!r} too, which looks like a "
            "metric of its own: remove one form"
        )
    keys = [c for c in table.columns if c in special]
    return _Form(tidy, keys, steps[0] if steps else None, metrics, settings)


def _refuse_missing(path: Path, table: pd.DataFrame, names: Names) -> None:
    """A name that the user gave has to be a column, or, of a metric, a cell of a tidy CSV."""
    tidy = names.column("metric") in table
    for name in (*names.columns.values(), *names.metrics):
        if name not in table and not (tidy and name in names.metrics):
            raise unknown(f"column of {path.name}", name, map(str, table.columns))


def _observations(
    path: Path, table: pd.DataFrame, form: _Form, names: Names, renamed: Mapping[str, str]
) -> tuple[pd.DataFrame, frozenset[str]]:
    """One row an observation: name, value, step, n, by the row of the table that it comes from.

    Beside them the names whose values are written with a percent sign.
    """
    nans = _nans(path, renamed)
    if form.tidy:
        long, diverged = _tidy(table, names), nans[names.column("value")]
    else:
        long = _melted(path, table, form.metrics)
        diverged = nans[form.metrics].melt()["value"]
    # What is empty was not measured; what says nan was, and diverged.
    long = long[long["value"].notna() | diverged.to_numpy()].copy()
    long["value"], signed = numbers(path, long["value"], "value")
    percent = _percent(path, long, signed)
    long["step"] = table[form.step] if form.step else float("nan")
    long["n"] = table[names.column("n")] if names.column("n") in table else float("nan")
    for column in ("step", "n"):
        long[column], _ = numbers(path, long[column], column)
    return long, percent


def _is_metric(table: pd.DataFrame, column: str, names: Names) -> bool:
    """Whether a column is mapped to a metric, or is named for one of a split and holds numbers."""
    named = names.reading(column) is not None and _measures(table, column)
    return column in names.metrics or named


def _refuse_without_split(path: Path, table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a metric whose split can't be told: it is not to become a setting unnoticed."""
    for column in columns:
        if _measures(table, column):
            raise KdxError(
                f"column {column!r} of {path.name} looks like a metric, but its split can't be "
                f"told: map it, as {column}=test/accuracy, or rename it"
            )


def _measures(table: pd.DataFrame, column: str) -> bool:
    """Whether a column is named for a metric and holds numbers.

    One as ``val_fraction`` is a setting.
    """
    cells = table[column].dropna()
    return surely_metric(column) and (cells.empty or bool(cells.map(_is_number).any()))


def _tidy(table: pd.DataFrame, names: Names) -> pd.DataFrame:
    metric = table[names.column("metric")].astype(str)
    if (split := names.column("split")) in table:
        metric = table[split].astype(str) + "/" + metric
    return pd.DataFrame({"name": metric, "value": table[names.column("value")]})


def _melted(path: Path, table: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """One row a row and metric, with the index of the row that it comes from."""
    if not metrics:
        raise KdxError(
            f"no column of {path.name} is a metric of a split "
            f"({', '.join(map(str, table.columns[:8]))}); map one, as COLUMN=test/accuracy"
        )
    return table[metrics].melt(var_name="name", ignore_index=False)


def _groups(table: pd.DataFrame, by: list[Any]) -> list[tuple[str, pd.DataFrame]]:
    """Rows by run, with the line of each run's first row (the header is line 1)."""
    groups: list[tuple[Hashable, pd.DataFrame]] = (
        list(table.groupby(by, dropna=False, sort=False)) if by else [((), table)]
    )
    return [(f"line {int(rows.index[0]) + 2}", rows) for _, rows in groups]


def _is_number(cell: Any) -> bool:
    """Whether a cell is a number, with a percent sign or with a comma for a point, too."""
    return not pd.isna(cell) and (
        not isinstance(cell, str) or _NUMBER.fullmatch(cell.strip()) is not None
    )


def numbers(path: Path, column: pd.Series, name: str) -> tuple[pd.Series, pd.Series]:
    """A column as floats, and which of its cells end in a percent sign, which is taken off.

    Raises KdxError for what is no number, or is one with a comma, with its line.
    """
    texts = column.map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
    signed = texts.map(lambda cell: isinstance(cell, str) and cell.endswith("%")).astype(bool)
    values = pd.to_numeric(
        texts.where(~signed, texts.astype(str).str.rstrip("% ")), errors="coerce"
    )
    wrong = column[values.isna() & column.notna()]
    if len(wrong):
        cell, where = wrong.iloc[0], f"in line {int(wrong.index[0]) + 2} of {path.name}"
        if "," in str(cell) and _is_number(cell):
            raise KdxError(
                f"{cell!r} {where} has a comma: write a decimal point, and nothing for thousands"
            )
        raise KdxError(f"{cell!r} {where} is no number, which a {name} has to be")
    return values.astype(float), signed


def _percent(path: Path, long: pd.DataFrame, signed: pd.Series) -> frozenset[str]:
    """Names all of whose values are written with a percent sign; KdxError where only some are."""
    measured = long["value"].notna()
    some, every = (set(long.loc[mask & measured, "name"]) for mask in (signed, ~signed))
    if mixed := sorted(some & every):
        raise KdxError(
            f"some values of {mixed[0]!r} in {path.name} are written with a percent sign and some "
            "without: write all of them alike"
        )
    return frozenset(some)


def _plain(value: Any) -> Any:
    """A cell as a plain Python value; None for an empty one."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
