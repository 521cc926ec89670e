"""How long a study will take here, from a few steps, answers and probes that are timed first."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
from torch import nn

from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.models import HME
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.probes.conflict.probe import terms_of
from kdx_analysis.probes.training_probe import SPLITS, TrainingProbe, training_cost
from kdx_analysis.runs import ROLES
from kdx_analysis.runs.spent import duration
from kdx_analysis.study.lessons import Lessons
from kdx_analysis.study.roles import BUILDERS, Ingredients, grow
from kdx_analysis.study.step import Step
from kdx_analysis.training import Epoch, fabric_for, reproducible
from kdx_analysis.training.kept_logits import file_size
from kdx_analysis.training.pace import Pace, pace_of, seconds_of_answer
from kdx_analysis.training.seconds import OTHER, PARTS, PROBES, SCORING, TEACHER, TRAINING


@dataclass(frozen=True)
class Tried:
    """What one run of a kind was found to take.

    Attributes:
        pace: of its training; all zero for a teacher that is given, but for its answers.
        probes: seconds of all that its probes look at.
        other: seconds to build what is trained.
    """

    pace: Pace
    probes: float = 0.0
    other: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """How long the runs of a study that are not done yet will take on this machine.

    The report, a distiller's own phase and what is asked of finished models are not in it.

    Attributes:
        table: a row for each role, the index: ``runs`` that wait, and seconds of all of them by
            part: training, teacher, scoring, probes, other.
        jobs: runs side by side.
        seconds: on the clock, with so many jobs.
    """

    table: pd.DataFrame
    jobs: int
    seconds: float

    @property
    def minutes(self) -> float:
        """On the clock."""
        return self.seconds / 60

    def to_frame(self) -> pd.DataFrame:
        """The table, role by role, with a column ``together``."""
        parts = [part for part in PARTS if part in self.table]
        return self.table.assign(together=self.table[parts].sum(axis=1))

    def __str__(self) -> str:
        if self.table.empty:
            return "nothing is left to train"
        of_parts = self.table[list(PARTS)].sum()
        parts = [f"{part} {duration(of_parts[part])}" for part in PARTS if of_parts[part] >= 0.5]
        side = f"{self.jobs} at a time" if self.jobs > 1 else "one at a time"
        return f"about {duration(self.seconds)}, {side}; of work: {', '.join(parts)}"

    def _repr_html_(self) -> str:
        shown = self.to_frame().style.format(precision=1, escape="html")
        return str(shown.set_caption(f"Estimated seconds: {self}").to_html())


def estimate(study: Ingredients, out: Path, steps: Iterable[Step], jobs: int) -> Estimate:
    """What the ``steps`` that are not done will take; every kind of run is tried for seconds.

    Args:
        study: whose steps they are.
        out: its directory, in which nothing is written.
        steps: of the whole study, in their order.
        jobs: runs side by side. On a CPU they share the cores; on an accelerator they are taken to
            gain nothing from each other.
    """
    waiting = [step for step in steps if not step.done]
    tried: dict[tuple[str, str], Tried] = {}
    for step in waiting:
        kind = (step.role, step.vam)
        if kind not in tried:
            tried[kind] = _tried(study, step)
    rows = foreseen(study, waiting, tried, Lessons.of(out, waiting, study.config.keep_teacher))
    return Estimate(_by_role(waiting, rows), jobs, _on_the_clock(study, waiting, rows, jobs))


def foreseen(
    study: Ingredients,
    steps: Sequence[Step],
    tried: Mapping[tuple[str, str], Tried],
    lessons: Lessons,
) -> list[dict[str, float]]:
    """Seconds of each of the ``steps``, by part.

    Args:
        study: whose steps they are.
        steps: in the order in which they are trained.
        tried: what a run takes, by its role and the label of its arm.
        lessons: what the steps share of their teachers: the first run of a seed asks, for all.
    """
    askings = _Askings(study, lessons)
    rows = []
    for step in steps:
        run, config = tried[step.role, step.vam], study.config.training_of(step.role)
        given = step.role == "teacher" and study.given(step.seed) is not None
        epochs = 0 if given else config.epochs
        validations = 1 if given else math.ceil(epochs / config.validate_every)
        images = validations * len(study.dataset.val) + len(study.dataset.test)
        row = {
            TRAINING: run.pace.step * run.pace.steps * epochs,
            TEACHER: askings.seconds(step, run.pace),
            SCORING: run.pace.answer * images,
            PROBES: run.probes,
            OTHER: run.other,
        }
        rows.append(row)
    return rows


class _Askings:
    """What asking the teacher takes in one run after the other: what was asked before is kept."""

    def __init__(self, study: Ingredients, lessons: Lessons) -> None:
        self.study, self.lessons = study, lessons
        self._scored: set[tuple[Path, TrainingConfig]] = set()
        self._kept: dict[tuple[Path, TrainingConfig], float] = {}

    def seconds(self, step: Step, pace: Pace) -> float:
        """Of the next run."""
        if step.teacher is None:
            return 0.0
        data, config = self.study.dataset, self.study.config.training_of(step.role)
        seconds = 0.0
        if (step.teacher.path, config) not in self._scored:
            self._scored.add((step.teacher.path, config))
            seconds += pace.taught * (len(data.val) + len(data.test))
        if not OBJECTIVES[step.objective.name].needs_teacher:
            return seconds
        asked = 1.0
        if (shelf := self.lessons.shelf(step)) is not None:
            asked -= self._kept.get((shelf.path, config), 0.0)
            size = file_size(pace.steps * config.batch_size, data.num_classes) * config.epochs
            self._kept[shelf.path, config] = min(1.0, shelf.limit / size)
        return seconds + asked * pace.lesson * pace.steps * config.epochs


def _tried(study: Ingredients, step: Step) -> Tried:
    """One kind of run: its probes at every kind of epoch, then some steps and answers."""
    data, config = study.dataset, study.config.training_of(step.role)
    # One process is timed; of several each has its own share of every step.
    alone = config.model_copy(update={"devices": 1, "strategy": "auto"})
    fabric = fabric_for(alone)
    with reproducible(0, config.threads):
        given = study.given(step.seed) if step.role == "teacher" else None
        if given is not None:
            return Tried(Pace(0.0, 0.0, seconds_of_answer(given, data), 0.0, 0))
        start = time.perf_counter()
        objective = step.objective if step.role == "teacher" else _dearest(study)
        model = _built(study, step, objective).to(fabric.device)
        teacher = None
        if step.role != "teacher":
            first = study.given(0)
            teacher = BUILDERS["teacher"].build(study) if first is None else copy.deepcopy(first)
            teacher = teacher.to(fabric.device)
        other = time.perf_counter() - start
        probes = _probing(study, step.role, model, objective, teacher)
        pace = pace_of(model, data, objective, alone, fabric, teacher)
    return Tried(pace, probes, other)


def _dearest(study: Ingredients) -> ObjectiveConfig:
    """An objective that asks the teacher, if there is one, and has the most terms to probe."""
    return max(
        study.config.objectives,
        key=lambda each: (OBJECTIVES[each.name].needs_teacher, len(terms_of(each))),
    )


def _built(study: Ingredients, step: Step, objective: ObjectiveConfig) -> nn.Module:
    """What the step will train; of a tree one of an explainer that has learnt nothing."""
    vam = study.config.arms[step.vam] if step.role == "student" else None
    model = BUILDERS[step.role].build(study, vam, objective.decomposition)
    phase2, probes = study.config.explainer.phase2, study.config.probes
    if step.role != "tree" or phase2 is None or not isinstance(model, HME):
        return model
    return grow(
        model, study.dataset.probe_images("train", probes.per_class, probes.seed)[0], phase2
    )


def _probing(
    study: Ingredients,
    role: str,
    model: nn.Module,
    objective: ObjectiveConfig,
    teacher: nn.Module | None,
) -> float:
    """Seconds of a run's probes: each kind of epoch is tried on train, the rest goes by cost."""
    config, epochs = study.config.probes, study.config.training_of(role).epochs
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    data = study.dataset.to(device)
    start = time.perf_counter()
    probe = TrainingProbe(role, model, data, objective, config, epochs, teacher, splits=SPLITS[:1])
    seconds = time.perf_counter() - start
    alike: dict[tuple[object, ...], list[int]] = {}
    settings = [each.setting for each in probe.probes.values()]
    for epoch in range(1, epochs + 1):
        kind = tuple((epoch in each.probed, epoch == each.probed[-1]) for each in settings)
        alike.setdefault(kind, []).append(epoch)
    for number, *others in alike.values():
        start = time.perf_counter()
        probe(Epoch(number, epochs, math.nan, math.nan, None, None), model)
        seconds += (time.perf_counter() - start) * (1 + len(others))
    of_train, of_all = (
        training_cost(role, model, data, objective, config, epochs, splits)
        for splits in (SPLITS[:1], SPLITS)
    )
    passes = of_train.forwards + of_train.backwards
    return seconds * ((of_all.forwards + of_all.backwards) / passes if passes else 1.0)


def _by_role(steps: Sequence[Step], rows: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    roles = pd.Series([step.role for step in steps], name="role", dtype=object)
    table = pd.DataFrame(rows, columns=list(PARTS)).groupby(roles).sum()
    table.insert(0, "runs", roles.value_counts().reindex(table.index))
    return table.loc[[role for role in ROLES if role in table.index]]


def _on_the_clock(
    study: Ingredients, steps: Sequence[Step], rows: Sequence[Mapping[str, float]], jobs: int
) -> float:
    """Seconds until the last run is done: teachers first, then all others, so many at a time."""
    total = 0.0
    for teaching in (True, False):
        phase = [
            (study.config.training_of(step.role), sum(row.values()))
            for step, row in zip(steps, rows, strict=True)
            if (step.role == "teacher") == teaching
        ]
        if phase:
            threads = max(config.threads for config, _ in phase)
            shared = fabric_for(phase[0][0]).device.type != "cpu"
            at_once = 1 if shared else max(1, (psutil.cpu_count() or 1) // threads)
            seconds = [each for _, each in phase]
            total += max(sum(seconds) / min(jobs, len(phase), at_once), *seconds)
    return total
