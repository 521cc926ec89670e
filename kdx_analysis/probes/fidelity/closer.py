"""A closer look at what students got: class by class, and at single images. Exploratory.

Axes: n seeds, K classes, J siblings; the own teacher stands first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from kdx_analysis.intervals import Interval, t_interval
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.whose import BASELINE, LIKENESSES, kind, own

if TYPE_CHECKING:
    from kdx_analysis.probes.fidelity.result import Fidelity, Likened, Student, Teaching

LOUDEST = 12  # images that are shown of an objective

Parts = tuple[np.ndarray, np.ndarray]  # kind and own


def by_class(fidelity: Fidelity, likened: Sequence[Mapping[Student, Likened]]) -> pd.DataFrame:
    """:attr:`Fidelity.of_classes`.

    Args:
        fidelity: whose.
        likened: what every student of every own teacher shares with the teachers.
    """
    rows = []
    for objective in fidelity.taught:
        for metric in LIKENESSES:
            by_seed = _parts_by_seed(likened, metric, objective)
            if not by_seed:
                continue
            kinds, owns = (np.array(values) for values in zip(*by_seed.values(), strict=True))
            for k, name in enumerate(fidelity.classes):
                interval = _interval(owns[:, k])
                keys = {"objective": objective, "class": name, "metric": metric}
                values = {"kind": kinds[:, k].mean(), "own": owns[:, k].mean()}
                ends = {"seed_low": interval.low, "seed_high": interval.high}
                right = _right_of_class(fidelity, objective, k)
                rows.append(keys | values | ends | right | {"seeds": len(by_seed)})
    return pd.DataFrame(rows)


def _parts_by_seed(
    likened: Sequence[Mapping[Student, Likened]], metric: str, objective: str
) -> dict[int, Parts]:
    """kind and own within every class, K each, by seed: means over own teachers.

    Of the seeds that have a student and its ``hard`` under some own teacher.
    """
    several: dict[int, list[Parts]] = {}
    for students in likened:
        for name, seed in students:
            if name != objective or (BASELINE, seed) not in students:
                continue
            a, b = (students[each, seed].of_classes for each in (objective, BASELINE))
            changes = np.array([a[teacher][metric] - b[teacher][metric] for teacher in a])
            of_classes = torch.from_numpy(changes.T.copy())
            parts = kind(of_classes).numpy(), own(of_classes).numpy()
            several.setdefault(seed, []).append(parts)
    means = {}
    for seed, each in sorted(several.items()):
        kinds, owns = (np.mean(values, axis=0) for values in zip(*each, strict=True))
        means[seed] = kinds, owns
    return means


def _interval(values: np.ndarray) -> Interval:
    if np.isnan(values).any():
        return Interval(len(values), math.nan, math.nan, math.nan)
    return t_interval(values)


def _right_of_class(fidelity: Fidelity, objective: str, k: int) -> dict[str, float]:
    """Accuracy within a class of the objective's students and of ``hard``, and its images."""
    chosen = fidelity.teachings[0].teacher.labels == k
    shares = {}
    for column, name in (("accuracy", objective), ("hard_accuracy", BASELINE)):
        right = [
            float(outputs.right[chosen].double().mean())
            for each in fidelity.teachings
            for (label, _), outputs in each.students.items()
            if label == name
        ]
        shares[column] = float(np.mean(right)) if right else math.nan
    return {**shares, "n": int(chosen.sum())}


def loudest(fidelity: Fidelity) -> pd.DataFrame:
    """:attr:`Fidelity.images`."""
    teaching, objective = fidelity.teachings[0], fidelity.leading
    columns = ["objective", "id", "class", "value", "teacher_second"]
    shares = ["students", "hard", "siblings"]
    added = [
        _added(teaching, objective, seed)
        for name, seed in teaching.students
        if name == objective and (BASELINE, seed) in teaching.students
    ]
    if not added or not teaching.siblings:
        return pd.DataFrame(columns=[*columns, *shares])
    values = np.mean(added, axis=0)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(-values[known], kind="stable")][:LOUDEST]
    rows = [_image(fidelity, teaching, int(i), float(values[i])) for i in order]
    return pd.DataFrame(rows, columns=[*columns, *shares])


def _added(teaching: Teaching, objective: str, seed: int) -> np.ndarray:
    """What every image adds to own of one student in instance knowledge, N."""
    a, b = (teaching.students[name, seed] for name in (objective, BASELINE))
    changes = [
        Likeness(a, teacher).of_images() - Likeness(b, teacher).of_images()
        for teacher in teaching.teachers.values()
    ]
    for outputs in (a, b):
        # What many students' outputs are made into would not fit into memory side by side.
        outputs.forget()
    return own(torch.from_numpy(np.stack(changes, axis=1))).numpy()


def _image(fidelity: Fidelity, teaching: Teaching, i: int, value: float) -> dict[str, Any]:
    """One image: what it adds to own, and who shares the teacher's second choice there."""
    objective, choice = fidelity.leading, _second(teaching.teacher, i)
    groups = {
        "students": [each for (name, _), each in teaching.students.items() if name == objective],
        "hard": [each for (name, _), each in teaching.students.items() if name == BASELINE],
        "siblings": list(teaching.siblings.values()),
    }
    shares = {}
    for name, group in groups.items():
        shares[name] = float(np.mean([_second(each, i) == choice for each in group]))
    return {
        "objective": objective,
        "id": i if fidelity.ids is None else fidelity.ids[i],
        "class": fidelity.classes[int(teaching.teacher.labels[i])],
        "value": value,
        "teacher_second": fidelity.classes[choice],
        **shares,
    }


def _second(outputs: Outputs, i: int) -> int:
    """The strongest wrong class of one image; of those that tie the first."""
    scores = outputs.scores[i].double().clone()
    scores[outputs.labels[i]] = -math.inf
    return int(scores.argmax())
