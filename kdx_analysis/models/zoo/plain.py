"""Networks without shortcuts: the digits' student and VGG."""

from __future__ import annotations

from torch import nn

from kdx_analysis.models.zoo.staged import MODELS, StagedNet, plain_stage


@MODELS.register("digits_student")
def digits_student(num_classes: int, in_channels: int = 3) -> StagedNet:
    """For 8×8 images: four stages of conv3×3 BN ReLU, 24 channels, stride 2 in the third. [ours]

    The stem is the identity: the first stage reads the image. The classifier reads the last 4×4
    features unpooled.
    """
    stages = [
        plain_stage(24 if i else in_channels, 24, stride=2 if i == 2 else 1) for i in range(4)
    ]
    return StagedNet(nn.Identity(), stages, 24, num_classes, pool=4)


@MODELS.register("vgg8")
def vgg8(num_classes: int, in_channels: int = 3) -> StagedNet:
    """Five stages of one conv3×3 (with bias) BN ReLU, 64 to 512 channels.

    The first three end in max-pooling. CRD's ``vgg8_bn`` for 32×32 images, with one Linear layer
    where VGG (arXiv 1409.1556) has three; a pool belongs to the stage before it. The stem is the
    identity: the first stage reads the image.
    """
    widths = (in_channels, 64, 128, 256, 512, 512)
    stages = [plain_stage(widths[i], widths[i + 1], bias=True, pool=i < 3) for i in range(5)]
    return StagedNet(nn.Identity(), stages, 512, num_classes)
