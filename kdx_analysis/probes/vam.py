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

from kdx_analysis.config import ProbeConfig
from kdx_analysis.data import Dataset
from kdx_analysis.models import gates, vam
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.records import with_undefined
from kdx_analysis.training import Epoch


@jaxtyped(typechecker=beartype)
def block_norms(
    weight: Float[Tensor, "outputs inputs *kernel"],
    rows: Int[Tensor, " outputs"],
    columns: Int[Tensor, " inputs"],
) -> Float[Tensor, "R M"]:
    """‖V_rm‖, the root of the sum of squares over block r of the outputs, block m of the inputs and
    the kernel.

    ``rows`` and ``columns`` give the block of every channel, in order from 0.
    """
    squares = weight.reshape(*weight.shape[:2], -1).square().sum(dim=2)
    to_row, to_column = (F.one_hot(blocks).to(squares.dtype) for blocks in (rows, columns))
    return (to_row.mT @ squares @ to_column).sqrt()


@jaxtyped(typechecker=beartype)
def block_rms(
    mean_squares: Float[Tensor, " channels"], columns: Int[Tensor, " inputs"]
) -> Float[Tensor, " M"]:
    """Root mean square of every input block, from the mean square of every channel.

    Of a grouped convolution block m holds channels of all groups: ``columns`` counts within the
    group.
    """
    to_column = F.one_hot(columns).to(mean_squares.dtype)
    return (
        mean_squares.view(-1, len(columns)).mean(dim=0) @ to_column / to_column.sum(dim=0)
    ).sqrt()


@torch.no_grad()
def block_gates(model: nn.Module, images: Tensor) -> pd.DataFrame:
    """The gates of every layer that has VAM, on ``images`` (B×C×H×W) in eval mode; the model is
    left as it was found.

    One row per layer and pair of blocks: layer, row, column, alpha, scale (s), flow, share (A),
    uniform_share (A if all scales were 1, as without VAM), undefined, tau. Flow and shares are NaN,
    and counted as undefined, where a layer's forward pass is bypassed, as the projection's in
    nn.MultiheadAttention is, or nothing flows into a row. Raises KdxError if there is no VAM.
    """
    vam.attention(model)
    layers = vam.attended_layers(model)
    with undisturbed(model), _mean_squares(layers) as seen:
        model(images)
    return pd.concat(
        [_of_layer(path, layer, seen.get(path)) for path, layer in layers.items()],
        ignore_index=True,
    )


def row_entropies(block_gates: pd.DataFrame) -> pd.DataFrame:
    """H/ln M of every row: layer, row, attention, value, initial, undefined (of the two), n (M),
    tau.

    ``attention`` is ``alpha``, whose ``initial`` is 1, the uniform attention that VAM starts with,
    or ``share``, whose ``initial`` is that of the same weights at uniform attention.
    """
    rows = []
    for (layer, row), pairs in block_gates.groupby(["layer", "row"], sort=False):
        for attention, start in (("alpha", None), ("share", "uniform_share")):
            rows.append(
                {
                    "layer": layer,
                    "row": row,
                    "attention": attention,
                    "value": _share(pairs[attention]),
                    "initial": 1.0 if start is None else _share(pairs[start]),
                    "n": len(pairs),
                    "tau": pairs["tau"].iloc[0],
                }
            )
    return with_undefined(pd.DataFrame(rows), ["value", "initial"])


class VAMProbe:
    """Records VAM's gates after every epoch on a class-balanced probe set of train.

    Tables (``tables()``), each keyed by epoch: ``vam_gates`` as of :func:`block_gates` and
    ``vam_entropy`` as of :func:`row_entropies`.
    """

    def __init__(self, data: Dataset, config: ProbeConfig) -> None:
        self.set = data.probe_set("train", config.per_class, config.seed)
        self.images = data.normalise(self.set.images.take(torch.arange(len(self.set))))
        self._frames: list[pd.DataFrame] = []

    @property
    def ids(self) -> dict[str, list[int]]:
        """Ids of the images in the probe set."""
        return {"train": self.set.ids.tolist()}

    def __call__(self, epoch: Epoch, model: nn.Module) -> None:
        device = next(model.parameters()).device
        self._frames.append(block_gates(model, self.images.to(device)).assign(epoch=epoch.epoch))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Kind → table of all epochs: vam_gates and vam_entropy."""
        entropies = [
            row_entropies(frame).assign(epoch=frame["epoch"].iloc[0]) for frame in self._frames
        ]
        frames = {"vam_gates": self._frames, "vam_entropy": entropies}
        return {kind: pd.concat(found, ignore_index=True) for kind, found in frames.items()}


@contextmanager
def _mean_squares(layers: dict[str, vam.AttendedLayer]) -> Iterator[dict[str, Tensor]]:
    """Mean square of every input channel of the layers that run inside the body; a layer's last run
    counts.
    """
    seen: dict[str, Tensor] = {}

    def look(path: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
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


def _of_layer(path: str, layer: vam.AttendedLayer, mean_squares: Tensor | None) -> pd.DataFrame:
    blocks = layer.vam
    rows, columns = (
        torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        for widths in (blocks.rows, blocks.columns)
    )
    R, M = len(blocks.rows), len(blocks.columns)
    flows = [torch.full((R, M), torch.nan, dtype=torch.float64)] * 2
    if mean_squares is not None:
        rms = block_rms(mean_squares.cpu(), columns)
        flows = [
            block_norms(V.double().cpu(), rows, columns) * rms
            for V in (layer.weight, layer.plain_weight)
        ]
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
    return float(gates.entropy_share(torch.tensor(row.to_numpy())))
