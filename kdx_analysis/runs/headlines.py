"""The headline figures of one run: every declared metric, from the records that hold its values."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kdx_analysis.metrics import INPUTS, METRICS, Input, Metric

if TYPE_CHECKING:
    from kdx_analysis.runs.run import Run

_KEYS = ["metric", "attention", "split"]
_HEADLINE = ["value", "null", "n", "epochs", "probed", "undefined"]
_PER_EPOCH = [*_KEYS, "epoch", "value", "null", "undefined", "n"]
_OF_PAIRS = ["split", "epoch", "pair", "value"]


def preferred(values: Collection[str]) -> str | None:
    """The split or the kind of attention that a headline rests on, of those that there are."""
    return next((value for value in ("test", "train", "effective", "") if value in values), None)


def headlines(run: Run) -> pd.DataFrame:
    """What :attr:`Run.headlines` holds: means over the epochs at which a figure is defined.

    Its null is over the same.
    """
    rows = run.once(per_epoch)
    if rows.empty:
        return pd.DataFrame(columns=[*_KEYS, *_HEADLINE])
    table = rows.groupby(_KEYS, sort=False).agg(
        value=("value", "mean"),
        null=("null", "mean"),
        n=("n", "first"),
        epochs=("value", "count"),
        probed=("value", "size"),
        undefined=("undefined", "sum"),
    )
    return table.reset_index()[[*_KEYS, *_HEADLINE]]


def per_epoch(run: Run) -> pd.DataFrame:
    """What headlines are means of: metric, attention, split, epoch, value, null, undefined, n.

    Each metric's values are those that :attr:`Metric.home` made, under the name that it is recorded
    by. A figure of the selected epoch has one row. ``null`` is NaN where ``value`` is;
    ``undefined`` counts the pairs of subtasks that could not go into it.
    """
    declared: dict[str, dict[str, Metric]] = {}
    for metric in METRICS.values():
        declared.setdefault(metric.reads, {})[metric.recorded] = metric
    tables = [
        _recorded(run, INPUTS[reads], metrics)
        for reads, metrics in declared.items()
        if INPUTS[reads].kind in run.kinds
    ]
    if not tables:
        return pd.DataFrame(columns=_PER_EPOCH)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(null=table["null"].where(table["value"].notna()).astype(float))


def per_pair(run: Run, metric: str) -> pd.DataFrame:
    """A figure of pairs of subtasks, pair by pair: split, epoch, pair, value.

    Reduced over pairs as :attr:`Metric.over_pairs` says, it is the figure of :func:`per_epoch`.
    Empty where the run has no records of pairs.
    """
    declared = METRICS[metric]
    source = declared.input
    if declared.of_pair is None or source.pair_kind not in run.kinds:
        return pd.DataFrame(columns=_OF_PAIRS)
    chosen = run.rows(source.pair_kind, **dict(source.pair_rows))
    names = zip(chosen["a_index"], chosen["b_index"], strict=True)
    return pd.DataFrame(
        {
            "split": chosen["split"],
            "epoch": chosen["epoch"],
            "pair": [f"{a}-{b}" for a, b in names],
            "value": declared.of_pair(chosen[source.pairs]),
        }
    )


def last_level(run: Run) -> int:
    """L, the last level of experts; the trunk is level 1, and L + 1 are the heads."""
    if experts := run.info.get("experts"):
        return len(experts)
    # A run of before experts were noted does not say: the last level with a choice among several.
    summary = run.record("gate_summary")
    return int(summary.loc[summary["of"] == "pathways", "level"].max())


def _recorded(run: Run, source: Input, metrics: dict[str, Metric]) -> pd.DataFrame:
    """The rows of ``metrics``, by the names that they are recorded under; all read one thing."""
    table = run.record(source.kind)
    if not source.probed:
        # Runs that were made elsewhere were tested all along, not at the selected epoch alone.
        table = run.at_selected(source.kind)
    if source.level:
        table = _of_all_attention(table, source, last_level(run), metrics)
    else:
        table = _with(table, source.rows)
        table = table[table["metric"].isin(metrics)]
    declared = [metrics[name] for name in table["metric"]]
    pairs = np.array([bool(metric.over_pairs) for metric in declared], dtype=bool)
    undefined = table["undefined"] if "undefined" in table else pd.Series(0, table.index)
    return pd.DataFrame(
        {
            "metric": [metric.name for metric in declared],
            "attention": table.get("attention", ""),
            "split": source.split or table["split"],
            "epoch": table["epoch"],
            "value": table["value"],
            "null": table[source.null_column] if source.null_column else float("nan"),
            "undefined": undefined.where(pairs, 0),
            "n": table["n"],
        }
    )


def _of_all_attention(
    table: pd.DataFrame, source: Input, last: int, metrics: dict[str, Metric]
) -> pd.DataFrame:
    """Rows of the heads or of the last level, under every kind of attention.

    NaN where there is a single expert, so nothing to choose: such levels have no rows.
    """
    kinds, epochs = table["attention"].unique(), table["epoch"].unique()
    level = last + (source.level == "heads")
    chosen = _with(table, source.rows)
    chosen = chosen[(chosen["level"] == level) & chosen["metric"].isin(metrics)]
    keys = ["metric", "epoch", "attention"]
    wanted = pd.MultiIndex.from_product([metrics, epochs, kinds], names=keys)
    # Counts are floats, as where a level has no row, so that columns of all runs are of one type.
    return chosen.set_index(keys).reindex(wanted).reset_index().astype({"n": float})


def _with(table: pd.DataFrame, rows: object) -> pd.DataFrame:
    """The rows that have these values, of the columns that there are."""
    for column, value in dict(rows).items():  # type: ignore[call-overload]
        if column in table:
            table = table[table[column] == value]
    return table
