"""Many runs as one tidy frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kdx_analysis.config import LADDER
from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown
from kdx_analysis.runs.comparison import Comparison, compare
from kdx_analysis.runs.directory import INFO, ROLES, Run
from kdx_analysis.runs.effects import by_seed
from kdx_analysis.runs.headlines import METRIC, preferred
from kdx_analysis.runs.keys import canonical, check_key, differing, in_order, places, value_of
from kdx_analysis.runs.statistics import Paired, paired_difference
from kdx_analysis.runs.tables import Table, make_table

ORDER = (*LADDER[:1], "label_smoothing", *LADDER[1:])


@dataclass(frozen=True)
class RunSet:
    """Finished runs, in the order teacher, then objective by objective, arm by arm (VAM's), seed by seed."""

    runs: tuple[Run, ...]

    @classmethod
    def load(cls, *paths: str | Path) -> RunSet:
        """All runs at or below the given directories; raises KdxError if there is none."""
        found: dict[Path, Run] = {}
        for path in map(Path, paths):
            if not path.is_dir():
                raise KdxError(f"no directory {str(path)!r}; give one that holds runs")
            for info in sorted(path.rglob(INFO)):
                if not any(part.startswith(".") for part in info.relative_to(path).parts):
                    found.setdefault(info.parent.resolve(), Run.load(info.parent))
        if not found:
            raise KdxError(f"no finished run at or below {', '.join(repr(str(p)) for p in paths)}")
        return cls.of(found.values())

    @classmethod
    def of(cls, runs: Iterable[Run]) -> RunSet:
        """These runs, in order."""
        return cls(tuple(sorted(runs, key=_order)))

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def filter(self, **keys: Any) -> RunSet:
        """The runs that have the given values under keys of runs or dotted keys of the configuration.

        A value may be a list of allowed ones: ``filter(role="student", **{"training.lr": [0.1, 0.2]})``. A run without
        the key has the value None there. Raises KdxError for a key that no run has.
        """
        runs = self.runs
        for key, wanted in keys.items():
            check_key(self.runs, key)
            several = wanted if isinstance(wanted, list | tuple | set) else ()
            allowed = {canonical(value) for value in (wanted, *several)}
            runs = tuple(run for run in runs if value_of(run, key) in allowed)
        return RunSet(runs)

    def group(self, by: str) -> dict[Any, RunSet]:
        """The runs under each value of a key of runs or of the configuration; numbers by size, others as they come.

        Runs that have no such key are under 'not set'. Raises KdxError for a key that no run has.
        """
        check_key(self.runs, by)
        values = [value_of(run, by) for run in self.runs]
        return {
            value: RunSet(tuple(run for run, its in zip(self.runs, values, strict=True) if its == value))
            for value in in_order(values)
        }

    def pair(self, a: Any, b: Any, *, by: str = "objective") -> tuple[tuple[Run, Run], ...]:
        """The pairs of runs in which ``by`` is a and b, that share role, objective and seed where ``by`` leaves them.

        Raises KdxError if no run has one of the values, or if two runs stand for one of a pair.
        """
        rows = places(self.runs, by).values()
        _check_values((a, b), by, [value_of(run, by) for run in self.runs])
        return tuple((self.runs[row[a]], self.runs[row[b]]) for row in rows if a in row and b in row)

    def diff(self) -> pd.DataFrame:
        """The configuration where the runs differ: runs (rows, by id) by dotted keys; 'not set' where one has none."""
        table = {key: [canonical(value) for value in values] for key, values in differing(self.runs).items()}
        return pd.DataFrame(table, index=pd.Index([run.id for run in self.runs], name="run"), dtype=object)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Labels of the objectives, in the order of the ladder with label smoothing after hard."""
        return tuple(dict.fromkeys(run.objective for run in self.runs if run.role != "teacher"))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs but teachers, in order."""
        return tuple(sorted({run.seed for run in self.runs if run.role != "teacher"}))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, which all runs share that know theirs. Raises KdxError where they don't."""
        distinct = {run.classes for run in self.runs if run.classes}
        if len(distinct) > 1:
            raise KdxError(f"the runs are about {len(distinct)} different sets of classes; filter by study")
        return distinct.pop() if distinct else ()

    def frame(self, kind: str) -> pd.DataFrame:
        """The records of one ``kind`` of all runs that hold them, under each run's keys. KdxError if none does."""
        frames = [run.record(kind).assign(**run.keys) for run in self.runs if kind in run.kinds]
        if not frames:
            raise KdxError(f"none of the {len(self)} runs has {kind!r} records")
        return self._keyed(frames)

    def to_frame(self) -> pd.DataFrame:
        """Headline figures of all runs: the keys, then metric, attention, split, value, null, n."""
        return self._headlines.reset_index(drop=True)

    @cached_property
    def _headlines(self) -> pd.DataFrame:
        """Indexed by the number of each row's run."""
        if not self.runs:
            raise KdxError("there is no run to take figures from; loosen the filter")
        tables = [run.headlines.assign(**run.keys) for run in self.runs]
        return self._keyed(tables).set_axis(np.repeat(np.arange(len(self)), [len(table) for table in tables]))

    def _keyed(self, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        frame = pd.concat(frames, ignore_index=True)
        keys = list(self.runs[0].keys)
        return frame[keys + [column for column in frame.columns if column not in keys]]

    def values(
        self, metric: str, *, by: str = "objective", role: str = "explainer", split: str | None = None,
        attention: str | None = None, of: Literal["value", "null"] = "value",
    ) -> pd.DataFrame:  # fmt: skip
        """One headline figure as a table of what is compared: pairs (rows) by the values of ``by`` (columns).

        A row holds runs that share their seed and, where the runs compared have several, their objective. Other
        differences between runs of one column are refused rather than averaged over.

        Args:
            metric: one of METRIC.
            by: a key of runs (objective, role, study, decomposition, …) or a dotted key of the configuration.
            role: of the runs; where ``by`` is 'role', all but teachers are compared.
            split, attention: by default those that headlines rest on: train for conflict, test for accuracy,
                effective attention for gates.
            of: the figure itself, or its null.

        Raises:
            KdxError: an unknown name, or two runs for one cell, with the configuration keys in which they differ.
        """
        if metric not in METRIC:
            raise unknown("headline figure", metric, METRIC)
        check_key(self.runs, by)
        frame = self._headlines
        of_role = frame["role"] != "teacher" if by == "role" else frame["role"] == role
        chosen = frame[of_role & (frame["metric"] == metric)]
        for column, wanted in (("split", split), ("attention", attention)):
            chosen = chosen[chosen[column] == (preferred(set(chosen[column])) if wanted is None else wanted)]
        values = chosen[of].to_numpy()
        rows = places([self.runs[place] for place in chosen.index], by)
        objectives = in_order(shared.objective for shared in rows)
        order = sorted(rows, key=lambda shared: (objectives.index(shared.objective), shared.seed))
        index = pd.MultiIndex.from_arrays([[s.objective for s in order], [s.seed for s in order]])
        columns = in_order(column for row in rows.values() for column in row)
        table = pd.DataFrame(
            [[values[rows[s][c]] if c in rows[s] else math.nan for c in columns] for s in order],
            index=index.set_names(["objective", "seed"]), columns=pd.Index(columns, name=by), dtype=float,
        )  # fmt: skip
        return table if len(objectives) > 1 else table.droplevel("objective")

    def paired(self, metric: str, a: Any, b: Any, *, confidence: float = 0.95, **which: Any) -> Paired:
        """Difference a − b of ``metric`` over the seeds that both have, with its t-interval at ``confidence``.

        ``which`` is as for :meth:`values`. Where a seed has several pairs, one for each objective, its difference is
        their mean: n counts seeds, of which those that lack an objective are left out. Raises KdxError if all do.
        """
        table = self.values(metric, **which)
        _check_values((a, b), which.get("by", "objective"), table.columns)
        both = by_seed(table[[a, b]])
        return paired_difference(both[a].to_numpy(), both[b].to_numpy(), confidence)

    def table(
        self, rows: str = "objective", columns: str = "metric", metric: str | Sequence[str] | None = None, *,
        role: str | None = None, against: Any = None, confidence: float = 0.95,
    ) -> Table:  # fmt: skip
        """Mean over seeds, Student-t interval and n of every cell, as DataFrame, Markdown, CSV and LaTeX.

        Bold is what paired differences decide, with Bonferroni's correction over the m comparisons of a cell's
        neighbours of one metric (t-intervals at 1 − 0.05/m; method, §7): with ``against`` every value that differs
        from it, without it the one value, if any, that is better than each of the others.

        Args:
            rows, columns: two keys of runs or of the configuration, or one and 'metric'. What is compared are the
                rows, or the columns where the rows are metrics.
            metric: one or several of METRIC; by default all that the runs hold.
            role: of the runs; by default explainers, else students, else trees. Both keys' runs where one is 'role'.
            against: the value of the key that others are compared with.
            confidence: of the intervals, and of all comparisons of one metric together.

        Raises:
            KdxError: an unknown name, no run of the role, several metrics where none of the keys is 'metric', or two
                runs for one seed of a cell.
        """
        return make_table(self, rows, columns, metric, role, against, confidence)

    def compare(
        self, metric: str | Sequence[str] | None = None, *, by: str = "objective", against: Any = None,
        role: str | None = None, confidence: float = 0.95,
    ) -> Comparison:  # fmt: skip
        """Every value of ``by``, its paired difference from ``against`` over seeds, and what else differs.

        Intervals of differences are Bonferroni's over the comparisons of one metric; from six seeds on p-values of
        paired t-tests stand beside them, adjusted by Holm, and below none.

        Args:
            metric, role, confidence: as for :meth:`table`.
            by: a key of runs or of the configuration.
            against: a value of it; by default the first, which is 'hard' of objectives and the least of numbers.

        Raises:
            KdxError: an unknown name, no run of the role, fewer than two values, or two runs for one seed of a cell.
        """
        return compare(self, metric, by, against, role, confidence)


def _check_values(wanted: Iterable[Any], by: str, valid: Iterable[Any]) -> None:
    held = list(valid)
    for value in wanted:
        if value not in held:
            raise unknown(f"{by} among the runs", str(value), map(str, dict.fromkeys(held)))


def _order(run: Run) -> tuple[Any, ...]:
    name = run.info["config"].get("objective", {}).get("name", "")
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    plain_first = "vam" in run.info["config"], run.vam
    return ROLES.index(run.role), place, run.objective, plain_first, run.seed, run.id
