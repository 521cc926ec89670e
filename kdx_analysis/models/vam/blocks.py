"""Attention between the blocks of one weight: what VAM learns, and the layers that use it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

Scale = Literal["rms", "mean"]


def block_widths(channels: int, blocks: int) -> tuple[int, ...]:
    """``channels`` cut into ``blocks`` blocks of neighbours.

    The first C mod M of them are one channel wider.

    >>> block_widths(20, 8)
    (3, 3, 3, 3, 2, 2, 2, 2)
    """
    width, wider = divmod(channels, blocks)
    return (width + 1,) * wider + (width,) * (blocks - wider)


class BlockAttention(nn.Module):
    """Attention α = softmax(U/τ) of output blocks over input blocks, R×M, and its scales s.

    s = e/√mean(e²) with e = exp(U/τ − max), row by row, the mean weighted by the blocks' widths: a
    row's mean of s² is 1, so that the output's variance is kept at any sparsity. With
    ``scale="mean"`` s = e/mean(e), which is M·α for equal widths; its variance grows to M at
    one-hot. Equal logits give exactly 1 either way.

    Args:
        rows: widths of the R output blocks.
        columns: widths of the M input blocks.
        kernel_dims: axes of the weight after C_out and C_in.
        temperature: τ.
        scale: ``rms`` or ``mean``.
    """

    temperature: Tensor
    widths: Tensor | None
    row_of: Tensor | None
    column_of: Tensor | None

    def __init__(
        self,
        rows: tuple[int, ...],
        columns: tuple[int, ...],
        kernel_dims: int = 0,
        temperature: float = 1.0,
        scale: Scale = "rms",
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.kernel_dims, self.scale_by = rows, columns, kernel_dims, scale
        self.logits = nn.Parameter(torch.zeros(len(rows), len(columns)))
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        even = len({*rows}) == 1 and len({*columns}) == 1
        widths = torch.tensor(columns)
        self.register_buffer("widths", None if even else widths, persistent=False)
        for name, blocks in (("row_of", rows), ("column_of", columns)):
            index = torch.arange(len(blocks)).repeat_interleave(torch.tensor(blocks))
            self.register_buffer(name, None if even else index, persistent=False)

    def attention(self) -> Tensor:
        """α, R×M, rows on the simplex."""
        return torch.softmax(self.logits / self.temperature, dim=1)

    def scales(self) -> Tensor:
        """s, R×M, in float32 or more; all exactly 1 while attention is uniform."""
        # Half precision would round s, and with it the variance that s is to keep.
        z = (self.logits / self.temperature).to(
            torch.promote_types(self.logits.dtype, torch.float32)
        )
        # The largest exponent is 0, so that none overflows. s does not change with the shift, so no
        # gradient goes through it.
        e = (z - z.detach().amax(dim=1, keepdim=True)).exp()
        return e / (self._mean(e) if self.scale_by == "mean" else self._mean(e.square()).sqrt())

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over the input channels of values per input block, R×M to R×1."""
        if self.widths is None:
            return values.mean(dim=1, keepdim=True)
        return (values * self.widths).sum(dim=1, keepdim=True) / sum(self.columns)

    def weighted(self, weight: Tensor) -> Tensor:
        """V̂[o, i] = s[block(o), block(i)]·V[o, i] for a weight V of shape C_out×C_in×…"""
        s = self.scales().to(weight.dtype)
        R, M, kernel = len(self.rows), len(self.columns), (1,) * self.kernel_dims
        if self.row_of is not None and self.column_of is not None:
            each = s.index_select(0, self.row_of).index_select(1, self.column_of)
            return weight * each.unflatten(1, (-1, *kernel))
        blocks = weight.unflatten(1, (M, -1)).unflatten(0, (R, -1))
        return (blocks * s.view(R, 1, M, 1, *kernel)).flatten(0, 1).flatten(1, 2)

    def extra_repr(self) -> str:
        """R×M, as a module's repr shows it."""
        return f"{len(self.rows)}×{len(self.columns)} blocks"


class AttendedLayer(nn.Module):
    """A layer whose ``weight`` reads V̂, while V stays its parameter.

    V is the same object, by the same name and in the same place as without VAM. :func:`layer_class`
    mixes it into a layer's own class. Whatever reads ``weight`` (the layer's forward pass, a fused
    attention that bypasses it) gets V̂; whatever goes through the parameters (optimiser,
    ``state_dict``, DDP) gets V.
    """

    plain_class: type[nn.Module]
    vam: BlockAttention

    @property
    def weight(self) -> Tensor:
        """V̂, the layer's own weight times its attention's scales."""
        return self.vam.weighted(self.plain_weight)

    @property
    def plain_weight(self) -> Tensor:
        """V."""
        return self.__getattr__("weight")  # type: ignore[return-value]

    def reset_parameters(self) -> None:
        """Draw V anew as the plain layer does, and make attention uniform."""
        attended = type(self)
        self.__class__ = self.plain_class  # type: ignore[assignment]
        try:
            self.reset_parameters()
        finally:
            self.__class__ = attended
        nn.init.zeros_(self.vam.logits)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        return (_blank, (self.plain_class,), *reduced[2:])


@cache
def layer_class(plain: Any) -> Any:
    """The class of layers ``plain`` with VAM.

    It says that it is of the module of ``plain``, so that torch.fx takes for leaves what it took
    for leaves before.
    """
    return type(
        f"VAM{plain.__name__}",
        (AttendedLayer, plain),
        {"plain_class": plain, "__module__": plain.__module__},
    )


def _blank(plain: Any) -> Any:
    cls = layer_class(plain)
    return cls.__new__(cls)
