"""What a part of ``kdx validate`` found: a row a yardstick, what was wanted, whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Row:
    """One yardstick.

    Attributes:
        yardstick: what is measured.
        on: on what.
        value: what came out; NaN where it was refused.
        wanted: the bounds in words.
        n: how many draws, studies or pairs it rests on.
        passed: whether it lies within them.
        note: what is to say besides, such as the words of a refusal.
    """

    yardstick: str
    on: str
    value: float
    wanted: str
    n: int
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """All yardsticks of one part.

    Attributes:
        part: its name on the command line.
        rows: in the order in which they are shown.
    """

    part: str
    rows: Sequence[Row]

    @property
    def passed(self) -> bool:
        """Whether every yardstick holds."""
        return all(row.passed for row in self.rows)

    @property
    def caption(self) -> str:
        """How many yardsticks hold."""
        holding = sum(row.passed for row in self.rows)
        return f"{self.part}: {holding} of {len(self.rows)} yardsticks hold"

    @property
    def values(self) -> pd.DataFrame:
        """As :meth:`to_frame`."""
        return self.to_frame()

    def to_frame(self) -> pd.DataFrame:
        """One row a yardstick: part, yardstick, on, value, wanted, n, passed, note."""
        frame = pd.DataFrame(self.rows)
        frame.insert(0, "part", self.part)
        return frame

    def __str__(self) -> str:
        shown = self.to_frame().drop(columns="part")
        shown["value"] = shown["value"].map("{:.4g}".format)
        shown["passed"] = shown["passed"].map({True: "yes", False: "NO"})
        return f"{shown.to_string(index=False)}\n{self.caption}"

    def _repr_html_(self) -> str:
        return str(self.to_frame().style.hide(axis="index").set_caption(self.caption).to_html())
