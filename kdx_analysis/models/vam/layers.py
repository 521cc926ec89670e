"""Which layers take VAM, and the way there and back."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from kdx_analysis.errors import KdxError
from kdx_analysis.models.choose import Where, chosen
from kdx_analysis.models.vam.blocks import (
    AttendedLayer,
    BlockAttention,
    Scale,
    block_widths,
    layer_class,
)
from kdx_analysis.registry import unknown

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (*_CONVOLUTIONS, nn.Linear)


@dataclass(frozen=True)
class LayerRow:
    """One convolution or Linear layer of a model.

    Attributes:
        path: of the module.
        layer: its class.
        weight: the shape of V.
        rows: R, blocks of outputs; 0 where the layer was skipped.
        columns: M, blocks of inputs (within the group); 0 where the layer was skipped.
        added: parameters that VAM adds, R·M.
        skipped: why the layer was skipped; empty where VAM was attached.
    """

    path: str
    layer: str
    weight: tuple[int, ...]
    rows: int
    columns: int
    added: int
    skipped: str


@dataclass(frozen=True)
class Attached:
    """What :func:`attach` did to every convolution and Linear layer of a model.

    Attributes:
        rows: one per layer, in the model's order.
        parameters: of the model without VAM.
    """

    rows: tuple[LayerRow, ...]
    parameters: int

    @property
    def paths(self) -> list[str]:
        """Of the layers that have VAM now."""
        return [row.path for row in self.rows if not row.skipped]

    @property
    def added(self) -> int:
        """Parameters that VAM adds."""
        return sum(row.added for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: path, layer, weight, rows, columns, added, skipped."""
        frame = pd.DataFrame([asdict(row) for row in self.rows])
        return frame.assign(weight=frame["weight"].map(lambda shape: "×".join(map(str, shape))))

    def __str__(self) -> str:
        return f"{self._summary}\n{self.to_frame().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._summary}</p>{self.to_frame().to_html(index=False)}"

    @property
    def _summary(self) -> str:
        share = self.added / self.parameters
        return (
            f"VAM attached to {len(self.paths)} of {len(self.rows)} layers: "
            f"{self.added:,} parameters added to {self.parameters:,} ({share:.2%})"
        )


def attach(
    model: nn.Module,
    blocks: int = 8,
    where: Where | None = None,
    temperature: float = 1.0,
    *,
    channels: int | None = None,
    scale: Scale = "rms",
) -> Attached:
    """Put the virtual attention module on convolutions and Linear layers of ``model``, in place.

    A weight V (C_out×C_in×…) reads as V̂[o, i] = s[block(o), block(i)]·V[o, i], where s comes from
    α = softmax(U/τ) between R output and M input blocks (:class:`BlockAttention`). U starts at 0,
    where s is exactly 1: nothing changes until U is trained. V stays the layer's parameter; the
    layer gets a child ``vam`` with U (``vam.logits``) and τ (``vam.temperature``). Attach before
    the model is compiled or wrapped for several processes, and after its weights are drawn:
    ``nn.init`` on ``layer.weight`` would write into V̂, which is computed anew.

    Left alone: the first convolution (of a model without any, the first Linear), which reads the
    image; the last Linear, whose outputs are classes; depthwise convolutions; weights that two
    modules share; layers that have VAM already, so that layers may be given different blocks one
    call after the other.

    Args:
        model: any torch model.
        blocks: R and M; a layer of fewer channels has a block for each. C_in counts within the
            group of a grouped convolution. Where ``blocks`` does not divide the channels, the first
            blocks are one channel wider.
        where: the layers to choose from: a module's path, a pattern as of fnmatch, several of
            these, or a predicate of path and module; all by default.
        temperature: τ > 0.
        channels: at most so many channels a block, instead of a number of blocks.
        scale: ``rms`` keeps the output's variance; ``mean`` is s = M·α, the plain multiplication.

    Returns:
        A table of what was attached, what was skipped and why.

    Raises:
        KdxError: a value is out of range, ``where`` names nothing or nothing that can take VAM, or
            another parametrization computes a chosen weight; the model is as it was then.
    """
    _check_options(blocks, channels, scale, temperature)
    layers: dict[str, nn.Module] = {
        path: module for path, module in model.named_modules() if isinstance(module, _LAYERS)
    }
    wanted = list(layers)
    if where is not None:
        wanted = list(chosen(layers, where, kind="convolution or Linear layer"))
    parameters = _plain_parameters(model)
    grids = {path: _grid(layer, blocks, channels) for path, layer in layers.items()}
    reasons = _reasons(model, layers, wanted, grids)
    taking = [path for path, reason in reasons.items() if not reason]
    for path in taking:
        _refuse_foreign(path, layers[path])
    if not taking:
        examples = "; ".join(f"{path}: {reasons[path]}" for path in wanted[:3])
        raise KdxError(
            f"no layer of {type(model).__name__} can take VAM ({examples}); choose others with "
            "where="
        )
    rows = []
    for path, layer in layers.items():
        shape, reason = _shape(layer), reasons[path]
        R, M = (0, 0) if reason else grids[path]
        if not reason:
            widths = block_widths(shape[0], R), block_widths(shape[1], M)
            _put_on(layer, BlockAttention(*widths, len(shape) - 2, temperature, scale))
        rows.append(LayerRow(path, _plain_class(layer).__name__, shape, R, M, R * M, reason))
    return Attached(tuple(rows), parameters)


def _plain_parameters(model: nn.Module) -> int:
    """How many there are without those of VAM; KdxError where that is not known yet."""
    if any(is_lazy(p) for p in model.parameters()):
        raise KdxError(
            f"{type(model).__name__} has lazy layers, whose shapes are unknown; run it on a batch "
            "first"
        )
    gates = sum(p.numel() for p in gate_parameters(model))
    return sum(p.numel() for p in model.parameters()) - gates


def _check_options(blocks: int, channels: int | None, scale: str, temperature: float) -> None:
    if channels is None and blocks < 2:
        raise KdxError(f"blocks = {blocks} leaves nothing to choose; give 2 or more")
    if channels is not None and channels < 1:
        raise KdxError(f"channels = {channels} in a block; give 1 or more")
    if scale not in get_args(Scale):
        raise unknown("scale", scale, get_args(Scale))
    _check_temperature(temperature)


def detach(model: nn.Module) -> None:
    """Take VAM off ``model``, in place, and leave V as it is.

    The model's classes, parameters (the same objects), names and order are those from before
    :func:`attach`; so are outputs, bit for bit, if V was not trained since. Raises KdxError if
    there is no VAM.
    """
    for layer in _attended(model).values():
        _take_off(layer)


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Multiply VAM into the weights of ``model``, in place, and take it off: V̂ becomes V.

    What remains is the plain model, its parameters the same objects, with the outputs that it had
    with VAM. Raises KdxError if there is no VAM.
    """
    for layer in _attended(model).values():
        layer.plain_weight.copy_(layer.weight)
        _take_off(layer)


def attention(model: nn.Module) -> dict[str, Tensor]:
    """α of every layer by its path, R×M each, rows on the simplex.

    Raises KdxError if there is no VAM.
    """
    return {path: layer.vam.attention() for path, layer in _attended(model).items()}


def entropy(model: nn.Module) -> Tensor:
    """Mean of H(α)/ln M over all rows of all layers; in [0, 1], 1 at the start.

    All layers that have VAM have M > 1. Times γ it is VAM's penalty, with a gradient for U that is
    finite where attention underflows to 0. Raises KdxError if there is no VAM.
    """
    by_columns: defaultdict[int, list[Tensor]] = defaultdict(list)
    for layer in _attended(model).values():
        by_columns[len(layer.vam.columns)].append(layer.vam.logits / layer.vam.temperature)
    shares = []
    # Layers of one M together, because a small operation costs as much as a large one.
    for M, scaled in by_columns.items():
        log_alpha = torch.log_softmax(torch.cat(scaled), dim=1)
        shares.append(-(log_alpha.exp() * log_alpha).sum(dim=1) / math.log(M))
    return torch.cat(shares).mean()


def gate_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """U of every layer, for an optimiser group without weight decay; none where there is no VAM."""
    return (layer.vam.logits for layer in attended_layers(model).values())


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Set τ of every layer to ``temperature`` > 0. Raises KdxError if there is no VAM."""
    _check_temperature(temperature)
    for layer in _attended(model).values():
        layer.vam.temperature.fill_(temperature)


def attended_layers(model: nn.Module) -> dict[str, AttendedLayer]:
    """The layers of ``model`` that have VAM, by path."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, AttendedLayer)
    }


def _attended(model: nn.Module) -> dict[str, AttendedLayer]:
    if not (layers := attended_layers(model)):
        raise KdxError(f"{type(model).__name__} has no VAM; attach it first")
    return layers


def _put_on(layer: nn.Module, vam: BlockAttention) -> None:
    weight = layer._parameters["weight"]
    assert weight is not None
    layer.vam = vam.to(weight.device, weight.dtype).train(layer.training)
    layer.__class__ = layer_class(type(layer))  # type: ignore[arg-type]


def _take_off(layer: AttendedLayer) -> None:
    layer.__class__ = layer.plain_class  # type: ignore[assignment]
    del layer.vam


def _plain_class(layer: nn.Module) -> type[nn.Module]:
    return layer.plain_class if isinstance(layer, AttendedLayer) else type(layer)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape of V, C_out×C_in×…, C_in within the group.

    It is not read from ``weight``, which a parametrization may compute.
    """
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, _CONVOLUTIONS)
    return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise KdxError(f"temperature = {temperature} should be a finite number above 0")


def _grid(layer: nn.Module, blocks: int, channels: int | None) -> tuple[int, int]:
    """R and M, how many blocks a layer's outputs and inputs make; no more than channels."""
    outputs, inputs = _shape(layer)[:2]
    if channels is None:
        return min(outputs, blocks), min(inputs, blocks)
    return -(-outputs // channels), -(-inputs // channels)


def _reasons(
    model: nn.Module,
    layers: dict[str, nn.Module],
    wanted: Sequence[str],
    grids: dict[str, tuple[int, int]],
) -> dict[str, str]:
    """Why each layer is skipped; empty for those that take VAM, with blocks as in ``grids``."""
    convolutions = [path for path, layer in layers.items() if isinstance(layer, _CONVOLUTIONS)]
    linear = [path for path, layer in layers.items() if isinstance(layer, nn.Linear)]
    owners: Counter[int] = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    places = dict.fromkeys(linear[-1:], "last Linear: its outputs are classes")
    places |= dict.fromkeys((convolutions or linear)[:1], "first layer: reads the image")
    reasons = {}
    for path, layer in layers.items():
        if path not in wanted:
            reasons[path] = "not chosen by where"
        elif isinstance(layer, AttendedLayer):
            reasons[path] = "has VAM already"
        else:
            reasons[path] = places.get(path) or _unfit(layer, grids[path][1], owners)
    return reasons


def _unfit(layer: nn.Module, columns: int, owners: Counter[int]) -> str:
    """Why a layer of so many input blocks can take no VAM; empty if it can.

    ``owners`` counts the modules that hold a parameter, by its id.
    """
    weight = layer._parameters.get("weight")
    if _shape(layer)[1] == 1:
        return "depthwise: one input channel a group"
    if columns == 1:
        return "one input block: nothing to choose"
    if weight is not None and owners[id(weight)] > 1:
        return "shares its weight with another module"
    return ""


def _refuse_foreign(path: str, layer: nn.Module) -> None:
    """Raise KdxError where something else computes ``layer.weight``, and name it."""
    if parametrize.is_parametrized(layer, "weight"):
        names = [type(p).__name__ for p in layer.parametrizations["weight"]]  # type: ignore[index]
    elif "weight" not in layer._parameters:
        hooks: list[Any] = [*layer._forward_pre_hooks.values()]
        names = [
            type(hook).__name__
            for hook in hooks
            if type(hook).__module__.startswith("torch.nn.utils")
        ]
    else:
        return
    raise KdxError(
        f"the weight of {path!r} is computed by {' and '.join(names) or 'something else'}; remove "
        "that before VAM is attached, or leave the layer out with where="
    )
