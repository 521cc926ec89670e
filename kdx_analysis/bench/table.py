"""What benches measured, as a table for a screen of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from kdx_analysis.bench.contract import Bench
from kdx_analysis.bench.limits import Limits
from kdx_analysis.bench.running import Row

_WIDTHS = (34, 9, 19, 13, 9, 9)  # of the columns, with a space between each two
_HEADINGS = ("contestant", "ms", "ratio (quartiles)", "target", "limit ms", "peak MB")
_SAYS = {
    "speed": "ratio: times as fast as the first",
    "cost": "ratio: share of the first one's time",
}


class Table:
    """Lines of text, bench by bench, as they are measured."""

    @staticmethod
    def head() -> str:
        """The names of the columns."""
        return _line(_HEADINGS)

    @staticmethod
    def opening(bench: Bench) -> str:
        """What a bench is about."""
        return f"{bench.name}: {bench.title}\n  against {bench.against}; {_SAYS[bench.ratio]}"

    @staticmethod
    def contest(rows: Sequence[Row]) -> str:
        """One contest: how it was run, and a line for each contestant."""
        first = rows[0]
        threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
        how = f"{first.device}, {threads}, {first.precision}, {first.rounds} rounds"
        label = f"{first.contest}; " if first.contest else ""
        return "\n".join([f"  {label}{how}", *(_row(row, row is first) for row in rows)])

    @staticmethod
    def machine(device: str, precision: str, limits: Limits) -> str:
        """The limits that were measured."""
        return (
            f"{device}: {precision} products {limits.matrix / 1e9:.4g} GFLOP/s, "
            f"copies {limits.copy / 1e9:.3g} GB/s (read and written)"
        )


def _row(row: Row, is_plain: bool) -> str:
    ratio = "1" if is_plain else f"{row.ratio:.3g} ({row.low:.3g}–{row.high:.3g})"
    target = ""
    if row.target is not None:
        sign = "≥" if row.kind == "speed" else "≤"
        target = f"{sign}{row.target:g} {'met' if row.met else 'not met'}"
    cells = (
        f"    {row.contestant}",
        _number(row.ms),
        ratio,
        target,
        _number(row.limit_ms),
        _number(row.peak_mb),
    )
    return _line(cells)


def _number(value: float) -> str:
    """Three digits, or – where there is none.

    >>> _number(1234.5), _number(0.01234), _number(float("nan"))
    ('1234', '0.0123', '–')
    """
    if isnan(value):
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    name, *others = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    return " ".join([name, *others]).rstrip()
