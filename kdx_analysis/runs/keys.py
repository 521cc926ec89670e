"""What tells runs apart: their keys and their configuration, and which of them make a pair."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown
from kdx_analysis.runs.run import Run

NOT_SET = "not set"
TEACHER = "teacher"
_LABELS = ("objective", "objective.name", "objective.label")


def value_of(run: Run, key: str) -> Hashable:
    """The value of a run's key (objective, seed, …) or of a dotted one, ``training.lr``.

    A dotted key is of its configuration; ``teacher`` is the teacher's number. Numbers, texts and
    truth values are themselves, lists are as JSON has them, what is not there is 'not set'.
    """
    if key == TEACHER:
        return run.teacher
    return canonical(run.keys[key] if key in run.keys else run.settings.get(key))


def canonical(value: Any) -> Hashable:
    """A value of a configuration as one that can be compared and name a column."""
    if value is None:
        return NOT_SET
    return (
        value
        if isinstance(value, str | int | float)
        else json.dumps(list(value), ensure_ascii=False)
    )


def known_keys(runs: Iterable[Run]) -> list[str]:
    """Keys of runs, then dotted keys of their configurations."""
    names: dict[str, None] = {}
    for run in runs:
        names |= dict.fromkeys((*run.keys, TEACHER, *run.settings))
    return list(names)


def check_key(runs: Sequence[Run], key: str) -> None:
    """Raise KdxError, with the nearest valid keys, if ``key`` is one of none of the runs."""
    if runs and not any(key == TEACHER or key in run.keys or key in run.settings for run in runs):
        raise unknown("key of runs", key, known_keys(runs))


def known_teachers(runs: Iterable[Run]) -> list[set[str]]:
    """For each number of a teacher, what it is by the configurations of the runs that it taught.

    Several under one number are teachers of several studies; nothing is known of imported ones.
    """
    teachers: dict[int, set[str]] = {}
    for run in runs:
        if run.role != "teacher" and (known := run.info["config"].get(TEACHER)) is not None:
            teachers.setdefault(run.teacher, set()).add(known)
    return list(teachers.values())


def count_teachers(runs: Iterable[Run]) -> int:
    """How many teachers taught the runs; 0 where some run's is unknown or two share a number."""
    runs = list(runs)
    known = known_teachers(runs)
    untold = any(run.info["config"].get(TEACHER) is None for run in runs)
    return 0 if untold or any(len(teachers) > 1 for teachers in known) else len(known)


def in_order(values: Iterable[Hashable]) -> list[Any]:
    """Distinct values: numbers by size, others as they come."""
    distinct = list(dict.fromkeys(values))
    numbers = all(isinstance(value, int | float) for value in distinct)
    return sorted(distinct) if numbers else distinct


def differing(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Dotted configuration keys in which the runs differ, with each run's value, or None."""
    flat = [run.settings for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    table = {}
    for key in keys:
        values = [config.get(key) for config in flat]
        if any(value != values[0] for value in values):
            table[key] = values
    return table


class Shared(NamedTuple):
    """What the runs of a pair have in common; '' where that is what is compared."""

    role: str
    objective: str
    seed: int
    teacher: int | str


def places(runs: Sequence[Run], by: str) -> dict[Shared, dict[Hashable, int]]:
    """Where every run stands: what a row shares → value of ``by`` → number of the run.

    A run whose objective needs no teacher stands in the row of every teacher that taught any of the
    others. Where ``by`` is a setting of the objective (``decomposition``, ``objective.T``), pairs
    share its name and whichever of its other settings vary among the runs. Raises KdxError for
    ``by='seed'``, for a key that no run has, and if two runs stand in one place.
    """
    check_key(runs, by)
    if by == "seed":
        raise KdxError(
            "runs are paired by their seeds, so seeds can't be compared; choose another key"
        )
    table: dict[Shared, dict[Hashable, list[int]]] = {}
    taught_by = _teachers(runs, by)
    for number, (run, objective) in enumerate(zip(runs, _objectives(runs, by), strict=True)):
        for teacher in taught_by[number]:
            role = "" if by == "role" else run.role
            row = table.setdefault(Shared(role, objective, run.seed, teacher), {})
            row.setdefault(value_of(run, by), []).append(number)
    for row in table.values():
        for column, numbers in row.items():
            if len(numbers) > 1:
                raise _in_one_place([runs[number] for number in numbers], by, column)
    return {shared: _first(row) for shared, row in table.items()}


def _teachers(runs: Sequence[Run], by: str) -> list[list[int | str]]:
    """The teachers in whose rows each run stands."""
    if by == TEACHER:
        return [[""]] * len(runs)
    students = [run for run in runs if run.role != "teacher"]
    several = in_order(run.teacher for run in students if run.taught) or [0]
    rows = []
    for run in runs:
        alone = 0 if run.role == "teacher" else run.teacher  # siblings have rows by their seeds
        rows.append([alone] if run.taught else several)
    return rows


def _first(row: Mapping[Hashable, Sequence[int]]) -> dict[Hashable, int]:
    return {column: numbers[0] for column, numbers in row.items()}


def _in_one_place(runs: Sequence[Run], by: str, column: Hashable) -> KdxError:
    first = runs[0]
    compared = "" if by in ("role", "objective") else f", {by} {column!r}"
    return KdxError(
        f"{len(runs)} runs are {first.role} {first.objective!r} with seed {first.seed}{compared}; "
        f"they differ in {', '.join(differing(runs)) or 'nothing'}: filter the runs, or report "
        "their directories apart"
    )


def _objectives(runs: Sequence[Run], by: str) -> list[str]:
    if by in _LABELS:
        return [""] * len(runs)
    if by != "decomposition" and not by.startswith("objective."):
        return [run.objective for run in runs]
    left_out = {"objective.name", "objective.label", f"objective.{by.removeprefix('objective.')}"}
    settings = [
        key for key in differing(runs) if key.startswith("objective.") and key not in left_out
    ]
    labels = []
    for run in runs:
        config = run.settings
        varied = [
            f"{key.removeprefix('objective.')}={config[key]}" for key in settings if key in config
        ]
        labels.append(" ".join([str(config.get("objective.name", run.objective)), *varied]))
    return labels
