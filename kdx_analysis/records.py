"""Kinds of records: the columns of every tidy table that a run holds.

They are declared beside what writes the table. A record has key columns, which say what a row is
about, and value columns, each with what it is, its unit and its range. :func:`check` holds a table
against its kind when it is written and when it is read, and names the column that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import Registry

NULL_COLUMNS = ("null_mean", "null_low", "null_high", "null_undefined")

# Rounding may take shares and cosines this far beyond their range: rows of attention come from a
# softmax in float32, whose sum is 1 up to some 1e-7, and pathways are products of several of them.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Column:
    """One column of a kind of record.

    Attributes:
        name: of the column.
        doc: what it holds, in a few words.
        holds: ``number`` (NaN where it is undefined), ``count`` (a whole number) or ``text``.
        low, high: its range, ends included.
        optional: whether a table may lack it, as those written before there was such a column do.
    """

    name: str
    doc: str
    holds: Literal["number", "count", "text"] = "number"
    low: float = -inf
    high: float = inf
    optional: bool = False

    def wrong(self, values: pd.Series) -> str:
        """What is wrong with the values, in words; '' where nothing is."""
        if self.holds == "text":
            odd = [value for value in values.unique() if not isinstance(value, str)]
            return f"holds {odd[0]!r}, which is no text" if odd else ""
        if not pd.api.types.is_numeric_dtype(values):
            return f"holds {values.iloc[0]!r}, which is no number" if len(values) else ""
        known = values[values.notna()].to_numpy(dtype=float)
        if self.holds == "count" and (len(known) < len(values) or (known != np.floor(known)).any()):
            return "holds numbers that are not whole"
        outside = known[(known < self.low - _ROUNDING) | (known > self.high + _ROUNDING)]
        return (
            f"holds {outside[0]:.6g}, outside of {self.low:g} to {self.high:g}"
            if len(outside)
            else ""
        )


def number(name: str, doc: str, low: float = -inf, high: float = inf, **options: Any) -> Column:
    """A column of numbers from ``low`` to ``high``, NaN where they are undefined.

    ``name``, ``doc`` and the other ``options`` are fields of :class:`Column`.
    """
    return Column(name, doc, "number", low, high, **options)


def count(name: str, doc: str, low: float = 0, high: float = inf, **options: Any) -> Column:
    """A column of whole numbers from ``low`` to ``high``.

    ``name``, ``doc`` and the other ``options`` are fields of :class:`Column`.
    """
    return Column(name, doc, "count", low, high, **options)


def text(name: str, doc: str, **options: Any) -> Column:
    """A column of text; ``name``, ``doc`` and ``options`` are fields of :class:`Column`."""
    return Column(name, doc, "text", **options)


EPOCH = count("epoch", "of the training, from 1; 0 before it")
SPLIT = text("split", "that the images are of: train, val or test")
UNDEFINED = count(
    "undefined", "values of the row that are NaN, or pairs that could not go into it", optional=True
)
DRAWS = count("null_draws", "draws of the null", optional=True)
IMAGES = count("n", "images, or what the metric counts")
NULL = (
    number("null_mean", "mean of the null's draws"),
    number("null_low", "lower end of the range that holds one more draw with 95 %; NaN below 39"),
    number("null_high", "upper end of that range"),
    count("null_undefined", "draws that are NaN", optional=True),
)


@dataclass(frozen=True)
class Kind:
    """A kind of record.

    Attributes:
        name: of the kind, and of its file in a run.
        doc: what a row is, in a sentence.
        keys: the columns that say what a row is about.
        values: the columns that say what was found.
        null: whether the columns of a null stand beside the values.
        home: where it is declared.
    """

    name: str
    doc: str
    keys: tuple[Column, ...]
    values: tuple[Column, ...]
    null: bool = False
    home: str = ""

    @property
    def columns(self) -> tuple[Column, ...]:
        """All of them, in the order in which they are told."""
        return (*self.keys, *self.values, *(NULL if self.null else ()))


RECORDS: Registry[Kind] = Registry(
    "kind of record",
    rooms=(
        "kdx_analysis.training.loop",
        "kdx_analysis.models.tree.record",
        "kdx_analysis.probes.gates.probe",
        "kdx_analysis.probes.agreement",
        "kdx_analysis.probes.conflict.probe",
        "kdx_analysis.probes.claims",
        "kdx_analysis.probes.affinity",
        "kdx_analysis.probes.vam",
        "kdx_analysis.probes",
    ),
)


def kind(
    name: str,
    doc: str,
    *,
    keys: Sequence[Column],
    values: Sequence[Column],
    null: bool = False,
    home: str,
) -> Kind:
    """Declare a kind of record; ``home`` is the ``__name__`` of the module that writes it.

    ``name``, ``doc``, ``keys``, ``values`` and ``null`` are as in :class:`Kind`.
    """
    declared = Kind(name, doc, tuple(keys), tuple(values), null, f"{home}.{name}")
    return RECORDS.register(name)(declared)


def check(name: str, frame: pd.DataFrame, source: str = "") -> pd.DataFrame:
    """``frame``, if it is of the kind ``name``.

    Args:
        name: one of RECORDS.
        frame: the table.
        source: where it is from, for errors.

    Raises:
        KdxError: an unknown kind, a column that is missing, is not declared, or holds what it
            can't, by its name.
    """
    declared = {column.name: column for column in RECORDS[name].columns}
    at = f"{source}: " if source else ""
    for column in declared.values():
        if column.name not in frame:
            if column.optional:
                continue
            raise KdxError(
                f"{at}records of the kind {name!r} lack the column {column.name!r} ({column.doc})"
            )
        if why := column.wrong(frame[column.name]):
            raise KdxError(f"{at}column {column.name!r} of {name!r} records {why} ({column.doc})")
    if unknown := [column for column in frame if column not in declared]:
        raise KdxError(
            f"{at}records of the kind {name!r} have no column {unknown[0]!r}; they have "
            f"{', '.join(declared)}"
        )
    return frame


def with_undefined(table: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """``table`` with a column ``undefined`` behind them: how many of a row's ``values`` are NaN."""
    counted = table.copy()
    counted.insert(
        list(table).index(values[-1]) + 1, "undefined", table[list(values)].isna().sum(axis=1)
    )
    return counted
