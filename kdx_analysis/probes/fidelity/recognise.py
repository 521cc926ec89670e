"""What a table of scores is: logits, probabilities, their logarithms, percentages, or margins.

Axes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity.files import Table

Form = Literal["logits", "probabilities", "log_probabilities", "margins"]
FORMS: tuple[str, ...] = get_args(Form)

# 32 MB of float64 a chunk
_VALUES_AT_ONCE = 4_000_000
# Probabilities rounded to two decimals over a hundred classes have sums that are off by about this
# much; logits that lie in [0, 1] have no such sums in every row.
_SUM = 0.05
# Logarithms in bfloat16, the coarsest precision, are off by up to 2⁻⁸ of their size.
_LOG_SUM = 0.05
# Rounding shows in a few hundred rows as well as in all.
_SAMPLE = 300
# Of a thousand float32 logits two are equal by chance in a few rows of a hundred.
_TIED = 0.05
_MOST_DECIMALS = 4


@dataclass(frozen=True)
class Remark:
    """Something about one table that doesn't keep it from being read.

    Attributes:
        text: the sentence's end, with ``{rows}`` where rows are counted.
        rows: how many rows it holds for.
    """

    text: str
    rows: int | None = None


@dataclass(frozen=True)
class Scores:
    """One table of scores, recognised.

    Attributes:
        where: what it is called in notes and errors.
        form: what its values are.
        answers: the highest class, the first of those that tie; int64, N.
        remarks: on rounding, clipping and precision.
        scale: what values are divided by, 100 for percentages.
    """

    where: str
    form: Form
    answers: Tensor
    remarks: tuple[Remark, ...]
    raw: Tensor = field(repr=False)
    scale: float = 1.0

    @property
    def num_images(self) -> int:
        """N."""
        return self.raw.shape[0]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.raw.shape[1]

    def tensor(self) -> Tensor:
        """Logits, log-probabilities or margins, N×K; −inf is the logarithm of 0.

        A floating-point table of logits is handed on as it lies, mapped from its file if it is so;
        of probabilities the logarithm is made anew each time, so that not all students' stand in
        memory at once.
        """
        if self.form != "probabilities":
            return self.raw if self.raw.is_floating_point() else self.raw.double()
        # Half a precision would lose digits of the logarithm; a double is kept.
        wide = self.raw if self.raw.dtype == torch.float64 else self.raw.float()
        return wide.log() if self.scale == 1.0 else wide.div(self.scale).log_()

    def same_values(self, other: Scores) -> bool:
        """Whether the other table holds the same values, whatever their type."""
        if self.raw.shape != other.raw.shape or not torch.equal(self.answers, other.answers):
            return False
        for rows in _chunks(self.raw):
            if not torch.equal(self.raw[rows].double(), other.raw[rows].double()):
                return False
        return True


@dataclass
class _Range:
    """What is seen of all rows.

    Sums are of values without a sign, and those of exponentials of values up to 0; else nothing.
    """

    low: float = np.inf
    high: float = -np.inf
    sums: tuple[float, float] = (np.inf, -np.inf)
    log_sums: tuple[float, float] = (np.inf, -np.inf)
    zeros: int = 0
    minus_infinite: int = 0


def recognised(table: Table, declared: Form | None = None) -> Scores:
    """A table as scores: taken as ``declared``, or as what its values say.

    Probabilities lie in [0, 1] and their rows sum to 1, percentages to 100; of log-probabilities
    the exponentials do. All other values are logits. Margins are never guessed.

    Raises KdxError for values that aren't finite, classes chosen rather than scored, and values
    that are not what they are declared to be.
    """
    raw, where = table.values, table.where
    if not raw.shape[0]:
        raise KdxError(f"{where} has no rows: give images × classes")
    seen, answers = _seen(raw, where)
    _refuse_hard(raw, where)
    form, scale = _form(seen, where) if declared is None else (declared, 1.0)
    if declared is not None:
        scale = _check_declared(seen, where, declared)
    return Scores(where, form, answers, _remarks(raw, seen, form, scale), raw, scale)


def _chunks(raw: Tensor) -> Iterator[slice]:
    step = max(1, _VALUES_AT_ONCE // raw.shape[1])
    for start in range(0, raw.shape[0], step):
        yield slice(start, start + step)


def _seen(raw: Tensor, where: str) -> tuple[_Range, Tensor]:
    """What is seen of all rows, and the answers; refuses what isn't finite."""
    seen, answers, undefined = _Range(), [], []
    for chunk in _chunks(raw):
        values = raw[chunk].double()
        top, place = values.max(dim=1)
        # The maximum of a row with NaN is NaN.
        wrong = ~(top < np.inf)
        if wrong.any():
            undefined.append(wrong.nonzero()[:, 0] + chunk.start)
            continue
        low = values.amin(dim=1)
        answers.append(place)
        seen.low, seen.high = min(seen.low, float(low.min())), max(seen.high, float(top.max()))
        seen.zeros += int((low == 0).sum())
        seen.minus_infinite += int((low == -np.inf).sum())
        if seen.low >= 0:
            seen.sums = _widened(seen.sums, values.sum(dim=1))
        if seen.high <= _LOG_SUM:
            seen.log_sums = _widened(seen.log_sums, values.exp().sum(dim=1).log())
    if undefined:
        _refuse_undefined(raw, torch.cat(undefined), where)
    return seen, torch.cat(answers)


def _refuse_undefined(raw: Tensor, rows: Tensor, where: str) -> None:
    first = int(rows[0])
    value = next(value for value in raw[first].tolist() if not value < np.inf)
    raise KdxError(
        f"{where} holds values that are not finite in {len(rows)} of {len(raw)} rows, the first "
        f"{value} in row {first}: look at how they were computed, or leave these images out of all "
        "tables"
    )


def _widened(ends: tuple[float, float], values: Tensor) -> tuple[float, float]:
    return min(ends[0], float(values.min())), max(ends[1], float(values.max()))


def _refuse_hard(raw: Tensor, where: str) -> None:
    """Refuse answers: every row holds one class that is chosen, and nothing of the others."""
    if _only_answers(_sample(raw)) and all(_only_answers(raw[rows]) for rows in _chunks(raw)):
        raise KdxError(
            f"{where} holds the class that is chosen and says nothing of the others, so it holds "
            "no scores: save the network's logits or probabilities in place of its answers"
        )


def _only_answers(rows: Tensor) -> bool:
    """Whether in each row all classes but one have the lowest value; of two classes 0 and 1."""
    values = rows.double()
    if values.shape[1] == 2 and not bool(((values == 0) | (values == 1)).all()):
        return False
    lowest = values == values.amin(dim=1, keepdim=True)
    return bool((lowest.sum(dim=1) == values.shape[1] - 1).all())


def _sample(raw: Tensor) -> Tensor:
    """Rows throughout the table."""
    return raw[:: -(-len(raw) // _SAMPLE)]


def _form(seen: _Range, where: str) -> tuple[Form, float]:
    if seen.low >= 0 and seen.high <= 1 + _SUM and _near(seen.sums, 1, _SUM):
        return "probabilities", 1.0
    if seen.low >= 0 and seen.high <= 100 * (1 + _SUM) and _near(seen.sums, 100, 100 * _SUM):
        return "probabilities", 100.0
    if seen.high <= _LOG_SUM and _near(seen.log_sums, 0, _LOG_SUM):
        return "log_probabilities", 1.0
    if seen.low >= 0 and seen.high <= 1:
        raise KdxError(
            f"all values of {where} lie in [0, 1], but its rows sum to {seen.sums[0]:.3g} to "
            f"{seen.sums[1]:.3g} and not to 1: if they are sigmoids, give log(p / (1 − p)) and "
            "say scores: margins; if they are logits, say scores: logits"
        )
    return "logits", 1.0


def _near(ends: tuple[float, float], value: float, tolerance: float) -> bool:
    return value - tolerance <= ends[0] and ends[1] <= value + tolerance


def _check_declared(seen: _Range, where: str, declared: Form) -> float:
    """What values are to be divided by."""
    if declared == "probabilities":
        if seen.low < 0 or seen.high > 100 * (1 + _SUM):
            raise KdxError(
                f"{where} is declared to hold probabilities, but its values run from "
                f"{seen.low:.4g} to {seen.high:.4g}: leave scores out, or say scores: logits"
            )
        # Rows that sum to far more than K could are percentages.
        return 100.0 if _near(seen.sums, 100, 100 * _SUM) else 1.0
    if declared == "log_probabilities" and seen.high > _LOG_SUM:
        raise KdxError(
            f"{where} is declared to hold log-probabilities, but its highest value is "
            f"{seen.high:.4g}, above 0: leave scores out, or say scores: logits"
        )
    if declared == "margins" and seen.low >= 0 and seen.high <= 1:
        raise KdxError(
            f"{where} is declared to hold margins, but all its values lie in [0, 1] as sigmoids "
            "do: give log(p / (1 − p))"
        )
    return 1.0


def _remarks(raw: Tensor, seen: _Range, form: Form, scale: float) -> tuple[Remark, ...]:
    remarks = []
    if raw.dtype in (torch.float16, torch.bfloat16):
        name = str(raw.dtype).removeprefix("torch.")
        remarks.append(Remark(f"stored as {name}, with about three digits, so that classes tie"))
    if scale == 100.0:
        remarks.append(Remark("percentages; they were divided by 100"))
    if form == "probabilities" and seen.zeros:
        remarks.append(
            Remark(
                "a probability of 0 in {rows} rows, whose logarithm is no number; dark, class part "
                "and instance leave these images out",
                seen.zeros,
            )
        )
    if form != "probabilities" and seen.minus_infinite:
        remarks.append(
            Remark(
                "−inf in {rows} rows; dark, class part and instance leave these images out",
                seen.minus_infinite,
            )
        )
    return (*remarks, *_rounding(raw, seen))


def _rounding(raw: Tensor, seen: _Range) -> list[Remark]:
    """Decimals that values were cut to, an end that they were clipped at, and rows with ties."""
    sample = _sample(raw)
    remarks = []
    decimals = _decimals(sample)
    if decimals is not None:
        remarks.append(Remark(f"values rounded to {decimals} decimals"))
    for end, name in ((seen.low, "below"), (seen.high, "above")):
        if np.isfinite(end) and end != 0 and _often(sample, end) > _TIED:
            rows = sum(int(((raw[chunk] == end).sum(dim=1) > 1).sum()) for chunk in _chunks(raw))
            remarks.append(
                Remark(
                    f"values clipped {name} at {end:.3g}, several classes in {{rows}} rows", rows
                )
            )
    if raw.shape[1] > 2 and float(_tied(sample).double().mean()) > _TIED:
        rows = sum(int(_tied(raw[chunk]).sum()) for chunk in _chunks(raw))
        remarks.append(Remark("two classes with exactly the same score in {rows} rows", rows))
    return remarks


def _decimals(sample: Tensor) -> int | None:
    """The fewest decimals that all values have, if those are few."""
    values = sample[sample.isfinite()] if sample.is_floating_point() else sample
    if not values.is_floating_point():
        return 0
    for decimals in range(_MOST_DECIMALS + 1):
        # Compared in the type that they are stored in: no binary fraction is a decimal one.
        if torch.equal(torch.round(values.double(), decimals=decimals).to(values.dtype), values):
            return decimals
    return None


def _often(sample: Tensor, end: float) -> float:
    """The share of rows in which more than one class has the value ``end``."""
    return float(((sample.double() == end).sum(dim=1) > 1).double().mean())


def _tied(rows: Tensor) -> Tensor:
    """Which rows hold a value twice."""
    ordered = rows.sort(dim=1).values
    return (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
