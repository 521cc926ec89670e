"""What the paired seeds decide: every metric under every contrast of objectives.

Pure functions on numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from kdx_analysis.intervals import joint_confidence
from kdx_analysis.metrics import METRICS, asked_about
from kdx_analysis.objectives import ladder_names, rungs
from kdx_analysis.runs import Paired, bonferroni
from kdx_analysis.runs.statistics.paired import by_seed, paired
from kdx_analysis.runs.tables.numbers import listed

# A difference of less than a tenth of a metric's value under hard labels is called none.
MARGIN_SHARE = 0.1
LOWERS, RAISES, NO, UNDECIDED, ONE_SEED, NOT_MEASURED = (
    "lowers",
    "raises",
    "no difference",
    "undecided",
    "one seed",
    "not measured",
)


@dataclass(frozen=True)
class Contrast:
    """Two objectives, a − b, by their rungs; ``adds`` says what a has that b has not."""

    a: str
    b: str
    title: str
    adds: str

    @property
    def attributes(self) -> bool:
        """Whether it sets KD against a control, which tells part of its effect from the rest."""
        return self.a == "kd" and self.b in ladder_names()[1:]


@dataclass(frozen=True)
class Decision:
    """What the interval of one metric under one contrast decides, at one confidence.

    Attributes:
        effect: paired difference a − b with its interval; None if no seed has both.
        excess: the paired difference of what the metric has above its null, over the seeds and
            epochs at which both sides have a null; None where there is no such seed, or the metric
            has no null.
        has_null: whether the metric has one.
        confidence: of both intervals.
        verdict: lowers, raises, no difference, undecided, one seed, not measured; '' for metrics
            not asked about.
    """

    effect: Paired | None
    excess: Paired | None
    has_null: bool
    confidence: float
    verdict: str

    @property
    def changed(self) -> bool:
        """Whether it lowers or raises the metric."""
        return self.verdict in (LOWERS, RAISES)

    @property
    def beyond_null(self) -> bool:
        """Whether the excess over the null is decided as the effect is.

        True where the metric has no null to ask.
        """
        if not self.has_null or self.effect is None:
            return True
        return (
            self.excess is not None
            and self.excess.excludes_zero
            and self.excess.mean * self.effect.mean > 0
        )


@dataclass(frozen=True)
class Finding:
    """One metric under one contrast.

    Attributes:
        margin: a tenth of the metric's mean size under hard labels; NaN if hard was not run or the
            metric not asked about.
        quotable: what is decided at 95 % over all metrics and contrasts together, so that every
            such sentence of a report may be quoted beside the others.
        alone: what this contrast decides by itself, at 95 % over the metrics asked about. It is the
            answer to a question that was asked beforehand; of many contrasts it is exploratory.
    """

    metric: str
    contrast: Contrast
    margin: float
    quotable: Decision
    alone: Decision

    @property
    def effect(self) -> Paired | None:
        """Paired difference a − b with its quotable interval; None if no seed has both."""
        return self.quotable.effect

    @property
    def confidence(self) -> float:
        """Of the interval that may be quoted."""
        return self.quotable.confidence

    @property
    def verdict(self) -> str:
        """What may be quoted."""
        return self.quotable.verdict

    def meaning(self) -> str:
        """What the change of the metric means, in words."""
        assert self.effect is not None
        after, before = self.effect.levels
        return METRICS[self.metric].meaning(before, after)


def contrasts(labels: Mapping[str, str]) -> tuple[Contrast, ...]:
    """What to compare, given the rungs that were run.

    KD against its nearest control, that control against hard, then neighbours on the way down the
    ladder, then KD against hard and against label smoothing.

    Args:
        labels: rung (hard, hard_T, kd_flat, kd_shuffled, kd, label_smoothing) → the objective's
            label.
    """
    run = [name for name in ladder_names() if name in labels]
    down = [(a, b) for b, a in pairwise(run)][::-1]
    rest = [(control, run[0]) for _, control in down[:1] if control != run[0]]
    pairs = [*down[:1], *rest, *down[1:], ("kd", "hard"), ("kd", "label_smoothing")]
    return tuple(
        Contrast(a, b, f"{labels[a]} − {labels[b]}", _adds(a, b))
        for a, b in dict.fromkeys(pairs)
        if a in labels and b in labels
    )


def _adds(a: str, b: str) -> str:
    if b == "label_smoothing":
        return "includes temperature and softness"
    if (a, b) == ("kd", "hard"):
        return "all of KD: includes temperature and softness"
    if (a, b) == ("kd", "hard_T"):
        return "everything but temperature and loss scale"
    names = ladder_names()
    between = rungs()[names.index(b) + 1 : names.index(a) + 1]
    added: list[str] = []
    for rung in reversed(between):
        added += rung.adds
    return listed(added)


def verdict(effect: Paired | None, margin: float) -> str:
    """What an interval decides.

    Lowers or raises where it excludes 0, no difference where it lies within ± margin. Differences
    that are the same in every seed have an interval of width zero, which decides nothing unless
    they are all 0.
    """
    if effect is None:
        return NOT_MEASURED
    if effect.n < 2:
        return ONE_SEED
    if effect.mean != 0 and effect.is_point:
        return UNDECIDED
    if effect.excludes_zero:
        return LOWERS if effect.high < 0 else RAISES
    if -margin <= effect.low and effect.high <= margin:
        return NO
    return UNDECIDED


def find(
    values: Mapping[str, pd.DataFrame],
    labels: Mapping[str, str],
    nulls: Mapping[str, pd.DataFrame] | None = None,
) -> tuple[Finding, ...]:
    """Every metric under every contrast.

    With m metrics asked about that were measured, and k comparisons of them under all contrasts,
    intervals are at 1 − 0.05/k where they may be quoted and at 1 − 0.05/m where a contrast stands
    alone.

    Args:
        values: metric → its value by rungs (columns), one row a seed, or as :meth:`RunSet.by_epoch`
            has them; NaN or no column where not measured. A difference is over the epochs at which
            both sides are defined.
        labels: as for :func:`contrasts`.
        nulls: metric → its null, as ``values``.
    """
    nulls = nulls or {}
    asked = [
        metric
        for metric in asked_about()
        if metric in values and values[metric].notna().to_numpy().any()
    ]
    shown = (*asked, *(metric for metric in values if metric not in asked_about()))
    compared = [
        _compared(metric, contrast, values[metric], nulls.get(metric))
        for metric in shown
        for contrast in contrasts(labels)
    ]
    together = joint_confidence(each.effect for each in compared if each.metric in asked)
    alone = bonferroni(len(asked))
    margins = {metric: _margin(values[metric], metric) for metric in asked}
    return tuple(
        _finding(each, margins.get(each.metric, math.nan), together, alone) for each in compared
    )


class _Compared(NamedTuple):
    """One metric under one contrast, with intervals at 95 % each."""

    metric: str
    contrast: Contrast
    effect: Paired | None
    excess: Paired | None
    has_null: bool


def _compared(
    metric: str, contrast: Contrast, table: pd.DataFrame, null: pd.DataFrame | None
) -> _Compared:
    sides, reduction = (contrast.a, contrast.b), METRICS[metric].pairs_make
    effect = paired(table, *sides, over_pairs=reduction)
    above = _above_null(table, null)
    excess = None if above is None else paired(above, *sides, over_pairs=reduction)
    return _Compared(metric, contrast, effect, excess, null is not None)


def _above_null(table: pd.DataFrame, null: pd.DataFrame | None) -> pd.DataFrame | None:
    return None if null is None or not null.notna().to_numpy().any() else table - null


def _margin(table: pd.DataFrame, metric: str) -> float:
    if "hard" not in table.columns:
        return math.nan
    return MARGIN_SHARE * abs(
        float(by_seed(table[["hard"]], METRICS[metric].pairs_make)["hard"].mean())
    )


def _finding(compared: _Compared, margin: float, together: float, alone: float) -> Finding:
    decisions = (_decision(compared, margin, confidence) for confidence in (together, alone))
    return Finding(compared.metric, compared.contrast, margin, *decisions)


def _decision(compared: _Compared, margin: float, confidence: float) -> Decision:
    effect, excess = (
        None if each is None else each.at(confidence) for each in (compared.effect, compared.excess)
    )
    decided = verdict(effect, margin) if compared.metric in asked_about() else ""
    return Decision(effect, excess, compared.has_null, confidence, decided)
