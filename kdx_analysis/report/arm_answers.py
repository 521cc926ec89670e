"""What the report says of VAM: the answer in a sentence, its details and its cautions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from kdx_analysis.report.arm_findings import (
    MARGIN,
    ArmFinding,
    ArmFindings,
    ArmGates,
    ArmTable,
    find_arms,
)
from kdx_analysis.report.findings import LOWERS, NO, ONE_SEED, RAISES
from kdx_analysis.report.health import STILL_FALLING, health
from kdx_analysis.report.tables import teacher_scores
from kdx_analysis.runs import Interval, Paired, RunSet, own_teachers
from kdx_analysis.runs.tables.numbers import estimate, listed, number, size_of_change

COLUMNS = (
    "student",
    "objective",
    "metric",
    "contrast",
    "adds",
    "effect",
    "low",
    "high",
    "confidence",
    "n",
    "correlation",
    "margin",
    "verdict",
)


@dataclass(frozen=True)
class ArmAnswer:
    """What the data say on VAM.

    Attributes:
        opening: the answer in a sentence.
        details: the further contrasts, and the gates, a sentence each.
        cautions: what stands against reading too much into it.
        findings: what these sentences are about.
    """

    opening: str
    details: tuple[str, ...]
    cautions: tuple[str, ...]
    findings: ArmFindings

    @property
    def tables(self) -> tuple[ArmTable, ...]:
        """Accuracy and agreement, by student and objective."""
        return self.findings.tables

    @property
    def gates(self) -> tuple[ArmGates, ...]:
        """By student, objective and arm."""
        return self.findings.gates

    @property
    def confidence(self) -> float:
        """Of every interval of a difference."""
        return self.findings.confidence

    def to_frame(self) -> pd.DataFrame:
        """One row per contrast, with the columns COLUMNS; effects in percentage points."""
        rows = [
            _row(table, finding, self.confidence)
            for table in self.tables
            for finding in table.findings
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(table: ArmTable, finding: ArmFinding, confidence: float) -> tuple[object, ...]:
    effect = finding.effect
    return (
        table.student,
        table.objective,
        table.metric,
        finding.contrast.title,
        finding.contrast.adds,
        effect.mean,
        effect.low,
        effect.high,
        confidence,
        effect.n,
        effect.correlation,
        100 * MARGIN,
        finding.verdict,
    )


def arm_answer(runs: RunSet) -> ArmAnswer:
    """The answer on all students and objectives of ``runs``; KD's comes first.

    Raises AbsentError without two arms that share a seed.
    """
    findings = find_arms(runs)
    first, *others = findings.accuracies
    details = [
        _sentence(first, first.findings[1:]),
        *(_sentence(table, table.findings) for table in others),
        _gate_sentence([gates for gates in findings.gates if gates.belong_to(first)]),
    ]
    return ArmAnswer(
        _opening(first, findings.confidence),
        tuple(filter(None, details)),
        _cautions(runs, findings.runs, first),
        findings,
    )


def _opening(table: ArmTable, confidence: float) -> str:
    finding = table.findings[0]
    subject, effect = finding.contrast.adds, finding.effect
    size = estimate(effect, 2, signed=True)
    what = f"the test accuracy of {table.student} under {table.objective}"
    basis = f"{finding.contrast.title}, {100 * confidence:.4g} % interval, n = {_counted(effect)}"
    if finding.verdict in (LOWERS, RAISES):
        return (
            f"Yes: {subject} {finding.verdict} {what} by {size_of_change(effect, 2)} percentage "
            f"points ({basis})."
        )
    if finding.verdict == NO:
        return (
            f"No: {subject} makes no difference worth {100 * MARGIN:g} percentage points to "
            f"{what}: {size} points ({basis})."
        )
    if finding.verdict == ONE_SEED:
        return (
            f"One pair, no interval, nothing decided: {subject} changed {what} by {size} "
            "percentage points."
        )
    return f"Undecided: whether {subject} changes {what}; {size} percentage points ({basis})."


def _sentence(table: ArmTable, findings: Sequence[ArmFinding]) -> str:
    """The findings on one student under one objective; '' where there is none."""
    parts = [
        f"{f.contrast.title} ({f.contrast.adds}) {estimate(f.effect, 2, signed=True)}, "
        f"{f.verdict}, n = {_counted(f.effect)}"
        for f in findings
    ]
    return f"{table.student} under {table.objective}: {'; '.join(parts)}." if parts else ""


def _gate_sentence(gates: Sequence[ArmGates]) -> str:
    """The gates of one student under one objective; '' where there is none."""
    if not gates:
        return ""
    alpha = _by_arm({each.arm: each.alpha for each in gates})
    share = _by_arm({each.arm: each.share for each in gates})
    uniform = _by_arm({each.arm: each.uniform for each in gates})
    return (
        f"Under {gates[0].objective} the entropy H/ln M of VAM's gates, 1 at the start, ends at "
        f"{alpha}; that of the shares of flow at {share}, where the same weights at uniform "
        f"attention have {uniform}."
    )


def _by_arm(intervals: Mapping[str, Interval]) -> str:
    return listed([f"{number(interval.mean, 2)} ({arm})" for arm, interval in intervals.items()])


def _counted(effect: Paired) -> str:
    return f"{effect.n} pair{'' if effect.n == 1 else 's'}"


def _cautions(runs: RunSet, of_arms: RunSet, first: ArmTable) -> tuple[str, ...]:
    trainings = health(of_arms)
    falling = sum(t.fall > STILL_FALLING for t in trainings)
    epochs = listed(list(map(str, sorted({t.epochs for t in trainings}))))
    sizes = {run.info["data"]["sizes"]["train"] for run in of_arms}
    images = listed(list(map(str, sorted(sizes))))
    means = sorted(interval.mean for interval in first.means.values())
    reached = " to ".join(dict.fromkeys(number(mean, 1) for mean in (means[0], means[-1])))
    scores = teacher_scores(own_teachers(runs))
    teachers = [f"{each.name} {number(100 * each.accuracy, 1)} %" for each in scores]
    taught = f" (teacher {listed(teachers)})" if teachers else ""
    cautions = [
        f"The students were trained for {epochs} epochs of {images} images and reach {reached} % "
        f"under {first.objective}{taught}; the loss still fell by more than "
        f"{100 * STILL_FALLING:g} % in the last epoch of {falling} of {len(trainings)} trainings. "
        "The arms are compared at this length of training, which tells little of the accuracies "
        "that they reach on more images or in the end."
    ]
    effect = first.findings[0].effect
    if effect.n > 1:
        half = number((effect.high - effect.low) / 2, 2)
        cautions.append(
            f"With n = {effect.n} pairs the interval reaches {half} points to either side, so an "
            "effect of less can't be told from none. The gains that are told of VAM are 0.25 to "
            "0.57 points."
        )
    return tuple(cautions)
