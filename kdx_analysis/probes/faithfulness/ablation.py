"""Is attention an explanation? What an expert's ablation does to margins, beside the pathways.

Pure functions on tables K×N (K subtasks, N experts of a level), and ``ablate`` that makes them.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from scipy.stats import rankdata
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, Tree
from kdx_analysis.models.modes import unwrapped
from kdx_analysis.probes.conflict.proof import check_fixed_function
from kdx_analysis.probes.faithfulness.attribution import (
    AT_ONCE,
    captum,
    checked,
    experts_of,
    replaced,
    working_copy,
)
from kdx_analysis.probes.gates.formulas import averaged, mean_pathways
from kdx_analysis.probes.gates.record import GateRecord
from kdx_analysis.probes.record import Record, added
from kdx_analysis.probes.subtasks import Asked, check_classes, finite, integers, labelled, named
from kdx_analysis.records import DRAWS, IMAGES, SPLIT, count, kind, number, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Baseline = Literal["zero", "mean"]
ALPHA = 0.05
_COLUMNS = ("drop", "change", "alpha", "effective")


kind(
    "faithfulness",
    "One subtask and expert: what becomes of the margin without the expert.",
    keys=(
        SPLIT,
        text("baseline", "what stands in for the expert"),
        count("level", "of the expert", low=1),
        text("subtask", "name of the class"),
        count("subtask_index", "of the class"),
        count("expert", "on its level"),
    ),
    values=(
        number("drop", "mean fall of the margin over the subtask's own images"),
        number("change", "mean change of the margin over all images, for or against", low=0),
        number("alpha", "pathway mass of α", low=0, high=1),
        number("effective", "pathway mass of A", low=0, high=1),
        IMAGES,
    ),
    home=__name__,
)
kind(
    "faithfulness_agreement",
    "One level and table of an ablation: its rank correlation with the mass of pathways.",
    keys=(
        SPLIT,
        count("level", "of the experts", low=1),
        text("attention", "alpha or effective"),
        text("measure", "drop or change"),
    ),
    values=(
        number("value", "Spearman's ρ; NaN where a table is flat", low=-1, high=1),
        number("p", "one-sided, upwards; experts and subtasks permuted", low=0, high=1),
        number("p_subtasks", "the same with subtasks alone permuted", low=0, high=1),
        DRAWS,
        count("n", "entries of a table"),
        text("says", "agree, opposed, no relation found, undecided or undefined"),
    ),
    null=True,
    home=__name__,
)


@jaxtyped(typechecker=beartype)
def drop_sums(
    differences: Float[Tensor, "B K N"], labels: Int[Tensor, " B"]
) -> Float[Tensor, "K N"]:
    """Σ over the images of class k of m_k − m_k without expert i.

    Below 0 the expert speaks against its class; 0 where it does not matter.

    >>> differences = torch.tensor([[[1.0], [5.0]], [[2.0], [-3.0]]])
    >>> drop_sums(differences, torch.tensor([0, 1]))
    tensor([[ 1.],
            [-3.]])
    """
    K = differences.shape[1]
    return torch.einsum("bk,bkn->kn", F.one_hot(labels, K).to(differences.dtype), differences)


@jaxtyped(typechecker=beartype)
def change_sums(differences: Float[Tensor, "B K N"]) -> Float[Tensor, "K N"]:
    """Σ over all images of |m_k − m_k without expert i|: how far k depends on i, for or against.

    It is 0 where the expert does not matter.

    >>> change_sums(torch.tensor([[[1.0], [5.0]], [[2.0], [-3.0]]]))
    tensor([[3.],
            [8.]])
    """
    return differences.abs().sum(dim=0)


@jaxtyped(typechecker=beartype)
def rank_correlation(
    a: Float[Tensor, "K N"],
    b: Float[Tensor, "K N"],
    rows: Int[Tensor, "R K"],
    columns: Int[Tensor, "R N"],
) -> tuple[float, Float[Tensor, " R"]]:
    """Spearman's ρ over all K·N entries, and the same with b's rows and columns in other orders.

    In [−1, 1], 0 on average under the null; NaN if one of the tables is flat.

    >>> table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> swapped, same = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    >>> value, draws = rank_correlation(table, table, swapped, same)
    >>> round(value, 6), draws
    (1.0, tensor([-0.6000], dtype=torch.float64))
    """
    # float64, for which null's tolerance is made: ties with the value are then seen as such.
    x, y = (torch.from_numpy(rankdata(t.numpy())).view_as(t) for t in (a.double(), b.double()))
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    moved = y[rows.unsqueeze(2), columns.unsqueeze(1)]
    # The ranks of a flat table don't vary, so that ρ would be 0/0.
    value = (x * y).sum() / norm if norm > 0 else torch.tensor(torch.nan)
    return float(value), (x * moved).sum(dim=(1, 2)) / norm


def related(
    mass: Float[Tensor, "K N"], table: Float[Tensor, "K N"], permutations: int, seed: int
) -> dict[str, float | str]:
    """Rank correlation of an ablation's table with pathway mass, its null, and what it says.

    The columns of :attr:`Faithfulness.agreement` from value on; ``permutations`` of experts and
    subtasks make the null.
    """
    K, N = table.shape
    # Seeded here, so that all tables are permuted alike.
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        torch.rand(permutations, n, generator=generator).argsort(dim=1) for n in (K, N)
    )
    value, draws = rank_correlation(mass, table, rows, columns)
    _, subtasks = rank_correlation(mass, table, rows, torch.arange(N).expand(permutations, N))
    p, p_subtasks = (float(null.p_value(value, drawn, "greater")) for drawn in (draws, subtasks))
    return {
        "value": value,
        **null.beside_one(draws),
        "p": p,
        "p_subtasks": p_subtasks,
        "null_draws": permutations,
        "n": K * N,
        "says": verdict(value, draws),
    }


def verdict(value: float, draws: Float[Tensor, " R"]) -> str:
    """What a correlation says beside its null, in the words of :attr:`Faithfulness.agreement`.

    >>> draws = torch.arange(39) / 39 - 0.5
    >>> verdict(0.9, draws), verdict(0.0, draws), verdict(-0.9, draws), verdict(0.0, draws[:38])
    ('agree', 'no relation found', 'opposed', 'undecided')
    """
    if math.isnan(value):
        return "undefined"
    if null.p_value(value, draws, "greater") <= ALPHA:
        return "agree"
    if len(draws) < null.LEAST_DRAWS:
        return "undecided"
    # Half of ALPHA is what the null's range leaves below it.
    return "opposed" if null.p_value(value, draws, "less") <= ALPHA / 2 else "no relation found"


@dataclass(frozen=True, eq=False)
class LevelAblation:
    """What ablating each expert of a level does, beside what the gates say; K×N tables in float64.

    Attributes:
        level: from the trunk, 1.
        drop: mean over the images of the subtask's class of what its margin loses.
        change: mean over all images of |what it loses|.
        alpha, effective: P_ki of α and of A; of input gates composed per image, then averaged.
    """

    level: int
    drop: Tensor
    change: Tensor
    alpha: Tensor
    effective: Tensor


@dataclass(frozen=True, eq=False)
class Faithfulness(Record):
    """Expert ablation against pathway mass, per level.

    It holds sums that batches add to, so that parts give the whole. The null of a rank correlation
    permutes experts and, at once, subtasks of the ablations: whole columns and rows, in all of the
    table, since an expert that matters to one subtask often matters to others, and entries of one
    subtask share its scale. What is left to chance is only whose expert, and whose subtask, is
    whose. ``p_subtasks`` permutes subtasks alone: small where *which* subtask draws on an expert
    matters, not only that the expert is in use.

    Attributes:
        gates: of the same model on the same images.
        baseline: what stands in for an ablated expert's features: ``zero``, or their ``mean`` over
            the images.
        drops, changes: per level of experts, from level 2 up, :func:`drop_sums` and
            :func:`change_sums`, each K×N.
        permutations, seed: of the null.
    """

    FILE = "faithfulness_record"

    gates: GateRecord
    baseline: Baseline
    drops: tuple[Tensor, ...]
    changes: tuple[Tensor, ...]
    permutations: int
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The subtasks' names."""
        return self.gates.classes

    @property
    def counts(self) -> Tensor:
        """Images of each class, K."""
        return torch.bincount(self.gates.labels, minlength=len(self.classes))

    @cached_property
    def levels(self) -> tuple[LevelAblation, ...]:
        """The tables of every level, from 2.

        Raises KdxError where a class has no image, or features don't vary over the images: merge
        batches first.
        """
        check_classes(self.gates.labels, self.classes)
        # Pathways reach down to the trunk, level 1, which is not ablated.
        alpha, effective = (
            mean_pathways(rows)[1:] for rows in (self.gates.alpha, self.gates.effective)
        )
        per_class, B = self.counts.double().unsqueeze(1), len(self.gates.labels)
        tables = zip(self.drops, self.changes, alpha, effective, strict=True)
        return tuple(
            LevelAblation(level, drops / per_class, changes / B, mass, passed)
            for level, (drops, changes, mass, passed) in enumerate(tables, 2)
        )

    @cached_property
    def tree(self) -> Tree:
        """Who draws from whom by the largest A."""
        return Tree.from_attention(averaged(self.gates.effective), self.classes)

    def merge(self, *others: Faithfulness) -> Faithfulness:
        """This batch and ``others`` of the same model, under this one's null.

        Raises KdxError if they are of another model, and for ablations to ``mean`` features, which
        differ between batches; ablate all images at once.
        """
        records = (self, *others)
        if {r.baseline for r in records} != {"zero"}:
            raise KdxError(
                "mean features of a batch are not those of the whole; ablate to zero, or all "
                "images at once"
            )
        merged = self.gates.merge(*(other.gates for other in others))
        return dataclasses.replace(
            self, gates=merged, drops=added(records, "drops"), changes=added(records, "changes")
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a subtask and expert: what its ablation does, beside the mass of its pathways.

        Columns: baseline, level, subtask, subtask_index, expert, drop, change, alpha, effective, n.
        """
        frames = []
        for ablated in self.levels:
            K, N = ablated.drop.shape
            columns = {
                "baseline": self.baseline,
                "level": ablated.level,
                "subtask": np.repeat(self.classes, N),
                "subtask_index": np.repeat(np.arange(K), N),
                "expert": np.tile(np.arange(N), K),
                **{name: getattr(ablated, name).numpy().ravel() for name in _COLUMNS},
                "n": np.repeat(self.counts.numpy(), N),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """One row a level with a choice, an attention and a table of the ablation, with its null.

        Columns: level, attention (alpha, effective), measure (drop, change), value (Spearman's ρ),
        null_mean, null_low, null_high,
        null_undefined, p, p_subtasks (both one-sided, upwards), null_draws, n (entries), says.
        ``says`` is ``agree`` (p ≤ 0.05), ``opposed`` (p downwards ≤ 0.025: below the null's range),
        ``no relation found``, ``undecided``, where p > 0.05 and below 39 ``permutations`` there is
        no range to be below, or ``undefined``, where one of the tables is flat and value is NaN.
        """
        rows = []
        for ablated in self.levels:
            if ablated.drop.shape[1] == 1:
                continue
            for attention, name in product(("alpha", "effective"), ("drop", "change")):
                mass, table = getattr(ablated, attention), getattr(ablated, name)
                keys = {"level": ablated.level, "attention": attention, "measure": name}
                rows.append({**keys, **related(mass, table, self.permutations, self.seed)})
        columns = ["value", *null.COLUMNS, "p", "p_subtasks", "null_draws", "n", "says"]
        return pd.DataFrame(rows, columns=["level", "attention", "measure", *columns])

    @property
    def disagreements(self) -> pd.DataFrame:
        """Subtasks whose strongest expert by A is not the one whose ablation costs them most.

        Columns: level, subtask, by_attention, by_ablation (experts), mass, drop (of the first),
        largest_drop.
        """
        rows = []
        for ablated in self.levels:
            for name, mass, drop in zip(self.classes, ablated.effective, ablated.drop, strict=True):
                i, j = int(mass.argmax()), int(drop.argmax())
                if i != j:
                    values = float(mass[i]), float(drop[i]), float(drop[j])
                    rows.append((ablated.level, name, i, j, *values))
        choices = ["level", "subtask", "by_attention", "by_ablation"]
        return pd.DataFrame(rows, columns=[*choices, "mass", "drop", "largest_drop"])

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Drop against pathway mass of A, as (figure, axes).

        It is a panel a level, or the last level in ``ax``.
        """
        from kdx_analysis.probes.faithfulness.drawing import ablation

        return ablation(self, ax)

    def __str__(self) -> str:
        if self.agreement.empty:
            return (
                "Every level has one expert, so attention has no choice that an ablation could "
                "confirm."
            )
        lines = []
        table = self.agreement[
            (self.agreement["attention"] == "effective") & (self.agreement["measure"] == "drop")
        ]
        apart = self.disagreements["level"].value_counts()
        for row in table.to_dict("records"):
            level = row["level"]
            correlation = "undefined, as one of the tables is flat"
            if row["says"] != "undefined":
                beside = null.shown(row["null_low"], row["null_high"])
                beside = f"{beside}, p = {row['p']:.3g}, n = {row['n']}"
                correlation = f"ρ = {row['value']:.2f} ({beside}), {row['says']}"
            lines.append(
                f"Level {level}: drop against pathway mass of A, {correlation}; for "
                f"{apart.get(level, 0)} of {len(self.classes)} subtasks the strongest expert is "
                "not the one whose ablation costs most."
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = self.agreement.style.hide(axis="index").format(
            precision=3, na_rep="–", escape="html"
        )
        said = "<br>".join(html.escape(line) for line in str(self).splitlines())
        return f"<p>{said}</p>{table.to_html()}"


@torch.inference_mode(False)
def ablate(
    model: HME,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str] | None = None,
    *,
    baseline: Baseline = "zero",
    permutations: int = 999,
    seed: int = 0,
) -> Faithfulness:
    """Ablate every expert above the trunk, one at a time, and set margins' drops beside pathways.

    Args:
        model: an explainer; left as it was found, computed on a copy in eval mode.
        images: normalised, B×C×H×W; a probe set, or a batch of one to be merged; their features are
            held at once.
        labels: classes of the images, B.
        classes: the subtasks' names; by default their numbers.
        baseline: ablated features are zero, or their mean over ``images``.
        permutations: draws of the null; below 39 it has no range.
        seed: of them.

    Raises:
        KdxError: a model without experts, images and labels that don't belong together, margins or
            features that are not finite. A class without images, or a single image, only has tables
            once it is merged with others.
    """
    if baseline not in get_args(Baseline):
        raise KdxError(f"baseline = {baseline!r} should be one of {', '.join(get_args(Baseline))}")
    model = unwrapped(model)[0]  # type: ignore[assignment]
    experts_of(model)
    images, labels = checked(model, images), integers(labels).cpu()
    names, labels = named(classes, model.num_classes), labelled(images, labels, model.num_classes)
    working = working_copy(model)
    assert isinstance(working, HME)
    images = images.to(next(working.parameters()))
    check_fixed_function(working, images)
    with torch.no_grad():
        trace = working.trace(images)
    finite(trace.margins)
    record = GateRecord.of(working, trace, labels, names)
    drops, changes = [], []
    for level in range(2, len(working.experts) + 1):
        features = trace.features[level - 1]
        stand_in = (
            features.mean(dim=0, keepdim=True)
            if baseline == "mean"
            else torch.zeros_like(features[:1])
        )
        differences = _lost(_Ablated(working, images, level, stand_in))
        drops.append(drop_sums(differences, labels))
        changes.append(change_sums(differences))
    return Faithfulness(record, baseline, tuple(drops), tuple(changes), permutations, seed)


@dataclass(frozen=True, eq=False)
class _Ablated:
    """From the experts that are present, 1×N ones and zeros, to the margins of all images, B×K."""

    model: HME
    images: Tensor
    level: int
    stand_in: Tensor

    def __call__(self, present: Tensor) -> Tensor:
        def switch(features: Tensor) -> Tensor:
            kept = present.bool().view(1, -1, *(1,) * (features.ndim - 2))
            return torch.where(kept, features, self.stand_in)

        with replaced(self.model, self.level, switch):
            return torch.cat([Asked(self.model)(chunk) for chunk in self.images.split(AT_ONCE)])


def _lost(ablated: _Ablated) -> Tensor:
    """What every margin of every image loses by each expert, B×K×N: a forward pass an expert.

    It is in float64, as sums over batches have to give those of the whole.
    """
    images, N = ablated.images, ablated.model.experts[ablated.level - 1]
    lost = captum().FeatureAblation(ablated).attribute(images.new_ones(1, N))
    differences: Tensor = lost.view(len(images), -1, N).double().cpu()
    if not differences.isfinite().all():
        raise KdxError(
            f"margins are not finite once an expert of level {ablated.level} is ablated; look at "
            "its weights"
        )
    return differences
