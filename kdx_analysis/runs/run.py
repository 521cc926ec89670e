"""One directory per run: configuration, environment, metrics, records and weights.

It is written whole or not at all.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from torch import nn

from kdx_analysis.config import digest, flatten
from kdx_analysis.errors import KdxError
from kdx_analysis.io import (
    has_column,
    read_json,
    read_parquet,
    staged_directory,
    write_json,
    write_parquet,
)
from kdx_analysis.models.tree import Tree
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.records import RECORDS, check
from kdx_analysis.registry import home
from kdx_analysis.runs.headlines import headlines
from kdx_analysis.runs.outputs import OUTPUTS, RunOutputs, read_outputs, write_outputs
from kdx_analysis.training.checkpoints import save_weights

FORMAT = 1
ROLES = ("teacher", "student", "explainer", "tree")
INFO, WEIGHTS, FOLDER = "run.json", "model.safetensors", "records"
_PACKAGES = (
    "torch",
    "torchvision",
    "lightning-fabric",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "kdx_analysis",
)


@dataclass(frozen=True)
class Run:
    """A finished run on disk.

    Attributes:
        path: its directory.
        info: what ``run.json`` holds: id, study, role (one of ROLES), objective, decomposition, vam
            (label of a student's arm, '' where the study does not vary VAM), teacher (the number of
            the one that taught it, where there are several), seed, config, data, environment,
            selection, declared (true of a sibling that is one by the user's word alone),
            together (of a run trained with others: the names that its planned group would have
            alone, and the ids of those that were trained with it), probe_sets, experts (N_l of
            each level, trunk first), grown_from (a tree's explainer: the id of its run, and its
            experts before pruning), seconds (of the wall clock, by part: training, teacher,
            scoring, probes, other), source (only of
            a run that was not made here: kind, name, run, sha256, left_out and what is unknown of
            it).
    """

    path: Path
    info: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Raises KdxError if ``path`` holds no run, or one of another format."""
        path = Path(path)
        try:
            info = read_json(path / INFO)
        except (OSError, ValueError) as error:
            raise KdxError(f"{str(path)!r} holds no readable run ({INFO}: {error})") from None
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise KdxError(
                f"{str(path / INFO)!r} is not of format {FORMAT}; it was written by another version"
            )
        return cls(path, info)

    @property
    def id(self) -> str:
        """Its directory's name, which no other configuration has."""
        return str(self.info["id"])

    @property
    def role(self) -> str:
        """One of ROLES."""
        return str(self.info["role"])

    @property
    def objective(self) -> str:
        """The label of its objective: its name and what is unlike the default; '' for a teacher."""
        return str(self.info["objective"])

    @property
    def seed(self) -> int:
        """What weights, order and augmentation were drawn with."""
        return int(self.info["seed"])

    @property
    def teacher(self) -> int:
        """The number of its teacher: that teacher's seed; of a teacher its own.

        It is 0 for runs of before there were several, and, nominally, where the objective needs no
        teacher.
        """
        return self.seed if self.role == "teacher" else int(self.info.get("teacher", 0))

    @property
    def taught(self) -> bool:
        """Whether a teacher entered its training, as one did unless its objective needs none."""
        objective = self.info["config"].get("objective", {})
        name = objective.get("name")
        needs_none = name in OBJECTIVES and not OBJECTIVES[name].needs_teacher
        return not needs_none or objective.get("scale_to") is not None

    @property
    def vam(self) -> str:
        """Label of a student's arm, '' where the study does not vary VAM."""
        return str(self.info.get("vam", ""))  # runs of before there were arms have none

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, by label."""
        return tuple(self.info["data"]["classes"])

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that key this run's rows in a frame of many runs."""
        return {
            "run": self.id,
            "study": self.info["study"],
            "role": self.role,
            "objective": self.objective,
            "decomposition": self.info["decomposition"],
            "vam": self.vam,
            "seed": self.seed,
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its configuration by dotted keys, as ``training.lr``."""
        return flatten(self.info["config"])

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of records that this run holds; ``metrics`` is one."""
        return tuple(sorted(p.stem for p in (self.path / FOLDER).glob("*.parquet")))

    @cached_property
    def _cache(self) -> dict[str, pd.DataFrame]:
        return {}

    def record(self, kind: str) -> pd.DataFrame:
        """One tidy table of this run.

        Raises KdxError if it has none of that kind, or one whose columns are not those of its kind;
        what an extension has written that is not loaded now is taken as it is.
        """
        if kind not in self._cache:
            self._cache[kind] = self._checked(kind, read_parquet(self._file_of(kind)))
        return self._cache[kind]

    def rows(self, kind: str, **values: str | int) -> pd.DataFrame:
        """The rows of :meth:`record` that have these values, of the columns that there are.

        The others are not read, unless they have been already: of 100 classes, the conflict of all
        pairs, levels and terms is half a million rows, of which a figure shows a thirtieth.

        Args:
            kind: of the record, as one of :attr:`kinds`.
            values: column → value, as ``split="val"``.
        """
        name = f"{kind} {sorted(values.items())}"
        if kind in self._cache:
            return _having(self._cache[kind], values)
        if name not in self._cache:
            file = self._file_of(kind)
            there = {column: value for column, value in values.items() if has_column(file, column)}
            self._cache[name] = self._checked(kind, read_parquet(file, there))
        return self._cache[name]

    def _file_of(self, kind: str) -> Path:
        if kind not in self.kinds:
            raise KdxError(
                f"run {self.id!r} has no {kind!r} records; it has {', '.join(self.kinds)}"
            )
        return self.path / FOLDER / f"{kind}.parquet"

    def _checked(self, kind: str, table: pd.DataFrame) -> pd.DataFrame:
        return check(kind, table, f"run {self.id!r}") if kind in RECORDS else table

    @property
    def selected_epoch(self) -> int:
        """The epoch whose weights the run holds: the last one, or the best on validation."""
        return int(self.info["selection"]["epoch"])

    @property
    def selection_rule(self) -> str:
        """By which rule it was selected: ``last``, ``best``, or ``unknown`` of imported runs."""
        return str(self.info["selection"]["rule"])

    @property
    def selection_split(self) -> str:
        """On which images it is the best."""
        return str(self.info["selection"]["split"])

    def at_selected(self, kind: str) -> pd.DataFrame:
        """The rows of :meth:`record` that are of the selected epoch."""
        table = self.record(kind)
        return table[table["epoch"] == self.selected_epoch]

    def outputs(self, split: str) -> RunOutputs | None:
        """What its model gives on ``val`` or ``test``, at the selected epoch.

        None where the run holds none: it is older than they are, or only its figures were imported.
        Raises KdxError for another split, or a file that can't be read.
        """
        return read_outputs(self.path / OUTPUTS, split)

    def once(self, function: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
        """What a function makes of this run's records, which never change, made once."""
        name = home(function)
        if name not in self._cache:
            self._cache[name] = function(self)
        return self._cache[name]

    @cached_property
    def headlines(self) -> pd.DataFrame:
        """Its headline figures: metric, attention, split, value, null, n, epochs, probed, ….

        ``attention`` is '' where it does not matter. ``null`` is NaN where there is none. ``n`` is
        the number of test images for accuracy and agreement, of gates for gate entropy, of subtasks
        for specialisation, of probe images for the rest. Conflict figures are of the plain hard
        loss, the same for every objective, and means over ``epochs`` of the ``probed`` ones: those
        at which the figure is defined, its null over the same. ``undefined`` counts the pairs of
        subtasks that could not go in.
        """
        return headlines(self)

    @cached_property
    def tree(self) -> Tree:
        """The tree of an explainer: its effective attention at the selected epoch, made hard.

        Raises KdxError if the run has no gates.
        """
        gates = self.at_selected("gates")
        attention = [
            torch.tensor(
                level.pivot(index="child_index", columns="parent", values="effective").to_numpy()
            )
            for _, level in gates.groupby("level")
        ]
        return Tree.from_attention(attention, self.classes)


def _having(table: pd.DataFrame, values: Mapping[str, str | int]) -> pd.DataFrame:
    for column, value in values.items():
        if column in table:
            table = table[table[column] == value]
    return table


def run_id(
    role: str, objective: str, seed: int, config: Mapping[str, Any], *, vam: str = ""
) -> str:
    """Name of a run's directory: role, objective, arm, seed and the config's digest.

    It is safe as a path; ``vam`` is the arm.
    """
    slugs = (re.sub(r"[^A-Za-z0-9.=]+", "_", label).strip("_.")[:60] for label in (objective, vam))
    return "-".join(part for part in (role, *slugs, f"seed{seed}", digest(config)) if part)


def write_run(
    path: Path,
    info: Mapping[str, Any],
    records: Mapping[str, pd.DataFrame],
    model: nn.Module | None = None,
    outputs: Mapping[str, RunOutputs] | None = None,
) -> Run:
    """Write a run to ``path``, which gets its name when everything is in it.

    An existing one is left as it is.

    Args:
        path: the run's directory.
        info: what stands in ``run.json``; see :class:`Run`.
        records: kind → tidy table, each a Parquet file.
        model: whose weights are written; None: none.
        outputs: split → what the model gives there; None: they are not known.

    Raises KdxError for a table of a kind that nobody has declared, or whose columns are not those
    of its kind.
    """
    for kind, frame in records.items():
        check(kind, frame)
    try:
        with staged_directory(path) as partial:
            for kind, frame in records.items():
                write_parquet(partial / FOLDER / f"{kind}.parquet", frame)
            if model is not None:
                save_weights(partial / WEIGHTS, model)
            if outputs is not None:
                write_outputs(partial / OUTPUTS, outputs)
            write_json(partial / INFO, {"format": FORMAT, **info})
    except FileExistsError:
        pass  # another process finished the same run meanwhile
    return Run.load(path)


def environment() -> dict[str, Any]:
    """Versions, hardware and the commit of this package's source, where it is a git checkout."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "commit": _commit(),
        "hardware": {
            "processor": _processor(),
            "cores": psutil.cpu_count(),
            "memory": psutil.virtual_memory().total,
            "gpus": gpus,
        },
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit, with ``+changes`` behind it if the working tree differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return (
            f"{commit}+changes"
            if git("status", "--porcelain", "--untracked-files=no", ".")
            else commit
        )
    except (OSError, subprocess.SubprocessError):
        return None
