"""Conflict of one model or of several probes, on a probe set that is whole or comes in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis import null
from kdx_analysis.config import LEAST_PAIRS
from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import fitted, in_full, unwrapped, usable
from kdx_analysis.probes.conflict.grams import residuals, subtask_grams, with_null
from kdx_analysis.probes.conflict.sample import drawn_subtasks, margins_of
from kdx_analysis.probes.conflict.tables import conflict_tables, contention_table
from kdx_analysis.probes.record import TableRecord
from kdx_analysis.probes.subtasks import OneVsRest, asked, finite, integers, labelled, pictures
from kdx_analysis.training.checkpoints import fingerprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_DRAWS = 19  # beyond all of so many a value is the one in 20


@dataclass(frozen=True, eq=False)
class ConflictRecord(TableRecord):
    """Conflict between subtasks, of one probe or of several merged.

    Gradients of a probe set are summed before any angle is taken, so a set is probed as a whole (by
    :class:`ConflictProbe`, where it comes in batches), and what is merged are probes: of other
    epochs, seeds or models.

    Attributes:
        pairs: one row a probe, level and pair: probe, level, a, b, a_index, b_index, cosine,
            null_mean, null_low, null_high (a range that holds one more draw of the null with 95 %,
            NaN below 39), null_undefined, magnitude_similarity, undefined, null_draws, n.
        summary: one row a probe, level and metric: probe, level, pairs, undefined, metric, value,
            null_…, null_draws, n; of an explainer whose gates are parameters also separation and
            modulation, on its last level. Where subtasks were drawn also all_pairs, standard_error,
            low and high, as :func:`conflict_tables` has them.
    """

    FILES: ClassVar = {"pairs": "conflict", "summary": "conflict_summary"}

    pairs: pd.DataFrame
    summary: pd.DataFrame

    @property
    def probes(self) -> int:
        """How many probes are merged in it."""
        return int(self.pairs["probe"].nunique())

    def to_frame(self) -> pd.DataFrame:
        """Means over probes, one row a level and pair.

        Columns: level, a, b, a_index, b_index, cosine, null_mean, magnitude_similarity, values,
        undefined. ``values`` are the probes that went into the cosine and all else of its row,
        ``undefined`` those in which a gradient was zero.
        """
        # Means of the others are over the probes that the cosine's is over.
        defined = self.pairs["cosine"].notna()
        columns = ["null_mean", "magnitude_similarity"]
        pairs = self.pairs.assign(**{name: self.pairs[name].where(defined) for name in columns})
        groups = pairs.groupby(["level", "a", "b", "a_index", "b_index"], sort=False)
        table = groups.agg(
            cosine=("cosine", "mean"),
            null_mean=("null_mean", "mean"),
            magnitude_similarity=("magnitude_similarity", "mean"),
            values=("cosine", "count"),
            probes=("cosine", "size"),
        )
        table["undefined"] = table.pop("probes") - table["values"]
        return table.reset_index()

    def merge(self, *others: ConflictRecord) -> ConflictRecord:
        """This record's probes and those of ``others``.

        Raises KdxError if they are about other subtasks.
        """
        records = (self, *others)
        names = [tuple(dict.fromkeys((*r.pairs["a"], *r.pairs["b"]))) for r in records]
        if len(set(names)) > 1:
            raise KdxError(
                "records of other subtasks can't be merged; probe all models on the same classes"
            )
        pairs, summaries, start = [], [], 0
        for record in records:
            pairs.append(record.pairs.assign(probe=record.pairs["probe"] + start))
            summaries.append(record.summary.assign(probe=record.summary["probe"] + start))
            start += record.probes
        return ConflictRecord(
            pd.concat(pairs, ignore_index=True), pd.concat(summaries, ignore_index=True)
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Cosines over all levels below the diagonal, their null above it, as (figure, axes)."""
        from kdx_analysis.probes.conflict.drawing import plot

        return plot(self, ax)

    def _repr_html_(self) -> str:
        columns = ["value", "null_mean", "null_low", "null_high"]
        defined = self.summary["value"].notna()  # means of value and null over the same probes
        summary = self.summary.assign(
            **{name: self.summary[name].where(defined) for name in columns}
        )
        grouped = summary.groupby(["level", "metric"], sort=False)
        table = grouped[columns].mean().join(grouped["value"].count().rename("probes"))
        table = table.join(grouped["undefined"].sum())
        n = ", ".join(map(str, sorted(set(self.summary["n"]))))
        caption = f"{self.probes} probes, n = {n} images; null: residuals permuted over samples"
        if "all_pairs" in self.summary:
            every = int(self.summary["all_pairs"].max())
            caption += f"; estimated from some of {every} pairs, those of subtasks drawn at random"
        if not table["null_low"].notna().any():
            caption = f"{caption}, {null.NO_RANGE}"
        shown = table.reset_index().to_html(index=False, float_format="{:.3f}".format, na_rep="–")
        return f"<p>Conflict: {caption}.</p>{shown}"


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
    pairs: int | None = None,
) -> ConflictRecord:
    """Conflict between the K one-vs-rest losses of any classifier.

    The loss is the plain hard one for every model, BCE(σ(margin), 1[y = k]), so that teacher,
    student and explainer compare. Levels are an explainer's own, of another model its stages, or
    all modules that serve several outputs where stages can't be found. Gradients are held against
    plain autograd, and outputs against those of half the images, as :func:`subtask_grams` says;
    frozen parameters are probed as others are.

    Args:
        model: images → logits B×K, or a dict, sequence or dataclass that holds them alone of that
            shape, of which a warning tells; left as it was found, in eval mode while probing; in
            half precision a float32 copy is.
        images: normalised, B×C×H×W, a class-balanced set; a tensor, an array or a list of either.
        labels: whole numbers, B; every class has at least one.
        classes: names; by default the numbers.
        margins: outputs → margins (B×K → B×K); by default an explainer's outputs themselves and of
            other models the one-vs-rest margins of their logits.
        groups: of a model that is no explainer: paths of the modules of each level.
        null_draws: permutations of the residuals over samples; 19 or more, and below 39 the null
            has no range.
        permutations: of the gates over subtasks, for modulation.
        seed: of both, and of the subtasks that are drawn.
        max_memory: bytes, as for :func:`subtask_grams`.
        pairs: at most so many are looked at, those among subtasks drawn at random, from which means
            over all pairs are estimated; by default all. With fewer than all there is no
            contention, which rests on every pair, and neither separation nor modulation.

    Raises KdxError for a class without a sample, images and labels that don't belong together,
    fewer than two classes, outputs that are no logits B×K, outputs or gradients that are not
    finite, and models that can't be probed: random in eval mode, computing over the batch, with
    tied weights, on several devices; each by name.
    """
    if null_draws < _LEAST_DRAWS:
        raise KdxError(f"{null_draws} draws make no null; take {_LEAST_DRAWS} or more")
    if pairs is not None and pairs < LEAST_PAIRS:
        raise KdxError(
            f"pairs = {pairs} are of too few subtasks for an interval; take {LEAST_PAIRS} or more"
        )
    probed = OneVsRest.of(model, images, labels, classes, margins)
    K = len(probed.classes)
    subtasks = drawn_subtasks(K, pairs, seed)
    residual = residuals(probed.loss, probed.outputs)[:, list(subtasks)]
    grams = subtask_grams(
        probed.model,
        probed.images,
        with_null(residual, null_draws, seed),
        margins=margins_of(subtasks, K, probed.margins),
        groups=groups,
        max_memory=max_memory,
        num_classes=K,
    )
    table, summary = conflict_tables(grams, probed.classes, subtasks)
    if grams.gates is not None:
        contended = contention_table(grams.experts[-1], grams.gates, permutations, seed)
        contended = contended[contended["metric"] != "contention"]
        contended = contended.assign(level=str(len(grams.experts)))
        summary = pd.concat([summary, contended], ignore_index=True)
    counted: dict[str, Any] = {"probe": 0, "null_draws": null_draws, "n": len(images)}
    return ConflictRecord(table.assign(**counted), summary.assign(**counted))


class ConflictProbe:
    """Takes a probe set batch by batch and measures conflict on the whole.

    A cosine is no mean of the batches' cosines, and its null deals every residual to any image of
    the set, so no table of a batch can be merged without loss. What can be are the images: they are
    the state, one after the other in the order of updates and merges, and :meth:`compute` adds up
    their gradients before any angle is taken, in the memory that it is given. Any split into
    batches gives what :func:`conflict_of` gives on the whole.

    >>> import torch, kdx_analysis as kdx
    >>> from kdx_analysis.models import build_model
    >>> probe = kdx.probes.ConflictProbe(build_model("digits_student", 3, 1))
    >>> for batch in torch.randn(12, 1, 8, 8).split(5):
    ...     probe.update(batch, torch.arange(len(batch)) % 3)
    >>> record = probe.compute(null_draws=19)
    >>> int(record.pairs["n"].iloc[0])
    12

    Args:
        model: images → B×K, the same weights from the first update to ``compute``.
        num_classes: K, which tells logits from other tensors that the model gives beside them; by
            default what the labels seen so far say.
        device: where the batches are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.num_classes, self.device = model, num_classes, device
        self.fingerprint = fingerprint(model)
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []

    @torch.inference_mode(False)
    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add normalised images, B×C×H×W, and their classes, B; a batch need not hold every class.

        Raises KdxError for images and labels that don't belong together and outputs that are not
        finite; then nothing is added.
        """
        images, model = pictures(images), in_full(unwrapped(usable(self.model))[0])
        outputs = finite(
            asked(model, fitted(images, model), self.num_classes or _classes(*self.labels, labels))
        )
        labels = labelled(images, labels, outputs.shape[1])
        # Copied, since a loader may use its buffers again.
        self.images.append(images.detach().to(self.device, copy=True))
        self.labels.append(labels.to(self.device, copy=True))

    def merge(self, *others: ConflictProbe) -> ConflictProbe:
        """This probe's images and those of ``others``.

        Raises KdxError if they were seen by models of other weights.
        """
        if len({probe.fingerprint for probe in (self, *others)}) > 1:
            raise KdxError(
                "images seen by models of other weights can't be merged; merge the records that "
                "each gives"
            )
        merged = ConflictProbe(self.model, num_classes=self.num_classes, device=self.device)
        for probe in (self, *others):
            merged.images += [images.to(self.device) for images in probe.images]
            merged.labels += [labels.to(self.device) for labels in probe.labels]
        return merged

    def compute(self, *, classes: Sequence[str] | None = None, **options: Any) -> ConflictRecord:
        """Conflict on all images; ``options`` and errors as for :func:`conflict_of`.

        Raises KdxError if there are none yet, or if the model's weights are others than when the
        probe was made.
        """
        if not self.images:
            raise KdxError(
                "the probe has seen no images; call update with some of every class first"
            )
        if fingerprint(self.model) != self.fingerprint:
            raise KdxError(
                "the model was changed after the probe was made; make a new probe and update it"
            )
        return conflict_of(
            self.model, torch.cat(self.images), torch.cat(self.labels), classes=classes, **options
        )


def _classes(*labels: Any) -> int | None:
    """One more than the largest label; None if there is none."""
    largest = [
        int(tensor.max())
        for tensor in map(integers, labels)
        if tensor.numel() and not tensor.is_complex()
    ]
    return max(largest, default=-1) + 1 or None
