"""Many tasks at once: robust means and win rates over tasks×seeds, with bootstrap intervals
stratified by task.

Definitions are those of Agarwal et al., Deep RL at the Edge of the Statistical Precipice (NeurIPS
2021, arXiv 2108.13264), of which rliable is the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdx_analysis.errors import KdxError

DRAWS = 4_999
_AT_ONCE = 256


@dataclass(frozen=True)
class Aggregate:
    """A figure over tasks and seeds with its bootstrap interval; ``low`` and ``high`` are NaN with
    one seed.

    ``seeds`` are those of the task that has fewest of all that entered.
    """

    value: float
    low: float
    high: float
    tasks: int
    seeds: int


def interquartile_mean(scores: np.ndarray, confidence: float = 0.95, *, seed: int = 0) -> Aggregate:
    """Mean of the middle half of all scores: a quarter of them, rounded down, is left out at either
    end.

    Args:
        scores: tasks×seeds, on a scale that tasks share.
        confidence: of the percentile interval from 4,999 bootstrap samples, stratified by task.
            With few seeds it covers less: at 95 %, 75 % for one task of 3 seeds, 91 % for ten of 5
            (normal scores).
        seed: of these samples.

    Raises:
        KdxError: a score is missing, or the scores are no table.
    """
    return _bootstrapped(_iqm, (_checked(scores),), confidence, seed)


def probability_of_improvement(
    a: np.ndarray, b: np.ndarray, confidence: float = 0.95, *, seed: int = 0
) -> Aggregate:
    """How probably a run of a scores higher than one of b on a task: mean over tasks of P(A > B) +
    ½ P(A = B).

    In [0, 1], ½ where neither is better; on each task it is Mann and Whitney's U over the number of
    pairs. Seeds are not paired.

    Args:
        a, b: tasks×seeds, of the same tasks; their seeds may be of different numbers.
        confidence, seed: as for :func:`interquartile_mean`; a and b are sampled independently.

    Raises:
        KdxError: a score is missing, or the tasks are not the same in number.
    """
    x, y = _checked(a), _checked(b)
    if len(x) != len(y):
        raise KdxError(
            f"{len(x)} tasks can't be compared with {len(y)}; give scores of the same tasks"
        )
    return _bootstrapped(_win_rate, (x, y), confidence, seed)


def _checked(scores: np.ndarray) -> np.ndarray:
    x = np.asarray(scores, dtype=float)
    if x.ndim != 2 or x.size == 0:
        raise KdxError(f"scores should be a table of tasks by seeds, not of shape {x.shape}")
    if missing := int((~np.isfinite(x)).sum()):
        raise KdxError(
            f"{missing} of {x.size} scores are missing or not finite; leave out their tasks or "
            "seeds"
        )
    return x


def _iqm(scores: np.ndarray) -> np.ndarray:
    return np.asarray(stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1))


def _win_rate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = a[..., :, None] - b[..., None, :]
    return ((np.sign(difference) + 1) / 2).mean(axis=(-3, -2, -1))


def _bootstrapped(
    statistic: Callable[..., np.ndarray],
    groups: tuple[np.ndarray, ...],
    confidence: float,
    seed: int,
) -> Aggregate:
    """Percentile interval over samples in which every task keeps its number of seeds, drawn with
    replacement.

    Where it says 95 % it covered, of the mean of normal scores, 75 % for one task of 3 seeds, and
    86, 91 and 93 % for ten tasks of 3, 5 and 10 seeds (1,000 trials each).
    """
    value, seeds = float(statistic(*groups)), min(group.shape[1] for group in groups)
    low = high = float("nan")
    if seeds > 1:
        rng = np.random.default_rng(seed)
        sizes = [_AT_ONCE] * (DRAWS // _AT_ONCE) + [DRAWS % _AT_ONCE]
        drawn = [statistic(*(_resampled(group, size, rng) for group in groups)) for size in sizes]
        low, high = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Aggregate(value, float(low), float(high), len(groups[0]), seeds)


def _resampled(group: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """size×tasks×seeds."""
    tasks, seeds = group.shape
    chosen = rng.integers(seeds, size=(size, tasks, seeds))
    return np.take_along_axis(group[None], chosen, axis=2)
