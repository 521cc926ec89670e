"""A student made into trunk and levels of experts within its budget, and the table of both."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal, get_args

import pandas as pd
import torch
from torch import fx, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.redraw import draw_anew, moments
from kdx_analysis.models.resolve import count_parameters
from kdx_analysis.models.splitting.experts import Level
from kdx_analysis.models.splitting.layers import Widths
from kdx_analysis.models.splitting.narrow import Narrow, flops, narrow, units
from kdx_analysis.models.splitting.stages import Stages, find_stages
from kdx_analysis.models.splitting.tracing import on_meta

Budget = Literal["params", "flops", "width"]

# Rounding to whole channels may send the search for a share in circles: it ends after these.
_STEPS = 8
# Well within the tenth that a budget is kept to, so that whole channels can reach it.
_CLOSE = 0.02
_KEPT_TO = 0.1
# Steps of a level's own share that let its widths fall to the next multiple below or above.
_APART = (0.75, 1.0, 1.33)


@dataclass(frozen=True)
class Part:
    """A row of the table: the trunk, a level, or the classifier beside the heads.

    Attributes:
        name: trunk, level 2, …, heads.
        modules: of the student, by path.
        experts: N_l; K for the heads.
        shape: of one expert's features, C×H×W or, of tokens, T×D; empty for the heads.
        student, explainer: parameters of the student's part and of the explainer's.
        student_flops, explainer_flops: the same in floating-point operations for one image, 2 per
            multiply-add.
    """

    name: str
    modules: str
    experts: int
    shape: tuple[int, ...]
    student: int
    explainer: int
    student_flops: int
    explainer_flops: int


@dataclass(frozen=True)
class StudentSplit:
    """How a student was split, before any training; shows itself as a table.

    Attributes:
        student: its class.
        image_shape: C×H×W that shapes and operations are for.
        budget: what the levels together were matched to, of the stages that they stand for.
        shares: by level, the share of the student's widths that an expert has.
        parts: trunk, levels, heads.
    """

    student: str
    image_shape: tuple[int, ...]
    budget: Budget
    shares: tuple[float, ...]
    parts: tuple[Part, ...]

    @property
    def budget_error(self) -> float:
        """(levels − stages)/stages of the budgeted quantity; 0 is a match.

        Where widths are budgeted it is that of parameters.
        """
        levels = [part for part in self.parts if part.name.startswith("level")]
        if self.budget == "flops":
            return sum(p.explainer_flops for p in levels) / sum(p.student_flops for p in levels) - 1
        return sum(p.explainer for p in levels) / sum(p.student for p in levels) - 1

    def to_frame(self) -> pd.DataFrame:
        """One row a part: modules, experts, shape, and parameters and FLOPs of both models."""
        return pd.DataFrame(
            [
                {
                    "part": p.name,
                    "modules": p.modules,
                    "experts": p.experts,
                    "expert's features": "×".join(map(str, p.shape)),
                    "student's parameters": p.student,
                    "explainer's parameters": p.explainer,
                    "student's FLOPs": p.student_flops,
                    "explainer's FLOPs": p.explainer_flops,
                }
                for p in self.parts
            ]
        )

    @property
    def caption(self) -> str:
        """The student, its images and the budget's error in a sentence."""
        kept = {"params": "parameters", "flops": "FLOPs", "width": "width; parameters"}[self.budget]
        size = "×".join(map(str, self.image_shape))
        return (
            f"{self.student} for images of {size}, split within its {kept}: the levels have "
            f"{self.budget_error:+.1%} of the stages that they stand for"
        )

    def __str__(self) -> str:
        return f"{self.caption}\n{self.to_frame().to_string(index=False)}"

    def _repr_html_(self) -> str:
        table = self.to_frame().style.hide(axis="index").format(thousands=" ", escape="html")
        return str(table.set_caption(self.caption.replace("<", "&lt;")).to_html())


def split_student(
    student: nn.Module,
    experts: int | Sequence[int],
    *,
    budget: Budget = "params",
    stages: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    multiple: int = 8,
) -> tuple[nn.Module, list[Level], Stages, StudentSplit]:
    """Trunk and levels with fresh weights, the student's stages, and the table without its heads.

    All stages are narrowed alike, to the share of their widths at which the levels together meet
    the budget of the stages that they stand for; ``width`` gives each of N experts an N-th of the
    channels. Widths are rounded to a ``multiple`` where levels then stay within a tenth of the
    budget. Raises KdxError for a student that can't be split, and if ``experts`` does not fit its
    levels.
    """
    if multiple < 1:
        raise KdxError(f"multiple = {multiple} should be 1 or more")
    if budget not in get_args(Budget):
        raise KdxError(f"budget = {budget!r} should be one of {', '.join(get_args(Budget))}")
    parts = find_stages(student, stages, image_shape)
    counts = [experts] * len(parts.body) if isinstance(experts, int) else list(experts)
    if len(counts) != len(parts.body) or min(counts, default=0) < 1:
        raise KdxError(
            f"experts = {experts!r} should be a number or {len(parts.body)} numbers above 0, one "
            f"for each level; the levels found are {', '.join(parts.names[1:])}"
        )
    narrowing, shares = _matched(parts, counts, budget, multiple)
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    trunk = copy.deepcopy(parts.trunk).requires_grad_(True).train()
    if device.type != "meta":
        draw_anew(trunk)
    templates = [
        narrow.assembled(stage)
        for narrow, stage in zip(narrowing.experts(shares), parts.body, strict=True)
    ]
    levels = [
        Level(template, n, _scales(stage), device, shared=i == 0)
        for i, (template, n, stage) in enumerate(zip(templates, counts, parts.body, strict=True))
    ]
    return trunk, levels, parts, narrowing.table(type(student).__name__, budget, shares)


def _matched(
    parts: Stages, counts: Sequence[int], budget: Budget, multiple: int
) -> tuple[_Narrowing, list[float]]:
    """The narrowing whose widths are multiples, or any where those miss the budget, and shares."""
    narrowing = _Narrowing(parts, counts)
    if budget == "width":
        return narrowing, [1 / n for n in counts]
    shares = narrowing.matched(budget)
    if multiple > 1:
        rounded = _Narrowing(parts, counts, multiple)
        nearby = product(_APART, repeat=len(counts))
        tried = [list(map(operator.mul, shares, steps)) for steps in nearby]
        near = min(tried, key=lambda shares: abs(rounded.excess(shares, budget)))
        if abs(rounded.excess(near, budget)) <= _KEPT_TO:
            return rounded, near
    return narrowing, shares


def _scales(stage: nn.Module) -> dict[str, tuple[float, float]]:
    return {name: moments(p) for name, p in stage.named_parameters() if p.device.type != "meta"}


class _Narrowing:
    """Experts of every level at given shares of the student's widths, and what they cost."""

    def __init__(self, student: Stages, counts: Sequence[int], multiple: int = 1) -> None:
        self.student, self.counts, self.multiple = student, counts, multiple
        self.on_meta = [on_meta(stage) for stage in student.body]
        self.units = units(self.on_meta)
        last = student.shapes[-1]
        # The width of tokens stays, since the residual stream of all blocks has to fit together.
        self.kept = frozenset(last[1:]) if len(last) == 2 else frozenset()

    def experts(self, shares: Sequence[float]) -> list[Narrow]:
        """One expert a level."""
        made: list[Narrow] = []
        shape = self.student.shapes[1]
        for stage, share in zip(self.on_meta, shares, strict=True):
            widths = Widths(share, self.kept, self.units, multiple=self.multiple)
            made.append(narrow(stage, shape, widths))
            shape = made[-1].shape
        return made

    def matched(self, budget: Budget) -> list[float]:
        """The shares at which the levels together come nearest to the stages.

        They are one for all levels, then each for itself.
        """
        return _nearest(partial(self.excess, budget=budget), self.counts)

    def excess(self, shares: Sequence[float], budget: Budget) -> float:
        """(levels − stages)/stages of the budgeted quantity at these shares."""
        wanted = sum(
            flops(stage, shape) if budget == "flops" else count_parameters(stage)
            for stage, shape in self._stages
        )
        experts = zip(self.counts, self.experts(shares), strict=True)
        cost = sum(n * (e.flops() if budget == "flops" else e.parameters) for n, e in experts)
        return cost / wanted - 1

    @property
    def _stages(self) -> list[tuple[fx.GraphModule, tuple[int, ...]]]:
        """The student's stages with the shapes that they read."""
        return list(zip(self.on_meta, self.student.shapes[1:], strict=False))

    def table(self, student: str, budget: Budget, shares: Sequence[float]) -> StudentSplit:
        """Trunk and levels as rows."""
        shapes, names = self.student.shapes, self.student.names
        size, operations = (
            count_parameters(self.student.trunk),
            flops(self.student.trunk, shapes[0]),
        )
        parts = [Part("trunk", names[0], 1, shapes[1], size, size, operations, operations)]
        rows = zip(self._stages, self.experts(shares), self.counts, names[1:], strict=True)
        for level, ((stage, reads), expert, n, name) in enumerate(rows, 2):
            costs = (
                count_parameters(stage),
                n * expert.parameters,
                flops(stage, reads),
                n * expert.flops(),
            )
            parts.append(Part(f"level {level}", name, n, expert.shape, *costs))
        return StudentSplit(student, shapes[0], budget, tuple(shares), tuple(parts))


def _nearest(excess: Callable[[Sequence[float]], float], experts: Sequence[int]) -> list[float]:
    """Shares at which levels cost nearest to what they may: one for all, then each for itself.

    There ``excess`` is 0.
    """
    # N experts of this share of a stage's widths have about its parameters, to begin with.
    shares = [(sum(experts) / len(experts)) ** -0.5] * len(experts)
    tried: dict[float, float] = {}
    while shares[0] not in tried and len(tried) < _STEPS:
        tried[shares[0]] = excess(shares)
        if abs(tried[shares[0]]) <= _CLOSE:
            return shares
        # Costs grow with the square of widths.
        shares = [shares[0] / (1 + tried[shares[0]]) ** 0.5] * len(shares)
    share = min(tried, key=lambda s: abs(tried[s]))
    shares, best = [share] * len(shares), abs(tried[share])
    for level in range(len(shares)):
        for factor in (0.8, 0.9, 0.95, 1.05, 1.1, 1.2):
            if best <= _CLOSE:
                return shares
            changed = [*shares[:level], shares[level] * factor, *shares[level + 1 :]]
            if (other := abs(excess(changed))) < best:
                shares, best = changed, other
    return shares


def with_heads(
    split: StudentSplit, stages: Stages, heads: nn.Module, num_classes: int
) -> StudentSplit:
    """``split`` with a row for the student's classifier beside the heads."""
    classifier = flops(stages.whole, split.image_shape) - sum(
        part.student_flops for part in split.parts
    )
    size = count_parameters(heads)
    row = Part(
        "heads",
        "classifier",
        num_classes,
        (),
        stages.classifier,
        size,
        classifier,
        2 * sum(p.numel() for p in heads.parameters() if p.ndim > 1),
    )
    return replace(split, parts=(*split.parts, row))
