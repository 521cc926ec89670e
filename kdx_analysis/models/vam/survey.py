"""What VAM does to models by name: layers, size, and how exactly it comes and goes."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch

from kdx_analysis.models.resolve import build_model
from kdx_analysis.models.vam.layers import attach, fold, gate_parameters
from kdx_analysis.models.zoo import MODELS

TORCHVISION = tuple(
    f"torchvision:{name}" for name in ("resnet18", "mobilenet_v2", "convnext_tiny", "vit_b_16")
)


def survey(
    names: Iterable[str] = (*MODELS, *TORCHVISION), num_classes: int = 10, seed: int = 0
) -> pd.DataFrame:
    """One row per model at the default blocks: model, attached, layers, added_percent,
    attach_error, fold_error.

    Errors are max|Δ|/max|y| of the logits y of two images in eval mode: attaching compares with the
    plain model, folding with the attached model whose U was drawn from N(0, 1). Parameters that
    start below 1e-4, as a head at 0 or a layer scale does, are drawn from N(0, 0.01) first, so that
    every layer shows in the logits. Images have 32 pixels for the zoo, 224 for others.
    """
    return pd.DataFrame([_surveyed(name, num_classes, seed) for name in names])


@torch.no_grad()
def _surveyed(name: str, num_classes: int, seed: int) -> dict[str, object]:
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


def _error(values: torch.Tensor, reference: torch.Tensor) -> float:
    return float((values - reference).abs().max() / reference.abs().max())
