"""What VAM's gates say: attention between blocks, and what each block of inputs contributes.

α alone is not identified: V can take over what it gives. So beside it stands the flow ‖V̂_rm‖·RMS_m
of every pair of an output block r and an input block m, and its share A_rm = flow_rm / Σ_m'
flow_rm'. Axes: R output blocks, M input blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor, nn

from kdx_analysis.models.gates import entropy_share
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.models.vam import AttendedLayer, attended_layers, attention
from kdx_analysis.probes.contract import Frames, Moment, Probe, probe_of
from kdx_analysis.records import EPOCH, UNDEFINED, count, kind, number, text, with_undefined

_TAU = number("tau", "temperature τ of the gates", low=0)
_LAYER = (text("layer", "path of the module"), count("row", "block of outputs"))

kind(
    "vam_gates",
    "One block of a layer's outputs and one of its inputs: how much the first draws from the "
    "second.",
    keys=(EPOCH, *_LAYER, count("column", "block of inputs")),
    values=(
        number("alpha", "attention α", low=0, high=1),
        number("scale", "what the block of weights is multiplied with", low=0),
        number("flow", "‖V̂‖ of the block times RMS of its inputs", low=0),
        number("share", "A, the flow's share of its row", low=0, high=1),
        number("uniform_share", "the same if all scales were 1", low=0, high=1),
        UNDEFINED,
        _TAU,
    ),
    home=__name__,
)
kind(
    "vam_entropy",
    "One block of a layer's outputs: how evenly it draws from the blocks of inputs.",
    keys=(EPOCH, *_LAYER, text("attention", "alpha, or share: of the flow")),
    values=(
        number("value", "H/ln M", low=0, high=1),
        number("initial", "H/ln M at uniform attention", low=0, high=1),
        UNDEFINED,
        count("n", "blocks of inputs, M"),
        _TAU,
    ),
    home=__name__,
)


@jaxtyped(typechecker=beartype)
def block_norms(
    weight: Float[Tensor, "outputs inputs *kernel"],
    rows: Int[Tensor, " outputs"],
    columns: Int[Tensor, " inputs"],
) -> Float[Tensor, "R M"]:
    """‖V_rm‖ = √(Σ of squares over block r of outputs, block m of inputs and the kernel), ≥ 0.

    ``rows`` and ``columns`` give the block of every channel, in order from 0.

    >>> weight = torch.tensor([[3.0, 4.0, 1.0], [0.0, 0.0, 2.0]])
    >>> block_norms(weight, torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
    tensor([[5., 1.],
            [0., 2.]])
    """
    squares = weight.reshape(*weight.shape[:2], -1).square().sum(dim=2)
    to_row, to_column = (F.one_hot(blocks).to(squares.dtype) for blocks in (rows, columns))
    return (to_row.mT @ squares @ to_column).sqrt()


@jaxtyped(typechecker=beartype)
def block_rms(
    mean_squares: Float[Tensor, " channels"], columns: Int[Tensor, " inputs"]
) -> Float[Tensor, " M"]:
    """RMS_m = √(mean of the mean squares of block m's channels) of every input block, ≥ 0.

    Of a grouped convolution block m holds channels of all groups: ``columns`` counts within the
    group.

    >>> block_rms(torch.tensor([1.0, 7.0, 9.0]), torch.tensor([0, 0, 1]))
    tensor([2., 3.])
    """
    to_column = F.one_hot(columns).to(mean_squares.dtype)
    per_channel = mean_squares.view(-1, len(columns)).mean(dim=0)
    return (per_channel @ to_column / to_column.sum(dim=0)).sqrt()


@torch.no_grad()
def block_gates(model: nn.Module, images: Tensor) -> pd.DataFrame:
    """The gates of every layer that has VAM, on ``images``, B×C×H×W, in eval mode.

    The model is left as it was found. One row per layer and pair of blocks: layer, row, column,
    alpha, scale (s), flow, share (A), uniform_share (A if all scales were 1, as without VAM),
    undefined, tau. Flow and shares are NaN, and counted as undefined, where a layer's forward pass
    is bypassed, as the projection's in nn.MultiheadAttention is, or nothing flows into a row.
    Raises KdxError if there is no VAM.
    """
    attention(model)  # says so where there is none
    layers = attended_layers(model)
    with undisturbed(model), _mean_squares(layers) as seen:
        model(images)
    return pd.concat(
        [_of_layer(path, layer, seen.get(path)) for path, layer in layers.items()],
        ignore_index=True,
    )


def row_entropies(block_gates: pd.DataFrame) -> pd.DataFrame:
    """H/ln M of every row, in [0, 1]: 1 where it draws from all blocks alike.

    Columns: layer, row, attention, value, initial, undefined (of the two), n (M), tau.
    ``attention`` is ``alpha``, whose ``initial`` is 1, the uniform attention that VAM starts with,
    or ``share``, whose ``initial`` is that of the same weights at uniform attention.
    """
    rows = []
    for (layer, row), pairs in block_gates.groupby(["layer", "row"], sort=False):
        for name, start in (("alpha", None), ("share", "uniform_share")):
            rows.append(
                {
                    "layer": layer,
                    "row": row,
                    "attention": name,
                    "value": _share(pairs[name]),
                    "initial": 1.0 if start is None else _share(pairs[start]),
                    "n": len(pairs),
                    "tau": pairs["tau"].iloc[0],
                }
            )
    return with_undefined(pd.DataFrame(rows), ["value", "initial"])


@probe_of(
    "vam",
    title="VAM's gates",
    roles=("student",),
    each_epoch=True,
    all_splits=False,
    kinds=("vam_gates", "vam_entropy"),
)
class VAMProbe(Probe):
    """What do the gates of a student with VAM say?"""

    @classmethod
    def applies(cls, model: nn.Module) -> bool:
        """Whether the model has VAM."""
        return bool(attended_layers(model))

    def __call__(self, moment: Moment) -> Frames:
        """:func:`block_gates`, and of them :func:`row_entropies`."""
        gates = block_gates(moment.model, moment.images)
        return {"vam_gates": gates, "vam_entropy": row_entropies(gates)}


@contextmanager
def _mean_squares(layers: dict[str, AttendedLayer]) -> Iterator[dict[str, Tensor]]:
    """Mean square of every input channel of the layers that run inside the body.

    A layer's last run counts.
    """
    seen: dict[str, Tensor] = {}

    def look(path: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # In float64, as squares in half precision overflow, and means of many round.
            squares = inputs[0].detach().double().square()
            axis = squares.ndim - 1 if isinstance(layer, nn.Linear) else 1
            seen[path] = squares.movedim(axis, -1).flatten(0, -2).mean(dim=0)

        return layer.register_forward_pre_hook(hook)

    handles = [look(path, layer) for path, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _of_layer(path: str, layer: AttendedLayer, mean_squares: Tensor | None) -> pd.DataFrame:
    """The rows of :func:`block_gates` for one layer; ``mean_squares`` of its inputs, if it ran."""
    blocks = layer.vam
    rows, columns = (
        torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        for widths in (blocks.rows, blocks.columns)
    )
    R, M = len(blocks.rows), len(blocks.columns)
    # NaN stays where the layer's forward pass was bypassed, so that nothing is known to flow.
    flows = [torch.full((R, M), torch.nan, dtype=torch.float64)] * 2
    if mean_squares is not None:
        rms = block_rms(mean_squares.cpu(), columns)
        flows = [
            block_norms(V.double().cpu(), rows, columns) * rms
            for V in (layer.weight, layer.plain_weight)
        ]
    # 0/0, NaN, where nothing flows into a row.
    flow, shares = flows[0], [each / each.sum(dim=1, keepdim=True) for each in flows]
    values = {
        "alpha": blocks.attention(),
        "scale": blocks.scales(),
        "flow": flow,
        "share": shares[0],
    }
    table = pd.DataFrame(
        {
            "layer": path,
            "row": np.repeat(np.arange(R), M),
            "column": np.tile(np.arange(M), R),
            **{name: value.double().cpu().flatten().numpy() for name, value in values.items()},
            "uniform_share": shares[1].flatten().numpy(),
            "tau": float(blocks.temperature),
        }
    )
    return with_undefined(table, ["alpha", "flow", "share", "uniform_share"])


def _share(row: pd.Series) -> float:
    """H/ln M of a row's shares."""
    return float(entropy_share(torch.tensor(row.to_numpy())))
