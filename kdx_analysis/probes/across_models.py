"""Records of several models merged: what no order of experts changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.pairing import shared
from kdx_analysis.probes.conflict.record import ConflictRecord
from kdx_analysis.probes.faithfulness.ablation import Faithfulness
from kdx_analysis.probes.gates.record import GateRecord
from kdx_analysis.probes.record import TableRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KEYS = ("of", "level", "attention", "metric", "measure")


@dataclass(frozen=True, eq=False)
class MetricRecord(TableRecord):
    """Metrics of several models beside each other, each with its own null.

    Experts have no identity across models, so tables of experts are never averaged over runs. What
    may be are metrics that stay as they are when experts are permuted: the summaries of gates and
    of conflict, the agreement of ablation with attention.

    Attributes:
        table: one row a model and metric: run, the metric's keys (of, level, attention, metric or
            measure), value, null_…, n; of conflict also probes (that the value and its null are
            means over) and probed.
    """

    FILES: ClassVar = {"table": "measures"}

    table: pd.DataFrame

    @classmethod
    def of(cls, records: Mapping[str, GateRecord | Faithfulness | ConflictRecord]) -> MetricRecord:
        """The metrics of records of one kind, by the name of their run.

        Records of conflict that hold equally many probes are taken over the probes at which a
        metric is defined in all of them, others each over its own. Raises KdxError for none, or
        several kinds.
        """
        if len({type(record) for record in records.values()}) != 1:
            raise KdxError(
                "give one record or more, all of one kind: gates, conflict or faithfulness"
            )
        conflicts = {
            run: record for run, record in records.items() if isinstance(record, ConflictRecord)
        }
        if conflicts:
            return cls(_over_probes(conflicts))
        tables = [_metrics(record).assign(run=run) for run, record in records.items()]
        return cls(pd.concat(tables, ignore_index=True))

    @property
    def keys(self) -> list[str]:
        """Columns that say which metric it is."""
        return [key for key in _KEYS if key in self.table]

    def to_frame(self) -> pd.DataFrame:
        """One row a metric: its keys, value (mean over runs), lowest, highest, and counts.

        Beside them stand null_mean, values and undefined. ``values`` are the runs that went into
        the mean, ``undefined`` those whose value is NaN.
        """
        grouped = self.table.groupby(self.keys, sort=False)
        table = grouped.agg(
            value=("value", "mean"),
            lowest=("value", "min"),
            highest=("value", "max"),
            null_mean=("null_mean", "mean"),
            values=("value", "count"),
            runs=("value", "size"),
        )
        table["undefined"] = table.pop("runs") - table["values"]
        return table.reset_index()

    def merge(self, *others: MetricRecord) -> MetricRecord:
        """These runs and those of ``others``.

        Raises KdxError if a run is in both, or their metrics differ in kind.
        """
        records = (self, *others)
        runs = [run for record in records for run in record.table["run"].unique()]
        if len(set(runs)) < len(runs) or len({tuple(record.keys) for record in records}) > 1:
            raise KdxError(
                f"runs {', '.join(map(str, runs))} can't be merged: name each once, with one kind "
                "of record"
            )
        return MetricRecord(pd.concat([record.table for record in records], ignore_index=True))

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Every run a dot beside the range of its null, a row a metric, as (figure, axes)."""
        from kdx_analysis.probes.drawing import across_models

        return across_models(self, ax)

    def _repr_html_(self) -> str:
        table = self.to_frame().style.hide(axis="index").format(precision=3, escape="html")
        return str(table.set_caption(f"means over {self.table['run'].nunique()} runs").to_html())


def _metrics(record: GateRecord | Faithfulness | ConflictRecord) -> pd.DataFrame:
    if isinstance(record, GateRecord):
        return record.summary()
    assert isinstance(record, Faithfulness)
    return record.agreement


def _over_probes(records: Mapping[str, ConflictRecord]) -> pd.DataFrame:
    """Every run's means over probes: a run counts once, however often it was probed."""
    table = pd.concat(
        [record.summary.assign(run=run) for run, record in records.items()], ignore_index=True
    )
    keys = [key for key in _KEYS if key in table]
    taken = np.asarray(table["value"].notna(), dtype=bool)
    if len({record.probes for record in records.values()}) == 1:
        by_probe = table.set_index([*keys, "probe", "run"])["value"].unstack("run")
        together = shared(by_probe, keys).stack(future_stack=True).notna()
        rows = pd.MultiIndex.from_frame(table[[*keys, "probe", "run"]])
        taken = np.asarray(together.loc[rows], dtype=bool)
    by_run = [*keys, "run"]
    probed = table.groupby(by_run, sort=False).size().rename("probed")
    means = table[taken].drop(columns="probe").groupby(by_run, sort=False).mean(numeric_only=True)
    counted = table[taken].groupby(by_run, sort=False).size()
    probes = counted.reindex(probed.index, fill_value=0).rename("probes")
    return means.reindex(probed.index).join([probes, probed]).reset_index()
