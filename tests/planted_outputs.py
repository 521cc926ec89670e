"""Outputs in which task, kind and own are known by construction.

Scores of a network are the base of the class, a part of every image that all networks see, the
recipe's part that all teachers have, the private part of each teacher, and noise. Students have a
share of the recipe's part and of their own teacher's private part. All parts are drawn apart and
standard normal, so that likenesses beyond the class are ratios of their variances.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.probes.fidelity.result import Fidelity, Teaching

CONTROLS = ("hard_T", "label_smoothing")
# Objective → the shares that its students have of the recipe's part and of the private part.
GIFTS = {"kd_flat": (0.3, 0.0), "kd_shuffled": (0.4, 0.2), "kd": (0.5, 0.6)}
COMMON, NOISE = 0.25, 0.25  # variances of what all networks see of an image, and of noise


@dataclass(frozen=True)
class Nets:
    """Teachers 0, 1, … and the students of any of them; what is no objective of GIFTS saw none."""

    num_classes: int = 6
    num_images: int = 240
    seed: int = 0
    gifts: Mapping[str, tuple[float, float]] = field(default_factory=lambda: GIFTS)

    @cached_property
    def labels(self) -> Tensor:
        return torch.arange(self.num_images) % self.num_classes

    def teacher(self, number: int) -> Tensor:
        return self._made((1, "recipe"), (1, f"private {number}"), noise=f"teacher {number}")

    def student(self, objective: str, seed: int, teacher: int = 0) -> Tensor:
        of_recipe, of_own = self.gifts.get(objective, (0.0, 0.0))
        noise = f"{objective} {seed}" + (f" of {teacher}" if objective in self.gifts else "")
        return self._made((of_recipe, "recipe"), (of_own, f"private {teacher}"), noise=noise)

    def expected(self, objective: str) -> dict[str, float]:
        """task, kind, own and ceiling in instance knowledge, where images are many."""

        def likeness(of_recipe: float, of_own: float, own_teacher: bool) -> float:
            shared = COMMON + of_recipe + of_own * own_teacher
            student = COMMON + of_recipe**2 + of_own**2 + NOISE
            return shared / math.sqrt(student * (COMMON + 2 + NOISE))

        gifts = self.gifts.get(objective, (0.0, 0.0))
        task, to_own, to_others = (
            likeness(0, 0, True),
            likeness(*gifts, True),
            likeness(*gifts, False),
        )
        of_others = (COMMON + 1) / (COMMON + 2 + NOISE)
        kind = to_others - task
        return {"task": task, "kind": kind, "own": to_own - to_others, "ceiling": 1 - of_others}

    def outputs(self, scores: Tensor) -> Outputs:
        return Outputs(scores, self.labels)

    def teaching(
        self,
        objectives: Sequence[str] = ("hard", *CONTROLS, *GIFTS),
        seeds: Sequence[int] = (0, 1, 2),
        siblings: int = 4,
        teacher: int = 0,
    ) -> Teaching:
        """One teacher, so many siblings of higher numbers, and its students."""
        students = {}
        for objective in objectives:
            for seed in seeds:
                scores = self.student(objective, seed, teacher)
                students[objective, seed] = self.outputs(scores)
        others = {
            f"t{number}": self.outputs(self.teacher(number))
            for number in range(teacher + 1, teacher + siblings + 1)
        }
        own_teacher = self.outputs(self.teacher(teacher))
        return Teaching(own_teacher, others, students, f"t{teacher}")

    def fidelity(self, *args: Any, **options: Any) -> Fidelity:
        """That of :meth:`teaching`, of the same arguments."""
        return Fidelity((self.teaching(*args, **options),), self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(f"class {k}" for k in range(self.num_classes))

    def _made(self, *parts: tuple[float, str], noise: str) -> Tensor:
        base = (
            self._drawn("base")[: self.num_classes][self.labels]
            + 3 * np.eye(self.num_classes)[self.labels]
        )
        scores = base + math.sqrt(COMMON) * self._drawn("common")
        for share, name in parts:
            scores = scores + share * self._drawn(name)
        return torch.tensor(scores + math.sqrt(NOISE) * self._drawn(noise), dtype=torch.float32)

    def _drawn(self, name: str) -> np.ndarray:
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return rng.standard_normal((self.num_images, self.num_classes))


def replicated(
    nets: Nets, teachers: int = 3, without: Sequence[tuple[str, int]] = (), **options: Any
) -> Fidelity:
    """Teachers with students of their own, each a sibling of the others.

    ``without`` leaves out all students of an objective under the teacher of a number; ``options``
    are those of :meth:`Nets.teaching`.
    """
    teachings = []
    for number in range(teachers):
        made = nets.teaching(siblings=0, teacher=number, **options)
        others = {
            f"t{other}": nets.outputs(nets.teacher(other))
            for other in range(teachers)
            if other != number
        }
        students = {
            key: each for key, each in made.students.items() if (key[0], number) not in without
        }
        teachings.append(Teaching(made.teacher, others, students, made.name))
    return Fidelity(tuple(teachings), nets.names)
