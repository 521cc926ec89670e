"""Mobile students for 32×32 images: MobileNetV2, ShuffleNetV1 and V2.

They are shaped as in CRD's code (arXiv 1910.10699).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.models.zoo.staged import MODELS, Conv, StagedNet


def _conv_norm(
    in_channels: int,
    out_channels: int,
    size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, BatchNorm and, with ``relu``, ReLU."""
    layers = [
        Conv(in_channels, out_channels, size, stride=stride, groups=groups),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class InvertedResidual(nn.Module):
    """conv1×1 BN ReLU, depthwise conv3×3 BN ReLU, conv1×1 BN, plus x where shapes allow.

    From arXiv 1801.04381. In between stand ``expansion`` times the input's channels. ReLU instead
    of the paper's ReLU6, as in CRD.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, expansion: int = 6
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = _conv_norm(in_channels, inner, 1)
        self.depthwise = _conv_norm(inner, inner, 3, stride=stride, groups=inner)
        self.project = _conv_norm(inner, out_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class Shuffle(nn.Module):
    """Channel c of group g goes to place c·groups + g (arXiv 1707.01083)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


class ShuffleUnit(nn.Module):
    """ShuffleNetV1's unit (arXiv 1707.01083, figure 2, with CRD's extra ReLU).

    Grouped conv1×1 BN ReLU, shuffle, depthwise conv3×3 BN ReLU, grouped conv1×1 BN, then plus x or,
    at stride 2, beside the 3×3 average of x; ReLU. ``out_channels`` counts those of x beside it at
    stride 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, first_groups: int, stride: int
    ) -> None:
        super().__init__()
        added = out_channels - in_channels if stride == 2 else out_channels
        inner = added // 4
        self.reduce = _conv_norm(in_channels, inner, 1, groups=first_groups)
        self.shuffle = Shuffle(first_groups)
        self.depthwise = _conv_norm(inner, inner, 3, stride=stride, groups=inner)
        self.expand = _conv_norm(inner, added, 1, groups=groups, relu=False)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(self.depthwise(self.shuffle(self.reduce(x))))
        return F.relu(
            out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], dim=1)
        )


class SplitUnit(nn.Module):
    """ShuffleNetV2's unit of stride 1 (arXiv 1807.11164, figure 3c).

    Half of the channels pass, the other half go through conv1×1 BN ReLU, depthwise conv3×3 BN,
    conv1×1 BN ReLU; then they are shuffled.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            _conv_norm(half, half, 1),
            _conv_norm(half, half, 3, groups=half, relu=False),
            _conv_norm(half, half, 1),
        )
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        passed, taken = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([passed, self.branch(taken)], dim=1))


class DownUnit(nn.Module):
    """ShuffleNetV2's unit of stride 2 (arXiv 1807.11164, figure 3d).

    Two branches read all channels, each gives half of the outputs; then they are shuffled.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            _conv_norm(in_channels, in_channels, 3, stride=2, groups=in_channels, relu=False),
            _conv_norm(in_channels, half, 1),
        )
        self.right = nn.Sequential(
            _conv_norm(in_channels, half, 1),
            _conv_norm(half, half, 3, stride=2, groups=half, relu=False),
            _conv_norm(half, half, 1),
        )
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(torch.cat([self.left(x), self.right(x)], dim=1))


@MODELS.register("mobilenet_v2_half")
def mobilenet_v2_half(num_classes: int, in_channels: int = 3) -> StagedNet:
    """MobileNetV2 (arXiv 1801.04381) at half width and expansion 6: CRD's ``MobileNetV2``.

    It has seven stages.
    """
    below, stages = 16, []
    plan = [
        (1, 8, 1, 1),
        (6, 12, 2, 1),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    ]
    for expansion, width, blocks, stride in plan:
        first = InvertedResidual(below, width, stride=stride, expansion=expansion)
        rest = (InvertedResidual(width, width, expansion=expansion) for _ in range(blocks - 1))
        stages.append(nn.Sequential(first, *rest))
        below = width
    stages[-1].append(_conv_norm(below, 1280, 1))
    return StagedNet(_conv_norm(in_channels, 16, 3, stride=2), stages, 1280, num_classes)


@MODELS.register("shufflenet_v1")
def shufflenet_v1(num_classes: int, in_channels: int = 3) -> StagedNet:
    """ShuffleNetV1 (arXiv 1707.01083) of 3 groups: CRD's ``ShuffleV1``.

    Its three stages have 4, 8 and 4 units. The stem is conv1×1 to 24 channels, and the first unit's
    first convolution is not grouped.
    """
    below, stages = 24, []
    for width, units in ((240, 4), (480, 8), (960, 4)):
        first = ShuffleUnit(below, width, groups=3, first_groups=1 if below == 24 else 3, stride=2)
        rest = (
            ShuffleUnit(width, width, groups=3, first_groups=3, stride=1) for _ in range(units - 1)
        )
        stages.append(nn.Sequential(first, *rest))
        below = width
    return StagedNet(_conv_norm(in_channels, 24, 1), stages, 960, num_classes)


@MODELS.register("shufflenet_v2")
def shufflenet_v2(num_classes: int, in_channels: int = 3) -> StagedNet:
    """ShuffleNetV2 1× (arXiv 1807.11164), three stages of 4, 8 and 4 units; CRD's ``ShuffleV2``.

    The stem is conv1×1 to 24 channels; conv1×1 to 1,024 ends the last stage.
    """
    below, stages = 24, []
    for width, units in ((116, 4), (232, 8), (464, 4)):
        stages.append(
            nn.Sequential(DownUnit(below, width), *(SplitUnit(width) for _ in range(units - 1)))
        )
        below = width
    stages[-1].append(_conv_norm(below, 1024, 1))
    return StagedNet(_conv_norm(in_channels, 24, 1), stages, 1024, num_classes)
