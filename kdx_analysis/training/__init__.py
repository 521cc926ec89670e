"""Training: the loop, its schedules, checkpoints."""

from kdx_analysis.training.loop import (
    Callback,
    Epoch,
    Fit,
    fabric_for,
    fit,
    predict,
    reproducible,
    score,
)
from kdx_analysis.training.schedules import temperature_at

__all__ = [
    "Callback",
    "Epoch",
    "Fit",
    "fabric_for",
    "fit",
    "predict",
    "reproducible",
    "score",
    "temperature_at",
]
