"""Per-sample gradients of a layer from its input and one backward pass over a batch, by rules.

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

    Attributes:
        prepare: (layer, its input) → what all subtasks share, computed once.
        gradient: (layer, what was prepared, ∂m/∂output) → B×C_out×d.
    """

    prepare: Callable[[Any, Tensor], Tensor]
    gradient: Callable[[Any, Tensor, Tensor], Tensor]


def _columns(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What every output position reads, B×groups×positions×d."""
    assert not isinstance(layer.padding, str)
    columns = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.unflatten(1, (layer.groups, -1)).transpose(-1, -2)


def _convolution(layer: nn.Conv2d, columns: Tensor, delta: Tensor) -> Tensor:
    """Of the weight, and of the bias behind it where there is one."""
    delta = delta.flatten(2)
    weight = (delta.unflatten(1, (layer.groups, -1)) @ columns).flatten(1, 2)
    if layer.bias is None:
        return weight
    return torch.cat([weight, delta.sum(dim=2, keepdim=True)], dim=2)


def _normed(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, 1, 1)
    deviation = inputs - layer.running_mean.view(shape)
    return deviation * (layer.running_var.view(shape) + layer.eps).rsqrt()


def _batch_norm(layer: nn.BatchNorm2d, normed: Tensor, delta: Tensor) -> Tensor:
    return torch.stack([(delta * normed).sum(dim=(2, 3)), delta.sum(dim=(2, 3))], dim=2)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: Rule(_columns, _convolution),
    nn.BatchNorm2d: Rule(_normed, _batch_norm),
}


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a module that computes what PyTorch's layer of its kind does, if there is one.

    There is none where ``weight`` is computed from other parameters, as by VAM, pruning or weight
    norm: reading such a ``module.weight`` would compute it, and in train mode update what it is
    computed with.
    """
    parameters = {name for name, p in module._parameters.items() if p is not None}
    # Pruning and weight norm put a computed weight among the attributes.
    computed = vars(module).keys() | set(getattr(module, "parametrizations", ()))
    if "weight" not in parameters or parameters - {"weight", "bias"}:
        return None
    if computed & {"weight", "bias"}:
        return None
    for kind, rule in _RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule if _is_known_case(module) else None
    return None


def _is_known_case(module: nn.Module) -> bool:
    """Whether a convolution pads with numbered zeros, or a normalisation has running means."""
    if isinstance(module, nn.Conv2d):
        return not isinstance(module.padding, str) and module.padding_mode == "zeros"
    return getattr(module, "running_mean", None) is not None
