"""Teachers and students as stages, in the shapes that the literature on distilling CIFAR models uses.

A stage is built by a function of (in_channels, out_channels, groups), so that one recipe makes the whole
stage (groups = 1) or N narrow copies of it that run side by side, one an expert of a level (groups = N).

Where sources differ, shapes are those of CRD's code (Tian et al., ICLR 2020, arXiv 1910.10699), which later
work on distillation took over. All models start alike: convolutions Kaiming-normal with the fan-out of one
expert, BatchNorm 1/0, biases of convolutions 0, Linear as PyTorch has it (CRD's VGG: N(0, 0.01)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.registry import Registry

StageBuilder = Callable[[int, int, int], nn.Module]
"""build(in_channels, out_channels, groups): a stage from B×in_channels×H×W to B×out_channels×H'×W'.

Both numbers of channels count all groups together. With groups = N, channels stand expert by expert, slice i
of N of every parameter (dim 0) belongs to expert i alone, and expert i sees only its slice of the input.
"""


@dataclass(frozen=True)
class StagePlan:
    """How a stage is built, and how many channels leave it when it stays whole."""

    build: StageBuilder
    width: int


class StagedNet(nn.Module):
    """A stem, stages, average pooling and a linear classifier; images B×in_channels×H×W to logits B×K.

    ``build_stem`` builds ``stem``, which gives B×stem_width×H×W; ``plans`` build ``stages``, each whole. Both
    are kept, so that stem and stages can be built anew. The classifier reads features averaged over a ``pool`` ×
    ``pool`` grid, globally by default.
    """

    def __init__(
        self,
        build_stem: Callable[[], nn.Module],
        stem_width: int,
        plans: Sequence[StagePlan],
        num_classes: int,
        in_channels: int,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.build_stem = build_stem
        self.stem = build_stem()
        self.stem_width = stem_width
        self.plans = tuple(plans)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stages = nn.ModuleList()
        width = stem_width
        for plan in self.plans:
            self.stages.append(plan.build(width, plan.width, 1))
            width = plan.width
        self.classifier = nn.Linear(width * pool**2, num_classes)

    def rebuilt(self) -> StagedNet:
        """The same network with weights drawn anew."""
        return StagedNet(self.build_stem, self.stem_width, self.plans, self.num_classes, self.in_channels, self.pool)

    def features(self, x: Tensor) -> Tensor:
        """What the classifier reads: the last stage's features, averaged over the grid; B×(C·pool²)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return F.adaptive_avg_pool2d(x, self.pool).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class ModelBuilder(Protocol):
    """Builds a model for K classes and images B×in_channels×H×W; draws from torch's current RNG."""

    def __call__(self, num_classes: int, in_channels: int = 3) -> nn.Module: ...


MODELS: Registry[ModelBuilder] = Registry("model")


def _conv(
    in_channels: int, out_channels: int, size: int, *, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, groups=groups, bias=bias)
    # nn.init.kaiming_normal_ would take the fan-out of all groups together
    fan_out = out_channels // groups * size * size
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def plain_stage(
    in_channels: int,
    out_channels: int,
    groups: int = 1,
    *,
    stride: int = 1,
    bias: bool = False,
    pool: bool = False,
) -> nn.Sequential:
    """conv3×3, BatchNorm, ReLU and, with ``pool``, 2×2 max-pooling."""
    layers: list[nn.Module] = [
        _conv(in_channels, out_channels, 3, stride=stride, groups=groups, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """ReLU(F(x) + shortcut(x)), F = conv3×3 BN ReLU conv3×3 BN (He et al., arXiv 1512.03385).

    The shortcut is the identity where shapes allow, else conv1×1 BN (their option B; CRD's choice, where the
    CIFAR models of the paper itself pad with zeros).
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, 3, stride=stride, groups=groups)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(out_channels, out_channels, 3, groups=groups)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _conv(in_channels, out_channels, 1, stride=stride, groups=groups),
                nn.BatchNorm2d(out_channels),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """conv3×3(ReLU(BN(conv3×3(a)))) + x with a = ReLU(BN(x)) (Zagoruyko & Komodakis, arXiv 1605.07146).

    Where shapes do not allow the identity, conv1×1(a), without BN, replaces x, as in their code and CRD's.
    There is no dropout.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1, *, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv(in_channels, out_channels, 3, stride=stride, groups=groups)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv(out_channels, out_channels, 3, groups=groups)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(a))))
        return out + (x if self.shortcut is None else self.shortcut(a))


def residual_stage(
    in_channels: int, out_channels: int, groups: int = 1, *, blocks: int, stride: int = 1
) -> nn.Sequential:
    """``blocks`` basic blocks, the first with ``stride``."""
    first = BasicBlock(in_channels, out_channels, groups, stride=stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, groups) for _ in range(blocks - 1)))


def pre_activation_stage(
    in_channels: int, out_channels: int, groups: int = 1, *, blocks: int, stride: int = 1, last: bool = False
) -> nn.Sequential:
    """``blocks`` pre-activation blocks, the first with ``stride``; the net's ``last`` ends in BN ReLU."""
    first = PreActivationBlock(in_channels, out_channels, groups, stride=stride)
    rest = (PreActivationBlock(out_channels, out_channels, groups) for _ in range(blocks - 1))
    end = (nn.BatchNorm2d(out_channels), nn.ReLU()) if last else ()
    return nn.Sequential(first, *rest, *end)


def _resnet(stem_width: int, widths: Sequence[int], blocks: int, num_classes: int, in_channels: int) -> StagedNet:
    plans = [
        StagePlan(partial(residual_stage, blocks=blocks, stride=1 if i == 0 else 2), width)
        for i, width in enumerate(widths)
    ]
    return StagedNet(partial(plain_stage, in_channels, stem_width), stem_width, plans, num_classes, in_channels)


def _wrn(depth: int, widen: int, num_classes: int, in_channels: int) -> StagedNet:
    blocks = (depth - 4) // 6
    plans = [
        StagePlan(partial(pre_activation_stage, blocks=blocks), 16 * widen),
        StagePlan(partial(pre_activation_stage, blocks=blocks, stride=2), 32 * widen),
        StagePlan(partial(pre_activation_stage, blocks=blocks, stride=2, last=True), 64 * widen),
    ]
    return StagedNet(partial(_conv, in_channels, 16, 3), 16, plans, num_classes, in_channels)


@MODELS.register("digits_teacher")
def digits_teacher(num_classes: int, in_channels: int = 3) -> StagedNet:
    """For 8×8 images: a ResNet of two stages of one basic block, 64 and 128 channels. [ours]"""
    plans = [
        StagePlan(partial(residual_stage, blocks=1, stride=2), 64),
        StagePlan(partial(residual_stage, blocks=1, stride=2), 128),
    ]
    return StagedNet(partial(plain_stage, in_channels, 64), 64, plans, num_classes, in_channels)


@MODELS.register("digits_student")
def digits_student(num_classes: int, in_channels: int = 3) -> StagedNet:
    """For 8×8 images: four stages of conv3×3 BN ReLU, 24 channels, stride 2 in the third. [ours]

    The stem is the identity: the first stage reads the image. The classifier reads the last 4×4 features unpooled.
    """
    plans = [StagePlan(partial(plain_stage, stride=2 if i == 2 else 1), 24) for i in range(4)]
    return StagedNet(nn.Identity, in_channels, plans, num_classes, in_channels, pool=4)


@MODELS.register("resnet20")
def resnet20(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of three basic blocks, 16, 32 and 64 channels; He et al., arXiv 1512.03385, as in CRD."""
    return _resnet(16, (16, 32, 64), 3, num_classes, in_channels)


@MODELS.register("resnet56")
def resnet56(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of nine basic blocks, 16, 32 and 64 channels; He et al., arXiv 1512.03385, as in CRD."""
    return _resnet(16, (16, 32, 64), 9, num_classes, in_channels)


@MODELS.register("resnet18")
def resnet18(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Four stages of two basic blocks, 64 to 512 channels; He et al., arXiv 1512.03385.

    The stem is that for CIFAR (CRD's ``ResNet18``): conv3×3 of stride 1 and no max-pooling, where ImageNet's
    has conv7×7 of stride 2 and max-pooling.
    """
    return _resnet(64, (64, 128, 256, 512), 2, num_classes, in_channels)


@MODELS.register("wrn_16_2")
def wrn_16_2(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of two pre-activation blocks, 32, 64 and 128 channels; arXiv 1605.07146."""
    return _wrn(16, 2, num_classes, in_channels)


@MODELS.register("wrn_40_1")
def wrn_40_1(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of six pre-activation blocks, 16, 32 and 64 channels; arXiv 1605.07146."""
    return _wrn(40, 1, num_classes, in_channels)


@MODELS.register("wrn_40_2")
def wrn_40_2(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of six pre-activation blocks, 32, 64 and 128 channels; arXiv 1605.07146."""
    return _wrn(40, 2, num_classes, in_channels)


@MODELS.register("vgg8")
def vgg8(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Five stages of one conv3×3 (with bias) BN ReLU, 64 to 512 channels, max-pooling after the first three.

    CRD's ``vgg8_bn`` for 32×32 images, with one Linear layer where VGG (arXiv 1409.1556) has three; a pool
    belongs to the stage before it. The stem is the identity: the first stage reads the image.
    """
    plans = [
        StagePlan(partial(plain_stage, bias=True, pool=i < 3), width)
        for i, width in enumerate((64, 128, 256, 512, 512))
    ]
    return StagedNet(nn.Identity, in_channels, plans, num_classes, in_channels)
