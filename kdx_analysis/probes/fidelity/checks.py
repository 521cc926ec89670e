"""What may be wrong between tables of scores and labels: orders, copies, gaps.

Axes: N images, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity.recognise import Scores
from kdx_analysis.probes.fidelity.whose import BASELINE, CONTROLS, FEWEST_SIBLINGS

# As of a teacher's check before training: points of accuracy that another order has to give.
_MARGIN = 0.1
# Standard errors: among thirty tables chance goes beyond three in fewer than one study of ten.
_ERRORS = 3.0
# A network that gives nearly every image one class has failed; its rows need not be shuffled.
_ONE_CLASS = 0.9
# Rows are called shuffled only where another table shows that the images can be told apart.
_ABOVE_CHANCE = 0.2
_LISTED = 3


class _Order(NamedTuple):
    """An order of the classes that fits the labels better, tried on other images."""

    meant: Tensor
    accuracy: float
    gain: float
    sure: bool


def check_order(scores: Scores, labels: Tensor, classes: Sequence[str]) -> None:
    """Refuse a table whose answers fit the labels far better in another order of its columns.

    The order is found by linear assignment on every other image and tried on the rest.

    Raises KdxError where ten points more would be right there, naming columns and classes.
    """
    order = _better_order(scores.answers, labels, len(classes))
    if order is None or not order.sure or order.gain <= _MARGIN:
        return
    moved = [
        f"column {column} as {classes[label]!r}"
        for column, label in enumerate(order.meant.tolist())
        if column != label
    ]
    shown = ", ".join(moved[:_LISTED]) + (", …" if len(moved) > _LISTED else "")
    raise KdxError(
        f"the columns of {scores.where} stand in another order than the classes: "
        f"{_accuracy(scores.answers, labels):.0%} of its answers are right, {order.accuracy:.0%} "
        f"when reading {shown}; put its columns into the order of the labels' classes"
    )


def _better_order(answers: Tensor, labels: Tensor, num_classes: int) -> _Order | None:
    # A table that is right beyond this can't gain ten points.
    if len(labels) < 4 or _accuracy(answers, labels) > 1 - _MARGIN:
        return None
    tried_answers, tried_labels = answers[1::2], labels[1::2]
    confusion = torch.bincount(
        labels[::2] * num_classes + answers[::2], minlength=num_classes**2
    ).view(num_classes, num_classes)
    # Among orders that fit alike, the one that leaves columns where they are.
    rows, columns = linear_sum_assignment(
        (confusion.double() + 0.5 * torch.eye(num_classes)).numpy(), maximize=True
    )
    meant = torch.empty(num_classes, dtype=torch.int64)
    meant[torch.from_numpy(columns)] = torch.from_numpy(rows)
    before, after = tried_answers == tried_labels, meant[tried_answers] == tried_labels
    more, less = int((after & ~before).sum()), int((before & ~after).sum())
    # McNemar's: only the images on which both orders differ say anything.
    sure = more - less > _ERRORS * (more + less) ** 0.5
    gain = (more - less) / len(tried_labels)
    return _Order(meant, float(after.double().mean()), gain, sure)


def check_rows(tables: Sequence[Scores], labels: Tensor, num_classes: int) -> list[str]:
    """Refuse tables that are right no more often than chance although they answer variously.

    Chance is Σ_k share of answers k · share of labels k. A table is refused where another is right
    far more often, and all are where they agree with each other but not with the labels.

    Returns:
        Notes on tables that are at chance for another reason.

    Raises KdxError for rows in another order.
    """
    above = [_above_chance(scores.answers, labels, num_classes) for scores in tables]
    at_chance = [
        scores for scores, (gain, error) in zip(tables, above, strict=True) if gain <= error
    ]
    varied = [scores for scores in at_chance if _share_of_one(scores.answers) < _ONE_CLASS]
    best, error = max(above)
    # On few images a weak network is not told apart from chance.
    enough = error < _ABOVE_CHANCE / 2
    if varied and enough and best > _ABOVE_CHANCE:
        raise KdxError(
            f"{varied[0].where} is right on {_accuracy(varied[0].answers, labels):.1%} of the "
            "images, no more than chance, although its answers vary and other tables are right far "
            "more often: its rows seem to be in another order; give ids"
        )
    if len(varied) == len(tables) and _agree(varied, num_classes):
        raise KdxError(
            "the tables agree with each other, but none is right more often than chance: the "
            "labels seem to be in another order than the tables' rows; give ids"
        )
    named = listed([scores.where for scores in at_chance])
    if not at_chance:
        return []
    return [f"{named}: right no more often than chance; check that its rows are the labels'"]


def _above_chance(answers: Tensor, truth: Tensor, num_classes: int) -> tuple[float, float]:
    """By how much two answers agree more often than by chance, and three standard errors of it."""
    shares = (
        torch.bincount(each, minlength=num_classes).double() / len(truth)
        for each in (answers, truth)
    )
    chance = float(next(shares) @ next(shares))
    error = _ERRORS * (chance * (1 - chance) / len(truth)) ** 0.5
    return _accuracy(answers, truth) - chance, error


def _agree(tables: Sequence[Scores], num_classes: int) -> bool:
    if len(tables) < 2:
        return False
    gain, error = _above_chance(tables[0].answers, tables[1].answers, num_classes)
    return gain > max(error, _ABOVE_CHANCE)


def _share_of_one(answers: Tensor) -> float:
    return float(torch.bincount(answers).max()) / len(answers)


def _accuracy(answers: Tensor, labels: Tensor) -> float:
    return float((answers == labels).double().mean())


def check_copies(
    teacher: Scores, siblings: Sequence[Scores], students: Sequence[Scores]
) -> list[str]:
    """Refuse a sibling or a student that holds the values of a teacher.

    Returns:
        A note for students that are equal to each other.

    Raises KdxError where a teacher, a sibling and a student are not all different.
    """
    tables = [teacher, *siblings, *students]
    alike: dict[tuple[float, ...], list[int]] = {}
    for i, scores in enumerate(tables):
        # The first row is enough to tell different networks apart without reading all.
        alike.setdefault(tuple(scores.raw[0].double().tolist()), []).append(i)
    equal = []
    for group in alike.values():
        equal += [pair for pair in combinations(group, 2) if _same(tables, pair)]
    teachers = 1 + len(siblings)
    for first, second in equal:
        if first < teachers:
            raise KdxError(
                f"{tables[second].where} holds the same values as {tables[first].where}: each "
                "teacher and each student needs outputs of its own; correct its path, or leave it "
                "out"
            )
    return [
        f"{tables[second].where} holds the same values as {tables[first].where}: between them no "
        "seed or objective makes a difference"
        for first, second in equal
    ]


def _same(tables: Sequence[Scores], pair: tuple[int, int]) -> bool:
    return tables[pair[0]].same_values(tables[pair[1]])


def counted_classes(labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Notes on what too few classes, or too few images of one, keep from being told."""
    notes, num_classes = [], len(classes)
    if num_classes < 4:
        lost = "dark, class part and instance need four classes"
        lost += ", and second choice three" if num_classes < 3 else ""
        notes.append(f"there are {num_classes} classes: {lost}, so they are left empty")
    counts = torch.bincount(labels, minlength=num_classes)
    if int((counts > 0).sum()) == 1:
        only = classes[int(counts.argmax())]
        notes.append(
            f"all labels are {only!r}: whether a network tells classes apart can't be seen"
        )
    elif missing := [classes[k] for k in (counts == 0).nonzero()[:, 0].tolist()]:
        notes.append(f"no image is of class {listed([repr(name) for name in missing])}")
    if single := [classes[k] for k in (counts == 1).nonzero()[:, 0].tolist()]:
        notes.append(
            f"one image alone is of class {listed([repr(name) for name in single])}: dark, class "
            "part and instance leave it out"
        )
    return notes


def _meant_as_baseline(objectives: Iterable[str]) -> str:
    """What to do about an objective that is called nearly ``hard``; '' where none is."""
    for name in objectives:
        if get_close_matches(name.lower(), [BASELINE]):
            return f"; if {name!r} is meant to be it, call it hard"
    return ""


def compared_design(siblings: int, seeds: Mapping[str, Sequence[int]]) -> list[str]:
    """Notes on what this many siblings, and these seeds of each objective, leave undecided."""
    notes = []
    if not siblings:
        notes.append(
            "there are no siblings (teachers of the same recipe with other seeds): likeness can be "
            "told, kind and own can't"
        )
    elif siblings < FEWEST_SIBLINGS:
        notes.append(
            f"there {'is 1 sibling' if siblings == 1 else f'are {siblings} siblings'}: from "
            f"{FEWEST_SIBLINGS} on it can be decided whether what is own is beyond what other "
            "teachers give; until then it is not decidable"
        )
    if BASELINE not in seeds:
        notes.append(
            "no student is of the objective hard (trained as the others, on labels alone): "
            f"likeness can be told, task, kind and own can't{_meant_as_baseline(seeds)}"
        )
        return notes
    for objective in (name for name in seeds if name != BASELINE):
        alone = sorted(set(seeds[objective]) ^ set(seeds[BASELINE]))
        if set(seeds[objective]).isdisjoint(seeds[BASELINE]):
            notes.append(
                f"hard and {objective} have no seed in common: task, kind and own of {objective} "
                "can't be told"
            )
        elif alone:
            notes.append(
                f"hard and {objective} don't have the same seeds: seed "
                f"{listed([str(seed) for seed in alone])} of one has no partner and is left out "
                "where both are compared"
            )
    if not set(CONTROLS) & set(seeds):
        notes.append(
            f"there is no negative control ({' or '.join(CONTROLS)}): nothing here shows that own "
            "lies around 0 without a teacher, so nothing that is own can be decided"
        )
    return notes


def refuse_twice(students: Sequence[tuple[str, int]]) -> None:
    """Raise KdxError where an objective and seed are given twice."""
    for (objective, seed), number in Counter(students).items():
        if number > 1:
            raise KdxError(
                f"students: {objective}, seed {seed} is given {number} times: give each objective "
                "and seed once"
            )


def listed(names: Sequence[str]) -> str:
    """Names with commas and and; of more than four the first three, and how many more."""
    shown = list(names)
    if len(shown) > _LISTED + 1:
        shown = [*shown[:_LISTED], f"{len(shown) - _LISTED} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
