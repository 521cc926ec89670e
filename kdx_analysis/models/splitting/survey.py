"""Whether architectures of the zoo, torchvision and timm can be split: what ``kdx list models
--split`` prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from kdx_analysis.models.hme import HME
from kdx_analysis.models.resolve import build_model, list_models
from kdx_analysis.models.splitting.tracing import on_meta

FAMILIES = (
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
    "torchvision:wide_resnet50_2",
    "torchvision:vgg11_bn",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "torchvision:regnet_y_400mf",
    "torchvision:densenet121",
    "torchvision:vit_b_16",
    "timm:resnet18",
    "timm:resnext50_32x4d",
    "timm:wide_resnet50_2",
    "timm:vgg11_bn",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_small_100",
    "timm:efficientnet_b0",
    "timm:convnext_atto",
    "timm:regnety_004",
    "timm:densenet121",
    "timm:vit_tiny_patch16_224",
)
_K = 10


def survey(names: Sequence[str] | None = None, experts: int = 4) -> Iterator[dict[str, Any]]:
    """One row for each model, by default the zoo's and one of every family of torchvision and timm.

    Columns: model; levels above the trunk; parameters of the student's stages there and of the
    explainer's levels; the budgets' errors for ``budget="params"`` and ``"flops"``; parameters of
    classifier and heads; and ``step``, the loss before a training step and after it, on the same 4
    images.
    """
    for name in (*list_models(), *FAMILIES) if names is None else names:
        yield _row(name, experts)


def _row(name: str, experts: int) -> dict[str, Any]:
    side = 224 if "vit" in name else 32 if ":" not in name else 64
    shape = (3, side, side)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_model(name, _K, 3)
        by_flops = HME.from_student(
            on_meta(student), _K, experts, budget="flops", image_shape=shape
        ).split
        explainer = HME.from_student(student, _K, experts, image_shape=shape)
        before, after = _step(explainer, torch.randn(4, *shape), torch.arange(4))
    assert explainer.split is not None
    assert by_flops is not None
    levels, heads = explainer.split.parts[1:-1], explainer.split.parts[-1]
    return {
        "model": name,
        "levels": len(levels),
        "stages": sum(p.student for p in levels),
        "experts": sum(p.explainer for p in levels),
        "params": explainer.split.budget_error,
        "flops": by_flops.budget_error,
        "classifier": heads.student,
        "heads": heads.explainer,
        "step": f"{before:.3f} → {after:.3f}",
    }


def _step(explainer: HME, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """The hard loss on ``images`` before and after one step of gradient descent on them, in train
    mode.
    """
    one_hot = F.one_hot(labels, explainer.num_classes).float()
    optimizer = torch.optim.SGD(explainer.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = (
            F.binary_cross_entropy_with_logits(explainer(images), one_hot, reduction="none")
            .sum(dim=1)
            .mean()
        )
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], losses[1]
