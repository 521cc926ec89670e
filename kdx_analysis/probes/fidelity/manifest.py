"""Tables of scores by a manifest in YAML, or as arrays: read, recognised, matched and checked.

    labels: y.npy
    teacher: t0.npy
    siblings: [t1.npy, t2.npy, t3.npy]
    students:
    - {objective: hard, seed: 0, logits: hard_0.npy}
    - {objective: kd, seed: 0, logits: kd_0.npy}

Axes: N images, K classes.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from kdx_analysis.config import Seed, parsed, read_yaml
from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity.checks import (
    check_copies,
    check_order,
    check_rows,
    compared_design,
    counted_classes,
    listed,
    refuse_twice,
)
from kdx_analysis.probes.fidelity.files import IDS, LABELS, Table, column, located, read_file, table
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.recognise import Form, Scores, recognised
from kdx_analysis.probes.fidelity.result import OWN, Fidelity

_FORMS: Mapping[Form, str] = {
    "logits": "logits",
    "probabilities": "probabilities",
    "log_probabilities": "log-probabilities",
    "margins": "margins of one subtask a class",
}


class Student(NamedTuple):
    """A student's scores under an objective and a seed."""

    objective: str
    seed: int
    scores: Scores


@dataclass(frozen=True, eq=False)
class Tables:
    """Scores of a teacher, its siblings and students on the same images, in the same order.

    Attributes:
        name: of the whole, for titles.
        classes: K names.
        labels: true classes, int64, N.
        ids: of the images, where there are any, N.
        teacher: the students' own.
        siblings: teachers that no student saw, by name.
        students: one for each objective and seed.
        notes: sentences on what the tables were taken as, and on what can't be told.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    ids: np.ndarray | None
    teacher: Scores
    siblings: Mapping[str, Scores]
    students: tuple[Student, ...]
    notes: tuple[str, ...]

    def outputs(self, scores: Scores) -> Outputs:
        """One table of them, ``scores``, beside the labels, as likeness takes it."""
        return Outputs(scores.tensor(), self.labels, binary=scores.form == "margins")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Entry(_Strict):
    """``path``, or ``{logits: path, ids: path}``."""

    logits: str
    ids: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"logits": value} if isinstance(value, str) else value


class _StudentEntry(_Entry):
    objective: Annotated[str, Field(min_length=1)]
    seed: Seed


def _as_names(value: Any) -> Any:
    """Classes called 0, 1, … in YAML are names all the same."""
    return [str(name) for name in value] if isinstance(value, list) else value


class _Manifest(_Strict):
    name: str = ""
    labels: str
    ids: str | None = None
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_as_names)] = None
    scores: Form | None = None
    teacher: _Entry
    siblings: tuple[_Entry, ...] = ()
    students: Annotated[tuple[_StudentEntry, ...], Field(min_length=1)]


@dataclass(frozen=True)
class _Given:
    """Tables as they are given, before anything is matched."""

    name: str
    labels: np.ndarray
    ids: np.ndarray | None
    classes: tuple[str, ...] | None
    teacher: Table
    siblings: Mapping[str, Table]
    students: Sequence[tuple[str, int, Table]]

    @property
    def tables(self) -> list[Table]:
        return [self.teacher, *self.siblings.values(), *(each for _, _, each in self.students)]

    def with_tables(self, tables: Sequence[Table]) -> _Given:
        """The same with other tables, in the order of :attr:`tables`."""
        others = iter(tables)
        return replace(
            self,
            teacher=next(others),
            siblings={name: next(others) for name in self.siblings},
            students=[(objective, seed, next(others)) for objective, seed, _ in self.students],
        )


def read(manifest: str | Path) -> Tables:
    """The tables that a manifest names; its paths are relative to its folder.

    Files are .npy, .npz, .pt, .safetensors (``path::key`` where they hold several arrays), .parquet
    or .csv (numbers in columns, and a column ``id`` or ``label``). Large ones are mapped rather
    than read.

    Raises KdxError for a manifest or file that can't be read, and as :func:`tables_of` does.
    """
    path = Path(manifest)
    keys = parsed(_Manifest, read_yaml(path, "manifest", "labels, teacher, students"), str(path))
    folder = path.parent
    refuse_twice([(each.objective, each.seed) for each in keys.students])
    names = _sibling_names(keys.siblings)
    whose = {f"students: {s.objective}, seed {s.seed}": s for s in keys.students}
    entries: dict[str, _Entry] = {"teacher": keys.teacher}
    entries |= {f"sibling {name}": each for name, each in zip(names, keys.siblings, strict=True)}
    _refuse_missing(folder, keys, [*entries.values(), *keys.students])
    _refuse_one_file(folder, {**entries, **whose})
    read_tables = {what: _read(folder, each, what) for what, each in entries.items()}
    labels = read_file(*located(keys.labels, folder))
    return _checked(
        _Given(
            keys.name or path.stem,
            column(labels, f"labels ({keys.labels})", LABELS),
            _ids_of(folder, keys, labels),
            keys.classes,
            read_tables["teacher"],
            {name: read_tables[f"sibling {name}"] for name in names},
            [
                (
                    each.objective,
                    each.seed,
                    _read(folder, each, f"{each.objective}, seed {each.seed}"),
                )
                for each in keys.students
            ],
        ),
        keys.scores,
    )


def _sibling_names(entries: Sequence[_Entry]) -> list[str]:
    """The stem of each file, or its key; a number behind one that is taken."""
    names: list[str] = []
    for entry in entries:
        path, key = located(entry.logits, Path())
        stem = name = key or path.stem
        number = 2
        while name in (*names, OWN):
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def _refuse_missing(folder: Path, keys: _Manifest, entries: Sequence[_Entry]) -> None:
    """All paths that lead nowhere at once, before the first file is read."""
    references = [keys.labels, keys.ids]
    for entry in entries:
        references += [entry.logits, entry.ids]
    named = [reference for reference in references if reference is not None]
    missing = [name for name in named if not located(name, folder)[0].is_file()]
    if missing:
        raise KdxError(
            f"there is no file {listed([repr(name) for name in missing])} in {str(folder)!r}: "
            "paths in a manifest are relative to its own folder"
        )


def _refuse_one_file(folder: Path, entries: Mapping[str, _Entry]) -> None:
    places: dict[tuple[Path, str | None], str] = {}
    for what, entry in entries.items():
        path, key = located(entry.logits, folder)
        first = places.setdefault((path.resolve(), key), what)
        if first != what:
            raise KdxError(
                f"{entry.logits!r} is given twice, for {first} and for {what}: each network has a "
                "table of its own"
            )


def _read(folder: Path, entry: _Entry, what: str) -> Table:
    where = f"{what} ({entry.logits})"
    read_table = table(read_file(*located(entry.logits, folder)), where)
    if entry.ids is None:
        return read_table
    ids = column(read_file(*located(entry.ids, folder)), f"ids of {where}", IDS)
    return replace(read_table, ids=ids)


def _ids_of(folder: Path, keys: _Manifest, labels: Any) -> np.ndarray | None:
    if keys.ids is not None:
        return column(read_file(*located(keys.ids, folder)), f"ids ({keys.ids})", IDS)
    beside = isinstance(labels, pd.DataFrame) and any(str(c).lower() in IDS for c in labels)
    return column(labels, f"labels ({keys.labels})", IDS) if beside else None


def tables_of(
    labels: Any,
    teacher: Any,
    students: Any,
    siblings: Any = (),
    ids: Any = None,
    classes: Sequence[str] | None = None,
    scores: Form | None = None,
) -> Tables:
    """The tables that arrays, tensors or frames hold, recognised, matched and checked.

    Args:
        labels: true classes, N, as numbers or as names of classes.
        teacher: N×K; as all tables either an array, a tensor or a frame, or, where its rows are to
            be matched, ``{"logits": …, "ids": …}``.
        students: ``{(objective, seed): table}``, or dictionaries with the keys objective, seed,
            logits and, if need be, ids.
        siblings: tables, or ``{name: table}``.
        ids: of the labels, N.
        scores: logits, probabilities, log_probabilities or margins, where values don't say.

    Raises:
        KdxError: for tables that hold no scores or do not fit together, and where rows or columns
            seem to stand in another order than the labels'.
    """
    listed_students = _students(students)
    refuse_twice([(objective, seed) for objective, seed, _ in listed_students])
    named = (
        siblings
        if isinstance(siblings, Mapping)
        else {f"sibling {j}": each for j, each in enumerate(siblings, start=1)}
    )
    return _checked(
        _Given(
            "",
            column(labels, "labels", LABELS),
            None if ids is None else column(ids, "ids", IDS),
            None if classes is None else tuple(map(str, classes)),
            _table(teacher, "teacher"),
            {str(name): _table(each, str(name)) for name, each in named.items()},
            [(o, seed, _table(each, f"{o}, seed {seed}")) for o, seed, each in listed_students],
        ),
        scores,
    )


def _students(students: Any) -> list[tuple[str, int, Any]]:
    form = (
        "students should be {(objective, seed): table}, or dictionaries with objective, seed and "
        "logits"
    )
    given: list[tuple[str, int, Any]] = []
    if isinstance(students, Mapping):
        for key, each in students.items():
            if not isinstance(key, tuple) or len(key) != 2:
                raise KdxError(f"{form}, not under the key {key!r}")
            given.append((str(key[0]), _seed(key[1]), each))
    else:
        for each in students:
            if not isinstance(each, Mapping) or not {"objective", "seed", "logits"} <= set(each):
                raise KdxError(form)
            given.append((str(each["objective"]), _seed(each["seed"]), each))
    if not given:
        raise KdxError(f"there are no students; {form}")
    return given


def _seed(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise KdxError(f"a student's seed is {value!r}: give a whole number") from None


def _table(given: Any, where: str) -> Table:
    if not isinstance(given, Mapping):
        return table(given, where)
    if "logits" not in given:
        raise KdxError(f"{where} has the keys {', '.join(map(str, given))}: name its table logits")
    read_table = table(given["logits"], where)
    ids = given.get("ids")
    return read_table if ids is None else replace(read_table, ids=column(ids, where, IDS))


def _checked(given: _Given, declared: Form | None) -> Tables:
    """Everything matched to the labels' rows and the classes' columns, and recognised."""
    notes: list[str] = []
    _refuse_other_classes(given)
    given, classes = _columns_in_order(given, notes)
    given, ids = _rows_in_order(given, notes)
    labels, classes = _numbered(given.labels, given.teacher.values.shape[1], classes, notes)
    for given_table in given.tables:
        _compare_labels(given_table, labels, classes)
    scores = [recognised(each, declared) for each in given.tables]
    for each in scores:
        check_order(each, labels, classes)
    notes += [*_taken_as(scores), *_remarked(scores)]
    notes += check_rows(scores, labels, len(classes))
    siblings = dict(zip(given.siblings, scores[1:], strict=False))
    students = [
        Student(objective, seed, each)
        for (objective, seed, _), each in zip(
            given.students, scores[1 + len(siblings) :], strict=True
        )
    ]
    notes += check_copies(scores[0], list(siblings.values()), [s.scores for s in students])
    notes += counted_classes(labels, classes)
    seeds: dict[str, list[int]] = {}
    for student in students:
        seeds.setdefault(student.objective, []).append(student.seed)
    notes += compared_design(len(siblings), seeds)
    return Tables(
        given.name, classes, labels, ids, scores[0], siblings, tuple(students), tuple(notes)
    )


def _refuse_other_classes(given: _Given) -> None:
    wanted = given.teacher.values.shape[1]
    for each in given.tables:
        if each.values.shape[1] != wanted:
            raise KdxError(
                f"{each.where} has {each.values.shape[1]} columns, {given.teacher.where} has "
                f"{wanted}: give each table one column for each of the same classes"
            )
    if given.classes is None:
        return
    if len(given.classes) != wanted:
        raise KdxError(
            f"there are {len(given.classes)} names of classes and {wanted} columns in "
            f"{given.teacher.where}: name each column once"
        )
    twice = [name for name, number in Counter(given.classes).items() if number > 1]
    if twice:
        raise KdxError(f"two classes are named {twice[0]!r}: give each a name of its own")


def _columns_in_order(given: _Given, notes: list[str]) -> tuple[_Given, tuple[str, ...] | None]:
    """Columns that are named for the classes in the classes' order, and the classes' names."""
    classes = given.classes
    columns = given.teacher.columns
    if classes is None and columns is not None:
        labels = {str(label) for label in pd.unique(given.labels)}
        # Labels that are texts say that columns' names are classes, not names such as logit_0.
        if given.labels.dtype.kind in "OUS" and labels <= set(columns):
            classes = columns
    if classes is None:
        return given, None
    ordered, moved = [], []
    for each in given.tables:
        if each.columns is None or each.columns == classes or set(each.columns) != set(classes):
            ordered.append(each)
            continue
        places = [each.columns.index(name) for name in classes]
        ordered.append(replace(each, values=each.values[:, places], columns=classes))
        moved.append(each.where)
    if moved:
        notes.append(f"the columns of {listed(moved)} were put into the order of the classes")
    return given.with_tables(ordered), classes


def _rows_in_order(given: _Given, notes: list[str]) -> tuple[_Given, np.ndarray | None]:
    """All tables in the labels' rows, matched by ids where they have any, and the labels' ids."""
    number = len(given.labels)
    with_ids = [each for each in given.tables if each.ids is not None]
    if given.ids is None:
        if with_ids:
            raise KdxError(
                f"{with_ids[0].where} has ids and the labels have none: give ids of the labels, or "
                "leave those of the table out"
            )
        for each in given.tables:
            _refuse_length(each, number)
        return given, None
    wanted = _index(given.ids, "labels", number)
    places, matched = [], np.ones(number, dtype=bool)
    for each in given.tables:
        if each.ids is None:
            _refuse_length(each, number)
            places.append(np.arange(number))
            continue
        places.append(_index(each.ids, each.where, len(each.values)).get_indexer(wanted))
        if not (places[-1] >= 0).any():
            raise KdxError(
                f"no id of {each.where} is an id of the labels: {str(each.ids[0])!r} here, "
                f"{wanted[0]!r} there"
            )
        matched &= places[-1] >= 0
    if not matched.any():
        raise KdxError("no image has its id in all tables: give tables of the same images")
    notes += _unmatched(given.tables, places, matched)
    rows = [place[matched] for place in places]
    tables = [_taken(each, row) for each, row in zip(given.tables, rows, strict=True)]
    shortened = replace(given, labels=given.labels[matched]).with_tables(tables)
    return shortened, wanted[matched].to_numpy()


def _unmatched(
    tables: Sequence[Table], places: Sequence[np.ndarray], matched: np.ndarray
) -> Iterator[str]:
    """Notes on images that not all tables hold."""
    left_out = len(matched) - int(matched.sum())
    if left_out:
        yield f"{left_out} of {len(matched)} images are left out: not every table has their ids"
    for each, rows in zip(tables, places, strict=True):
        more = len(each.values) - int((rows >= 0).sum())
        if more:
            yield f"{each.where} has {more} rows whose ids the labels don't have; they are left out"
    without = [each.where for each in tables if each.ids is None]
    if 0 < len(without) < len(tables):
        yield f"{listed(without)} has no ids, and is taken to stand in the order of the labels"


def _refuse_length(each: Table, number: int) -> None:
    if len(each.values) != number:
        raise KdxError(
            f"{each.where} has {len(each.values)} rows, and there are {number} labels: give all "
            "tables on the same images, or ids of the labels and of each table to match them by"
        )


def _index(ids: np.ndarray, where: str, number: int) -> pd.Index:
    """Ids as texts; KdxError where there are too few, empty ones or one twice."""
    if len(ids) != number:
        raise KdxError(f"{where} has {number} rows and {len(ids)} ids: give one id a row")
    if pd.isna(ids).any():
        raise KdxError(f"an id of {where} is empty: give each row one")
    # A reader of CSV files may hand whole numbers over as floats.
    whole = ids.dtype.kind == "f" and bool((ids == np.round(ids)).all())
    index = pd.Index((ids.astype(np.int64) if whole else ids).astype(str))
    if len(twice := index[index.duplicated()]):
        raise KdxError(
            f"the ids of {where} repeat: {str(twice[0])!r} stands there more than once; give each "
            "row an id of its own"
        )
    return index


def _taken(each: Table, rows: np.ndarray) -> Table:
    if len(rows) == len(each.values) and (rows == np.arange(len(rows))).all():
        return each  # stays mapped from its file
    labels = None if each.labels is None else each.labels[rows]
    return replace(each, values=each.values[torch.from_numpy(rows)], ids=None, labels=labels)


def _numbered(
    labels: np.ndarray, num_classes: int, classes: tuple[str, ...] | None, notes: list[str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as numbers of classes, int64, and the classes' names.

    Raises KdxError for labels that are no class.
    """
    if not len(labels):
        raise KdxError("there are no labels: give the class of each image")
    if pd.isna(labels).any():
        raise KdxError("a label is empty: leave such images out of all tables")
    if labels.dtype.kind in "OUS":
        return _by_name(labels.astype(str), num_classes, classes, notes)
    if labels.dtype.kind == "f":
        if not (labels == np.round(labels)).all():
            wrong = labels[labels != np.round(labels)][0]
            raise KdxError(f"{wrong} is no label: labels are numbers of classes, 0, 1, 2, …")
        notes.append("labels are stored as floating-point numbers; they were taken as whole ones")
    elif labels.dtype.kind not in "iub":
        raise KdxError(f"labels are {labels.dtype}: give numbers or names of classes")
    numbers = torch.from_numpy(labels.astype(np.int64))
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= num_classes:
        advice = "subtract 1 from them" if low == 1 and high == num_classes else "correct them"
        raise KdxError(
            f"labels run from {low} to {high}, but the tables' {num_classes} columns are classes 0 "
            f"to {num_classes - 1}: {advice}"
        )
    return numbers, classes or tuple(map(str, range(num_classes)))


def _by_name(
    labels: np.ndarray, num_classes: int, classes: tuple[str, ...] | None, notes: list[str]
) -> tuple[Tensor, tuple[str, ...]]:
    if classes is None:
        names = np.unique(labels)
        if len(names) != num_classes:
            raise KdxError(
                f"labels are {len(names)} different texts and the tables have {num_classes} "
                "columns: give classes, the columns' names in their order"
            )
        classes = tuple(map(str, names))
        notes.append(
            "labels are texts and no classes are given; the columns were taken to stand in "
            f"alphabetical order, from {classes[0]!r} to {classes[-1]!r}"
        )
    numbers = pd.Index(classes).get_indexer(pd.Index(labels))
    if (numbers < 0).any():
        raise KdxError(
            f"label {str(labels[numbers < 0][0])!r} is none of the classes, which are "
            f"{listed([repr(name) for name in classes])}"
        )
    return torch.from_numpy(numbers.astype(np.int64)), classes


def _compare_labels(each: Table, labels: Tensor, classes: tuple[str, ...]) -> None:
    """Refuse a table with a column of labels that are not the labels, row by row."""
    if each.labels is None:
        return
    numbers, _ = _numbered(each.labels, len(classes), classes, [])
    differing = int((numbers != labels).sum())
    if differing:
        raise KdxError(
            f"the column of labels in {each.where} differs from the labels in {differing} of "
            f"{len(labels)} rows: its rows seem to be in another order; give ids"
        )


def _taken_as(scores: Sequence[Scores]) -> list[str]:
    names: dict[Form, list[str]] = {}
    for each in scores:
        names.setdefault(each.form, []).append(each.where)
    if len(names) == 1:
        return [f"all {len(scores)} tables were taken as {_FORMS[scores[0].form]}"]
    return [f"{listed(where)}: taken as {_FORMS[form]}" for form, where in names.items()]


def _remarked(scores: Sequence[Scores]) -> list[str]:
    """Remarks on single tables, those that are alike together."""
    names: dict[str, list[str]] = {}
    rows: dict[str, list[int]] = {}
    for each in scores:
        for remark in each.remarks:
            names.setdefault(remark.text, []).append(each.where)
            rows.setdefault(remark.text, []).append(remark.rows or 0)
    notes = []
    for text, where in names.items():
        low, high = min(rows[text]), max(rows[text])
        counted = f"{low}" if low == high else f"{low} to {high}"
        filled = text.replace("{rows}", f"{counted} of {scores[0].num_images}")
        notes.append(f"{listed(where)}: {filled}")
    return notes


def fidelity_of(tables: Tables) -> Fidelity:
    """What students got from their teachers, of ``tables`` that fit together."""
    return Fidelity.of(
        tables.outputs(tables.teacher),
        {name: tables.outputs(scores) for name, scores in tables.siblings.items()},
        {(each.objective, each.seed): tables.outputs(each.scores) for each in tables.students},
        classes=tables.classes,
        ids=None if tables.ids is None else tables.ids.tolist(),
        notes=tables.notes,
    )
