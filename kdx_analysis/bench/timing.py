"""Time: contestants take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from kdx_analysis.bench.contract import Ratio, Run

# Rounds in which memory is reserved and algorithms are chosen.
WARM_UP = 2


class Spread(NamedTuple):
    """Lower quartile, median and upper quartile of a ratio over rounds."""

    low: float
    median: float
    high: float


def alternating(
    runs: Sequence[Run],
    rounds: int,
    *,
    warm_up: int = WARM_UP,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Seconds of every run in every round, runs×rounds; each round starts with another run.

    Args:
        runs: what is timed.
        rounds: that count.
        warm_up: rounds before them that do not.
        wait: called after a run, before the clock is read, until the device has finished.
        clock: gives seconds.
    """
    seconds = np.zeros((len(runs), rounds + warm_up))
    for i in range(rounds + warm_up):
        for j in np.roll(np.arange(len(runs)), -i).tolist():
            start = clock()
            runs[j]()
            wait()
            seconds[j, i] = clock() - start
    return seconds[:, warm_up:]


def spread(plain: np.ndarray, other: np.ndarray, ratio: Ratio) -> Spread:
    """Median and quartiles of the ratio within a round.

    It is the plain time over the other's where speed is asked for, and the other way round where
    cost is.

    >>> spread(np.array([2.0, 4.0, 6.0]), np.array([1.0, 1.0, 1.0]), "speed")
    Spread(low=3.0, median=4.0, high=5.0)
    >>> spread(np.array([2.0, 4.0, 4.0]), np.array([1.0, 1.0, 1.0]), "cost").median
    0.25
    """
    ratios = plain / other if ratio == "speed" else other / plain
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return Spread(low, median, high)


def waiting(device: torch.device) -> Callable[[], None]:
    """What waits until everything that was started on ``device`` has finished."""
    if device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)
