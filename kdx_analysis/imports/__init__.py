"""Runs that were not made here, from what other tools wrote of them: CSV, TensorBoard, MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdx_analysis.errors import KdxError
from kdx_analysis.imports.mlflow import read_mlflow
from kdx_analysis.imports.names import Names, SourceRun
from kdx_analysis.imports.table import read_table
from kdx_analysis.imports.tensorboard import read_tensorboard
from kdx_analysis.imports.write import write_runs
from kdx_analysis.registry import Registry
from kdx_analysis.runs.runset import RunSet

KINDS: Registry[Callable[[Path, Names], list[SourceRun]]] = Registry("kind of source")
for _kind, _reader in (
    ("csv", read_table),
    ("tensorboard", read_tensorboard),
    ("mlflow", read_mlflow),
):
    KINDS.register(_kind)(_reader)


def import_runs(
    source: str | Path,
    kind: str,
    out: str | Path,
    *,
    keys: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    metrics: Mapping[str, str] | None = None,
    steps_per_epoch: int | None = None,
) -> RunSet:
    """Write the runs that a source tells of as run directories below ``out``.

    They hold the record ``metrics`` and, in ``run.json``, a ``source``: where they come from, what
    was left out, and what is unknown. Nothing is made up: an objective and a seed that the source
    doesn't say must be stated.

    Args:
        source: a CSV; a TensorBoard event directory; an MLflow store (``mlruns``, ``mlflow.db``) or
            the CSV of ``mlflow experiments csv``.
        kind: csv, tensorboard or mlflow.
        out: created if need be; runs that are there already stay as they are.
        keys: study, role, objective, decomposition, seed, where they are the same for all runs. By
            default the study is the source's name, the role student and the decomposition unknown.
        columns: those keys, or run, epoch, n, split, metric, value → the column, hyperparameter,
            parameter or tag that holds them, where it has another name.
        metrics: name in the source → ``split/metric``, as ``{"top1": "test/accuracy%"}`` (in
            percent) or ``{"top1": "test/accuracy"}`` (a share). Names with just one of train, val
            (valid, validation) and test in them are read without, accuracies and other shares as
            shares, where their values can be nothing else.
        steps_per_epoch: by which a source's steps are divided to give epochs.

    Raises:
        KdxError: whatever can be read in two ways, or not at all; nothing has been written then.
    """
    path = Path(source)
    if not path.exists():
        raise KdxError(f"there is no {str(path)!r} to import")
    read = KINDS[kind]
    if (path.is_dir() and kind == "csv") or (path.is_file() and kind == "tensorboard"):
        raise KdxError(
            f"{str(path)!r} is a {'folder' if path.is_dir() else 'file'}, which kind {kind} can't "
            "be"
        )
    names = Names(keys or {}, columns or {}, metrics or {}, steps_per_epoch)
    return RunSet.of(write_runs(read(path, names), names, kind, path.resolve().name, Path(out)))


__all__ = ["KINDS", "import_runs"]
