"""The headline figures of one run, taken from its records: one row per metric."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from kdx_analysis.probes.affinity import ETA

if TYPE_CHECKING:
    from kdx_analysis.runs.directory import Run


@dataclass(frozen=True)
class Metric:
    """A headline metric.

    Attributes:
        name: its key in tables.
        title: its name in figures and sentences.
        describes: what one unit of it means, and its null.
        conflict: whether it speaks of conflict between subtasks, on which the report's answer rests.
        better: 'higher' or 'lower', where one of them is what a user wants.
    """

    name: str
    title: str
    describes: str
    conflict: bool = False
    better: Literal["higher", "lower", ""] = ""


METRICS: tuple[Metric, ...] = (
    Metric("accuracy", "accuracy", "share of test images right", better="higher"),
    Metric(
        "agreement", "agreement with the teacher", "share of test images given the teacher's class", better="higher"
    ),
    Metric(
        "gate_entropy",
        "gate entropy of the heads",
        "mean H/ln N of the gates into the subtasks' heads at the selected epoch; null: the run's initial gates at "
        "the same τ",
    ),
    Metric(
        "specialisation",
        "specialisation of the last level",
        "I(subtask; expert)/ln min(K, N) on the last level at the selected epoch; null: initial gates at the same τ",
    ),
    Metric(
        "conflict_rate",
        "conflict rate",
        "share of pairs of subtasks whose gradients of the hard loss over trunk and experts oppose each other, mean "
        "over the probed epochs; null: residuals permuted over samples",
        conflict=True,
        better="lower",
    ),
    Metric(
        "severity",
        "conflict severity",
        "mean over pairs of max(0, −cosine), as for the conflict rate",
        conflict=True,
        better="lower",
    ),
    Metric(
        "contention",
        "contention",
        "share of the last level's gradient that pulls against another subtask's inside an expert, mean over the "
        "probed epochs; null: residuals permuted over samples",
        conflict=True,
        better="lower",
    ),
    Metric(
        "separation",
        "separation",
        "how far the gates lower contention below that of uniform gates, in [−1, 1]; 0: no better than sharing all; "
        "null: residuals permuted over samples",
        conflict=True,
        better="higher",
    ),
    Metric(
        "modulation",
        "modulation",
        "how far contention lies below that of the same gates permuted over subtasks, in [−1, 1]; 0: it does not "
        "matter which subtask goes where; null: residuals permuted over samples",
        conflict=True,
    ),
    Metric(
        "affinity",
        "affinity of subtasks",
        f"median over ordered pairs of Z = 1 − L_b after a step of η = {ETA:g} down a's gradient / L_b before it, mean "
        "over the probed epochs; above 0 a step for one subtask helps the other; null: steps along residuals permuted "
        "over samples",
    ),
)
METRIC = {metric.name: metric for metric in METRICS}


def preferred(values: Collection[str]) -> str | None:
    """The split or the kind of attention that a headline rests on, of those that there are."""
    return next((value for value in ("test", "train", "effective", "") if value in values), None)


def headlines(run: Run) -> pd.DataFrame:
    """What :attr:`Run.headlines` holds."""
    rows = list(_test(run))
    rows += _gates(run) if "gate_summary" in run.kinds else ()
    rows += _conflict(run) if "conflict_summary" in run.kinds else ()
    return pd.DataFrame(rows, columns=["metric", "attention", "split", "value", "null", "n"])


def _test(run: Run) -> Iterator[dict[str, Any]]:
    metrics = run.record("metrics")
    at_end = metrics[metrics["epoch"] == run.info["selection"]["epoch"]]  # elsewhere made runs are tested all along
    for row in at_end[(at_end["split"] == "test") & at_end["metric"].isin(METRIC)].itertuples():
        yield {"metric": row.metric, "attention": "", "split": "test", "value": row.value, "n": row.n}


def _gates(run: Run) -> Iterator[dict[str, Any]]:
    summary = run.record("gate_summary")
    at_end = summary[summary["epoch"] == run.info["selection"]["epoch"]]
    sources = (("gates", "entropy_share", "gate_entropy"), ("pathways", "specialisation", "specialisation"))
    for of, source, name in sources:
        chosen = at_end[(at_end["of"] == of) & (at_end["metric"] == source)]
        for row in chosen[chosen["level"] == chosen["level"].max()].itertuples():
            yield {
                "metric": name, "attention": row.attention, "split": "train", "value": row.value,
                "null": row.initial, "n": row.n,
            }  # fmt: skip


def _conflict(run: Run) -> Iterator[dict[str, Any]]:
    summary = run.record("conflict_summary")
    tables = [summary[summary["level"] == "all"]]
    if "contention" in run.kinds:
        tables.append(run.record("contention"))
    if "affinity" in run.kinds:
        affinity = run.record("affinity").query("metric == 'median_affinity'")
        tables.append(affinity.assign(term="hard", metric="affinity"))
    for table in tables:
        hard = table[(table["term"] == "hard") & table["metric"].isin(METRIC)]
        hard = hard.assign(null_mean=hard["null_mean"].where(hard["value"].notna()))
        for (metric, split), rows in hard.groupby(["metric", "split"], sort=False):
            yield {
                "metric": metric, "attention": "", "split": split, "value": rows["value"].mean(),
                "null": rows["null_mean"].mean(), "n": rows["n"].iloc[0],
            }  # fmt: skip
