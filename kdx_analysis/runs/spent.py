"""Where the time of finished runs went, role by role and part by part."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from kdx_analysis.runs.run import ROLES, Run


def spent(runs: Iterable[Run]) -> pd.DataFrame:
    """Seconds of the wall clock that runs of each role took, all of them together.

    A row for each role, as the index, and columns ``runs``, then the parts of a run in their order:
    training, teacher, scoring, probes, other. Runs that don't tell their seconds, as older and
    imported ones, are not counted; without any others there is no row.
    """
    by_run = [(run.role, run.info["seconds"]) for run in runs if run.info.get("seconds")]
    rows = pd.DataFrame([seconds for _, seconds in by_run])
    roles = pd.Series([role for role, _ in by_run], name="role", dtype=object)
    summed = rows.groupby(roles, sort=False).sum()
    summed.insert(0, "runs", roles.value_counts().reindex(summed.index))
    return summed.loc[[role for role in ROLES if role in summed.index]]


def duration(seconds: float) -> str:
    """Seconds in words that are easy to read.

    >>> [duration(seconds) for seconds in (41.4, 150, 7200)]
    ['41 s', '2.5 min', '2.0 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    # Below 90 minutes they are easier to compare in minutes.
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
