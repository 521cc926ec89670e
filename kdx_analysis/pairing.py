"""Which observations may be averaged side by side: those that everything compared has."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def common(table: pd.DataFrame, within: Sequence[str]) -> pd.Series:
    """Which rows of ``table`` are defined in every column that is defined anywhere in the same group.

    A column that has no value in a group, as of a run that is missing, asks nothing there. So a value that is missing
    because of what is compared, as 0/0 under one objective alone, takes its row from all columns.

    Args:
        table: observations (rows) by what is compared (columns).
        within: the levels of the index that make the groups.

    >>> rows = pd.MultiIndex.from_product([[0, 1], [1, 9]], names=["seed", "epoch"])
    >>> table = pd.DataFrame({"hard": [None, 0.4, None, None], "kd": [0.1, 0.5, 0.2, 0.6]}, index=rows, dtype=float)
    >>> common(table, ["seed"]).tolist()
    [False, True, True, True]
    """
    held = table.notna()
    if table.empty:
        return pd.Series(True, index=table.index)
    present = held.groupby(list(within), sort=False).transform("any")
    return (held | ~present).all(axis=1)
