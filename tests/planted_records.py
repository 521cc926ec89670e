"""Tables made by hand as complete records: what a test does not say is filled in with nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kdx_analysis.records import RECORDS

_NOTHING = {"number": np.nan, "count": 0, "text": ""}


def complete(records: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with those columns of their kinds that they lack and may not."""
    tables = {}
    for kind, table in records.items():
        lacking = {
            column.name: max(column.low, 0) if column.holds == "count" else _NOTHING[column.holds]
            for column in RECORDS[kind].columns
            if column.name not in table and not column.optional
        }
        tables[kind] = table.assign(**lacking)
    return tables
