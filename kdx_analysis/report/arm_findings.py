"""What the paired seeds decide on VAM: every arm against the one without it, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from kdx_analysis.errors import AbsentError
from kdx_analysis.metrics import METRICS
from kdx_analysis.report.findings import verdict
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


@dataclass(frozen=True)
class ArmFinding:
    """One contrast of arms: paired difference a − b in percentage points.

    ``verdict`` is '' for agreement.
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
        """The metric's."""
        return METRICS[self.metric].title

    @property
    def formula(self) -> str:
        """The metric's home."""
        return METRICS[self.metric].home

    def differences(self, seed: int) -> list[float]:
        """The difference of every contrast in one seed; NaN where a side is missing."""
        row = self.values.loc[seed].to_dict()
        return [row[f.contrast.a] - row[f.contrast.b] for f in self.findings]


@dataclass(frozen=True)
class ArmGates:
    """Mean H/ln M of VAM's gates at the selected epoch.

    Attributes:
        student, objective, arm: what they are of.
        alpha: of α.
        share: of the shares of flow.
        uniform: of these at uniform α.
    """

    student: str
    objective: str
    arm: str
    alpha: Interval
    share: Interval
    uniform: Interval

    def belong_to(self, table: ArmTable) -> bool:
        """Whether they are the gates of the students in that table."""
        return (self.student, self.objective) == (table.student, table.objective)


@dataclass(frozen=True)
class ArmFindings:
    """All that is decided on VAM.

    Attributes:
        runs: the students that are of arms.
        tables: accuracy and agreement, by student and objective; KD comes first.
        gates: by student, objective and arm.
        confidence: of every interval of a difference, 1 − 0.05/m over the m differences of
            accuracy.
    """

    runs: RunSet
    tables: tuple[ArmTable, ...]
    gates: tuple[ArmGates, ...]
    confidence: float

    @property
    def accuracies(self) -> tuple[ArmTable, ...]:
        """The tables of accuracy of which there is a pair."""
        return tuple(each for each in self.tables if each.metric == "accuracy" and each.findings)


def find_arms(runs: RunSet) -> ArmFindings:
    """What is decided on all students and objectives of ``runs``.

    Raises AbsentError without two arms that share a seed.
    """
    of_arms = arms(runs)
    contrasts = arm_contrasts(of_arms)
    groups = _groups(of_arms)
    confidence = bonferroni(len(groups) * len(contrasts))
    tables = tuple(
        _table(group, metric, contrasts, confidence) for group in groups for metric in _METRICS
    )
    gates = [each for group in groups for each in _gates_of(group)]
    findings = ArmFindings(of_arms, tables, tuple(gates), confidence)
    if not findings.accuracies:
        raise AbsentError("the arms of VAM share no seed; train them with the same seeds")
    return findings


def first_arm(runs: RunSet) -> RunSet:
    """``runs`` without the students of any arm but the first."""
    try:
        reference = arm_contrasts(runs)[0].b
    except AbsentError:
        return runs
    return runs.only(run for run in runs if run.vam in ("", reference))


class _Group(NamedTuple):
    """The runs of one student under one objective."""

    student: str
    objective: str
    runs: RunSet


def _groups(runs: RunSet) -> list[_Group]:
    groups = []
    for student, of_student in sorted(runs.group("model").items()):
        by_kd = sorted(of_student.objectives, key=lambda label: not _is_kd(runs, label))
        groups += [
            _Group(str(student), objective, of_student.filter(objective=objective))
            for objective in by_kd
        ]
    return groups


def _is_kd(runs: RunSet, label: str) -> bool:
    return any(
        run.info["config"]["objective"]["name"] == "kd" for run in runs.filter(objective=label)
    )


def _table(
    group: _Group, metric: str, contrasts: Sequence[ArmContrast], confidence: float
) -> ArmTable:
    values = 100 * group.runs.values(metric, by="vam", role="student")
    shared = [each for each in contrasts if _have_a_pair(values, each)]
    findings = tuple(_finding(group.runs, metric, each, confidence) for each in shared)
    means = {str(arm): t_interval(values[arm].to_numpy()) for arm in values.columns}
    return ArmTable(group.student, group.objective, metric, values, means, findings)


def _have_a_pair(values: pd.DataFrame, contrast: ArmContrast) -> bool:
    sides = [contrast.a, contrast.b]
    return set(sides) <= set(values.columns) and not values[sides].dropna().empty


def _finding(runs: RunSet, metric: str, contrast: ArmContrast, confidence: float) -> ArmFinding:
    effect = runs.paired(
        metric, contrast.a, contrast.b, by="vam", role="student", confidence=confidence
    )
    points = _in_points(effect)
    decided = verdict(points, 100 * MARGIN) if metric == "accuracy" else ""
    return ArmFinding(contrast, points, decided)


def _in_points(effect: Paired) -> Paired:
    scaled = {name: 100 * getattr(effect, name) for name in ("mean", "low", "high")}
    return replace(effect, **scaled, differences=tuple(100 * d for d in effect.differences))


def _gates_of(group: _Group) -> list[ArmGates]:
    by_arm = group.runs.group("vam")
    return [
        _gates(group, str(arm), of_arm)
        for arm, of_arm in by_arm.items()
        if "vam_entropy" in of_arm.runs[0].kinds
    ]


def _gates(group: _Group, arm: str, runs: RunSet) -> ArmGates:
    frame = runs.frame("vam_entropy")
    selected = frame["run"].map({run.id: run.selected_epoch for run in runs})
    means = (
        frame[frame["epoch"] == selected].groupby(["attention", "run"])[["value", "initial"]].mean()
    )
    alpha, share = means.loc["alpha"], means.loc["share"]
    shown = (alpha["value"], share["value"], share["initial"])
    intervals = (t_interval(values.to_numpy()) for values in shown)
    return ArmGates(group.student, group.objective, arm, *intervals)
