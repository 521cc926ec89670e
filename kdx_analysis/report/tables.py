"""What the report reads off the runs: the answers, and tables of accuracy and headlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from kdx_analysis.metrics import Metric, together
from kdx_analysis.report.answers import Answer, answer
from kdx_analysis.runs import Interval, Run, RunSet, ladders, own_teachers, t_interval
from kdx_analysis.runs.statistics.paired import coverage, side_by_side
from kdx_analysis.runs.tables.numbers import number

_ATTENTION = {"effective": "effective attention", "alpha": "α as it stands"}


def answers(runs: RunSet) -> list[Answer]:
    """One answer per KD objective that explainers were trained under, over all headline metrics."""
    if not len(runs.filter(role="explainer")):
        return []
    tables = {metric.name: runs.by_epoch(metric.name) for metric in together()}
    with_null = [metric for metric in together() if metric.has_null]
    nulls = {metric.name: runs.by_epoch(metric.name, column="null") for metric in with_null}
    answered = []
    for labels in ladders(runs):
        rungs = {label: rung for rung, label in labels.items()}
        answered.append(answer(_by_rung(tables, rungs), labels, _by_rung(nulls, rungs)))
    return answered


def _by_rung(
    tables: Mapping[str, pd.DataFrame], rungs: Mapping[str, str]
) -> dict[str, pd.DataFrame]:
    """The columns of objectives that have a rung, under its name."""
    renamed = {}
    for name, table in tables.items():
        labels = [label for label in table if label in rungs]
        renamed[name] = table[labels].rename(columns=rungs)
    return renamed


@dataclass(frozen=True)
class Scores:
    """One row of the accuracy table: means over seeds, as shares.

    None where the role was not trained.
    """

    name: str
    student: Interval | None
    explainer: Interval | None
    tree: Interval | None
    student_agreement: Interval | None
    explainer_agreement: Interval | None
    tree_agreement: Interval | None


def accuracy(runs: RunSet) -> list[Scores]:
    """Test accuracy and agreement with the teacher: undivided student, explainer, tree."""
    columns = {
        (metric, role): runs.values(metric, role=role)
        for metric in ("accuracy", "agreement")
        for role in ("student", "explainer", "tree")
    }

    def interval(metric: str, role: str, objective: str) -> Interval | None:
        table = columns[metric, role]
        if objective not in table.columns or table[objective].isna().all():
            return None
        return t_interval(table[objective].to_numpy())

    return [
        Scores(
            objective,
            interval("accuracy", "student", objective),
            interval("accuracy", "explainer", objective),
            interval("accuracy", "tree", objective),
            interval("agreement", "student", objective),
            interval("agreement", "explainer", objective),
            interval("agreement", "tree", objective),
        )
        for objective in runs.objectives
    ]


@dataclass(frozen=True)
class TeacherScore:
    """One teacher or sibling: its architecture's name and its accuracy on the test split.

    ``place`` says which it is: 'teacher', with its seed where several taught, or 'sibling, seed 1',
    which no student saw.
    """

    place: str
    name: str
    accuracy: float


def teacher_scores(runs: RunSet) -> list[TeacherScore]:
    """Each teacher among the runs, then each sibling."""
    teachers = own_teachers(runs)
    siblings = [run for run in runs if run.role == "teacher" and run not in teachers.runs]
    scores = []
    for run in (*teachers, *siblings):
        table = run.at_selected("metrics")
        right = table[(table["split"] == "test") & (table["metric"] == "accuracy")]
        seed = f", seed {run.seed}" if run in siblings or len(teachers) > 1 else ""
        place = f"{'sibling' if run in siblings else 'teacher'}{seed}"
        scores += [
            TeacherScore(place, model_name(run), float(value)) for value in right["value"].tail(1)
        ]
    return scores


def model_name(run: Run) -> str:
    """The architecture's name in the configuration."""
    return str(run.info["config"]["model"])


def tested_images(runs: RunSet) -> list[str]:
    """The distinct numbers of test images that accuracies rest on."""
    sizes = [run.info["data"]["sizes"].get("test") for run in runs]
    known = sorted({int(size) for size in sizes if size is not None})
    return [*map(str, known), *(["an unknown number of"] if None in sizes else [])]


@dataclass(frozen=True)
class Headline:
    """One metric under one objective: mean over seeds and mean null, by split.

    ``n`` is a dash where it is unknown. Means are over the epochs at which all objectives are
    defined; ``over`` says how many of how many, by split.
    """

    objective: str
    values: Mapping[str, Interval]
    nulls: Mapping[str, float]
    over: Mapping[str, str]
    n: str


@dataclass(frozen=True)
class HeadlineTable:
    """One headline metric under one kind of attention, objective by objective."""

    metric: Metric
    attention: str
    rows: tuple[Headline, ...]

    @property
    def seen_through(self) -> str:
        """Which attention it is of, in words; '' where it is not of gates."""
        return _ATTENTION.get(self.attention, self.attention)

    @property
    def counted(self) -> str:
        """What n is the number of, as ``200 probe images``."""
        return f"{self.rows[0].n} {self.metric.input.counts}"


def headline_tables(runs: RunSet) -> list[HeadlineTable]:
    """Every headline metric that has a null to show, in the order of METRICS.

    Of the explainers, or of all but teachers where there is none, as among models trained
    elsewhere.
    """
    explainers = runs.filter(role="explainer")
    role = "explainer" if len(explainers) else "student"
    others = RunSet.of(run for run in runs if run.role != "teacher")
    shown = explainers if len(explainers) else others
    frame = shown.to_frame().dropna(subset="value")
    tables = []
    for metric in together():
        of_metric = frame[frame["metric"] == metric.name]
        kinds = sorted(of_metric["attention"].unique(), reverse=True) if metric.has_null else []
        for attention in kinds:
            chosen = of_metric[of_metric["attention"] == attention]
            splits = dict.fromkeys(map(str, chosen["split"]))
            sides = {split: _side(shown, metric.name, role, split, attention) for split in splits}
            rows = [
                _headline(objective, chosen[chosen["objective"] == objective], sides)
                for objective in runs.objectives
                if (chosen["objective"] == objective).any()
            ]
            tables.append(HeadlineTable(metric, attention, tuple(rows)))
    return tables


@dataclass(frozen=True)
class _Side:
    """One metric on one split: seeds by objectives, its null, and the epochs of each objective."""

    values: pd.DataFrame
    nulls: pd.DataFrame
    over: Mapping[str, str]


def _side(runs: RunSet, metric: str, role: str, split: str, attention: str) -> _Side:
    by_epoch = runs.by_epoch(metric, role=role, split=split, attention=attention)
    together = side_by_side(by_epoch)
    over = {str(o): str(coverage(by_epoch, [o], together)) for o in by_epoch.columns}
    values = runs.values(metric, role=role, split=split, attention=attention)
    nulls = runs.values(metric, role=role, split=split, attention=attention, column="null")
    return _Side(values, nulls, over)


def _headline(objective: str, rows: pd.DataFrame, sides: Mapping[str, _Side]) -> Headline:
    defined = {
        split: side
        for split, side in sides.items()
        if objective in side.values.columns and side.values[objective].notna().any()
    }
    return Headline(
        objective,
        {split: t_interval(side.values[objective].to_numpy()) for split, side in defined.items()},
        {split: float(side.nulls[objective].mean()) for split, side in defined.items()},
        {split: side.over[objective] for split, side in defined.items()},
        number(rows["n"].iloc[0], 0),
    )
