"""What a null says: the range of a fresh draw of it, and the p-value of a value beside it.

Every null of the package is drawn where its own model or table is known, and read here, in float64.
Axes: R draws in front, the axes of the value behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

Side = Literal["greater", "less"]

LEAST_DRAWS = 39
NO_RANGE = f"no range below {LEAST_DRAWS} draws"
COLUMNS = ("null_mean", "null_low", "null_high", "null_undefined")

# A draw that equals the value may differ from it by rounding, as both are sums in another order. Of
# n float64 terms that is n·2⁻⁵³ of their size at most, 5e-13 for the 4,950 pairs of 100 classes,
# far below what two values differ by.
TOLERANCE = 1e-12

_ENDS = (0.025, 0.975)


def beside(draws: ArrayLike | Tensor) -> dict[str, np.ndarray]:
    """A null's mean, the range that holds a fresh draw with 95 %, and draws left out.

    The ends are the order statistics at .025 (R + 1) and .975 (R + 1), between two draws by linear
    interpolation (Weibull's plotting positions; type 6 of Hyndman & Fan, Sample quantiles in
    statistical packages, 1996): R draws and a fresh one can stand in any order, so one in R + 1
    falls into each gap. A sample's quantiles would miss 13.6 % of 19 draws, 8.7 % of 49 and 6.8 %
    of 99. The range is closed, so ties only make it hold more. Draws that are NaN are left out and
    counted; where fewer than 39 are left, at which the range would reach beyond the lowest and the
    highest, low and high are NaN.

    >>> {name: value.item() for name, value in beside(range(1, 40)).items()}
    {'null_mean': 20.0, 'null_low': 1.0, 'null_high': 39.0, 'null_undefined': 0}
    >>> beside(range(1, 39))["null_low"].item()
    nan

    Args:
        draws: R×…, NaN where a draw is undefined; none at all is allowed.

    Returns:
        null_mean (NaN where no draw is defined), null_low, null_high and null_undefined, each of
        the shape ….
    """
    ordered = np.sort(_array(draws), axis=0)  # NaN come last
    undefined = np.isnan(ordered).sum(axis=0)
    count = len(ordered) - undefined
    with np.errstate(invalid="ignore", divide="ignore"):  # the mean of no draw is NaN
        mean = np.where(np.isnan(ordered), 0, ordered).sum(axis=0) / count
    low, high = (_order_statistic(ordered, count, end) for end in _ENDS)
    return dict(zip(COLUMNS, (mean, low, high, undefined), strict=True))


def beside_one(draws: ArrayLike | Tensor) -> dict[str, float]:
    """:func:`beside` of a single value's draws, R, as plain numbers."""
    return {name: value.item() for name, value in beside(draws).items()}


def with_value(values: ArrayLike | Tensor) -> dict[str, float]:
    """A value, the first of ``values``, and what stands beside it: the others are its null's draws.

    >>> with_value([7, 1, 3])["value"], with_value([7, 1, 3])["null_mean"]
    (7.0, 2.0)
    """
    ordered = _array(values)
    return {"value": ordered[0].item(), **beside_one(ordered[1:])}


def as_extreme(value: ArrayLike | Tensor, draws: ArrayLike | Tensor, side: Side) -> np.ndarray:
    """Which draws, R×…, are at least as extreme as the value, ….

    That is, not below it (``greater``) or not above it (``less``). A draw that differs from the
    value by rounding alone counts, and so does one that is NaN: nothing says that it is less
    extreme.
    """
    value, draws = _array(value), _array(draws)
    sign = 1 if side == "greater" else -1
    return ~(sign * draws < sign * value - TOLERANCE * _scale(value, draws))


def p_value(value: ArrayLike | Tensor, draws: ArrayLike | Tensor, side: Side) -> np.ndarray:
    """p = (1 + #{draws at least as extreme as the value})/(1 + R), in (0, 1].

    It is NaN where the value is. Where the value is one more draw of the null, p ≤ q with a chance
    of at most q, and of exactly q where q (1 + R) is whole and no draws tie (Phipson & Smyth 2010,
    Permutation P-values should never be zero).

    >>> p_value(3, [1, 2, 3, 4], "greater").item(), p_value(0, [1, 2, 3, 4], "less").item()
    (0.6, 0.2)

    Args:
        value: …, a number or an array.
        draws: R×…; those that are NaN count as extreme.
        side: ``greater`` where large values speak against the null, ``less`` where small ones do.

    Returns:
        Of the shape ….
    """
    extreme = as_extreme(value, draws, side)
    return np.where(np.isnan(_array(value)), np.nan, (1 + extreme.sum(axis=0)) / (1 + len(extreme)))


def shown(low: float, high: float, number: Callable[[float], str] = "{:.2f}".format) -> str:
    """A range in words, "null 0.10 to 0.50", or that there is none.

    >>> shown(0.1, 0.5)
    'null 0.10 to 0.50'
    >>> shown(float("nan"), float("nan"))
    'no range below 39 draws'
    """
    return NO_RANGE if np.isnan(low) or np.isnan(high) else f"null {number(low)} to {number(high)}"


def legend(lows: ArrayLike) -> str:
    """What grey bars show, given the lower ends of all ranges that are drawn.

    An end is NaN where there is no range.

    >>> legend([0.1, 0.2]), legend([float("nan")])
    ('grey: 95 % of its null', 'no null has a range (from 39 draws)')
    """
    missing = np.isnan(np.asarray(lows, dtype=float))
    if not missing.any():
        return "grey: 95 % of its null"
    if missing.all():
        return f"no null has a range (from {LEAST_DRAWS} draws)"
    return f"grey: 95 % of its null, where it has a range (from {LEAST_DRAWS} draws)"


def _order_statistic(ordered: np.ndarray, count: np.ndarray, end: float) -> np.ndarray:
    """The one at ``end`` (count + 1) of the first ``count`` draws of each column.

    It is NaN where they are too few for a range.
    """
    place = np.where(count < LEAST_DRAWS, 1, end * (count + 1)) - 1
    before = np.floor(place).astype(int)
    lower, upper = (_at(ordered, np.minimum(i, count - 1)) for i in (before, before + 1))
    with np.errstate(invalid="ignore"):  # of two infinite draws
        between = lower + (place - before) * (upper - lower)
    # Exact at a draw, where rounding of an interpolation could leave ties out.
    at_draw = (lower == upper) | (place == before) | np.isinf(lower)
    return np.where(count < LEAST_DRAWS, np.nan, np.where(at_draw, lower, between))


def _at(ordered: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of each column the entry in its row; NaN where there are no rows."""
    if not len(ordered):
        return np.full(ordered.shape[1:], np.nan)
    taken: np.ndarray = np.take_along_axis(ordered, np.maximum(rows, 0)[np.newaxis], axis=0)
    return np.asarray(taken[0])


def _scale(value: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """What rounding is measured against, R×…: the largest of value, draw and the draws' median.

    A value that cancels to nothing, as a correlation does, is rounded at the size of others; one
    outlier is not asked.
    """
    sizes = np.abs(draws)
    # What is not finite has no rounding, and would make every draw equal to the value.
    sizes = np.where(np.isfinite(sizes), sizes, 0)
    size = np.where(np.isfinite(value), np.abs(value), 0)
    typical = np.median(sizes, axis=0) if len(sizes) else size
    return np.asarray(np.maximum(np.maximum(sizes, size), typical))


def _array(values: ArrayLike | Tensor) -> np.ndarray:
    """As float64 in memory; a tensor of any precision, on any device, with or without a graph."""
    if isinstance(values, Tensor):
        return values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=float)
