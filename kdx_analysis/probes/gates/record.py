"""TODO"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, Trace
from kdx_analysis.models import gates as gating
from kdx_analysis.models.modes import in_full, undisturbed, unwrapped, usable
from kdx_analysis.probes.conflict.proof import check_fixed_function
from kdx_analysis.probes.gates import formulas as gates
from kdx_analysis.probes.record import Record, added
from kdx_analysis.probes.subtasks import labelled, named, pictures
from kdx_analysis.records import with_undefined
from kdx_analysis.training.checkpoints import fingerprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class GateRecord(Record):
    """An explainer's gates on a set of images: sums that batches add to, so that parts give what
    the whole gives.

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
        """From a ``trace``, what lay on the way of the images; KdxError where features are not
        finite.
        """
        features = [level.double().cpu() for level in trace.features]
        gates.check_features(features)
        return cls(
            model=fingerprint(model),
            classes=tuple(classes),
            temperature=model.temperature,
            top_k=model.top_k,
            alpha=tuple(a.double().cpu() for a in trace.attention),
            sums=tuple(of.sum(dim=0) for of in features),
            squares=tuple((of**2).sum(dim=0) for of in features),
            labels=labels.cpu(),
        )

    @property
    def spreads(self) -> tuple[Tensor, ...]:
        """s of every level: root of the mean variance over samples of each expert's features, N_l."""
        B = len(self.labels)
        found = []
        for sums, squares in zip(self.sums, self.squares, strict=True):
            variance = squares / B - (sums / B) ** 2
            variance = variance.where(
                variance > ROUNDING * squares / B, 0
            )  # a constant's is rounding alone
            found.append(variance.flatten(1).mean(dim=1).sqrt())
        return tuple(found)

    @property
    def effective(self) -> tuple[Tensor, ...]:
        """A^l, of the shapes of ``alpha``; KdxError where the parents' features don't vary, as on a
        single image.
        """
        return tuple(gates.defined(gates.effective(self.alpha, self.spreads), len(self.labels)))

    def to_frame(self) -> pd.DataFrame:
        """One row a gate: level, child, child_index, parent, alpha, effective (means over images),
        tau, n.
        """
        frames = []
        for level, (a, e) in enumerate(
            zip(*map(gates.averaged, (self.alpha, self.effective)), strict=True), 2
        ):
            heads = level == len(self.alpha) + 1
            frames.append(
                pd.DataFrame(
                    {
                        "level": level,
                        **child_columns(self.classes, *a.shape, heads=heads),
                        "alpha": a.flatten().numpy(),
                        "effective": e.flatten().numpy(),
                        "tau": self.temperature,
                        "n": len(self.labels),
                    }
                )
            )
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
        drawn = [] if input_gated else gates.random_logits(self.alpha, null_draws, generator)
        drawn = [w if self.top_k is None else gating.strongest(w, self.top_k) for w in drawn]
        drawn = [gating.attention(w, self.temperature) for w in drawn]
        random = gates.summarise(drawn) if drawn else {}
        rows = []
        for kind, own in (("alpha", self.alpha), ("effective", self.effective)):
            found = (
                gates.summarise_samples(own, self.labels, generator)
                if input_gated
                else gates.summarise(own)
            )
            for (of, level, metric), (value, n) in found.items():
                spread = random.get((of, level, metric), (torch.empty(0), 0))[0]
                keys = {
                    "of": of,
                    "level": level,
                    "attention": kind,
                    "metric": metric,
                    "value": float(value),
                }
                rows.append({**keys, **null.beside_one(spread), "null_draws": len(spread), "n": n})
        columns = ["of", "level", "attention", "metric", "value", *null.COLUMNS, "null_draws", "n"]
        return with_undefined(pd.DataFrame(rows, columns=columns), ["value"])

    def merge(self, *others: GateRecord) -> GateRecord:
        """This batch and ``others`` of the same model at the same τ; KdxError if they are of
        another one.
        """
        records = (self, *others)
        if len({(r.model, r.classes, r.temperature) for r in records}) > 1:
            raise KdxError(
                "gates of another model, temperature or classes can't be merged, as experts have "
                "no identity across models; merge batches of one model, and of several their "
                "measures (MeasureRecord.of)"
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
        return f"<p>Gates at τ = {self.temperature:.3g} on {len(self.labels)} images, beside random gates.</p>{table}"


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


ROUNDING = 1e-14  # of float64, in a difference of squares


def child_columns(
    classes: Sequence[str], rows: int, parents: int, *, heads: bool
) -> dict[str, np.ndarray]:
    """Columns child, child_index, parent of all gates into a level of ``rows`` experts, or into the
    heads.
    """
    names = list(classes) if heads else [f"expert {i}" for i in range(rows)]
    return {
        "child": np.repeat(np.array(names, dtype=object), parents),
        "child_index": np.repeat(np.arange(rows), parents),
        "parent": np.tile(np.arange(parents), rows),
    }
