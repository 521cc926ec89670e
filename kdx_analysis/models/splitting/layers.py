"""Layers that an expert may hold: how each is narrowed, and how N of it stand side by side.

A narrowed layer is an ordinary layer of an expert alone. Side by side, every parameter of shape S
becomes one whose entries stand expert by expert, N·|S| of them, under the same name. Two layouts
hold N experts' features: ``side``, B×(N·C)×H×W, where convolutions are grouped, and ``batch``,
(B·N)×…, where all else computes as it does for one. A third, ``shared``, B×…, holds what is the
same for all experts once; a convolution that reads it is dense and gives ``side``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.errors import KdxError

Layout = Literal["side", "batch", "shared"]


@dataclass(frozen=True)
class Widths:
    """From a student's number of channels to an expert's: a ``share`` of it.

    Attributes:
        share: above 0; of channels, and of attention heads.
        kept: numbers of channels that stay, as those of a transformer's tokens.
        units: number of channels → what its share is rounded to a multiple of, as the number of
            groups.
        every: one number for all, in place of a share.
        multiple: what a share of no other unit is rounded to a multiple of, as long as it is that
            wide.
    """

    share: float
    kept: frozenset[int] = frozenset()
    units: Mapping[int, int] = field(default_factory=dict)
    every: int | None = None
    multiple: int = 1

    def __call__(self, channels: int) -> int:
        if self.every is not None:
            return self.every
        if channels in self.kept:
            return channels
        wanted = self.share * channels
        unit = math.lcm(self.units.get(channels, 1), self.multiple)
        if wanted < unit:
            unit = self.units.get(channels, 1)
        # However small its share, an expert keeps one channel: without any it has no output.
        return unit * round(wanted / unit) if wanted >= unit else max(1, round(wanted))


class SelfAttention(nn.Module):
    """Multi-head self-attention of tokens B×T×D whose heads together may be narrower than D.

    Stands in for :class:`torch.nn.MultiheadAttention` (``pair``: it then returns a pair, the
    weights being None) and for timm's ``Attention`` in an expert.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, *, bias: bool, dropout: float, pair: bool
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout, self.pair = heads, head_dim, dropout, pair
        self.qkv: nn.Module = nn.Linear(width, 3 * heads * head_dim, bias=bias)
        self.proj: nn.Module = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor, *same: Any, **unused: Any) -> Any:
        q, k, v = (
            self.qkv(x)
            .unflatten(-1, (3, self.heads, self.head_dim))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        return (out, None) if self.pair else out


class ExpertLinear(nn.Module):
    """N linear layers on the last axis of (B·N)×…×C_in; weight N×C_out×C_in, bias N×C_out."""

    def __init__(self, experts: int, like: nn.Linear) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(like.weight.new_empty(experts, *like.weight.shape))
        self.bias = (
            None
            if like.bias is None
            else nn.Parameter(like.bias.new_empty(experts, *like.bias.shape))
        )

    def forward(self, x: Tensor) -> Tensor:
        apart = x.unflatten(0, (-1, self.experts))
        rows = apart.transpose(0, 1).flatten(1, -2)  # N×(B·…)×C_in
        out = rows @ self.weight.transpose(1, 2)
        if self.bias is not None:
            out = out + self.bias.unsqueeze(1)
        return out.unflatten(1, (apart.shape[0], *apart.shape[2:-1])).transpose(0, 1).flatten(0, 1)


class ExpertNorm(nn.Module):
    """N layer or group normalisations of (B·N)×…, each with its own scale and shift, N×C."""

    def __init__(self, experts: int, like: nn.LayerNorm | nn.GroupNorm) -> None:
        super().__init__()
        self.experts, self.channels_first = experts, _channels_first(like)
        self.norm = copy.deepcopy(like)
        self.weight, self.bias = (
            None if p is None else nn.Parameter(p.new_empty(experts, *p.shape))
            for p in (like.weight, like.bias)
        )
        for name in ("weight", "bias"):
            setattr(self.norm, name, None)

    def forward(self, x: Tensor) -> Tensor:
        apart = self.norm(x).unflatten(0, (-1, self.experts))
        trailing = (1,) * (x.ndim - 2)
        for parameter, operation in ((self.weight, torch.mul), (self.bias, torch.add)):
            if parameter is not None:
                shape = (-1, *trailing) if self.channels_first else (*trailing, -1)
                apart = operation(apart, parameter.unflatten(1, shape))
        return apart.flatten(0, 1)


def _channels_first(norm: nn.Module) -> bool:
    """Whether axis 1 is normalised (GroupNorm, torchvision's and timm's LayerNorm2d)."""
    return isinstance(norm, nn.GroupNorm) or type(norm).__name__.endswith("2d")


ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
    nn.Identity,
    nn.Dropout,
)
KEEP_SHAPE = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, *ELEMENTWISE)
LAYERS = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Linear,
    nn.MultiheadAttention,
    SelfAttention,
)


def is_attention(module: nn.Module) -> bool:
    """PyTorch's multi-head attention, or one that keeps its heads as timm's ``Attention`` does."""
    if isinstance(module, nn.MultiheadAttention | SelfAttention):
        return True
    parts = (getattr(module, name, None) for name in ("qkv", "proj"))
    return (
        all(isinstance(p, nn.Linear) for p in parts)
        and hasattr(module, "num_heads")
        and hasattr(module, "head_dim")
    )


def is_layer(module: nn.Module) -> bool:
    """Whether a traced graph keeps ``module`` whole.

    It does where the module can be narrowed and set side by side.
    """
    return isinstance(module, LAYERS) or is_attention(module)


def narrowed(layer: nn.Module, x: Tensor, widths: Widths) -> nn.Module:
    """``layer`` for inputs like ``x``, its own width changed by ``widths``.

    Its parameters are left empty. Raises KdxError for options of a layer that can't be kept.
    """
    if is_attention(layer):
        return _narrow_attention(layer, widths)
    new = copy.deepcopy(layer)
    match new:
        case nn.Conv2d():
            _narrow_convolution(new, x.shape[1], widths)
        case nn.BatchNorm2d():
            new.num_features = x.shape[1]
            _resize(new, x.shape[1])
        case nn.LayerNorm():
            if len(new.normalized_shape) != 1:
                raise KdxError(
                    f"a LayerNorm over {len(new.normalized_shape)} axes can't be narrowed"
                )
            new.normalized_shape = (x.shape[1 if _channels_first(new) else -1],)
            _resize(new, *new.normalized_shape)
        case nn.GroupNorm():
            new.num_channels = x.shape[1]
            new.num_groups = math.gcd(new.num_groups, new.num_channels)
            _resize(new, new.num_channels)
        case nn.Linear():
            new.in_features, new.out_features = x.shape[-1], widths(new.out_features)
            _resize(new, new.out_features, new.in_features)
    return new


def repeated(layer: nn.Module, experts: int) -> tuple[nn.Module, Layout]:
    """N copies of a narrowed layer as one module, and the layout in which it computes.

    Its parameters are empty.
    """
    match layer:
        case nn.Conv2d():
            conv = copy.deepcopy(layer)
            conv.in_channels, conv.out_channels = (
                experts * layer.in_channels,
                experts * layer.out_channels,
            )
            conv.groups = experts * layer.groups
            _resize(conv, conv.out_channels, *layer.weight.shape[1:])
            return conv, "side"
        case nn.BatchNorm2d():
            norm = copy.deepcopy(layer)
            norm.num_features = experts * layer.num_features
            _resize(norm, norm.num_features)
            return norm, "side"
        case nn.LayerNorm() | nn.GroupNorm():
            return ExpertNorm(experts, layer), "batch"
        case nn.Linear():
            return ExpertLinear(experts, layer), "batch"
        case SelfAttention():
            attention = copy.deepcopy(layer)
            for name in ("qkv", "proj"):
                setattr(attention, name, ExpertLinear(experts, getattr(layer, name)))
            return attention, "batch"
    raise KdxError(f"a {type(layer).__name__} can't stand side by side")


def widened(layer: nn.Conv2d, experts: int) -> nn.Conv2d:
    """N copies of a narrowed convolution without groups as one that reads what all share.

    Its parameters are empty, and their shapes are those of :func:`repeated`.
    """
    conv = copy.deepcopy(layer)
    conv.out_channels = experts * layer.out_channels
    _resize(conv, conv.out_channels, *layer.weight.shape[1:])
    return conv


def _narrow_convolution(conv: nn.Conv2d, in_channels: int, widths: Widths) -> None:
    depthwise = conv.groups == conv.in_channels > 1
    if depthwise and conv.out_channels % conv.in_channels == 0:
        multiple = conv.out_channels // conv.in_channels
        conv.in_channels = conv.groups = in_channels
        conv.out_channels = multiple * in_channels
    else:
        conv.in_channels, conv.out_channels = in_channels, widths(conv.out_channels)
        common = math.gcd(conv.in_channels, conv.out_channels)
        conv.groups = max(g for g in range(1, min(conv.groups, common) + 1) if common % g == 0)
    _resize(conv, conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)


def _narrow_attention(layer: Any, widths: Widths) -> SelfAttention:
    pair = isinstance(layer, nn.MultiheadAttention)
    if isinstance(layer, nn.MultiheadAttention):
        odd = [name for name in ("bias_k", "bias_v") if getattr(layer, name) is not None]
        odd += (
            []
            if layer.batch_first and layer._qkv_same_embed_dim
            else ["batch_first=False or other key sizes"]
        )
        D, bias, dropout = layer.embed_dim, layer.in_proj_bias is not None, layer.dropout
    else:
        odd = [
            n
            for n in ("q_norm", "k_norm", "norm")
            if not isinstance(getattr(layer, n, nn.Identity()), nn.Identity)
        ]
        odd += ["gate"] if getattr(layer, "gate", None) is not None else []
        D, bias, dropout = layer.qkv.in_features, layer.qkv.bias is not None, layer.attn_drop.p
    if odd:
        raise KdxError(f"attention with {', '.join(odd)} can't be narrowed")
    heads = max(1, round(widths.share * layer.num_heads))  # without any there is no attention
    with torch.device("meta"):
        return SelfAttention(D, heads, layer.head_dim, bias=bias, dropout=dropout, pair=pair)


def _resize(layer: nn.Module, *shape: int) -> None:
    """Give a layer empty parameters and statistics of another size.

    The weight gets ``shape``, everything else its first axis.
    """
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            size = shape if name == "weight" else shape[:1]
            setattr(layer, name, nn.Parameter(parameter.new_empty(size)))
    for name, buffer in layer._buffers.items():
        if buffer is not None and buffer.ndim > 0:
            setattr(layer, name, buffer.new_empty(shape[0]))
