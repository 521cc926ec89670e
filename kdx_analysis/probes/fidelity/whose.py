"""Whose is it? What is shared with the teacher, taken apart: task, kind and own (method, §8).

A student is set beside its own teacher t₀ and beside siblings t₁ … t_J, teachers of the same recipe
that it never saw. With L one of the likenesses and c_j = L(o, t_j) − L(hard, t_j), seeds paired,

- task = L(hard, t₀) is what every good model of the task shares with the teacher,
- kind = mean over siblings of c_j is how much nearer the objective brings it to all of the recipe,
- own = c_0 − kind is what only this teacher gave.

L(o, t₀) is their sum. Everything here is arithmetic on such numbers. Axes: n seeds, J siblings; the
own teacher stands first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor

from kdx_analysis.intervals import Interval, t_interval, t_quantile
from kdx_analysis.metrics import metric

# What is taken apart: title and unit.
LIKENESSES = {
    "dark": ("dark knowledge", "correlation"),
    "instance": ("instance knowledge", "correlation"),
    "second_choice": ("second choices", "share beyond chance"),
    "hardness": ("hardness", "rank correlation"),
}
PARTS = ("task", "kind", "own", "ceiling", "share")
BASELINE = "hard"
CONTROLS = ("hard_T", "label_smoothing")  # they are trained as long as others, and see no teacher
FEWEST_SIBLINGS = FEWEST_TEACHERS = 3

_NAN = math.nan
_CHANGES = "likeness to every teacher"


@jaxtyped(typechecker=beartype)
def kind(changes: Float[Tensor, "*seeds teachers"]) -> Float[Tensor, "*seeds"]:
    """Mean of c_j over the siblings: nearer to all teachers of the recipe, whatever the cause.

    >>> kind(torch.tensor([0.20, 0.08, 0.10, 0.12]))
    tensor(0.1000)
    """
    return changes[..., 1:].mean(dim=-1)


@jaxtyped(typechecker=beartype)
def own(changes: Float[Tensor, "*seeds teachers"]) -> Float[Tensor, "*seeds"]:
    """c_0 − mean of c_j over the siblings: what only the own teacher gave. Null 0.

    >>> own(torch.tensor([0.20, 0.08, 0.10, 0.12]))
    tensor(0.1000)
    """
    return changes[..., 0] - kind(changes)


def _declare_parts() -> None:
    """A headline metric for the two parts of every likeness."""
    for name, (title, unit) in LIKENESSES.items():
        metric(
            f"own_{name}",
            title=f"own part of {title}",
            reads=_CHANGES,
            unit=unit,
            describes=f"{title} that a student shares with its own teacher beyond the task's and "
            "the kind's",
            definition="c_0 − mean over siblings of c_j, c_j = L(o, t_j) − L(hard, t_j)",
            better="higher",
        )(own)
        metric(
            f"kind_{name}",
            title=f"kind's part of {title}",
            reads=_CHANGES,
            unit=unit,
            describes=f"{title} that a student shares with its teacher's siblings beyond the "
            "task's",
            definition="mean over siblings of c_j, c_j = L(o, t_j) − L(hard, t_j)",
        )(kind)


_declare_parts()


@dataclass(frozen=True)
class Part:
    """One part of what is shared, with both of its intervals.

    Attributes:
        value: mean over seeds, and over own teachers where there are several.
        over_seeds: given these teachers; its ends are NaN with one seed, or where it has none.
        over_teachers: for another teacher of the recipe; its ends are NaN where it has none.
        several: whether it is over several own teachers, each with students of its own.
    """

    value: float
    over_seeds: Interval
    over_teachers: Interval

    several: bool = False

    @property
    def excludes_zero(self) -> bool:
        """Whether both intervals do; with several own teachers that over teachers decides."""
        both = self.several or self.over_seeds.excludes_zero
        return both and self.over_teachers.excludes_zero


@dataclass(frozen=True, eq=False)
class Likenesses:
    """One likeness of one objective's students and of ``hard``, beside one own teacher.

    Attributes:
        student: L(o, t_j), n×(J + 1).
        hard: L(hard, t_j) of the same seeds, n×(J + 1).
        teacher: L(t₀, t_j) of the own teacher as if it were a student, J + 1.
        seeds: the n seeds.
    """

    student: np.ndarray
    hard: np.ndarray
    teacher: np.ndarray
    seeds: tuple[int, ...]

    @property
    def changes(self) -> np.ndarray:
        """c_j, n×(J + 1)."""
        return np.asarray(self.student - self.hard)

    @property
    def ceilings(self) -> np.ndarray:
        """c_j of the own teacher as a student, n×(J + 1)."""
        return np.asarray(self.teacher - self.hard)

    @property
    def siblings(self) -> int:
        """J."""
        return int(self.student.shape[1] - 1)

    def minus(self, other: Likenesses) -> Likenesses:
        """The difference of two objectives, in place of that from ``hard``, over common seeds."""
        common = tuple(seed for seed in self.seeds if seed in other.seeds)
        return Likenesses(self.of(common).student, other.of(common).student, self.teacher, common)

    def of(self, seeds: Sequence[int]) -> Likenesses:
        """Those of some seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Likenesses(self.student[rows], self.hard[rows], self.teacher, tuple(seeds))


def parts(several: Sequence[Likenesses]) -> dict[str, Part]:
    """task, kind, own, ceiling and share of one objective's likeness to its teachers.

    Args:
        several: one entry for every own teacher whose students there are. With one, intervals over
            teachers come from its siblings; with several, the unit is the own teacher.
    """
    single = len(several) == 1
    tasks = [each.hard[:, 0] for each in several]
    kinds = [kind(torch.from_numpy(each.changes)).numpy() for each in several]
    owns = [own(torch.from_numpy(each.changes)).numpy() for each in several]
    ceilings = [own(torch.from_numpy(each.ceilings)).numpy() for each in several]
    means = {"kind": kinds, "own": owns, "ceiling": ceilings}
    over = _over_siblings(several[0]) if single else _over_teachers(means)
    share = _share_of_one(several[0]) if single else _share_of_several(owns, ceilings)
    none = Interval(len(several), _NAN, _NAN, _NAN)
    ceiling = float(np.mean([each.mean() for each in ceilings]))
    ratio = _mean(owns) / ceiling if ceiling else _NAN
    if over["ceiling"].low <= 0 <= over["ceiling"].high:
        # A share of what may be nothing says nothing.
        ratio, share = _NAN, none
    return {
        "task": Part(_mean(tasks), _over_seeds(tasks, several), none),
        "kind": Part(_mean(kinds), _over_seeds(kinds, several), over["kind"]),
        "own": Part(_mean(owns), _over_seeds(owns, several), over["own"], not single),
        "ceiling": Part(ceiling, none, over["ceiling"]),
        "share": Part(ratio, none, share),
    }


def decided(parts_of: Mapping[str, Part], controls: Sequence[float]) -> bool:
    """Whether own is there: both intervals leave out 0, and it is above every control's |own|.

    With several own teachers, whose students are the unit, the interval over teachers decides.

    Args:
        parts_of: of :func:`parts`.
        controls: own of the negative controls, ``hard_T`` and ``label_smoothing``, in the same
            likeness. Without any nothing is decided, since nobody has seen that the siblings are
            ones; nor where one is undefined.
    """
    part, sizes = parts_of["own"], [abs(control) for control in controls]
    # A comparison with NaN is False.
    return bool(sizes) and part.excludes_zero and all(part.value > size for size in sizes)


def _mean(values: Sequence[np.ndarray]) -> float:
    return float(np.mean([each.mean() for each in values]))


def _interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Their t-interval, as far as there is one: without siblings there is no kind and no own."""
    known = np.asarray(values, dtype=float)
    if not len(known) or np.isnan(known).any():
        return Interval(len(known), _NAN, _NAN, _NAN)
    return t_interval(known)


def _over_seeds(values: Sequence[np.ndarray], several: Sequence[Likenesses]) -> Interval:
    """Over the seeds that all own teachers have, each seed's the mean over them."""
    common = set(several[0].seeds).intersection(*(each.seeds for each in several))
    by_seed = []
    for each, source in zip(values, several, strict=True):
        by_seed.append(each[[source.seeds.index(seed) for seed in sorted(common)]])
    return _interval(np.mean(by_seed, axis=0))


def _over_siblings(values: Likenesses) -> dict[str, Interval]:
    """Intervals for another own teacher, from how siblings differ; seeds are averaged first."""
    changes, ceilings = values.changes.mean(axis=0), values.ceilings.mean(axis=0)
    J = values.siblings
    if J < FEWEST_SIBLINGS:
        nothing = Interval(J, _NAN, _NAN, _NAN)
        return {"kind": nothing, "own": nothing, "ceiling": nothing}
    return {
        "kind": t_interval(changes[1:]),
        "own": _of_one_more(changes),
        "ceiling": _of_one_more(ceilings),
    }


def _of_one_more(changes: np.ndarray) -> Interval:
    """own ± t_{J−1} sd(c_1 … c_J) √(1 + 1/J): the own teacher is one more draw of its recipe."""
    siblings = changes[1:]
    J = len(siblings)
    value = float(changes[0] - siblings.mean())
    half = _t(J - 1) * float(siblings.std(ddof=1)) * math.sqrt(1 + 1 / J)
    return Interval(J, value, value - half, value + half)


def _over_teachers(values: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Interval]:
    """t-intervals over own teachers, each the mean over its students."""
    intervals = {}
    for name, several in values.items():
        interval = _interval([float(each.mean()) for each in several])
        few = interval.n < FEWEST_TEACHERS
        intervals[name] = Interval(interval.n, interval.mean, _NAN, _NAN) if few else interval
    return intervals


def _share_of_one(values: Likenesses) -> Interval:
    """own/ceiling for another own teacher; both vary together over siblings."""
    J = values.siblings
    if J < FEWEST_SIBLINGS:
        return Interval(J, _NAN, _NAN, _NAN)
    changes, ceilings = values.changes.mean(axis=0), values.ceilings.mean(axis=0)
    covariance = np.cov(changes[1:], ceilings[1:], ddof=1) * (1 + 1 / J)
    a, b = changes[0] - changes[1:].mean(), ceilings[0] - ceilings[1:].mean()
    return fieller(float(a), float(b), covariance, J - 1)


def _share_of_several(owns: Sequence[np.ndarray], ceilings: Sequence[np.ndarray]) -> Interval:
    R = len(owns)
    if R < FEWEST_TEACHERS:
        return Interval(R, _NAN, _NAN, _NAN)
    a = np.array([each.mean() for each in owns])
    b = np.array([each.mean() for each in ceilings])
    return fieller(float(a.mean()), float(b.mean()), np.cov(a, b, ddof=1) / R, R - 1)


def fieller(a: float, b: float, covariance: np.ndarray, df: int) -> Interval:
    """95 % interval of the ratio of two means, a/b (Fieller 1954).

    All r for which a − r·b does not differ from 0. Its ends are NaN where b's own interval holds 0:
    the ratio is then unbounded.

    Args:
        a, b: estimates of numerator and denominator.
        covariance: of the two estimates, 2×2.
        df: degrees of freedom of the covariance.

    >>> interval = fieller(1.0, 2.0, np.array([[0.01, 0.0], [0.0, 0.0]]), df=10**6)
    >>> round(interval.low, 3), round(interval.high, 3)  # (1 ± 1.96·0.1)/2
    (0.402, 0.598)
    """
    t = _t(df) ** 2
    leading = b * b - t * covariance[1, 1]
    middle = a * b - t * covariance[0, 1]
    last = a * a - t * covariance[0, 0]
    ratio = a / b if b else _NAN
    if leading <= 0:
        return Interval(df + 1, ratio, _NAN, _NAN)
    # Where b differs from 0, r = a/b lies within: the root is of a number that is at least 0.
    root = math.sqrt(max(0.0, middle * middle - leading * last))
    low, high = (float((middle + end) / leading) for end in (-root, root))
    return Interval(df + 1, ratio, low, high)


def _t(df: int) -> float:
    return t_quantile(0.95, df)
