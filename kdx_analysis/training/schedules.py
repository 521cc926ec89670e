"""Values that change with the epoch: the gates' temperature and the learning rate."""

from __future__ import annotations

import math

from kdx_analysis.config import TemperatureConfig


def temperature_at(config: TemperatureConfig, epoch: int, epochs: int) -> float:
    """The gates' τ in ``epoch`` (from 1) of ``epochs``.

    reciprocal: start/epoch. exponential: start·(end/start)^f and cosine: end + (start − end)(1 + cos πf)/2, with
    f = (epoch − 1)/(epochs − 1). constant: start.
    """
    fraction = (epoch - 1) / max(epochs - 1, 1)
    match config.schedule:
        case "reciprocal":
            return config.start / epoch
        case "exponential":
            return config.start * (config.end / config.start) ** fraction
        case "cosine":
            return config.end + (config.start - config.end) * (1 + math.cos(math.pi * fraction)) / 2
        case "constant":
            return config.start


def learning_rate_factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Multiplier of the learning rate in ``step`` (from 0) of ``steps``: linear warm-up, then the schedule."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
