"""``kdx validate``: the toolkit held against what is known, part by part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pandas as pd

from kdx_analysis import probes
from kdx_analysis.registry import Registry
from kdx_analysis.validation import models, nothing, teachers
from kdx_analysis.validation.outcome import Outcome, Row

__all__ = ["PARTS", "Outcome", "Row", "Yardsticks"]


class Yardsticks(Protocol):
    """What a part gives; as text it is a table of yardsticks and how many of them hold."""

    @property
    def passed(self) -> bool:
        """Whether every yardstick holds."""

    @property
    def values(self) -> pd.DataFrame:
        """The value of every yardstick."""


PARTS: Registry[Callable[[int], Yardsticks]] = Registry("part of kdx validate")
PARTS.register("planted")(probes.validate)
PARTS.register("nothing")(lambda seeds: nothing.validate())
PARTS.register("models")(lambda seeds: models.validate())
PARTS.register("teachers")(lambda seeds: teachers.validate())
