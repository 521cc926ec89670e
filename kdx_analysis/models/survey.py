"""Which architectures can be split, and which take VAM: what ``kdx list models`` prints of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kdx_analysis.models.hme import HME
from kdx_analysis.models.resolve import build_model, list_models
from kdx_analysis.models.splitting.tracing import on_meta
from kdx_analysis.models.vam.layers import attach, fold, gate_parameters
from kdx_analysis.models.zoo import MODELS

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
TORCHVISION = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_16",
)
_K = 10


def splits(names: Sequence[str] | None = None, experts: int = 4) -> Iterator[dict[str, Any]]:
    """One row for each model, by default the zoo's and one of every family of torchvision and timm.

    Columns: model; levels above the trunk; parameters of the student's stages there and of the
    explainer's levels; the budgets' errors for ``budget="params"`` and ``"flops"``; parameters of
    classifier and heads; and ``step``, the loss before a training step and after it, on the same 4
    images.
    """
    for name in (*list_models(), *FAMILIES) if names is None else names:
        yield _split(name, experts)


def _split(name: str, experts: int) -> dict[str, Any]:
    # The zoo is made for 32 pixels; other networks halve them more often, and transformers are for
    # 224.
    side = 224 if "vit" in name else 32 if ":" not in name else 64
    shape = (3, side, side)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # a row is the same whenever it is made
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


def _step(explainer: HME, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """The hard loss on ``images`` before and after a step of gradient descent, in train mode."""
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


def attachments(
    names: Iterable[str] = (*MODELS, *TORCHVISION), num_classes: int = _K, seed: int = 0
) -> pd.DataFrame:
    """What VAM does to models by name: layers, size, and how exactly it comes and goes.

    One row per model at the default blocks: model, attached, layers, added_percent, attach_error,
    fold_error.

    Errors are max|Δ|/max|y| of the logits y of two images in eval mode: attaching compares with the
    plain model, folding with the attached model whose U was drawn from N(0, 1). Parameters that
    start below 1e-4, as a head at 0 or a layer scale does, are drawn from N(0, 0.01) first, so that
    every layer shows in the logits. Images have 32 pixels for the zoo, 224 for others.
    """
    return pd.DataFrame([_attachment(name, num_classes, seed) for name in names])


@torch.no_grad()
def _attachment(name: str, num_classes: int, seed: int) -> dict[str, object]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(name, num_classes, 3).eval()
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-4:
                parameter.normal_(std=0.1)
        size = 224 if ":" in name else 32
        images = torch.randn(2, 3, size, size)
        plain = model(images)
        table = attach(model)
        attached = model(images)
        for logits in gate_parameters(model):
            logits.normal_()
        trained = model(images)
        fold(model)
        folded = model(images)
    return {
        "model": name,
        "attached": len(table.paths),
        "layers": len(table.rows),
        "added_percent": 100 * table.added / table.parameters,
        "attach_error": _error(attached, plain),
        "fold_error": _error(folded, trained),
    }


def _error(values: Tensor, reference: Tensor) -> float:
    return float((values - reference).abs().max() / reference.abs().max())
