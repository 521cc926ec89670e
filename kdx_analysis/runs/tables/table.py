"""Means over seeds with their intervals, two keys crossed, as a table for a paper."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.intervals import Interval, t_interval
from kdx_analysis.metrics import METRICS, Metric, together
from kdx_analysis.registry import unknown
from kdx_analysis.runs.headlines import preferred
from kdx_analysis.runs.keys import (
    NOT_SET,
    check_key,
    count_teachers,
    in_order,
    known_keys,
    known_teachers,
    value_of,
)
from kdx_analysis.runs.statistics.paired import (
    by_seed,
    comparisons,
    coverage,
    effects,
    side_by_side,
)
from kdx_analysis.runs.tables.grid import EMPTY, Cell, Grid
from kdx_analysis.runs.tables.numbers import decimals_for, listed, number

if TYPE_CHECKING:
    from kdx_analysis.runs.runset import RunSet

METRIC_AXIS = "metric"
ONE_SEED = "With n = 1 there is no interval and nothing is decided."
_FIGURES = ("split", "attention", "mean", "low", "high", "confidence", "n", "over", "null", "bold")
_COMPARED = ("explainer", "student", "tree")


@dataclass(frozen=True)
class Table:
    """Mean, t-interval and n of every cell.

    Attributes:
        rows, columns: the keys that are crossed; one may be 'metric'.
        cells: a row per cell: the value of either key, metric, split, attention, mean, low, high,
            confidence, n, over (the epochs that the mean is over, and what was left out), null,
            bold.
        holds: what the cells hold, in sentences.
        rule: by which they are bold; '' where there is no interval.
    """

    rows: str
    columns: str
    cells: pd.DataFrame
    holds: str
    rule: str

    @property
    def caption(self) -> str:
        """What the cells hold and, where any is bold, by which rule."""
        return " ".join(filter(None, [self.holds, self.rule]))

    def to_frame(self) -> pd.DataFrame:
        """The cells, one row each."""
        return self.cells.copy()

    def to_csv(self) -> str:
        """The cells, one row each, as CSV."""
        return self.cells.to_csv(index=False)

    def to_markdown(self) -> str:
        """The table and, below it, its caption."""
        return self._grid.to_markdown()

    def to_latex(self, label: str = "tab:runs") -> str:
        """For a document that uses the package booktabs."""
        return self._grid.to_latex(label)

    def _repr_html_(self) -> str:
        return self._grid.to_html()

    def __str__(self) -> str:
        return f"{self._grid.to_text()}\n{self.caption}\n"

    @property
    def _grid(self) -> Grid:
        rows, columns = (in_order(self.cells[key]) for key in (self.rows, self.columns))
        keys = zip(self.cells[self.rows], self.cells[self.columns], strict=True)
        shown = dict(zip(keys, _shown(self.cells), strict=True))
        cells = []
        for row in rows:
            cells.append(tuple(shown.get((row, column), EMPTY) for column in columns))
        return Grid(
            (Cell(self.rows), *(self.title(self.columns, column) for column in columns)),
            tuple((self.title(self.rows, row).in_line,) for row in rows),
            tuple(cells),
            self.caption,
        )

    def title(self, key: str, value: Any) -> Cell:
        """How a value of a key is headed: a metric by its title, with split and attention."""
        if key != METRIC_AXIS:
            return Cell(str(value))
        cell = self.cells[self.cells[METRIC_AXIS] == value].iloc[0]
        return Cell(METRICS[value].title, tuple(filter(None, [cell["split"], cell["attention"]])))


def make_table(
    runs: RunSet,
    rows: str,
    columns: str,
    metric: str | Sequence[str] | None,
    role: str | None,
    against: Hashable | None,
    confidence: float,
) -> Table:
    """See :meth:`RunSet.table`."""
    by, across = (columns, rows) if rows == METRIC_AXIS else (rows, columns)
    _check_sides(runs, by, across)
    chosen = of_role(runs, role, (by, across))
    metrics = measured(chosen, metric)
    if across != METRIC_AXIS and len(metrics) > 1:
        raise KdxError(
            f"a table of {by!r} by {across!r} shows one metric, not {listed(metrics)}; name one"
        )
    values = in_order(value_of(run, by) for run in chosen)
    reference = None if against is None else value_among(against, values, by)
    groups = _groups(chosen, metrics, by, across)
    family = sum(_comparisons(each.figures, METRICS[each.metric], reference) for each in groups)
    parts = [
        _part(each, by, reference, confidence, family).assign(
            **{across: each.other, METRIC_AXIS: each.metric}
        )
        for each in groups
    ]
    keys = dict.fromkeys((rows, columns, METRIC_AXIS))
    cells = pd.concat(parts, ignore_index=True)
    cells = cells[[*keys, *(column for column in cells.columns if column not in keys)]]
    holds = _holds(cells, chosen, by, across, confidence)
    rule = ""
    if (cells["n"] > 1).any():
        rule = f"{_rule(cells, reference, confidence)}{conditions(chosen)}."
    return Table(rows, columns, cells, holds, rule)


def _check_sides(runs: RunSet, by: str, across: str) -> None:
    if reserved := {by, across} & set(_FIGURES):
        raise KdxError(f"{listed(sorted(reserved))} can't be a side of a table; choose another key")
    if by == across:
        raise KdxError(f"rows and columns are both {by!r}; choose two keys, or a key and 'metric'")
    for key in {by, across} - {METRIC_AXIS}:
        check_key(runs.runs, key)


class _Group(NamedTuple):
    """One metric of the runs that share a value of the side that is not compared."""

    other: Any
    runs: RunSet
    metric: str
    figures: pd.DataFrame


def _groups(runs: RunSet, metrics: Sequence[str], by: str, across: str) -> list[_Group]:
    groups = []
    for name in metrics:
        apart = {name: runs} if across == METRIC_AXIS else runs.group(across)
        groups += [
            _Group(other, group, name, _figures(group, name, by))
            for other, group in apart.items()
            if by in known_keys(group)
        ]
    return groups


def of_role(runs: RunSet, role: str | None, keys: Iterable[str] = ()) -> RunSet:
    """The runs to compare: all but teachers where a key is the role; else those of one role.

    By default that is explainer, if there is any. Raises KdxError if there is none.
    """
    if "role" in keys:
        chosen = runs.filter(role=list(_COMPARED))
    else:
        roles = {run.role for run in runs}
        default = next((each for each in _COMPARED if each in roles), "explainer")
        chosen = runs.filter(role=default if role is None else role)
    if not len(chosen):
        among = listed(sorted({run.role for run in runs})) or "none"
        raise KdxError(
            f"none of the {len(runs)} runs is of the role {role or listed(_COMPARED)}; there are: "
            f"{among}"
        )
    return chosen


def measured(runs: RunSet, metric: str | Sequence[str] | None) -> list[str]:
    """The metrics asked for, or all that the runs hold.

    Raises KdxError for one that is unknown or that they don't hold.
    """
    frame = runs.to_frame()
    there = set(frame.loc[frame["value"].notna(), "metric"])
    asked = [metric] if isinstance(metric, str) else metric
    for name in asked or ():
        if name not in METRICS:
            raise unknown("headline figure", name, METRICS)
        if name not in there:
            raise KdxError(
                f"none of the {len(runs)} runs holds {name!r}; they hold "
                f"{', '.join(sorted(there)) or 'none'}"
            )
    return (
        list(dict.fromkeys(asked))
        if asked
        else [each.name for each in together() if each.name in there]
    )


def value_among(wanted: Any, values: Sequence[Any], by: str) -> Any:
    """The one of ``values`` that is ``wanted``, or is written so. Raises KdxError if none is."""
    written = (value for value in values if value == wanted or str(value) == str(wanted))
    if (chosen := next(written, None)) is None:
        raise unknown(f"{by} among the runs", str(wanted), map(str, values))
    return chosen


def alike(groups: Sequence[str], intervals: Sequence[Interval]) -> list[int]:
    """Decimals for every interval, the same for all of a group: the median of what they need."""
    needed: dict[str, list[int]] = {}
    for group, interval in zip(groups, intervals, strict=True):
        needed.setdefault(group, []).append(decimals_for(interval))
    return [median_high(needed[group]) for group in groups]


def over_seeds(table: pd.DataFrame, column: Hashable, confidence: float) -> Interval:
    """Mean and interval of a column of :meth:`RunSet.values`, seeds as in :func:`by_seed`."""
    return t_interval(by_seed(table[[column]])[column].to_numpy(), confidence)


def conditions(runs: RunSet) -> str:
    """What all runs share that a conclusion is given: ', given one teacher and one split …'."""
    given = []
    if teachers := count_teachers(runs):
        given.append("one teacher" if teachers == 1 else f"these {teachers} teachers")
    splits = {value_of(run, "split") for run in runs}
    given += ["one split of the data"] if len(splits) == 1 and NOT_SET not in splits else []
    return f", given {listed(given)}" if given else ""


def apart(runs: RunSet) -> str:
    """What the runs are known not to share, in a sentence; '' where nothing.

    Their differences may be due to that.
    """
    known = {
        "teacher": max(known_teachers(runs), key=len, default=set()),
        "split": {run.info["data"]["fingerprint"] for run in runs} - {None},
        "data": {run.info["data"]["name"] for run in runs} - {"unknown"},
    }
    several = [name for name, values in known.items() if len(values) > 1]
    return (
        f"The runs do not share {listed(several)}: differences between them may be due to that."
        if several
        else ""
    )


def pooled(runs: RunSet, by: str) -> str:
    """That runs of several objectives stand for one seed, in a sentence; '' where none do."""
    objectives = runs.objectives
    if len(objectives) < 2 or by == "decomposition" or by.startswith("objective"):
        return ""
    return f"A seed's runs under {listed(objectives)} count once, by their mean."


def _figures(runs: RunSet, metric: str, by: str) -> pd.DataFrame:
    """One metric of one group of runs, epoch by epoch, for those values of ``by`` that have any."""
    roles = {run.role for run in runs}
    role = next(iter(roles)) if len(roles) == 1 else "explainer"
    return runs.by_epoch(metric, by=by, role=role).dropna(axis=1, how="all")


def _comparisons(table: pd.DataFrame, metric: Metric, against: Hashable | None) -> int:
    """How many comparisons the bold face of one metric's cells rests on.

    Without ``against`` a value is bold where it beats every other. That one of k values does so by
    chance takes one of k to win k − 1 comparisons on the same side, so k − 1 of them are corrected
    for.
    """
    if against is not None:
        return comparisons(table, against, metric.pairs_make) if against in table.columns else 0
    return max(0, len(table.columns) - 1)


def _part(
    group: _Group, by: str, against: Hashable | None, confidence: float, family: int
) -> pd.DataFrame:
    """One metric of one group of runs: a row per value of ``by``."""
    runs, metric, table = group.runs, group.metric, group.figures
    roles = {run.role for run in runs}
    role = next(iter(roles)) if len(roles) == 1 else "explainer"
    values = runs.values(metric, by=by, role=role).dropna(axis=1, how="all")
    nulls = runs.values(metric, by=by, role=role, column="null")
    bold = _bold(table, METRICS[metric], against, confidence, family)
    frame = runs.to_frame().query("metric == @metric")
    looked = {column: preferred(set(frame[column])) for column in ("split", "attention")}
    defined = side_by_side(table)
    rows = []
    for value in values.columns:
        interval = over_seeds(values, value, confidence)
        null = _null(nulls[value], values[value])
        rows.append(
            {
                by: value,
                **looked,
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "confidence": confidence,
                "n": interval.n,
                "null": null,
                "bold": value in bold,
                "over": str(coverage(table, [value], defined)),
            }
        )
    return pd.DataFrame(rows, columns=[by, *_FIGURES])


def _null(nulls: pd.Series, values: pd.Series) -> float:
    """The mean null of the seeds and objectives that the mean is over; NaN where there is none."""
    kept = by_seed(values.to_frame()).index
    if nulls.index.nlevels > 1:
        beside = nulls[nulls.index.get_level_values("seed").isin(kept)]
    else:
        beside = nulls.loc[kept]
    return float(beside.mean()) if beside.notna().any() else math.nan


def _bold(
    table: pd.DataFrame, metric: Metric, against: Hashable | None, confidence: float, family: int
) -> set[Hashable]:
    """The columns that differ from ``against``; without it the one better than every other."""
    options: dict[str, Any] = {"family": family, "over_pairs": metric.pairs_make}
    if against is not None:
        if against not in table.columns:
            return set()
        return {
            effect.a
            for effect in effects(table, against, confidence, **options)
            if effect.difference.excludes_zero
        }
    sign = {"higher": 1, "lower": -1, "": math.nan}[metric.better]
    best = set[Hashable]()
    for value in table.columns:
        others = effects(table, value, confidence, **options)
        lost = [e.difference.excludes_zero and sign * e.difference.mean < 0 for e in others]
        if len(lost) == len(table.columns) - 1 and lost and all(lost):
            best.add(value)
    return best


def _shown(cells: pd.DataFrame) -> list[Cell]:
    records: list[dict[str, Any]] = cells.to_dict("records")  # type: ignore[assignment]
    intervals = [Interval(cell["n"], cell["mean"], cell["low"], cell["high"]) for cell in records]
    decimals = alike([cell[METRIC_AXIS] for cell in records], intervals)
    shown = []
    for cell, interval, places in zip(records, intervals, decimals, strict=True):
        ends = (
            f"[{number(interval.low, places)}, {number(interval.high, places)}]"
            if interval.n > 1
            else ""
        )
        null = "" if math.isnan(cell["null"]) else f", null {number(cell['null'], places)}"
        over = f", {cell['over']}" if cell["over"] else ""
        details = (ends, f"n = {interval.n}{over}{null}")
        shown.append(Cell(number(interval.mean, places), details, cell["bold"]))
    return shown


def _holds(cells: pd.DataFrame, runs: RunSet, by: str, across: str, confidence: float) -> str:
    roles = "Runs" if "role" in (by, across) else f"{runs.runs[0].role.capitalize()}s"
    interval = (
        f" with {100 * confidence:.4g} % Student-t interval" if (cells["n"] > 1).any() else ""
    )
    null = (
        "; null: what it would be if nothing were there, where it is defined"
        if cells["null"].notna().any()
        else ""
    )
    sentences = [
        f"{roles} by {by}{_epochs(cells, runs)}: mean over n seeds{interval}{null}.",
        "" if across == "objective" else pooled(runs, by),
        ONE_SEED if (cells["n"] == 1).any() else "",
    ]
    return " ".join(filter(None, sentences))


def _epochs(cells: pd.DataFrame, runs: RunSet) -> str:
    """Of which epochs the metrics are: the selected one, by its rule, or all that were probed."""
    rules = {run.selection_rule for run in runs}
    selected = {"last": "at the last epoch", "best": "at the epoch that is best on validation"}.get(
        next(iter(rules)) if len(rules) == 1 else "", ""
    )
    shown = [METRICS[name] for name in in_order(cells[METRIC_AXIS])]
    probed = [metric.title for metric in shown if metric.input.probed]
    others = [metric.title for metric in shown if not metric.input.probed]
    parts = [(selected, others), ("means over the probed epochs", probed)]
    epochs = [(epoch, titles) for epoch, titles in parts if epoch and titles]
    if not (probed and others):
        return "".join(f", {epoch}" for epoch, _ in epochs)
    return "".join(f", {epoch} ({listed(titles)})" for epoch, titles in epochs)


def _rule(cells: pd.DataFrame, against: Hashable | None, confidence: float) -> str:
    each = (
        "t-interval, Bonferroni-corrected so that something is bold by chance in at most "
        f"{100 * (1 - confidence):.3g} % of such tables"
    )
    if against is not None:
        return f"Bold: differs from {against}, that is the paired difference's {each}, excludes 0"
    sides: dict[str, list[str]] = {"higher": [], "lower": [], "": []}
    for name in in_order(cells[METRIC_AXIS]):
        sides[METRICS[name].better].append(METRICS[name].title)
    wanted = [f"{side} for {listed(titles)}" for side, titles in sides.items() if side and titles]
    better = f" ({', '.join(wanted)})" if wanted else ""
    neither = (
        f"; nothing is bold for {listed(sides[''])}, without a better side" if sides[""] else ""
    )
    return (
        f"Bold: better{better} than every other, that is each paired difference's {each}, excludes "
        f"0{neither}"
    )
