"""What VAM does to students: every arm against the one without it, pair by pair, and the wording of
the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from kdx_analysis.errors import AbsentError
from kdx_analysis.metrics import METRICS
from kdx_analysis.report import health
from kdx_analysis.report.findings import LOWERS, NO, ONE_SEED, RAISES, verdict
from kdx_analysis.report.numbers import estimate, listed, number, size_of_change
from kdx_analysis.report.tables import teacher_accuracy
from kdx_analysis.runs import (
    ArmContrast,
    Interval,
    Paired,
    RunSet,
    arm_contrasts,
    arms,
    bonferroni,
    t_interval,
)

MARGIN = 0.0025  # a quarter of a percentage point, the smallest gain that is told of VAM
_METRICS = ("accuracy", "agreement")
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
class ArmFinding:
    """One contrast of arms: paired difference a − b in percentage points; ``verdict`` '' for
    agreement.
    """

    contrast: ArmContrast
    effect: Paired
    verdict: str


@dataclass(frozen=True)
class ArmTable:
    """One metric of one student under one objective.

    Attributes:
        student, objective, metric: what it is of.
        values: per cent, seeds (rows) by arms (columns); NaN where a run is missing.
        means: of every arm.
        findings: of every contrast of which there is a pair.
    """

    student: str
    objective: str
    metric: str
    values: pd.DataFrame
    means: Mapping[str, Interval]
    findings: tuple[ArmFinding, ...]

    @property
    def title(self) -> str:
        return METRICS[self.metric].title

    def differences(self, seed: int) -> list[float]:
        """The difference of every contrast in one seed; NaN where a side is missing."""
        row = self.values.loc[seed].to_dict()
        return [row[f.contrast.a] - row[f.contrast.b] for f in self.findings]


@dataclass(frozen=True)
class ArmGates:
    """Mean H/ln M of VAM's gates at the selected epoch: of α, of the shares of flow, and of these
    at uniform α.
    """

    student: str
    objective: str
    arm: str
    alpha: Interval
    share: Interval
    uniform: Interval

    def of(self, table: ArmTable) -> bool:
        """Whether they are the gates of the students in that table."""
        return (self.student, self.objective) == (table.student, table.objective)


@dataclass(frozen=True)
class ArmAnswer:
    """What the data say on VAM.

    Attributes:
        opening: the answer in a sentence.
        details: the further contrasts, and the gates, a sentence each.
        cautions: what stands against reading too much into it.
        tables: accuracy and agreement, by student and objective.
        gates: by student, objective and arm.
        confidence: of every interval of a difference, 1 − 0.05/m over the m differences of
            accuracy.
    """

    opening: str
    details: tuple[str, ...]
    cautions: tuple[str, ...]
    tables: tuple[ArmTable, ...]
    gates: tuple[ArmGates, ...]
    confidence: float

    def to_frame(self) -> pd.DataFrame:
        """One row per contrast, with the columns COLUMNS; effects and margin in percentage points."""
        rows = []
        for table in self.tables:
            for found in table.findings:
                effect = found.effect
                rows.append(
                    (
                        table.student,
                        table.objective,
                        table.metric,
                        found.contrast.title,
                        found.contrast.adds,
                        effect.mean,
                        effect.low,
                        effect.high,
                        self.confidence,
                        effect.n,
                        effect.correlation,
                        100 * MARGIN,
                        found.verdict,
                    )
                )
        return pd.DataFrame(rows, columns=list(COLUMNS))


def arm_answer(runs: RunSet) -> ArmAnswer:
    """The answer on all students and objectives of ``runs``; KD's comes first.

    Raises AbsentError without two arms that share a seed.
    """
    found = arms(runs)
    contrasts = arm_contrasts(found)
    groups = [
        (str(student), objective, of_student.filter(objective=objective))
        for student, of_student in sorted(found.group("model").items())
        for objective in sorted(
            of_student.objectives, key=lambda label: not _is_kd(of_student, label)
        )
    ]
    confidence = bonferroni(len(groups) * len(contrasts))
    tables = tuple(
        _table(student, objective, metric, members, contrasts, confidence)
        for student, objective, members in groups
        for metric in _METRICS
    )
    gates = tuple(
        _gates(student, objective, str(arm), of_arm)
        for student, objective, members in groups
        for arm, of_arm in members.group("vam").items()
        if "vam_entropy" in of_arm.runs[0].kinds
    )
    paired = [table for table in tables if table.metric == "accuracy" and table.findings]
    if not paired:
        raise AbsentError("the arms of VAM share no seed; train them with the same seeds")
    first, *others = paired
    details = [
        _sentence(first, first.findings[1:]),
        *(_sentence(table, table.findings) for table in others),
    ]
    return ArmAnswer(
        _opening(first, confidence),
        tuple(filter(None, [*details, _gate_sentence([of for of in gates if of.of(first)])])),
        _cautions(runs, found, first),
        tables,
        gates,
        confidence,
    )


def first_arm(runs: RunSet) -> RunSet:
    """``runs`` without the students of any arm but the first."""
    try:
        reference = arm_contrasts(runs)[0].b
    except AbsentError:
        return runs
    return RunSet(tuple(run for run in runs if run.vam in ("", reference)))


def _is_kd(runs: RunSet, label: str) -> bool:
    return any(
        run.info["config"]["objective"]["name"] == "kd" for run in runs.filter(objective=label)
    )


def _table(
    student: str,
    objective: str,
    metric: str,
    runs: RunSet,
    contrasts: Sequence[ArmContrast],
    confidence: float,
) -> ArmTable:
    values = 100 * runs.values(metric, by="vam", role="student")
    findings = []
    for contrast in contrasts:
        if (
            not {contrast.a, contrast.b} <= set(values.columns)
            or values[[contrast.a, contrast.b]].dropna().empty
        ):
            continue
        effect = runs.paired(
            metric, contrast.a, contrast.b, by="vam", role="student", confidence=confidence
        )
        points = _in_points(effect)
        decided = verdict(points, 100 * MARGIN) if metric == "accuracy" else ""
        findings.append(ArmFinding(contrast, points, decided))
    means = {str(arm): t_interval(values[arm].to_numpy()) for arm in values.columns}
    return ArmTable(student, objective, metric, values, means, tuple(findings))


def _in_points(effect: Paired) -> Paired:
    scaled = {name: 100 * getattr(effect, name) for name in ("mean", "low", "high")}
    return replace(effect, **scaled, differences=tuple(100 * d for d in effect.differences))


def _gates(student: str, objective: str, arm: str, runs: RunSet) -> ArmGates:
    frame = runs.frame("vam_entropy")
    selected = frame["run"].map({run.id: run.selected_epoch for run in runs})
    means = (
        frame[frame["epoch"] == selected].groupby(["attention", "run"])[["value", "initial"]].mean()
    )
    alpha, share = means.loc["alpha"], means.loc["share"]
    shown = (alpha["value"], share["value"], share["initial"])
    return ArmGates(student, objective, arm, *(t_interval(values.to_numpy()) for values in shown))


def _opening(table: ArmTable, confidence: float) -> str:
    found = table.findings[0]
    subject, effect, size = (
        found.contrast.adds,
        found.effect,
        estimate(found.effect, 2, signed=True),
    )
    what = f"the test accuracy of {table.student} under {table.objective}"
    basis = f"{found.contrast.title}, {100 * confidence:.4g} % interval, n = {_counted(effect)}"
    if found.verdict in (LOWERS, RAISES):
        return f"Yes: {subject} {found.verdict} {what} by {size_of_change(effect, 2)} percentage points ({basis})."
    if found.verdict == NO:
        return (
            f"No: {subject} makes no difference worth {100 * MARGIN:g} percentage points to "
            f"{what}: {size} points ({basis})."
        )
    if found.verdict == ONE_SEED:
        return f"One pair, no interval, nothing decided: {subject} changed {what} by {size} percentage points."
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
    alpha, share, uniform = (
        listed([f"{number(getattr(of, name).mean, 2)} ({of.arm})" for of in gates])
        for name in ("alpha", "share", "uniform")
    )
    return (
        f"Under {gates[0].objective} the entropy H/ln M of VAM's gates, 1 at the start, ends at "
        f"{alpha}; that of the shares of flow at {share}, where the same weights at uniform "
        f"attention have {uniform}."
    )


def _counted(effect: Paired) -> str:
    return f"{effect.n} pair{'' if effect.n == 1 else 's'}"


def _cautions(runs: RunSet, found: RunSet, first: ArmTable) -> tuple[str, ...]:
    trainings = health.health(found)
    falling = sum(t.fall > health.STILL_FALLING for t in trainings)
    epochs = listed([str(n) for n in sorted({t.epochs for t in trainings})])
    images = listed([str(n) for n in sorted({run.info["data"]["sizes"]["train"] for run in found})])
    means = sorted(interval.mean for interval in first.means.values())
    reached = " to ".join(dict.fromkeys(number(mean, 1) for mean in (means[0], means[-1])))
    teachers = [f"{name} {number(100 * value, 1)} %" for name, value in teacher_accuracy(runs)]
    taught = f" (teacher {listed(teachers)})" if teachers else ""
    cautions = [
        f"The students were trained for {epochs} epochs of {images} images and reach {reached} % "
        f"under {first.objective}{taught}; the loss still fell by more than "
        f"{100 * health.STILL_FALLING:g} % in the last epoch of {falling} of {len(trainings)} "
        "trainings. The arms are compared at this length of training, which "
        "tells little of the accuracies that they reach on more images or in the end."
    ]
    effect = first.findings[0].effect
    if effect.n > 1:
        half = number((effect.high - effect.low) / 2, 2)
        cautions.append(
            f"With n = {effect.n} pairs the interval reaches {half} points to either side, so an "
            "effect of less can't "
            "be told from none. The gains that are told of VAM are 0.25 to 0.57 points."
        )
    return tuple(cautions)
