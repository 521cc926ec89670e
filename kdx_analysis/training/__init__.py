"""Training: the one loop, its schedules and checkpoints, and the loggers that it tells.

``fit`` trains a model under an objective and calls ``callbacks`` after every epoch, probes among
them. A logger is declared in ``loggers``, on its class.
"""

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
