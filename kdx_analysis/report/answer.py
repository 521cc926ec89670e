"""The answer that the report opens with: from findings to their wording. Pure functions on numbers.

The question: what does knowledge distillation do to the conflicts between subtasks that label smoothing and hard
labels do not, and how much of it comes from the teacher's knowledge of the classes rather than from the loss's
temperature and softness? It is answered by the difference of KD and its nearest control, seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from kdx_analysis.config import LADDER
from kdx_analysis.report.findings import (
    ASKED,
    CONFLICT,
    LOWERS,
    NO,
    NOT_MEASURED,
    ONE_SEED,
    RAISES,
    UNDECIDED,
    Contrast,
    Finding,
    contrasts,
    find,
)
from kdx_analysis.report.numbers import decimals_for, estimate, listed, number, size_of_change
from kdx_analysis.runs import METRIC, Paired

ACCURACY_MARGIN = 0.02
COLUMNS = (
    "metric", "contrast", "adds", "effect", "low", "high", "confidence", "n", "correlation", "margin", "verdict",
    "excess", "excess_low", "excess_high",
)  # fmt: skip
MEANS = {
    "conflict_rate": ("less conflict", "more conflict"),
    "severity": ("less conflict", "more conflict"),
    "contention": ("less conflict", "more conflict"),
    "separation": ("gates keep conflicts less apart", "gates keep conflicts further apart"),
    "modulation": ("it matters less which subtask goes where", "it matters more which subtask goes where"),
    "gate_entropy": ("sharper gates", "flatter gates"),
}


@dataclass(frozen=True)
class Answer:
    """What the data say.

    Attributes:
        headline: the answer in a sentence.
        rest: what the rest of KD does, in a sentence; '' where that was not run.
        contrasts: the further contrasts, one sentence each.
        division: how KD's effect divides over the rungs of the ladder; '' where they were not run.
        cautions: what stands against reading too much into it.
        findings: every metric under every contrast, those asked about first.
        confidence: of every interval, 1 − 0.05/m over the m metrics asked about.
    """

    headline: str
    rest: str
    contrasts: tuple[str, ...]
    division: str
    cautions: tuple[str, ...]
    findings: tuple[Finding, ...]
    confidence: float

    @property
    def opening(self) -> str:
        """Headline and rest."""
        return f"{self.headline} {self.rest}".rstrip()

    @property
    def details(self) -> tuple[str, ...]:
        """Contrasts and division."""
        return tuple(filter(None, (*self.contrasts, self.division)))

    def to_frame(self) -> pd.DataFrame:
        """One row per finding, with the columns COLUMNS; ``excess`` is the effect on what lies above the null."""
        rows = []
        nothing = Paired(0, math.nan, math.nan, math.nan, (), math.nan)
        for finding in self.findings:
            effect, excess = finding.effect or nothing, finding.excess or nothing
            rows.append({
                "metric": finding.metric, "contrast": finding.contrast.title, "adds": finding.contrast.adds,
                "effect": effect.mean, "low": effect.low, "high": effect.high, "confidence": finding.confidence,
                "n": effect.n, "correlation": effect.correlation, "margin": finding.margin, "verdict": finding.verdict,
                "excess": excess.mean, "excess_low": excess.low, "excess_high": excess.high,
            })  # fmt: skip
        return pd.DataFrame(rows, columns=list(COLUMNS))


def answer(
    values: Mapping[str, pd.DataFrame], labels: Mapping[str, str], nulls: Mapping[str, pd.DataFrame] | None = None
) -> Answer:
    """The answer for one KD objective and its controls.

    Args:
        values, labels, nulls: as for :func:`find`.
    """
    found = find(values, labels, nulls)
    confidence = found[0].confidence if found else 0.95
    all_contrasts = contrasts(labels)
    main = next((contrast for contrast in all_contrasts if contrast.attributes), None)

    def of(contrast: Contrast) -> list[Finding]:
        return [f for f in found if f.contrast == contrast and f.metric in ASKED]

    others = [contrast for contrast in all_contrasts if contrast != main]
    rest_of_kd = ""
    sentences = []
    if main is not None:
        sentences.append(_gate_sentence(of(main)))
        rest = next((contrast for contrast in others if (contrast.a, contrast.b) == (main.b, "hard")), None)
        if rest is not None:
            rest_of_kd = f"The rest of KD, {_contrast_sentence(rest, of(rest))}"
            others.remove(rest)
    sentences += [_contrast_sentence(contrast, of(contrast)) for contrast in others]
    return Answer(
        _headline(main, of(main) if main else [], labels),
        rest_of_kd,
        tuple(filter(None, sentences)),
        _division(values, labels, found),
        _cautions(values, labels, main),
        found,
        confidence,
    )


def _headline(main: Contrast | None, found: Sequence[Finding], labels: Mapping[str, str]) -> str:
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
    rest = _rest([f for f in found if f.metric in CONFLICT and f not in changed])
    if changed:
        says = (
            f"Yes: {subject} changes the conflict between subtasks"
            if any(f.beyond_null for f in changed)
            else f"Not beyond the null: nothing shows that {subject} changes which subtasks are in conflict"
        )
        return (
            f"{says}; {labels[main.a]} against {labels[main.b]} "
            f"{listed([_change(f) for f in changed])}{'; ' + rest if rest else ''} ({_basis(conflict)})."
        )
    if all(f.verdict == NO for f in conflict):
        missing = _rest([f for f in found if f.metric in CONFLICT and f.effect is None])
        return (
            f"No: {subject} makes no difference worth a tenth of the metric's value under hard labels to any of the "
            f"{len(conflict)} conflict figures ({main.title}, {_basis(conflict)}){'; ' + missing if missing else ''}."
        )
    return (
        f"Undecided: whether {subject} changes the conflict between subtasks. No interval of {main.title} settles it "
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
    rest = _all_alike(found) or _rest([f for f in found if f.verdict not in (LOWERS, RAISES)])
    return f"{name}: {'; '.join(part for part in (listed(changed), rest) if part)}."


def _rest(found: Sequence[Finding]) -> str:
    """The findings that are no change, by verdict."""
    wording = {
        NO: "no difference worth a tenth of the metric's value under hard labels in",
        UNDECIDED: "undecided for",
        ONE_SEED: "one seed only for",
        NOT_MEASURED: "not defined in both for",
    }
    groups = {decided: [_title(f) for f in found if f.verdict == decided] for decided in wording}
    return "; ".join(f"{wording[decided]} {listed(titles)}" for decided, titles in groups.items() if titles)


def _all_alike(found: Sequence[Finding]) -> str:
    """The one verdict of several findings that are no change, in a few words; '' if there are more."""
    if len(found) < 3 or len({f.verdict for f in found}) > 1 or found[0].verdict not in (NO, UNDECIDED):
        return ""
    if found[0].verdict == UNDECIDED:
        return f"undecided for all {len(found)} metrics"
    return f"no difference worth a tenth of its value under hard labels in any of the {len(found)} metrics"


def _division(values: Mapping[str, pd.DataFrame], labels: Mapping[str, str], found: Sequence[Finding]) -> str:
    """How KD − hard divides over the rungs between them, for the conflict figures in which it is decided.

    Left out of a figure where some rung lacks a seed that the decision rests on.
    """
    rungs = [rung for rung in LADDER if rung in labels]
    total = [f for f in found if (f.contrast.a, f.contrast.b) == ("kd", "hard") and f.metric in CONFLICT]
    total = [f for f in total if f.effect and f.effect.n > 1]
    if len(rungs) < 3 or not total:
        return ""
    neighbours = set(pairwise(rungs))
    steps = [c for c in contrasts(labels) if (c.b, c.a) in neighbours]
    decided = [f for f in total if f.verdict in (LOWERS, RAISES)]
    if not decided:
        return (
            f"{total[0].contrast.title} is itself decided in no conflict figure, so there is no settled effect to "
            "divide between knowledge of the classes and the rest."
        )
    sentences = []
    for finding in decided:
        table = values[finding.metric]
        if finding.effect is None or not set(rungs) <= set(table.columns):
            continue
        common = table[rungs].dropna()
        if len(common) != finding.effect.n:
            continue
        mean, decimals = common.mean(), decimals_for(finding.effect)
        parts = [f"{number(mean[c.a] - mean[c.b], decimals, signed=True)} {c.adds}" for c in steps]
        sentences.append(
            f"{_title(finding)}, {number(mean['kd'] - mean['hard'], decimals, signed=True)} in the mean over "
            f"n = {len(common)} seeds, is the sum of {listed(parts)}"
        )
    if not sentences:
        return ""
    return f"Of {total[0].contrast.title}: {'; '.join(sentences)}."


def _cautions(values: Mapping[str, pd.DataFrame], labels: Mapping[str, str], main: Contrast | None) -> tuple[str, ...]:
    accuracy = values.get("accuracy", pd.DataFrame())
    pairs = [(rung, "hard") for rung in labels] + ([(main.a, main.b)] if main else [])
    gaps = {(a, b): (accuracy[a] - accuracy[b]).mean() for a, b in pairs if {a, b} <= set(accuracy.columns)}
    far = [
        f"{labels[a]} {number(100 * gap, 1, signed=True)} points from {labels[b]}"
        for (a, b), gap in gaps.items()
        if abs(gap) > ACCURACY_MARGIN
    ]
    if not far:
        return ()
    return (
        f"The explainers differ in accuracy: {listed(far)}. Their conflict figures compare networks that classify "
        "differently well, so a difference may be due to that.",
    )


def _title(finding: Finding) -> str:
    return METRIC[finding.metric].title


def _signed(finding: Finding) -> str:
    return estimate(finding.effect, signed=True)


def _change(finding: Finding) -> str:
    meaning = MEANS[finding.metric][finding.verdict == RAISES]
    beyond = "" if finding.beyond_null else ", but not beyond its null"
    return f"{finding.verdict} {_title(finding)} by {size(finding)} ({meaning}{beyond})"


def size(finding: Finding) -> str:
    """The size of a change and its interval, without sign."""
    assert finding.effect is not None
    return size_of_change(finding.effect)


def _basis(found: Sequence[Finding]) -> str:
    counts = sorted({f.effect.n for f in found if f.effect})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{100 * found[0].confidence:.4g} % intervals, n = {n} seeds"
