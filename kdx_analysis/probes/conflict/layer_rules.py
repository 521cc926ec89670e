"""Per-sample gradients of a layer from its input and one backward pass over a batch, by rules.

Axes: B samples, U units of C output channels each, P positions. A unit lies in one group of a
convolution and in one expert, and a rule gives B×U×c×d for some of every unit's channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """Per-sample gradients of a kind of layer.

    Attributes:
        prepare: (layer, its input, U) → what all subtasks share, computed once.
        gradient: (layer, what was prepared, ∂m/∂output of some channels, B×U×c×P, which of each
            unit's channels they are) → B×U×c×d.
    """

    prepare: Callable[[Any, Tensor, int], Tensor]
    gradient: Callable[[Any, Tensor, Tensor, slice], Tensor]


def _columns(layer: nn.Conv2d, inputs: Tensor, units: int) -> Tensor:
    """What every output position reads, B×groups×d×P.

    A strided view that is copied, which is several times as fast as ``F.unfold``.
    """
    assert not isinstance(layer.padding, str)
    (down, right), (dy, dx), (sy, sx) = layer.padding, layer.dilation, layer.stride
    padded = inputs.contiguous()
    if down or right:
        padded = F.pad(padded, (right, right, down, down))
    B, channels, height, width = padded.shape
    C, (tall, wide) = channels // layer.groups, layer.kernel_size
    rows = (height - dy * (tall - 1) - 1) // sy + 1
    positions = (width - dx * (wide - 1) - 1) // sx + 1
    image, channel, row, position = padded.stride()
    windows = padded.as_strided(
        (B, layer.groups, C, tall, wide, rows, positions),
        (image, C * channel, channel, dy * row, dx * position, sy * row, sx * position),
    )
    return windows.reshape(B, layer.groups, -1, rows * positions)


def _convolution(layer: nn.Conv2d, columns: Tensor, delta: Tensor, channels: slice) -> Tensor:
    """Of the weight, and of the bias behind it where there is one."""
    by_group = delta.unflatten(1, (layer.groups, -1)).flatten(2, 3)
    weight = (by_group @ columns.mT).reshape(*delta.shape[:3], -1)
    if layer.bias is None:
        return weight
    return torch.cat([weight, delta.sum(dim=3, keepdim=True)], dim=3)


def _normed(layer: nn.BatchNorm2d, inputs: Tensor, units: int) -> Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, 1, 1)
    deviation = inputs - layer.running_mean.view(shape)
    normed = deviation * (layer.running_var.view(shape) + layer.eps).rsqrt()
    return normed.reshape(len(inputs), units, inputs.shape[1] // units, -1)


def _batch_norm(layer: nn.BatchNorm2d, normed: Tensor, delta: Tensor, channels: slice) -> Tensor:
    return torch.stack([(delta * normed[:, :, channels]).sum(dim=3), delta.sum(dim=3)], dim=3)


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


@contextmanager
def side_by_side_quickly(model: nn.Module) -> Iterator[None]:
    """Inside the body grouped convolutions in float32 compute channels last.

    So a CPU takes them up to five times as fast, the way back most of all. What they give has the
    memory format that it would have had, as a model may view it.
    """
    turned: list[nn.Module] = []

    def turn(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0] if len(inputs) == 1 else None
        if not isinstance(x, Tensor) or x.ndim != 4 or x.dtype != torch.float32:
            return inputs
        if x.device.type != "cpu" or x.is_contiguous(memory_format=torch.channels_last):
            return inputs
        turned.append(module)
        return (x.contiguous(memory_format=torch.channels_last),)

    def back(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if turned and turned[-1] is module:
            turned.pop()
            return output.clone(memory_format=torch.contiguous_format)
        return output

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels:
            handles.append(module.register_forward_pre_hook(turn))
            handles.append(module.register_forward_hook(back, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
