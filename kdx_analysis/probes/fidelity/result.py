"""What students got from their teachers: every likeness, its parts, classes and images.

Made of outputs alone. Axes: N images, K classes, J siblings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.intervals import t_interval
from kdx_analysis.io import write_text
from kdx_analysis.probes.fidelity.calibration import levels
from kdx_analysis.probes.fidelity.closer import by_class, loudest
from kdx_analysis.probes.fidelity.likeness import Likeness, Measured
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.whose import (
    BASELINE,
    CONTROLS,
    LIKENESSES,
    Likenesses,
    Part,
    decided,
    kind,
    own,
    parts,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN = "own"  # the name of the own teacher beside siblings

Student = tuple[str, int]  # objective and seed


@dataclass(frozen=True, eq=False)
class Teaching:
    """One own teacher, its siblings and the students that are set beside them, on the same images.

    Attributes:
        teacher: t₀, whose students those of objectives with a teacher are.
        siblings: t_1 … t_J by name, which no student saw.
        students: by objective and seed, ``hard`` and the negative controls among them.
        name: of the own teacher, where there are several.
    """

    teacher: Outputs
    siblings: Mapping[str, Outputs]
    students: Mapping[Student, Outputs]
    name: str = ""

    @property
    def teachers(self) -> dict[str, Outputs]:
        """The own teacher, then its siblings."""
        return {OWN: self.teacher, **self.siblings}


class Likened(NamedTuple):
    """What one network and every teacher share.

    Attributes:
        values: by teacher, every figure by its name.
        of_classes: by teacher, every likeness within the classes, K each.
    """

    values: dict[str, dict[str, Measured]]
    of_classes: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False, repr=False)
class Fidelity:
    """What students got from their teachers.

    Attributes:
        teachings: one for every own teacher that has students.
        classes: names of the K classes.
        ids: of the images, N; by default their numbers.
        notes: what is to be said of how the outputs were read.

    Raises KdxError for outputs of several kinds or sizes, or two of a name.
    """

    teachings: tuple[Teaching, ...]
    classes: tuple[str, ...]
    ids: Sequence[Any] | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.teachings or not any(each.students for each in self.teachings):
            raise KdxError("there is no student to be set beside a teacher; give one or more")
        first = self.teachings[0].teacher
        for what, given, expected in (
            ("classes", len(self.classes), first.num_classes),
            ("ids", first.num_images if self.ids is None else len(self.ids), first.num_images),
        ):
            if given != expected:
                raise KdxError(f"there are {given} {what}, but the outputs have {expected}")
        for teaching in self.teachings:
            if OWN in teaching.siblings:
                raise KdxError(f"a sibling can't be called {OWN!r}; give it another name")
            for name, sibling in teaching.siblings.items():
                if torch.equal(sibling.scores, teaching.teacher.scores):
                    raise KdxError(f"sibling {name!r} is the teacher itself; leave it out")
            for outputs in (*teaching.teachers.values(), *teaching.students.values()):
                Likeness(outputs, first)  # refuses what can't be set beside each other

    @classmethod
    def of(
        cls,
        teacher: Outputs,
        siblings: Mapping[str, Outputs],
        students: Mapping[Student, Outputs],
        *,
        classes: Sequence[str] | None = None,
        ids: Sequence[Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Fidelity:
        """That of the students of one teacher.

        Args:
            teacher, siblings, students: as in :class:`Teaching`.
            classes, ids, notes: as in :class:`Fidelity`.
        """
        names = map(str, range(teacher.num_classes)) if classes is None else classes
        return cls((Teaching(teacher, siblings, students),), tuple(names), ids, tuple(notes))

    @property
    def num_images(self) -> int:
        """N."""
        return self.teachings[0].teacher.num_images

    @property
    def siblings(self) -> int:
        """J, the fewest that any own teacher has."""
        return min(len(teaching.siblings) for teaching in self.teachings)

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """Labels, as they come."""
        labels = [objective for each in self.teachings for objective, _ in each.students]
        return tuple(dict.fromkeys(labels))

    @property
    def taught(self) -> tuple[str, ...]:
        """The objectives that are neither ``hard`` nor a negative control."""
        return tuple(name for name in self.objectives if name not in (BASELINE, *CONTROLS))

    def seeds(self, objective: str) -> tuple[int, ...]:
        """Of an objective's students, in order."""
        every = [s for each in self.teachings for name, s in each.students if name == objective]
        return tuple(sorted(set(every)))

    @cached_property
    def _likened(self) -> tuple[dict[Student, Likened], ...]:
        """Of every teaching its students beside its teachers."""
        return tuple(_beside_teachers(teaching) for teaching in self.teachings)

    @cached_property
    def _of_teachers(self) -> tuple[Likened, ...]:
        """Of every teaching the own teacher beside all teachers, as if it were a student."""
        return tuple(_likened(each.teacher, each.teachers) for each in self.teachings)

    @cached_property
    def _levels(self) -> tuple[dict[Student, dict[str, Measured]], ...]:
        alone = []
        for teaching in self.teachings:
            alone.append({key: levels(outputs) for key, outputs in teaching.students.items()})
        return tuple(alone)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row a student, teacher and figure: value, chance, n and undefined.

        Columns objective, seed, teacher (``own``, or a sibling's name; '' of a figure that is of
        the student alone), metric, value, chance, n, undefined; where several own teachers have
        students, ``taught_by`` names that of the row.
        """
        rows = []
        for teaching, students, alone in zip(
            self.teachings, self._likened, self._levels, strict=True
        ):
            for (objective, seed), likened in students.items():
                keys = {"taught_by": teaching.name, "objective": objective, "seed": seed}
                for teacher, values in (*likened.values.items(), ("", alone[objective, seed])):
                    rows += _rows(keys | {"teacher": teacher}, values)
        table = pd.DataFrame(rows)
        return table if len(self.teachings) > 1 else table.drop(columns="taught_by")

    def likenesses(self, metric: str, objective: str) -> tuple[Likenesses, ...]:
        """One likeness of an objective's students and of ``hard``, for every own teacher.

        Of the seeds that both have, and at which it is defined for every teacher. ``metric`` is one
        of :data:`LIKENESSES`.
        """
        return tuple(each for each in self._by_teaching(metric, objective) if each is not None)

    def _by_teaching(self, metric: str, objective: str) -> list[Likenesses | None]:
        """:meth:`likenesses` of every teaching; None where it has no student with its ``hard``."""
        several: list[Likenesses | None] = []
        for i, students in enumerate(self._likened):
            seeds = [
                seed
                for name, seed in sorted(students)
                if name == BASELINE and (objective, seed) in students
            ]
            a, b = (_of_seeds(students, metric, name, seeds) for name in (objective, BASELINE))
            defined = [j for j in range(len(seeds)) if not np.isnan(a[j] + b[j]).any()]
            if not defined:
                several.append(None)
                continue
            teacher = np.array(_numbers(self._of_teachers[i], metric))
            chosen = tuple(seeds[j] for j in defined)
            several.append(Likenesses(a[defined], b[defined], teacher, chosen))
        return several

    def changes(self, metric: str, objective: str, seed: int, teaching: int = 0) -> Tensor | None:
        """c_j of one student, J + 1, the own teacher first; None without its ``hard``.

        ``metric`` is one of :data:`LIKENESSES`, ``objective`` and ``seed`` are the student's;
        ``teaching`` is the number of the own teacher, where there are several.
        """
        students = self._likened[teaching]
        if not {(objective, seed), (BASELINE, seed)} <= set(students):
            return None
        a, b = (_numbers(students[name, seed], metric) for name in (objective, BASELINE))
        return _tensor(np.array(a) - np.array(b))

    def parts(self, metric: str, objective: str) -> dict[str, Part]:
        """task, kind, own, ceiling and share of one likeness; {} without ``hard``.

        ``metric`` is one of :data:`LIKENESSES`, ``objective`` that of the students.
        """
        several = self.likenesses(metric, objective)
        return parts(several) if several else {}

    def difference(self, metric: str, a: str, b: str) -> dict[str, Part]:
        """kind and own of the difference a − b of two objectives, over the seeds that both have.

        ``metric`` is one of :data:`LIKENESSES`, ``a`` and ``b`` are labels of objectives.
        """
        both = zip(self._by_teaching(metric, a), self._by_teaching(metric, b), strict=True)
        several = [first.minus(second) for first, second in both if first and second]
        several = [each for each in several if each.seeds]
        if not several:
            return {}
        computed = parts(several)
        return {name: computed[name] for name in ("kind", "own")}

    def controls(self, metric: str) -> dict[str, float]:
        """own of every negative control among the students, in one likeness."""
        values = {}
        for name in CONTROLS:
            if name in self.objectives and (each := self.parts(metric, name)):
                values[name] = each["own"].value
        return values

    def decided(self, metric: str, objective: str, over: str = "") -> bool:
        """Whether own is there, by both intervals and above that of the negative controls.

        Args:
            metric: one of :data:`LIKENESSES`.
            objective: of the students.
            over: the objective whose own is taken off, for a difference of two.
        """
        each = self.difference(metric, objective, over) if over else self.parts(metric, objective)
        beside = {k: v for k, v in self.controls(metric).items() if k != objective}
        return bool(each) and decided(each, tuple(beside.values()))

    @cached_property
    def whose(self) -> pd.DataFrame:
        """One row an objective, likeness and part, with both intervals.

        Columns objective, metric, part (task, kind, own, ceiling or share), value, seed_low,
        seed_high, teacher_low, teacher_high, decided, seeds, siblings. An end is NaN where there is
        no interval; ``decided`` is of own alone.
        """
        rows = []
        for objective in self.objectives:
            for metric in LIKENESSES if objective != BASELINE else ():
                several = self.likenesses(metric, objective)
                for name, part in (parts(several) if several else {}).items():
                    keys = {"objective": objective, "metric": metric, "part": name}
                    rows.append(
                        keys
                        | _of_part(part)
                        | {
                            "decided": name == "own" and self.decided(metric, objective),
                            "seeds": len({s for each in several for s in each.seeds}),
                            "siblings": min(each.siblings for each in several),
                        }
                    )
        columns = ["objective", "metric", "part", *_of_part(_NO_PART)]
        return pd.DataFrame(rows, columns=[*columns, "decided", "seeds", "siblings"])

    @cached_property
    def points(self) -> pd.DataFrame:
        """task, kind and own of every seed, over own teachers where there are several.

        Columns metric, objective, seed, task, kind, own, and likeness, which is their sum; without
        siblings kind and own are NaN, and the likeness to the teacher is still known.
        """
        names, rows = ("task", "kind", "own", "likeness"), []
        for metric in LIKENESSES:
            for objective in self.objectives:
                by_seed: dict[int, list[tuple[float, ...]]] = {}
                for each in self.likenesses(metric, objective):
                    for i, seed in enumerate(each.seeds):
                        changes = _tensor(each.changes[i])
                        parts = (each.hard[i, 0], kind(changes), own(changes), each.student[i, 0])
                        by_seed.setdefault(seed, []).append(tuple(map(float, parts)))
                for seed, values in by_seed.items():
                    keys = {"metric": metric, "objective": objective, "seed": seed}
                    rows.append(keys | dict(zip(names, np.mean(values, axis=0), strict=True)))
        return pd.DataFrame(rows, columns=["metric", "objective", "seed", *names])

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """Share of images right, students (by objective and seed), then the own teachers.

        Columns objective ('' of a teacher), seed, taught_by, value, n.
        """
        rows = []
        for teaching in self.teachings:
            for (objective, seed), outputs in teaching.students.items():
                rows.append((objective, seed, teaching.name, _accuracy(outputs)))
            rows.append(("", -1, teaching.name, _accuracy(teaching.teacher)))
        table = pd.DataFrame(rows, columns=["objective", "seed", "taught_by", "value"])
        return table.assign(n=self.num_images)

    @cached_property
    def answers(self) -> pd.DataFrame:
        """What stands beside agreement and error consistency with the own teacher.

        One row a student, columns objective, seed, taught_by, differing (images that are given
        another class than by the teacher), expected (how many would be, were the two right and
        wrong apart from each other) and highest (the largest κ that their accuracies allow).
        """
        rows = []
        for teaching in self.teachings:
            for (objective, seed), outputs in teaching.students.items():
                both = Likeness(outputs, teaching.teacher)
                figures = both.differing, both.expected_differing, both.highest_consistency
                rows.append((objective, seed, teaching.name, *figures))
        columns = ["objective", "seed", "taught_by", "differing", "expected", "highest"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def teachers(self) -> pd.DataFrame:
        """How alike teachers are: siblings are as near to their teacher as to each other.

        One row a teacher of every teaching, columns taught_by, teacher, accuracy, and lowest and
        highest instance likeness to the siblings (of a sibling: to the other ones), NaN without.
        """
        rows = []
        for teaching in self.teachings:
            for name, outputs in teaching.teachers.items():
                others = [each for key, each in teaching.siblings.items() if key != name]
                values = [Likeness(outputs, other).instance.value for other in others]
                lowest, highest = (min(values), max(values)) if values else (math.nan, math.nan)
                rows.append((teaching.name, name, _accuracy(outputs), lowest, highest))
        columns = ["taught_by", "teacher", "accuracy", "lowest", "highest"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def of_classes(self) -> pd.DataFrame:
        """What was got class by class, exploratory: own and kind of every likeness, and accuracy.

        Columns objective, class, metric, kind, own, seed_low, seed_high (of own, over seeds), and
        accuracy, hard_accuracy, n (images of the class), seeds. A part is NaN where it is undefined
        in some seed.
        """
        return by_class(self, self._likened)

    @cached_property
    def leading(self) -> str:
        """The objective that is looked at image by image: ``kd``, or that with the largest own."""
        if "kd" in self.taught or not self.taught:
            return "kd"
        table = self.whose.query("metric == 'instance' and part == 'own'").set_index("objective")
        known = table["value"].reindex(self.taught).dropna()
        return str(known.idxmax()) if len(known) else self.taught[-1]

    @cached_property
    def images(self) -> pd.DataFrame:
        """The images that speak loudest for own in instance knowledge, under the leading objective.

        Columns objective, id, class, value (what the image adds to own, whose mean over images it
        makes), teacher_second (the teacher's strongest wrong class), and the shares of students, of
        ``hard`` students and of siblings with the same: students, hard, siblings. Where several own
        teachers have students, they are those of the first one.
        """
        return loudest(self)

    def to_frame(self) -> pd.DataFrame:
        """:attr:`whose`."""
        return self.whose

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """task, kind and own along the ladder, as (figure, axes); into an ``ax`` own instance."""
        from kdx_analysis.probes.fidelity.drawing import along_ladder, instance_into

        return along_ladder(self.drawn()) if ax is None else instance_into(self.drawn(), ax)

    def drawn(self) -> pd.DataFrame:
        """What is drawn: :attr:`points`, each beside the parts of its objective.

        Columns metric, objective, seed, task, kind, own, likeness, then own's seed_low, seed_high,
        teacher_low, teacher_high, decided and siblings, and ceiling, control (whether it is one)
        and teachers (how many have students of their own).
        """
        keys = ["metric", "objective"]
        ends = ["seed_low", "seed_high", "teacher_low", "teacher_high", "decided", "siblings"]
        owns, ceilings = (self.whose[self.whose["part"] == name] for name in ("own", "ceiling"))
        table = self.points.merge(owns[[*keys, *ends]], on=keys, how="left")
        highest = ceilings.rename(columns={"value": "ceiling"})[[*keys, "ceiling"]]
        table = table.merge(highest, on=keys, how="left")
        # hard is what the others are set beside: nothing is asked of its own.
        decided = table["decided"].map({True: True}).fillna(False).astype(bool)
        control = table["objective"].isin(CONTROLS)
        return table.assign(decided=decided, control=control, teachers=len(self.teachings))

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write ``pairs.csv``, ``whose.csv``, ``classes.csv`` and ``images.csv`` into a folder."""
        tables = {
            "pairs": self.pairs,
            "whose": self.whose,
            "classes": self.of_classes,
            "images": self.images,
        }
        for name, table in tables.items():
            write_text(Path(folder) / f"{name}.csv", table.to_csv(index=False))
        return tuple(Path(folder) / f"{name}.csv" for name in tables)

    def __repr__(self) -> str:
        return (
            f"<Fidelity of {', '.join(self.objectives)}: {self.num_images} images, "
            f"{len(self.classes)} classes, {self.siblings} siblings; .whose, .pairs, .plot()>"
        )

    def _repr_html_(self) -> str:
        shown = self.whose.style.hide(axis="index").format(precision=3, na_rep="", escape="html")
        return str(shown.set_caption(f"{self.num_images} images").to_html())


_NO_PART = Part(math.nan, *(t_interval([0.0]),) * 2)


def _beside_teachers(teaching: Teaching) -> dict[Student, Likened]:
    """Every student beside its teachers, several at a time, each on a thread of its own.

    Steps on a chunk are too short to be shared among threads.
    """

    def likened(outputs: Outputs) -> Likened:
        computed = _likened(outputs, teaching.teachers)
        # What many students' outputs are made into would not fit into memory side by side.
        outputs.forget()
        return computed

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            computed = list(pool.map(likened, teaching.students.values()))
    finally:
        torch.set_num_threads(threads)
    return dict(zip(teaching.students, computed, strict=True))


def _likened(student: Outputs, teachers: Mapping[str, Outputs]) -> Likened:
    values, of_classes = {}, {}
    for name, teacher in teachers.items():
        likeness = Likeness(student, teacher)
        values[name] = likeness.values()
        of_classes[name] = likeness.of_classes()
    return Likened(values, of_classes)


def _of_seeds(
    students: Mapping[Student, Likened], metric: str, objective: str, seeds: Sequence[int]
) -> np.ndarray:
    """One likeness to every teacher, n×(J + 1)."""
    return np.array([_numbers(students[objective, seed], metric) for seed in seeds])


def _numbers(likened: Likened, metric: str) -> list[float]:
    return [values[metric].value for values in likened.values.values()]


def _rows(keys: Mapping[str, Any], values: Mapping[str, Measured]) -> list[dict[str, Any]]:
    return [
        {
            **keys,
            "metric": name,
            "value": each.value,
            "chance": each.chance,
            "n": each.n,
            "undefined": each.undefined,
        }
        for name, each in values.items()
    ]


def _of_part(part: Part) -> dict[str, float]:
    return {
        "value": part.value,
        "seed_low": part.over_seeds.low,
        "seed_high": part.over_seeds.high,
        "teacher_low": part.over_teachers.low,
        "teacher_high": part.over_teachers.high,
    }


def _accuracy(outputs: Outputs) -> float:
    return float(outputs.right.double().mean())


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
