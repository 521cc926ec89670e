"""Is attention an explanation? What happens to every margin when an expert is ablated, beside the pathways.

Pure functions on tables K×N (K subtasks, N experts of a level), ``ablate`` that makes them, ``explain`` for one class.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from scipy.stats import rankdata
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet, write_parquet, write_text
from kdx_analysis.models import HME, Trace, Tree
from kdx_analysis.models import gates as gating
from kdx_analysis.probes import gates
from kdx_analysis.probes.attribution import (
    AT_ONCE,
    Attribution,
    as_html,
    captum,
    checked,
    conductance,
    experts_of,
    finite,
    integrated_gradients,
    replaced,
    working_copy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Baseline = Literal["zero", "mean"]
ALPHA = 0.05
_COLUMNS = ("drop", "change", "alpha", "effective")
_TABLE, _TREE = "faithfulness.parquet", "faithfulness_tree.json"


@jaxtyped(typechecker=beartype)
def drop(differences: Float[Tensor, "B K N"], labels: Int[Tensor, " B"]) -> Float[Tensor, "K N"]:
    """Mean over the images of class k of m_k − m_k without expert i; below 0: the expert speaks against its class.

    NaN for a class without images.
    """
    return torch.stack([differences[labels == k, k].mean(dim=0) for k in range(differences.shape[1])])


@jaxtyped(typechecker=beartype)
def change(differences: Float[Tensor, "B K N"]) -> Float[Tensor, "K N"]:
    """Mean over all images of |m_k − m_k without expert i|: how far the subtask depends on it, for or against."""
    return differences.abs().mean(dim=0)


@jaxtyped(typechecker=beartype)
def rank_correlation(
    a: Float[Tensor, "K N"], b: Float[Tensor, "K N"], rows: Int[Tensor, "R K"], columns: Int[Tensor, "R N"]
) -> tuple[float, Float[Tensor, " R"]]:
    """Spearman's ρ over all K·N entries, and the same with b's rows and columns in other orders; NaN if one is flat."""
    x, y = (torch.from_numpy(rankdata(t.numpy())).view_as(t) for t in (a.double(), b.double()))
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    moved = y[rows.unsqueeze(2), columns.unsqueeze(1)]
    value = (x * y).sum() / norm if norm > 0 else torch.tensor(torch.nan)
    return float(value), (x * moved).sum(dim=(1, 2)) / norm


@dataclass(frozen=True, eq=False)
class LevelAblation:
    """What ablating each expert of a level does, beside what the gates say; K×N tables in float64.

    Attributes:
        level: from the trunk, 1.
        drop, change: see the functions.
        alpha, effective: P_ki of α and of A; of input gates composed per image, then averaged.
    """

    level: int
    drop: Tensor
    change: Tensor
    alpha: Tensor
    effective: Tensor


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Expert ablation against pathway mass, per level.

    The null of a rank correlation permutes experts and, at once, subtasks of the ablations: whole columns and rows, in
    all of the table, since an expert that matters to one subtask often matters to others, and entries of one subtask
    share its scale. What is left to chance is only whose expert, and whose subtask, is whose. ``p_subtasks`` permutes
    subtasks alone: small where *which* subtask draws on an expert matters, not only that the expert is in use.

    Attributes:
        classes: the subtasks' names.
        baseline: what stands in for an ablated expert's features: ``zero``, or their ``mean`` over the images.
        levels: of experts, from level 2 up.
        tree: who draws from whom by the largest A.
        counts: images of each class.
        permutations, seed: of the null.
    """

    classes: tuple[str, ...]
    baseline: Baseline
    levels: tuple[LevelAblation, ...]
    tree: Tree
    counts: tuple[int, ...]
    permutations: int
    seed: int

    def to_frame(self) -> pd.DataFrame:
        """One row a subtask and expert: level, subtask, subtask_index, expert, drop, change, alpha, effective, n."""
        frames = []
        for of in self.levels:
            K, N = of.drop.shape
            frames.append(pd.DataFrame({
                "baseline": self.baseline, "level": of.level, "subtask": np.repeat(self.classes, N),
                "subtask_index": np.repeat(np.arange(K), N), "expert": np.tile(np.arange(N), K),
                **{name: getattr(of, name).numpy().ravel() for name in _COLUMNS},
                "n": np.repeat(self.counts, N),
            }))  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """One row a level with a choice, attention (alpha, effective) and measure (drop, change) with its null.

        Columns: level, attention, measure, value (Spearman's ρ), null_mean, null_low, null_high, p, p_subtasks (both
        one-sided, upwards), null_draws, n (entries), says. ``says`` is ``agree`` (p ≤ 0.05), ``opposed`` (below the
        null's range), ``no relation found``, or ``undefined``, where one of the tables is flat and value is NaN.
        """
        rows = [
            {"level": of.level, "attention": attention, "measure": measure, **self._correlated(of, attention, measure)}
            for of in self.levels
            if of.drop.shape[1] > 1
            for attention in ("alpha", "effective")
            for measure in ("drop", "change")
        ]
        columns = ["value", "null_mean", "null_low", "null_high", "p", "p_subtasks", "null_draws", "n", "says"]
        return pd.DataFrame(rows, columns=["level", "attention", "measure", *columns])

    @property
    def disagreements(self) -> pd.DataFrame:
        """Subtasks whose strongest expert by A is not the one whose ablation costs them most.

        Columns: level, subtask, by_attention, by_ablation (experts), mass, drop (of the first), largest_drop.
        """
        rows = [
            {
                "level": of.level, "subtask": name, "by_attention": i, "by_ablation": j,
                "mass": float(of.effective[k, i]), "drop": float(of.drop[k, i]), "largest_drop": float(of.drop[k, j]),
            }
            for of in self.levels
            for k, name in enumerate(self.classes)
            if (i := int(of.effective[k].argmax())) != (j := int(of.drop[k].argmax()))
        ]  # fmt: skip
        columns = ["level", "subtask", "by_attention", "by_ablation", "mass", "drop", "largest_drop"]
        return pd.DataFrame(rows, columns=columns)

    def save(self, folder: str | Path) -> None:
        """Write ``faithfulness.parquet``, ``faithfulness_agreement.parquet`` and the tree into ``folder``."""
        folder = Path(folder)
        write_parquet(folder / _TABLE, self.to_frame().assign(null_draws=self.permutations, seed=self.seed))
        write_parquet(folder / "faithfulness_agreement.parquet", self.agreement)
        write_text(folder / _TREE, self.tree.to_json())

    @classmethod
    def load(cls, folder: str | Path) -> Faithfulness:
        """Read what :meth:`save` wrote, without loss. Raises KdxError if ``folder`` does not hold it."""
        try:
            frame = read_parquet(Path(folder) / _TABLE)
            tree = Tree.from_json((Path(folder) / _TREE).read_text(encoding="utf-8"))
        except OSError as error:
            raise KdxError(f"{str(folder)!r} holds no faithfulness record: {error}") from None
        first = frame.drop_duplicates("subtask_index")
        K = len(first)

        def level(rows: pd.DataFrame) -> LevelAblation:
            tables = {name: torch.tensor(rows[name].to_numpy()).view(K, -1) for name in _COLUMNS}
            return LevelAblation(int(rows["level"].iloc[0]), **tables)

        return cls(
            tuple(first["subtask"]), first["baseline"].iloc[0], tuple(level(f) for _, f in frame.groupby("level")),
            tree, tuple(first["n"].tolist()), int(first["null_draws"].iloc[0]), int(first["seed"].iloc[0]),
        )  # fmt: skip

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Drop against pathway mass of A, as (figure, axes): a panel a level, or the last level in ``ax``."""
        from kdx_analysis.plots.faithfulness import ablation

        return ablation(self, ax)

    def __str__(self) -> str:
        if self.agreement.empty:
            return "Every level has one expert, so attention has no choice that an ablation could confirm."
        lines = []
        table = self.agreement[(self.agreement["attention"] == "effective") & (self.agreement["measure"] == "drop")]
        apart = self.disagreements["level"].value_counts()
        for row in table.to_dict("records"):
            level = row["level"]
            found = "undefined, as one of the tables is flat"
            if row["says"] != "undefined":
                null = f"null {row['null_low']:.2f} to {row['null_high']:.2f}"
                found = f"ρ = {row['value']:.2f} ({null}, p = {row['p']:.3g}, n = {row['n']}), {row['says']}"
            lines.append(
                f"Level {level}: drop against pathway mass of A, {found}; for {apart.get(level, 0)} of "
                f"{len(self.classes)} subtasks the strongest expert is not the one whose ablation costs most."
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = self.agreement.style.hide(axis="index").format(precision=3, escape="html")
        said = "<br>".join(html.escape(line) for line in str(self).splitlines())
        return f"<p>{said}</p>{table.to_html()}"

    def _correlated(self, of: LevelAblation, attention: str, measure: str) -> dict[str, Any]:
        K, N = of.drop.shape
        generator = torch.Generator().manual_seed(self.seed)
        rows, columns = (torch.rand(self.permutations, n, generator=generator).argsort(dim=1) for n in (K, N))
        mass, table = getattr(of, attention), getattr(of, measure)
        value, null = rank_correlation(mass, table, rows, columns)
        _, subtasks = rank_correlation(mass, table, rows, torch.arange(N).expand(self.permutations, N))
        p, p_subtasks = (float((1 + (draws >= value - 1e-9).sum()) / (1 + len(draws))) for draws in (null, subtasks))
        spread = gates.quantiles(null)
        if math.isnan(value):
            p = p_subtasks = math.nan
            says = "undefined"
        elif p <= ALPHA:
            says = "agree"
        else:
            says = "opposed" if value < spread["null_low"] else "no relation found"
        return {
            "value": value, **spread, "p": p, "p_subtasks": p_subtasks, "null_draws": self.permutations, "n": K * N,
            "says": says,
        }  # fmt: skip


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
    """Ablate every expert above the trunk, one at a time, and set the margins' drops beside the pathways.

    Args:
        model: an explainer; left as it was found, computed on a copy in eval mode.
        images: normalised, B×C×H×W; a probe set, whose features are held at once.
        labels: classes of the images, B; each class at least once.
        classes: the subtasks' names; by default their numbers.
        baseline: ablated features are zero, or their mean over ``images``.
        permutations: draws of the null.
        seed: of them.

    Raises:
        KdxError: a model without experts, images of one class missing, a single image (effective attention needs
            features that vary), margins or features that are not finite.
    """
    working, images, labels, names = _prepared(model, images, labels, classes, baseline)
    with torch.no_grad():
        margins = finite(working(images))
        trace = working.trace(images)
    attention = _attention(trace)
    paths = {level: (a, e) for level, (a, e) in enumerate(zip(*map(gates.mean_pathways, attention), strict=True), 1)}
    tree = Tree.from_attention(gates.averaged(attention[1]), names)
    levels = []
    for level, N in enumerate(working.experts[1:], 2):
        features = trace.features[level - 1]
        stand_in = features.mean(dim=0, keepdim=True) if baseline == "mean" else torch.zeros_like(features[:1])

        without = _Ablated(working, images, level, stand_in)
        lost = (
            captum().FeatureAblation(without).attribute(margins.new_ones(1, N))
        )  # one forward pass an expert, all margins
        differences = lost.view(len(images), -1, N).double().cpu()
        if not differences.isfinite().all():
            raise KdxError(f"margins are not finite once an expert of level {level} is ablated; look at its weights")
        levels.append(LevelAblation(level, drop(differences, labels), change(differences), *paths[level]))
    counts = tuple(torch.bincount(labels, minlength=len(names)).tolist())
    return Faithfulness(names, baseline, tuple(levels), tree, counts, permutations, seed)


@dataclass(frozen=True, eq=False)
class _Ablated:
    """From the experts of a level that are present, 1×N ones and zeros, to the margins of all images, B×K."""

    model: HME
    images: Tensor
    level: int
    stand_in: Tensor

    def __call__(self, present: Tensor) -> Tensor:
        def switch(features: Tensor) -> Tensor:
            kept = present.bool().view(1, -1, *(1,) * (features.ndim - 2))
            return torch.where(kept, features, self.stand_in)

        with replaced(self.model, self.level, switch):
            return torch.cat([self.model(chunk) for chunk in self.images.split(AT_ONCE)])


@dataclass(frozen=True, eq=False)
class Explanation:
    """One class: its images, what each expert of its path looks at, and how much that expert matters.

    Attributes:
        name: of the class.
        subtask: its number.
        path: the expert of levels 2…L that A makes its strongest, each level given the one above it.
        attributions: integrated gradients of its margin through each of them, a few images of the class.
        conductance: mean over those images, per level N_l.
        ablation: of all experts, on all images.
    """

    name: str
    subtask: int
    path: tuple[int, ...]
    attributions: tuple[Attribution, ...]
    conductance: tuple[Tensor, ...]
    ablation: Faithfulness

    def to_frame(self) -> pd.DataFrame:
        """One row an expert: level, expert, on_path, alpha, effective, drop, change, conductance, n."""
        frame = self.ablation.to_frame()
        frame = frame[frame["subtask_index"] == self.subtask].reset_index(drop=True)
        on_path = [self.path[level - 2] == i for level, i in zip(frame["level"], frame["expert"], strict=True)]
        frame = frame.assign(on_path=on_path, conductance=torch.cat(self.conductance).numpy())
        columns = ["level", "expert", "on_path", "alpha", "effective", "drop", "change", "conductance", "n"]
        return frame[["subtask", *columns]]

    def plot(self) -> tuple[Figure, np.ndarray]:
        """Images, heat maps of the path's experts, and how much they matter, as (figure, axes)."""
        from kdx_analysis.plots.faithfulness import faithfulness

        return faithfulness(self)

    def _repr_html_(self) -> str:
        return as_html(self.plot()[0])


def explain(
    model: HME,
    images: Tensor,
    labels: Tensor,
    subtask: int,
    classes: Sequence[str] | None = None,
    *,
    shown: int = 4,
    image_baseline: float | Tensor = 0.0,
    baseline: Baseline = "zero",
) -> Explanation:
    """For one class: its path, what the path's experts look at, and how much each matters.

    Args:
        model, images, labels, classes, baseline: as for :func:`ablate`.
        subtask: number of the class.
        shown: how many of its images are attributed, the first ones.
        image_baseline: x₀ of :func:`kdx_analysis.probes.attribution.integrated_gradients`.

    Raises KdxError for a subtask or a number of images out of range, and as :func:`ablate` does.
    """
    ablation = ablate(model, images, labels, classes, baseline=baseline)
    if not 0 <= subtask < len(ablation.classes):
        raise KdxError(f"subtask = {subtask} should lie in 0 to {len(ablation.classes) - 1}")
    if shown < 1:
        raise KdxError(f"shown = {shown} images; give 1 or more")
    chosen = images[labels.to(images.device) == subtask][:shown]
    path = ablation.tree.path(subtask)
    levels = range(2, len(model.experts) + 1)
    return Explanation(
        ablation.classes[subtask], subtask, path[1:],
        tuple(
            integrated_gradients(model, chosen, subtask, through=(level, path[level - 1]), baseline=image_baseline)
            for level in levels
        ),
        tuple(
            conductance(model, chosen, subtask, level, baseline=image_baseline).values.mean(dim=0) for level in levels
        ),
        ablation,
    )  # fmt: skip


def _prepared(
    model: HME, images: Tensor, labels: Tensor, classes: Sequence[str] | None, baseline: str
) -> tuple[HME, Tensor, Tensor, tuple[str, ...]]:
    """A working copy, images as it takes them, labels on the CPU, names; KdxError for what can't be ablated."""
    if baseline not in get_args(Baseline):
        raise KdxError(f"baseline = {baseline!r} should be one of {', '.join(get_args(Baseline))}")
    experts_of(model)
    checked(model, images)
    names = tuple(str(k) for k in range(model.num_classes)) if classes is None else tuple(classes)
    if len(names) != model.num_classes:
        raise KdxError(f"{len(names)} classes are named, but the model has {model.num_classes} subtasks")
    labels = labels.detach().cpu()
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise KdxError(f"labels of shape {tuple(labels.shape)} and {labels.dtype} should be {len(images)} integers")
    missing = sorted(set(range(len(names))) - set(labels.tolist()))
    if missing:
        raise KdxError(
            f"no image is of {', '.join(repr(names[k]) for k in missing)}; a class's drop needs images of its own"
        )
    if not ((labels >= 0) & (labels < len(names))).all():
        raise KdxError(f"labels lie in {int(labels.min())} to {int(labels.max())}, wanted 0 to {len(names) - 1}")
    working = working_copy(model)
    assert isinstance(working, HME)
    return working, images.to(next(working.parameters())), labels.long(), names


def _attention(trace: Trace) -> tuple[list[Tensor], list[Tensor]]:
    """α^l and A^l for l = 2…L+1 in float64; KdxError where a gate's parents don't vary, so that A is undefined."""
    alphas = [alpha.double().cpu() for alpha in trace.attention]
    spreads = [gating.spread(features).double().cpu() for features in trace.features]
    return alphas, gates.defined(gates.effective(alphas, spreads), len(trace.margins))
