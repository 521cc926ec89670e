"""A student's stages made into levels of experts with as many parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.resolve import count_parameters
from kdx_analysis.models.zoo import StagedNet, StagePlan


@dataclass(frozen=True)
class Level:
    """A level of ``experts`` experts, each of ``channels`` output channels, side by side in one grouped module."""

    module: nn.Module
    experts: int
    channels: int


def split_student(student: StagedNet, experts: int | Sequence[int]) -> tuple[nn.Module, list[Level]]:
    """Trunk (stem and first stage) and levels (later stages, narrowed into experts) with fresh weights.

    All stages are narrowed alike, to the share of their width at which the levels together have as many
    parameters as the stages that they stand for. Raises KdxError if ``experts`` is a sequence of another length
    than there are stages above the trunk.
    """
    plans = student.plans[1:]
    counts = [experts] * len(plans) if isinstance(experts, int) else list(experts)
    if len(counts) != len(plans) or min(counts, default=0) < 1:
        raise KdxError(
            f"experts = {experts!r} should be a number or {len(plans)} numbers above 0, "
            f"one for each stage above the trunk"
        )
    first = student.plans[0]
    trunk = nn.Sequential(student.build_stem(), first.build(student.stem_width, first.width, 1))
    return trunk, _levels(plans, counts, first.width, _channels(plans, counts, first.width))


def _channels(plans: Sequence[StagePlan], counts: Sequence[int], below: int) -> list[int]:
    """Channels of one expert on each level; ``below`` are those of the trunk."""
    widest = max(plan.width for plan in plans)
    choices = [[max(1, round(c * plan.width / widest)) for plan in plans] for c in range(1, widest + 1)]
    with torch.device("meta"):
        whole = [1] * len(plans)
        budget = _size(_levels(plans, whole, below, [plan.width for plan in plans]))
        low, high = 0, len(choices) - 1
        while low < high:  # the narrowest choice with at least the budget
            middle = (low + high) // 2
            if _size(_levels(plans, counts, below, choices[middle])) < budget:
                low = middle + 1
            else:
                high = middle
        near = choices[max(low - 1, 0) : low + 1]
        return min(near, key=lambda channels: abs(_size(_levels(plans, counts, below, channels)) - budget))


def _levels(plans: Sequence[StagePlan], counts: Sequence[int], below: int, channels: Sequence[int]) -> list[Level]:
    levels = []
    for plan, n, c in zip(plans, counts, channels, strict=True):
        levels.append(Level(plan.build(n * below, n * c, n), n, c))
        below = c
    return levels


def _size(levels: Sequence[Level]) -> int:
    return sum(count_parameters(level.module) for level in levels)
