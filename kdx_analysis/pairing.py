"""Which observations may be averaged side by side: those that everything compared has."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def shared(table: pd.DataFrame, within: Sequence[str]) -> pd.DataFrame:
    """``table`` with NaN in the rows that some column of the group lacks.

    Means of its columns are then over one set. A value that is missing because of what is compared,
    as 0/0 under one objective alone, so takes its row from all columns. A column that has no value
    in a group, as of a run that is missing, asks nothing there; and where no row of a group has all
    columns, each keeps its own: means of that group are not over one set, as their counts show.

    Args:
        table: observations (rows) by what is compared (columns).
        within: the levels of the index that make the groups.

    >>> rows = pd.MultiIndex.from_product([[0, 1], [1, 9]], names=["seed", "epoch"])
    >>> values = {"hard": [None, 0.4, None, None], "kd": [0.1, 0.5, 0.2, 0.6]}
    >>> table = pd.DataFrame(values, index=rows, dtype=float)
    >>> shared(table, ["seed"])["kd"].tolist()
    [nan, 0.5, 0.2, 0.6]
    """
    if table.empty:
        return table
    measured = table.notna()
    groups = list(within)
    present = measured.groupby(groups, sort=False).transform("any")
    whole = (measured | ~present).all(axis=1) & measured.any(axis=1)
    nothing_shared = ~whole.groupby(groups, sort=False).transform("any")
    return table.where(measured.mul(whole | nothing_shared, axis=0))
