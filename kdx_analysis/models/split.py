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


def split_student(student: nn.Module, experts: int | Sequence[int]) -> tuple[nn.Module, list[Level]]:
    """Trunk (stem and first stage) and levels (later stages, narrowed into experts) with fresh weights.

    Raises KdxError if the student declares no stages, or if ``experts`` is a sequence of another length than
    there are stages above the trunk.
    """
    if not isinstance(student, StagedNet):
        raise KdxError(
            f"{type(student).__name__} does not declare its stages, so it can't be split into experts; "
            "build it as a StagedNet or take a student of the zoo (kdx list models)"
        )
    plans = student.plans[1:]
    counts = [experts] * len(plans) if isinstance(experts, int) else list(experts)
    if len(counts) != len(plans) or min(counts, default=0) < 1:
        raise KdxError(
            f"experts = {experts!r} should be a number or {len(plans)} numbers above 0, "
            f"one for each stage above the trunk"
        )
    first = student.plans[0]
    trunk = nn.Sequential(student.build_stem(), first.build(student.stem_width, first.width, 1))
    levels, below, whole_below = [], first.width, first.width
    for plan, n in zip(plans, counts, strict=True):
        channels = expert_channels(plan, whole_below, below, n)
        levels.append(Level(plan.build(n * below, n * channels, n), n, channels))
        below, whole_below = channels, plan.width
    return trunk, levels


def expert_channels(plan: StagePlan, whole_below: int, below: int, experts: int) -> int:
    """Channels of one expert, so that a level's parameters come nearest to those of the undivided stage.

    Args:
        plan: the stage.
        whole_below: channels that the undivided stage reads.
        below: channels that one expert reads.
        experts: N, the experts of the level.
    """
    with torch.device("meta"):
        budget = count_parameters(plan.build(whole_below, plan.width, 1))
        sizes = {c: experts * count_parameters(plan.build(below, c, 1)) for c in range(1, plan.width + 1)}
    return min(sizes, key=lambda c: abs(sizes[c] - budget))
