"""Which runs are better, by how much, and how sure.

Values, paired differences and what else differs.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.intervals import Interval, Paired
from kdx_analysis.metrics import METRICS
from kdx_analysis.runs.keys import canonical, check_key, count_teachers, in_order, value_of
from kdx_analysis.runs.statistics.paired import Effect, effects_together
from kdx_analysis.runs.statistics.pvalues import LEAST_SEEDS
from kdx_analysis.runs.tables.grid import Cell, Grid
from kdx_analysis.runs.tables.numbers import estimate, listed, markdown_escaped, number
from kdx_analysis.runs.tables.table import (
    METRIC_AXIS,
    ONE_SEED,
    Table,
    alike,
    conditions,
    make_table,
    measured,
    of_role,
    value_among,
)

if TYPE_CHECKING:
    from kdx_analysis.runs.runset import RunSet


@dataclass(frozen=True)
class Comparison:
    """Runs compared by one key.

    Attributes:
        by, against: the key, and its value that the others are compared with.
        confidence: of each of the table's intervals, and of all differences together.
        table: mean, interval and n of every metric and value.
        effects: metric → paired difference of every other value from ``against``; their intervals
            hold together over all metrics and values at ``confidence``.
        caption: of the effects: what the intervals and p-values are.
        notes: on controls, and on what else differs between the runs.
    """

    by: str
    against: Hashable
    confidence: float
    table: Table
    effects: Mapping[str, tuple[Effect, ...]]
    caption: str
    notes: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """A row per metric and value.

        The columns of the table's cells, then against, difference, difference_low, difference_high,
        difference_confidence, pairs (seeds that both have), difference_over (the epochs that its
        mean is over, and what was left out), correlation and p_holm, which are NaN (pairs 0) where
        there are none.
        """
        effects = {(name, effect.a): effect for name, effect in self._pooled}
        none = Paired(0, math.nan, math.nan, math.nan, (), math.nan)
        nothing = Effect("", self.against, none, math.nan, math.nan)
        rows = []
        for cell in zip(self.table.cells[METRIC_AXIS], self.table.cells[self.by], strict=True):
            effect = effects.get(cell, nothing)
            d = effect.difference
            rows.append(
                {
                    "against": self.against,
                    "difference": d.mean,
                    "difference_low": d.low,
                    "difference_high": d.high,
                    "difference_confidence": effect.confidence,
                    "pairs": d.n,
                    "difference_over": str(d.coverage),
                    "correlation": d.correlation,
                    "p_holm": effect.p,
                }
            )
        return pd.concat([self.table.to_frame(), pd.DataFrame(rows)], axis=1)

    def to_csv(self) -> str:
        """:meth:`to_frame` as CSV."""
        return self.to_frame().to_csv(index=False)

    def to_markdown(self) -> str:
        """The means, the differences, and as a list what else is to know."""
        notes = "".join(f"- {note}\n" for note in map(markdown_escaped, self.notes))
        return "\n".join([self.table.to_markdown(), self._grid.to_markdown(), notes])

    def to_latex(self) -> str:
        """Two tables, labelled tab:runs and tab:effects, for a document that uses booktabs."""
        noted = replace(self._grid, caption=" ".join([self.caption, *self.notes]))
        return f"{self.table.to_latex('tab:runs')}\n{noted.to_latex('tab:effects')}"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"{self.table._repr_html_()}{self._grid.to_html()}<ul>{notes}</ul>"

    def __str__(self) -> str:
        """One row per metric and value, and what it rests on."""
        intervals = any(effect.difference.n > 1 for _, effect in self._pooled)
        star = " Star: the interval excludes 0." if intervals else ""
        paragraphs = [self.table.holds, f"{self.caption}{star}", *self.notes]
        return "\n".join([self._text.to_text(), *(fill(each, 110) for each in paragraphs)]) + "\n"

    @property
    def _pooled(self) -> list[tuple[str, Effect]]:
        """Every effect, with its metric in front."""
        return [(name, effect) for name, several in self.effects.items() for effect in several]

    @property
    def _grid(self) -> Grid:
        title = {name: self.table.title(METRIC_AXIS, name).in_line for name in self.effects}
        return Grid(
            tuple(map(Cell, ["metric", "difference", *self._head("mean")])),
            tuple((title[name], f"{effect.a} − {effect.b}") for name, effect in self._pooled),
            tuple(map(tuple, self._effect_cells)),
            self.caption,
        )

    @property
    def _text(self) -> Grid:
        places = [(name, effect.a) for name, effect in self._pooled]
        effects = dict(zip(places, self._effect_cells, strict=True))
        over = ["over"] if self._shown[2] else []
        head = ["metric", self.by, "mean", "n", *over, "null", *self._head(f"minus {self.against}")]
        cells: list[dict[Any, Any]] = self.table.to_frame().to_dict("records")
        means = [Interval(cell["n"], cell["mean"], cell["low"], cell["high"]) for cell in cells]
        metrics = [cell[METRIC_AXIS] for cell in cells]
        labels, rows, named = [], [], set[str]()
        for name, cell, mean, decimals in zip(
            metrics, cells, means, alike(metrics, means), strict=True
        ):
            title = "" if name in named else self.table.title(METRIC_AXIS, name).in_line
            named.add(name)
            labels.append((title, str(cell[self.by])))
            null = "" if math.isnan(cell["null"]) else number(cell["null"], decimals)
            effect = effects.get((name, cell[self.by]), [Cell("")] * len(self._head("")))
            epochs = [Cell(cell["over"])] if self._shown[2] else []
            rows.append(
                (Cell(estimate(mean, decimals)), Cell(str(mean.n)), *epochs, Cell(null), *effect)
            )
        return Grid(tuple(map(Cell, head)), tuple(labels), tuple(rows), "")

    def _head(self, difference: str) -> list[str]:
        """Titles of what is told of an effect."""
        titles = (difference, "n", "over", "p (Holm)")
        return [title for title, shown in zip(titles, self._shown, strict=True) if shown]

    @property
    def _shown(self) -> tuple[bool, bool, bool, bool]:
        """Which columns an effect has: epochs if there are several, p if there are six seeds."""
        differences = [effect.difference for _, effect in self._pooled]
        epochs = any(str(difference.coverage) for difference in differences)
        tested = any(difference.n >= LEAST_SEEDS for difference in differences)
        return True, True, epochs, tested

    @property
    def _effect_cells(self) -> list[list[Cell]]:
        names = [name for name, _ in self._pooled]
        decimals = alike(names, [effect.difference for _, effect in self._pooled])
        cells = []
        for (_, effect), places in zip(self._pooled, decimals, strict=True):
            d = effect.difference
            difference = Cell(estimate(d, places, signed=True), bold=d.excludes_zero)
            row = [difference, Cell(str(d.n)), Cell(str(d.coverage)), Cell(_p_value(effect.p))]
            cells.append([cell for cell, shown in zip(row, self._shown, strict=True) if shown])
        return cells


def compare(
    runs: RunSet,
    metric: str | Sequence[str] | None,
    by: str,
    against: Hashable | None,
    role: str | None,
    confidence: float,
) -> Comparison:
    """See :meth:`RunSet.compare`."""
    check_key(runs.runs, by)
    chosen = of_role(runs, role, (by,))
    values = in_order(value_of(run, by) for run in chosen)
    roles = listed(sorted({run.role for run in chosen}))
    if len(values) < 2:
        raise KdxError(
            f"all {len(chosen)} runs of the role {roles} have {by} {values[0]!r}, so there is "
            "nothing to compare; "
            "choose another key, another role, or more runs"
        )
    reference = values[0] if against is None else value_among(against, values, by)
    metrics = measured(chosen, metric)
    axes = (
        (by, METRIC_AXIS) if len(values) >= len(metrics) else (METRIC_AXIS, by)
    )  # the longer side runs down
    table = make_table(chosen, *axes, metrics, role, reference, confidence)
    tables = {name: chosen.by_epoch(name, by=by, role=chosen.runs[0].role) for name in metrics}
    reductions = {name: METRICS[name].pairs_make for name in metrics}
    effects = effects_together(tables, reference, confidence, reductions)
    notes = [
        *_uncompared(values, tables, reference, effects),
        *_on_controls(chosen, by),
        _differing(chosen, by),
    ]
    caption = _caption(effects, reference, confidence, conditions(chosen))
    return Comparison(by, reference, confidence, table, effects, caption, tuple(notes))


def _caption(
    effects: Mapping[str, Sequence[Effect]], against: Hashable, confidence: float, given: str
) -> str:
    differences = [effect.difference for several in effects.values() for effect in several]
    n = [difference.n for difference in differences]
    tested = [count for count in n if count >= LEAST_SEEDS]
    together = f"for all {len(n)} comparisons at once" if len(n) > 1 else "for this one comparison"
    interval = (
        f"mean and t-interval, Bonferroni-corrected to hold at {100 * confidence:.4g} % {together}"
    )
    sentences = [
        f"Paired differences from {against} over the n seeds that both have: "
        f"{interval if max(n, default=0) > 1 else 'mean'}{given}.",
        ONE_SEED if 1 in n else "",
        "Figures of several epochs are compared epoch by epoch, over those at which both sides are "
        "defined."
        if any(str(difference.coverage) for difference in differences)
        else "",
        "p: paired t-tests, adjusted by Holm over the same comparisons; they rest on normal "
        "differences."
        if tested
        else "",
        f"No p-value over seeds is given below n = {LEAST_SEEDS}."
        if len(tested) < len(n) or not n
        else "",
    ]
    return " ".join(filter(None, sentences))


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else number(p)


def _uncompared(
    values: Sequence[Hashable],
    tables: Mapping[str, pd.DataFrame],
    against: Hashable,
    effects: Mapping[str, Sequence[Effect]],
) -> Iterator[str]:
    for name, table in tables.items():
        title, compared = METRICS[name].title, {against, *(effect.a for effect in effects[name])}
        empty = [
            value for value in values if value not in table.columns or table[value].isna().all()
        ]
        if empty:
            yield f"Nowhere defined in {title}, so not compared: {listed(list(map(str, empty)))}."
        apart = [str(value) for value in values if value not in compared and value not in empty]
        if apart and against not in empty:
            several = "epoch" in table.index.names and table.groupby("seed").size().max() > 1
            what = "seed and epoch" if several else "seed"
            common = f"No {what} in common with {against} in {title}"
            yield f"{common}, so not compared: {listed(apart)}."


def _on_controls(runs: RunSet, by: str) -> Iterator[str]:
    names = {value_of(run, "objective.name") for run in runs}
    if by not in ("objective", "objective.name") or "kd" not in names:
        return
    if "kd_shuffled" in names:
        yield (
            "Only the step from the control kd_shuffled to kd can be knowledge of the classes; kd "
            "against hard or label_smoothing includes temperature and softness."
        )
    else:
        yield (
            "The control kd_shuffled is missing, so nothing here tells knowledge of the classes "
            "from temperature and softness."
        )


def _differing(runs: RunSet, by: str) -> str:
    compared = "objective." if by == "objective" else f"{by}."
    table = {
        "study": [run.info["study"] for run in runs],
        "data.name": [run.info["data"]["name"] for run in runs],
        "split": [canonical(run.info["data"]["fingerprint"]) for run in runs],
        **runs.diff().to_dict("list"),  # of a study's runs it says the last two as well
    }
    paired = ["teacher"] if count_teachers(runs) > 1 else []  # each run with one of its teacher's
    differing = []
    for key, values in table.items():
        counts = Counter(values)
        if (
            len(counts) > 1
            and key not in ("seed", "role", by, *paired)
            and not str(key).startswith(compared)
        ):
            each = [f"{value} ({count} runs)" for value, count in counts.items()]
            differing.append(f"{key} {listed(each)}")
    elsewhere = sum("source" in run.info for run in runs)
    differ = (
        "; ".join(differing) or f"nothing {'that is known' if elsewhere else 'but their seeds'}"
    )
    unsaid = (
        f" What else they differ in is not known: {elsewhere} of them were made elsewhere."
        if elsewhere
        else ""
    )
    return f"Besides, the runs differ in {differ}.{unsaid}"
