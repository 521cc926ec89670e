"""Values that change with the epoch: the gates' temperature and the learning rate."""

from __future__ import annotations

import math

from kdx_analysis.config import PenaltyConfig, TemperatureConfig, TrainingConfig


def temperature_at(config: TemperatureConfig, epoch: int, epochs: int) -> float:
    """The gates' τ in ``epoch`` (from 1) of ``epochs``.

    reciprocal: start/epoch. exponential: start·(end/start)^f and cosine: end + (start − end)(1 +
    cos πf)/2, with f = (epoch − 1)/(epochs − 1). constant: start.
    """
    fraction = (epoch - 1) / max(epochs - 1, 1)
    match config.schedule:
        case "reciprocal":
            return config.start / epoch
        case "exponential":
            ratio: float = (config.end / config.start) ** fraction
            return config.start * ratio
        case "cosine":
            return config.end + (config.start - config.end) * (1 + math.cos(math.pi * fraction)) / 2
        case "constant":
            return config.start


def penalty_at(config: PenaltyConfig, epoch: int, epochs: int) -> float:
    """γ of VAM's entropy penalty in ``epoch`` (from 1) of ``epochs``.

    constant: start. linear: start + (end − start)·f, with f = (epoch − 1)/(epochs − 1).
    """
    if config.schedule == "constant":
        return config.start
    return config.start + (config.end - config.start) * (epoch - 1) / max(epochs - 1, 1)


def learning_rate_factor(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Multiplier of the learning rate in ``step`` (from 0): linear warm-up, then the schedule."""
    epoch = step // steps_per_epoch + 1
    if config.schedule == "learn_to_branch":
        return learn_to_branch_factor(epoch, config.epochs)
    warmup, steps = round(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    match config.schedule:
        case "constant":
            return 1.0
        case "step":
            return halving_factor(epoch, config.step_epochs)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def learn_to_branch_factor(epoch: int, epochs: int) -> float:
    """Multiplier of both learning rates in an ``epoch`` of the released code's phase 1.

    Epochs count from 1 to ``epochs``.

    A quarter, a half, then 1 up to epoch 4; in odd epochs e ≥ 5 it is 1 − (e − 1)/⌊1.03093·epochs⌋,
    kept for the even one behind. The code freezes the gates in epochs 1 and 2.
    """
    if epoch <= 4:
        return (0.25, 0.5, 1.0, 1.0)[epoch - 1]
    odd = epoch - 1 + epoch % 2
    return 1 - (odd - 1) / math.floor(1.03093 * epochs)


def halving_factor(epoch: int, every: int) -> float:
    """Multiplier of the learning rate in ``epoch`` (from 1): halved after ``every`` epochs each.

    >>> [halving_factor(epoch, every=2) for epoch in (1, 2, 3, 5)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return 0.5 ** ((epoch - 1) // every)
