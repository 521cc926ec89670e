"""The answer that the report opens with: pure functions from numbers to findings and their wording.

The question: what does knowledge distillation do to the conflicts between subtasks that label smoothing and hard
labels do not, and how much of it comes from the teacher's knowledge of the classes rather than from the loss's
temperature and softness? It is answered by the difference of KD and its nearest control, seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from kdx_analysis.config import LADDER
from kdx_analysis.report.numbers import decimals_for, estimate, listed, number
from kdx_analysis.runs import METRIC, METRICS, Paired, paired_difference

CONFLICT = tuple(metric.name for metric in METRICS if metric.conflict)
ASKED = (*CONFLICT, "gate_entropy")
MARGIN_SHARE = 0.1
ACCURACY_MARGIN = 0.02
LOWERS, RAISES, NO, UNDECIDED, ONE_SEED, NOT_MEASURED = (
    "lowers", "raises", "no difference", "undecided", "one seed", "not measured",
)  # fmt: skip

_ADDS = {
    "hard_T": "temperature and loss scale",
    "kd_flat": "softness",
    "kd_shuffled": "unevenness",
    "kd": "class structure",
}
_MEANS = {
    "conflict_rate": ("less conflict", "more conflict"),
    "severity": ("less conflict", "more conflict"),
    "contention": ("less conflict", "more conflict"),
    "separation": ("gates keep conflicts less apart", "gates keep conflicts further apart"),
    "modulation": ("it matters less which subtask goes where", "it matters more which subtask goes where"),
    "gate_entropy": ("sharper gates", "flatter gates"),
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
        margin: a tenth of the metric's mean size under hard labels; NaN if hard was not run.
        verdict: lowers, raises, no difference, undecided, one seed, not measured; '' for metrics not asked about.
    """

    metric: str
    contrast: Contrast
    effect: Paired | None
    confidence: float
    margin: float
    verdict: str


@dataclass(frozen=True)
class Answer:
    """What the data say.

    Attributes:
        opening: the answer in a sentence.
        details: the further contrasts, one sentence each.
        cautions: what stands against reading too much into it.
        findings: every metric under every contrast, those asked about first.
        confidence: of every interval, 1 − 0.05/m over the m metrics asked about.
    """

    opening: str
    details: tuple[str, ...]
    cautions: tuple[str, ...]
    findings: tuple[Finding, ...]
    confidence: float

    def to_frame(self) -> pd.DataFrame:
        rows = [
            {
                "metric": f.metric, "contrast": f.contrast.title, "adds": f.contrast.adds,
                "effect": f.effect.mean if f.effect else math.nan,
                "low": f.effect.low if f.effect else math.nan,
                "high": f.effect.high if f.effect else math.nan,
                "confidence": f.confidence, "n": f.effect.n if f.effect else 0,
                "correlation": f.effect.correlation if f.effect else math.nan,
                "margin": f.margin, "verdict": f.verdict,
            }
            for f in self.findings
        ]  # fmt: skip
        return pd.DataFrame(rows)


def contrasts(labels: Mapping[str, str]) -> tuple[Contrast, ...]:
    """Neighbours among the rungs that were run, from KD down, then KD against hard and against label smoothing.

    Args:
        labels: rung (hard, hard_T, kd_flat, kd_shuffled, kd, label_smoothing) → the objective's label.
    """

    def contrast(a: str, b: str, adds: str) -> Contrast:
        return Contrast(a, b, f"{labels[a]} − {labels[b]}", adds)

    rungs = [rung for rung in LADDER if rung in labels]
    found = []
    for b, a in reversed(list(zip(rungs, rungs[1:], strict=False))):
        added = [_ADDS[rung] for rung in LADDER[LADDER.index(b) + 1 : LADDER.index(a) + 1]]
        everything = a == "kd" and b in ("hard", "hard_T")
        found.append(contrast(a, b, _everything(b) if everything else listed(added[::-1])))
    whole = contrast("kd", "hard", _everything("hard")) if {"kd", "hard"} <= labels.keys() else None
    if whole is not None and whole not in found:
        found.append(whole)
    if {"kd", "label_smoothing"} <= labels.keys():
        found.append(contrast("kd", "label_smoothing", "includes temperature and softness"))
    return tuple(found)


def _everything(below: str) -> str:
    if below == "hard_T":
        return "everything but temperature and loss scale"
    return "all of KD: includes temperature and softness"


def verdict(effect: Paired | None, margin: float) -> str:
    """What an interval decides: lowers or raises where it excludes 0, no difference where it lies within ± margin."""
    if effect is None:
        return NOT_MEASURED
    if effect.n < 2:
        return ONE_SEED
    if effect.excludes_zero:
        return LOWERS if effect.high < 0 else RAISES
    if -margin <= effect.low and effect.high <= margin:
        return NO
    return UNDECIDED


def find(values: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> tuple[Finding, ...]:
    """Every metric under every contrast, at confidence 1 − 0.05/m over the m metrics asked about that were measured.

    Args:
        values: metric → its value, seeds (rows) by rungs (columns); NaN or no column where not measured.
        labels: as for :func:`contrasts`.
    """
    asked = [metric for metric in ASKED if metric in values and values[metric].notna().to_numpy().any()]
    confidence = 1 - 0.05 / max(1, len(asked))
    found = []
    for metric in (*asked, *(metric for metric in values if metric not in ASKED)):
        table = values[metric]
        hard = table["hard"].mean() if "hard" in table.columns else math.nan
        margin = MARGIN_SHARE * abs(float(hard))
        for contrast in contrasts(labels):
            effect = _paired(table, contrast, confidence)
            decided = verdict(effect, margin) if metric in asked else ""
            found.append(Finding(metric, contrast, effect, confidence, margin, decided))
    return tuple(found)


def _paired(table: pd.DataFrame, contrast: Contrast, confidence: float) -> Paired | None:
    if not {contrast.a, contrast.b} <= set(table.columns):
        return None
    both = table[[contrast.a, contrast.b]].dropna()
    if both.empty:
        return None
    return paired_difference(both[contrast.a].to_numpy(), both[contrast.b].to_numpy(), confidence)


def answer(values: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> Answer:
    """The answer for one KD objective and its controls; arguments as for :func:`find`, ``accuracy`` among the values."""
    found = find(values, labels)
    confidence = found[0].confidence if found else 0.95
    all_contrasts = contrasts(labels)
    main = next((contrast for contrast in all_contrasts if contrast.attributes), None)

    def of(contrast: Contrast) -> list[Finding]:
        return [f for f in found if f.contrast == contrast and f.metric in ASKED]

    details = [_gate_sentence(of(main))] if main else []
    details += [_contrast_sentence(contrast, of(contrast)) for contrast in all_contrasts if contrast != main]
    details.append(_division(values, all_contrasts, found))
    return Answer(
        _opening(main, of(main) if main else [], labels),
        tuple(detail for detail in details if detail),
        _cautions(values, labels),
        found,
        confidence,
    )


def _opening(main: Contrast | None, found: Sequence[Finding], labels: Mapping[str, str]) -> str:
    if main is None:
        missing = "KD was not run" if "kd" not in labels else "no control of KD (hard_T, kd_flat, kd_shuffled) was run"
        return (
            f"No attribution is possible: {missing}, so nothing here tells the teacher's knowledge of the classes "
            "from the loss's temperature and softness."
        )
    conflict = [f for f in found if f.metric in CONFLICT and f.effect is not None]
    if not conflict:
        return f"No attribution is possible: no conflict figure was measured for both sides of {main.title}."
    subject = _subject(main)
    if max(f.effect.n for f in conflict if f.effect) < 2:
        raw = listed([f"{_signed(f)} in {_title(f)}" for f in conflict])
        return f"One seed: no interval, nothing decided. {main.title} ({main.adds}) came out at {raw}."
    changed = [f for f in conflict if f.verdict in (LOWERS, RAISES)]
    rest = _rest(f for f in conflict if f not in changed)
    if changed:
        return (
            f"Yes: {subject} changes the conflict between subtasks. Going from {labels[main.b]} to {labels[main.a]} "
            f"{listed([_change(f) for f in changed])} ({_basis(changed)}){'; ' + rest if rest else ''}."
        )
    if all(f.verdict == NO for f in conflict):
        return (
            f"No: {subject} makes no difference worth a tenth of the metric's value under hard labels to any of the "
            f"{len(conflict)} conflict figures ({main.title}, {_basis(conflict)})."
        )
    return (
        f"Undecided: whether {subject} changes the conflict between subtasks. No interval of {main.title} excludes 0 "
        f"({_basis(conflict)}): {rest}."
    )


def _subject(main: Contrast) -> str:
    if main.b == "kd_shuffled":
        return "the teacher's knowledge of the classes"
    if main.b == "kd_flat":
        return "the teacher's class structure together with unevenness (kd_shuffled was not run)"
    return (
        "everything in KD but temperature and loss scale (neither kd_shuffled nor kd_flat was run, so softness is "
        "not told from knowledge of the classes)"
    )


def _gate_sentence(found: Sequence[Finding]) -> str:
    """The gates' entropy under the contrast that the opening rests on; it is no conflict figure."""
    gates = [f for f in found if f.metric not in CONFLICT]
    return _contrast_sentence(gates[0].contrast, gates) if gates else ""


def _contrast_sentence(contrast: Contrast, found: Sequence[Finding]) -> str:
    name = f"{contrast.title} ({contrast.adds})"
    measured = [f for f in found if f.effect is not None]
    if not measured:
        return f"{name}: not measured."
    if all(f.verdict == ONE_SEED for f in measured):
        return f"{name}: one seed, nothing decided; {listed([f'{_signed(f)} in {_title(f)}' for f in measured])}."
    changed = [_change(f) for f in measured if f.verdict in (LOWERS, RAISES)]
    rest = _rest(f for f in measured if f.verdict not in (LOWERS, RAISES))
    return f"{name}: {'; '.join(part for part in (listed(changed), rest) if part)}."


def _rest(found: object) -> str:
    rest = list(found)  # type: ignore[call-overload]
    parts = []
    if none := [_title(f) for f in rest if f.verdict == NO]:
        parts.append(f"no difference worth a tenth of the metric's value under hard labels in {listed(none)}")
    if open_ := [_title(f) for f in rest if f.verdict == UNDECIDED]:
        parts.append(f"undecided for {listed(open_)}")
    if single := [_title(f) for f in rest if f.verdict == ONE_SEED]:
        parts.append(f"one seed only for {listed(single)}")
    return "; ".join(parts)


def _division(
    values: Mapping[str, pd.DataFrame], all_contrasts: Sequence[Contrast], found: Sequence[Finding]
) -> str:
    """How KD − hard divides over the rungs between them, for the conflict figures in which it is decided."""
    whole = next((c for c in all_contrasts if (c.a, c.b) == ("kd", "hard")), None)
    steps = [c for c in all_contrasts if c != whole and c.b != "label_smoothing"]
    total = [f for f in found if f.contrast == whole and f.metric in CONFLICT and f.effect and f.effect.n > 1]
    if whole is None or not steps or not total:
        return ""
    decided = [f for f in total if f.verdict in (LOWERS, RAISES)]
    if not decided:
        return (
            f"{whole.title} is itself decided in no conflict figure, so there is no settled effect to divide between "
            "knowledge of the classes and the rest."
        )
    sentences = []
    for finding in decided:
        table = values[finding.metric]
        rungs = ["hard", *(step.a for step in reversed(steps))]
        if not set(rungs) <= set(table.columns) or (common := table[rungs].dropna()).empty:
            continue
        mean = common.mean()
        decimals = decimals_for(finding.effect) if finding.effect else 3
        parts = [f"{number(mean[c.a] - mean[c.b], decimals, signed=True)} {c.adds}" for c in steps]
        sentences.append(
            f"{_title(finding)}, {number(mean['kd'] - mean['hard'], decimals, signed=True)}, is the sum of "
            f"{listed(parts)}"
        )
    if not sentences:
        return ""
    return f"Of {whole.title}: {'; '.join(sentences)} (means over the seeds that all of them have)."


def _cautions(values: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> tuple[str, ...]:
    cautions = []
    accuracy = values.get("accuracy", pd.DataFrame())
    if "hard" in accuracy.columns:
        gaps = {rung: (accuracy[rung] - accuracy["hard"]).mean() for rung in labels if rung in accuracy.columns}
        far = [
            f"{labels[rung]} {number(100 * gap, 1, signed=True)}"
            for rung, gap in gaps.items()
            if abs(gap) > ACCURACY_MARGIN
        ]
        if far:
            cautions.append(
                f"The explainers differ in accuracy: {listed(far)} points from {labels['hard']}. Their conflict "
                "figures compare networks that classify differently well, so a difference may be due to that."
            )
    return tuple(cautions)


def _title(finding: Finding) -> str:
    return METRIC[finding.metric].title


def _signed(finding: Finding) -> str:
    return estimate(finding.effect, signed=True)


def _change(finding: Finding) -> str:
    meaning = _MEANS[finding.metric][finding.verdict == RAISES]
    return f"{finding.verdict} {_title(finding)} by {_signed(finding).lstrip('+−')} ({meaning})".replace(
        f"by {_signed(finding).lstrip('+−')}", f"by {_size(finding)}"
    )


def _size(finding: Finding) -> str:
    """The size of a change and its interval, both positive where it is decided."""
    effect = finding.effect
    assert effect is not None
    sign = 1 if finding.verdict == RAISES else -1
    low, high = sorted((sign * effect.low, sign * effect.high))
    decimals = decimals_for(effect)
    return f"{number(sign * effect.mean, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def _basis(found: Sequence[Finding]) -> str:
    counts = sorted({f.effect.n for f in found if f.effect})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{100 * found[0].confidence:.4g} % intervals, n = {n} seeds"
