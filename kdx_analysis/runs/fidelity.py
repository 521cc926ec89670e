"""Fidelity of runs: which students' outputs are set beside which teachers'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kdx_analysis.errors import AbsentError
from kdx_analysis.metrics import METRICS
from kdx_analysis.objectives import OBJECTIVES, one_vs_rest_margins
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.result import OWN, Fidelity, Student, Teaching
from kdx_analysis.probes.fidelity.teachers import first_difference
from kdx_analysis.probes.fidelity.whose import BASELINE, LIKENESSES, kind, own
from kdx_analysis.runs.run import Run

_COLUMNS = ["metric", "attention", "split", "epoch", "value", "null", "undefined", "n"]
# Under which name a figure of pairs stands among the metrics, where it is another.
_RENAMED = {"agreement": "agreement_excess"}
_ORDER = ("student", "explainer", "tree")


class Group(NamedTuple):
    """What students that are set beside each other share."""

    study: str
    folder: Path
    role: str
    decomposition: str
    vam: str


@dataclass(frozen=True, eq=False)
class RunsFidelity:
    """The fidelity of the students of one group.

    Attributes:
        group: what they share.
        fidelity: theirs, on test images.
        runs: of every teaching, the run of each of its students.
        left_out: why teachers of the study are no siblings, in sentences.
    """

    group: Group
    fidelity: Fidelity
    runs: tuple[dict[Student, Run], ...]
    left_out: tuple[str, ...]


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


def the_fidelity(runs: Iterable[Run], role: str | None = None) -> Fidelity:
    """That of the students among runs, or of another role; of several groups the first.

    Raises AbsentError where there is none.
    """
    chosen = [each for each in fidelities(runs) if role in (None, each.group.role)]
    if not chosen:
        raise AbsentError(
            f"there is no {role or 'student'} whose outputs are kept beside its teacher's; train "
            "the study again with this version, or give logits to kdx fidelity"
        )
    return chosen[0].fidelity


def _group(run: Run) -> Group:
    return Group(
        str(run.info["study"]), _folder(run), run.role, str(run.info["decomposition"]), run.vam
    )


def _folder(run: Run) -> Path:
    return run.path.resolve().parents[1]


def _fidelity(
    group: Group, students: Sequence[Run], teachers: Sequence[Run]
) -> RunsFidelity | None:
    beside = {
        run.seed: run
        for run in teachers
        if (run.info["study"], _folder(run)) == group[:2] and run.outputs("test") is not None
    }
    numbers = sorted({run.teacher for run in students if taught(run)} & set(beside))
    numbers = numbers or sorted({run.teacher for run in students} & set(beside))
    teachings, sources, left_out = [], [], []
    outputs = {number: _outputs(run, group.decomposition) for number, run in beside.items()}
    for number in numbers:
        siblings = {}
        for other, run in beside.items():
            if other == number:
                continue
            if difference := first_difference(beside[number].info, run.info):
                left_out.append(
                    f"The teacher with seed {other} is no sibling of that with seed {number}: "
                    f"{difference.field} is {difference.b!r} there and {difference.a!r} here."
                )
            else:
                siblings[f"seed {other}"] = outputs[other]
        members = {
            (_label(run), run.seed): run
            for run in students
            if run.teacher == number or not taught(run)
        }
        kept = {key: _outputs(run, group.decomposition) for key, run in members.items()}
        teachings.append(Teaching(outputs[number], siblings, kept, str(number)))
        sources.append(members)
    if not teachings:
        return None
    first = students[0].outputs("test")
    assert first is not None
    fidelity = Fidelity(
        tuple(teachings), students[0].classes, first.ids.tolist(), tuple(dict.fromkeys(left_out))
    )
    return RunsFidelity(group, fidelity, tuple(sources), tuple(left_out))


def taught(run: Run) -> bool:
    """Whether a teacher enters its objective; one that nobody declares here may be of any kind."""
    config = run.info["config"].get("objective", {})
    name = config.get("name", run.objective)
    if config.get("scale_to") is not None:
        return True
    return name not in OBJECTIVES or OBJECTIVES[name].needs_teacher


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


def rows(computed: RunsFidelity) -> dict[str, pd.DataFrame]:
    """By id of its run, the headline figures of every student, as of :func:`per_epoch`.

    own and kind of ``hard`` are 0, as they are differences from it.
    """
    tables: dict[str, list[dict[str, object]]] = {}
    several = len(computed.fidelity.teachings) > 1
    for teaching, runs in zip(computed.fidelity.teachings, computed.runs, strict=True):
        pairs = computed.fidelity.pairs
        pairs = pairs[pairs["taught_by"] == teaching.name] if several else pairs
        pairs = pairs[pairs["teacher"].isin([OWN, ""])]
        for (objective, seed), chosen in pairs.groupby(["objective", "seed"], sort=False):
            run = runs[str(objective), int(seed)]
            for row in chosen.to_dict("records"):
                name = _RENAMED.get(str(row["metric"]), str(row["metric"]))
                if name in METRICS:
                    figures = (row["value"], row["chance"], row["undefined"], row["n"])
                    tables.setdefault(run.id, []).append(_row(run, name, *figures))
    for i, runs in enumerate(computed.runs):
        for (objective, seed), run in runs.items():
            tables[run.id] += _parts(computed.fidelity, i, run, objective, seed)
    return {
        name: pd.DataFrame(table, columns=_COLUMNS).drop_duplicates("metric")
        for name, table in tables.items()
    }


def _parts(
    fidelity: Fidelity, teaching: int, run: Run, objective: str, seed: int
) -> list[dict[str, object]]:
    table = []
    for metric in LIKENESSES:
        changes = fidelity.changes(metric, objective, seed, teaching)
        if changes is None or objective == BASELINE:
            values = {"own": 0.0, "kind": 0.0} if objective == BASELINE else {}
        else:
            values = {"own": float(own(changes)), "kind": float(kind(changes))}
        for part, value in values.items():
            table.append(_row(run, f"{part}_{metric}", value, float("nan"), 0, fidelity.num_images))
    return table


def _row(run: Run, *figures: object) -> dict[str, object]:
    metric, value, null, undefined, n = figures
    return dict(
        zip(
            _COLUMNS,
            (metric, "", "test", run.selected_epoch, value, null, undefined, n),
            strict=True,
        )
    )
