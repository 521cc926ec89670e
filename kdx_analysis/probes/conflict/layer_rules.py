"""Per-sample gradients of a layer from its input and one backward pass over a batch, for the layers
that have a rule.

Axes: B samples; a rule gives B×C_out×d, output channels first, so that an expert's parameters are
consecutive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """Per-sample gradients of a kind of layer.

    ``prepare(layer, input)`` does once what all subtasks share; ``gradient(layer, prepared,
    ∂m/∂output)`` is B×C_out×d.
    """

    prepare: Callable[[Any, Tensor], Tensor]
    gradient: Callable[[Any, Tensor, Tensor], Tensor]


def _columns(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    assert not isinstance(layer.padding, str)
    columns = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.unflatten(1, (layer.groups, -1)).transpose(-1, -2)


def _convolution(layer: nn.Conv2d, columns: Tensor, delta: Tensor) -> Tensor:
    delta = delta.flatten(2)
    weight = (delta.unflatten(1, (layer.groups, -1)) @ columns).flatten(1, 2)
    return (
        weight if layer.bias is None else torch.cat([weight, delta.sum(dim=2, keepdim=True)], dim=2)
    )


def _normed(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, 1, 1)
    return (inputs - layer.running_mean.view(shape)) * (
        layer.running_var.view(shape) + layer.eps
    ).rsqrt()


def _batch_norm(layer: nn.BatchNorm2d, normed: Tensor, delta: Tensor) -> Tensor:
    return torch.stack([(delta * normed).sum(dim=(2, 3)), delta.sum(dim=(2, 3))], dim=2)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: Rule(_columns, _convolution),
    nn.BatchNorm2d: Rule(_normed, _batch_norm),
}


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a module that computes what PyTorch's layer of its kind does, in the cases that
    it knows.

    There is none where ``weight`` is computed from other parameters, as by VAM, pruning or weight
    norm: reading such a ``module.weight`` would compute it, and in train mode update what it is
    computed with.
    """
    own = {name for name, p in module._parameters.items() if p is not None}
    computed = {"weight", "bias"} & (
        vars(module).keys() | set(getattr(module, "parametrizations", ()))
    )
    if not own <= {"weight", "bias"} or "weight" not in own or computed:
        return None
    for kind, rule in _RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule if _plain(module) else None
    return None


def _plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return not isinstance(module.padding, str) and module.padding_mode == "zeros"
    return getattr(module, "running_mean", None) is not None
