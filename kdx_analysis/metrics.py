"""What a metric is, and all of them: a row for each, declared on its formula.

    @metric(
        "opposed_most",
        title="most opposed pair",
        reads="cosines",
        unit="cosine",
        range=(-1, 1),
        describes="lowest cosine between the gradients of two subtasks",
    )
    def opposed_most(cosines):
        return cosines.flatten(-2).min(dim=-1).values

Whatever shows a metric (tables, figures, the answer, the methods, the documentation) reads its row.
The probe that holds what a formula reads evaluates it, on the value and on every draw of its null
alike, and writes the results into its records, where :mod:`kdx_analysis.runs.headlines` finds them
by what is declared here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import Registry, home, is_foreign

F = TypeVar("F", bound=Callable[..., Any])
Reduction = Literal["mean", "median"]


@dataclass(frozen=True)
class Input:
    """What formulas read, and where the values of metrics that read it are recorded.

    Attributes:
        arguments: what a formula is called with, by name, with shapes.
        kind: of the records that hold the values.
        rows: column → the value that it has in the rows a headline is taken from.
        level: of these rows: ``heads``, the ``last`` level of experts, or '' where there is no
            choice.
        probed: whether a headline is a mean over the probed epochs, rather than of the selected
            one.
        split: where it is recorded, if the records do not say.
        null: what the null is, in words; '' where there is none.
        null_column: of the records.
        counts: what the column n counts.
        pairs: the column that holds what formulas read of every pair of subtasks, '' where they do
            not read pairs.
        pair_kind: of the records that hold that column.
        pair_rows: as ``rows``, in these records.
        axes: of the first argument, behind those of draws.
        taken: names that the probe itself writes into the same rows.
        apart: whether its metrics have figures and tables of their own, so that those of all
            metrics leave them out.
    """

    arguments: Mapping[str, str]
    kind: str
    rows: Mapping[str, str] = field(default_factory=dict)
    level: Literal["heads", "last", ""] = ""
    probed: bool = False
    split: str = ""
    null: str = ""
    null_column: str = ""
    counts: str = ""
    pairs: str = ""
    pair_kind: str = ""
    pair_rows: Mapping[str, str] = field(default_factory=dict)
    axes: int = 2
    taken: tuple[str, ...] = ()
    apart: bool = False


_PERMUTED = "residuals permuted over samples"
_LOSSES = ("loss", "hard_loss")
_OUTPUTS = {"outputs": "logits or margins, B×K", "labels": "classes, int64, B"}
INPUTS: dict[str, Input] = {
    "outputs": Input(
        _OUTPUTS, "metrics", rows={"split": "test"}, counts="test images", taken=_LOSSES
    ),
    "outputs of both": Input(
        {**_OUTPUTS, "teacher_outputs": "the teacher's logits, B×K"},
        "metrics",
        rows={"split": "test"},
        counts="test images",
        taken=_LOSSES,
    ),
    "gates": Input(
        {"gates": "attention into a level or into the heads, draws×rows×N"},
        "gate_summary",
        rows={"of": "gates"},
        level="heads",
        split="train",
        null="the run's initial gates at the same τ",
        null_column="initial",
        counts="gates",
        taken=("entropy", "effective_experts"),
    ),
    "pathways": Input(
        {"pathways": "attention composed from the heads down to a level, draws×K×N"},
        "gate_summary",
        rows={"of": "pathways"},
        level="last",
        split="train",
        null="initial gates at the same τ",
        null_column="initial",
        counts="subtasks",
        taken=(
            "use_cv2",
            "dead_share",
            "routing_distance",
            "specialisation_shuffled",
            "class_specialisation",
            "class_specialisation_shuffled",
        ),
    ),
    "cosines": Input(
        {"cosines": "between the gradients of subtasks, draws×K×K; NaN where one is zero"},
        "conflict_summary",
        rows={"level": "all", "term": "hard"},
        probed=True,
        null=_PERMUTED,
        null_column="null_mean",
        counts="probe images",
        pairs="cosine",
        pair_kind="conflict",
        pair_rows={"level": "all", "term": "hard"},
        taken=("mean_cosine", "magnitude_similarity", "contention"),
    ),
    "grams and gates": Input(
        {
            "ungated": "⟨h^i_a, h^i_b⟩ inside every expert of the last level, draws×N×K×K",
            "gates": "into the heads, K×N",
        },
        "contention",
        rows={"term": "hard"},
        probed=True,
        null=_PERMUTED,
        null_column="null_mean",
        counts="probe images",
        axes=3,
        taken=("contention_uniform",),
    ),
    "affinities": Input(
        {"affinities": "Z of a step for a on the loss of b, draws×K×K; the diagonal is left out"},
        "affinity",
        probed=True,
        null="steps along residuals permuted over samples",
        null_column="null_mean",
        counts="probe images",
        pairs="value",
        pair_kind="affinity",
        pair_rows={"metric": "affinity"},
        taken=("affinity", "hurt_share"),
    ),
    "outputs beside the teacher's": Input(
        {
            "scores": "logits or margins, N×K",
            "labels": "classes, int64, N",
            "teacher_scores": "the teacher's, N×K; beside margins its one-vs-rest margins",
        },
        "fidelity",
        split="test",
        null_column="chance",
        counts="test images",
        apart=True,
    ),
    "outputs by themselves": Input(
        {"scores": "logits or margins, N×K", "labels": "classes, int64, N"},
        "fidelity",
        split="test",
        null_column="chance",
        counts="test images",
        apart=True,
    ),
    "likeness to every teacher": Input(
        {"changes": "c_j = L(o, t_j) − L(hard, t_j), the own teacher first, …×(J + 1)"},
        "fidelity",
        split="test",
        counts="test images",
        axes=1,
        apart=True,
    ),
}


@dataclass(frozen=True)
class Metric:
    """A headline metric.

    Attributes:
        name: its key in tables.
        title: its name in figures and sentences.
        formula: a pure function on what it ``reads``, one of INPUTS.
        unit: of its axis; '' where the range says it.
        range: the lowest and the highest value that it can have; infinite where there is none.
        describes: what one unit of it means.
        definition: its formula as it is printed.
        source: the paper that it is from, or '' for one of our own.
        conflict: whether it speaks of conflict between subtasks, on which the report's answer
            rests.
        asked: whether the report asks about it beside conflict.
        better: 'higher' or 'lower', where one of them is what a user wants.
        words: what it means that the metric is lower and that it is higher, of one that is never
            below 0 or is above it on both sides.
        below: the same where it is below 0 on both sides; '' for a metric that can't be below 0.
        across: what lies on either side of 0, for a change from one side to the other.
        over_pairs: how the pairs of subtasks make the figure, where it is one of pairs.
        of_pair: from what it reads of every pair, an array or a column, to what ``over_pairs``
            reduces.
        recorded: the name under which its values are recorded, by default its own.
    """

    name: str
    title: str
    formula: Callable[..., Any]
    reads: str
    unit: str = ""
    range: tuple[float, float] = (-torch.inf, torch.inf)
    describes: str = ""
    definition: str = ""
    source: str = ""
    conflict: bool = False
    asked: bool = False
    better: Literal["higher", "lower", ""] = ""
    words: tuple[str, str] = ("", "")
    below: tuple[str, str] = ("", "")
    across: str = ""
    over_pairs: Reduction | Literal[""] = ""
    of_pair: Callable[[Any], Any] | None = None
    recorded: str = ""

    def __post_init__(self) -> None:
        if self.reads not in INPUTS:
            raise KdxError(
                f"metric {self.name!r} reads {self.reads!r}; a metric reads one of "
                f"{', '.join(INPUTS)}"
            )
        if not self.recorded:
            object.__setattr__(self, "recorded", self.name)
        if self.recorded in self.input.taken:
            raise KdxError(
                f"metric {self.name!r} would be recorded as {self.recorded!r}, where records of "
                f"{self.input.kind!r} hold another figure; choose another name"
            )

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        """The formula's value, of those ``options`` that it takes."""
        takes = inspect.signature(self.formula).parameters
        return self.formula(
            *inputs, **{key: value for key, value in options.items() if key in takes}
        )

    @property
    def home(self) -> str:
        """The formula's place, as ``module.function``."""
        return home(self.formula)

    @property
    def input(self) -> Input:
        """What it reads, and where its values are recorded."""
        return INPUTS[self.reads]

    @property
    def has_null(self) -> bool:
        """Whether there is a null to set it beside; figures of the test split have none."""
        return bool(self.input.null_column)

    @property
    def pairs_make(self) -> Reduction:
        """How pairs of subtasks are reduced where a table has them apart."""
        return self.over_pairs or "mean"

    @property
    def signed(self) -> bool:
        """Whether 0 has a meaning that separates two kinds of values."""
        return bool(self.across)

    @property
    def meant(self) -> str:
        """What one unit of it means, over which epochs it is taken, and its null."""
        meant = self.describes
        if self.input.probed:
            meant += ", mean over the probed epochs"
        elif self.input.null_column:
            meant += " at the selected epoch"
        return f"{meant}; null: {self.input.null}" if self.input.null else meant

    def meaning(self, before: float, after: float) -> str:
        """What a change means, in words; '' for a metric without words.

        Args:
            before, after: the levels that it goes from and to, whose signs count where the metric
                has one.

        >>> METRICS["modulation"].meaning(0.1, 0.3)
        'it matters more which subtask goes where'
        >>> METRICS["modulation"].meaning(-0.1, -0.4)
        'gates put conflicting subtasks together, further beyond what a random assignment would do'
        """
        if self.signed and min(before, after) < 0 <= max(before, after):
            return self.across
        return (self.below if self.signed and max(before, after) < 0 else self.words)[
            after > before
        ]


METRICS: Registry[Metric] = Registry(
    "metric",
    rooms=(
        "kdx_analysis.training.scores",
        "kdx_analysis.probes.gates.formulas",
        "kdx_analysis.probes.conflict.formulas",
        "kdx_analysis.probes.affinity",
        "kdx_analysis.probes.fidelity.likeness",
        "kdx_analysis.probes.fidelity.calibration",
        "kdx_analysis.probes.fidelity.whose",
        "kdx_analysis.probes",
    ),
)


def metric(name: str, *, reads: str, **declared: Any) -> Callable[[F], F]:
    """Declare a metric on its formula, a pure function of what it ``reads``.

    The formula takes the arguments of :data:`INPUTS` and gives one value for each of the leading
    axes, ``draws``, so that a value and its null are computed alike. ``name`` and what else is
    ``declared`` are attributes of :class:`Metric`.
    """

    def declare(formula: F) -> F:
        declared_here = Metric(name=name, formula=formula, reads=reads, **declared)
        if is_foreign(declared_here):
            _check_recorded(declared_here)
        METRICS.register(name)(declared_here)
        return formula

    return declare


def _check_recorded(metric: Metric) -> None:
    """Raise KdxError for a metric whose rows could not be told from those of another one."""
    for other in METRICS.values():
        rows = metric.input.kind, metric.input.rows, metric.recorded
        there = other.input.kind, other.input.rows, other.recorded
        if rows == there and other.name != metric.name:
            raise KdxError(
                f"metric {metric.name!r} would be recorded as {metric.recorded!r}, as metric "
                f"{other.name!r} is; give it another name in recorded="
            )


def together() -> tuple[Metric, ...]:
    """The metrics that figures and tables of all metrics show; others have some of their own."""
    return tuple(each for each in METRICS.values() if not each.input.apart)


def speaking_of_conflict() -> tuple[str, ...]:
    """The names of the metrics that speak of conflict between subtasks."""
    return tuple(name for name, each in METRICS.items() if each.conflict)


def asked_about() -> tuple[str, ...]:
    """The names of the metrics that a report asks about: those of conflict, then others."""
    others = tuple(name for name, each in METRICS.items() if each.asked and not each.conflict)
    return (*speaking_of_conflict(), *others)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What a formula gives: the value of every draw and its p-value.

    The latter is None of a formula that tests nothing.
    """

    value: Tensor
    p: Tensor | None


def evaluated(reads: str, *inputs: Tensor, **options: Any) -> dict[str, Evaluated]:
    """Every metric that reads something, by the name under which it is recorded.

    Args:
        reads: one of INPUTS.
        inputs: its arguments, draws in front.
        options: further arguments, for formulas that take them.

    Raises:
        KdxError: a formula that does not give floating-point numbers, or values and their p-values,
            one for each draw.
    """
    values = {}
    draws = inputs[0].shape[: -INPUTS[reads].axes]
    for each in METRICS.values():
        if each.reads != reads:
            continue
        try:
            result = each(*inputs, **options)
        except Exception as error:
            error.add_note(f"in the formula of metric {each.name!r}, {each.home}")
            raise
        values[each.recorded] = _checked(each, result, draws)
    return values


def _checked(metric: Metric, result: Any, draws: torch.Size) -> Evaluated:
    value, p = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    for given in (value,) if p is None else (value, p):
        if not _is_of(given, draws):
            shown = type(given).__name__
            if isinstance(given, Tensor):
                shown = f"{given.dtype} of shape {tuple(given.shape)}"
            raise KdxError(
                f"metric {metric.name!r} ({metric.home}) gives {shown}; its formula should give a "
                "tensor of floating-point numbers, one for each of the leading axes, here of shape "
                f"{tuple(draws)}"
            )
    return Evaluated(value, p)


def _is_of(given: Any, draws: torch.Size) -> bool:
    return isinstance(given, Tensor) and given.is_floating_point() and given.shape == draws
