"""What every model of the zoo is made of: a stem and stages, convolutions that start alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.registry import Registry


class StagedNet(nn.Module):
    """A stem, stages, average pooling and a linear classifier.

    It takes images B×in_channels×H×W to logits B×K.

    Args:
        stem: images to B×C×H×W.
        stages: what an explainer splits: the first stays whole with the stem, each later one is a
            level of experts.
        width: C, the channels that leave the last stage.
        num_classes: K.
        pool: the classifier reads features averaged over a ``pool`` × ``pool`` grid, globally by
            default.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        width: int,
        num_classes: int,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(width * pool**2, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the classifier reads: the last stage's features on the grid, B×(C·pool²)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return F.adaptive_avg_pool2d(x, self.pool).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Images, B×C×H×W, to logits, B×K."""
        return self.classifier(self.features(x))


class ModelBuilder(Protocol):
    """Builds a model for K classes and images B×in_channels×H×W; draws from torch's current RNG."""

    def __call__(self, num_classes: int, in_channels: int = 3) -> nn.Module: ...


MODELS: Registry[ModelBuilder] = Registry("model", rooms=("kdx_analysis.models.zoo",))


class Conv(nn.Conv2d):
    """A convolution that keeps the size at stride 1 and starts Kaiming-normal with its fan-out.

    Its bias starts at 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, size, stride, size // 2, groups=groups, bias=bias
        )

    def reset_parameters(self) -> None:
        fan_out = self.out_channels // self.groups * math.prod(self.kernel_size)
        nn.init.normal_(self.weight, 0.0, math.sqrt(2.0 / fan_out))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def plain_stage(
    in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False, pool: bool = False
) -> nn.Sequential:
    """conv3×3, BatchNorm, ReLU and, with ``pool``, 2×2 max-pooling.

    Args:
        in_channels, out_channels: of the convolution, B×C×H×W to B×C'×H/stride×W/stride.
        stride: of the convolution, in both directions.
        bias: whether the convolution has one, which BatchNorm takes out again.
        pool: whether height and width are halved once more, at the end.
    """
    layers = [
        Conv(in_channels, out_channels, 3, stride=stride, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
