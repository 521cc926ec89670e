"""Which runs of a study are trained together, as one net of copies, and why the others are not.

A group belongs to a run's identity: it is decided by the plan, whatever is done already, and the
digest in a run's name is that of its configuration and of the names that all of its group would
have alone. Runs trained alone keep the names that they have without groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.models.together import unfit
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.study.roles import BUILDERS, Ingredients
from kdx_analysis.study.step import Step

# A role, the label of VAM's arm and a decomposition: runs that share them share an architecture.
Architecture = tuple[str, str, str]


@dataclass(frozen=True)
class Groups:
    """The steps of a study, put into groups of at most ``size`` of one architecture.

    Attributes:
        study: whose steps they are.
        steps: as they are planned alone, in order.
        size: runs trained together, at most; 1: each alone.
    """

    study: Ingredients
    steps: Sequence[Step]
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise KdxError(f"together = {self.size} should be 1 (each run alone) or more")

    @cached_property
    def planned(self) -> list[Step]:
        """All steps in their order, those of a group under the name that it gives them."""
        if self.size == 1:
            return list(self.steps)
        names: dict[Path, Step] = {}
        for group in self._chunks():
            together = tuple(step.path.name for step in group)
            names |= {step.path: step.in_group(together) for step in group}
        return [
            # A tree is another one where its explainer is.
            step.grown_from(names[step.explainer])
            if step.explainer in names
            else names.get(step.path, step)
            for step in self.steps
        ]

    def lines(self) -> list[str]:
        """What is trained together and what alone, a line for each; nothing without groups."""
        if self.size == 1:
            return []
        sizes = [len(group) for group in self._chunks()]
        lines = [f"{sum(sizes)} runs trained together, in {len(sizes)} groups of {_range(sizes)}"]
        alone: dict[str, int] = {}
        for step in self.planned:
            if not step.together:
                reason = self._reason(step) or "no other of its architecture is left"
                alone[reason] = alone.get(reason, 0) + 1
        lines += [f"{count} alone: {reason}" for reason, count in alone.items()]
        return lines if sizes else lines[1:]

    def _chunks(self) -> list[list[Step]]:
        """The groups, in the order of the plan: the objectives of a seed, then the next seed's."""
        by_architecture: dict[Architecture, list[Step]] = {}
        for step in self.steps:
            if not self._reason(step):
                by_architecture.setdefault(_architecture(step), []).append(step)
        chunks = []
        for steps in by_architecture.values():
            for first in range(0, len(steps), self.size):
                chunks.append(steps[first : first + self.size])
        return [chunk for chunk in chunks if len(chunk) > 1]

    def _reason(self, step: Step) -> str:
        """Why a run is trained alone; '' where it can be trained with others."""
        training = self.study.config.training_of(step.role)
        if step.role == "teacher":
            return "teachers are"
        if step.role == "tree":
            return "which experts a tree has is known when its explainer is trained"
        if OBJECTIVES[step.objective.name].target is None:
            return f"objective {step.objective.label!r} is no target function of outputs"
        if training.precision == "16-mixed":
            return "in precision 16-mixed one run's overflow would skip a step of all"
        if training.devices not in (1, "1"):
            return "several devices train one run at a time"
        return self._unfit[_architecture(step)]

    @cached_property
    def _unfit(self) -> dict[Architecture, str]:
        """For each architecture why its models can't be set side by side."""
        config, shape = self.study.config, self.study.dataset.shape
        reasons = {}
        for architecture in dict.fromkeys(map(_architecture, self.steps)):
            role, arm, decomposition = architecture
            if role not in config.roles:
                continue
            setting = config.arms[arm] if role == "student" else None
            with torch.random.fork_rng():
                model = BUILDERS[role].build(self.study, setting, decomposition)
            reasons[architecture] = unfit(model, shape)
        return reasons


def units(steps: Sequence[Step]) -> list[list[Step]]:
    """The ``steps`` in order, each group of them, at the place of its first, as one unit."""
    places: dict[object, int] = {}
    for number, step in enumerate(steps):
        places.setdefault(step.together or step.path, number)

    def place(step: Step) -> int:
        return places[step.together or step.path]

    return [list(unit) for _, unit in groupby(sorted(steps, key=place), key=place)]


def _architecture(step: Step) -> Architecture:
    return step.role, step.vam, step.objective.decomposition


def _range(sizes: Sequence[int]) -> str:
    low, high = min(sizes, default=0), max(sizes, default=0)
    return str(high) if low == high else f"{low} to {high}"
