"""Does an attribution say anything about the model? What is left of it once the weights are random.

Adebayo et al. 2018, Sanity Checks for Saliency Maps, arXiv 1810.03292.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from scipy.stats import rankdata
from torch import Tensor, nn

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.gates import ParameterGate
from kdx_analysis.models.redraw import draw_anew
from kdx_analysis.probes.faithfulness.attribution import working_copy
from kdx_analysis.probes.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOUND = 0.5  # of ρ: an attribution that stays below it does not survive, whatever its null
ALPHA = 0.05
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda maps: maps,
    "absolute": torch.abs,
}


@jaxtyped(typechecker=beartype)
def map_similarity(a: Float[Tensor, "B H W"], b: Float[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    """Spearman's ρ of two maps over their pixels, per image; in [−1, 1].

    It is NaN where a map is flat, as the ranks then don't vary.

    >>> a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    >>> map_similarity(a, a.flip(dims=(1,)))
    tensor([-0.6000,     nan], dtype=torch.float64)
    """
    x, y = (torch.from_numpy(rankdata(maps.flatten(1).numpy(), axis=1)) for maps in (a, b))
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    return (x * y).sum(dim=1) / (x.norm(dim=1) * y.norm(dim=1))


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose weights are drawn anew, gates included; fixed ones stay.

    torch's random state is left alone.
    """
    copied = copy.deepcopy(model)
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        if isinstance(copied, HME):
            copied.redraw()
            for gate in copied.gates:
                if isinstance(gate, ParameterGate):
                    nn.init.uniform_(gate.logits)
                else:
                    draw_anew(gate)
        else:
            draw_anew(copied)
    return copied


@dataclass(frozen=True, eq=False)
class Randomisation(Record):
    """How like an attribution's maps are to those of the same model with random weights.

    The null shifts the random models' maps around the image's edges, all by one offset: smoothness
    and values stay, the place goes. Maps of the ``absolute`` values survive more easily, since
    pixels that are zero stay so.

    Attributes:
        similarity: by the maps' values (signed, absolute), draws×B: Spearman's ρ; NaN where a map
            is flat.
        null: by the maps' values, the mean similarity under each shift.
        bound: the similarity that counts as surviving, if the null is below it.
    """

    FILE = "randomisation_record"

    similarity: dict[str, Tensor]
    null: dict[str, Tensor]
    bound: float = BOUND

    def to_frame(self) -> pd.DataFrame:
        """One row for signed and one for absolute maps: mean ρ beside its null, and what it says.

        Columns: maps, value, null_…, null_draws, bound, undefined, n, survives, undecided. n maps
        of images under random weights went into the mean, ``undefined`` more were flat.
        ``survives``: value is above both the bound and the null's range (p upwards ≤ 0.025), so the
        attribution tells of the image, not of the model. ``undecided``: it is above the bound, and
        below 39 shifts the null has no range.
        """
        rows: list[dict[str, Any]] = []
        for name, values in self.similarity.items():
            undefined = int(values.isnan().sum())
            value = float(values.nanmean())  # flat maps have no ρ, and are counted
            draws = self.null[name]
            beside = null.beside_one(draws)
            above, ranged = value > self.bound, not math.isnan(beside["null_high"])
            # Half of ALPHA is what the null's range leaves above it.
            beyond = bool(null.p_value(value, draws, "greater") <= ALPHA / 2)
            rows.append(
                {
                    "maps": name,
                    "value": value,
                    **beside,
                    "null_draws": len(draws),
                    "bound": self.bound,
                    "undefined": undefined,
                    "n": values.numel() - undefined,
                    "survives": above and ranged and beyond,
                    "undecided": above and not ranged,
                }
            )
        return pd.DataFrame(rows)

    @property
    def survives(self) -> bool:
        """Whether the attribution is flagged: signed or absolute, it outlives the weights."""
        return bool(self.to_frame()["survives"].any())

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Every map's similarity a dot, beside null and bound, as (figure, axes).

        It is drawn into ``ax`` if given.
        """
        from kdx_analysis.probes.faithfulness.drawing import randomisation

        return randomisation(self, ax)

    def __str__(self) -> str:
        rows = self.to_frame()
        correlations = ", ".join(
            f"{r['maps']} ρ = {r['value']:.2f} ({null.shown(r['null_low'], r['null_high'])})"
            for r in rows.to_dict("records")
        )
        n = ", ".join(map(str, rows["n"]))
        return f"{_verdict(rows)}; {correlations}; bound {self.bound}, n = {n} maps"

    def _repr_html_(self) -> str:
        table = (
            self.to_frame().style.hide(axis="index").format(precision=3, na_rep="–", escape="html")
        )
        return str(table.set_caption(str(self).partition(";")[0]).to_html())


@torch.inference_mode(False)
def randomisation(
    attribute: Callable[[nn.Module], Tensor],
    model: nn.Module,
    *,
    draws: int = 5,
    shifts: int = 99,
    seed: int = 0,
) -> Randomisation:
    """Compare an attribution of ``model`` with that of copies whose weights are random.

    >>> from kdx_analysis.probes.faithfulness.attribution import integrated_gradients
    >>> def maps(model):
    ...     return integrated_gradients(model, images, 3).maps
    >>> check = randomisation(maps, model)  # doctest: +SKIP

    Args:
        attribute: from a model to its maps, B×H×W, always of the same images and subtask.
        model: left as it was found.
        draws: of random weights.
        shifts: of the null; below 39 it has no range, and nothing is flagged.
        seed: of both.

    Raises:
        KdxError: maps without room to shift, or all of them flat.
    """
    if draws < 1 or shifts < 1:
        raise KdxError(f"draws = {draws} and shifts = {shifts} should be 1 or more")
    working = working_copy(model)
    trained = _maps(attribute(working))
    others = torch.stack(
        [_maps(attribute(randomised(working, seed + draw))) for draw in range(draws)]
    )
    _, H, W = trained.shape
    if H * W < 4:
        raise KdxError(
            f"maps of {H}×{W} have no pixels to rank; attribute a level with larger features"
        )
    generator = torch.Generator().manual_seed(seed)
    # From 1, as an offset of 0 would leave the maps where they are.
    offsets = torch.randint(1, H * W, (shifts,), generator=generator).tolist()
    similarity, shifted = {}, {}
    for name, mapped in MAPS.items():
        a, b = mapped(trained), mapped(others)
        similarity[name] = _similarities(a, b)
        if similarity[name].isnan().all():
            raise KdxError(
                "the attribution is flat on every image, or is so with random weights; nothing to "
                "compare"
            )
        moved = [b.roll((offset // W, offset % W), dims=(2, 3)) for offset in offsets]
        shifted[name] = torch.stack([_similarities(a, maps).nanmean() for maps in moved])
    return Randomisation(similarity, shifted)


def _similarities(maps: Tensor, others: Tensor) -> Tensor:
    """Similarity of maps, B×H×W, to those of each random draw, draws×B×H×W: draws×B."""
    return torch.stack([map_similarity(maps, drawn) for drawn in others])


def _verdict(rows: pd.DataFrame) -> str:
    """What the rows of :meth:`Randomisation.to_frame` say, in words."""
    outlive = set(rows.loc[rows["survives"], "maps"])
    if "signed" in outlive:
        return (
            "FLAGGED: the attribution survives random weights, so it tells of the images and not "
            "of the model"
        )
    if outlive:
        return (
            "FLAGGED: where the attribution is strong survives random weights, so only its signs "
            "may be trusted"
        )
    if rows["undecided"].any():
        return (
            "undecided: the attribution outlives random weights by the bound, but its null has no "
            "range"
        )
    return "the attribution does not survive random weights"


def _maps(maps: Tensor) -> Tensor:
    """``maps`` as float64 on the CPU; KdxError unless they are finite and B×H×W."""
    if maps.ndim != 3 or not maps.isfinite().all():
        raise KdxError(
            f"maps of shape {tuple(maps.shape)} should be finite and B×H×W, one an image"
        )
    return maps.detach().double().cpu()  # NumPy, which ranks them, has no bfloat16
