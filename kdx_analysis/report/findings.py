"""What the paired seeds decide: every metric under every contrast of objectives. Pure functions on numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from kdx_analysis.config import LADDER
from kdx_analysis.report.numbers import listed
from kdx_analysis.runs import METRICS, Paired, paired_difference

CONFLICT = tuple(metric.name for metric in METRICS if metric.conflict)
ASKED = (*CONFLICT, "gate_entropy")
MARGIN_SHARE = 0.1
LOWERS, RAISES, NO, UNDECIDED, ONE_SEED, NOT_MEASURED = (
    "lowers", "raises", "no difference", "undecided", "one seed", "not measured",
)  # fmt: skip
_ADDS = {
    "hard_T": ("temperature", "loss scale"),
    "kd_flat": ("softness",),
    "kd_shuffled": ("unevenness",),
    "kd": ("class structure",),
}


@dataclass(frozen=True)
class Contrast:
    """Two objectives, a − b, by their rungs of the ladder; ``adds`` says what a has that b has not."""

    a: str
    b: str
    title: str
    adds: str

    @property
    def attributes(self) -> bool:
        """Whether it sets KD against a control, so that something of KD's effect is told from the rest."""
        return self.a == "kd" and self.b in LADDER[1:]


@dataclass(frozen=True)
class Finding:
    """One metric under one contrast.

    Attributes:
        effect: paired difference a − b with its interval at ``confidence``; None if no seed has both.
        margin: a tenth of the metric's mean size under hard labels; NaN if hard was not run or the metric not
            asked about.
        verdict: lowers, raises, no difference, undecided, one seed, not measured; '' for metrics not asked about.
        excess: the paired difference of what the metric has above its null, at the same confidence; None where no seed
            has a null in both.
    """

    metric: str
    contrast: Contrast
    effect: Paired | None
    confidence: float
    margin: float
    verdict: str
    excess: Paired | None = None

    @property
    def beyond_null(self) -> bool:
        """Whether the excess over the null is decided as the effect is; True where there is no null to ask."""
        if self.excess is None or self.effect is None:
            return True
        return self.excess.excludes_zero and self.excess.mean * self.effect.mean > 0


def contrasts(labels: Mapping[str, str]) -> tuple[Contrast, ...]:
    """What to compare, given the rungs that were run.

    KD against its nearest control, that control against hard, then neighbours on the way down the ladder, then KD
    against hard and against label smoothing.

    Args:
        labels: rung (hard, hard_T, kd_flat, kd_shuffled, kd, label_smoothing) → the objective's label.
    """
    rungs = [rung for rung in LADDER if rung in labels]
    down = [(a, b) for b, a in pairwise(rungs)][::-1]
    rest = [(control, rungs[0]) for _, control in down[:1] if control != rungs[0]]
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
    return listed([what for rung in LADDER[LADDER.index(a) : LADDER.index(b) : -1] for what in _ADDS[rung]])


def verdict(effect: Paired | None, margin: float) -> str:
    """What an interval decides: lowers or raises where it excludes 0, no difference where it lies within ± margin.

    Differences that are the same in every seed have an interval of width zero, which decides nothing unless they
    are all 0.
    """
    if effect is None:
        return NOT_MEASURED
    if effect.n < 2:
        return ONE_SEED
    if effect.mean != 0 and effect.high - effect.low <= 1e-9 * abs(effect.mean):
        return UNDECIDED
    if effect.excludes_zero:
        return LOWERS if effect.high < 0 else RAISES
    if -margin <= effect.low and effect.high <= margin:
        return NO
    return UNDECIDED


def find(
    values: Mapping[str, pd.DataFrame], labels: Mapping[str, str], nulls: Mapping[str, pd.DataFrame] | None = None
) -> tuple[Finding, ...]:
    """Every metric under every contrast, at confidence 1 − 0.05/m over the m metrics asked about that were measured.

    Args:
        values: metric → its value, seeds (rows) by rungs (columns); NaN or no column where not measured.
        labels: as for :func:`contrasts`.
        nulls: conflict metric → its null, as ``values``.
    """
    asked = [metric for metric in ASKED if metric in values and values[metric].notna().to_numpy().any()]
    confidence = 1 - 0.05 / max(1, len(asked))
    found = []
    for metric in (*asked, *(metric for metric in values if metric not in ASKED)):
        table = values[metric]
        hard = table["hard"].mean() if "hard" in table.columns else math.nan
        margin = MARGIN_SHARE * abs(float(hard)) if metric in asked else math.nan
        for contrast in contrasts(labels):
            effect = _paired(table, contrast, confidence)
            decided = verdict(effect, margin) if metric in asked else ""
            excess = _paired(table - nulls[metric], contrast, confidence) if nulls and metric in nulls else None
            found.append(Finding(metric, contrast, effect, confidence, margin, decided, excess))
    return tuple(found)


def _paired(table: pd.DataFrame, contrast: Contrast, confidence: float) -> Paired | None:
    if not {contrast.a, contrast.b} <= set(table.columns):
        return None
    both = table[[contrast.a, contrast.b]].dropna()
    if both.empty:
        return None
    return paired_difference(both[contrast.a].to_numpy(), both[contrast.b].to_numpy(), confidence)
