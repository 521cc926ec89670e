"""The headline figures of one run, taken from its records: one row per metric."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
        words: what it means that the metric is lower and that it is higher, of one that is never below 0 or is above
            it on both sides.
        below: the same where it is below 0 on both sides; '' for a metric that can't be below 0.
        across: what lies on either side of 0, for a change from one side to the other.
        over_pairs: how the pairs of subtasks make the figure, where it is one of pairs.
    """

    name: str
    title: str
    describes: str
    conflict: bool = False
    better: Literal["higher", "lower", ""] = ""
    words: tuple[str, str] = ("", "")
    below: tuple[str, str] = ("", "")
    across: str = ""
    over_pairs: Literal["mean", "median", ""] = ""

    @property
    def has_null(self) -> bool:
        """Whether there is a null to set it beside; figures of the test split have none."""
        return self.name not in ("accuracy", "agreement")

    @property
    def pairs_make(self) -> Literal["mean", "median"]:
        """How pairs of subtasks are reduced where a table has them apart."""
        return self.over_pairs or "mean"

    @property
    def signed(self) -> bool:
        """Whether 0 has a meaning that separates two kinds of values."""
        return bool(self.across)

    def meaning(self, before: float, after: float) -> str:
        """What a change means, in words; '' for a metric without words.

        Args:
            before, after: the levels that it goes from and to, whose signs count where the metric has one.

        >>> METRIC["modulation"].meaning(0.1, 0.3)
        'it matters more which subtask goes where'
        >>> METRIC["modulation"].meaning(-0.1, -0.4)
        'gates put conflicting subtasks together, further beyond what a random assignment would do'
        """
        if self.signed and min(before, after) < 0 <= max(before, after):
            return self.across
        return (self.below if self.signed and max(before, after) < 0 else self.words)[after > before]


_CONFLICT = ("less conflict", "more conflict")
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
        words=("sharper gates", "flatter gates"),
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
        words=_CONFLICT,
        over_pairs="mean",
    ),
    Metric(
        "severity",
        "conflict severity",
        "mean over pairs of max(0, −cosine), as for the conflict rate",
        conflict=True,
        better="lower",
        words=_CONFLICT,
        over_pairs="mean",
    ),
    Metric(
        "contention",
        "contention",
        "share of the last level's gradient that pulls against another subtask's inside an expert, mean over the "
        "probed epochs; null: residuals permuted over samples",
        conflict=True,
        better="lower",
        words=_CONFLICT,
    ),
    Metric(
        "separation",
        "separation",
        "how far the gates lower contention below that of uniform gates, in [−1, 1]; 0: no better than sharing all; "
        "null: residuals permuted over samples",
        conflict=True,
        better="higher",
        words=("gates keep conflicts less apart", "gates keep conflicts further apart"),
        below=(
            "gates make more conflict than uniform gates would, and more of it",
            "gates make more conflict than uniform gates would, but less of it",
        ),
        across="below 0 gates make more conflict than uniform gates would, above 0 they keep conflicts apart",
    ),
    Metric(
        "modulation",
        "modulation",
        "how far contention lies below that of the same gates permuted over subtasks, in [−1, 1]; 0: it does not "
        "matter which subtask goes where; null: residuals permuted over samples",
        conflict=True,
        words=("it matters less which subtask goes where", "it matters more which subtask goes where"),
        below=(
            "gates put conflicting subtasks together, further beyond what a random assignment would do",
            "gates put conflicting subtasks together, but less far beyond what a random assignment would do",
        ),
        across="below 0 gates put conflicting subtasks together, above 0 they keep them apart",
    ),
    Metric(
        "affinity",
        "affinity of subtasks",
        f"median over ordered pairs of Z = 1 − L_b after a step of η = {ETA:g} down a's gradient / L_b before it, mean "
        "over the probed epochs; above 0 a step for one subtask helps the other; null: steps along residuals permuted "
        "over samples",
        over_pairs="median",
    ),
)
METRIC = {metric.name: metric for metric in METRICS}


def preferred(values: Collection[str]) -> str | None:
    """The split or the kind of attention that a headline rests on, of those that there are."""
    return next((value for value in ("test", "train", "effective", "") if value in values), None)


def headlines(run: Run) -> pd.DataFrame:
    """What :attr:`Run.headlines` holds: means over the epochs at which a figure is defined, its null over the same."""
    rows = per_epoch(run)
    keys = ["metric", "attention", "split"]
    if rows.empty:
        return pd.DataFrame(columns=[*keys, *_HEADLINE])
    table = rows.groupby(keys, sort=False).agg(
        value=("value", "mean"), null=("null", "mean"), n=("n", "first"), epochs=("value", "count"),
        probed=("value", "size"), undefined=("undefined", "sum"),
    )  # fmt: skip
    return table.reset_index()[[*keys, *_HEADLINE]]


def per_epoch(run: Run) -> pd.DataFrame:
    """What the headline figures are means of: metric, attention, split, epoch, value, null, undefined, n.

    A figure of the selected epoch has one row. ``null`` is NaN where ``value`` is; ``undefined`` counts the pairs of
    subtasks that could not go into it.
    """
    rows = [*_test(run)]
    rows += _gates(run) if "gate_summary" in run.kinds else ()
    rows += _conflict(run)
    table = pd.DataFrame(rows, columns=["metric", "attention", "split", "epoch", "value", "null", "undefined", "n"])
    return table.assign(null=table["null"].where(table["value"].notna()).astype(float))


def per_pair(run: Run, metric: str) -> pd.DataFrame:
    """A figure of pairs of subtasks, pair by pair, on train and validation: split, epoch, pair, value.

    Reduced over pairs as :attr:`Metric.over_pairs` says, it is the figure of :func:`per_epoch`. Empty where the run has
    no records of pairs.
    """
    kind, value_of = _OF_PAIRS[metric]
    if kind not in run.kinds:
        return pd.DataFrame(columns=["split", "epoch", "pair", "value"])
    table = run.record(kind)
    chosen = table[table["metric"] == metric] if kind == "affinity" else table[table["level"] == "all"]
    chosen = chosen[chosen["term"] == "hard"] if "term" in chosen else chosen
    pair = [f"{a}-{b}" for a, b in zip(chosen["a_index"], chosen["b_index"], strict=True)]
    return pd.DataFrame({
        "split": chosen["split"], "epoch": chosen["epoch"], "pair": pair, "value": value_of(chosen),
    })  # fmt: skip


def _opposed(table: pd.DataFrame) -> pd.Series:
    """1[c < 0], NaN where the cosine is."""
    return (table["cosine"] < 0).astype(float).where(table["cosine"].notna())


_OF_PAIRS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "conflict_rate": ("conflict", _opposed),
    "severity": ("conflict", lambda table: (-table["cosine"]).clip(lower=0)),
    "affinity": ("affinity", lambda table: table["value"]),
}
_HEADLINE = ["value", "null", "n", "epochs", "probed", "undefined"]


def _test(run: Run) -> Iterator[dict[str, Any]]:
    metrics, epoch = run.record("metrics"), run.info["selection"]["epoch"]
    at_end = metrics[metrics["epoch"] == epoch]  # elsewhere made runs are tested all along
    for row in at_end[(at_end["split"] == "test") & at_end["metric"].isin(METRIC)].itertuples():
        yield {
            "metric": row.metric, "attention": "", "split": "test", "epoch": epoch, "value": row.value,
            "undefined": 0, "n": row.n,
        }  # fmt: skip


def _gates(run: Run) -> Iterator[dict[str, Any]]:
    """Of the heads and of the last level; NaN where there is a single expert, so nothing to choose."""
    summary, epoch = run.record("gate_summary"), run.info["selection"]["epoch"]
    at_end = summary[summary["epoch"] == epoch]
    last = last_level(run)
    for kind, level, source, name in (
        ("gates", last + 1, "entropy_share", "gate_entropy"),
        ("pathways", last, "specialisation", "specialisation"),
    ):
        chosen = at_end[(at_end["of"] == kind) & (at_end["level"] == level) & (at_end["metric"] == source)]
        rows = chosen.set_index("attention")[["value", "initial", "n"]].reindex(at_end["attention"].unique())
        for attention, row in rows.iterrows():
            yield {
                "metric": name, "attention": attention, "split": "train", "epoch": epoch, "value": row["value"],
                "null": row["initial"], "undefined": 0, "n": row["n"],
            }  # fmt: skip


def last_level(run: Run) -> int:
    """L, the last level of experts; the trunk is level 1, and L + 1 are the heads."""
    if experts := run.info.get("experts"):
        return len(experts)
    summary = run.record("gate_summary")  # of a run that does not say: the last with a choice among several
    return int(summary.loc[summary["of"] == "pathways", "level"].max())


def _conflict(run: Run) -> Iterator[dict[str, Any]]:
    tables = []
    if "conflict_summary" in run.kinds:
        summary = run.record("conflict_summary")
        tables.append(summary[(summary["level"] == "all") & (summary["term"] == "hard")])
    if "contention" in run.kinds:
        contention = run.record("contention")
        tables.append(contention[contention["term"] == "hard"])
    if "affinity" in run.kinds:
        affinity = run.record("affinity").query("metric == 'median_affinity'")
        tables.append(affinity.assign(metric="affinity"))
    for table in tables:
        for row in table[table["metric"].isin(METRIC)].itertuples():
            undefined = getattr(row, "undefined", 0) if METRIC[str(row.metric)].over_pairs else 0
            yield {
                "metric": row.metric, "attention": "", "split": row.split, "epoch": row.epoch, "value": row.value,
                "null": row.null_mean, "undefined": undefined, "n": row.n,
            }  # fmt: skip
