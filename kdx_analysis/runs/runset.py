"""Many runs as one tidy frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.intervals import Paired
from kdx_analysis.metrics import METRICS
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.probes.fidelity.result import Fidelity
from kdx_analysis.registry import unknown
from kdx_analysis.runs.fidelity import RunsFidelity, fidelities, rows_of_runs, the_only, why_absent
from kdx_analysis.runs.headlines import per_epoch, per_pair, preferred
from kdx_analysis.runs.keys import (
    TEACHER,
    canonical,
    check_key,
    differing,
    in_order,
    places,
    value_of,
)
from kdx_analysis.runs.run import INFO, ROLES, Run
from kdx_analysis.runs.statistics.paired import over_epochs, paired, side_by_side
from kdx_analysis.runs.tables.comparison import Comparison, compare
from kdx_analysis.runs.tables.table import Table, make_table
from kdx_analysis.runs.trees import TreePairs, tree_pairs


@dataclass(frozen=True)
class RunSet:
    """Finished runs: the teacher, then objective by objective, arm by arm (VAM's), seed by seed."""

    runs: tuple[Run, ...]
    # What they were chosen from: a student is set beside teachers that a filter has left out.
    among: RunSet | None = field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, *paths: str | Path) -> RunSet:
        """All runs at or below the given directories; raises KdxError if there is none."""
        loaded: dict[Path, Run] = {}
        for path in map(Path, paths):
            if not path.is_dir():
                raise KdxError(f"no directory {str(path)!r}; give one that holds runs")
            for info in sorted(path.rglob(INFO)):
                if not any(part.startswith(".") for part in info.relative_to(path).parts):
                    loaded.setdefault(info.parent.resolve(), Run.load(info.parent))
        if not loaded:
            raise KdxError(f"no finished run at or below {', '.join(repr(str(p)) for p in paths)}")
        return cls.of(loaded.values())

    @classmethod
    def of(cls, runs: Iterable[Run]) -> RunSet:
        """These runs, in order."""
        return cls(tuple(sorted(runs, key=_order)))

    def only(self, runs: Iterable[Run]) -> RunSet:
        """These ``runs`` of the set; fidelity still knows the others that they stand beside.

        The same runs are the same set, so that what is computed of them is computed once for all
        figures and tables.
        """
        chosen = tuple(runs)
        root = self.among or self
        return root._chosen.setdefault(tuple(map(id, chosen)), RunSet(chosen, root))

    @cached_property
    def _chosen(self) -> dict[tuple[int, ...], RunSet]:
        """Sets of these runs, by the identities of those in it, which it keeps alive."""
        return {}

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def filter(self, **keys: Any) -> RunSet:
        """The runs that have the given values under keys of runs or of their configuration.

        A value may be a list of allowed ones: ``filter(role="student", **{"training.lr": [0.1,
        0.2]})``. A run without the key has the value None there. Raises KdxError for a key that no
        run has.
        """
        runs = self.runs
        for key, wanted in keys.items():
            check_key(self.runs, key)
            several = wanted if isinstance(wanted, list | tuple | set) else ()
            allowed = {canonical(value) for value in (wanted, *several)}
            runs = tuple(run for run in runs if value_of(run, key) in allowed)
        return self.only(runs)

    def group(self, by: str) -> dict[Any, RunSet]:
        """The runs under each value of a key of runs or of the configuration.

        Numbers are in order of size, others as they come. Runs that have no such key are under 'not
        set'. Raises KdxError for a key that no run has.
        """
        check_key(self.runs, by)
        groups: dict[Any, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(value_of(run, by), []).append(run)
        return {value: self.only(groups[value]) for value in in_order(groups)}

    def pair(self, a: Any, b: Any, *, by: str = "objective") -> tuple[tuple[Run, Run], ...]:
        """The pairs of runs in which ``by`` is a and b.

        They share role, objective, seed and teacher where ``by`` leaves them; a run whose objective
        needs no teacher makes a pair with one of each teacher. Raises KdxError if no run has one of
        the values, or if two runs stand for one of a pair.
        """
        rows = places(self.runs, by).values()
        _check_values((a, b), by, [value_of(run, by) for run in self.runs])
        # Two runs that no teacher entered share a row for every teacher, and are one pair.
        pairs = dict.fromkeys((row[a], row[b]) for row in rows if a in row and b in row)
        return tuple((self.runs[one], self.runs[other]) for one, other in pairs)

    def diff(self) -> pd.DataFrame:
        """The configuration where the runs differ: runs (rows, by id) by dotted keys.

        'not set' where one has none.
        """
        table = {key: list(map(canonical, values)) for key, values in differing(self.runs).items()}
        return pd.DataFrame(
            table, index=pd.Index([run.id for run in self.runs], name="run"), dtype=object
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Labels of the objectives, in the order of the ladder with label smoothing after hard."""
        return tuple(dict.fromkeys(run.objective for run in self.runs if run.role != "teacher"))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs but teachers, in order."""
        return tuple(sorted({run.seed for run in self.runs if run.role != "teacher"}))

    @cached_property
    def teachers(self) -> tuple[int, ...]:
        """The numbers of the teachers that taught any of the runs, in order."""
        return tuple(sorted({run.teacher for run in self.runs if run.role != "teacher"}))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, which all runs share that know theirs. Raises KdxError where they don't."""
        distinct = {run.classes for run in self.runs if run.classes}
        if len(distinct) > 1:
            raise KdxError(
                f"the runs are about {len(distinct)} different sets of classes; filter by study"
            )
        return distinct.pop() if distinct else ()

    def frame(self, kind: str, **values: str | int) -> pd.DataFrame:
        """The records of one ``kind`` of all runs that hold them, under each run's keys.

        Where several teachers taught the runs, ``teacher`` is one of the keys. With ``values``, as
        ``split="train"``, they are the rows that have these, and the others are not read. Raises
        KdxError if none holds any.
        """
        frames = []
        for run in self.runs:
            if kind in run.kinds:
                table = run.rows(kind, **values) if values else run.record(kind)
                frames.append(table.assign(**self._keys(run)))
        if not frames:
            raise KdxError(f"none of the {len(self)} runs has {kind!r} records")
        return self._keyed(frames)

    def to_frame(self) -> pd.DataFrame:
        """Headline figures of all runs: the keys, then what :attr:`Run.headlines` holds.

        Each is the mean over its run's own epochs. Figures that are set against each other are
        taken over common ones: see :meth:`values` and :meth:`paired`.
        """
        self._some()
        tables = [run.headlines.assign(**self._keys(run)) for run in self.runs]
        for number, rows in self._apart.groupby(level=0, sort=False):
            run = self.runs[int(str(number))]
            tables.append(rows.drop(columns="epoch").assign(epochs=1, probed=1, **self._keys(run)))
        return self._keyed(tables)

    def fidelity(self, role: str | None = None) -> Fidelity:
        """What students got from their teachers, from the outputs that their runs keep.

        Args:
            role: student, explainer or tree; by default the first of them that there is. They are
                never pooled.

        Raises AbsentError where no outputs are kept beside a teacher's, KdxError where students
        are of several settings or arms.
        """
        return the_only(self.fidelities, self.runs, role).fidelity

    @property
    def fidelities(self) -> list[RunsFidelity]:
        """The fidelity of every group of students among all runs that these were chosen from."""
        return (self.among or self)._fidelities

    @cached_property
    def tree_pairs(self) -> TreePairs:
        """How alike the trees of these runs are, two by two: see :func:`tree_pairs`."""
        return tree_pairs(self.runs)

    @cached_property
    def _fidelities(self) -> list[RunsFidelity]:
        return fidelities(self.runs)

    @cached_property
    def _rows_of_fidelity(self) -> dict[Path, pd.DataFrame]:
        tables: dict[Path, pd.DataFrame] = {}
        for computed in self._fidelities:
            tables |= rows_of_runs(computed)
        return tables

    @cached_property
    def _apart(self) -> pd.DataFrame:
        """The figures of fidelity, indexed by the number of each row's run."""
        by_path = (self.among or self)._rows_of_fidelity
        there = [(i, by_path[run.path]) for i, run in enumerate(self.runs) if run.path in by_path]
        if not there:
            return self._per_epoch.iloc[:0]
        numbers = np.repeat([i for i, _ in there], [len(table) for _, table in there])
        return pd.concat([table for _, table in there], ignore_index=True).set_axis(numbers)

    @cached_property
    def _per_epoch(self) -> pd.DataFrame:
        """What headline figures are means of, indexed by the number of each row's run."""
        self._some()
        tables = [run.once(per_epoch) for run in self.runs]
        numbers = np.repeat(np.arange(len(self)), [len(table) for table in tables])
        return pd.concat(tables, ignore_index=True).set_axis(numbers)

    def _some(self) -> None:
        if not self.runs:
            raise KdxError("there is no run to take figures from; loosen the filter")

    def _keys(self, run: Run) -> dict[str, Any]:
        return {**run.keys, TEACHER: run.teacher} if len(self.teachers) > 1 else run.keys

    def _keyed(self, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        frame = pd.concat(frames, ignore_index=True)
        keys = list(self._keys(self.runs[0]))
        return frame[keys + [column for column in frame.columns if column not in keys]]

    def values(
        self,
        metric: str,
        *,
        by: str = "objective",
        role: str = "explainer",
        split: str | None = None,
        attention: str | None = None,
        column: Literal["value", "null"] = "value",
    ) -> pd.DataFrame:
        """One headline figure as a table: pairs (rows) by the values of ``by`` (columns).

        A row holds runs that share their seed and, where the runs compared have several, their
        objective. Where several teachers taught, a cell is the mean over them, so that rows stay
        seeds of students, given these teachers; it is NaN where that of any teacher is, or is not
        there. Other differences between runs of one column are refused rather than averaged over. A
        figure of several epochs is the mean over those at which it is defined for every run
        of the row that has it at all, so that a row may be read across; where there is no such
        epoch, over each run's own. :meth:`by_epoch` has every epoch.

        Args:
            metric: one of METRICS.
            by: a key of runs (objective, role, study, decomposition, …) or a dotted key of the
                configuration.
            role: of the runs; where ``by`` is 'role', all but teachers are compared.
            split, attention: by default those that headlines rest on: train for conflict, test for
                accuracy, effective attention for gates.
            column: the figure itself, or its null, over those of the same epochs at which it is
                defined.

        Raises:
            KdxError: an unknown name, or two runs for one cell, with the configuration keys in
                which they differ.
        """
        read = partial(self.by_epoch, metric, by=by, role=role, split=split, attention=attention)
        values, chosen = side_by_side(read()), read(column=column)
        return over_epochs(chosen.where(values.notna()), METRICS[metric].pairs_make)

    def by_epoch(
        self,
        metric: str,
        *,
        by: str = "objective",
        role: str = "explainer",
        split: str | None = None,
        attention: str | None = None,
        column: Literal["value", "null"] = "value",
    ) -> pd.DataFrame:
        """:meth:`values` epoch by epoch: rows by seed, epoch and, if there are several, objective.

        A cell is NaN where a run has no such figure, or where it is undefined, as 0/0; the mean
        over several teachers is NaN where one of them is. An epoch is
        its number, or for runs of other lengths that were probed equally often its place among the
        probed ones (1, 2, …); a figure of the selected epoch has that one alone. Where a figure of
        pairs of subtasks lacks some of them in any run, rows are keyed by pair too, so that runs
        can be compared on the pairs that they share.

        Args:
            metric: one of METRICS.
            by, role, split, attention: as for :meth:`values`.
            column: the figure itself, or its null, which is NaN where the figure is.

        Raises:
            KdxError: as :meth:`values` does.
        """
        key = (metric, by, role, split, attention, column)
        if key not in self._by_epoch:
            self._by_epoch[key] = self._made_by_epoch(*key)
        return self._by_epoch[key].copy()

    @cached_property
    def _by_epoch(self) -> dict[tuple[str | None, ...], pd.DataFrame]:
        """What :meth:`by_epoch` has made, which the report asks for again and again."""
        return {}

    def _made_by_epoch(
        self,
        metric: str,
        by: str,
        role: str,
        split: str | None,
        attention: str | None,
        column: str,
    ) -> pd.DataFrame:
        if metric not in METRICS:
            raise unknown("headline figure", metric, METRICS)
        check_key(self.runs, by)
        frame = self._per_epoch
        if METRICS[metric].input.apart:
            frame = self._apart
            if not (frame["metric"] == metric).any():
                raise AbsentError(why_absent(metric))
        roles = np.array([run.role for run in self.runs], dtype=object)[frame.index]
        of_role = roles != "teacher" if by == "role" else roles == role
        chosen = frame[of_role & (frame["metric"] == metric)]
        for key, wanted in (("split", split), ("attention", attention)):
            rests_on = preferred(set(chosen[key])) if wanted is None else wanted
            chosen = chosen[chosen[key] == rests_on]
        if METRICS[metric].over_pairs and (chosen["undefined"] > 0).any():
            chosen = self._by_pair(chosen, metric)
        return self._crossed(chosen, by, column)

    def _by_pair(self, chosen: pd.DataFrame, metric: str) -> pd.DataFrame:
        """Rows of ``chosen``, one an epoch, as one a pair of subtasks.

        Those of runs that hold no pairs are left out. Where none of the runs does they stay as they
        are. Nulls are of the pairs that each run has, so there is none of the pairs that several
        share.
        """
        tables = []
        for number, rows in chosen.groupby(level=0, sort=False):
            pairs = per_pair(self.runs[int(str(number))], metric)
            if not pairs.empty:
                merged = (
                    rows.drop(columns="value")
                    .merge(pairs, on=["split", "epoch"], how="left")
                    .assign(null=np.nan)
                )
                tables.append(merged.set_axis([number] * len(merged)))
        if not tables:
            return chosen
        return pd.concat(tables)

    def _crossed(self, chosen: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
        """A column of the runs' rows, in the places that :func:`places` gives the runs."""
        numbers = list(dict.fromkeys(chosen.index))
        rows = places([self.runs[number] for number in numbers], by)
        objectives = in_order(shared.objective for shared in rows)
        columns = in_order(value for row in rows.values() for value in row)
        keys = ["objective", "seed", "epoch", *(["pair"] if "pair" in chosen else [])]
        at = []
        for shared, row in rows.items():
            place = (objectives.index(shared.objective), shared.seed, shared.teacher)
            at += [(numbers[run], *place, columns.index(value)) for value, run in row.items()]
        placed = pd.DataFrame(at, columns=["run", "objective", "seed", TEACHER, "column"])
        long = pd.DataFrame({"run": chosen.index, "epoch": _epoch_keys(chosen)})
        long = long.assign(value=chosen[column].to_numpy(dtype=float))
        long = long.assign(pair=chosen["pair"].to_numpy()) if "pair" in chosen else long
        table = (
            long.merge(placed, on="run")
            .set_index([*keys, TEACHER, "column"])["value"]
            .unstack("column")
            .reindex(columns=range(len(columns)))
        )
        table = _over_teachers(table)
        table.columns = pd.Index(columns, name=by)
        if len(objectives) < 2:
            return table.droplevel("objective")
        return table.rename(index=dict(enumerate(objectives)), level="objective")

    def paired(
        self, metric: str, a: Any, b: Any, *, confidence: float = 0.95, **which: Any
    ) -> Paired:
        """Difference a − b of ``metric`` over the seeds that both have, with its t-interval.

        The interval covers with a probability of ``confidence``. A figure of several epochs is
        compared epoch by epoch, over those at which both are defined, and then averaged;
        ``coverage`` of the result says over how many. ``which`` is as for :meth:`values`. Where a
        seed has several pairs, one for each objective, its difference is their mean: n counts
        seeds, of which those that lack an objective are left out. Raises KdxError if all do, or if
        no seed has both.
        """
        by = which.get("by", "objective")
        _check_values((a, b), by, self.by_epoch(metric, **which).columns)
        # no other run's epochs count
        two = self.only(run for run in self.runs if value_of(run, by) in (a, b))
        table = two.by_epoch(metric, **which)
        difference = paired(table, a, b, confidence, METRICS[metric].pairs_make)
        if difference is None:
            raise KdxError(
                f"{metric} of {a} and {b} can't be paired: no seed has both, at an epoch at which "
                "both are defined"
            )
        return difference

    def table(
        self,
        rows: str = "objective",
        columns: str = "metric",
        metric: str | Sequence[str] | None = None,
        *,
        role: str | None = None,
        against: Any = None,
        confidence: float = 0.95,
    ) -> Table:
        """Mean over seeds, t-interval and n of every cell, as DataFrame, Markdown, CSV and LaTeX.

        Bold is what paired differences decide, with Bonferroni's correction over the m comparisons
        of the whole table, all metrics together (t-intervals at 1 − 0.05/m; method, §7): with
        ``against`` every value that differs from it, without it the one value, if any, that is
        better than each of the others. Figures of several epochs are compared epoch by epoch, over
        those at which both are defined; a cell is the mean over the epochs at which all runs of its
        seed are, and its ``over`` says how many those are.

        Args:
            rows, columns: two keys of runs or of the configuration, or one and 'metric'. What is
                compared are the rows, or the columns where the rows are metrics.
            metric: one or several of METRICS; by default all that the runs hold.
            role: of the runs; by default explainers, else students, else trees. Both keys' runs
                where one is 'role'.
            against: the value of the key that others are compared with.
            confidence: of each interval, and of all comparisons together.

        Raises:
            KdxError: an unknown name, no run of the role, several metrics where none of the keys is
                'metric', or two runs for one seed of a cell.
        """
        return make_table(self, rows, columns, metric, role, against, confidence)

    def compare(
        self,
        metric: str | Sequence[str] | None = None,
        *,
        by: str = "objective",
        against: Any = None,
        role: str | None = None,
        confidence: float = 0.95,
    ) -> Comparison:
        """Every value of ``by``, its paired difference from ``against``, and what else differs.

        Intervals of differences are Bonferroni's over all comparisons shown, of all metrics; from
        six seeds on p-values of paired t-tests stand beside them, adjusted by Holm over the same,
        and below none.

        Args:
            metric, role, confidence: as for :meth:`table`.
            by: a key of runs or of the configuration.
            against: a value of it; by default the first, which is 'hard' of objectives and the
                least of numbers.

        Raises:
            KdxError: an unknown name, no run of the role, fewer than two values, or two runs for
                one seed of a cell.
        """
        return compare(self, metric, by, against, role, confidence)


def _epoch_keys(chosen: pd.DataFrame) -> np.ndarray:
    """The epoch of every row: its number, or its place in its run.

    It is the place for runs of other lengths that were probed equally often. A place then says the
    share of the training that is done, as a third; the last probed epoch ends it.
    """
    by_run = chosen["epoch"].groupby(level=0, sort=False)
    if by_run.max().nunique() < 2 or by_run.nunique().nunique() > 1:
        return chosen["epoch"].to_numpy()
    return by_run.rank("dense").astype(int).to_numpy()


def _over_teachers(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over teachers, NaN where not all that the table has have a value."""
    teachers = table.index.unique(TEACHER)
    if len(teachers) < 2:
        return table.droplevel(TEACHER)
    others = [name for name in table.index.names if name != TEACHER]
    return table.groupby(others).sum(min_count=len(teachers)) / len(teachers)


def _check_values(wanted: Iterable[Any], by: str, valid: Iterable[Any]) -> None:
    known = list(valid)
    for value in wanted:
        if value not in known:
            raise unknown(f"{by} among the runs", str(value), map(str, dict.fromkeys(known)))


def _order(run: Run) -> tuple[Any, ...]:
    name = run.info["config"].get("objective", {}).get("name", "")
    order = list(OBJECTIVES)
    place = order.index(name) if name in order else len(order)
    plain_first = "vam" in run.info["config"], run.vam
    return ROLES.index(run.role), place, run.objective, plain_first, run.seed, run.teacher, run.id
