"""Fidelity of runs: which students' outputs are set beside which teachers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from kdx_analysis.config import digest
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.metrics import METRICS
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.result import OWN, Fidelity, Student, Teaching
from kdx_analysis.probes.fidelity.teachers import first_difference
from kdx_analysis.probes.fidelity.whose import LIKENESSES, kind, own
from kdx_analysis.runs.keys import differing
from kdx_analysis.runs.run import Run

_COLUMNS = ["metric", "attention", "split", "epoch", "value", "null", "undefined", "n"]
# Under which name a figure of pairs stands among the metrics, where it is another.
_RENAMED = {"agreement": "agreement_excess"}
_BEYOND_CHANCE = ("second_choice", "agreement_excess", "error_consistency")
# What the students of one group differ in; files of the user's own belong to single objectives.
_VARIED = ("objective", "seed", "teacher", "vam", "extensions")
_ORDER = ("student", "explainer", "tree")


class Group(NamedTuple):
    """What students that are set beside each other share.

    ``settings`` stands for all of their configuration but objective, seed and teacher.
    """

    study: str
    folder: Path
    role: str
    decomposition: str
    vam: str
    settings: str


@dataclass(frozen=True, eq=False)
class RunsFidelity:
    """The fidelity of the students of one group.

    Attributes:
        group: what they share.
        fidelity: theirs, on test images.
        runs: of every teaching, the run of each of its students.
    """

    group: Group
    fidelity: Fidelity
    runs: tuple[dict[Student, Run], ...]

    @property
    def paths(self) -> set[Path]:
        """The directories of all its students."""
        return {run.path for runs in self.runs for run in runs.values()}


def fidelities(runs: Iterable[Run]) -> list[RunsFidelity]:
    """That of every group of students whose outputs, and whose teacher's, are kept.

    Students are of one study, role, decomposition and arm of VAM; undivided students and explainers
    are never pooled. Siblings of a teacher are the other teachers of its study, of the same
    configuration but for the seed.
    """
    groups: dict[Group, list[Run]] = {}
    teachers: list[Run] = []
    for run in runs:
        if run.role == "teacher":
            teachers.append(run)
        elif run.role in _ORDER and run.outputs("test") is not None:
            groups.setdefault(_group(run), []).append(run)
    results = []
    for group in sorted(groups, key=lambda group: _ORDER.index(group.role)):
        if (computed := _fidelity(group, groups[group], teachers)) is not None:
            results.append(computed)
    return results


def why_absent(metric: str) -> str:
    """Why runs have no such figure of fidelity, and what to do about it."""
    if METRICS[metric].reads == "likeness to every teacher":
        return (
            f"{metric} needs siblings of the teacher, and students under hard of the same seeds; "
            "add siblings to the study, where nothing else is trained anew: "
            "--set teacher.siblings=3, or Study(siblings=3)"
        )
    return (
        f"{metric} needs the outputs of students and of their teacher; run the study again with "
        "this version, which takes them from the weights that runs hold"
    )


def the_only(
    computed: Iterable[RunsFidelity], runs: Sequence[Run], role: str | None
) -> RunsFidelity:
    """The fidelity of students that are among ``runs``, of a ``role`` or of the first there is.

    Raises AbsentError where there is none, KdxError where students are of several settings.
    """
    paths = {run.path for run in runs}
    chosen = [
        each
        for each in computed
        if role in (None, each.group.role) and not paths.isdisjoint(each.paths)
    ]
    if not chosen:
        raise AbsentError(
            f"no {role or 'student'} has its outputs kept beside its teacher's; run the study "
            "anew with this version, or give logits to kdx fidelity"
        )
    first, *others = (each for each in chosen if each.group.role == chosen[0].group.role)
    if others:
        either = [*first.runs[0].values(), *others[0].runs[0].values()]
        keys = [key for key in differing(either) if not key.startswith(_VARIED[:3])]
        raise KdxError(
            f"there are {1 + len(others)} groups of {first.group.role}s, which differ in "
            f"{', '.join(keys) or 'their folder'}; filter the runs to one of them"
        )
    return first


def _group(run: Run) -> Group:
    settings = {key: value for key, value in run.info["config"].items() if key not in _VARIED}
    fingerprint = run.info["data"]["fingerprint"]
    return Group(
        str(run.info["study"]),
        _folder(run),
        run.role,
        str(run.info["decomposition"]),
        run.vam,
        digest({**settings, "images": fingerprint}),
    )


def _folder(run: Run) -> Path:
    return run.path.resolve().parents[1]


def _fidelity(
    group: Group, students: Sequence[Run], teachers: Sequence[Run]
) -> RunsFidelity | None:
    beside = {run.seed: run for run in teachers if _tested_together(run, students[0])}
    taught_by = {run.teacher for run in students if run.taught} or {run.teacher for run in students}
    outputs = {number: _outputs(run, group.decomposition) for number, run in beside.items()}
    teachings, sources, left_out = [], [], []
    for number in sorted(taught_by & set(beside)):
        siblings, strangers = _siblings(number, beside)
        members = {
            (_label(run), run.seed): run
            for run in students
            if run.teacher == number or not run.taught
        }
        kept = {key: _outputs(run, group.decomposition) for key, run in members.items()}
        named = {f"seed {sibling}": outputs[sibling] for sibling in siblings}
        teachings.append(Teaching(outputs[number], named, kept, str(number)))
        sources.append(members)
        left_out += strangers
    if not teachings:
        return None
    first = students[0].outputs("test")
    assert first is not None
    notes = tuple(dict.fromkeys(left_out))
    fidelity = Fidelity(tuple(teachings), students[0].classes, first.ids.tolist(), notes)
    return RunsFidelity(group, fidelity, tuple(sources))


def _siblings(number: int, teachers: Mapping[int, Run]) -> tuple[list[int], list[str]]:
    """The other teachers that are siblings of one, and why others are none, in sentences."""
    siblings, strangers = [], []
    for other, run in teachers.items():
        if other == number:
            continue
        if difference := first_difference(teachers[number].info, run.info):
            strangers.append(
                f"The teacher with seed {other} is no sibling of that with seed {number}: "
                f"{difference.field} is {difference.b!r} there and {difference.a!r} here."
            )
        else:
            siblings.append(other)
    return siblings, strangers


def _tested_together(teacher: Run, student: Run) -> bool:
    """Whether the outputs of both are kept, of one study and on the same images."""
    a, b = teacher.outputs("test"), student.outputs("test")
    same_study = (teacher.info["study"], _folder(teacher)) == (
        student.info["study"],
        _folder(student),
    )
    return (
        same_study
        and a is not None
        and b is not None
        and a.fingerprint == b.fingerprint
        and torch.equal(a.ids, b.ids)
    )


def _label(run: Run) -> str:
    """An objective's label without the decomposition, which all students of a group share."""
    return run.objective.replace(" multiclass", "", 1)


def _outputs(run: Run, decomposition: str) -> Outputs:
    """What is compared: logits, or margins, of a teacher its one-vs-rest margins."""
    kept = run.outputs("test")
    assert kept is not None
    binary = decomposition == "binary"
    if binary and kept.decomposition != "binary":
        # In float64, in which the margins of sure answers are not yet cancelled.
        return Outputs(one_vs_rest_margins(kept.scores.double()), kept.labels, True)
    return Outputs(kept.scores, kept.labels, binary)


def rows_of_runs(computed: RunsFidelity) -> dict[Path, pd.DataFrame]:
    """By path of its run, the headline figures of every student, as of :func:`per_epoch`.

    own and kind of ``hard`` are 0, as they are differences from it. A student that no teacher
    taught stands beside all of them: its figures are means over teachers.
    """
    fidelity = computed.fidelity
    pairs = fidelity.pairs[fidelity.pairs["teacher"].isin([OWN, ""])]
    if "taught_by" not in pairs:
        pairs = pairs.assign(taught_by=fidelity.teachings[0].name)
    by_student = dict(list(pairs.groupby(["taught_by", "objective", "seed"])))
    tables: dict[Path, list[pd.DataFrame]] = {}
    epochs: dict[Path, int] = {}
    for i, (teaching, runs) in enumerate(zip(fidelity.teachings, computed.runs, strict=True)):
        for (objective, seed), run in runs.items():
            figures = by_student[teaching.name, objective, seed]
            parts = _parts(fidelity, i, objective, seed)
            tables.setdefault(run.path, []).append(_table(figures, parts, fidelity.num_images))
            epochs[run.path] = run.selected_epoch
    return {
        path: _over_teachers(several).assign(epoch=epochs[path])[_COLUMNS]
        for path, several in tables.items()
    }


def _over_teachers(several: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of the same metrics as one, with the means of value and null; NaN where one is."""
    columns = ["value", "null"]
    means = np.mean([table[columns].to_numpy(dtype=float) for table in several], axis=0)
    return several[0].assign(**dict(zip(columns, means.T, strict=True)))


def _table(figures: pd.DataFrame, parts: Mapping[str, float], images: int) -> pd.DataFrame:
    pairs = figures.assign(metric=figures["metric"].replace(_RENAMED))
    pairs = pairs[pairs["metric"].isin(list(METRICS))].rename(columns={"chance": "null"})
    # Chance is taken off these already.
    pairs["null"] = pairs["null"].mask(pairs["metric"].isin(_BEYOND_CHANCE), 0.0)
    taken_apart = pd.DataFrame({"metric": list(parts), "value": list(parts.values())})
    taken_apart = taken_apart.assign(null=float("nan"), undefined=0, n=images)
    table = pd.concat([pairs, taken_apart] if len(parts) else [pairs], ignore_index=True)
    return table.assign(attention="", split="test")


def _parts(fidelity: Fidelity, teaching: int, objective: str, seed: int) -> dict[str, float]:
    """own and kind of one student in every likeness; {} without siblings, or its ``hard``."""
    if not fidelity.siblings:
        return {}
    values: dict[str, float] = {}
    for metric in LIKENESSES:
        changes = fidelity.changes(metric, objective, seed, teaching)
        if changes is not None:
            values |= {f"own_{metric}": float(own(changes)), f"kind_{metric}": float(kind(changes))}
    return values
