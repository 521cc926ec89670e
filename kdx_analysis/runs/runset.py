"""Many runs as one tidy frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from kdx_analysis.config import LADDER, flatten
from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown
from kdx_analysis.runs.directory import INFO, ROLES, Run
from kdx_analysis.runs.headlines import METRIC, headlines
from kdx_analysis.runs.statistics import Paired, paired_difference

ORDER = (*LADDER[:1], "label_smoothing", *LADDER[1:])


@dataclass(frozen=True)
class RunSet:
    """Finished runs, in the order teacher, then objective by objective, seed by seed."""

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
        """The runs whose keys (run, study, role, objective, decomposition, seed) have the given values.

        A value may be a list of allowed ones.
        """
        runs = self.runs
        for key, wanted in keys.items():
            allowed = wanted if isinstance(wanted, list | tuple | set) else [wanted]
            if runs and key not in runs[0].keys:
                raise unknown("key of runs", key, runs[0].keys)
            runs = tuple(run for run in runs if run.keys[key] in allowed)
        return RunSet(runs)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Labels of the objectives, in the order of the ladder with label smoothing after hard."""
        return tuple(dict.fromkeys(run.objective for run in self.runs if run.role != "teacher"))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs if run.role != "teacher"}))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, which all runs share that know theirs. Raises KdxError where they don't."""
        distinct = {run.classes for run in self.runs if run.classes}
        if len(distinct) > 1:
            raise KdxError(f"the runs are about {len(distinct)} different sets of classes; filter by study")
        return distinct.pop() if distinct else ()

    def frame(self, kind: str) -> pd.DataFrame:
        """The records of one kind of all runs that hold them, under each run's keys."""
        frames = [run.record(kind).assign(**run.keys) for run in self.runs if kind in run.kinds]
        if not frames:
            raise KdxError(f"none of the {len(self)} runs has {kind!r} records")
        return self._keyed(frames)

    def to_frame(self) -> pd.DataFrame:
        """Headline figures of all runs: the keys, then metric, attention, split, value, null, n."""
        return self._headlines.copy()

    @cached_property
    def _headlines(self) -> pd.DataFrame:
        if not self.runs:
            raise KdxError("there is no run to take figures from; loosen the filter")
        return self._keyed([headlines(run).assign(**run.keys) for run in self.runs])

    def _keyed(self, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        frame = pd.concat(frames, ignore_index=True)
        keys = list(self.runs[0].keys)
        return frame[keys + [column for column in frame.columns if column not in keys]]

    def values(self, metric: str, *, role: str = "explainer", split: str | None = None, attention: str | None = None
    ) -> pd.DataFrame:  # fmt: skip
        """One headline figure as a table of seeds (rows) by objectives (columns).

        ``split`` and ``attention`` are by default those that headlines rest on: train for conflict, test for
        accuracy, effective attention for gates. Raises KdxError if two runs stand for one cell, naming the
        configuration keys in which they differ.
        """
        if metric not in METRIC:
            raise unknown("headline figure", metric, METRIC)
        frame = self._headlines
        chosen = frame[(frame["metric"] == metric) & (frame["role"] == role)]
        for column, wanted in (("split", split), ("attention", attention)):
            default = next((v for v in ("test", "train", "effective", "") if v in set(chosen[column])), None)
            chosen = chosen[chosen[column] == (default if wanted is None else wanted)]
        twice = chosen[chosen.duplicated(["objective", "seed"], keep=False)]
        if len(twice):
            first = twice.iloc[0]
            same = twice[(twice["objective"] == first["objective"]) & (twice["seed"] == first["seed"])]
            differing = self.filter(run=list(same["run"])).differences()
            raise KdxError(
                f"{len(same)} runs are {role} {first['objective']!r} with seed {first['seed']}; they differ in "
                f"{', '.join(differing) or 'nothing'}: filter the runs, or report their directories apart"
            )
        table = chosen.pivot(index="seed", columns="objective", values="value")
        return table[[objective for objective in self.objectives if objective in table.columns]]

    def paired(self, metric: str, a: str, b: str, *, confidence: float = 0.95, **which: Any) -> Paired:
        """Difference a − b of one headline figure over seeds that both objectives have."""
        table = self.values(metric, **which)
        for objective in (a, b):
            if objective not in table.columns:
                raise unknown("objective among the runs", objective, table.columns)
        both = table[[a, b]].dropna()
        return paired_difference(both[a].to_numpy(), both[b].to_numpy(), confidence)

    def differences(self) -> dict[str, list[Any]]:
        """Configuration keys (dotted) in which the runs differ, with the value of each run."""
        flat = [flatten(run.info["config"]) for run in self.runs]
        keys = dict.fromkeys(key for config in flat for key in config)
        table = {key: [config.get(key) for config in flat] for key in keys}
        return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _order(run: Run) -> tuple[int, int, str, int, str]:
    name = run.info["config"].get("objective", {}).get("name", "")
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return ROLES.index(run.role), place, run.objective, run.seed, run.id


def objective_names(runs: Sequence[Run]) -> dict[str, str]:
    """Label → name (rung of the ladder) of the objectives of ``runs``."""
    return {run.objective: run.info["config"]["objective"]["name"] for run in runs if run.role != "teacher"}
