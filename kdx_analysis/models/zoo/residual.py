"""Residual networks (ResNet, WRN) in the shapes of the literature on distilling CIFAR models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdx_analysis.models.zoo.staged import MODELS, Conv, StagedNet, plain_stage


class BasicBlock(nn.Module):
    """ReLU(F(x) + shortcut(x)), F = conv3×3 BN ReLU conv3×3 BN (He et al., arXiv 1512.03385).

    The shortcut is the identity where shapes allow, else conv1×1 BN (their option B; CRD's choice,
    where the CIFAR models of the paper itself pad with zeros).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                Conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """conv3×3(ReLU(BN(conv3×3(a)))) + x with a = ReLU(BN(x)).

    From Zagoruyko & Komodakis, arXiv 1605.07146. Where shapes do not allow the identity,
    conv1×1(a), without BN, replaces x, as in their code and CRD's. There is no dropout.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = Conv(in_channels, out_channels, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = Conv(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(a))))
        return out + (x if self.shortcut is None else self.shortcut(a))


def residual_stage(
    in_channels: int, out_channels: int, *, blocks: int, stride: int = 1
) -> nn.Sequential:
    """``blocks`` basic blocks, the first with ``stride``."""
    first = BasicBlock(in_channels, out_channels, stride=stride)
    return nn.Sequential(
        first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1))
    )


def pre_activation_stage(
    in_channels: int, out_channels: int, *, blocks: int, stride: int = 1, last: bool = False
) -> nn.Sequential:
    """``blocks`` pre-activation blocks, the first with ``stride``; the ``last`` ends in BN ReLU."""
    first = PreActivationBlock(in_channels, out_channels, stride=stride)
    rest = (PreActivationBlock(out_channels, out_channels) for _ in range(blocks - 1))
    end = (nn.BatchNorm2d(out_channels), nn.ReLU()) if last else ()
    return nn.Sequential(first, *rest, *end)


def _resnet(
    stem_width: int, widths: Sequence[int], blocks: int, num_classes: int, in_channels: int
) -> StagedNet:
    stem = plain_stage(in_channels, stem_width)
    below = (stem_width, *widths)
    stages = [
        residual_stage(below[i], width, blocks=blocks, stride=1 if i == 0 else 2)
        for i, width in enumerate(widths)
    ]
    return StagedNet(stem, stages, widths[-1], num_classes)


def _wrn(depth: int, widen: int, num_classes: int, in_channels: int) -> StagedNet:
    blocks, width = (depth - 4) // 6, 16 * widen
    stem = Conv(in_channels, 16, 3)
    stages = [
        pre_activation_stage(16, width, blocks=blocks),
        pre_activation_stage(width, 2 * width, blocks=blocks, stride=2),
        pre_activation_stage(2 * width, 4 * width, blocks=blocks, stride=2, last=True),
    ]
    return StagedNet(stem, stages, 4 * width, num_classes)


@MODELS.register("digits_teacher")
def digits_teacher(num_classes: int, in_channels: int = 3) -> StagedNet:
    """For 8×8 images: a ResNet of two stages of one basic block, 64 and 128 channels. [ours]"""
    stages = [
        residual_stage(64, 64, blocks=1, stride=2),
        residual_stage(64, 128, blocks=1, stride=2),
    ]
    return StagedNet(plain_stage(in_channels, 64), stages, 128, num_classes)


@MODELS.register("resnet20")
def resnet20(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of three basic blocks, 16, 32 and 64 channels; arXiv 1512.03385, as in CRD."""
    return _resnet(16, (16, 32, 64), 3, num_classes, in_channels)


@MODELS.register("resnet56")
def resnet56(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of nine basic blocks, 16, 32 and 64 channels; arXiv 1512.03385, as in CRD."""
    return _resnet(16, (16, 32, 64), 9, num_classes, in_channels)


@MODELS.register("resnet8x4")
def resnet8x4(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of one basic block, 64, 128 and 256 channels behind a stem of 32.

    From CRD, arXiv 1910.10699.
    """
    return _resnet(32, (64, 128, 256), 1, num_classes, in_channels)


@MODELS.register("resnet32x4")
def resnet32x4(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of five basic blocks, 64, 128 and 256 channels behind a stem of 32.

    From CRD, arXiv 1910.10699.
    """
    return _resnet(32, (64, 128, 256), 5, num_classes, in_channels)


@MODELS.register("resnet18")
def resnet18(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Four stages of two basic blocks, 64 to 512 channels; He et al., arXiv 1512.03385.

    The stem is that for CIFAR (CRD's ``ResNet18``): conv3×3 of stride 1 and no max-pooling, where
    ImageNet's has conv7×7 of stride 2 and max-pooling.
    """
    return _resnet(64, (64, 128, 256, 512), 2, num_classes, in_channels)


@MODELS.register("wrn_16_1")
def wrn_16_1(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Three stages of two pre-activation blocks, 16, 32 and 64 channels; arXiv 1605.07146."""
    return _wrn(16, 1, num_classes, in_channels)


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
