"""What a probe hands back: frozen records that can be shown, merged and kept.

Batches of one model and probes of several models are merged before anything is divided: sums and counts are added,
means are taken by ``to_frame``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, Trace
from kdx_analysis.models import gates as gating
from kdx_analysis.probes import gates, measures
from kdx_analysis.probes.contract import Record, TableRecord, added
from kdx_analysis.probes.gradients import residuals, subtask_grams, with_null
from kdx_analysis.probes.proof import check_fixed_function
from kdx_analysis.probes.subject import in_full, undisturbed, unwrapped, usable
from kdx_analysis.probes.subtasks import OneVsRest, labelled, named, pictures
from kdx_analysis.training.checkpoints import fingerprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDING = 1e-14  # of float64, in a difference of squares


@dataclass(frozen=True, eq=False)
class ConflictRecord(TableRecord):
    """Conflict between subtasks, of one probe or of several merged.

    Gradients of a probe set are summed before any angle is taken, so a set is probed as a whole (by
    :class:`ConflictProbe`, where it comes in batches), and what is merged are probes: of other epochs, seeds or models.

    Attributes:
        pairs: one row a probe, level and pair: probe, level, a, b, a_index, b_index, cosine, null_mean, null_low,
            null_high (a range that holds one more draw of the null with 95 %, NaN below 39), null_undefined,
            magnitude_similarity, undefined, null_draws, n.
        summary: one row a probe, level and metric: probe, level, pairs, undefined, metric, value, null_…, null_draws,
            n; of an explainer whose gates are parameters also separation and modulation, on its last level.
    """

    FILES: ClassVar = {"pairs": "conflict", "summary": "conflict_summary"}

    pairs: pd.DataFrame
    summary: pd.DataFrame

    @property
    def probes(self) -> int:
        """How many probes are merged in it."""
        return int(self.pairs["probe"].nunique())

    def to_frame(self) -> pd.DataFrame:
        """Means over probes: level, a, b, a_index, b_index, cosine, null_mean, magnitude_similarity, values, undefined.

        ``values`` are the probes that went into the cosine and all else of its row, ``undefined`` those in which a
        gradient was zero.
        """
        defined = self.pairs["cosine"].notna()
        columns = ["null_mean", "magnitude_similarity"]
        pairs = self.pairs.assign(**{name: self.pairs[name].where(defined) for name in columns})
        groups = pairs.groupby(["level", "a", "b", "a_index", "b_index"], sort=False)
        table = groups.agg(
            cosine=("cosine", "mean"), null_mean=("null_mean", "mean"),
            magnitude_similarity=("magnitude_similarity", "mean"), values=("cosine", "count"),
            probes=("cosine", "size"),
        )  # fmt: skip
        table["undefined"] = table.pop("probes") - table["values"]
        return table.reset_index()

    def merge(self, *others: ConflictRecord) -> ConflictRecord:
        """This record's probes and those of ``others``. Raises KdxError if they are about other subtasks."""
        records = (self, *others)
        names = [tuple(dict.fromkeys((*r.pairs["a"], *r.pairs["b"]))) for r in records]
        if len(set(names)) > 1:
            raise KdxError("records of other subtasks can't be merged; probe all models on the same classes")
        starts = np.cumsum([0, *(record.probes for record in records)])
        pairs, summary = (
            pd.concat(
                [f.assign(probe=f["probe"] + s) for f, s in zip(frames, starts[:-1], strict=True)], ignore_index=True
            )
            for frames in ([r.pairs for r in records], [r.summary for r in records])
        )
        return ConflictRecord(pairs, summary)

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Cosines over all levels below the diagonal, their null above it, as (figure, axes)."""
        from kdx_analysis.plots.records import conflict_record

        return conflict_record(self, ax)

    def _repr_html_(self) -> str:
        columns = ["value", "null_mean", "null_low", "null_high"]
        defined = self.summary["value"].notna()
        summary = self.summary.assign(**{name: self.summary[name].where(defined) for name in columns})
        grouped = summary.groupby(["level", "metric"], sort=False)
        table = grouped[columns].mean().join(grouped["value"].count().rename("probes"))
        table = table.join(grouped["undefined"].sum())
        n = sorted(set(self.summary["n"]))
        ranged = table["null_low"].notna().any()
        said = f"{self.probes} probes, n = {', '.join(map(str, n))} images; null: residuals permuted over samples"
        said = said if ranged else f"{said}, {null.NO_RANGE}"
        shown = table.reset_index().to_html(index=False, float_format="{:.3f}".format, na_rep="–")
        return f"<p>Conflict: {said}.</p>{shown}"


@torch.inference_mode(False)
def conflict_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    classes: Sequence[str] | None = None,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    null_draws: int = 49,
    permutations: int = 999,
    seed: int = 0,
    max_memory: int = 2**30,
) -> ConflictRecord:
    """Conflict between the K one-vs-rest losses of any classifier, so that teacher, student and explainer compare.

    The loss is the plain hard one for every model: BCE(σ(margin), 1[y = k]). Levels are an explainer's own, of
    another model its stages, or all modules that serve several outputs where stages can't be found. Gradients are
    held against plain autograd, and outputs against those of half the images, as :func:`subtask_grams` says; frozen
    parameters are probed as others are.

    Args:
        model: images → logits B×K, or a dict, sequence or dataclass that holds them alone of that shape, of which a
            warning tells; left as it was found, in eval mode while probing; in half precision a float32 copy is.
        images: normalised, B×C×H×W, a class-balanced set; a tensor, an array or a list of either.
        labels: whole numbers, B; every class has at least one.
        classes: names; by default the numbers.
        margins: outputs → margins (B×K → B×K); by default an explainer's outputs themselves and of other models the
            one-vs-rest margins of their logits.
        groups: of a model that is no explainer: paths of the modules of each level.
        null_draws: permutations of the residuals over samples; 19 or more, and below 39 the null has no range.
        permutations: of the gates over subtasks, for modulation.
        seed: of both.
        max_memory: bytes, as for :func:`subtask_grams`.

    Raises KdxError for a class without a sample, images and labels that don't belong together, fewer than two classes,
    outputs that are no logits B×K, outputs or gradients that are not finite, and models that can't be probed: random in
    eval mode, computing over the batch, with tied weights, on several devices; each by name.
    """
    if null_draws < 19:
        raise KdxError(f"{null_draws} draws make no null; take 19 or more")
    asked = OneVsRest.of(model, images, labels, classes, margins)
    sets = with_null(residuals(asked.loss, asked.outputs), null_draws, seed)
    grams = subtask_grams(asked.model, asked.images, sets, margins=asked.margins, groups=groups, max_memory=max_memory)
    pairs, summary = measures.conflict_tables(grams, asked.classes)
    if grams.gates is not None:
        table = measures.contention_table(grams.experts[-1], grams.gates, permutations, seed)
        table = table[table["metric"] != "contention"].assign(level=str(len(grams.experts)))
        summary = pd.concat([summary, table], ignore_index=True)
    counted: dict[str, Any] = {"probe": 0, "null_draws": null_draws, "n": len(images)}
    return ConflictRecord(pairs.assign(**counted), summary.assign(**counted))


@dataclass(frozen=True, eq=False)
class GateRecord(Record):
    """An explainer's gates on a set of images: sums that batches add to, so that parts give what the whole gives.

    Attributes:
        model: fingerprint of the weights.
        classes: names of the subtasks.
        temperature: τ.
        top_k: parents that every child draws from at most; None: all.
        alpha: α^l for l = 2…L+1, float64: N_l×N_{l−1}, or B×N_l×N_{l−1} of gates that read the input.
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
        """From a ``trace``, what lay on the way of the images; KdxError where features are not finite."""
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
            variance = variance.where(variance > ROUNDING * squares / B, 0)  # a constant's is rounding alone
            found.append(variance.flatten(1).mean(dim=1).sqrt())
        return tuple(found)

    @property
    def effective(self) -> tuple[Tensor, ...]:
        """A^l, of the shapes of ``alpha``; KdxError where the parents' features don't vary, as on a single image."""
        return tuple(gates.defined(gates.effective(self.alpha, self.spreads), len(self.labels)))

    def to_frame(self) -> pd.DataFrame:
        """One row a gate: level, child, child_index, parent, alpha, effective (means over images), tau, n."""
        frames = []
        for level, (a, e) in enumerate(zip(*map(gates.averaged, (self.alpha, self.effective)), strict=True), 2):
            heads = level == len(self.alpha) + 1
            frames.append(pd.DataFrame({
                "level": level, **measures.child_columns(self.classes, *a.shape, heads=heads),
                "alpha": a.flatten().numpy(), "effective": e.flatten().numpy(),
                "tau": self.temperature, "n": len(self.labels),
            }))  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def summary(self, *, null_draws: int = 99, seed: int = 0) -> pd.DataFrame:
        """Every gate metric of α and A beside random gates at the same τ.

        Columns: of, level, attention, metric, value, undefined, null_mean, null_low, null_high, null_undefined,
        null_draws, n. The null are gates with logits uniform in [0, 1), cut to ``top_k``, of experts whose features
        spread alike, so that its A is its α: random logits beside trained spreads would give another null where experts
        are rescaled at equal outputs and equal A, and what the spreads were before training is not known here
        (:class:`ExplainerProbe` takes them from the initial model). Below 39 draws it has no range. Gates that read
        the input have none here, which is what null_draws = 0 says: their random gates take the images
        (:class:`ExplainerProbe` draws them). Their specialisation has its shuffled null subtracted.
        """
        generator = torch.Generator().manual_seed(seed)
        input_gated = any(rows.ndim == 3 for rows in self.alpha)
        drawn = [] if input_gated else gates.random_logits(self.alpha, null_draws, generator)
        drawn = [w if self.top_k is None else gating.strongest(w, self.top_k) for w in drawn]
        drawn = [gating.attention(w, self.temperature) for w in drawn]
        random = gates.summarise(drawn) if drawn else {}
        rows = []
        for kind, own in (("alpha", self.alpha), ("effective", self.effective)):
            found = gates.summarise_samples(own, self.labels, generator) if input_gated else gates.summarise(own)
            for (of, level, metric), (value, n) in found.items():
                spread = random.get((of, level, metric), (torch.empty(0), 0))[0]
                keys = {"of": of, "level": level, "attention": kind, "metric": metric, "value": float(value)}
                rows.append({**keys, **null.beside_one(spread), "null_draws": len(spread), "n": n})
        columns = ["of", "level", "attention", "metric", "value", *null.COLUMNS, "null_draws", "n"]
        return measures.with_undefined(pd.DataFrame(rows, columns=columns), ["value"])

    def merge(self, *others: GateRecord) -> GateRecord:
        """This batch and ``others`` of the same model at the same τ; KdxError if they are of another one."""
        records = (self, *others)
        if len({(r.model, r.classes, r.temperature) for r in records}) > 1:
            raise KdxError(
                "gates of another model, temperature or classes can't be merged, as experts have no identity across "
                "models; merge batches of one model, and of several their measures (MeasureRecord.of)"
            )
        alpha = [torch.cat(parts) if parts[0].ndim == 3 else parts[0] for parts in zip(*(r.alpha for r in records))]  # noqa: B905
        labels = torch.cat([record.labels for record in records])
        return dataclasses.replace(
            self, alpha=tuple(alpha), sums=added(records, "sums"), squares=added(records, "squares"), labels=labels
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Effective attention into the heads, subtasks by experts, as (figure, axes)."""
        from kdx_analysis.plots.records import gate_record

        return gate_record(self, ax)

    def _repr_html_(self) -> str:
        table = self.summary().to_html(index=False, float_format="{:.3f}".format, na_rep="–")
        return f"<p>Gates at τ = {self.temperature:.3g} on {len(self.labels)} images, beside random gates.</p>{table}"


@torch.inference_mode(False)
def gates_of(model: HME, images: Tensor, labels: Tensor, classes: Sequence[str] | None = None) -> GateRecord:
    """The gates of an explainer on a batch of images, B×C×H×W, with their true classes, B.

    One in half precision is probed as a float32 copy. Raises KdxError for a model without gates, labels that are not B,
    names that are not K, and features that are not finite.
    """
    inside = in_full(unwrapped(usable(model))[0])
    if not isinstance(inside, HME):
        raise KdxError(f"{type(inside).__name__} has no gates; make an explainer of it with HME.from_student")
    names, images = named(classes, inside.num_classes), pictures(images)
    labels = labelled(images, labels, inside.num_classes)
    model, images = inside, images.to(next(inside.parameters()))
    check_fixed_function(model, images)
    with undisturbed(model), torch.no_grad():
        trace = model.trace(images.clone())
    return GateRecord.of(model, trace, labels, names)
