"""Conflict where all pairs of subtasks are too dear: means over pairs, estimated from some.

What takes the time are the gradients of subtasks, not the products of pairs. So m of the K subtasks
are drawn at random and all pairs among them are looked at: every pair has the same chance, and the
mean over these pairs is an unbiased estimate of the mean over all. It is less sure than that of as
many pairs drawn one by one, since each subtask stands in m − 1 of them, which the standard error
takes into account. It rests on the subtasks that were drawn: where one subtask alone carries the
conflict, most samples have not seen it; the mean is still unbiased, but 95 % intervals held in 31 %
of samples (32 of 100 subtasks) to 50 % (6 of 12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, isqrt

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from scipy import special, stats
from torch import Tensor

from kdx_analysis.probes.conflict.formulas import upper

_CONFIDENCE = 0.95


def drawn_subtasks(num_classes: int, pairs: int | None, seed: int) -> tuple[int, ...]:
    """The subtasks that are looked at, in order: as many as have at most so many ``pairs``.

    All of them where ``pairs`` is None or no fewer than there are. The same seed draws alike, so
    that all epochs, losses and runs of a study are compared on the same pairs.

    >>> drawn_subtasks(4, None, seed=0), drawn_subtasks(4, 6, seed=0)
    ((0, 1, 2, 3), (0, 1, 2, 3))
    >>> len(drawn_subtasks(100, 500, seed=0))  # 32 · 31 / 2 = 496
    32
    """
    if pairs is None or pairs >= num_classes * (num_classes - 1) // 2:
        return tuple(range(num_classes))
    # The largest m with m (m − 1)/2 ≤ pairs.
    m = (1 + isqrt(1 + 8 * pairs)) // 2
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
    return tuple(sorted(order[:m].tolist()))


def margins_of(
    subtasks: Sequence[int], num_classes: int, margins: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor] | None:
    """``margins``, of some subtasks alone where these are not all.

    >>> margins_of((0, 2), 3, None)(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 3.]])
    """
    if len(subtasks) == num_classes:
        return margins
    chosen = list(subtasks)

    def of_some(outputs: Tensor) -> Tensor:
        return (outputs if margins is None else margins(outputs))[:, chosen]

    return of_some


@jaxtyped(typechecker=beartype)
def standard_error(table: Float[Tensor, "m m"], num_classes: int) -> float:
    """Of the mean over the pairs of m of K subtasks, as an estimate of that over all; ≥ 0.

    A pair's value is taken apart as h_ab = μ + u_a + u_b + e_ab. With S² the variance of u over
    subtasks and σ² that of e over pairs, a mean over the pairs of n subtasks varies by V(n) =
    4S²/n + 2σ²/(n(n − 1)), and the mean of a sample about that of all K by V(m) − V(K), which
    is 0 where the sample is all. Both variances are estimated from the m subtasks, without bias
    as long as all pairs are defined; beside undefined ones the mean is a ratio, whose variance is
    that of (h_ab − mean) / (share that is defined), 0 where undefined. NaN below four subtasks, of
    which u and e can't be told apart, and where no pair is defined.

    Args:
        table: h, symmetric; its diagonal is not looked at.
        num_classes: K.

    Values that are sums of two numbers, 0 to 3, have no e and S² = 5/3, and V(4) − V(8) = 5/6:

    >>> u = torch.arange(4.0)
    >>> round(standard_error(u + u.unsqueeze(1), 8) ** 2, 4), standard_error(u + u.unsqueeze(1), 4)
    (0.8333, 0.0)
    """
    m, K = len(table), num_classes
    if m < 4 or bool(upper(table).isnan().all()):
        return float("nan")
    table = table.double()  # differences of variances, which float32 would round
    apart = table - upper(table).nanmean()
    share = upper(table).isfinite().double().mean()
    apart = (apart / share).nan_to_num(nan=0.0).fill_diagonal_(0)
    u = apart.sum(dim=1) / (m - 2)  # its sum is 0, as that of ``apart`` is
    e = upper(apart - u - u.unsqueeze(1))
    noise = (e**2).sum() / (m * (m - 3) / 2)
    # u is estimated from m − 1 pairs each, whose e is in it; a variance is not below 0.
    subtasks = ((u**2).sum() / (m - 1) - noise / (m - 2)).clamp(min=0)
    varies = [4 * subtasks / n + 2 * noise / (n * (n - 1)) for n in (m, K)]
    return float((varies[0] - varies[1]).clamp(min=0).sqrt())  # 0 but for rounding where m = K


def interval(
    mean: float, error: float, subtasks: int, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Where the mean over all pairs lies with 95 %, by Student's t with m − 1 degrees of freedom.

    Of a metric with ``bounds`` it is taken on the scale of log(x/(1 − x)), x the place between
    them: it stays inside, and near a bound it reaches further to the other side, as it must to hold
    a share of rare conflicts. NaN where the standard error is NaN or 0: pairs that are all alike,
    as where none is in conflict, don't say how far others are from them.

    >>> [round(end, 3) for end in interval(0.5, 0.1, 10, (0, 1))], interval(0.0, 0.0, 10, (0, 1))
    ([0.288, 0.712], (nan, nan))
    """
    if not error > 0:
        return float("nan"), float("nan")
    reach = float(stats.t.ppf((1 + _CONFIDENCE) / 2, subtasks - 1)) * error
    low, high = bounds
    if not (isfinite(low) and isfinite(high)):
        return mean - reach, mean + reach
    x = (mean - low) / (high - low)
    # dx = x (1 − x) d log(x/(1 − x))
    reach /= (high - low) * x * (1 - x)
    ends = [float(special.expit(special.logit(x) + sign * reach)) for sign in (-1, 1)]
    return low + (high - low) * ends[0], low + (high - low) * ends[1]
