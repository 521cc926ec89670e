"""The gates of a model at hand, on images given batch by batch, and what they say.

What is kept are sums over images, from which the spreads of the whole follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, Trace
from kdx_analysis.models.gates import attention, strongest
from kdx_analysis.models.modes import in_full, undisturbed, unwrapped, usable
from kdx_analysis.probes.conflict.proof import check_fixed_function
from kdx_analysis.probes.gates.formulas import (
    Summary,
    averaged,
    check_features,
    defined,
    effective,
    random_logits,
    summarise,
    summarise_samples,
)
from kdx_analysis.probes.record import Record, added
from kdx_analysis.probes.subtasks import labelled, named, pictures
from kdx_analysis.records import with_undefined
from kdx_analysis.training.checkpoints import fingerprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of float64, in a difference of squares: the variance of a constant is rounding alone, and below
# this share of the mean square.
ROUNDING = 1e-14


@dataclass(frozen=True, eq=False)
class GateRecord(Record):
    """An explainer's gates on a set of images.

    It holds sums that batches add to, so that parts give what the whole gives.

    Attributes:
        model: fingerprint of the weights.
        classes: names of the subtasks.
        temperature: τ.
        top_k: parents that every child draws from at most; None: all.
        alpha: α^l for l = 2…L+1, float64: N_l×N_{l−1}, or B×N_l×N_{l−1} of gates that read the
            input.
        sums, squares: per level 1…L of the experts' features over samples, each N_l×…, float64.
        labels: true classes, B.
    """

    FILE = "gate_record"

    model: str
    classes: tuple[str, ...]
    temperature: float
    top_k: int | None
    alpha: tuple[Tensor, ...]
    sums: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]
    labels: Tensor

    @classmethod
    def of(cls, model: HME, trace: Trace, labels: Tensor, classes: Sequence[str]) -> GateRecord:
        """From a ``trace``, what lay on the way of the images.

        Raises KdxError where features are not finite.
        """
        # float64, as variances come from differences of sums of squares.
        features = [level.double().cpu() for level in trace.features]
        check_features(features)
        return cls(
            model=fingerprint(model),
            classes=tuple(classes),
            temperature=model.temperature,
            top_k=model.top_k,
            alpha=tuple(a.double().cpu() for a in trace.attention),
            sums=tuple(level.sum(dim=0) for level in features),
            squares=tuple((level**2).sum(dim=0) for level in features),
            labels=labels.cpu(),
        )

    @property
    def spreads(self) -> tuple[Tensor, ...]:
        """s of every level, N_l: √(mean variance over samples of each expert's features)."""
        B = len(self.labels)
        spreads = []
        for sums, squares in zip(self.sums, self.squares, strict=True):
            variance = squares / B - (sums / B) ** 2
            variance = variance.where(variance > ROUNDING * squares / B, 0)
            spreads.append(variance.flatten(1).mean(dim=1).sqrt())
        return tuple(spreads)

    @property
    def effective(self) -> tuple[Tensor, ...]:
        """A^l, of the shapes of ``alpha``.

        Raises KdxError where the parents' features don't vary, as on a single image.
        """
        return tuple(defined(effective(self.alpha, self.spreads), len(self.labels)))

    def to_frame(self) -> pd.DataFrame:
        """One row a gate: its keys, and α and A as means over images.

        Columns: level, child, child_index, parent, alpha, effective, tau, n.
        """
        levels = zip(averaged(self.alpha), averaged(self.effective), strict=True)
        frames = []
        for level, (alpha, passed) in enumerate(levels, 2):
            heads = level == len(self.alpha) + 1
            columns = {
                "level": level,
                **child_columns(self.classes, *alpha.shape, heads=heads),
                "alpha": alpha.flatten().numpy(),
                "effective": passed.flatten().numpy(),
                "tau": self.temperature,
                "n": len(self.labels),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def summary(self, *, null_draws: int = 99, seed: int = 0) -> pd.DataFrame:
        """Every gate metric of α and A beside random gates at the same τ.

        Columns: of, level, attention, metric, value, undefined, null_mean, null_low, null_high,
        null_undefined, null_draws, n. The null are gates with logits uniform in [0, 1), cut to
        ``top_k``, of experts whose features spread alike, so that its A is its α: random logits
        beside trained spreads would give another null where experts are rescaled at equal outputs
        and equal A, and what the spreads were before training is not known here
        (:class:`TrainingProbe` takes them from the initial model). Below 39 draws it has no range.
        Gates that read the input have none here, which is what null_draws = 0 says: their random
        gates take the images (:class:`TrainingProbe` draws them). Their specialisation has its
        shuffled null subtracted.
        """
        generator = torch.Generator().manual_seed(seed)
        input_gated = any(rows.ndim == 3 for rows in self.alpha)
        random = {} if input_gated else self._random(null_draws, generator)
        rows = []
        for name, gates in (("alpha", self.alpha), ("effective", self.effective)):
            metrics = (
                summarise_samples(gates, self.labels, generator)
                if input_gated
                else summarise(gates)
            )
            for key, (value, n) in metrics.items():
                draws = random[key][0] if key in random else torch.empty(0)
                row: dict[str, Any] = dict(zip(("of", "level", "metric"), key, strict=True))
                row |= {"attention": name, "value": float(value), **null.beside_one(draws)}
                rows.append({**row, "null_draws": len(draws), "n": n})
        columns = ["of", "level", "attention", "metric", "value", *null.COLUMNS, "null_draws", "n"]
        return with_undefined(pd.DataFrame(rows, columns=columns), ["value"])

    def _random(self, draws: int, generator: torch.Generator) -> Summary:
        """The metrics of random gates at the same τ and ``top_k``, with all draws in front."""
        drawn = random_logits(self.alpha, draws, generator)
        if self.top_k is not None:
            drawn = [strongest(logits, self.top_k) for logits in drawn]
        return summarise([attention(logits, self.temperature) for logits in drawn])

    def merge(self, *others: GateRecord) -> GateRecord:
        """This batch and ``others`` of the same model at the same τ.

        Raises KdxError if they are of another one.
        """
        records = (self, *others)
        if len({(r.model, r.classes, r.temperature) for r in records}) > 1:
            raise KdxError(
                "gates of another model, temperature or classes can't be merged, as experts have "
                "no identity across models; merge batches of one model, and of several their "
                "metrics (MetricRecord.of)"
            )
        levels = zip(*(record.alpha for record in records), strict=True)
        alpha = [torch.cat(rows) if rows[0].ndim == 3 else rows[0] for rows in levels]
        labels = torch.cat([record.labels for record in records])
        return dataclasses.replace(
            self,
            alpha=tuple(alpha),
            sums=added(records, "sums"),
            squares=added(records, "squares"),
            labels=labels,
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Effective attention into the heads, subtasks by experts, as (figure, axes)."""
        from kdx_analysis.probes.gates.drawing import plot

        return plot(self, ax)

    def _repr_html_(self) -> str:
        table = self.summary().to_html(index=False, float_format="{:.3f}".format, na_rep="–")
        at = f"τ = {self.temperature:.3g} on {len(self.labels)} images"
        return f"<p>Gates at {at}, beside random gates.</p>{table}"


@torch.inference_mode(False)
def gates_of(
    model: HME, images: Tensor, labels: Tensor, classes: Sequence[str] | None = None
) -> GateRecord:
    """The gates of an explainer on a batch of images, B×C×H×W, with their true classes, B.

    One in half precision is probed as a float32 copy. Raises KdxError for a model without gates,
    labels that are not B, names that are not K, and features that are not finite.
    """
    inside = in_full(unwrapped(usable(model))[0])
    if not isinstance(inside, HME):
        raise KdxError(
            f"{type(inside).__name__} has no gates; make an explainer of it with HME.from_student"
        )
    names, images = named(classes, inside.num_classes), pictures(images)
    labels = labelled(images, labels, inside.num_classes)
    model, images = inside, images.to(next(inside.parameters()))
    check_fixed_function(model, images)
    with undisturbed(model), torch.no_grad():
        trace = model.trace(images.clone())
    return GateRecord.of(model, trace, labels, names)


def child_columns(
    classes: Sequence[str], rows: int, parents: int, *, heads: bool
) -> dict[str, np.ndarray]:
    """Columns child, child_index, parent of all gates into a level of ``rows`` experts or heads."""
    names = list(classes) if heads else [f"expert {i}" for i in range(rows)]
    return {
        "child": np.repeat(np.array(names, dtype=object), parents),
        "child_index": np.repeat(np.arange(rows), parents),
        "parent": np.tile(np.arange(parents), rows),
    }
