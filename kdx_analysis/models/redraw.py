"""Weights drawn anew from torch's random state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


@torch.no_grad()
def draw_anew(model: nn.Module, scales: Mapping[str, tuple[float, float]] | None = None) -> None:
    """Redraw every weight in place by its module's ``reset_parameters``.

    Running statistics start anew, too. A parameter that no ``reset_parameters`` draws, as a layer
    scale or a class token, is drawn from a normal distribution with its present mean and deviation,
    or those in ``scales`` (by the parameter's name).
    """
    drawn: set[int] = set()
    for module in reversed(list(model.modules())):  # a block's own reset may correct its layers'
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        if callable(reset):
            reset()
            drawn |= {id(parameter) for parameter in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in drawn:
            mean, deviation = (scales or {}).get(name) or moments(parameter)
            parameter.normal_(mean, deviation)


def moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and population deviation."""
    return float(values.detach().mean()), float(values.detach().std(correction=0))
