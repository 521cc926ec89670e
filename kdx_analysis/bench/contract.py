"""What a bench is: contests between a plain implementation and ours, declared in a file of its own.

    @bench("sorting", title="sorting a million numbers", against="Python's own list", target=5)
    def sorting(setting):
        yield Contest("", Contestant("sorted", make_list), (Contestant("torch.sort", make_ours),))

A file of that kind in :mod:`kdx_analysis.bench.benches`, or one of a user's own that is loaded, is
all that a bench takes: ``kdx bench`` and ``kdx list benches`` read BENCHES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdx_analysis.registry import Registry, home

Run = Callable[[], object]
Ratio = Literal["speed", "cost"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Setting:
    """On what contests are run.

    Attributes:
        device: that all contestants compute on.
        threads: of every contestant's process.
        batch: images in a batch, of benches that time a training step; None: as many as the bench
            has by default.
        precisions: of benches that have several; None: float32 alone.
    """

    device: torch.device
    threads: int = 1
    batch: int | None = None
    precisions: tuple[Precision, ...] | None = None


@dataclass(frozen=True)
class Contestant:
    """One implementation.

    Attributes:
        name: in the table.
        make: makes what one round runs; called once more for the null and for the peak of memory,
            so it makes everything anew, from the same seed.
        result: computes, apart from all rounds, what is to be the same for all contestants, by
            name; None where a contestant computes something else, which the bench then says.
        operations: floating-point operations of a round; None: those of matrix products and
            convolutions are counted in one run.
        moved: bytes that a round reads and writes at least; None where that says nothing.
        parts: a round runs one of so many equal parts, and its time is multiplied.
    """

    name: str
    make: Callable[[], Run]
    result: Callable[[], Mapping[str, Tensor]] | None = None
    operations: Callable[[], float] | None = None
    moved: int | None = None
    parts: int = 1


@dataclass(frozen=True)
class Contest:
    """A plain implementation and those that are held against it.

    Attributes:
        label: what tells the contest from others of its bench, as "K = 10"; '' where it is alone.
        plain: the reference.
        others: what is held against it.
        precision: that the matrix rate is measured in.
        rounds: at most so many, where a round takes long.
        tolerance: by how much results may differ, relative to the largest entry of each.
    """

    label: str
    plain: Contestant
    others: tuple[Contestant, ...]
    precision: Precision = "float32"
    rounds: int | None = None
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Bench:
    """Contests on one question.

    Attributes:
        name: as in ``kdx bench NAME``.
        title: what is timed.
        against: the plain implementation.
        contests: makes the contests of a setting, one after the other.
        ratio: speed: the plain time over a contestant's own, which should be high; cost: a
            contestant's own time over the plain one, which should be low.
        target: what the ratio should reach, of every contest or by label; none where it is not
            given.
        device: cuda for a bench that says nothing elsewhere.
    """

    name: str
    title: str
    against: str
    contests: Callable[[Setting], Iterable[Contest]]
    ratio: Ratio = "speed"
    target: float | Mapping[str, float] | None = None
    device: Literal["any", "cuda"] = "any"

    @property
    def home(self) -> str:
        """Where it is declared, as ``module.function``."""
        return home(self.contests)

    def target_of(self, label: str) -> float | None:
        """The target of the contest with this label."""
        return self.target.get(label) if isinstance(self.target, Mapping) else self.target

    def is_met(self, label: str, ratio: float) -> bool | None:
        """Whether a ratio reaches the contest's target; None without one.

        >>> cheap = Bench("a", "a", "b", lambda setting: (), ratio="cost", target=1.2)
        >>> cheap.is_met("", 1.1), cheap.is_met("", 1.3)
        (True, False)
        """
        target = self.target_of(label)
        if target is None:
            return None
        return ratio >= target if self.ratio == "speed" else ratio <= target


BENCHES: Registry[Bench] = Registry("bench", rooms=("kdx_analysis.bench.benches",))


def bench(
    name: str,
    *,
    title: str,
    against: str,
    ratio: Ratio = "speed",
    target: float | Mapping[str, float] | None = None,
    device: Literal["any", "cuda"] = "any",
) -> Callable[[Callable[[Setting], Iterable[Contest]]], Callable[[Setting], Iterable[Contest]]]:
    """Declare a bench on the function that makes its contests.

    ``title``, ``against``, ``ratio``, ``target`` and ``device`` are attributes of :class:`Bench`.
    """

    def declare(
        contests: Callable[[Setting], Iterable[Contest]],
    ) -> Callable[[Setting], Iterable[Contest]]:
        BENCHES.register(name)(Bench(name, title, against, contests, ratio, target, device))
        return contests

    return declare
