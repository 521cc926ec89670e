"""Small students of every family that an explainer is made of, as torchvision, timm and the zoo
build them.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torchvision.models as tv
from torch import nn
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.shufflenetv2 import ShuffleNetV2

from kdx_analysis import _compat  # noqa: F401  # isort: split
from kdx_analysis.models import build_model

K = 4


def _vgg() -> nn.Module:
    model = tv.VGG(nn.Identity(), K)
    model.features = tv.vgg.make_layers([16, "M", 32, "M", 64, "M", 64, "M"], batch_norm=True)
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 32), nn.ReLU(), nn.Linear(32, K))
    return model


def _efficientnet() -> nn.Module:
    settings = [
        (1, 3, 1, 16, 16, 1),
        (6, 3, 2, 16, 24, 1),
        (6, 5, 2, 24, 40, 2),
        (6, 3, 2, 40, 80, 2),
    ]
    blocks = [MBConvConfig(*setting, width_mult=0.5, depth_mult=1.0) for setting in settings]
    return EfficientNet(blocks, dropout=0.1, num_classes=K)


def _regnet() -> nn.Module:
    params = BlockParams(
        [2, 2, 2, 2], [24, 48, 96, 120], [8, 8, 8, 8], [1.0] * 4, [2] * 4, se_ratio=0.25
    )
    return RegNet(params, num_classes=K, stem_width=16)


def _timm(name: str, **options: object) -> nn.Module:
    return timm.create_model(name, num_classes=K, **options)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "zoo resnet20": lambda: build_model("resnet20", K, 3),
    "zoo wrn_16_2": lambda: build_model("wrn_16_2", K, 3),
    "zoo vgg8": lambda: build_model("vgg8", K, 3),
    "torchvision resnet": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=K),
    "torchvision resnext": lambda: ResNet(
        Bottleneck, [1, 1, 1, 1], num_classes=K, groups=8, width_per_group=8
    ),
    "torchvision wide_resnet": lambda: ResNet(
        Bottleneck, [1, 1, 1, 1], num_classes=K, width_per_group=128
    ),
    "torchvision vgg": _vgg,
    "torchvision mobilenet_v2": lambda: tv.mobilenet_v2(num_classes=K, width_mult=0.5),
    "torchvision mobilenet_v3": lambda: tv.mobilenet_v3_small(num_classes=K, width_mult=0.5),
    "torchvision shufflenet": lambda: ShuffleNetV2(
        [2, 2, 2], [24, 32, 64, 128, 256], num_classes=K
    ),
    "torchvision efficientnet": _efficientnet,
    "torchvision convnext": lambda: tv.ConvNeXt(
        [tv.convnext.CNBlockConfig(*c, 1) for c in ((16, 32), (32, 48), (48, 64), (64, None))],
        num_classes=K,
    ),
    "torchvision regnet": _regnet,
    "torchvision densenet": lambda: DenseNet(8, (2, 2, 2, 2), 16, num_classes=K),
    "torchvision vit": lambda: tv.VisionTransformer(32, 8, 4, 4, 48, 96, num_classes=K),
    "timm resnet": lambda: _timm("test_resnet"),
    "timm resnext": lambda: timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck,
        (1, 1, 1, 1),
        K,
        cardinality=8,
        base_width=8,
        channels=(16, 32, 48, 64),
    ),
    "timm vgg": lambda: _timm("vgg11_bn", mlp_ratio=0.01),
    "timm mobilenetv2": lambda: _timm("mobilenetv2_035"),
    "timm mobilenetv3": lambda: _timm("mobilenetv3_small_050"),
    "timm efficientnet": lambda: _timm("test_efficientnet"),
    "timm convnext": lambda: _timm("test_convnext"),
    "timm convnext without conv_mlp": lambda: _timm(
        "convnext_atto", conv_mlp=False, dims=(16, 24, 32, 48)
    ),
    "timm regnet": lambda: _timm("regnety_002"),
    "timm densenet": lambda: _timm("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)),
    "timm vit": lambda: _timm(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=4,
        num_heads=4,
        init_values=0.1,
    ),
}
